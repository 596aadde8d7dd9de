"""Say what servers and workers do as state machines without I/O: a message comes in, effects go out.

                 start(now) ->                        Send(target, message)
    message ->   handle(now, source, message) ->      Compute(function, turn, clock)        at most one at a time
    result  ->   done(now, result) ->                 Record(name, value)
    part    ->   part(now, lo, hi) ->                 After(seconds)
    time    ->   timer(now) ->                        Stop()

Two interpreters perform the effects: `runtime.driver` on MPI, `sim.virtual` on virtual clocks. The same objects run on both,
so what is tested and simulated on one core is what runs on the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
new = tuple.__new__
"""`new(Send, (target, message))` makes a named tuple in less than half the time of a call: for what is made once a message."""

PULL, PUSH, ROWS, CLOCK, LAST, END, NEXT, GRANT, LOAD = range(9)
KINDS = ("pull", "push", "rows", "clock", "last", "end", "next", "grant", "load")


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
    PUSH   it belongs to      see below            sequence number    clock that the delta read   the delta
    CLOCK  it ends            see below            sequence number    -                           -
    LAST   -                  -                    sequence number    -                           -
    END    -                  -                    sequence number    -                           -
           (back: all that this shard had to send has been sent)

    A worker that sends LAST writes no more, so nobody waits for it; one that sends END reads no more. A ROWS names in `clock` the
    worker's role whose end of a clock made a waiting question answerable, -1 if it had not to wait. A PUSH with `ends`, or a CLOCK,
    ends its clock c; with a ticket it is a question, too: for all rows as of clock c + 1 or c + 2 (`SyncPolicy.asks_ahead`).
    Its `batch` is the number of the global batch that it is a share of, by which a learning rate goes on. Where `data` are codes (`ps.coded`),
    the `batch` of a ROWS is the number of its code since the values that the reader keeps were sent (0: these are they); -1: values that are not kept.
    PUSH, CLOCK, LAST and END of one worker to one shard are numbered 1, 2, 3, ... so that a message that overtakes another is put
    back in its place; a ROWS says how many of the reader's own it contains. What is meant: all rows of the shard (`rows` None
    and lo < 0), rows [lo, hi) of the table, or the rows whose global numbers `rows` lists (int64).

    Between a worker and the coordinator:
    NEXT   asks for a clock to compute: the clock it has ended, or -1 at first; lo: its load (share of CPU that others take, in millionths)
    LOAD   lo: its load has changed
    GRANT  clock: of the tables; lo: the block of samples, or -1: there is no more, -2: stop here, the run goes on later; hi: the weight of its gradient in units of 1e-9;
           version: the staleness of its read (-1: as the tables say); counted: sequence number; ends: whether the last gradient
           counts; ticket: the worker's role that made the grant possible, or -1
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
    ends: bool = False
    batch: int = -1


class Send(NamedTuple):
    """Hand `message` to the role numbered `target`, on whatever rank it lives."""

    target: int
    message: Message


class Compute(NamedTuple):
    """Call `function(turn, report)`; its return value comes back through `done`. `clock` names the step for cost models, -1 what follows the last."""

    function: Callable[..., Any]
    turn: Any
    clock: int


class After(NamedTuple):
    """Call `timer` once `seconds` have passed, also while the role computes, where the interpreter gets to it."""

    seconds: float


class Record(NamedTuple):
    """Note a measurement; the interpreter adds rank and time."""

    name: str
    value: tuple[float, ...]


class Stop(NamedTuple):
    """This role has ended and expects no further message."""


Effect = Send | Compute | After | Record | Stop
Effects = Iterable[Effect]
NOTHING: tuple[Effect, ...] = ()


class Waiting(NamedTuple):
    """One blocked question: since when, and a text that says who waits for whom, for what; `of`: the roles that are waited for, where they are known."""

    since: float
    text: str
    of: tuple[int, ...] = ()


def told(waits: Iterable[Waiting], here: Collection[int]) -> Waiting:
    """Return the wait that says most: the oldest that is not for roles `here` alone, since these wait for something themselves; else the oldest."""
    return min(waits, key=lambda wait: (bool(wait.of) and set(wait.of) <= set(here), wait.since))


class Passive:
    """The part of a role that answers messages alone: it never computes apart, sets no timer, and takes payloads in pooled buffers."""

    def done(self, now: float, result: Any) -> Effects:
        """Do nothing."""
        return NOTHING

    def part(self, now: float, lo: int, hi: int) -> Effects:
        """Do nothing."""
        return NOTHING

    def timer(self, now: float) -> Effects:
        """Do nothing."""
        return NOTHING

    def landing(self, source: int, message: Message) -> Array | None:
        """Name no place."""
        return None


class Role(Protocol):
    """A state machine with a handful of states; `now` is in seconds of the interpreter's clock. Messages may come during a compute."""

    def start(self, now: float) -> Effects: ...

    def handle(self, now: float, source: int, message: Message) -> Effects: ...

    def done(self, now: float, result: Any) -> Effects: ...

    def part(self, now: float, lo: int, hi: int) -> Effects:
        """Learn that elements [lo, hi) of the running compute's result are final."""

    def timer(self, now: float) -> Effects:
        """Learn that the seconds of an After have passed."""

    def landing(self, source: int, message: Message) -> Array | None:
        """Name the array into which the payload of `message` shall be received, or None for a pooled buffer."""

    def waiting(self, now: float) -> list[Waiting]:
        """List what this role waits for, oldest first."""

    def state(self) -> dict[str, Array]:
        """Return everything that must survive a restart as named arrays."""
