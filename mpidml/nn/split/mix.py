"""Lay kinds of layers along different axes over the same ranks (Krizhevsky, "One weird trick", 2014): some share out the batch, some are cut into parts.

    --mix embedding=tensor, 3 ranks

    data      dense      | W |  own rows      | W |  own rows      | W |  own rows        gradient of W summed over ranks
                           |                    |                    |
    tensor    embedding  | T0 | all rows      | T1 | all rows      | T2 | all rows        gradient of T0 on rank 0 alone

A name is a type, a file of mpidml/nn/layers/, or the number of one layer from 1, which goes before its type. What is not named is laid along data.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from mpidml.core import plugins
from mpidml.core.errors import UserError, nearest
from mpidml.core.plugins import name_of
from mpidml.nn.layers.base import Layer
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.split.loss import Ending
from mpidml.nn.split.spread import Spread
from mpidml.nn.split.spread_dense import SpreadDense
from mpidml.nn.split.spread_embedding import SpreadEmbedding
from mpidml.nn.split.whole import Parts

if TYPE_CHECKING:
    from mpidml.nn.network import Network

AXES = ("data", "tensor")
MAKERS: dict[type[Layer], Any] = {Dense: SpreadDense, Embedding: SpreadEmbedding}
"""What can be cut, by its type."""


def parse_mix(text: str) -> dict[str, str]:
    """Return what `text` names, and the axis of each; UserError for what names no axis."""
    found: dict[str, str] = {}
    for word in text.split(","):
        name, equals, axis = (part.strip().replace("-", "_") for part in word.partition("="))
        if not equals or not name:
            raise UserError(f"--mix {text}: '{word.strip()}' lays nothing along an axis; write for example embedding=tensor")
        if axis not in AXES:
            raise UserError(f"--mix {text}: layers lie along no axis '{axis}'; {nearest(axis, AXES)}")
        if name in found:
            raise UserError(f"--mix {text}: names {name} twice; give it once")
        found[name] = axis
    return found


def cut_layers(text: str, layers: Sequence[Layer]) -> frozenset[int]:
    """Return which of a network's layers `text` has cut into parts; UserError for what names none of them, and for a mix that cuts nothing."""
    along, types = parse_mix(text), [name_of(layer) for layer in layers]
    for name in along:
        if name.isdecimal():
            if not 1 <= int(name) <= len(layers):
                raise UserError(f"--mix {text}: there is no layer {name}; the network has {len(layers)}, name one from 1 to {len(layers)}")
        elif name not in types:
            known = sorted({*types, *plugins.names("mpidml.nn.layers")})
            if name not in known:
                raise UserError(f"--mix {text}: there is no type of layers '{name}'; {nearest(name, known)}")
            raise UserError(f"--mix {text}: the network has no layer {name}, it has {', '.join(dict.fromkeys(types))}; leave it out, or name one of these")
    found = [i for i, of in enumerate(types) if along.get(str(i + 1), along.get(of)) == "tensor"]
    for i in found:
        if type(layers[i]) not in MAKERS:
            cuttable = " or ".join(kind.__name__.lower() for kind in MAKERS)
            raise UserError(f"--mix {text}: layer {i + 1} ({types[i]}) cannot be cut; lay {cuttable} along tensor, and leave it out")
    if not found:
        raise UserError(f"--mix {text}: lays no layer along tensor, so it does nothing; write for example {types[0]}=tensor, or leave it out")
    return frozenset(found)


def dominant(net: Network) -> list[str]:
    """Return a mix for each layer that has half of a network's weights or more, and can be cut: the ones that may pay."""
    found = []
    for i, layer in enumerate(net.layers):
        if type(layer) in MAKERS and 2 * sum(prod(shape) for _, shape in layer.tensors) >= net.n_params:
            found.append(f"{name_of(layer) if isinstance(layer, Embedding) else i + 1}=tensor")
    return found


def mixed(net: Network, line: Any, cut: frozenset[int]) -> Parts:
    """Return a network's layers with this rank's parts of those in `cut`, each of which gives and takes own rows; nothing is sent, and every rank calls it alike."""
    spread = Spread(line)
    layers = tuple(MAKERS[type(layer)](layer, spread) if i in cut else layer for i, layer in enumerate(net.layers))
    return Parts(layers, tuple(Ending(head.loss, head.n_outputs) for head in net.heads), spread)
