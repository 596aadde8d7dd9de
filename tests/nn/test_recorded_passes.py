"""Hold passes that are launched as graphs to the same passes launched kernel by kernel: the same bits, whatever comes anew, in few launches."""

import types

import numpy as np
import pytest
from mpidml_kernels import recorded
from mpidml_kernels.dense import gpu as dense_on_gpu

from mpidml.nn.resident import Resident
from mpidml.nn.split.line_on_device import LineOnDevice
from tests.nn.test_on_device import NETS, M, fill, pair, rows_of, staged
from tests.shim import cupy_double
from tests.shim.devices import PLACES, placed


@pytest.fixture(params=PLACES)
def how(request):
    with placed(request.param):
        yield request.param


def passes(net, resident, progress, scales=(0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 0.2), w=None):
    """Make passes with other rows, labels and weights each time; return losses and gradients, and how many graphs were launched."""
    kernels, data, found = net.device.kernels, rows_of(net, 1), []
    w = net.init(3) if w is None else w
    if resident:
        there, g = kernels.here(w), kernels.zeros(net.n_params, net.dtype)
    else:
        there, g = w, np.zeros(net.n_params, net.dtype)
    before = kernels.gpu.n_graphs
    for k, scale in enumerate(scales):
        if k % 3 == 2:
            w *= net.dtype.type(0.9)
            if resident:
                kernels.put(there, w)
        step = net.bind(M, there, g)
        assert isinstance(step, Resident) == resident
        fill(step, data, np.arange(3 * k, 3 * k + M), k)
        loss = step.run(scale, (lambda lo, hi: None) if progress else None)
        found += [np.float64(loss).tobytes(), kernels.host(g).tobytes() if resident else g.tobytes()]
    return found, kernels.gpu.n_graphs - before


@pytest.mark.parametrize("progress", [False, True], ids=["silent", "progress"])
@pytest.mark.parametrize("resident", [False, True], ids=["host weights", "resident"])
@pytest.mark.parametrize("name", NETS)
def test_a_graph_makes_the_bits_of_its_kernels(name, resident, progress, how, monkeypatch):
    _, net = pair(name, "float32")
    got, n_graphs = passes(net, resident, progress)
    _, net = pair(name, "float32")
    monkeypatch.setattr(net.device.kernels.gpu, "records", False)
    expected, none = passes(net, resident, progress)
    assert got == expected and none == 0
    assert n_graphs == 5 if resident and not progress else n_graphs > 10  # of seven passes, the first by either scale is launched kernel by kernel


class Baked(recorded.Recorded):
    """Takes the first number's recording for all."""

    def __call__(self, *numbers):
        self.first = getattr(self, "first", numbers)
        super().__call__(*self.first)


@pytest.mark.parametrize("resident", [False, True])
def test_the_check_catches_a_scale_that_stays_in_the_graph(resident, monkeypatch):
    _, net = pair("mlp", "float32")
    with placed("lazy"):
        expected, _ = passes(net, resident, False)
        for module in ("mpidml.nn.on_device.Recorded", "mpidml.nn.resident.Recorded"):
            monkeypatch.setattr(module, Baked)
        got, _ = passes(pair("mlp", "float32")[1], resident, False)
    assert got[: 2 * 3] == expected[: 2 * 3] and got != expected


def test_stages_are_recorded_too_and_have_the_same_sums(how, monkeypatch):
    found = []
    for records in (True, False):
        _, net = pair("mlp", "float64")
        gpu = net.device.kernels.gpu
        monkeypatch.setattr(gpu, "records", records)
        before = gpu.n_graphs
        found.append((*staged(net, (2,), halves=True, n_items=8), gpu.n_graphs - before))
    (losses, total, _, n_graphs), (others, expected, _, none) = found
    assert losses == others and np.array_equal(total, expected) and n_graphs > 30 and not none


@pytest.mark.parametrize("how", ["lazy", "eager"], indirect=True)
def test_in_the_long_run_a_pass_is_given_to_the_device_as_a_whole(how):
    """Rows, their numbers, the key of the pass and labels go there, a graph, the losses come back: whatever the layers."""
    _, net = pair("mlp", "float32")
    kernels = net.device.kernels
    step = net.bind(M, kernels.here(net.init(1)), kernels.zeros(net.n_params, net.dtype))
    stream, given = cupy_double.get_current_stream(), []
    for k in range(4):
        fill(step, rows_of(net, 1), np.arange(M), k)
        before = stream._n_given
        step.run(0.2)
        given.append(stream._n_given - before)
    assert given[1:] == [6, 6, 6] and given[0] > 15


@pytest.mark.parametrize("sums_there", [False, True])
@pytest.mark.parametrize("n", [4, 0])
def test_a_sum_over_ranks_is_not_begun_in_a_recording(n, sums_there):
    """It would be one more than the others', or, of nothing, one that no graph has."""
    kernels = pair("mlp", "float64")[1].device.kernels
    gpu, buffer, sums = kernels.gpu, kernels.zeros(n, "f8"), []
    own = types.SimpleNamespace(rank=0, size=1, edges=None, takes_pointers=False, sum=lambda array: lambda: sums.append(array.size))
    line = LineOnDevice(own, kernels, own if sums_there else None)
    launch = recorded.Recorded(gpu, line.sum(buffer))
    for calls in (1, 2, 3):
        launch()
        assert sums == [n] * calls
    assert "ranks" in launch.refusal and not launch.graphs


def test_a_network_with_a_large_product_says_why_it_is_not_recorded(how, monkeypatch):
    _, net = pair("mlp", "float64")
    monkeypatch.setattr(dense_on_gpu, "SMALL", 5)
    _, n_graphs = passes(net, True, False)
    assert n_graphs == 0
    step = next(iter(net._steps.values()))
    assert "a product is large" in step.whole.refusal
