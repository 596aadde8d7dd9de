"""Cut a chain of connected layers, and the loss behind it, over the ranks of a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import DTypeLike

from mpidml.nn.layers.base import Layer
from mpidml.nn.losses.base import Loss
from mpidml.nn.split.dense import Columns, Rows, Slices
from mpidml.nn.split.dropout import DropoutPart
from mpidml.nn.split.embedding import Ranges
from mpidml.nn.split.layout import Layout
from mpidml.nn.split.line import Line
from mpidml.nn.split.loss import Ending, SplitCrossEntropy
from mpidml.nn.split.traffic import Exchange, exchanges
from mpidml.nn.split.ways import GIVES_PART, checked, choose, first_with_tensors

MAKERS: dict[str, Any] = {"columns": Columns, "rows": Rows, "slices": Slices, "ranges": Ranges, "part": DropoutPart}


class Split(NamedTuple):
    """A rank's parts of a chain. `layers`: as many as the chain has, each a part of it or, where it stays whole, itself; `ways`: how each is cut.

    `loss`: what ends the chain, None where nothing does; `first`: layers behind it want the gradient of their input.
    """

    layers: tuple[Layer, ...]
    loss: Ending | None
    ways: tuple[str, ...]
    first: int
    whole: tuple[Layer, ...]

    @property
    def widths(self) -> list[int]:
        """Return of each layer the columns of its output on this rank."""
        return [layer.n_out for layer in self.layers]

    def layout(self, prefix: str = "layers", place: int = 0) -> Layout:
        """Return where this rank's weights lie in those of the whole chain."""
        return Layout(self.whole, self.layers, prefix, place)

    def exchanges(self, m: int, dtype: DTypeLike, trains: bool = True) -> list[Exchange]:
        """Return what a pass over m rows sends over the line."""
        return exchanges(self.layers, self.loss, self.first, m, dtype, trains)

    def flops(self, m: int) -> int:
        """Count this rank's floating-point operations for m rows."""
        return sum(layer.flops(m, i > self.first) for i, layer in enumerate(self.layers)) + (self.loss.flops(m) if self.loss else 0)


def split(layers: Sequence[Layer], loss: Loss | None, line: Line, inner: bool = False, ways: Sequence[str] | None = None) -> Split:
    """Return this rank's parts of connected layers; nothing is sent, and every rank of the line calls it alike.

    loss: None where more follows, which gets whole rows. inner: the gradient of the chain's input is wanted, too, as for a head. ways: how each layer
    is cut, chosen where none are given. Each rank holds its part of every weight but those that are small; the layers given are not changed.
    UserError for ways that do not fit, and for a line whose edges do not cut a width.
    """
    first = -1 if inner else first_with_tensors(layers)
    chosen = choose(layers, loss, first, line.size) if ways is None else checked(ways, layers, loss)
    parts = tuple(layer if way == "whole" else MAKERS[way](layer, line) for way, layer in zip(chosen, layers, strict=True))
    ending = None
    if loss is not None:
        n_outputs = layers[-1].n_out
        ending = SplitCrossEntropy(loss, n_outputs, line) if chosen[-1] in GIVES_PART else Ending(loss, n_outputs)  # type: ignore[arg-type]
    return Split(parts, ending, tuple(chosen), first, tuple(layers))
