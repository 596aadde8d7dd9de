"""Keep a store that is changed by codes on a device: what is decoded, the versions, the copies that workers hold. Codes cross, and what somebody asks for.

    host       codes of deltas         codes of answers        values in full, when they are asked for: answers, checkpoints
                  | up                     ^ down                 ^ down, each version once
    device     sum -> update -> versions; versions - copies -> code -> copies
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpidml.core.role import Array, Message
from mpidml.ps.coded import CodedStore
from mpidml.ps.store import PLAIN
from mpidml.sync.base import Tuning


class CodedStoreThere(CodedStore):
    """A `CodedStore` whose coder and chain compute on a device. `versions` are the host's all the same, and filled when `at` is asked for one.

    Memory on the device: what `CodedStore` says, the newest values, the optimizer, and where there are several versions all of them. The host waits for the
    codes that come and go, not for an update.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        newest, kernels, n = self._device.values, self.coder.backend, len(self.versions)
        with kernels.naming("a shard's versions"):
            self.there = [newest] if n == 1 else [kernels.zeros(newest.size, newest.dtype) for _ in range(n)]
        self.behind: set[int] = set()  # places of versions that the host has not been given
        self._up()

    @property
    def _device(self) -> Any:
        assert self.device is not None
        return self.device

    def _total(self) -> Any:
        return self._device.gradient

    def values(self, version: int) -> Any:
        """Return the device's values of `version`."""
        return self.there[version % len(self.there)]

    def at(self, version: int) -> Array:
        """Bring the values of `version` to the host, unless they are there."""
        place = version % len(self.versions)
        if place in self.behind:
            self.there[place].get(out=self.versions[place])
            self.behind.discard(place)
        return super().at(version)

    def apply(self, deltas: Sequence[Message], tuning: Tuning = PLAIN) -> None:
        """Make one update, as ever; without deltas the newest values are the next version, too."""
        if deltas:
            super().apply(deltas, tuning)
            return
        old = self.values(self.latest)
        self._next_version()
        self._keep(old)

    def _update(self, old: Array, new: Array, total: Any, where: slice, step: int, tuning: Tuning, more: Sequence[Array] = ()) -> None:
        assert total is self.total and where == slice(0, total.size) and not more, "codes are of all elements of a store"
        self._device.step(step, tuning)
        self._keep(self._device.values)

    def _keep(self, values: Any) -> None:
        """Let `values` be the newest version."""
        place = self.values(self.latest)
        if place is not values:
            self.coder.backend.copy(place, values)
        self.behind.add(self.latest % len(self.versions))

    def begin(self, clock: int) -> None:
        """Call the newest values version `clock`."""
        if clock != self.latest:
            self._down()
            super().begin(clock)
            self._up()

    def restore(self, clock: int, fill: Callable[[str, Array], bool]) -> None:
        """Let `fill` fill the host's arrays, which go up."""
        self._down()
        super().restore(clock, fill)

    def _changed(self) -> None:
        self._down()
        super()._changed()
        self._up()

    def _down(self) -> None:
        """Bring all versions that the host lacks."""
        for place in sorted(self.behind):
            self.at(place)

    def _up(self) -> None:
        """Take all versions from the host, which has them; the newest one lies in `_device` already."""
        for place, there in enumerate(self.there):
            if there is not self._device.values:
                self.coder.backend.put(there, self.versions[place])
