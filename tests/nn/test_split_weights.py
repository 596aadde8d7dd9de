"""A rank holds its part of the weights alone, drawn as those of the whole network, and finds them in the whole."""

import tracemalloc
from math import prod

import numpy as np
import pytest

from mpidml.core import rng
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.split import draws
from mpidml.nn.split.chain import split
from mpidml.nn.split.dense import Columns, Rows
from mpidml.nn.split.layout import Layout
from tests.nn.lines import BACKENDS, CASES, LINES, MuteLine, connected, whole_of


@pytest.mark.parametrize("weights", LINES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_initial_weights_are_the_bits_of_the_whole_network(name, weights, monkeypatch):
    monkeypatch.setattr(draws, "AT_ONCE", 11)  # so that blocks end everywhere
    for dtype in ("float32", "float64"):
        net, ways = whole_of(name, dtype=dtype)
        whole = net.init(5)
        seen = np.zeros(net.n_params, int)
        for rank in range(len(weights)):
            layout = split(net.layers, net.loss, MuteLine(rank, weights), ways=ways).layout()
            assert layout.init(5, dtype).tobytes() == layout.cut(whole).tobytes()
            np.add.at(seen, layout.elements(), 1)
        shared = np.zeros(net.n_params, bool)
        for key in layout.shared:
            shared[net.params.slices[key]] = True
        assert (seen[~shared] == 1).all() and (seen[shared] == len(weights)).all(), "each element is on one rank, or on all"


def test_a_part_drawn_as_a_layer_of_its_own_is_caught():
    net, _ = whole_of("pair")
    layout = split(net.layers, net.loss, MuteLine(1, (1, 1))).layout()
    part, alone = layout.parts[0], np.zeros((6, 5))
    part.drawn(rng.stream(5, "init", 0), alone.shape)
    own_weight = part.drawn(rng.stream(5, "init", 0), dict(part.tensors)["weight"])
    assert not np.array_equal(own_weight, layout.local.view(layout.init(5, "float64"), "layers.0.weight"))


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(2000, 1000), (4, 500_000)], ids=str)
@pytest.mark.parametrize("maker", [Columns, Rows])
def test_no_rank_holds_the_whole_weight_to_draw_its_own(maker, shape):
    layer = connected([Dense(shape[1], "relu")], shape[0])[0]
    part, nbytes_whole = maker(layer, MuteLine(3, (1, 1, 1, 1))), 8 * prod(shape)
    held = {name: np.empty(each) for name, each in part.tensors}
    assert peak(lambda: part.initial(rng.stream(0, "init", 0), held)) < nbytes_whole / 8
    whole = {name: np.empty(each) for name, each in layer.tensors}
    assert peak(lambda: layer.initial(rng.stream(0, "init", 0), whole)) > nbytes_whole, "what the check would see"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_rank_holds_its_part_of_the_weights(size):
    networks = [
        ([Dense(300, "relu"), Dropout(0.5), Dense(200, "relu"), Dropout(0.5), Dense()], 784, 100, "cross_entropy"),
        ([Dense(300), LayerNorm(), Dense(300), LayerNorm(), Dense()], 200, 1, "squared_error"),
        ([Embedding([0], 64, 1000), Dense(200), Dense()], 100, 50, "cross_entropy"),
    ]
    for layers, n_features, n_outputs, loss in networks:
        net = connect(layers, "test", n_features, n_outputs, make_loss(loss), "float32", BACKENDS[0])
        for rank in range(size):
            parts = split(net.layers, net.loss, MuteLine(rank, (1,) * size))
            assert parts.layout().local.size <= (1 / size + 0.05) * net.n_params
            assert parts.flops(64) <= (1 / size + 0.08) * net.flops(64) * 1.05


def test_what_is_cut_and_put_back_is_the_whole():
    for name in CASES:
        net, ways = whole_of(name)
        whole, back = np.arange(net.n_params, dtype=float), np.full(net.n_params, np.nan)
        for rank in range(3):
            layout = split(net.layers, net.loss, MuteLine(rank, (1, 0, 2)), ways=ways).layout()
            local = layout.cut(whole)
            assert np.array_equal(local, whole[layout.elements()])
            layout.put(local, back)
        assert np.array_equal(whole, back)


def test_ranges_of_a_chain_have_the_names_and_weights_of_the_chain():
    net, _ = whole_of("norm")
    parts = split(net.layers, net.loss, MuteLine(1, (1, 2)))
    whole = parts.layout()
    for cut in range(len(net.layers)):
        place = sum(bool(layer.tensors) for layer in net.layers[:cut])
        ranges = [Layout(net.layers[:cut], parts.layers[:cut]), Layout(net.layers[cut:], parts.layers[cut:], place=place)]
        assert [name for each in ranges for name in each.index] == list(whole.index)
        assert [name for each in ranges for name in each.shared] == whole.shared
        assert np.array_equal(np.concatenate([each.init(5, "float64") for each in ranges]), whole.init(5, "float64"))
