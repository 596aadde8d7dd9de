"""Cut a whole network, heads and all, over the ranks of a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mpidml.nn.layers.base import Layer
from mpidml.nn.split.chain import split
from mpidml.nn.split.line import Line
from mpidml.nn.split.loss import Ending
from mpidml.nn.split.spread import Spread

if TYPE_CHECKING:
    from mpidml.nn.network import Network


class Parts(NamedTuple):
    """A rank's parts of a network: as many layers, in the same order, and what ends each head; `spread`: how rows lie on the ranks, where not all do on each."""

    layers: tuple[Layer, ...]
    endings: tuple[Ending, ...]
    spread: Spread | None = None


def parts_of(net: Network, line: Line) -> Parts:
    """Return this rank's parts; nothing is sent, and every rank of the line calls it alike."""
    if not net.given_heads:
        chain = split(net.layers, net.loss, line)
        assert chain.loss is not None
        return Parts(chain.layers, (chain.loss,))
    trunk = split(net.trunk, None, line)
    heads = [split(head.layers, head.loss, line, inner=True) for head in net.heads]
    return Parts((*trunk.layers, *(layer for head in heads for layer in head.layers)), tuple(head.loss for head in heads if head.loss is not None))
