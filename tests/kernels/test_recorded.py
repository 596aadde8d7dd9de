"""Hold what is launched as a graph to what is launched one by one: the same bits, few launches, nothing that the recording keeps to itself."""

import gc
import weakref

import mpidml_kernels
import numpy as np
import pytest
from mpidml_kernels.dense import gpu as dense_on_gpu
from mpidml_kernels.launch import Gpu
from mpidml_kernels.recorded import MOST, Recorded

from tests.shim import cupy_double


class Chain:
    """Launches whose result is known: out = 2 scale (x w), in small steps, of which one takes scratch memory."""

    def __init__(self, cupy):
        self.kernels = mpidml_kernels.cuda(cupy)
        self.x, self.w, self.out = (cupy.zeros((3, 3), np.float64) for _ in range(3))
        self.w.set(np.eye(3))
        self.n_calls = 0

    def go(self, scale=1.0):
        self.n_calls += 1
        self.kernels.matmul(self.x, self.w, self.out)
        self.kernels.add(self.out.reshape(-1), self.twice())
        self.kernels.scale(self.out.reshape(-1), scale)

    def twice(self):
        again = self.kernels.gpu.scratch("again", 9, "f8")[:9]
        self.kernels.copy(again, self.out.reshape(-1))
        return again

    def value(self, x, launch, *numbers):
        self.x.set(np.full((3, 3), float(x)))
        launch(*numbers)
        return self.out.get()[0, 0]


def test_the_first_time_is_launched_one_by_one_the_second_is_recorded_the_others_are_graphs(cupys):
    chain = Chain(cupys)
    launch = Recorded(chain.kernels.gpu, chain.go)
    assert [chain.value(x, launch) for x in range(5)] == [0, 2, 4, 6, 8]
    assert (chain.n_calls, chain.kernels.gpu.n_graphs, launch.refusal) == (2, 4, "")


def test_each_number_has_a_recording_of_its_own_and_after_some_they_are_launched_one_by_one(cupys):
    chain = Chain(cupys)
    launch = Recorded(chain.kernels.gpu, chain.go)
    for round in range(4):
        for scale in range(MOST + 3):
            assert chain.value(1 + round, launch, scale) == 2 * (1 + round) * scale
    assert len(launch.graphs) == MOST and chain.kernels.gpu.n_graphs == 3 * MOST


class Baked(Recorded):
    """Takes the first number's recording for all."""

    def __call__(self, *numbers):
        super().__call__()


def test_the_check_catches_a_number_that_stays_in_the_recording(cupys):
    chain = Chain(cupys)
    launch = Baked(chain.kernels.gpu, chain.go)
    assert [chain.value(1, launch, scale) for scale in (1, 1, 3)] == [2, 2, 2] != [2, 2, 6]


def test_a_graph_goes_in_the_order_of_the_stream_it_is_launched_in(cupys):
    chain = Chain(cupys)
    launch = Recorded(chain.kernels.gpu, chain.go)
    for _ in range(2):
        launch()
    chain.x.set(np.full((3, 3), 5.0), cupys.cuda.get_current_stream())
    launch()
    chain.x.set(np.full((3, 3), 7.0), cupys.cuda.get_current_stream())
    assert chain.out.get()[0, 0] == 10


@pytest.mark.parametrize("holds", [True, False])
def test_a_recording_holds_the_scratch_memory_that_it_writes(holds):
    """And the check catches one that does not."""
    chain = Chain(cupy_double)
    gpu = chain.kernels.gpu
    launch = Recorded(gpu, chain.go)
    for _ in range(2):
        launch()
    if not holds:
        launch.graphs[()][1].clear()
    old = weakref.ref(gpu.scratches["again", "f8"])
    works = launch.graphs[()][0]._works
    gpu.scratch("again", 1000, "f8")
    works.clear()  # on a GPU a graph knows addresses, and holds no array
    gc.collect()
    assert (old() is not None) == holds


def waits(chain):
    chain.out.get()


def takes_memory(chain):
    chain.kernels.zeros(3, "f8")


def brings(chain):
    chain.kernels.put(chain.w, np.eye(3))


def calls_cublas(chain):
    chain.kernels.gpu.cupy.matmul(chain.x, chain.w, out=chain.out)


REFUSED = [(waits, "D2H"), (takes_memory, "memory"), (brings, "H2D"), (calls_cublas, "cuBLAS")]


@pytest.mark.parametrize(("what", "says"), REFUSED, ids=lambda of: getattr(of, "__name__", None))
def test_what_cannot_be_recorded_is_launched_one_by_one_and_says_why(what, says):
    """Where CuPy refuses, in its words. Memory it would give: to be had by others when the recording runs."""
    chain = Chain(cupy_double)
    launch = Recorded(chain.kernels.gpu, lambda: (chain.go(), what(chain)))
    assert [chain.value(x, launch) for x in (1, 2, 3)] == ([2, 4, 6] if what is not calls_cublas else [1, 2, 3])
    assert says in launch.refusal and not launch.graphs and not chain.kernels.gpu.n_graphs
    assert not cupy_double._recording, "the stream records no more"


@pytest.mark.parametrize("message", ["cudaErrorStreamCaptureUnsupported: another records", ""])
def test_where_a_recording_cannot_begin_or_be_ended_it_is_launched_one_by_one(message, monkeypatch):
    def fails(self, mode=None):
        raise cupy_double.CUDARuntimeError(message)

    chain = Chain(cupy_double)
    launch = Recorded(chain.kernels.gpu, chain.go)
    monkeypatch.setattr(cupy_double.Stream, "begin_capture", fails)
    assert [chain.value(x, launch) for x in (1, 2, 3)] == [2, 4, 6]
    assert message in launch.refusal != "" and not launch.graphs


def test_a_large_product_is_not_tried(cupys, monkeypatch):
    chain = Chain(cupys)
    monkeypatch.setattr(dense_on_gpu, "SMALL", 26)
    launch = Recorded(chain.kernels.gpu, chain.go)
    assert [chain.value(x, launch) for x in range(4)] == [0, 2, 4, 6]
    assert "a product is large" in launch.refusal and chain.n_calls == 5


def test_an_error_of_ones_own_is_not_swallowed(cupys):
    calls = []

    def go():
        calls.append(len(calls))
        if len(calls) > 1:
            raise KeyError("mine")

    launch = Recorded(Gpu(cupys), go)
    launch()
    with pytest.raises(KeyError, match="mine"):
        launch()
    chain = Chain(cupys)
    again = Recorded(chain.kernels.gpu, chain.go)
    assert [chain.value(x, again) for x in range(3)] == [0, 2, 4], "and the next is recorded"
