"""Name where a network's arithmetic runs, and why there."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from mpidml.core.errors import UserError

WANTED = "where networks compute: auto (a GPU for each rank where one is tried and right, else the CPU), cpu, cuda (a GPU or an error), or the one GPU of cuda:N"
"""What --device says of itself."""


class Device(NamedTuple):
    """Where arithmetic runs: "cpu" or "cuda", and the `reason`.

    `kernels`: the namespace of kernels for arrays on that device, None on the CPU, whose arrays are NumPy's. `facts`: what a report says of it besides, by name.
    """

    name: str
    reason: str = ""
    kernels: Any = None
    facts: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def said(self) -> dict[str, Any]:
        """Return what summary.json holds."""
        return {"name": self.name, "reason": self.reason, **self.facts}


CPU = Device("cpu")


def check_wanted(wanted: str) -> None:
    """Refuse a --device that is none."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", wanted):
        raise UserError(f"--device {wanted}: is none of auto, cpu, cuda and cuda:N; give for example cuda:1, the second GPU of each host")
