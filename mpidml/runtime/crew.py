"""Let all ranks of a host work on what its first rank decides: the others wait for a function and their part of the items.

    rank 0 of the host   lead(function):  ... share(f, items) ......... share(g, others) ... done
    the others           serve():         f(own part) -> gathered ...   g(own part) ...      return
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mpidml.core.errors import UserError
from mpidml.runtime.comm import CountedComm, meet
from mpidml.runtime.scratch import Scratch

T = TypeVar("T")


class Crew:
    """The ranks of this host and their scratch file; see `data.streamed` for what is shared out."""

    def __init__(self, comm: CountedComm, scratch: Scratch | None) -> None:
        """No scratch file: only rows that lie on the disk already can be left there."""
        self.host, self.scratch = comm.host, scratch

    def run(self, function: Callable[[], T]) -> T | None:
        """Return `function()` on the first rank of the host, None on the others, which do their parts meanwhile (Collective on the host's ranks)."""
        if self.host.rank:
            while (order := self._told(None)) is not None:
                self._part(*order)
            return None
        try:
            return function()
        finally:
            self._told(None)

    def _told(self, order: Any) -> Any:
        """Return on every rank what the first one orders; reading may take it long, and the others leave their cores to it meanwhile."""
        meet(self.host)
        return self.host.bcast(order, 0)

    def share(self, function: Any, items: Sequence[Any], *arguments: Any) -> list[Any]:
        """Return what each rank's call function(scratch, its part of the items, *arguments) returned; UserError is that of the lowest rank."""
        items = list(items)
        found = self._part(*self._told((function, items, arguments)))
        assert found is not None
        if errors := [error for _, error in found if error is not None]:
            raise UserError(errors[0])
        return [value for value, _ in found]

    def _part(self, function: Any, items: list[Any], arguments: tuple[Any, ...]) -> Any:
        lo, hi = (len(items) * r // self.host.size for r in (self.host.rank, self.host.rank + 1))
        value, error = None, None
        try:
            value = function(self.scratch, items[lo:hi], *(_here(argument, self.scratch) for argument in arguments))
        except UserError as found:
            error = str(found)
        meet(self.host)
        return self.host.gather((value, error), 0)


def _here(argument: Any, scratch: Scratch | None) -> Any:
    """Let rows in the scratch file be read by this rank's own opening of it."""
    if hasattr(argument, "segments"):
        argument.scratch = scratch
    return argument
