"""Train a network on a grid of ranks: replicas that share each batch, each of them a pipeline of stages.

    --grid data=2,pipe=2        rank 0 -> rank 1        stages of replica 0
                                  |         |           gradients of a stage are summed over its replicas,
                                rank 2 -> rank 3        stages of replica 1       or with --sync ssp:1 pushed to its servers

Pushed to servers, replicas keep no step: one may be as many waves (its share of a batch) ahead of the slowest as the policy allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from mpidml.core.errors import UserError
from mpidml.core.idle import OF_PUSHES, OF_SERVERS
from mpidml.core.job import Job
from mpidml.core.position import Position
from mpidml.core.program import Program
from mpidml.core.spans import Spans
from mpidml.optim.base import Chain, Transforms, make_chain
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.order import Wish
from mpidml.runtime.ordered_waves import OrderedStepper
from mpidml.runtime.serverless import START, Recorder
from mpidml.runtime.slowness import Slowness
from mpidml.runtime.staged import Staged
from mpidml.runtime.waves import WaveStepper


class Hybrid(Staged):
    """Ranks along the axes that --grid names. Sources: Narayanan et al. 2021 (PTD-P); where replicas push, Park et al. 2020 (HetPipe)."""

    ordered = False
    """Whether pushes count in the order in which they come, whatever the gap between replicas."""
    idle: ClassVar[tuple[str, ...]] = tuple(name for name in OF_SERVERS if name not in OF_PUSHES)

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        if not job.grid:
            raise UserError(f"--strategy hybrid: needs a grid for its {comm.size} rank(s); give for example --grid data=0,pipe=1, where 0 takes what is left")
        super().__init__(job, comm)
        if job.policy() != Job.sync:
            self.ordered = self.policy.gate_at != "" or self.policy.bound is None
            self._check_pushes(f"--sync {job.policy()}")
            self.pushes, self.stepper = True, OrderedStepper if self.ordered else WaveStepper
            self.slowness = Slowness(None, comm.rank)  # replicas are slow, not ranks
            self.in_step = self.policy.bound == 0 and not self.ordered
            self.vote_every = 1 if self.ordered else (self.policy.bound or 0) + 1
            self.n_flight = 1
            self.coordinated &= not self.ordered  # the order of pushes also says when all end

    def _check_pushes(self, sync: str) -> None:
        """Refuse what replicas that push to servers cannot do."""
        job, policy = self.job, self.policy
        if self.n_workers == 1:
            raise UserError(f"{sync}: does nothing for the one replica of --grid {job.grid}; give data=2 or more, or leave it out")
        if policy.gate_at == "start":
            raise UserError(f"{sync}: looks at the CPU of one rank, of which a replica has several, to say how many clocks it computes; use asp or quorum")
        if self.ordered and not policy.gate_at and policy.commit == "clock":
            raise UserError(f"{sync}: commits by the clock and has no bound, so a clock would keep any number of gradients; give it one, or commit on arrival")
        try:
            policy.needed(self.n_workers)
        except ValueError as error:
            raise UserError(f"{sync}: {error}") from None
        if job.deterministic and not policy.repeatable:
            raise UserError(f"--deterministic: {job.policy()} cannot repeat, its reads depend on timing; use bsp or ssp")
        job.refuse(("collective", "compress", "memory_per_rank"), f"{sync}, under which replicas push to servers of each stage")
        if job.mix:
            raise UserError(f"{sync}: lets replicas go ahead of each other, and parts of layers under --mix {job.mix} need all ranks at once; leave one of them out")
        if self.n_parts > 1 and any(link.scope == "tensor" for link in make_chain(job.optimizer, job.rate).links):
            raise UserError(f"--optimizer {job.optimizer}: measures tensors, of which each server has a part; use --grid with tensor=1, or --sync bsp")
        before, _ = make_chain(job.optimizer, job.rate).split(whole_tensors=True)
        if (job.checkpoint_every or job.resume) and before is not None and (states := before.init(1, job.dtype)):
            where = f"--resume {job.resume}" if job.resume else f"--checkpoint-every {job.checkpoint_every}"
            raise UserError(f"{where}: under {sync} each replica has '{next(iter(states))}' of --optimizer {job.optimizer} for itself, which is not saved; use --sync bsp")
        if self.every:
            self._check_waves(self.program(self.n_pipe + 2))

    def _check_waves(self, program: Program) -> None:
        """Refuse a program in which a wave waits for one of its own replica that cannot be pushed before it."""
        actions = program.lists[0]
        begins = [i for i, action in enumerate(actions) if action.op == "V" and not action.item % self.n_items]
        for wave, closed in enumerate(sum(action.op == "U" for action in actions[:i]) for i in begins):
            if self.policy.oldest_readable(wave) > closed:
                raise UserError(
                    f"--sync {self.job.policy()}: under --schedule {self.job.schedule} a wave starts while {wave - closed} before it of its own replica"
                    f" are in flight; give --sync ssp:{wave - closed} or more"
                )

    def _in_flight(self, program: Program) -> int:
        """Return how many waves of a replica are in flight at once, at most."""
        most = 1
        for actions in program.lists:
            begun, pushed = Counter[int](), Counter[int]()
            for stage, op, item, _ in actions:
                begun[stage] += op == "V" and not item % self.n_items
                pushed[stage] += op == "U"
                most = max(most, begun[stage] - pushed[stage])
        return most

    def spans(self) -> Spans:
        """Return of how many clocks programs are: of one where a gate says which is next, and none goes past a clock at which the run may end."""
        found = super().spans()
        if not self.ordered:
            return found._replace(cuts=(*found.cuts, *[self.vote_every] * (self.pushes and self.coordinated)))
        if self.policy.gate_at:
            return Spans(1, (1,))
        return found._replace(cuts=found.cuts[:1])  # where it is saved each replica has its own clock

    def build(self, record: Recorder, look: Callable[[float], None]) -> Any:
        """Cut, open channels, and fill the first weights; return what steps (Collective on comm)."""
        if self.pushes and self.every:
            for program, _ in self.programs.made.values():
                self._check_waves(program)
                self.n_flight = max(self.n_flight, self._in_flight(program))
        found = super().build(record, look)
        if self.ordered:
            self.coordinator: Any = Wish()
        return found

    def _chains(self) -> tuple[Transforms | None, Chain]:
        """Return what transforms a replica's gradient before it is pushed, each its share, and what the servers of a stage do to it."""
        if not self.pushes:
            return super()._chains()
        chain = make_chain(self.job.optimizer, self.job.rate)
        chain.each_sees(1.0 / self.n_workers)
        before, after = chain.split(whole_tensors=True)
        if not self.ordered or self.policy.commit == "clock":
            after.each_sees(1.0)  # a wave's gradients are summed first
        return before, after

    def n_versions(self, s: int) -> int:
        """Return how many versions of its weights a stage keeps: as many as waves may read; in one order of pushes the newest, beside copies."""
        return self.vote_every if self.pushes else super().n_versions(s)

    def roles(self, position: Position = START, pause_at: int = 0) -> dict[int, Any]:
        """Go to `position`; there are no roles."""
        turns, updates = position.turns or (0,) * self.n_workers, self.driver.updates  # type: ignore[attr-defined]
        if self.ordered:
            level = self.policy.commit == "clock"
            updates.begin(turns, min(self.n_clocks, pause_at or self.n_clocks) if level else self.n_clocks, 0 if level else pause_at)
        elif self.pushes:
            updates.begin(max(turns))
        found = super().roles(position, pause_at)
        if self.ordered:
            self.driver.clock = self.driver.part.step = turns[self.at["data"]]
            self.driver.until = self.n_clocks
        return found

    def _drain(self) -> None:
        if self.pushes:
            self.driver.updates.drain(self.driver.clock)  # type: ignore[attr-defined]

    def position(self) -> Position:
        """Return where the run stands, once all that was pushed is applied (Collective on comm)."""
        self._drain()
        if not self.ordered:
            return super().position()
        clocks = self.comm.allgather(self.driver.clock)
        turns = tuple(clocks[self.grid.rank(data=replica)] for replica in range(self.n_workers))
        return Position(max(turns), turns)

    def settle(self) -> None:
        """Apply all that was pushed (Collective on comm)."""
        self._drain()
        super().settle()

    def words(self) -> str:
        """Say how the ranks work together."""
        return super().words() + (f"; sync {self.job.policy()}: each replica pushes to servers of each stage" if self.pushes else "")

    def free(self) -> None:
        """Free requests and communicators (Collective on comm)."""
        if self.pushes:
            self.driver.updates.free()  # type: ignore[attr-defined]
        super().free()
