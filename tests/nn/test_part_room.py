"""While a rank makes its parts of layers ready it never has a whole weight: what it holds at any moment is a small multiple of its own part."""

import tracemalloc

import numpy as np
import pytest

from mpidml.nn import stage as stages
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.split import chain, draws
from mpidml.nn.split.embedding import Ranges
from mpidml.nn.split.mix import cut_layers, mixed
from mpidml.nn.split.part import fill_places
from mpidml.nn.split.whole import parts_of
from mpidml.nn.stage import Stage, n_cuts
from mpidml.runtime.profiling import profiles
from tests.nn.lines import BACKENDS, MuteLine

N_PARTS = 16
KINDS = ["tensor", "embedding=tensor,dense=tensor"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Draw weights in blocks of 32 KB, which have nothing to do with the size of a part."""
    monkeypatch.setattr(draws, "AT_ONCE", 1 << 12)


def network():
    """Return a table of 2 MB and dense layers of 3.1 and 0.8 MB; a part of all has 0.4."""
    layers = [Embedding([0], 16, 32_768), Dense(1024, "relu"), Dense(768, "relu"), Dense(256)]
    return connect(layers, "test", 8, 256, make_loss("cross_entropy"), "float32", BACKENDS[0])


def peak(call):
    """Return the most bytes that `call` holds at once, and what it returns."""
    tracemalloc.start()
    try:
        found = call()
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


def begun(net, kind, rank):
    """Make a rank's parts, their weights, and what tells where these lie in the network."""
    line = MuteLine(rank, (1,) * N_PARTS)
    parts = parts_of(net, line) if kind == "tensor" else mixed(net, line, cut_layers(kind, net.layers))
    stage = Stage(net, 0, n_cuts(net), True, True, parts)
    return stage, stage.init(3), stage.elements()


def copies(kind, rank):
    """Return how many times its own part a rank that begins has at once, in the network's weights."""
    net = network()
    most, (stage, weights, (places, _)) = peak(lambda: begun(net, kind, rank))
    assert 0.9 * net.n_params < stage.n_params * N_PARTS < 1.1 * net.n_params, "a part is one of so many"
    assert places.size == weights.size == stage.n_params
    return most / weights.nbytes


@pytest.mark.parametrize("rank", [0, 7, N_PARTS - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_begins_with_its_own_part_alone(kind, rank):
    assert copies(kind, rank) < 4, "weights of 4 bytes, a place of 8 and a mark of 1 for each, and blocks that are drawn"


def places_in_the_whole(start, shape, index, out):
    out[...] = np.arange(start, start + np.prod(shape)).reshape(shape)[index]


def drawn_in_one(draw, shape, index, out):
    out[...] = draw(shape)[index]


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_catches_a_rank_that_counts_or_draws_the_whole(monkeypatch, kind):
    with monkeypatch.context() as broken:
        broken.setattr(stages, "fill_places", places_in_the_whole)
        assert copies(kind, 0) > 8
    for module in ("dense", "embedding", "spread_dense", "spread_embedding"):
        monkeypatch.setattr(f"mpidml.nn.split.{module}.draw_part", drawn_in_one)
    assert copies(kind, 0) > 8


@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 1), (2, 3, 4)])
def test_places_are_those_that_the_whole_would_tell(shape):
    random = np.random.default_rng(len(shape))
    for _ in range(20):
        edges = [np.sort(random.integers(0, n + 1, 2)) for n in shape]
        index = tuple(slice(int(lo), int(hi)) for lo, hi in edges)
        expected = np.arange(11, 11 + np.prod(shape)).reshape(shape)[index]
        found = np.full(expected.shape, -1)
        fill_places(11, shape, index, found)
        assert np.array_equal(found, expected)


# ---- what is measured before layers are cut


def measured_copies(n_parts):
    """Return how many times the largest part of a layer a rank has at once that measures layers."""
    net = network()
    profiles(net, 2, n_parts=N_PARTS)  # what is loaded for it stays
    part = max(np.prod(shape) for layer in net.layers for _, shape in layer.tensors) * net.dtype.itemsize / N_PARTS
    most, found = peak(lambda: profiles(net, 2, n_parts=n_parts))
    assert len(found) == len(net.layers) and all(each.forward_seconds > 0 for each in found)
    return most / part


def test_layers_that_will_be_cut_are_measured_by_a_part():
    assert measured_copies(N_PARTS) < 2.6, "its weight and its gradient, of one layer at a time"
    assert measured_copies(1) > 2 * N_PARTS, "what the check would see"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("n_parts", [2, 3, 5])
def test_every_way_of_cutting_is_measured(backend, n_parts):
    """Also where there are more parts than columns."""
    layers = [Embedding([1, 3], 3, 5), Dense(7, "gelu"), LayerNorm(), Dense(6, "relu"), Dropout(0.2), Dense(6), Dense()]
    net = connect(layers, "test", 6, 4, make_loss("cross_entropy"), "float64", backend)
    kinds = {type(layer) for layer in parts_of(net, MuteLine(0, (1,) * n_parts)).layers}
    assert {Ranges, chain.MAKERS["columns"], chain.MAKERS["rows"], chain.MAKERS["part"]} <= kinds
    found = profiles(net, 6, n_parts=n_parts)
    whole = profiles(net, 6)
    assert [each.parameter_nbytes > 0 for each in found] == [each.parameter_nbytes > 0 for each in whole]
    assert sum(each.parameter_nbytes for each in found) < sum(each.parameter_nbytes for each in whole)
