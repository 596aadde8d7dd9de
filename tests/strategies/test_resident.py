"""Weights, gradient and optimizer stay on the device: the CPU's weights come of it, nothing but gradients travels, and whoever looks sees the newest."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.nn import network, resident
from mpidml.optim.base import Chain
from mpidml.runtime import gpu_mpi, summed_there
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.mirror import Mirror
from mpidml.runtime.training import Training
from mpidml.strategies import base, data_parallel
from tests.changed import changed
from tests.shim import cupy_double as cupy
from tests.shim.devices import PLACES, device, placed
from tests.strategies.test_identities import SMALL
from tests.training import trained

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
JOB = SMALL.with_values({"strategy": "data_parallel", "bucket": 4096, "wait_limit": 30.0, "collective": "ring"}, "test")


stay = Training.stay


@contextlib.contextmanager
def on_device(monkeypatch, takes_pointers=False, place="lazy"):
    """Let networks that are built within compute on a device."""
    build = base.build_net

    def built(*given):
        net = build(*given)
        net.device = device()
        return net

    with monkeypatch.context() as patched, placed(place):
        patched.setattr(base, "build_net", built)
        patched.setattr(summed_there, "takes_device_pointers", lambda comm, index: (takes_pointers, "for the test"))
        yield patched


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "clip:0.5+decay:1e-3+adam", "dropout": 0.2, "lr": 0.01},
        {"optimizer": "lars:0.02", "collective": "auto", "shares": "measured", "steps": 10},
        {"optimizer": "nesterov", "collective": "hierarchical", "lr_policy": "warmup:3", "dtype": "float32"},
        {"batch": 1599, "steps": 2, "collective": "mpi"},  # an epoch ends with one sample: the other ranks have none
        {"accumulate": 3, "dropout": 0.2},
    ],
    ids=["momentum", "clip and adam", "lars", "nesterov", "few samples", "in parts"],
)
@pytest.mark.parametrize("place", PLACES)
def test_the_weights_are_those_of_the_cpu(comm, changes, place, monkeypatch):
    job = JOB.with_values(changes, "test")
    here, expected = trained(comm, job)
    with on_device(monkeypatch, place=place):
        there, values = trained(comm, job)
    assert type(values) is np.ndarray
    np.testing.assert_allclose(values, expected, atol=1e-5 if job.dtype == "float32" else 1e-12, rtol=0)
    assert there["samples"] == here["samples"]
    assert there["final_loss"] == pytest.approx(here["final_loss"], rel=1e-5)
    assert there["test_accuracy"] == pytest.approx(here["test_accuracy"], abs=1e-9)


def test_between_ranks_goes_what_goes_without_a_device_but_for_the_first_weights(comm, monkeypatch):
    here, values = trained(comm, JOB)
    with on_device(monkeypatch):
        there, _ = trained(comm, JOB)
    assert sum(here["bytes_sent"]) - sum(there["bytes_sent"]) == (comm.size - 1) * values.nbytes  # every rank has its own already


def test_by_device_pointers_the_weights_are_the_same(comm, monkeypatch):
    with on_device(monkeypatch):
        _, staged = trained(comm, JOB)
    with on_device(monkeypatch, takes_pointers=True):
        summary, direct = trained(comm, JOB)
    np.testing.assert_allclose(direct, staged, atol=1e-12, rtol=0)
    if comm.size > 1:
        assert summary["gpu_mpi"] == {"takes_device_pointers": True, "reason": "for the test"}


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("takes_pointers", [False, True])
def test_a_step_moves_its_rows_and_its_gradient_and_nothing_else(comm, takes_pointers, n_parts, monkeypatch):
    moved = {"get": [], "set": []}

    def counting(name):
        real = getattr(cupy.ndarray, name)

        def call(self, *given, **named):
            moved[name].append(self.nbytes)
            return real(self, *given, **named)

        return call

    def of(n_steps):
        with on_device(monkeypatch, takes_pointers) as patched:
            for name, calls in moved.items():
                calls.clear()
                patched.setattr(cupy.ndarray, name, counting(name))
            _, values = trained(comm, JOB, steps=n_steps, accumulate=n_parts)
        return np.array([sum(moved["get"]), sum(moved["set"])]), values.nbytes

    (more, nbytes), (less, _) = of(8), of(3)
    down, up = (more - less) / 5
    gradient = nbytes if comm.size > 1 and not takes_pointers else 0
    rows = len(range(*(JOB.batch * r // comm.size for r in (comm.rank, comm.rank + 1))))
    assert down == gradient + 8 * n_parts  # the sum of the losses of each part
    assert up == gradient + rows * (240 * 8 + 8)  # features and labels


def test_a_run_that_pauses_goes_on_with_what_the_device_had(comm, monkeypatch, tmp_path):
    out = comm.bcast(str(tmp_path / "run"))
    job = JOB.with_values({"optimizer": "clip:0.5+adam", "lr": 0.01}, "test")
    with on_device(monkeypatch):
        _, expected = trained(comm, job, steps=8)
        trained(comm, job, steps=4, checkpoint_every=2, out=out, write=True)
        _, values = trained(comm, job, steps=8, resume=out, checkpoint_every=100, out=out + "2", write=True)
    np.testing.assert_array_equal(values, expected)
    _, on_cpu = trained(comm, job, steps=8, resume=out, checkpoint_every=100, out=out + "3", write=True)
    np.testing.assert_allclose(on_cpu, expected, atol=1e-12, rtol=0)
    if comm.rank == 0:
        assert json.loads((tmp_path / "run/summary.json").read_text())["samples"] == 4 * 50


@pytest.mark.parametrize("left_out", ["up", "down"])
def test_what_is_not_brought_up_or_down_is_noticed(comm, left_out, monkeypatch):
    _, expected = trained(comm, JOB)
    with on_device(monkeypatch) as patched:
        patched.setattr(Mirror, left_out, lambda self: None)
        _, values = trained(comm, JOB)
    assert not np.allclose(values, expected, atol=1e-3)


def test_a_part_whose_gradient_is_not_added_is_noticed(comm, monkeypatch):
    _, expected = trained(comm, JOB, accumulate=2)
    with on_device(monkeypatch) as patched:
        patched.setattr(Training, "stay", lambda self, kernels: (stay(self, kernels), setattr(self, "kernels", SimpleNamespace(add=lambda *given: None)))[0])
        _, values = trained(comm, JOB, accumulate=2)
    assert not np.allclose(values, expected, atol=1e-3)


def test_a_pass_that_does_not_wait_for_its_end_is_noticed(comm, monkeypatch):
    waits = ("        while progress is not None and not self.gpu.done(self.ended):\n            progress(0, 0)\n", "        self.ended.synchronize()\n")
    broken = changed(resident, [(wait, "") for wait in waits])
    here, expected = trained(comm, JOB)
    with on_device(monkeypatch) as patched:
        patched.setattr(network, "Resident", broken.Resident)
        there, values = trained(comm, JOB)
    assert not np.allclose(values, expected, atol=1e-9) or there["final_loss"] != pytest.approx(here["final_loss"], rel=1e-5)


def test_replicas_are_compared_by_what_the_device_has(comm, monkeypatch):
    if comm.size == 1:
        return  # there is nobody to differ from
    apply = Chain.apply

    def skewed(self, backend, w, out, g, state, step, *more):
        apply(self, backend, w, out, g, state, step, *more)
        if step == 3 and comm.rank == comm.size - 1:
            backend.scale(out, 1.5)

    with on_device(monkeypatch) as patched, pytest.raises(RuntimeError, match=r"after clock 4 rank .* has other weights"):
        patched.setattr(Chain, "apply", skewed)
        trained(comm, JOB, check_replicas=4)


@pytest.mark.parametrize("changes", [{"deterministic": True, "collective": Job.collective, "bucket": Job.bucket}, {"progress_thread": "on"}])
def test_what_cannot_stay_there_goes_through_the_host_with_the_same_weights(comm, changes, monkeypatch):
    if comm.size == 1 and "progress_thread" in changes:
        return  # there is nothing to sum, and it is refused
    job = JOB.with_values(changes, "test")
    _, expected = trained(comm, job)
    with on_device(monkeypatch) as patched:
        patched.setattr(Mirror, "__init__", None)  # nobody makes one
        _, values = trained(comm, job)
    np.testing.assert_allclose(values, expected, atol=1e-12, rtol=0)


def test_on_this_mpi_it_is_the_library_that_says_no(comm):
    counted = CountedComm(comm)
    assert gpu_mpi.takes_device_pointers(counted)[0] is False
    counted.free()


def test_who_trains_alone_hears_of_no_way_of_gradients(comm, monkeypatch):
    said, free = [], data_parallel.DataParallel.free
    monkeypatch.setattr(data_parallel.DataParallel, "free", lambda self: (said.append(self.words()), free(self)))
    with on_device(monkeypatch):
        trained(comm, JOB)
    way = ", gradients go through the host" if comm.size > 1 else f"; on one rank --collective {JOB.collective}, --bucket {JOB.bucket} change nothing"
    assert said[0].endswith("weights and optimizer stay on the device" + way)
