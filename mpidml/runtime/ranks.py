"""Give a call that may be made by itself its ranks: those that it is given, or all of them, with threads and failures looked after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mpidml.runtime import abort, device_fault
from mpidml.runtime.comm import CountedComm, world
from mpidml.runtime.threads import limit_threads


@contextmanager
def given_or_all(comm: CountedComm | None) -> Iterator[CountedComm]:
    """Yield `comm`, or all ranks where it is None, which are freed at the end unless one of several had an error (Collective on comm).

    Without `comm`, on several ranks, an uncaught exception or a signal on one rank ends them all from now on.
    """
    if comm is None and world().size > 1:
        abort.install(world())
    ranks = CountedComm() if comm is None else comm
    if ranks.size > 1:
        limit_threads()
    try:
        with device_fault.told():
            yield ranks
    except BaseException:
        if comm is None and ranks.size == 1:  # a program that goes on may fail many times; several ranks may not have failed together
            ranks.free()
        raise
    if comm is None:
        ranks.free()
