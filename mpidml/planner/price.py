"""Price a candidate: its program is replayed on virtual clocks with the seconds of its stages; its memory and its bytes are counted.

    a stage's microbatch     compute of its layers on so many rows + sums over the line of its parts
    between stages           latency + bytes of activations, of gradients back
    at the end               gradients summed over the replicas, the weights changed
"""

from __future__ import annotations

from functools import cache, lru_cache
from math import ceil
from typing import NamedTuple

from mpidml.core.action import Action
from mpidml.core.balance import Profile, Stage, balanced
from mpidml.core.replay import Seconds
from mpidml.nn.parts import Part, Parts
from mpidml.nn.room import replica_nbytes, stages_nbytes
from mpidml.planner.candidate import Candidate
from mpidml.planner.course import Course
from mpidml.planner.machine import Link, Machine, Places, SumCost, cheapest, places
from mpidml.schedules.base import Schedule, make


class Cost(NamedTuple):
    """Seconds of a layer's pass: `fixed` + `per_row` for each row."""

    fixed: float = 0.0
    per_row: float = 0.0

    def seconds(self, rows: float, share: float = 1.0) -> float:
        """Return the seconds of some rows, where a rank does a share of the layer's compute."""
        return self.fixed + self.per_row * rows * share


class Costs(NamedTuple):
    """What layers cost, forward and backward, on a core of its own; of each byte of parameters the seconds of an update, and of adding up a gradient.

    `rows`: for how many rows stages are balanced.
    """

    layers: tuple[tuple[Cost, Cost], ...]
    update: float = 0.0
    add: float = 0.0
    rows: int = 64


class Task(NamedTuple):
    """What of a job decides its price. `batch`: rows of a batch; `state`: bytes of optimizer state for each byte of parameters; `owns`: whether ranks
    of data_parallel share the optimizer; `collective` as --collective; `block`: rows that stages score at once; `apart`: ranks of a host share no memory."""

    batch: int
    state: float = 0.0
    owns: bool = True
    collective: str = "auto"
    block: int = 0
    apart: bool = False


class Priced(NamedTuple):
    """A candidate and its price. `seconds` and `nbytes` sent by the rank that sends most, of a batch; `memory_nbytes` of the fullest rank; `idle`:
    the share of time in which ranks do not compute; `partition`: layers of each stage."""

    candidate: Candidate
    seconds: float
    nbytes: float
    memory_nbytes: float
    idle: float
    partition: tuple[int, ...]


class _Stage(NamedTuple):
    """Seconds of a stage's microbatch: computes, and sums over its line; `part`: what its rank has; `rows` of a microbatch."""

    forward: float
    backward: float
    sum_forward: float
    sum_backward: float
    part: Part
    rows: int


class Pricer:
    """Price candidates for one task, on one machine, by one network's costs and parts."""

    def __init__(self, task: Task, machine: Machine, costs: Costs, parts: Parts) -> None:
        self.task, self.machine, self.costs, self.parts = task, machine, costs, parts
        self.cut, self.stages = cache(self._cut), cache(self._stages)

    def why_not(self, of: Candidate) -> str:
        """Say why a candidate cannot be, whatever its memory; "" where it can."""
        if of.data > self.task.batch:
            return f"{of.data} replicas have no {of.data} samples in a batch of {self.task.batch}"
        if (n := of.pipe * made(of.schedule).n_chunks) > self.parts.n_layers:
            return f"{n} stages are more than the net's {self.parts.n_layers} layer(s)"
        found = self.stages(of._replace(recompute=False))
        return found if isinstance(found, str) else ""

    def memory_nbytes(self, of: Candidate) -> float:
        """Return the bytes of the fullest rank: weights, gradient and the room in which microbatches leave theirs, optimizer state, activations.

        Rows of data are not counted.
        """
        stages, state = self._known(of), self.task.state
        if of.is_plain:
            owned = self._plain_sum(of, stages[0]).owned if self.task.owns else 1.0
            return replica_nbytes(stages[0].part, stages[0].rows, of.microbatches, state * owned)
        kept, hops = course(of.schedule, of.pipe, of.microbatches).kept, places(of, self.machine).hops
        hops = (True,) * of.pipe if self.task.apart and of.pipe > 1 else hops
        return max(stages_nbytes([stage.part for stage in stages], stages[0].rows, self.task.block, of.microbatches, kept, hops, state, of.recompute))

    def least_seconds(self, of: Candidate) -> float:
        """Return what no replay of a candidate falls below: some rank's computes, and the way of a microbatch there and back."""
        stages, at = self._known(of), places(of, self.machine)
        if of.is_plain:
            return self.price(of).seconds
        splits = course(of.schedule, of.pipe, 1).splits
        busy, way, found = [0.0] * of.pipe, 0.0, 0.0
        for s, stage in enumerate(stages):
            forward, backward = self._both(of, stage, at.crowd)
            busy[s % of.pipe] += of.microbatches * (forward + backward)
        for s, stage in enumerate(stages):
            if s < of.pipe:
                found = max(found, busy[s] + way)
            forward, backward = self._both(of, stage, at.crowd)
            way += forward + self._hop(of, at).seconds(stage.rows * stage.part.goes)
            way += 0.0 if splits else backward + self._hop(of, at).seconds(stage.rows * stage.part.goes)
        return found * (1 - 1e-9)

    def price(self, of: Candidate) -> Priced:
        """Return the price; O(stages x microbatches)."""
        stages, at, n = self._known(of), places(of, self.machine), of.microbatches
        partition = tuple(hi - lo for lo, hi, _ in self.cut(len(stages)))
        if of.is_plain:
            return self._plain(of, stages[0], at, partition)
        ends = course(of.schedule, of.pipe, n).ends(self._seconds(of, stages, at))
        work, sent = [0.0] * of.pipe, [0.0] * of.pipe
        link = self.machine.link(at.tensor)
        for s, stage in enumerate(stages):
            p, rows, part = s % of.pipe, stage.rows, stage.part
            work[p] += n * (stage.forward * (1 + of.recompute) + stage.backward) + (n - 1) * self.costs.add * part.parameter_nbytes
            sent[p] += n * rows * (part.goes * (s + 1 < len(stages)) + part.comes * (s > 0)) * (of.pipe > 1)
            for nbytes in (*part.forward_sums * (1 + of.recompute), *part.backward_sums):
                sent[p] += n * rows * nbytes * cheapest(self.task.collective, of.tensor, rows * nbytes, link).sent
            sent[p] += n * rows * (sum(part.forward_moves) * (1 + of.recompute) + sum(part.backward_moves))
            sent[p] += part.replicated_nbytes * self._replica_sum(of, at, part).sent
        updates = [sum(stage.part.parameter_nbytes for stage in stages[p :: of.pipe]) * self.costs.update for p in range(of.pipe)]
        on_host = max(sum(n * (w + u) for n, w, u in zip(row, work, updates, strict=True)) for row in at.on_host)
        last = self._replica_sum(of, at, stages[0].part).seconds(stages[0].part.replicated_nbytes, self.machine.link(at.data))
        seconds = max(ends, on_host / self.machine.n_cores + last)  # the first stage's gradient is there last, and then summed
        idle = 1 - at.crowd * sum(work) / (of.pipe * seconds) if seconds else 0.0
        return Priced(of, seconds, max(sent), self.memory_nbytes(of), max(0.0, idle), partition)

    def _known(self, of: Candidate) -> tuple[_Stage, ...]:
        found = self.stages(of._replace(recompute=False))
        if isinstance(found, str):
            raise ValueError(f"{of}: {found}")
        return found

    def _plain(self, of: Candidate, stage: _Stage, at: Places, partition: tuple[int, ...]) -> Priced:
        """Price data_parallel as `sim.data_parallel` does: compute, the rounds of the sum, the update of the own part."""
        n, nbytes = of.microbatches, stage.part.parameter_nbytes
        total = self._plain_sum(of, stage)
        woken = 2 * self.machine.waking(of) * (of.data > 1)
        compute = at.crowd * (n * (stage.forward + stage.backward) + (n - 1) * self.costs.add * nbytes)
        update = at.crowd * self.costs.update * nbytes * (total.owned if self.task.owns else 1.0)
        seconds = compute + total.seconds(nbytes, self.machine.link(at.data)) + woken + update
        idle = 1 - compute / seconds if seconds else 0.0
        return Priced(of, seconds, nbytes * total.sent, self.memory_nbytes(of), idle, partition)

    def _plain_sum(self, of: Candidate, stage: _Stage) -> SumCost:
        return self._replica_sum(of, places(of, self.machine), stage.part)

    def _replica_sum(self, of: Candidate, at: Places, part: Part) -> SumCost:
        return cheapest(self.task.collective, of.data, part.replicated_nbytes, self.machine.link(at.data))

    def _cut(self, n_stages: int) -> tuple[Stage, ...]:
        rows = self.costs.rows
        profiles = [Profile(forward.seconds(rows), backward.seconds(rows), 0.0, 0.0) for forward, backward in self.costs.layers]
        return balanced(profiles, n_stages, 0.0).stages

    def _stages(self, of: Candidate) -> tuple[_Stage, ...] | str:
        """Return what a candidate's stages take, or why they cannot be."""
        at, rows = places(of, self.machine), ceil(ceil(self.task.batch / of.data) / of.microbatches)
        link, over = self.machine.link(at.tensor), self.machine.link(at.data)
        n_stages, found, woken = of.pipe * made(of.schedule).n_chunks, list[_Stage](), 2 * self.machine.waking(of)
        for s, (lo, hi, _) in enumerate(self.cut(n_stages)):
            part = self.parts.mixed(of.data, of.mix) if of.mix else self.parts.part(lo, hi, of.tensor, s == 0, s == n_stages - 1)
            if isinstance(part, str):
                return part
            seconds = [sum(cost[i].seconds(rows, share) for cost, share in zip(self.costs.layers[lo:hi], part.shares, strict=False)) for i in (0, 1)]
            sums = [
                sum(cheapest(self.task.collective, of.tensor, rows * nbytes, link).seconds(rows * nbytes, link) + woken for nbytes in each)
                + sum(over.seconds(rows * nbytes) + woken / 2 for nbytes in moves)
                for each, moves in ((part.forward_sums, part.forward_moves), (part.backward_sums, part.backward_moves))
            ]
            found.append(_Stage(seconds[0], seconds[1], sums[0], sums[1], part, rows))
        return tuple(found)

    def _both(self, of: Candidate, stage: _Stage, crowd: float) -> tuple[float, float]:
        """Return the seconds of a forward and of a backward on their rank."""
        forward = crowd * stage.forward + stage.sum_forward
        return forward, crowd * stage.backward + stage.sum_backward + forward * of.recompute

    def _hop(self, of: Candidate, at: Places) -> Link:
        """Return the fastest of the links between stages, which bounds the way of a microbatch."""
        links = [self.machine.link(crosses) for crosses in at.hops]
        return Link(min(link.latency for link in links), max(link.bytes_per_second or float("inf") for link in links)) if of.pipe > 1 else Link()

    def _seconds(self, of: Candidate, stages: tuple[_Stage, ...], at: Places) -> Seconds:
        """Return what actions take."""
        costs, link = self.costs, self.machine.link(at.data)
        both, woken, last = [self._both(of, stage, at.crowd) for stage in stages], self.machine.waking(of), len(stages) - 1
        sums = [self._replica_sum(of, at, stage.part).seconds(stage.part.replicated_nbytes, link) + 2 * woken * (of.data > 1) for stage in stages]
        add, update = ([at.crowd * each * stage.part.parameter_nbytes for stage in stages] for each in (costs.add, costs.update))
        hops = [self.machine.link(crosses) for crosses in at.hops]

        def take(action: Action) -> float:
            s, op, item, _ = action
            forward, backward = both[s][0] + woken * (s > 0), both[s][1] + woken * (s < last)
            if op in ("B", "W"):
                added = add[s] if item else 0.0
                return added + (backward if op == "B" else at.crowd * stages[s].backward / 2)
            return {"F": forward, "I": backward - at.crowd * stages[s].backward / 2, "U": update[s], "G": sums[s]}.get(op, 0.0)

        def travel(stage: int, forward: bool) -> float:
            part, rows = stages[stage].part, stages[stage].rows
            return hops[(stage if forward else stage - 1) % of.pipe].seconds(rows * (part.goes if forward else part.comes))

        return Seconds(take, travel)


@cache
def made(schedule: str) -> Schedule:
    """Return a schedule; one stage needs none in particular."""
    return make(schedule or "one_f_one_b", "--schedule ")


@lru_cache(512)
def course(schedule: str, pipe: int, n_items: int) -> Course:
    """Return what a schedule's computes wait for."""
    return Course(made(schedule), pipe, n_items)
