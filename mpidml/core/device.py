"""Name where a network's arithmetic runs, and why there."""

from __future__ import annotations

from typing import Any, NamedTuple


class Device(NamedTuple):
    """Where arithmetic runs: "cpu" or "cuda", and the `reason`.

    `kernels`: the namespace of kernels for arrays on that device, None on the CPU, whose arrays are NumPy's. `facts`: what a report says of it besides, by name.
    """

    name: str
    reason: str = ""
    kernels: Any = None
    facts: dict[str, Any] = {}  # noqa: RUF012 - never changed


CPU = Device("cpu")
