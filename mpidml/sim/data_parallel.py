"""Time data-parallel training on virtual clocks: every clock ends for all when the last rank has computed and its gradient has gone through the rounds.

worker 0     compute ------>|.........|             |apply|
worker 1     compute ---------------->|round|round..|apply|         rounds are those that the collective carries out on MPI

A late rank's part has to go through all rounds still, since in each of them somebody waits for what it has not sent; parts that were early hide none of
that. So a clock takes the slowest compute, plus the rounds of the rank that has the most to do, plus the update of one owner's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mpidml.collectives.base import FOLDER, Collective
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import STAGED
from mpidml.core.rounds import Sizes, priced
from mpidml.ps.waits import Waited
from mpidml.sim.parameter_server import Plan, Simulated
from mpidml.sim.thinned import MOST_ROWS, joined

CHOSEN = ("ring", "rabenseifner", "recursive_doubling")
"""What `auto` stands for: the cheapest of these."""
SEEN_RANKS = 64
"""Ranks whose rounds are looked at; among so many, at both ends, is the one that has the most to do."""


def check(strategy: str, name: str, learns: bool) -> None:
    """Refuse what is not known here: another strategy, a collective without rounds, arithmetic."""
    if strategy in STAGED:
        raise UserError(
            f"--strategy {strategy}: is not known here; replay its schedule by python -m mpidml schedule, let python -m mpidml plan price it, "
            "or simulate parameter_server or data_parallel"
        )
    if strategy != "data_parallel":
        raise UserError(f"--strategy {strategy}: is not known on virtual clocks; simulate parameter_server or data_parallel")
    if learns:
        raise UserError("--learn: has no part in a simulation of --strategy data_parallel, whose results are those of one process; leave it out")
    for each in CHOSEN if name == "auto" else (name,):
        if plugins.load(FOLDER, each.partition(":")[0]).rounds is Collective.rounds:
            raise UserError(f"--collective {name}: what it costs is not written down as rounds; simulate auto, {', '.join(CHOSEN)} or tree")


class Sum(NamedTuple):
    """What one sum takes: the `seconds` of the rank that has the most to do, the largest part that one owns, and of a rank in the mean messages and bytes."""

    seconds: float
    owned: int
    n_messages: float
    nbytes: float


def sizes_of(name: str, n_workers: int, n: int) -> Iterator[Sizes]:
    """Yield what the rounds of a collective for n elements move, one rank after the other: of all, or of those at both ends of many."""
    collective: Collective = plugins.make(FOLDER, name)
    ranks = range(n_workers) if n_workers <= SEEN_RANKS else [*range(SEEN_RANKS // 2), *range(n_workers - SEEN_RANKS // 2, n_workers)]
    return (collective.sizes(rank, n_workers, n) for rank in ranks)


def sum_of(plan: Plan, name: str) -> tuple[Sum, str]:
    """Return what one sum of `plan.nbytes` takes, and the collective, the cheapest for `auto`."""
    costs = {each: _sum(plan, each) for each in (CHOSEN if name == "auto" else (name,))}
    best = min(costs, key=lambda each: costs[each].seconds)
    return costs[best], best


def _sum(plan: Plan, name: str) -> Sum:
    rate = plan.cost.bytes_per_second or float("inf")
    ranks = [
        (priced(of, 1, plan.cost.latency, rate) + plan.cost.message * of.n_messages, of.owned, of.n_messages, int(of.sent.sum()))  # of all their rounds no more is kept
        for of in sizes_of(name, plan.n_workers, plan.nbytes)
    ]
    seconds, owned, n_messages, nbytes = zip(*ranks, strict=True)
    return Sum(max(seconds), max(owned), sum(n_messages) / len(ranks), sum(nbytes) / len(ranks))


def simulate(plan: Plan, collective: str) -> Simulated:
    """Run `plan` to its end; costs O(workers) a clock."""
    n, cost = plan.n_workers, plan.cost
    each, _ = sum_of(plan, collective)
    owned = each.owned / max(plan.nbytes, 1)
    after = each.seconds + cost.apply * owned
    drawn = cost.seconds(plan.seed, n).of
    found = Simulated(done_by=[0] * n, staleness={0: 0})
    busy, longest_of = np.zeros(n), dict[int, float]()
    now, clock = 0.0, 0
    every = 1 if plan.seconds else max(1, -(-plan.n_clocks // MOST_ROWS))
    while clock < plan.n_clocks and not (plan.seconds and now >= plan.seconds):
        computes = np.array([drawn(w, clock) for w in range(n)])
        if plan.slowdown is not None:
            computes *= 1 + np.array([plan.slowdown.extra(w, clock) for w in range(n)])
        slowest = int(computes.argmax())
        waits, longest = float(computes[slowest] * n - computes.sum()), float(computes[slowest] - computes.min())
        if longest > 0:
            end = now + float(computes[slowest])
            waited = found.waited.setdefault(slowest + 1, Waited())
            waited.add(clock, end - waits / (n - 1), end)  # the mean of those of all others
            if longest > longest_of.get(slowest, 0.0):
                longest_of[slowest], waited.longest_clock = longest, clock
        busy += computes
        now += float(computes[slowest]) + after
        clock += 1
        if not clock % every and len(found.rows) == MOST_ROWS:
            found.rows, every = joined(found.rows), 2 * every
        if not clock % every:
            found.rows.append((now, clock * n, 0.0))
    if not found.rows or found.rows[-1][1] != clock * n:
        found.rows.append((now, clock * n, 0.0))
    found.seconds, found.n_done, found.done_by, found.staleness = now, clock * n, [clock] * n, {0: clock * n}
    found.busy_seconds = (busy + clock * cost.apply * owned).tolist()
    found.left_seconds = [now] * n
    found.n_messages = round(each.n_messages * n) * clock
    found.nbytes = round(each.nbytes * n) * clock if cost.bytes_per_second else 0
    for role, waited in found.waited.items():
        waited.times, waited.seconds, waited.longest_seconds = waited.times * (n - 1), waited.seconds * (n - 1), longest_of[role - 1]
    return found
