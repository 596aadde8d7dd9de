"""Train a network on a grid of ranks: replicas that share each batch, each of them a pipeline of stages.

    --grid data=2,pipe=2        rank 0 -> rank 1        stages of replica 0
                                  |         |           gradients of a stage are summed over its replicas,
                                rank 2 -> rank 3        stages of replica 1       or with --sync ssp:1 pushed to its servers

Pushed to servers, replicas keep no step: one may be as many waves (its share of a batch) ahead of the slowest as the policy allows.
"""

from __future__ import annotations

from typing import Any, ClassVar

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.position import Position
from mpidml.optim.base import make_chain
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.serverless import IDLE, START
from mpidml.runtime.slowness import Slowness
from mpidml.runtime.staged import Staged
from mpidml.runtime.waves import WaveStepper


class Hybrid(Staged):
    """Ranks along the axes that --grid names. Sources: Narayanan et al. 2021 (PTD-P); where replicas push, Park et al. 2020 (HetPipe)."""

    idle: ClassVar[tuple[str, ...]] = tuple(name for name in IDLE if name not in ("sync", "staleness"))

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        if not job.grid:
            raise UserError(f"--strategy hybrid: needs a grid for its {comm.size} rank(s); give for example --grid data=0,pipe=1, where 0 takes what is left")
        super().__init__(job, comm)
        if job.policy() != Job.sync:
            self._check_pushes(f"--sync {job.policy()}")
            assert self.policy.bound is not None
            self.pushes, self.stepper = True, WaveStepper
            self.slowness = Slowness(None, comm.rank)  # replicas are slow, not ranks
            self.in_step, self.vote_every = self.policy.bound == 0, self.policy.bound + 1

    def _check_pushes(self, sync: str) -> None:
        """Refuse what replicas that push to servers cannot do."""
        job, policy = self.job, self.policy
        if self.n_workers == 1:
            raise UserError(f"{sync}: does nothing for the one replica of --grid {job.grid}; give data=2 or more, or leave it out")
        if policy.gate_at or policy.bound is None:
            raise UserError(f"{sync}: bounds not how many waves a replica may be ahead, and so what each stage keeps; use ssp, dssp or warmup")
        if job.deterministic and not policy.repeatable:
            raise UserError(f"--deterministic: {job.policy()} cannot repeat, its reads depend on timing; use bsp or ssp")
        job.refuse(("collective", "compress"), f"{sync}, under which replicas push to servers of each stage")
        if job.mix:
            raise UserError(f"{sync}: lets replicas go ahead of each other, and parts of layers under --mix {job.mix} need all ranks at once; leave one of them out")
        if make_chain(job.optimizer, job.rate).split()[0] is not None:
            raise UserError(f"--optimizer {job.optimizer}: measures whole tensors or all stages, of which each server changes its own; use clamp, or --sync bsp")
        for wave, closed in enumerate(self._own_pushes() if self.every else ()):
            if policy.oldest_readable(wave) > closed:
                raise UserError(
                    f"{sync}: under --schedule {job.schedule} a wave starts while {wave - closed} before it of its own replica are in flight;"
                    f" give --sync ssp:{wave - closed} or more"
                )

    def _own_pushes(self) -> list[int]:
        """Return for each wave how many of its own replica are pushed before it starts."""
        actions = self.program(self.n_pipe + 2).lists[0]
        begins = [i for i, action in enumerate(actions) if action.op == "V" and not action.item % self.n_items]
        return [sum(action.op == "U" for action in actions[:i]) for i in begins]

    def n_versions(self, s: int) -> int:
        """Return how many versions of its weights a stage keeps: as many as waves may read."""
        return self.vote_every if self.pushes else super().n_versions(s)

    def roles(self, position: Position = START, pause_at: int = 0) -> dict[int, Any]:
        """Go to `position`; there are no roles."""
        if self.pushes:
            self.driver.updates.begin(max(position.turns, default=0))  # type: ignore[attr-defined]
        return super().roles(position, pause_at)

    def _drain(self) -> None:
        if self.pushes:
            self.driver.updates.drain(self.driver.clock)  # type: ignore[attr-defined]

    def position(self) -> Position:
        """Return where the run stands, once all that was pushed is applied (Collective on comm)."""
        self._drain()
        return super().position()

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
