"""Define what a consistency model answers. The server asks; the policy compares clocks and holds no state of its own.

A pull at clock c is served once `view.reached >= oldest_readable(c, worker, view)`; it then contains all updates of clocks
< oldest_readable(c) and perhaps newer ones. So of two counts the *read* is the bounded one: a worker may be one clock
further ahead for the instant between ending a clock and its next read (Ho et al., NIPS 2013).

Shards of a table decide apart, so a rule that is not a comparison with the slowest worker could let one shard wait for what another
holds back. Such a rule stands at one place for all of them, the coordinator's `Gate`:

    worker  --NEXT(clock ended)-->  coordinator: gate.ready(...), gate.starts()  --GRANT(clock, weight)-->  worker
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol

from mpidml.core import plugins
from mpidml.core.clocks import Clocks, TimedClocks
from mpidml.core.errors import UserError


class Tuning(NamedTuple):
    """How an update is softened for its staleness: the learning rate times `rate`; momentum beta becomes 1 - (1 - beta) * memory."""

    rate: float = 1.0
    memory: float = 1.0


class Start(NamedTuple):
    """Let `worker` compute its `turn`-th share as part of `clock` of the tables.

    `staleness` of its read, -1 where the tables say it; `weight` of its gradient; `counts`: whether its last gradient does; `freed_by`:
    the worker that it had to wait for, or -1.
    """

    worker: int
    clock: int
    turn: int
    staleness: int = -1
    weight: float = 1.0
    counts: bool = True
    freed_by: int = -1


class Gate(Protocol):
    """Decide who computes what next; workers are 0 ... n - 1, loads are the shares of CPU (0 to 1) that other processes take from them."""

    notes: list[tuple[float, ...]]
    """What the coordinator shall record: (worker, executions allowed, load); emptied by it."""

    def ready(self, now: float, worker: int, clock: int, load: float) -> None:
        """Learn that `worker` has ended `clock` (-1: nothing yet) and asks for another."""

    def loaded(self, now: float, worker: int, load: float) -> None:
        """Learn a worker's load between two clocks."""

    def leave(self, worker: int) -> None:
        """Learn that `worker` asks no more."""

    def starts(self, now: float) -> Iterable[Start]:
        """Name those that ask and may start now, each once."""

    def waiting(self) -> str:
        """Say who is waited for."""

    def learnt(self) -> dict[str, list[float]]:
        """Return what it has learnt of the workers, a number of each by name."""

    def know(self, learnt: Mapping[str, list[float]]) -> None:
        """Begin with what the gate before a pause has learnt, as far as it is there."""


class SyncPolicy:
    """One consistency model. `commit` says when a delta counts: on "arrival" or when its "clock" closes."""

    commit: ClassVar[Literal["arrival", "clock"]] = "arrival"
    repeatable: ClassVar[bool] = False
    bound: int | None = None
    """The largest staleness of a read (in clocks); None without a bound."""
    timed: ClassVar[bool] = False
    """Whether the rule looks at times (`view` is a TimedClocks): it may then allow more than it tells a client that has no view."""
    gate_at: ClassVar[Literal["", "start", "push"]] = ""
    """Where a coordinator stands: "" nowhere; "start": a worker computes when it is granted; "push": its gradient is sent if it is granted to count."""
    watches_seconds: ClassVar[float] = 0.0
    """How often workers look at their load and tell the coordinator; 0: never."""

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return the oldest version that a read of `worker` at `clock` may show; a client that asks whether its copy will do has no `view`."""
        raise NotImplementedError

    @property
    def asks_ahead(self) -> int:
        """How many clocks after the one that a message ends it asks for, if it asks: 1 where nothing could be answered before; else 2, as 1 is asked for."""
        return 1 if self.bound == 0 else 2

    def needed(self, n_workers: int) -> int:
        """Return how many workers must have ended a clock before it is reached."""
        return n_workers

    def clocks(self, workers: Iterable[int]) -> Clocks:
        """Return what a shard counts clocks with."""
        workers = list(workers)
        return (TimedClocks if self.timed else Clocks)(workers, self.needed(len(workers)))

    def gate(self, n_workers: int, fixed_shares: bool) -> Gate:
        """Return the gate of one run, where `gate_at` says that there is one; `fixed_shares`: each worker has samples of its own."""
        raise NotImplementedError

    def tuning(self, staleness: float) -> Tuning:
        """Soften an update that was computed from values `staleness` clocks old; without a bound: as many clocks of all workers as it missed.

        The rate is divided by 1 + staleness (staleness-aware SGD: Zhang, Gupta, Lian, Liu, IJCAI 2016), and momentum's memory is
        shortened by the same factor, because stale gradients act like momentum themselves (Mitliagkas et al., Allerton 2016).
        """
        return Tuning(1.0 / (1 + staleness), 1.0 + staleness)


def whole(name: str, value: object, least: int, example: str) -> int:
    """Return an argument that must be a whole number from `least` up; ValueError names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"the {name} {value} is not a whole number from {least} up; give for example {example}")
    return value


def make_policy(text: str) -> SyncPolicy:
    """Build the policy that `text` describes, a shipped one or a file of the user's."""
    policy = plugins.make("mpidml.sync", text)
    if not isinstance(policy, SyncPolicy):
        raise UserError(f"--sync {text}: {type(policy).__name__} is not a policy; derive it from mpidml.sync.base.SyncPolicy")
    for name, is_needed in (("oldest_readable", True), ("gate", policy.gate_at != "")):
        if is_needed and getattr(type(policy), name) is getattr(SyncPolicy, name):
            raise UserError(f"--sync {text}: {type(policy).__name__} has no method {name}; define it as mpidml.sync.base.SyncPolicy says")
    return policy
