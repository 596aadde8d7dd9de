"""Choose a cut and on how many ranks each stage is (--replicas auto) for so many microbatches a batch, so that what fills and drains a pipeline counts, too.

    all layouts, or where they are many PipeDream's fastest with at most 1, 2, 3, ... ranks a stage  ->  a batch of each on virtual clocks  ->  the fastest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from math import comb
from typing import Any

from mpidml.core.action import Action
from mpidml.core.balance import Plan, Profile, Stage, by_memory, planned, priced
from mpidml.core.checking import check, lowered_by_turns
from mpidml.core.errors import UserError
from mpidml.core.replay import Seconds

ALL = 200
"""Layouts of which each is timed; of more a few are."""
FEW = 8


def chosen(
    profiles: Sequence[Profile], n_ranks: int, n_items: int, schedule: Any, bytes_per_second: float, nbytes: Callable[[Plan], float] = lambda plan: 0.0, limit: float = 0.0,
    where: str = "--schedule",
) -> Plan:  # fmt: skip
    """Return the layout that takes a batch of `n_items` microbatches soonest through a `schedule`, on all ranks; of equals that of the fewest stages.

    With a `limit` the fastest of those whose fullest rank takes no more by `nbytes`, or where there is none that which takes least. UserError where so few
    microbatches leave a rank without any, or, which begins with `where`, the schedule cannot be for a layout.
    """
    if len(profiles) * n_items < n_ranks:
        needed, which = -(-n_ranks // len(profiles)), f"{len(profiles)} layer(s) on at most {n_items} rank(s) each, as there are microbatches"
        raise UserError(f"--replicas auto: {which}, do not take {n_ranks} ranks; give --microbatches {needed} or more, or fewer ranks")
    listed = [*layouts(profiles, n_ranks, n_items, bytes_per_second)]
    if limit:
        listed += [priced(profiles, plan.stages, bytes_per_second) for plan in layouts(by_memory(profiles), n_ranks, n_items, bytes_per_second)]
    found = [(seconds(plan, profiles, n_items, schedule, bytes_per_second, where), len(plan.stages), plan) for plan in listed]
    if limit:
        needs = {plan: nbytes(plan) for *_, plan in found}
        found = [each for each in found if needs[each[2]] <= limit] or [min(found, key=lambda each: needs[each[2]])]
    return min(found, key=lambda each: each[:2])[2]


def layouts(profiles: Sequence[Profile], n_ranks: int, n_items: int, bytes_per_second: float) -> Iterator[Plan]:
    """Yield the layouts that are timed: no stage has more ranks than there are microbatches."""
    n_layers, most = len(profiles), min(n_ranks, n_items)
    if comb(n_layers + n_ranks - 2, n_ranks - 1) <= ALL:
        for n in range(1, min(n_layers, n_ranks) + 1):
            for ranks in combinations(range(1, n_ranks), n - 1):
                replicas = [b - a for a, b in pairwise((0, *ranks, n_ranks))]
                for cut in combinations(range(1, n_layers), n - 1) if max(replicas) <= most else ():
                    stages = [Stage(lo, hi, r) for (lo, hi), r in zip(pairwise((0, *cut, n_layers)), replicas, strict=True)]
                    yield priced(profiles, stages, bytes_per_second)
        return
    for r in sorted({*range(1, FEW + 1), *(1 << k for k in range(most.bit_length())), most}):
        if r <= most and r * n_layers >= n_ranks:
            yield planned(profiles, n_ranks, bytes_per_second, every=n_items, most=r)


def seconds(plan: Plan, profiles: Sequence[Profile], n_items: int, schedule: Any, bytes_per_second: float, where: str = "--schedule") -> float:
    """Return what a batch of a layout takes, whose gradients are summed once; messages and sums cost what `balance.planned` says. UserError as `chosen`."""
    rate = bytes_per_second or float("inf")
    both = [[sum(profile[way] for profile in profiles[lo:hi]) for way in (0, 1)] for lo, hi, _ in plan.stages]
    sums = [4 * (r - 1) / r * sum(profile.parameter_nbytes for profile in profiles[lo:hi]) / rate for lo, hi, r in plan.stages]
    ways = [profiles[hi - 1].activation_nbytes / rate for _, hi, _ in plan.stages]

    def take(action: Action) -> float:
        forward, backward = both[action.stage]
        return {"F": forward, "B": backward, "I": backward / 2, "W": backward / 2, "G": sums[action.stage]}.get(action.op, 0.0)

    program = lowered_by_turns(schedule, [stage.replicas for stage in plan.stages], n_items, where)
    return check(program, where, Seconds(take, lambda stage, forward: ways[stage if forward else stage - 1])).seconds
