"""The program of a worker that is a group whose gradients lie on devices: what the worker makes of their sum is made on the leader's.

    leader     w, read by codes or brought up -> pass -> gradient                 sum -> links or optimizer of the worker -> code, or gradient
                         | down, if it was read by codes    | down                 ^ up                                        | down, to be pushed
    host                 w, for the members                 gradients of all -> sum
                         | up                               ^ down
    members              w -> pass ->                   gradient

Where MPI takes device pointers gradients do not go through the host.
"""

from __future__ import annotations

from typing import Any

from mpidml.core.role import Array
from mpidml.runtime.group_training import GroupTraining
from mpidml.runtime.training_there import TrainingThere


class GroupThere(GroupTraining, TrainingThere):
    """A group's program, on its leader and on each member; links or optimizer, and copies that are read by codes, are the leader's alone.

    Cost of a step beside the passes' own: the parameters up on each rank, on the leader of a run by codes down instead; what the sum takes
    (`summed_there`), whose result goes up to the leader alone; and what the leader pushes down.
    """

    def _flats_there(self, kernels: Any) -> list[Any]:
        return super()._flats_there(kernels) if self.group.leads else self.flats

    def _total(self) -> Any:
        return self.there.gradient

    def _hand(self) -> None:
        if self.strategy.codes is not None and self.group.comm.size > 1:
            read: Any = self.flats[self.slot]
            read.get(out=self.handed[self.slot])

    def _leave(self, g: Array) -> None:
        """Leave the sum where the worker makes something of it."""
