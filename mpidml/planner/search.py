"""Find the best of many candidates: those are timed first that can be fastest, and the search ends where none that is left can be among the best.

    memory      counted for all; where what is kept does not fit, the same with activations computed again is looked at, or a share in parts
    at least    seconds that no replay falls below, in whose order candidates are replayed
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mpidml.core.errors import UserError
from mpidml.core.sizes import size_words
from mpidml.planner.candidate import Candidate, numbers
from mpidml.planner.price import Priced, Pricer, course


class Found(NamedTuple):
    """`best`: the best ones, the first of all first; `others`: the rest of what was timed; `slower`: (candidate, seconds that it takes at
    least) of what need not be; `left_out`: (candidate, why)."""

    best: list[Priced]
    others: list[Priced]
    slower: list[tuple[Candidate, float]]
    left_out: list[tuple[Candidate, str]]

    @property
    def n(self) -> int:
        """Count the candidates that could be run."""
        return len(self.best) + len(self.others) + len(self.slower)


def search(
    pricer: Pricer,
    listed: Iterable[Candidate],
    limit: float = math.inf,
    n_best: int = 5,
    refused: Callable[[Candidate], str] = lambda of: "",
    recompute: bool = False,
) -> Found:
    """Return the `n_best` fastest of those that fit into `limit` bytes a rank; of equally fast ones that with the fewest stages, parts, microbatches.

    `refused(candidate)` says why it cannot be run, "" where it can; `recompute`: nothing but what computes activations again, where there are stages.
    UserError where nothing is left.
    """
    left_out: list[tuple[Candidate, str]] = []
    waiting: list[tuple[float, tuple[object, ...], Candidate]] = []
    fullest: list[tuple[float, Candidate]] = []
    for of in listed:
        if why := pricer.why_not(of) or refused(of):
            left_out.append((of, why))
            continue
        if recompute and not of.is_plain and not can_recompute(of):
            left_out.append((of, "comes back to activations twice, which would have to be computed as often"))
            continue
        for form in forms(of, pricer.task.batch)[recompute and not of.is_plain :]:
            if (nbytes := pricer.memory_nbytes(form) if limit < math.inf else 0.0) <= limit:
                heapq.heappush(waiting, (pricer.least_seconds(form), order(form), form))
                break
            fullest.append((nbytes, form))
            left_out.append((form, f"needs {size_words(math.ceil(nbytes))} on its fullest rank"))
    timed: list[Priced] = []
    best: list[tuple[float, tuple[object, ...]]] = []
    while waiting and (len(best) < n_best or waiting[0][0] <= best[n_best - 1][0]):
        form = heapq.heappop(waiting)[2]
        timed.append(pricer.price(form))
        best = sorted([*best, (timed[-1].seconds, order(form))])[:n_best]
    if not timed:
        raise UserError(_nothing(left_out, fullest, limit))
    timed.sort(key=lambda each: (each.seconds, order(each.candidate)))
    return Found(timed[:n_best], timed[n_best:], [(form, least) for least, _, form in sorted(waiting)], left_out)


def order(of: Candidate) -> tuple[object, ...]:
    """Return by what equally fast candidates are told apart: the simpler one first."""
    return of.n_ranks, of.pipe, of.tensor, of.mix, of.microbatches, of.recompute, of.schedule


def forms(of: Candidate, batch: int) -> list[Candidate]:
    """Return a candidate, and what is slower and takes less memory, in whose order they are looked at."""
    if of.is_plain:
        return [of] + [of._replace(microbatches=n) for n in numbers(batch // of.data) if of.microbatches == 1 < n]
    return [of, of._replace(recompute=True)] if can_recompute(of) else [of]


def can_recompute(of: Candidate) -> bool:
    """Tell whether activations can be computed again: there are stages or parts, and a backward comes back to them once."""
    return not of.is_plain and not course(of.schedule, of.pipe, 1).splits


def _nothing(left_out: list[tuple[Candidate, str]], fullest: list[tuple[float, Candidate]], limit: float) -> str:
    """Say why nothing can be run, and what would help."""
    if not fullest:
        why = left_out[0][1].rstrip(".") if left_out else "there is no candidate"
        advice = "" if ";" in why else "; give other ranks, a larger batch, or leave out what restricts them"
        return f"plan: none of {len(left_out)} candidates can be run: {why}{advice}"
    nbytes, of = min(fullest, key=lambda each: (each[0], order(each[1])))
    how = of.grid + f", --mix {of.mix}" * bool(of.mix) + f", {of.microbatches} microbatch(es)" + f", {of.schedule}" * bool(of.schedule) + ", --recompute" * of.recompute
    words = [size_words(int(limit)), size_words(math.ceil(nbytes))]
    has, needs = words if words[0] != words[1] else (str(int(limit)), str(math.ceil(nbytes)))
    return (
        f"--memory-per-rank {has}: nothing fits, the least that is needed is {needs} ({how}); "
        "give as much, or more ranks, a smaller batch, or an optimizer with less state"
    )
