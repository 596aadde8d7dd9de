"""Choose how each layer of a chain is cut, so that the fewest elements are summed and what needs whole rows gets them.

    way        takes    gives    sums of a row, forward   backward, where dx is wanted
    columns    whole    part                              n_in
    rows       part     whole    n_out
    slices     whole    whole    n_out                    n_in
    ranges     whole    whole    n_out                                                      an embedding
    part       part     part                                                                dropout
    whole      whole    whole                                                               any layer; a weight only if it is small

A chain of dense layers of one width is cut by columns, rows, columns, rows: one sum forward and one backward for each pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import NamedTuple

from mpidml.core.errors import UserError, nearest
from mpidml.core.plugins import name_of
from mpidml.nn.layers.base import Layer
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.losses.base import Loss
from mpidml.nn.losses.cross_entropy import CrossEntropy

NAMES = ("columns", "rows", "slices", "ranges", "part", "whole")
GIVES_PART = {"columns", "part"}
SMALL_SHARE = 0.04
"""By at most this share a rank's part of a chain may be more than an even one, for layers that stay whole where that saves sums; edges of whole columns come on top."""


class Cost(NamedTuple):
    """Elements summed for each row of a batch, and the number of sums; the first counts first."""

    elements: float
    n_sums: int

    def plus(self, *lengths: int) -> Cost:
        """Add sums of these lengths."""
        return Cost(self.elements + sum(lengths), self.n_sums + len(lengths))


def first_with_tensors(layers: Sequence[Layer]) -> int:
    """Return the first layer that has any: nobody wants the gradient of its input."""
    return next((i for i, layer in enumerate(layers) if layer.tensors), len(layers))


def ends_in_part(loss: Loss | None) -> bool:
    """Tell whether a loss can be computed of outputs that are cut by columns."""
    return type(loss) is CrossEntropy


def possible(layer: Layer, takes_part: bool) -> tuple[str, ...]:
    """Return the ways in which a layer can be cut behind a part, or behind whole rows; the preferred of equals first."""
    if takes_part:
        return ("rows",) if type(layer) is Dense else ("part",) if type(layer) is Dropout else ()
    return ("columns", "slices", "whole") if type(layer) is Dense else ("ranges", "whole") if type(layer) is Embedding else ("whole",)


def lengths(way: str, layer: Layer, wants_dx: bool) -> list[int]:
    """Return the lengths of the sums of one row."""
    return [layer.n_out] * (way in ("rows", "slices", "ranges")) + [layer.n_in] * (way in ("columns", "slices") and wants_dx)


def price(ways: Sequence[str], layers: Sequence[Layer], loss: Loss | None, first: int) -> Cost:
    """Return what a chain costs that is cut so."""
    cost = Cost(0, 0)
    for i, (way, layer) in enumerate(zip(ways, layers, strict=True)):
        cost = cost.plus(*lengths(way, layer, i > first))
    return cost.plus(*_end(loss)) if ways and ways[-1] in GIVES_PART else cost


def choose(layers: Sequence[Layer], loss: Loss | None, first: int, n_parts: int) -> list[str]:
    """Return the way of each layer: of all chains of ways that fit, one whose price is lowest; each weight is cut into `n_parts` unless it is small.

    layers: connected; loss None: the end must be whole; first: layers behind it want the gradient of their input. Takes O(layers) steps.
    """
    small = may_stay_whole(layers, n_parts)
    least = {False: Cost(0, 0), True: Cost(0, 0).plus(*_end(loss)) if ends_in_part(loss) else Cost(inf, 0)}  # of what follows, behind whole rows and behind a part
    chosen: list[dict[bool, str]] = []
    for i, layer in reversed(list(enumerate(layers))):
        behind, ways = least, dict[bool, str]()
        least = {}
        for takes_part in (False, True):
            costs = {
                way: behind[way in GIVES_PART].plus(*lengths(way, layer, i > first))
                for way in possible(layer, takes_part)
                if way != "whole" or small[i]
            }
            ways[takes_part] = min(costs, key=costs.__getitem__, default="")
            least[takes_part] = costs.get(ways[takes_part], Cost(inf, 0))
        chosen.append(ways)
    found, is_part = list[str](), False
    for ways in reversed(chosen):
        found.append(ways[is_part])
        is_part = found[-1] in GIVES_PART
    return found


def may_stay_whole(layers: Sequence[Layer], n_parts: int) -> list[bool]:
    """Tell of each layer whether every rank may hold all of it: it cannot be cut, or has few weights.

    A layer that stays whole is n_parts - 1 parts more than a rank would have of it. So each of those that can be cut may have an equal share of what makes a
    rank's part larger by `SMALL_SHARE`: all together they then make it no larger, over however many ranks. What is more than that is cut, although a small
    layer costs a sum each way in every microbatch, which over many ranks takes longer than its product: memory is what many ranks are for.
    """
    n = [sum(prod(shape) for _, shape in layer.tensors) for layer in layers]
    can_be_cut = [type(layer) in (Dense, Embedding) for layer in layers]
    total = sum(own for own, cut in zip(n, can_be_cut, strict=True) if cut)
    return [not cut or own * sum(can_be_cut) * max(1, n_parts - 1) <= SMALL_SHARE * total for cut, own in zip(can_be_cut, n, strict=True)]


def checked(ways: Sequence[str], layers: Sequence[Layer], loss: Loss | None) -> list[str]:
    """Return `ways` where they fit; UserError that names the layer where they do not."""
    if len(ways) != len(layers):
        raise UserError(f"tensor line: {len(ways)} ways are given for {len(layers)} layers; give one for each")
    is_part = False
    for i, (way, layer) in enumerate(zip(ways, layers, strict=True)):
        where = f"tensor line: layer {i + 1} ({name_of(layer)})"
        if way not in NAMES:
            raise UserError(f"{where}: there is no way '{way}'; {nearest(way, NAMES)}")
        if way not in (fitting := possible(layer, is_part)):
            stands = "behind a layer that leaves each rank its own columns" if is_part else "behind whole rows"
            advice = f"choose one of: {', '.join(fitting)}" if fitting else "cut the layer before it by rows or slices"
            raise UserError(f"{where}: cannot be cut by '{way}' {stands}; {advice}")
        is_part = way in GIVES_PART
    if is_part and not ends_in_part(loss):
        raise UserError(f"tensor line: the last layer leaves each rank its own columns, {_named(loss)} needs whole outputs; cut it by rows or slices")
    return list(ways)


def _end(loss: Loss | None) -> list[int]:
    return [1, 3 if isinstance(loss, CrossEntropy) and loss.label_smoothing else 2]


def _named(loss: Loss | None) -> str:
    return "what follows" if loss is None else f"the loss {name_of(loss)}"
