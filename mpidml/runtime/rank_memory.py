"""Hold a run to the bytes that a rank may take (--memory-per-rank): counted as a plan counts them, before the first step, alike on all ranks.

    stages -> bytes of each place of the pipe -> more than the limit: one line, with what would fit
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from mpidml.collectives.base import FOLDER as COLLECTIVES
from mpidml.collectives.base import Collective
from mpidml.core import plugins
from mpidml.core.balance import Stage, balanced
from mpidml.core.checking import check, lowered, lowered_by_turns
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.lowering import lower
from mpidml.core.sizes import parse_size, size_words
from mpidml.nn.parts import NetParts, Part
from mpidml.nn.room import replica_nbytes, stages_nbytes
from mpidml.optim.base import make_chain
from mpidml.runtime.own_links import needs_whole
from mpidml.runtime.profiling import counted
from mpidml.runtime.scoring import BLOCK
from mpidml.schedules.base import Schedule

FLAG = "--memory-per-rank"
FOLDER = "mpidml.schedules"
SEEN_RANKS = 64
"""Ranks among which is one that owns as much as any."""


class Stages:
    """What the ranks of a strategy would hold that is `cut` into stages: `needs` says it of the run, and of what might be in its place.

    `hosts`: of each rank, by a number; `grid`: where ranks would lie, if not as they do; `weights`: the proportion of the parts of widths, equal ones if none.
    """

    def __init__(self, strategy: Any, cut: Sequence[Stage], hosts: Sequence[int], grid: Any = None, weights: Sequence[float] = ()) -> None:
        self.strategy, self.cut, self.net, self.job, self.grid = strategy, tuple(cut), strategy.net, strategy.job, grid or strategy.grid
        self.state = make_chain(strategy.job.optimizer, strategy.job.rate).state_per_byte(strategy.net.dtype)
        even = len(set(weights)) < 2  # then one is the fullest whatever is cut
        self.parts = [NetParts(strategy.net)] if even else [NetParts(strategy.net, weights, rank) for rank in range(len(weights))]
        self.n_pipe: int = self.grid.sizes["pipe"]
        self.apart = strategy.job.transport != "auto"  # then no memory is shared
        self.hops = tuple(self.n_pipe > 1 and (self.apart or any(hosts[a] != hosts[b] for a, b in self._neighbours(p))) for p in range(self.n_pipe))

    def _neighbours(self, p: int) -> Iterator[tuple[int, int]]:
        """Yield the ranks at a place of the pipe, each with those that it sends to."""
        for data, tensor in product(range(self.strategy.n_workers), range(self.strategy.n_parts)):
            yield from self.grid.ways(*({"data": data, "pipe": at % self.n_pipe, "tensor": tensor} for at in (p, p + 1)))

    def needs(self, schedule: Schedule | None = None, n_items: int = 0, recompute: bool = False, n_pipe: int = 0) -> list[float]:
        """Return the bytes of the fullest rank at each place of the pipe: of the run, but for what is given, which is for a schedule with a flush.

        UserError where that cannot be.
        """
        return [max(of) for of in zip(*self.of_parts(schedule, n_items, recompute, n_pipe), strict=True)]

    def of_parts(self, schedule: Schedule | None = None, n_items: int = 0, recompute: bool = False, n_pipe: int = 0) -> list[list[float]]:
        """Return what `needs` does of each part of widths; of equal ones, of the fullest alone."""
        strategy, n_items = self.strategy, n_items or self.strategy.n_items
        made, places = schedule or strategy.schedule, n_pipe or self.n_pipe
        if made is strategy.schedule and n_items == strategy.n_items and places == self.n_pipe and self.grid is strategy.grid:
            run = strategy.programs
        else:
            where = f"--schedule {self.job.schedule}"
            run = check(lowered_by_turns(made, self.grid.replicas, n_items, where) if self.job.replicas else lowered(made, places, n_items, where), where)
        share = -(-min(self.job.batch, len(strategy.data.x)) // strategy.n_workers)
        cut = balanced(counted(self.net, 1), places * made.n_chunks, 0.0).stages if n_pipe else self.cut
        hops, turns = (self.hops, getattr(self.grid, "replicas", ())) if not n_pipe else ((n_pipe > 1 and (self.apart or any(self.hops)),) * n_pipe, ())
        rows, again = -(-share // n_items), recompute or self.job.recompute
        more = rows, BLOCK, n_items, run.activations, hops, self.state, again, run.versions, turns, run.sent
        return [stages_nbytes(self._parts(cut, parts), *more) for parts in self.parts]

    def _most(self, **given: Any) -> float:
        """Return the bytes of the fullest rank, infinity where that cannot be."""
        try:
            return max(self.needs(**given))
        except UserError:
            return math.inf

    def _parts(self, cut: Sequence[Stage], parts: NetParts) -> list[Part]:
        """Return what a rank of each stage has; UserError where layers cannot be cut so."""
        found = []
        for s, (lo, hi, _) in enumerate(cut):
            mixed = bool(self.strategy.cut_layers)
            part = parts.mixed(self.strategy.n_workers, self.job.mix) if mixed else parts.part(lo, hi, self.strategy.n_parts, s == 0, s == len(cut) - 1)
            if isinstance(part, str):
                raise UserError(part)
            found.append(part)
        return found

    def fitting(self, limit: float) -> list[str]:
        """Say what would fit: more microbatches, activations that are computed again, another schedule, more stages."""
        strategy, job = self.strategy, self.job
        schedule, most = strategy.schedule, job.batch // strategy.n_workers
        found = ["--recompute"] * (not job.recompute and not strategy.program().splits and self._most(recompute=True) <= limit)
        if strategy.every:
            return found
        numbers = [n for k in range(1, most.bit_length()) if (n := strategy.n_items << k) <= most]
        numbers += [n for k in range(1, strategy.n_items.bit_length()) if (n := strategy.n_items >> k) >= max(getattr(self.grid, "replicas", (1,)))]
        found += [f"--microbatches {n}" for n in numbers if self._most(n_items=n) <= limit][:1]
        if self.n_pipe > 1:
            others = {name: plugins.make(FOLDER, name) for name in plugins.names(FOLDER)}
            alike = {name: of for name, of in others.items() if of.trains and of.n_chunks == schedule.n_chunks == 1 and not of.update_every(self.n_pipe)}
            once = {name: of for name, of in alike.items() if not (job.recompute and lower(of, self.n_pipe, 1).splits)}
            needed = {name: self._most(schedule=of) for name, of in once.items() if type(of) is not type(schedule)}
            fitting = [name for name, nbytes in needed.items() if nbytes <= limit]
            found += [f"--schedule {max(fitting, key=lambda name: needed[name])}"] if fitting else []  # that which has most under way
        if not job.replicas and not strategy.cut_layers:
            stages = range(self.n_pipe + 1, self.parts[0].n_layers // schedule.n_chunks + 1)
            each = strategy.n_workers * strategy.n_parts
            found += [f"{n * schedule.n_chunks} stages on {n * each} ranks" for n in stages if self._most(n_pipe=n) <= limit][:1]
        return found


def owned(text: str, n_ranks: int, hosts: Sequence[int] = ()) -> float:
    """Return the largest share of a buffer that a rank owns between the halves of the sum that `text` describes; 1 where each rank then has all of it.

    `hosts`: the ranks of each host (none: all on one).
    """
    collective: Collective = plugins.make(COLLECTIVES, text)
    if n_ranks == 1 or type(collective).rounds is Collective.rounds:
        return 1.0 if n_ranks == 1 or type(collective).halves is Collective.halves else collective.largest(hosts or (n_ranks,))
    n = n_ranks << (n_ranks.bit_length() + 6)  # whatever it is cut into
    parts = (collective.rounds(rank, n_ranks, n) for rank in range(min(n_ranks, SEEN_RANKS)))
    return max(part.hi - part.lo for part in parts) / n


def hosts_of(comm: Any) -> list[int]:
    """Return of each rank the first rank of its host (Collective on comm)."""
    return list(comm.allgather(comm.leader))


def check_stages(strategy: Any, cut: Sequence[Stage]) -> None:
    """Refuse stages that are more than a rank may take (Collective on the strategy's comm); UserError names the fullest rank, and what would fit."""
    if not strategy.job.memory_per_rank:
        return
    of, limit = Stages(strategy, cut, hosts_of(strategy.comm), weights=strategy.part_weights), parse_size(strategy.job.memory_per_rank, FLAG)
    most, place, part = max((nbytes, -p, t) for t, needs in enumerate(of.of_parts(), strategy.n_parts - len(of.parts)) for p, nbytes in enumerate(needs))
    if most > limit:
        rank = strategy.grid.rank(pipe=-place, tensor=part, data=strategy.n_workers - 1 if strategy.cut_layers else 0)
        raise UserError(_line(strategy, rank, most, limit, of.fitting(limit)))


def refuse_uncounted(job: Job, ordered: bool) -> None:
    """Refuse a limit of memory beside what it does not count: gradients block by block where sums are `ordered`, and shares of a batch that change."""
    if ordered and job.memory_per_rank:
        raise UserError(f"{FLAG} {job.memory_per_rank}: does not count gradients of each block of a batch (ordered); leave one of them out")
    for flag, limit in (("--memory", job.memory), (FLAG, job.memory_per_rank)):
        if limit and job.shares != Job.shares:
            raise UserError(f"{flag} {limit}: counts equal shares of a batch, and --shares {job.shares} gives a fast rank more; leave one of them out")


def replica_needs(strategy: Any, picked: str, n_parts: int) -> float:
    """Return the bytes of the fullest rank that has the whole network, sums gradients by the collective `picked`, and computes its share in `n_parts`
    (Collective on the strategy's comm).
    """
    job, net, n = strategy.job, strategy.net, strategy.comm.size
    parts = NetParts(net)
    part = parts.part(0, parts.n_layers, 1, True, True)
    assert isinstance(part, Part)
    share_owned = 1.0 if needs_whole(strategy.links) else owned(picked, n, tuple(Counter(hosts_of(strategy.comm)).values()))
    state = make_chain(job.optimizer, job.rate).state_per_byte(net.dtype) * share_owned
    share = -(-min(job.batch, len(strategy.data.x)) // n)
    return replica_nbytes(part, -(-share // n_parts), n_parts, state)


def check_replica(strategy: Any, picked: str, n_owned: int) -> None:
    """Refuse a whole network that is more than a rank may take, UserError as `check_stages`. Its gradients are summed by the collective `picked`, between
    whose halves this rank owns `n_owned` values.
    """
    job = strategy.job
    if not job.memory_per_rank:
        return
    limit, most = parse_size(job.memory_per_rank, FLAG), job.batch // strategy.comm.size
    of_each = strategy.comm.allgather(n_owned)
    if (needs := replica_needs(strategy, picked, job.accumulate)) > limit:
        numbers = [n for k in range(1, most.bit_length()) if (n := job.accumulate << k) <= most]
        fitting = [f"--accumulate {n}" for n in numbers if replica_needs(strategy, picked, n) <= limit][:1]
        raise UserError(_line(strategy, of_each.index(max(of_each)), needs, limit, fitting))


def _line(strategy: Any, rank: int, nbytes: float, limit: int, fitting: Sequence[str]) -> str:
    """Say which rank needs how much, and what would fit."""
    words = [size_words(limit), size_words(math.ceil(nbytes))]
    has, needs = words if words[0] != words[1] else (str(limit), str(math.ceil(nbytes)))
    named = strategy.placement.names()[rank][0]
    would = f"give as much, or what would fit: {' or '.join(fitting)}" if fitting else "give as much, or more ranks, a smaller batch, or an optimizer with less state"
    return f"{FLAG} {has}: rank {rank} ({named}), the fullest, needs {needs}; {would}"
