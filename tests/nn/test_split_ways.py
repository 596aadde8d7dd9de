"""The way in which a network is cut sums the least, and gives whole rows to what needs them."""

from math import prod

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.nn.layers.base import Layer
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.split import ways as found_ways
from mpidml.nn.split.chain import split
from mpidml.nn.split.line import own
from mpidml.nn.split.part import Part
from mpidml.nn.split.ways import GIVES_PART, choose, first_with_tensors, may_stay_whole, price
from tests.nn.lines import MuteLine, connected, random_chain, ways_of


def test_a_chain_of_dense_layers_is_cut_by_columns_and_rows_in_turn():
    layers = connected([Dense(16, "relu"), Dropout(0.5), Dense(16, "relu"), Dropout(0.5), Dense(16), Dense(16), Dense()], 16, 16)
    ways = choose(layers, make_loss("squared_error"), 0, 2)
    assert ways == ["columns", "part", "rows", "whole", "columns", "rows", "slices"]
    assert choose(layers[:-1], make_loss("squared_error"), 0, 2) == ["columns", "part", "rows", "whole", "columns", "rows"]
    parts = split(layers[4:6], None, MuteLine(0, (1, 1)), inner=True)
    assert parts.ways == ("columns", "rows")
    assert [each.n for each in parts.exchanges(3, "f4")] == [3 * 16, 3 * 16], "a pair has one sum forward and one backward"


def test_a_large_vocabulary_is_not_summed_and_a_small_last_layer_stays_whole():
    large = connected([Dense(64, "relu"), Dense()], 64, 1000)
    assert choose(large, make_loss("cross_entropy"), 0, 2) == ["slices", "columns"]
    assert choose(connected([Dense(8, "relu"), Dense()], 8, 3), make_loss("cross_entropy"), 0, 2) == ["columns", "rows"]
    small = connected([Dense(60), Dense(60), Dense()], 60, 1)
    assert choose(small, make_loss("squared_error"), 0, 2) == ["columns", "rows", "whole"]


def share(rank, n_parts):
    """Return what a rank has of what can be cut of a large table and three dense layers behind it, times the number of ranks."""
    layers = connected([Embedding([0], 64, 20_000), Dense(160, "relu"), Dense(64, "relu"), Dense()], 8, 10)
    found = split(layers, make_loss("cross_entropy"), MuteLine(rank, (1,) * n_parts))
    own = whole = 0
    for layer, part in zip(layers, found.layers, strict=True):
        for (name, shape), (_, of_part) in zip(layer.tensors, part.tensors, strict=True):
            behind_a_sum = isinstance(part, Part) and name in part.shared  # a bias that is added once the sum is there
            own, whole = own + prod(of_part) * (not behind_a_sum), whole + prod(shape) * (not behind_a_sum)
    return own * n_parts / whole


def fullest(n_parts):
    return max(share(rank, n_parts) for rank in range(n_parts))


@pytest.mark.parametrize("n_parts", [2, 8, 16, 64])
def test_of_what_can_be_cut_a_rank_has_an_even_part_over_however_many_ranks(n_parts):
    assert fullest(n_parts) <= 1.05


def test_the_check_catches_what_is_small_beside_the_whole_and_not_beside_a_part(monkeypatch):
    small = found_ways.may_stay_whole
    monkeypatch.setattr(found_ways, "may_stay_whole", lambda layers, n_parts: small(layers, 2))
    assert fullest(2) <= 1.05 < fullest(16) < fullest(64)


def test_a_chain_of_any_length_is_cut():
    layers = connected([Dense(4) for _ in range(3000)], 4, 4)
    assert choose(layers, make_loss("squared_error"), 0, 2) == ["columns", "rows"] * 1500


@pytest.mark.parametrize("seed", range(30))
def test_no_other_way_sums_less(seed):
    layers, loss = random_chain(np.random.default_rng(seed))
    connected(layers, 5, 4)
    first = first_with_tensors(layers)
    small = may_stay_whole(layers, 2)
    fitting = [ways for ways in ways_of(layers, loss) if all(small[i] or way != "whole" for i, way in enumerate(ways))]
    best = choose(layers, loss, first, 2)
    assert tuple(best) in fitting
    assert price(best, layers, loss, first) == min(price(ways, layers, loss, first) for ways in fitting)


@pytest.mark.parametrize("seed", range(30))
def test_the_price_of_a_way_is_what_its_parts_sum(seed):
    layers, loss = random_chain(np.random.default_rng(seed))
    connected(layers, 5, 4)
    first = first_with_tensors(layers)
    for ways in ways_of(layers, loss):
        listed = split(layers, loss, MuteLine(0, (1, 1)), ways=ways).exchanges(1, "float64")
        assert price(ways, layers, loss, first) == (sum(each.n for each in listed), len(listed))


class Reversing(Layer):
    """A plug-in, of which nothing is known but that it is a layer."""

    def flops(self, m, wants_dx):
        return 0

    def forward(self, backend, a):
        return [(np.copyto, (a.out, a.x[:, ::-1]))]


def test_what_needs_whole_rows_gets_them():
    for layer in (LayerNorm(), Reversing()):
        layers = connected([Dense(9, "relu"), layer, Dense(9), Dropout(0.1), layer, Dense(9), Dense()], 9, 9)
        ways = choose(layers, make_loss("cross_entropy"), 0, 2)
        assert ways[1] == ways[4] == "whole" and ways[0] not in GIVES_PART and ways[3] not in GIVES_PART


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        (["columns", "whole", "rows"], r"layer 2 \(layer_norm\): cannot be cut by 'whole' behind a layer .*; cut the layer before it by rows"),
        (["columns"], "1 ways are given for 3 layers"),
        (["slices", "whole", "columns"], "the last layer leaves each rank its own columns, the loss squared_error needs whole outputs"),
        (["slices", "whole", "colums"], r"layer 3 \(dense\): there is no way 'colums'; .* did you mean 'columns'"),
        (["rows", "whole", "slices"], r"layer 1 \(dense\): cannot be cut by 'rows' behind whole rows; choose one of: columns, slices, whole"),
    ],
)
def test_ways_that_do_not_fit_are_refused(ways, message):
    layers = connected([Dense(4), LayerNorm(), Dense()], 5, 3)
    with pytest.raises(UserError, match=message):
        split(layers, make_loss("squared_error"), MuteLine(0, (1, 1)), ways=ways)


@pytest.mark.parametrize("edges", [[0, 5], [0, 3, 2, 5], [0, 2, 4], [1, 2, 5]])
def test_edges_that_do_not_cut_a_width_are_refused(edges):
    line = MuteLine(0, (1, 1))
    line.edges = lambda n: edges
    with pytest.raises(UserError, match="do not cut a width of 5 over 2 rank"):
        own(line, 5)
