"""Have ranks compare which sum each is about to start, where a communicator checks such things.

    rank 0  starts sum 3    rank 1  starts sum 4    ->    one line that names both, where they would wait for each other
"""

from __future__ import annotations

from typing import Any

from mpidml.core.flat import Array


def compare_starts(collective: Any, comm: Any) -> None:
    """Have ranks compare which sum each is about to start: those that start different ones would wait for each other, or add what does not belong together."""
    plan, halves, n_planned = collective.plan, collective.halves, 0

    def compared(total: Any, what: str) -> Any:
        if "start" in vars(total):  # of an algorithm that this one has left it to, which compares
            return total
        start = total.start

        def begin() -> None:
            comm.compare(what)
            start()

        total.start = begin
        return total

    def planned(buffer: Array) -> Any:
        nonlocal n_planned
        n_planned += 1
        return compared(plan(buffer), f"the sum that was planned as number {n_planned}, of {buffer.size} x {buffer.dtype.name}")

    def halved(gradient: Array, weights: Array) -> Any:
        nonlocal n_planned
        n_planned += 1
        found, what = halves(gradient, weights), f"half of the sum that was planned as number {n_planned}, of {gradient.size} x {gradient.dtype.name}"
        return found._replace(reduce=compared(found.reduce, f"the first {what}"), gather=compared(found.gather, f"the second {what}"))

    collective.plan, collective.halves = planned, halved
