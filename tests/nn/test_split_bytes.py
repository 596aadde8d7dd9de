"""Hold each part of a layer to the bytes that it may send over its line, counted where they leave; and count what sends more, or nothing."""

import tracemalloc

import numpy as np
import pytest

from mpidml.collectives.base import make_collective
from mpidml.core.rounds import moved
from mpidml.nn.layers.base import Pass
from mpidml.nn.layers.dense import Dense
from mpidml.nn.split.dense import Columns, Rows, Slices
from mpidml.nn.split.embedding import Ranges
from mpidml.nn.split.line import gathered, own, summed
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.line import TensorLine
from tests.nn.test_split_parts import BACKENDS, GIVES, PARTS, TAKES, ColumnsWithoutSum, M, arrays_of, layer_of

pytestmark = pytest.mark.shows_from(3)

# The lengths of what m rows sum forward, and backward where the gradient of the input is wanted.
SUMS = {
    "columns": lambda layer, m: ([], [m * layer.n_in]),
    "rows": lambda layer, m: ([m * layer.n_out], []),
    "slices": lambda layer, m: ([m * layer.n_out], [m * layer.n_in]),
    "part": lambda layer, m: ([], []),
    "ranges": lambda layer, m: ([m * len(layer.columns) * layer.units], []),  # without the columns that pass through
}


class Counted:
    """A line of all ranks whose bytes are counted; weights leave the second rank nothing."""

    def __init__(self, comm, algorithm, weights=(1.0, 0.0, 2.5, 0.7, 3.0)):
        self.ranks = CountedComm(comm)
        self.collective = make_collective(algorithm, self.ranks)
        self.line = TensorLine(self.collective, list(weights[: comm.size]))

    def nbytes(self, lengths):
        """Return what this rank sends for sums of so many values of 8 bytes."""
        rounds = (self.collective.rounds(self.ranks.rank, self.ranks.size, n) for n in lengths)
        return sum(8 * moved((*each.reduce, *each.gather)) for each in rounds)

    def free(self):
        self.line.free()
        self.ranks.free()


def sent(counted, way, maker, m=M):
    """Return the bytes that a part of a layer sends forward, backward, and backward where nobody wants the gradient of its input."""
    layer, line = layer_of(way), counted.line
    x, d, parameters = arrays_of(layer, 1, m)
    part = maker(layer, line)
    held = {name: np.ascontiguousarray(value[part.index[name]]) for name, value in parameters.items()}
    x = np.ascontiguousarray(x[:, own(line, layer.n_in) if way in TAKES else slice(None)])
    d = np.ascontiguousarray(d[:, own(line, layer.n_out) if way in GIVES else slice(None)])
    found = []
    for wants_dx in (way != "ranges", False):
        dx = None if not wants_dx else d if part.in_place else np.zeros_like(x)
        gradients = {name: np.zeros_like(value) for name, value in held.items()}
        a = Pass(x, np.zeros_like(d), part.kept(m, x.dtype), held, d, dx, gradients, np.arange(m), np.array([5], np.uint64))
        for thunks in (part.forward(BACKENDS[1], a), [thunk for group in part.backward(BACKENDS[1], a) for thunk in group.thunks]):
            before = counted.ranks.nbytes_sent
            for function, arguments in thunks:
                function(*arguments)
            found.append(counted.ranks.nbytes_sent - before)
    assert found[0] == found[2]
    return found[:2] + found[3:]


def allowed(counted, way, m=M):
    forward, backward = SUMS[way](layer_of(way), m)
    return [counted.nbytes(forward), counted.nbytes(backward), 0]


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", ["ring", "recursive_doubling", "rabenseifner", "tree"])
def test_a_part_sends_the_bytes_of_its_formula(comm, algorithm):
    counted = Counted(comm, algorithm)
    for way, maker in PARTS.items():
        for m in (M, 1):
            assert sent(counted, way, maker, m) == allowed(counted, way, m), way
    counted.free()


class ColumnsOfWholeWeights(Columns):
    """Broken: the weights of all ranks are gathered, to multiply by."""

    def forward(self, backend, a):
        whole = np.zeros((self.whole.n_in, self.whole.n_out))
        return [*gathered(backend, self.line, a.parameters["weight"], whole), *super().forward(backend, a)]


class ColumnsThatSumForNobody(Columns):
    """Broken: the gradient of the input is summed, wanted or not."""

    def backward(self, backend, a, split=False):
        return super().backward(backend, a if a.dx is not None else a._replace(dx=np.zeros_like(a.x)), split)


class RowsThatSumTheirGradient(Rows):
    """Broken: the gradient of the weight is summed, as if all ranks had it whole."""

    def backward(self, backend, a, split=False):
        groups = super().backward(backend, a, split)
        groups[-1].thunks.append(summed(self.line, np.zeros(self.whole.n_in * self.whole.n_out)))
        return groups


class SlicesThatGatherTheirInput(Slices):
    """Broken: x, which every rank has, is put together once more."""

    def forward(self, backend, a):
        x = np.zeros_like(a.x)
        return [*gathered(backend, self.line, a.x[:, self.columns], x), *super().forward(backend, a._replace(x=x))]


class RangesThatSumWhatPasses(Ranges):
    """Broken: columns that pass through, which every rank has, are summed, too."""

    def forward(self, backend, a):
        return [*super().forward(backend, a), summed(self.line, np.zeros((len(a.x), len(self.whole.passed))))]


BROKEN = [
    ("columns", ColumnsOfWholeWeights), ("columns", ColumnsThatSumForNobody), ("columns", ColumnsWithoutSum), ("rows", RowsThatSumTheirGradient),
    ("slices", SlicesThatGatherTheirInput), ("ranges", RangesThatSumWhatPasses),
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize(("way", "maker"), BROKEN)
def test_the_count_catches_a_part_that_sends_more_or_less(comm, way, maker):
    counted = Counted(comm, "ring", (1.0,) * 5)
    found = comm.allgather(sent(counted, way, maker) != allowed(counted, way))
    assert all(found) == (comm.size > 1), "one rank sends nothing"
    counted.free()


# ---- memory


def most_held(comm, maker):
    """Return the most elements that a rank has for its part of a large weight, its gradient and a pass over a few rows."""
    counted = Counted(comm, "ring", (1.0,) * 5)
    layer, line = Dense(400), counted.line
    layer.connect(0, 500, None)
    tracemalloc.start()
    part = maker(layer, line)
    held, gradients = ({name: np.zeros(shape) for name, shape in part.tensors} for _ in range(2))
    x, d = np.ones((2, part.n_in)), np.ones((2, part.n_out))
    a = Pass(x, np.zeros_like(d), part.kept(2, x.dtype), held, d, np.zeros_like(x), gradients)
    for function, arguments in (*part.forward(BACKENDS[0], a), *(thunk for group in part.backward(BACKENDS[0], a) for thunk in group.thunks)):
        function(*arguments)
    most = tracemalloc.get_traced_memory()[1] / 8
    tracemalloc.stop()
    counted.free()
    return most, layer.n_in * layer.n_out


@pytest.mark.mpi
@pytest.mark.parametrize("maker", [Columns, Rows, Slices])
def test_no_rank_ever_has_the_whole_weight(comm, maker):
    most, whole = most_held(comm, maker)
    assert most < 2 * whole / comm.size * 1.1 + 20_000


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("maker", [ColumnsOfWholeWeights, RowsThatSumTheirGradient])
def test_the_check_of_memory_catches_whole_weights(comm, maker):
    most, whole = most_held(comm, maker)
    assert most > 2 * whole / comm.size * 1.1 + 20_000
