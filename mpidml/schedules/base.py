"""Say what a pipeline schedule is: for one rank, the order of its computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpidml.core import plugins
from mpidml.core.action import Action
from mpidml.core.errors import UserError


class Schedule:
    """The order of a rank's computes. A plug-in file holds one, that works without arguments.

    `n_chunks`: stages that a rank has; stage s lives on rank s % n_ranks. `trains`: whether there are backward passes.
    All ranks wait for each other where an order holds an X.
    `update_every(n_ranks)`: after how many microbatches the weights change; 0: once a batch, when all its microbatches are done (a flush), so that every
    microbatch reads the same weights.
    """

    n_chunks: int = 1
    trains: ClassVar[bool] = True

    def update_every(self, n_ranks: int) -> int:
        """Return after how many microbatches the weights change, 0 for once a batch."""
        return 0

    def reads(self, item: int, n_ranks: int) -> int:
        """Return which version of the weights a microbatch reads on every stage, -1 for the newest that a stage has; asked where there is no flush."""
        return -1

    def order(self, rank: int, n_ranks: int, n_microbatches: int) -> Iterator[Action]:
        """Yield a rank's computes, and its waits for all. Backwards of a stage come in the order of microbatches, so that every schedule sums gradients alike.

        Without a flush it is asked for each number of microbatches that a run has between two drains, and every order is proven before the run begins.
        """
        raise NotImplementedError

    def bubble(self, n_ranks: int, n_microbatches: int) -> float | None:
        """Return the share of idle time by the formula of its source, for equal stages whose backward takes twice their forward; None where there is none."""
        return None


def make(name: str, where: str = "") -> Schedule:
    """Return the schedule `name`, as one_f_one_b or ./mine.py; UserError, which begins with `where`, for what is none."""
    found = plugins.make("mpidml.schedules", name)
    if not isinstance(found, Schedule) or type(found).order is Schedule.order or type(found.n_chunks) is not int or found.n_chunks < 1:
        raise UserError(f"{where}{name}: holds no schedule with an order and n_chunks of 1 or more; derive its class from mpidml.schedules.base.Schedule")
    return found


def pairs(stage: int, n_warm_up: int, n_microbatches: int) -> Iterator[Action]:
    """Yield `n_warm_up` forwards, then a forward and a backward in turn, then the backwards that are left: one forward, one backward."""
    for item in range(n_microbatches + n_warm_up):
        if item < n_microbatches:
            yield Action(stage, "F", item)
        if item >= n_warm_up:
            yield Action(stage, "B", item - n_warm_up)
