"""Hold each part of a layer to the whole one: outputs and gradients do not depend on how it is cut over ranks, and backward is the transpose of forward."""


import numpy as np
import pytest

from mpidml.core.csr import Csr
from mpidml.core.errors import UserError
from mpidml.nn.layers.base import Pass
from mpidml.nn.layers.dense import ACTIVATIONS, Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.split.dense import Columns, Rows, Slices
from mpidml.nn.split.dropout import DropoutPart
from mpidml.nn.split.embedding import Ranges
from mpidml.nn.split.line import own
from mpidml.nn.split.ways import GIVES_PART
from tests.nn.lines import BACKENDS, LINES, MuteLine, connected, on_ranks

pytestmark = pytest.mark.shows_from(3)

lines = pytest.mark.parametrize("weights", LINES, ids=str)
M = 6
AT_ONE = ("gelu", "softplus", "relu")
"""Activations for the tests on ranks: undone from the input, from the output, with a kink."""


def near(got, expected):
    """Tell whether two arrays of float64 are alike within 1e-12 of the largest value."""
    return got.shape == expected.shape and np.allclose(got, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max(initial=1.0))


PARTS = {"columns": Columns, "rows": Rows, "slices": Slices, "part": DropoutPart, "ranges": Ranges}
TAKES, GIVES = {"rows", "part"}, GIVES_PART


def layer_of(way, activation="linear"):
    """Return a connected layer that can be cut so, and the width before it."""
    layer = Dropout(0.4) if way == "part" else Embedding([1, 3], 4, 5) if way == "ranges" else Dense(7, activation)
    layer.connect(0 if way == "ranges" else 3, 8, None)
    return layer


def arrays_of(layer, seed, m=M):
    """Return x, d, and parameters, the same on all ranks."""
    random = np.random.default_rng(seed)
    x, d = random.standard_normal((m, layer.n_in)), random.standard_normal((m, layer.n_out))
    x[:, [1, 3]] = random.integers(0, 5, (m, 2)) if isinstance(layer, Embedding) else x[:, [1, 3]]
    return x, d, {name: random.standard_normal(shape) for name, shape in layer.tensors}


def passed(layer, backend, x, d, parameters, wants_dx=True):
    """Run a layer forward and backward; return out, dx, gradients and the ranges that it reports."""
    layer_d, m = d.copy(), len(x)
    out, dx = np.full((m, layer.n_out), np.nan), None if not wants_dx else layer_d if layer.in_place else np.full_like(x, np.nan)
    gradients = {name: np.full(shape, np.nan) for name, shape in layer.tensors}
    a = Pass(x.copy(), out, layer.kept(m, x.dtype), parameters, layer_d, dx, gradients, np.arange(m) * 7, np.array([5], np.uint64))
    forward, groups = layer.forward(backend, a), layer.backward(backend, a)
    for function, arguments in (*forward, *(thunk for group in groups for thunk in group.thunks)):
        function(*arguments)
    return out, dx, gradients, [(group.lo, group.hi) for group in groups if group.hi > group.lo]


def faults_of_part(line, way, layer, backend, maker, seed=0):
    """List what a part does otherwise than the whole layer, on this rank; every rank calls it alike."""
    x, d, parameters = arrays_of(layer, seed)
    wants_dx = way != "ranges"
    out, dx, gradients, _ = passed(layer, backend, x, d, parameters, wants_dx)
    part = maker(layer, line)
    takes = own(line, layer.n_in) if way in TAKES else slice(None)
    gives = own(line, layer.n_out) if way in GIVES else slice(None)
    held = {name: np.ascontiguousarray(value[part.index[name]]) for name, value in parameters.items()}
    got_out, got_dx, got, reported = passed(part, backend, np.ascontiguousarray(x[:, takes]), np.ascontiguousarray(d[:, gives]), held, wants_dx)
    found = [] if near(got_out, out[:, gives]) else ["output"]
    found += [] if not wants_dx or near(got_dx, dx[:, takes]) else ["gradient of the input"]
    found += [f"gradient of {name}" for name, value in gradients.items() if not near(got[name], value[part.index[name]])]
    found += [] if reported == part.parts(8, False) else ["ranges"]
    found += [] if sorted(i for lo, hi in reported for i in range(lo, hi)) == list(range(sum(v.size for v in held.values()))) else ["tiles"]
    return found


def late(layer):
    """Return the tensors whose gradients are not there once all groups are done but those that may come last, and those of which the layer says so."""
    random = np.random.default_rng(0)
    x, layer_d, out = random.integers(0, 5, (M, layer.n_in)).astype(float), random.standard_normal((M, layer.n_out)), np.zeros((M, layer.n_out))
    parameters = {name: random.standard_normal(shape) for name, shape in layer.tensors}
    gradients = {name: np.full(shape, np.nan) for name, shape in layer.tensors}
    dx = layer_d if layer.in_place else None if isinstance(layer, Ranges) else np.zeros_like(x)
    a = Pass(x, out, layer.kept(M, x.dtype), parameters, layer_d, dx, gradients, np.arange(M), np.zeros(1, np.uint64))
    groups = layer.backward(BACKENDS[1], a)
    for function, arguments in (*layer.forward(BACKENDS[1], a), *(thunk for group in groups if not group.apart for thunk in group.thunks)):
        function(*arguments)
    return {name for name, value in gradients.items() if np.isnan(value).any()}, {name for name in layer.apart if gradients.get(name, x[:0]).size}


def over_line(line, value, part):
    """Return a number that each rank has a part of, or all of it."""
    total = np.array([value])
    if part:
        line.sum(total)()
    return float(total[0])


def dots(line, way, layer, backend, maker):
    """Return <J x, y>, <x, J^T y> and, where there are weights, <W, dW>, over all ranks; the layer is linear and its bias 0."""
    x, d, parameters = arrays_of(layer, 4)
    if "bias" in parameters:
        parameters["bias"][:] = 0
    part = maker(layer, line)
    takes = own(line, layer.n_in) if way in TAKES else slice(None)
    gives = own(line, layer.n_out) if way in GIVES else slice(None)
    held = {name: np.ascontiguousarray(value[part.index[name]]) for name, value in parameters.items()}
    x, d = np.ascontiguousarray(x[:, takes]), np.ascontiguousarray(d[:, gives])
    out, dx, gradients, _ = passed(part, backend, x, d, held, way != "ranges")
    n = 0 if way != "ranges" else len(layer.passed)
    found = [over_line(line, np.vdot(out[:, n:], d[:, n:]), way in GIVES)]
    found += [] if dx is None else [over_line(line, np.vdot(x, dx), way in TAKES)]
    weights = [name for name in gradients if name != "bias"]
    return found + [over_line(line, np.vdot(held[name], gradients[name]), True) for name in weights]


@lines
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("way", PARTS)
def test_a_part_does_what_the_whole_layer_does_in_its_columns_or_rows(way, backend, weights):
    for seed, activation in enumerate(ACTIVATIONS if way in ("columns", "rows", "slices") else ("linear",)):
        layer = layer_of(way, activation)
        found = on_ranks(weights, lambda line, layer=layer, seed=seed: faults_of_part(line, way, layer, backend, PARTS[way], seed))
        assert found == [[]] * len(weights), activation


@lines
@pytest.mark.parametrize("way", PARTS)
def test_backward_of_a_part_is_the_transpose_of_its_forward(way, weights):
    for values in on_ranks(weights, lambda line: dots(line, way, layer_of(way), BACKENDS[1], PARTS[way])):
        assert values == pytest.approx([values[0]] * len(values), rel=1e-12)


@lines
@pytest.mark.parametrize("way", PARTS)
def test_a_part_says_which_gradients_may_come_last(way, weights):
    """A half of a backward that is done later makes these, and nobody may add them up before."""
    for made, said in on_ranks(weights, lambda line: late(PARTS[way](layer_of(way), line))):
        assert made == said


def test_the_check_catches_gradients_that_come_last_unsaid(monkeypatch):
    monkeypatch.setattr(Slices, "apart", ())
    made, said = on_ranks((1.0,), lambda line: late(Slices(layer_of("slices"), line)))[0]
    assert made == {"weight"} and not said


@pytest.mark.mpi
def test_parts_on_ranks_do_what_whole_layers_do(line):
    for way, maker in PARTS.items():
        for seed, activation in enumerate(AT_ONE if way in ("columns", "rows", "slices") else ("linear",)):
            layer = layer_of(way, activation)
            assert faults_of_part(line, way, layer, BACKENDS[1], maker, seed) == [], (way, activation)
        values = dots(line, way, layer_of(way), BACKENDS[1], maker)
        assert values == pytest.approx([values[0]] * len(values), rel=1e-12), way


class ColumnsWithoutSum(Columns):
    """Broken: every rank keeps its own term of dx."""

    def backward(self, backend, a, split=False):
        return Dense.backward(self, backend, a, split)


class RowsWithBiasEverywhere(Rows):
    """Broken: every rank adds the bias before the sum."""

    def forward(self, backend, a):
        product, total, activate = super().forward(backend, a)
        return [product, activate, total]


class SlicesWithoutZeros(Slices):
    """Broken: dx is summed with what lay there before."""

    def backward(self, backend, a, split=False):
        groups = super().backward(backend, a, split)
        a.dx.fill(0.5)
        del groups[-1].thunks[0]
        return groups


class DropoutByOwnColumn(DropoutPart):
    """Broken: noise by the rank's own column."""

    def __init__(self, whole, line):
        super().__init__(whole, line)
        self.first = 0


class RangesThatGiveTheirOwn(Ranges):
    """Broken: the output has what this rank alone has found."""

    def forward(self, backend, a):
        return [thunk for thunk in super().forward(backend, a) if thunk[1]]  # a sum is a call without arguments


BROKEN = {
    "columns": ColumnsWithoutSum, "rows": RowsWithBiasEverywhere, "slices": SlicesWithoutZeros, "part": DropoutByOwnColumn,
    "ranges": RangesThatGiveTheirOwn,
}  # fmt: skip


@pytest.mark.parametrize("way", BROKEN)
def test_the_comparison_catches_each_broken_part(way):
    layer = layer_of(way, "softplus")
    assert any(on_ranks((1, 2, 1), lambda line: faults_of_part(line, way, layer, BACKENDS[1], BROKEN[way])))


class RowsWithoutSum(Rows):
    """Broken: every rank keeps its own term of the product."""

    def forward(self, backend, a):
        return Dense.forward(self, backend, a)


class DropoutOneWay(DropoutPart):
    """Broken: the gradient of what was dropped goes back."""

    def backward(self, backend, a, split=False):
        return []


class RangesByOwnRow(Ranges):
    """Broken: the gradient of a row of the table goes to where it would be if the part were the whole."""

    def backward(self, backend, a, split=False):
        first, self.first = self.first, 0
        groups = super().backward(backend, a, split)
        self.first = first
        return groups


NO_TRANSPOSES = {"columns": ColumnsWithoutSum, "rows": RowsWithoutSum, "slices": SlicesWithoutZeros, "part": DropoutOneWay, "ranges": RangesByOwnRow}


@pytest.mark.parametrize("way", PARTS)
def test_the_dot_test_catches_a_backward_that_is_no_transpose(way):
    values = on_ranks((1, 2, 1), lambda line: dots(line, way, layer_of(way), BACKENDS[1], NO_TRANSPOSES[way]))[0]
    assert values != pytest.approx([values[0]] * len(values), rel=1e-3)


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("way", PARTS)
def test_on_ranks_it_does_so_too(way, line):
    """The second of them has nothing."""
    values = dots(line, way, layer_of(way), BACKENDS[1], NO_TRANSPOSES[way])
    assert values != pytest.approx([values[0]] * len(values), rel=1e-3)


def test_columns_take_sparse_rows_and_slices_say_that_they_do_not():
    layer = connected([Dense(7, "softplus")], 8)[0]
    random = np.random.default_rng(0)
    x = np.where(random.random((M, 8)) < 0.3, random.standard_normal((M, 8)), 0)
    rows = Csr(np.concatenate([[0], np.cumsum((x != 0).sum(axis=1))]), np.nonzero(x)[1].astype(np.int32), x[x != 0], 8)
    parameters = {name: random.standard_normal(shape) for name, shape in layer.tensors}
    expected = passed(layer, BACKENDS[1], x, np.zeros((M, 7)), parameters)[0]
    for rank in range(3):
        line = MuteLine(rank, (1, 0, 2))
        part, columns = Columns(layer, line), own(line, 7)
        held, out = {name: np.ascontiguousarray(parameters[name][at]) for name, at in part.index.items()}, np.empty((M, columns.stop - columns.start))
        for function, arguments in part.forward(BACKENDS[1], Pass(rows, out, part.kept(M, "f8"), held)):
            function(*arguments)
        assert near(out, expected[:, columns])
        slices = Slices(layer, line)
        with pytest.raises(UserError, match="takes sparse rows and gives whole ones cannot be cut"):
            slices.forward(BACKENDS[1], Pass(rows, np.empty((M, 7)), slices.kept(M, "f8"), parameters))


@pytest.mark.parametrize("maker", [Columns, Rows, Slices])
def test_a_large_weight_gradient_may_be_finished_in_two_parts(maker):
    layer = connected([Dense(700, "tanh")], 720)[0]
    line = MuteLine(0, (1, 1))
    part, random = maker(layer, line), np.random.default_rng(0)
    held = {name: random.standard_normal(shape) for name, shape in part.tensors}
    x, d = random.standard_normal((3, part.n_in)), random.standard_normal((3, part.n_out))
    found = []
    for two in (False, True):
        out, dx, delta, gradients = np.zeros_like(d), np.zeros_like(x), d.copy(), {name: np.full_like(value, np.nan) for name, value in held.items()}
        a = Pass(x, out, part.kept(3, "f8"), held, delta, dx, gradients)
        groups = part.backward(BACKENDS[1], a, two)
        for function, arguments in (*part.forward(BACKENDS[1], a), *(thunk for group in groups for thunk in group.thunks)):
            function(*arguments)
        reported = [(group.lo, group.hi) for group in groups if group.hi]
        assert reported == part.parts(8, two) and len(reported) == 1 + two
        found.append((dx.tobytes(), *(value.tobytes() for value in gradients.values())))
    assert found[0] == found[1]
