"""Drop values of the own columns by the noise of the whole layer's columns, so that a mask does not depend on the split."""

from __future__ import annotations

from typing import Any

from mpidml.nn.layers.base import Group, Pass, Thunk
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.split.line import Line, own
from mpidml.nn.split.part import Part


class DropoutPart(Part, Dropout):
    """The mask of the own columns; nothing is summed."""

    def __init__(self, whole: Dropout, line: Line) -> None:
        Part.__init__(self, whole, line)
        self.rate, columns = whole.rate, own(line, whole.n_out)
        self.first, self.n_in = columns.start, columns.stop - columns.start
        self.n_out = self.n_in

    def forward(self, backend: Any, a: Pass) -> list[Thunk]:
        """Return the calls that make this pass's key, copy, and drop in place."""
        key, _ = super().forward(backend, a)
        return [key, (backend.copy, (a.out, a.x)), (backend.dropout_part, (a.out, a.ids, a.kept[0], self.rate, self.first))]

    def backward(self, backend: Any, a: Pass, split: bool = False) -> list[Group]:
        """Return the call that drops the gradient in place by the same mask."""
        return [Group([(backend.dropout_part, (a.d, a.ids, a.kept[0], self.rate, self.first))])]
