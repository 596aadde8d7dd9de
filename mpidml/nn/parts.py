"""Say what one rank of a line holds, keeps and sums of a stage's layers, by the code that splits layers: no weight is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, Protocol

from mpidml.core.errors import UserError
from mpidml.core.partition import weighted_cut
from mpidml.core.rounds import cut
from mpidml.nn.layers.base import Layer
from mpidml.nn.network import Network
from mpidml.nn.split.mix import cut_layers, mixed
from mpidml.nn.split.spread import SpreadPart
from mpidml.nn.split.traffic import exchanges
from mpidml.nn.split.whole import parts_of
from mpidml.nn.stage import Stage, n_cuts


class Part(NamedTuple):
    """One rank's part of a stage, the fullest one's. `shares`: of each layer's compute; bytes of its parameters.

    Bytes for each row: `kept` of activations between forward and backward, of its number and what is learnt of it, `scored` of what is kept of it where it is
    scored, `comes` and `goes` what the stage takes and hands on, `forward_sums` and `backward_sums` what is summed over the line. Of a mix: bytes that a rank
    sends for each row, in each exchange of a forward and a backward pass, and `summed_nbytes` of parameters whose gradients are summed over replicas; those
    of all where it is None. `places_nbytes`: what tells where its parameters lie in the network, if it is not a range.
    """

    shares: tuple[float, ...]
    parameter_nbytes: float
    kept: float
    comes: float
    goes: float
    forward_sums: tuple[float, ...] = ()
    backward_sums: tuple[float, ...] = ()
    forward_moves: tuple[float, ...] = ()
    backward_moves: tuple[float, ...] = ()
    summed_nbytes: float | None = None
    scored: float = 0.0
    places_nbytes: float = 0.0

    @property
    def replicated_nbytes(self) -> float:
        """Return the bytes of gradients that replicas sum."""
        return self.parameter_nbytes if self.summed_nbytes is None else self.summed_nbytes


class Parts(Protocol):
    """What the planner asks of a network."""

    n_layers: int

    def part(self, lo: int, hi: int, n: int, is_first: bool, is_last: bool) -> Part | str:
        """Return a rank's part of layers [lo, hi) over n ranks, or why there is none."""

    def mixed(self, n: int, mix: str) -> Part:
        """Return a rank's part of the whole network under a mix over n ranks."""


class Fullest:
    """The rank of an even line that has most, as `split` asks of a line; nothing is summed."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = size - 1, size

    def edges(self, n: int) -> list[int]:
        """Return where a width is cut evenly."""
        return [cut(n, self.size, rank)[0] for rank in range(self.size)] + [n]

    def sum(self, buffer: Any) -> Callable[[], object]:
        """Refuse."""
        raise RuntimeError("planner: nothing is summed while a plan is made")

    most = carry = sum


class _Weighted(Fullest):
    """A rank of a line that is cut in the proportion of `weights`."""

    def __init__(self, weights: Sequence[float], rank: int) -> None:
        self.rank, self.size, self.weights = rank, len(weights), weights

    def edges(self, n: int) -> list[int]:
        return weighted_cut(n, self.weights)


class NetParts:
    """The parts of a real network, whose layers are connected: the fullest ones of even lines, or where there are `weights` those of `rank` in their proportion."""

    def __init__(self, net: Network, weights: Sequence[float] = (), rank: int = 0) -> None:
        self.net, self.n_layers = net, n_cuts(net)
        self.part, self.cut = lru_cache(None)(self._part), lru_cache(None)(lambda n: parts_of(net, _Weighted(weights, rank) if weights else Fullest(n)))
        self.mixed = lru_cache(None)(self._mixed)

    def _part(self, lo: int, hi: int, n: int, is_first: bool, is_last: bool) -> Part | str:
        net, size = self.net, self.net.dtype.itemsize
        of = Stage(net, lo, hi, is_first, is_last)
        try:
            stage = of if n == 1 else Stage(net, lo, hi, is_first, is_last, self.cut(n))
        except UserError as error:
            return str(error)
        layers = stage.layers
        halves = exchanges(layers, None, stage.first, 1, net.dtype, trains=False)
        listed = exchanges(layers, None, stage.first, 1, net.dtype)
        forward = [each.n * each.itemsize for each in halves]
        for ending in stage.endings if n > 1 else ():
            sums, most = ending.sums(1, net.dtype)
            forward += [k * itemsize for k, itemsize in (*most, *sums)]
        backward = [each.n * each.itemsize for each in listed[len(halves) :]]
        whole = [layer.flops(1, i > of.first) for i, layer in enumerate(of.layers)]
        own = [layer.flops(1, i > stage.first) for i, layer in enumerate(layers)]
        shares = tuple(part / all_ if all_ else 1.0 for part, all_ in zip(own, whole, strict=True))
        edges, sent = (float(stage.n_features * size), float(stage.n_out * size)), (tuple(map(float, forward)), tuple(map(float, backward)))
        return Part(shares, float(stage.n_params * size), _kept(stage), *edges, *sent, scored=_scored(stage), places_nbytes=_places_nbytes(stage, n))

    def _mixed(self, n: int, mix: str) -> Part:
        net, size = self.net, self.net.dtype.itemsize
        stage = Stage(net, 0, self.n_layers, True, True, mixed(net, Fullest(n), cut_layers(mix, net.layers)))
        moves = [layer.moved(i > stage.first) for i, layer in enumerate(stage.layers) if isinstance(layer, SpreadPart)]
        forward, backward = (tuple(float(each * size) for of in halves for each in of) for halves in zip(*moves, strict=True))
        shares = tuple(n * _n_cut(layer) / _n_cut(layer.whole) if isinstance(layer, SpreadPart) else 1.0 for layer in stage.layers)
        edges = float(stage.n_features * size), float(stage.n_out * size)
        more = float(stage.n_summed * size), _scored(stage), _places_nbytes(stage, n)
        return Part(shares, float(stage.n_params * size), _kept(stage), *edges, (), (), forward, backward, *more)


def _n_cut(layer: Layer) -> int:
    """Count the values of a layer's largest tensor, the one that is cut."""
    return prod(layer.tensors[0][1])


def _kept(stage: Stage) -> float:
    """Return the bytes of a row that a slot keeps: of each layer its output, the gradient of its input, and what its backward needs besides; its number, its answers."""
    size, last = stage.dtype.itemsize, len(stage.layers) - 1
    outputs = sum(layer.n_out for i, layer in enumerate(stage.layers) if stage.is_last or i < last)
    inner = sum(layer.n_in for i, layer in enumerate(stage.layers) if stage.sources[i] >= 0 and not layer.in_place)
    learnt = sum(8 * (1 + len(head.columns)) + head.n_outputs * size * head.loss.from_values for head in stage.heads)
    return float((outputs + inner) * size + sum(_besides(layer, stage.dtype) for layer in stage.layers) + 8 + learnt)


def _scored(stage: Stage) -> float:
    """Return the bytes of a row that is scored: of each layer that is more than of training its output, and what its forward fills besides."""
    layers = [layer for layer in stage.layers if not layer.training_only]
    outputs = sum(layer.n_out for layer in layers if stage.is_last or layer is not stage.layers[-1])
    return float(outputs * stage.dtype.itemsize + sum(_besides(layer, stage.dtype) for layer in layers))


def _places_nbytes(stage: Stage, n: int) -> float:
    """Return the bytes that tell which of the network's parameters a part over n ranks has, and which of them others have, too."""
    return 9.0 * stage.n_params * (n > 1)


def _besides(layer: Layer, dtype: Any) -> int:
    """Return the bytes of a row that a layer's backward needs besides what comes and leaves."""
    if isinstance(layer, SpreadPart):
        return sum(array.nbytes for array in layer.kept(1, dtype))
    return sum(array[:1].nbytes for array in layer.kept(2, dtype) if len(array) == 2)
