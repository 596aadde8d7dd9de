"""Make and read codes where values lie, and have them where messages are: on the CPU that is one place, to and from a device they alone cross.

    device     values -> code        code -> values           what codes leave, and all values, stay there
                          | down       ^ up
    host                 code         code                    of a message
"""

from __future__ import annotations

from typing import Any

from mpidml_kernels import CODES

from mpidml.compression.base import Compressor
from mpidml.core.role import Array


class Crossing:
    """The codes of `coder`, to and from messages. Memory on a device: a code of each size that comes or goes.

    Kernels of a device are compiled when this is made.
    """

    def __init__(self, coder: Compressor) -> None:
        self.coder, self.rooms = coder, dict[int, Any]()
        if coder.backend.gpu is not None:
            coder.backend.load(*CODES)
            coder.backend.fetch(coder.dtype.str[1:])

    def encode(self, values: Any, lo: int, hi: int, code: Array, step: int) -> Any:
        """Write what `Compressor.encode` makes of `values`, (hi - lo,), to the host's `code`; return it where it was made, until the next one.

        Waits for the device.
        """
        there = self._room(code)
        self.coder.encode(values, lo, hi, there, step)
        if there is not code:
            there.get(out=code)
        return there

    def take(self, code: Array) -> Any:
        """Return the host's `code` where values lie, until the next one; waits until it is there, so that the message may go."""
        there = self._room(code)
        if there is not code:
            self.put(there, code)
        return there

    def put(self, there: Any, values: Array) -> None:
        """Bring the host's `values` to `there`, of their shape; waits until they are, so that the message may go."""
        if self.coder.backend.gpu is None:
            there[...] = values
        elif values.size:
            there.set(values)

    def _room(self, code: Array) -> Any:
        backend = self.coder.backend
        if backend.gpu is None:
            return code
        if code.size not in self.rooms:
            with backend.naming("a code"):
                self.rooms[code.size] = backend.zeros(code.size, code.dtype)
        return self.rooms[code.size]
