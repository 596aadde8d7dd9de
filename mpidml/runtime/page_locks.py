"""Keep memory of the host in its place while a device copies from it and to it, so that copies are fast and do not make the host wait."""

from __future__ import annotations

import weakref
from typing import Any

from mpidml.core.role import Array


class PageLocks:
    """Memory that others have allocated, page-locked for as long as somebody needs that; `refused`: what the system said where it locks none."""

    def __init__(self, cupy: Any) -> None:
        self.runtime, self.refused = cupy.cuda.runtime, ""
        self.unlocks: list[weakref.finalize[Any, PageLocks]] = []

    def lock(self, memory: Array) -> None:
        """Lock `memory`, or leave it as it is where the system refuses."""
        runtime = self.runtime
        try:
            runtime.hostRegister(memory.ctypes.data, memory.nbytes, 0)
        except runtime.CUDARuntimeError as error:
            self.refused = str(error)
            return
        unlock = weakref.finalize(self, runtime.hostUnregister, memory.ctypes.data)  # a run that fails frees nothing, and its memory is given out again
        unlock.atexit = False
        self.unlocks.append(unlock)

    def free(self) -> None:
        """Unlock all, before it is freed."""
        for unlock in self.unlocks:
            unlock()
        self.unlocks.clear()
