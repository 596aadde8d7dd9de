"""Name one thing that one stage of a pipeline does for one microbatch: 1F0 is stage 1's forward of microbatch 0.

    compute    F  forward              B  backward, both gradients        I  gradient of the input alone     W  gradient of the weights alone
    moves      RF receive the input    SF send the output                 RB receive the output's gradient   SB send the input's gradient
    weights    V  1V3@2: microbatch 3 reads version 2 of the weights      G  sum the gradient over replicas  U  change the weights
    order      X  wait for all ranks

A schedule yields compute alone; passes (`core.lowering`) add the rest. Items count the microbatches of a batch, or of a whole run where none ends a batch.
"""

from __future__ import annotations

import re
from typing import NamedTuple

COMPUTE = ("F", "B", "I", "W")
BACKWARD = ("B", "I")
MOVES = ("RF", "SF", "RB", "SB")
TRACED = {
    **{"F": "forward", "B": "backward", "I": "backward", "W": "weight_gradient", "U": "update", "G": "sum", "X": "wait"},
    **{"RF": "receive", "RB": "receive", "SF": "send", "SB": "send"},
}
"""What a trace calls an operation (`core.trace.KINDS`); reading a version leaves none."""
_FORM = re.compile(r"(\d+)(F|B|I|W|RF|SF|RB|SB|V|G|U|X)(\d*)(?:@(\d+))?")


class Action(NamedTuple):
    """`stage` does `op` for microbatch `item`, -1 where it is for none; `version` is told of V alone."""

    stage: int
    op: str
    item: int = -1
    version: int = -1

    def __str__(self) -> str:
        item = "" if self.item < 0 else str(self.item)
        return f"{self.stage}{self.op}{item}" + (f"@{self.version}" if self.version >= 0 else "")


def parse(text: str) -> Action:
    """Return the action that prints as `text`; ValueError where none does."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is no action; write stage, operation and microbatch, as 1F0")
    stage, op, item, version = found.groups()
    return Action(int(stage), op, int(item) if item else -1, int(version) if version else -1)
