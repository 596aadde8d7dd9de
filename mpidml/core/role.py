"""Say what servers and workers do as state machines without I/O: a message comes in, effects go out.

                 start(now) ->                        Send(target, message)
    message ->   handle(now, source, message) ->      Compute(function, arguments, clock)   at most one at a time
    result  ->   done(now, result) ->                 Record(name, value)
    part    ->   part(now, lo, hi) ->                 Stop()

Two interpreters perform the effects: `runtime.driver` on MPI, `sim.virtual` on virtual clocks. The same objects run on both,
so what is tested and simulated on one core is what runs on the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

PULL, PUSH, ROWS, CLOCK, END = range(5)
KINDS = ("pull", "push", "rows", "clock", "end")


class Lease:
    """A readable array and how to give it back; whoever reads it ends the lease exactly once.

    `buffer` is the pool's buffer that the array lies in, at `offset` bytes; None for memory that no pool of this process reuses.
    """

    __slots__ = ("array", "buffer", "end", "offset")

    def __init__(self, array: Array, end: Callable[[], None] | None = None, buffer: Any = None, offset: int = 0) -> None:
        self.array, self.end, self.buffer, self.offset = array, end, buffer, offset

    def part(self, lo: int, hi: int) -> Lease:
        """Return a lease of elements [lo, hi); sender and readers count it by itself."""
        return Lease(self.array[lo:hi], self.end, self.buffer, self.offset + lo * self.array.itemsize)

    def lend(self) -> Lease:
        """Count one more reader in this process and return what it is handed."""
        if self.buffer is not None:
            self.buffer.n_lent += 1
            self.buffer.held = False
        return self

    def release(self) -> None:
        """Give the array back; the reader must not look at it afterwards."""
        if self.end is not None:
            self.end()
        elif self.buffer is not None:
            self.buffer.n_back += 1


class Message(NamedTuple):
    """What travels between roles. Which field means what:

    kind   clock              ticket               counted            version                     data
    PULL   reader's clock     names the question   -                  oldest that will do         -
    ROWS   see below          of the pull, or -1   reader's last      clock that it shows         values, or None: read in place
    PUSH   it ends, or -1     see below            sequence number    clock that the delta read   the delta
    CLOCK  it ends            see below            sequence number    -                           -
    END    clocks completed   -                    sequence number    -                           -
           (back: all that this shard had to send has been sent)

    A ROWS names in `clock` the worker's role whose end of a clock made a waiting question answerable, -1 if it had not to wait.
    A PUSH or CLOCK that ends clock c with a ticket is a question, too: for all rows as of clock c + 1.
    PUSH, CLOCK and END of one worker to one shard are numbered 1, 2, 3, ... so that a message that overtakes another is put
    back in its place; a ROWS says how many of the reader's own it contains. What is meant: all rows of the shard (`rows` None
    and lo < 0), rows [lo, hi) of the table, or the rows whose global numbers `rows` lists (int64).
    """

    kind: int
    clock: int = -1
    ticket: int = -1
    counted: int = 0
    version: int = 0
    lo: int = -1
    hi: int = -1
    rows: Array | None = None
    data: Lease | None = None


class Send(NamedTuple):
    """Hand `message` to the role numbered `target`, on whatever rank it lives."""

    target: int
    message: Message


class Compute(NamedTuple):
    """Call `function(*arguments)`; its return value comes back through `done`. `clock` names the step for cost models."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    clock: int


class Record(NamedTuple):
    """Note a measurement; the interpreter adds rank and time."""

    name: str
    value: tuple[float, ...]


class Stop(NamedTuple):
    """This role has ended and expects no further message."""


Effect = Send | Compute | Record | Stop
Effects = Iterable[Effect]
NOTHING: tuple[Effect, ...] = ()


class Waiting(NamedTuple):
    """One blocked question: since when, and a text that says who waits for whom, for what."""

    since: float
    text: str


class Role(Protocol):
    """A state machine with a handful of states; `now` is in seconds of the interpreter's clock. Messages may come during a compute."""

    def start(self, now: float) -> Effects: ...

    def handle(self, now: float, source: int, message: Message) -> Effects: ...

    def done(self, now: float, result: Any) -> Effects: ...

    def part(self, now: float, lo: int, hi: int) -> Effects:
        """Learn that elements [lo, hi) of the running compute's result are final."""

    def landing(self, source: int, message: Message) -> Array | None:
        """Name the array into which the payload of `message` shall be received, or None for a pooled buffer."""

    def waiting(self, now: float) -> list[Waiting]:
        """List what this role waits for, oldest first."""

    def state(self) -> dict[str, Array]:
        """Return everything that must survive a restart as named arrays."""
