"""Bring what waves read of a stage to the device that its passes run on, once a wave; their gradient stays there until it is pushed.

    host     versions of the stage's server               slot of a push
                | up, by the first microbatch of a wave       ^ down, after the last
    device   what each wave in flight reads -> passes -> gradient of all microbatches -> links of the replica
"""

from __future__ import annotations

from typing import Any

from mpidml.core.role import Array


class ReadThere:
    """Room for what `n_waves` waves in flight read, n elements each, of `dtype`, by `kernels` (`mpidml_kernels.cuda`). Cost of a wave: n elements up."""

    def __init__(self, kernels: Any, n_waves: int, n: int, dtype: Any) -> None:
        self.kernels = kernels
        with kernels.naming("what a wave reads of a stage"):
            self.free = [kernels.zeros(n, dtype) for _ in range(n_waves)]
        self.waves: dict[int, Any] = {}

    def bring(self, wave: int, values: Array) -> Any:
        """Return the host's `values` there, which a wave reads throughout; of more waves than there is room for the oldest has been pushed."""
        if wave not in self.waves:
            room = self.free.pop() if self.free else self.waves.pop(min(self.waves))
            self.kernels.put(room, values)
            self.waves[wave] = room
        return self.waves[wave]

    def begin(self) -> None:
        """Forget what waves have read: values may be others now."""
        self.free += self.waves.values()
        self.waves.clear()
