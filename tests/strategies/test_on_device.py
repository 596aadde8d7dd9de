"""Hold strategies whose passes run on a device to the same on the CPU: the same weights within rounding, and the same traffic; CuPy is a double of it."""

import inspect
import textwrap

import numpy as np
import pytest
from mpidml_kernels import CODES, backend

from mpidml.core.job import Job
from mpidml.nn.resident import Resident
from mpidml.nn.split import line_on_device
from mpidml.nn.split.line_on_device import LineOnDevice
from mpidml.optim.base import Chain, Transforms
from mpidml.ps.on_device import OnDevice
from mpidml.runtime import net as nets
from mpidml.runtime.mirror import Mirror
from mpidml.runtime.resume import resumed
from mpidml.runtime.sparse_training import SparseThere, SparseTraining
from mpidml.runtime.stepping import Stepper
from mpidml.runtime.training import Training
from mpidml.strategies import base
from tests.nn.test_on_device import TOLERANCE
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, over_the_double, placed
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
    **{
        f"data_parallel, {codec}": {"strategy": "data_parallel", "compress": codec, "transport": "mpi", "dropout": 0.2, "bucket": 4096}
        for codec in ("two_bit", "top_k:0.05", "low_rank", "sign_majority", "int8")
    },
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
STAY = ("data_parallel", "data_parallel, accumulating", "squares", "every layer")
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
@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.shows_from(3)) if "pipeline" in changes.values() else way for way, changes in WAYS.items()])
def test_training_on_a_device_is_training_on_the_cpu(comm, monkeypatch, way, place, tmp_path):
    changes = WAYS[way]
    if "mix" in changes and comm.size == 1:
        return  # one rank has nothing to cut
    if "model" in changes:  # pixels of the digits are whole numbers, so they can be taken as codes
        (tmp_path / "net.toml").write_text(NET)
        changes = {**changes, "model": str(tmp_path / "net.toml")}
    same = [name for name in SAME if way not in STAY or name != "bytes_sent"]
    updating, apply = [], Chain.apply
    monkeypatch.setattr(Chain, "apply", lambda self, backend, *given: updating.append(backend.name) or apply(self, backend, *given))
    assert agree(*both(comm, monkeypatch, place, **changes), same)
    n_here = len(updating) // 2  # first all on the CPU, then on the device
    assert set(updating[:n_here]) <= {"numpy"} and set(updating[n_here:]) <= {"cuda"}
    assert any(comm.allgather(bool(updating)))


@pytest.mark.mpi
def test_kernels_of_codes_are_compiled_before_the_clock_runs(comm, monkeypatch):
    compiled, run = [], Stepper.run
    monkeypatch.setattr(Stepper, "run", lambda self: compiled.append({family for family, _ in device().kernels.gpu.modules}) or run(self))
    on_device(monkeypatch)
    with placed("lazy"):
        trained(comm, JOB, **WAYS["data_parallel, int8"])
    assert compiled[0] >= {family.__name__.rpartition(".")[2] for family in CODES}


SPARSE = {
    "softmax": {},
    "mlp": {"model": "mlp", "hidden": (9, 7), "sync": "bsp", "optimizer": "adagrad", "lr": 0.1},
    "scored each epoch": {"model": "mlp", "hidden": (9,), "activation": "gelu", "dropout": 0.3, "validate": 0.2, "epochs": 3, "steps": 0},
    "in parts, with links": {"model": "mlp", "hidden": (9,), "accumulate": 3, "optimizer": "clip:0.05+adam", "lr": 0.05, "transport": "mpi"},
    "stale": {"sync": "ssp:2", "deterministic": True, "assign": "static", "optimizer": "momentum", "lr": 0.1},
}


def refused(*given):
    raise AssertionError("it is computed on the host")


@pytest.mark.mpi
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", SPARSE)
def test_products_of_sparse_rows_their_updates_and_links_are_made_there(comm, monkeypatch, way, place):
    expected, by = sparse.run(comm, **SPARSE[way]), set()
    apply, transform = Chain.apply, Transforms.transform
    monkeypatch.setattr(Chain, "apply", lambda self, backend, *given: by.add(backend.name) or apply(self, backend, *given))
    monkeypatch.setattr(Transforms, "transform", lambda self, backend, *given: by.add(backend.name) or transform(self, backend, *given))
    on_device(monkeypatch)
    host = backend("numpy")
    for name in ("csr_matmul", "csr_matmul_backward", "add_rows"):
        monkeypatch.setattr(host, name, refused)
    with placed(place):
        sparse.assert_same(sparse.run(comm, **SPARSE[way]), expected)
    assert set().union(*comm.allgather(by)) == {"cuda"}


def over_the_bus(comm, monkeypatch, n_steps):
    """Return what a run of sparse rows brings down and up on all ranks, and of each worker's steps the features, rows and stored values."""
    steps, pushes, asarray, up = [], SparseThere._pushes, cupy_double.asarray, [0]

    def pushed(self, lease):
        steps.append((self.slot.learnt.features, len(self.slot.learnt.x), self.slot.learnt.x.n_stored))
        return pushes(self, lease)

    def counted(a, dtype=None):
        up[0] += a.nbytes * isinstance(a, np.ndarray)
        return asarray(a, dtype)

    with monkeypatch.context() as patched, placed("lazy"):
        on_device(patched)
        patched.setattr(SparseThere, "_pushes", pushed)
        patched.setattr(cupy_double, "asarray", counted)
        moved = over_the_double(patched)
        sparse.run(comm, steps=n_steps)
    return np.sum(comm.allgather((moved["get"], moved["set"] + up[0])), axis=0), comm.allgather(steps)


def law_of_rows(steps, width, n_rest):
    """Return what a clock moves: of a worker what it reads and its rows up, what it pushes and a loss down; of servers what is sent up, what changes down."""
    touched = np.unique(np.concatenate([features for features, *_ in steps])).size
    down, up = 8 * n_rest, 8 * n_rest * len(steps)
    for features, m, n_stored in steps:
        down += 8 * (n_rest + features.size * width + 1)
        up += 8 * (n_rest + features.size * width + m + m + 1) + 12 * n_stored
        up += 8 * features.size * (width + 1)
    return down + 8 * touched * width, up + 8 * touched


@pytest.mark.mpi
def test_a_clock_of_sparse_rows_moves_what_is_read_and_what_is_sent_and_nothing_else(comm, monkeypatch):
    (more, steps), (less, _) = (over_the_bus(comm, monkeypatch, n) for n in (4, 3))  # within an epoch
    law = law_of_rows([of[3] for of in steps], sparse.N_CLASSES, sparse.N_CLASSES)
    assert tuple(more - less) == law
    monkeypatch.setattr(Training, "_rows", lambda self, block, rows=Training._rows: (self.kernels.host(self.there.values), rows(self, block))[1])  # once more down
    assert tuple(over_the_bus(comm, monkeypatch, 4)[0] - over_the_bus(comm, monkeypatch, 3)[0]) != law


LEFT_OUT_OF_ROWS = {
    "the product": (SparseTraining, "_fill", lambda self, step, own, at: self._rows_of(step)),
    "rows that none bring": (Resident, "rows_there", lambda self: self.step.x),
    "the gradient of the first weight": (SparseTraining, "_use", lambda self, step, own, at: None),
    "the gradient of the rest": (SparseThere, "_pushes", SparseTraining._pushes),
    "the links": (SparseThere, "_optimize", lambda self, g, w, turn: None),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", LEFT_OUT_OF_ROWS)
def test_what_of_sparse_rows_is_left_out_is_seen(comm, monkeypatch, name):
    expected = sparse.run(comm, **SPARSE["in parts, with links"])
    on_device(monkeypatch)
    monkeypatch.setattr(*LEFT_OUT_OF_ROWS[name])
    with placed("lazy"), np.errstate(all="ignore"):
        found = sparse.run(comm, **SPARSE["in parts, with links"])
    assert not np.allclose(found[1], expected[1], rtol=1e-6, atol=1e-9)


MUTANTS = {
    "the wait for what is compared": ("buffer.get(out=host)", "buffer.get(out=host, blocking=False)"),
    "the way back of the largest": ("buffer.set(host, cuda.get_current_stream())", "pass"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", MUTANTS)
def test_what_goes_through_the_host_over_a_line_and_leaves_something_out_is_seen(comm, monkeypatch, name):
    if comm.size == 1:
        return  # nothing is compared
    source = textwrap.dedent(inspect.getsource(LineOnDevice._through))
    old, new = MUTANTS[name]
    assert source.count(old) == 1
    found = {}
    exec(compile(source.replace(old, new), "broken", "exec"), vars(line_on_device), found)
    monkeypatch.setattr(LineOnDevice, "_through", found["_through"])
    (_, w), (_, v) = both(comm, monkeypatch, "lazy", **WAYS["tensor, outputs in parts"])
    assert not np.abs(w - v).max() <= 1e-6


SAVED = {
    "parameter_server": {"strategy": "parameter_server", "sync": "bsp", "transport": "mpi"},
    "data_parallel, ordered": {"strategy": "data_parallel", "deterministic": True},
    "averaging": {"strategy": "averaging", "average_every": 2, "collective": "ring"},
    "pipeline": {"strategy": "pipeline", "microbatches": 4},
    "hybrid": {"strategy": "hybrid", "grid": "data=0", "collective": "ring", "microbatches": 2},
    "data_parallel, in codes": {"strategy": "data_parallel", "compress": "two_bit", "transport": "mpi", "bucket": 4096},
    "parameter_server, in codes": {"strategy": "parameter_server", "sync": "bsp", "compress": "two_bit", "transport": "mpi"},
    "parameter_server, in codes of whole tensors": {"strategy": "parameter_server", "sync": "bsp", "compress": "low_rank", "transport": "mpi"},
    "parameter_server, stale, in codes": {
        "strategy": "parameter_server", "sync": "ssp:2", "deterministic": True, "assign": "static", "compress": "two_bit", "transport": "mpi"
    },
    "parameter_server, optimizing workers": {"strategy": "parameter_server", "sync": "bsp", "optimize": "workers"},
    "parameter_server, groups, in codes": {"strategy": "parameter_server", "sync": "bsp", "compress": "two_bit", "transport": "mpi", "group": 2},
    "parameter_server, groups, optimizing workers": {"strategy": "parameter_server", "sync": "bsp", "optimize": "workers", "group": 2},
}


@pytest.mark.mpi
@pytest.mark.parametrize("way", SAVED)
def test_a_run_goes_on_from_there_here_and_from_here_there(comm, monkeypatch, way, mpi_tmp_path):
    """What is saved has all that the device has made, and what the device goes on with all that was saved."""
    if "group" in SAVED[way] and comm.size == 1:
        return  # there is no group
    job = JOB.with_values({**SAVED[way], "optimizer": "adam", "lr": 0.01}, "test")
    _, expected = trained(comm, job)
    for k, starts_there in enumerate((True, False)):
        folder = str(mpi_tmp_path / f"{k}")
        for there in (starts_there, not starts_there):
            how = resumed(folder, {"steps": 6}) if there is not starts_there else job.with_values({"steps": 4, "checkpoint_every": 2, "out": folder}, "test")
            with monkeypatch.context() as patched, placed("lazy"):
                if there:
                    on_device(patched)
                _, values = trained(comm, how, write=there is starts_there)
            comm.Barrier()
        assert np.abs(values - expected).max() <= TOLERANCE["float64"] * 100


OF_STORES = [(way, OnDevice, broken) for way in ("parameter_server", "parameter_server, optimizing workers") for broken in ("up", "down")]
LEFT_OUT = {
    "up": lambda self, *given: None,
    "down": lambda self, *given: None,
    "state": lambda self, here: {name: self.kernels.zeros(array.size, array.dtype) for name, array in here.items()},  # which nobody brings up or down
}


@pytest.mark.mpi
@pytest.mark.parametrize(("way", "of", "broken"), [("averaging", Mirror, "state"), ("pipeline", Mirror, "state"), *OF_STORES])
def test_a_run_that_goes_on_without_its_optimizer_is_seen(comm, monkeypatch, way, of, broken, mpi_tmp_path):
    job = JOB.with_values({**SAVED[way], "optimizer": "adam", "lr": 0.01}, "test")
    _, expected = trained(comm, job)
    with monkeypatch.context() as patched, placed("lazy"):
        on_device(patched)
        trained(comm, job.with_values({"steps": 4, "out": str(mpi_tmp_path / "run")}, "test"), write=True, checkpoint_every=4)
        comm.Barrier()
        _, values = trained(comm, resumed(str(mpi_tmp_path / "run"), {"steps": 6}))
        assert np.abs(values - expected).max() <= TOLERANCE["float64"] * 100
        patched.setattr(of, broken, LEFT_OUT[broken])
        trained(comm, job.with_values({"steps": 4, "out": str(mpi_tmp_path / "other")}, "test"), write=True, checkpoint_every=4)
        comm.Barrier()
        _, values = trained(comm, resumed(str(mpi_tmp_path / "other"), {"steps": 6}))
    assert not np.abs(values - expected).max() <= 1e-6
