"""Stages keep weights, gradient and optimizer on the device: the CPU's weights come of it, and over the bus goes what meets a neighbour or is summed, once."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.nn import on_device as passes
from mpidml.nn import stage as stages
from mpidml.nn.split import line_on_device
from mpidml.nn.split.line_on_device import LineOnDevice
from mpidml.runtime import grid_updates, staged
from mpidml.runtime.compressed_sum import Compressed
from mpidml.runtime.held import Held
from mpidml.runtime.line import DeviceLine
from mpidml.runtime.mirror import Mirror
from mpidml.runtime.resume import resumed
from mpidml.runtime.staged import Staged
from mpidml.runtime.staged_training import GridStepper
from tests.changed import changed
from tests.shim.devices import PLACES, over_the_double
from tests.strategies.test_identities import SMALL
from tests.strategies.test_resident import on_device
from tests.training import trained

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
JOB = SMALL.with_values({"strategy": "hybrid", "grid": "data=0", "wait_limit": 30.0, "collective": "ring", "microbatches": 2}, "test")
TWO_STAGES = {"schedule": "interleaved", "deterministic": True}
"""On each rank, where the grid has one place for them; cut by what is computed, not by what is measured."""
WAYS = {
    "replicas": {},
    "replicas of two stages": {**TWO_STAGES, "dropout": 0.2},
    "clip and adam": {**TWO_STAGES, "optimizer": "clip:0.1+decay:1e-3+adam", "lr": 0.01},
    "lars": {"optimizer": "lars:0.02", "lr_policy": "warmup:3", "collective": "rabenseifner"},
    "stages": {"strategy": "pipeline", "grid": "", "deterministic": True, "microbatches": 4},
    "zero bubbles": {"strategy": "pipeline", "grid": "", "deterministic": True, "microbatches": 5, "schedule": "zero_bubble", "optimizer": "nesterov"},
    "recomputed": {"strategy": "pipeline", "grid": "", "deterministic": True, "microbatches": 5, "schedule": "gpipe", "recompute": True, "dropout": 0.2},
    "two versions": {"strategy": "pipeline", "grid": "", "deterministic": True, "microbatches": 0, "schedule": "two_bw:5", "optimizer": "adam", "lr": 0.01},
    "old weights": {"strategy": "pipeline", "grid": "", "deterministic": True, "microbatches": 0, "schedule": "pipedream"},
    "turns": {"strategy": "pipeline", "grid": "", "deterministic": True, "microbatches": 5, "optimizer": "clip:0.1+adam", "lr": 0.01},
    "parts": {"strategy": "tensor", "grid": "", "optimizer": "clip:0.1+lars:0.02"},
    "few samples": {"batch": 1599, "steps": 2, "microbatches": 1},
    "float32": {"dtype": "float32", "collective": "hierarchical"},
    "looked at each epoch": {"patience": 2, "validate": 0.2, "epochs": 3, "steps": 0, "batch": 300},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_of_the_cpu(comm, way, place, monkeypatch):
    turns = {1: "1", 2: "2", 3: "2,1", 5: "2,2,1"}[comm.size] if way == "turns" else ""
    job = JOB.with_values({**WAYS[way], "replicas": turns}, "test")
    here, expected = trained(comm, job)
    with on_device(monkeypatch, place=place):
        there, values = trained(comm, job)
    assert type(values) is np.ndarray
    np.testing.assert_allclose(values, expected, atol=1e-5 if job.dtype == "float32" else 1e-11, rtol=0)
    assert [there[name] for name in ("samples", "bytes_sent", "messages")] == [here[name] for name in ("samples", "bytes_sent", "messages")]
    assert there["final_loss"] == pytest.approx(here["final_loss"], rel=1e-5)
    assert there["test_accuracy"] == pytest.approx(here["test_accuracy"], abs=1e-9)


def test_by_device_pointers_the_weights_are_the_same(comm, monkeypatch):
    with on_device(monkeypatch):
        _, through = trained(comm, JOB)
    with on_device(monkeypatch, takes_pointers=True):
        summary, direct = trained(comm, JOB)
    np.testing.assert_allclose(direct, through, atol=1e-12, rtol=0)
    if comm.size > 1:
        assert summary["gpu_mpi"] == {"takes_device_pointers": True, "reason": "for the test"}


def over_the_bus(held, job, n_workers, summed_there):
    """Return what a step brings down and up on a rank that holds these stages: each element once."""
    down = up = 0
    rows = job.batch // n_workers
    for stage in (of.stage for of in held.values()):
        up += rows * 8 * (stage.n_features + (stage.is_last or stage.n_out))  # what is computed from; labels, or the gradient of what goes on
        down += 8 * job.microbatches if stage.is_last else rows * 8 * stage.n_out  # sums of losses, or what goes on
        down += 0 if stage.is_first else rows * 8 * stage.n_features
        if n_workers > 1 and not summed_there:
            down, up = down + 8 * stage.n_params, up + 8 * stage.n_params
    return [down, up]


def counted(comm, monkeypatch, job, takes_pointers=False):
    """Return what a step brings down and up on this rank, counted by the device's arrays, and by the law."""
    held, free = [], Staged.free

    def of(n_steps):
        with on_device(monkeypatch, takes_pointers) as patched:
            moved = over_the_double(patched)
            patched.setattr(Staged, "free", lambda self: (held.append((self.held, self.n_workers)), free(self)))
            trained(comm, job, steps=n_steps)
        return np.array(list(moved.values()))

    more, less = of(8), of(3)
    return list((more - less) / 5), over_the_bus(held[0][0], job, held[0][1], takes_pointers)


@pytest.mark.parametrize("takes_pointers", [False, True])
@pytest.mark.parametrize("way", ["replicas", "two stages", "pipeline"])
def test_a_step_moves_what_meets_a_neighbour_and_what_is_summed_once_each_way(comm, way, takes_pointers, monkeypatch):
    changes = {"replicas": {}, "two stages": TWO_STAGES, "pipeline": {"strategy": "pipeline", "grid": "", "deterministic": True, "microbatches": 4}}[way]
    job = JOB.with_values({**changes, "batch": 60}, "test")
    found, law = counted(comm, monkeypatch, job, takes_pointers)
    assert found == law


@pytest.mark.parametrize("takes_pointers", [False, True])
def test_sums_over_the_parts_of_layers_move_each_element_once_each_way_or_not_at_all(comm, takes_pointers, monkeypatch):
    if comm.size == 1:
        return  # a layer has one part
    moved = {}

    def counting(of, name):
        real = getattr(of, name)

        def plan(self, buffer, *given):
            call = real(self, buffer, *given)

            def run():
                moved[of] = moved.get(of, 0) + buffer.nbytes
                call()

            return run

        monkeypatch.setattr(of, name, plan)

    counting(DeviceLine, "sum")
    counting(LineOnDevice, "_through")
    job = JOB.with_values({"strategy": "tensor", "grid": "", "deterministic": True, "batch": 60}, "test")
    of = {}
    for n_steps in (8, 3):
        moved.clear()
        with on_device(monkeypatch, takes_pointers):
            trained(comm, job, steps=n_steps)
        of[n_steps] = dict(moved)
    sums, others = ((of[8].get(kind, 0) - of[3].get(kind, 0)) / 5 for kind in (DeviceLine, LineOnDevice))
    found, law = counted(comm, monkeypatch, job, takes_pointers)
    over_the_line = 0 if takes_pointers else sums + others
    assert sums > 10 * others and (others > 0) != takes_pointers and found == [n + over_the_line for n in law]


def test_a_sum_over_the_parts_of_a_layer_that_is_left_out_is_noticed(comm, monkeypatch):
    if comm.size == 1:
        return  # a layer has one part
    job = JOB.with_values({"strategy": "tensor", "grid": "", "deterministic": True}, "test")
    _, expected = trained(comm, job)
    behind = "            self.gpu.cupy.cuda.get_current_stream().synchronize()\n"
    broken = changed(line_on_device, [(behind + "            call()\n", behind)])
    with on_device(monkeypatch) as patched:
        patched.setattr(staged, "LineOnDevice", broken.LineOnDevice)
        patched.setattr(Staged, "check_alike", lambda self: None)
        _, values = trained(comm, job)
    assert not np.allclose(values, expected, atol=1e-6)


def test_weights_that_come_again_for_each_pass_are_counted(comm, monkeypatch):
    put = passes.OnDevice._put
    monkeypatch.setattr(passes.OnDevice, "_put", lambda self, pairs: put(self, [*pairs, (self.w, np.zeros(self.w.size))] if pairs is self.came else pairs))
    found, law = counted(comm, monkeypatch, JOB.with_values({"batch": 60}, "test"))
    assert found != law


WAITS = "        self._back(part)\n        self._end(more)\n        self.ended.synchronize()\n"
SUMS = "                    strategy.waiting.seconds += total.wait(strategy.job.wait_limit)[0]\n"
STEP = "        held.store.step(held.gradient, Tuning() if rates is None else Tuning(rates(clock), 1.0))\n"
TOO_LATE = [(SUMS, "                    pass\n"), (STEP, STEP + "        self.strategy.sums[held.number].wait(30.0)\n")]


def break_it(patched, what):
    if what == "the other microbatches":
        patched.setattr(Held, "add", lambda self, *given: None)
    elif what == "the wait for the sum":
        patched.setattr(GridStepper, "make_updates", changed(grid_updates, TOO_LATE).Updates)
    elif what == "the wait for what goes back":
        patched.setattr(stages, "OnDevice", changed(passes, [(WAITS, WAITS.replace("        self.ended.synchronize()\n", ""))]).OnDevice)
    else:
        patched.setattr(Mirror, what, lambda self: None)


@pytest.mark.parametrize("what", ["the other microbatches", "the wait for the sum", "the wait for what goes back", "up", "down"])
def test_what_is_left_out_is_noticed(comm, what, monkeypatch):
    if comm.size == 1 and what == "the wait for the sum":
        return  # nothing is summed
    job = JOB.with_values(TWO_STAGES, "test")
    _, expected = trained(comm, job)
    with on_device(monkeypatch) as patched:
        break_it(patched, what)
        patched.setattr(Staged, "check_alike", lambda self: None)  # which would notice it, too
        _, values = trained(comm, job)
    assert not np.allclose(values, expected, atol=1e-4)


@pytest.mark.parametrize("codec", ["two_bit", "low_rank"])
def test_codes_between_replicas_are_made_there(comm, codec, monkeypatch, mpi_tmp_path):
    if comm.size == 1:
        return  # nothing is sent
    job = JOB.with_values({"collective": "auto", "compress": codec, "transport": "mpi", "optimizer": "adam", "lr": 0.01}, "test")
    here, expected = trained(comm, job)
    made, opened = [], Compressed.open
    with on_device(monkeypatch) as patched:
        patched.setattr(Compressed, "open", lambda self, comm: (made.append(self.backend.name), opened(self, comm))[1])
        there, values = trained(comm, job, steps=6, checkpoint_every=3, out=str(mpi_tmp_path / "run"), write=True)
        comm.Barrier()
        _, values = trained(comm, resumed(str(mpi_tmp_path / "run"), {"steps": 8}))
    assert set(made) == {"cuda"}
    np.testing.assert_allclose(values, expected, atol=1e-10, rtol=0)
    assert there["samples"] == 6 * job.batch and here["samples"] == 8 * job.batch


def test_the_heading_says_what_stays_there_and_how_gradients_go(comm, monkeypatch):
    said, free = [], Staged.free
    monkeypatch.setattr(Staged, "free", lambda self: (said.append(self.words()), free(self)))
    with on_device(monkeypatch):
        trained(comm, JOB)
    summed = ", gradients go through the host" if comm.size > 1 else "; --collective ring changes nothing, no ranks sum"
    assert said[0].endswith("; weights and optimizer stay on the device" + summed)
    trained(comm, JOB)
    assert "device" not in said[1]
