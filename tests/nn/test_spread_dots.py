"""Hold layers whose rows are spread over ranks to the dot test: backward is the transpose of forward, <J x, y> = <x, J^T y> = <W, dW>."""

import numpy as np
import pytest

from mpidml.nn.layers.base import Pass
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.split import spread
from mpidml.nn.split.spread_dense import SpreadDense
from mpidml.nn.split.spread_embedding import SpreadEmbedding
from tests.nn.lines import BACKENDS, on_ranks
from tests.nn.test_mix import CarryingLine, own_columns_alone, without_sum


def in_dots(layer, counts, wants_dx=True):
    """Return <J x, y>, <x, J^T y> and <W, dW> of a linear layer that is cut, whose rows are spread over ranks."""
    random, total, edges = np.random.default_rng(1), sum(counts), np.cumsum([0, *counts])
    x, d = random.standard_normal((total, layer.n_in)), random.standard_normal((total, layer.n_out))
    x[:, [1, 3]] = random.integers(0, 5, (total, 2)) if not wants_dx else x[:, [1, 3]]
    parameters = {name: random.standard_normal(shape) * (name != "bias") for name, shape in layer.tensors}

    def body(given):
        line = CarryingLine(given.rank, (1,) * len(counts), given.meeting)
        ranks = spread.Spread(line)
        ranks.counts = tuple(counts)
        part = (SpreadDense if wants_dx else SpreadEmbedding)(layer, ranks)
        rows, m = slice(edges[line.rank], edges[line.rank + 1]), counts[line.rank]
        held = {name: np.ascontiguousarray(value[part.index[name]]) for name, value in parameters.items()}
        found = {name: np.zeros_like(value) for name, value in held.items()}
        out, own_d, dx = np.zeros((m, layer.n_out)), d[rows].copy(), np.zeros((m, layer.n_in)) if wants_dx else None
        a = Pass(x[rows].copy(), out, part.kept(max(counts), x.dtype), held, own_d, dx, found)
        a = a._replace(kept=part.lent(a.kept, m))
        for function, arguments in (*part.forward(BACKENDS[1], a), *(thunk for group in part.backward(BACKENDS[1], a) for thunk in group.thunks)):
            function(*arguments)
        n = 0 if wants_dx else len(layer.passed)
        weights = next(name for name in held if name != "bias")
        return np.vdot(out[:, n:], d[rows][:, n:]), np.vdot(x[rows], dx) if wants_dx else 0.0, np.vdot(held[weights], found[weights])

    sums = np.sum(on_ranks((1,) * len(counts), body), axis=0)
    return sums if wants_dx else sums[[0, 2]]


SPREAD = {"by columns": lambda: Dense(9, "linear"), "by rows": lambda: Dense(3, "linear"), "table": lambda: Embedding([1, 3], 4, 5)}


def spread_layer(name):
    layer = SPREAD[name]()
    layer.connect(0, 6, None)
    return layer


@pytest.mark.parametrize("counts", [(4,), (3, 2), (4, 3, 4), (1, 0, 5), (2, 1, 3, 0, 1)], ids=str)
@pytest.mark.parametrize("name", SPREAD)
def test_backward_of_a_spread_layer_is_the_transpose_of_its_forward(name, counts):
    values = in_dots(spread_layer(name), counts, name != "table")
    assert values == pytest.approx([values[0]] * len(values), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "of", "broken"),
    [
        ("by columns", "Whole", "give", without_sum), ("by rows", "Cut", "give", own_columns_alone), ("by rows", "Whole", "give", without_sum),
        ("table", "Whole", "give", without_sum),
    ],
)  # fmt: skip
def test_the_dot_test_catches_one_way_that_is_not_the_others_way_back(monkeypatch, name, kind, of, broken):
    monkeypatch.setattr(getattr(spread, kind), of, broken)
    values = in_dots(spread_layer(name), (4, 3, 4), name != "table")
    assert values != pytest.approx([values[0]] * len(values), rel=1e-3)
