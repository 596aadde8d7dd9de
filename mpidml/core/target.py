"""Say when a run is good enough: an accuracy to reach or a loss to fall to, of the rows that are looked at once an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mpidml.core.errors import UserError


class Target(NamedTuple):
    """An accuracy of at least `value`, or a loss of at most `value`, of test rows or (`of` is "val") of validation rows; of one `head` if it is named."""

    kind: Literal["accuracy", "loss"]
    value: float
    of: str = "test"
    head: str = ""

    def reached(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row of metrics.jsonl shows it; False where nothing was measured."""
        found = measured(row, self.key)
        return found is not None and (found >= self.value if self.kind == "accuracy" else found <= self.value)

    @property
    def key(self) -> str:
        """Return the name that a row of metrics has for what is to be reached."""
        return f"{self.of}_{self.kind}" + (f".{self.head}" if self.head else "")

    def __str__(self) -> str:
        whose = f" of {self.head}" if self.head else ""
        return f"{'validation' if self.of == 'val' else self.of} {self.kind}{whose} {self.value:g}"


def measured(row: Mapping[str, Any], key: str) -> float | None:
    """Return what a row measured of `key`, of the final parameters where it is known; None where it is missing or no number."""
    for name in (f"final_{key}", key):
        value = row.get(name)
        if value is not None and math.isfinite(value):
            return float(value)
    return None


def parse_target(text: str, of: str = "test") -> Target | None:
    """Read `0.97`, `accuracy:0.97`, `loss:0.1`, or of one head `accuracy.kind:0.97`; None for an empty text, UserError for what is none of these."""
    if not text:
        return None
    kind, colon, number = text.rpartition(":")
    kind, dot, head = kind.partition(".")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("", "accuracy", "loss") or (colon and not kind) or (dot and not head) or not math.isfinite(value):
        raise UserError(f"--target {text}: is no target; give a test accuracy such as 0.97, or loss:0.1")
    if kind != "loss" and not 0 < value <= 1:
        raise UserError(f"--target {text}: is no accuracy; give one above 0 and up to 1, as 0.97 for 97%")
    if kind == "loss" and value <= 0:
        raise UserError(f"--target {text}: no loss falls to that; give a positive number, as loss:0.1")
    return Target("loss" if kind == "loss" else "accuracy", value, of, head)
