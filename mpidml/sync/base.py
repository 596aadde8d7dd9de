"""Define what a consistency model answers. The server asks; the policy compares clocks and holds no state of its own.

A pull at clock c is served once `clocks.reached >= oldest_readable(c, clocks)`; it then contains all updates of clocks
< oldest_readable(c) and perhaps newer ones. So of two counts the *read* is the bounded one: a worker may be one clock
further ahead for the instant between ending a clock and its next read (Ho et al., NIPS 2013).
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from mpidml.core import plugins
from mpidml.core.clocks import Clocks
from mpidml.core.errors import UserError


class Tuning(NamedTuple):
    """How an update is softened for its staleness: the learning rate times `rate`; momentum beta becomes 1 - (1 - beta) * memory."""

    rate: float = 1.0
    memory: float = 1.0


class SyncPolicy:
    """One consistency model. `commit` says when a delta counts: on "arrival" or when its "clock" closes."""

    commit: ClassVar[Literal["arrival", "clock"]] = "arrival"
    repeatable: ClassVar[bool] = False
    bound: int | None = None
    """The largest staleness of a read (in clocks); None without a bound."""

    def oldest_readable(self, clock: int, clocks: Clocks | None) -> int:
        """Return the oldest version that a read at `clock` may show; a client that asks whether its copy will do has no `clocks`."""
        raise NotImplementedError

    def tuning(self, staleness: int) -> Tuning:
        """Soften an update that was computed from values `staleness` clocks old.

        The rate is divided by 1 + staleness (staleness-aware SGD: Zhang, Gupta, Lian, Liu, IJCAI 2016), and momentum's memory is
        shortened by the same factor, because stale gradients act like momentum themselves (Mitliagkas et al., Allerton 2016).
        """
        return Tuning(1.0 / (1 + staleness), 1.0 + staleness)


def make_policy(text: str) -> SyncPolicy:
    """Build the policy that `text` describes, a shipped one or a file of the user's."""
    policy = plugins.make("mpidml.sync", text)
    if not isinstance(policy, SyncPolicy):
        raise UserError(f"--sync {text}: {type(policy).__name__} is not a policy; derive it from mpidml.sync.base.SyncPolicy")
    return policy
