"""Say when a run is good enough: a test accuracy to reach or a test loss to fall to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mpidml.core.errors import UserError


class Target(NamedTuple):
    """A test accuracy of at least `value`, or a test loss of at most `value`."""

    kind: Literal["accuracy", "loss"]
    value: float

    def reached(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row of metrics.jsonl shows it; False where nothing was measured."""
        found = measured(row, self.kind)
        return found is not None and (found >= self.value if self.kind == "accuracy" else found <= self.value)

    def __str__(self) -> str:
        return f"test accuracy {self.value:g}" if self.kind == "accuracy" else f"test loss {self.value:g}"


def measured(row: Mapping[str, Any], kind: str) -> float | None:
    """Return the test accuracy or loss of a row, the final one where there is one; None where it is missing or no number."""
    for key in (f"final_test_{kind}", f"test_{kind}"):
        value = row.get(key)
        if value is not None and math.isfinite(value):
            return float(value)
    return None


def parse_target(text: str) -> Target | None:
    """Read `0.97`, `accuracy:0.97` or `loss:0.1`; None for an empty text, UserError for what is none of these."""
    if not text:
        return None
    kind, colon, number = text.rpartition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("", "accuracy", "loss") or (colon and not kind) or not math.isfinite(value):
        raise UserError(f"--target {text}: is no target; give a test accuracy such as 0.97, or loss:0.1")
    if kind != "loss" and not 0 < value <= 1:
        raise UserError(f"--target {text}: is no accuracy; give one above 0 and up to 1, as 0.97 for 97%")
    if kind == "loss" and value <= 0:
        raise UserError(f"--target {text}: no loss falls to that; give a positive number, as loss:0.1")
    return Target("loss" if kind == "loss" else "accuracy", value)
