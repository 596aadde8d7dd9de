"""Hold strategies whose passes run on a device to the same on the CPU: the same weights within rounding, and the same traffic; CuPy is a double of it."""

import inspect
import textwrap

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.nn.split import line_on_device
from mpidml.nn.split.line_on_device import LineOnDevice
from mpidml.runtime import net as nets
from mpidml.strategies import base
from tests.nn.test_on_device import TOLERANCE
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, placed
from tests.strategies import test_sparse as sparse
from tests.strategies.test_identities import NET
from tests.training import trained

JOB = Job(data="digits", hidden=(24, 16), steps=6, batch=50, dtype="float64", backend="numpy", seed=3, report=False, wait_limit=60.0)
WAYS = {
    "parameter_server bsp": {"strategy": "parameter_server", "sync": "bsp", "dropout": 0.2},
    "parameter_server ssp": {"strategy": "parameter_server", "sync": "ssp:1", "assign": "static", "deterministic": True},
    "data_parallel": {"strategy": "data_parallel", "dropout": 0.2, "bucket": 2000, "collective": "ring"},
    "data_parallel, accumulating": {"strategy": "data_parallel", "accumulate": 3, "collective": "ring"},
    "data_parallel, ordered": {"strategy": "data_parallel", "deterministic": True},
    "averaging": {"strategy": "averaging", "average_every": 2, "collective": "ring"},
    "tensor": {"strategy": "tensor", "loss": "squared_error", "activation": "tanh", "collective": "ring"},
    "hybrid": {"strategy": "hybrid", "grid": "data=0", "collective": "ring", "microbatches": 2, "dropout": 0.2},
    "hybrid, mixed": {"strategy": "hybrid", "grid": "data=0", "collective": "ring", "mix": "dense=tensor"},
    "pipeline": {"strategy": "pipeline", "microbatches": 4, "dropout": 0.2},
    "pipeline, zero bubbles": {"strategy": "pipeline", "microbatches": 5, "schedule": "zero_bubble"},
    "pipeline, recomputing": {"strategy": "pipeline", "microbatches": 5, "recompute": True, "schedule": "gpipe", "dropout": 0.2},
    "squares": {"strategy": "data_parallel", "loss": "squared_error", "activation": "gelu", "collective": "rabenseifner"},
}
WHOLE = {"model": "net.toml", "hidden": Job.hidden, "collective": "ring"}
WAYS |= {
    "tensor, outputs in parts": {"strategy": "tensor", "collective": "ring", "dropout": 0.2, "label_smoothing": 0.1, "class_weights": "balanced"},
    "every layer": {"strategy": "data_parallel", **WHOLE},
    "every layer, in stages": {"strategy": "pipeline", "model": "net.toml", "hidden": Job.hidden, "microbatches": 3},
    "every layer, in parts": {"strategy": "tensor", **WHOLE},
    "every layer, mixed": {"strategy": "hybrid", "grid": "data=0", "mix": "embedding=tensor,dense=tensor", **WHOLE},
}
SAME = ("samples", "bytes_sent", "messages", "test_accuracy")
STAY = ("data_parallel", "squares", "every layer")
"""Their weights stay on the device, and are not brought together at the start: `test_resident` counts what they send."""


def on_device(monkeypatch):
    def build(*given):
        net = nets.build_net(*given)
        net.device = device()
        return net

    monkeypatch.setattr(base, "build_net", build)


def both(comm, monkeypatch, place, **changes):
    """Train on the CPU and on a device; return summaries and weights."""
    expected = trained(comm, JOB, **changes)
    on_device(monkeypatch)
    with placed(place):
        return trained(comm, JOB, **changes), expected


def agree(got, expected, same=SAME, dtype="float64"):
    (summary, w), (plain, v) = got, expected
    assert [summary.get(name) for name in same] == [plain.get(name) for name in same]
    return np.abs(w - v).max() <= TOLERANCE[dtype] * 100


@pytest.mark.mpi
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_training_on_a_device_is_training_on_the_cpu(comm, monkeypatch, way, place, tmp_path):
    changes = WAYS[way]
    if "mix" in changes and comm.size == 1:
        return  # one rank has nothing to cut
    if "model" in changes:  # pixels of the digits are whole numbers, so they can be taken as codes
        (tmp_path / "net.toml").write_text(NET)
        changes = {**changes, "model": str(tmp_path / "net.toml")}
    same = [name for name in SAME if way not in STAY or name != "bytes_sent"]
    assert agree(*both(comm, monkeypatch, place, **changes), same)


@pytest.mark.mpi
def test_behind_a_first_product_of_sparse_rows_the_rest_runs_on_the_device(comm, monkeypatch):
    ways = [
        {"model": "mlp", "hidden": (9, 7), "sync": "bsp"},
        {"model": "mlp", "hidden": (9,), "activation": "gelu", "dropout": 0.3, "validate": 0.2, "epochs": 3, "steps": 0},
    ]
    expected = [sparse.run(comm, **way) for way in ways]
    on_device(monkeypatch)
    with cupy_double.streams("lazy"), cupy_double.threads("forward", checked=False):
        for way, plain in zip(ways, expected, strict=True):
            sparse.assert_same(sparse.run(comm, **way), plain)


MUTANTS = {
    "the wait for what is summed": ("buffer.get(out=host)", "buffer.get(out=host, blocking=False)"),
    "the way back of the sum": ("buffer.set(host, cuda.get_current_stream())", "pass"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", MUTANTS)
def test_a_sum_over_a_line_that_leaves_something_out_is_seen(comm, monkeypatch, name):
    if comm.size == 1:
        return  # nothing is summed
    source = textwrap.dedent(inspect.getsource(LineOnDevice._through))
    old, new = MUTANTS[name]
    assert source.count(old) == 1
    found = {}
    exec(compile(source.replace(old, new), "broken", "exec"), vars(line_on_device), found)
    monkeypatch.setattr(LineOnDevice, "_through", found["_through"])
    (_, w), (_, v) = both(comm, monkeypatch, "lazy", **WAYS["tensor"])
    assert not np.abs(w - v).max() <= 1e-6
