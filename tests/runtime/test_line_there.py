"""Rows that ranks exchange between devices have the bits of the host's, cross the bus as the formula says or not at all, and need each of their waits."""

import mpidml_kernels
import numpy as np
import pytest

from mpidml.collectives.base import make_collective
from mpidml.nn.split import line_on_device
from mpidml.nn.split.spread import Cut, Spread, Whole
from mpidml.runtime import line as lines
from mpidml.runtime.device_sum import make_sums
from tests.changed import changed
from tests.shim.devices import PLACES, device, over_the_double, placed

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
COUNTS = [3, 0, 2, 5, 1]
"""Rows of each rank."""
N, N_STEPS = 7, 3
HOST = mpidml_kernels.backend("numpy")
WAYS = [(side, way) for side in (Whole, Cut) for way in ("bring", "give")]


@pytest.fixture
def ranks(comm):
    from mpidml.runtime.comm import CountedComm

    own = CountedComm(comm)
    yield own
    own.free()


class Ends:
    """A line of the host, and over it one of the device."""

    def __init__(self, ranks, takes_pointers, of=line_on_device, lines=lines):
        self.collective = make_collective("ring", ranks)
        self.line, kernels = lines.TensorLine(self.collective), device().kernels
        self.there = lines.DeviceLine(self.line, make_sums(self.collective, kernels, 1000, takes_pointers, chooses=False), takes_pointers)
        self.on_device = of.LineOnDevice(self.line, kernels, self.there)

    def free(self):
        for each in (self.there, self.line, self.collective):
            each.free()


def exchanged(ranks, line, backend, side, way, moved=None):
    """Return what some exchanges leave, the bytes that this rank sends in them, and what they bring down and up, as `moved` counts it."""
    spread = Spread(line)
    spread.counts = tuple(COUNTS[: ranks.size])
    made, m = side(spread, N), spread.counts[ranks.rank]
    flat, rows = backend.zeros(made.room(max(COUNTS)), np.float64), backend.zeros((m, N), np.float64)
    thunks = getattr(made, way)(backend, *((rows, flat) if way == "bring" else (flat, rows)))
    random, found = np.random.default_rng([5, ranks.rank]), []
    sent, over, moved = ranks.nbytes_sent, np.zeros(2, int), moved or {"get": 0, "set": 0}
    for _ in range(N_STEPS):
        for array in (flat, rows):
            backend.put(array, random.standard_normal(array.shape))
        over -= list(moved.values())
        for function, arguments in thunks:
            function(*arguments)
        over += list(moved.values())
        found.append(backend.host(made.all(flat) if way == "bring" else rows).copy())
    return found, ranks.nbytes_sent - sent, list(over)


def values(ranks, side, way, own):
    """Return the law: values that a rank sends, brings down and brings up."""
    size, m, every = ranks.size, COUNTS[ranks.rank], sum(COUNTS[: ranks.size])
    others = every - m
    if side is Whole:
        return ((size - 1) * m * N, m * N * (size > 1), others * N) if way == "bring" else (others * N, others * N, (size - 1) * m * N)
    return (m * (N - own), m * (N - own), others * own) if way == "bring" else (others * own, others * own, m * (N - own))


@pytest.mark.parametrize("takes_pointers", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("side", "way"), WAYS)
def test_what_is_exchanged_is_that_of_the_host_and_what_crosses_is_the_formula_s(ranks, side, way, place, takes_pointers, monkeypatch):
    if place == "gpu" and takes_pointers:
        return  # an MPI that takes none of a GPU would die of one
    with placed(place), monkeypatch.context() as patched:
        ends = Ends(ranks, takes_pointers)
        expected, n_expected, _ = exchanged(ranks, ends.line, HOST, side, way)
        found, n_sent, over = exchanged(ranks, ends.on_device, device().kernels, side, way, over_the_double(patched))
        ends.free()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    lo, hi = ends.line.edges(N)[ranks.rank :][:2]
    sends, down, up = (8 * n * N_STEPS for n in values(ranks, side, way, hi - lo))
    assert n_sent == n_expected == sends
    assert place == "gpu" or over == ([0, 0] if takes_pointers else [down, up])


MUTANTS = {
    "the wait for what leaves": ("            stream.synchronize()\n", "", WAYS),
    "the way up": ("                    target.set(given, stream)\n", "                    pass\n", [(Whole, "bring"), (Cut, "bring"), (Cut, "give")]),
    "the sum": ("                    self.kernels.add(target, term[: given.size])\n", "", [(Whole, "give")]),
    "its term": ("                    term[: given.size].set(given, stream)\n", "", [(Whole, "give")]),
}


@pytest.mark.parametrize("which", MUTANTS)
def test_what_is_left_out_is_noticed(ranks, which):
    if ranks.size == 1:
        return  # nothing is exchanged
    old, new, ways = MUTANTS[which]
    with placed("lazy"):
        ends = Ends(ranks, False, changed(line_on_device, [(old, new)]))
        for side, way in ways:
            expected, *_ = exchanged(ranks, ends.line, HOST, side, way)
            found, *_ = exchanged(ranks, ends.on_device, device().kernels, side, way)
            same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
            assert not all(ranks.allgather(same)), (side, way)
        ends.free()


def largest(ranks, line, backend):
    """Return the largest of values of which some are no numbers."""
    buffer, found = backend.zeros(20, np.float32), []
    call, random = line.most(buffer), np.random.default_rng([6, ranks.rank])
    for step in range(N_STEPS):
        given = random.standard_normal(20).astype(np.float32)
        given[step] = np.nan if ranks.rank == ranks.size - 1 else given[step]
        backend.put(buffer, given)
        call()
        found.append(backend.host(buffer).copy())
    return found


@pytest.mark.parametrize("takes_pointers", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_largest_values_are_the_host_s(ranks, place, takes_pointers, monkeypatch):
    if place == "gpu" and takes_pointers:
        return  # an MPI that takes none of a GPU would die of one
    with placed(place), np.errstate(invalid="ignore"):
        ends = Ends(ranks, takes_pointers)
        np.testing.assert_array_equal(largest(ranks, ends.on_device, device().kernels), expected := largest(ranks, ends.line, HOST))
        ends.free()
        broken = changed(lines, [("return DirectSum(self.direct, buffer, rounds, largest)", "return DirectSum(self.direct, buffer, rounds)")])
        if takes_pointers and ranks.size > 1:
            ends = Ends(ranks, True, lines=broken)
            assert not np.array_equal(largest(ranks, ends.on_device, device().kernels), expected, equal_nan=True)
            ends.free()
