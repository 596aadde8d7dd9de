"""What replicas push stays on the device until then: the CPU's weights come of it, and what a wave reads goes up once, its gradient comes down once."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.grid import parse_grid
from mpidml.nn.on_device import OnDevice
from mpidml.runtime import read_there, waves
from mpidml.runtime.read_there import ReadThere
from mpidml.runtime.resume import resumed
from mpidml.runtime.staged import Staged
from mpidml.runtime.waves import Exchange
from tests.changed import changed
from tests.shim.devices import PLACES, device, over_the_double, placed
from tests.strategies import test_ordered_waves as ordered
from tests.strategies.test_resident import on_device
from tests.strategies.test_resident_stages import JOB as STAGES
from tests.strategies.test_resident_stages import TWO_STAGES, over_the_bus
from tests.strategies.test_waves import EXACT, JOB, run, some
from tests.training import trained

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
WAVES = STAGES.with_values({"sync": "ssp:1", "collective": "auto", **TWO_STAGES}, "test")
WAYS = {
    "bulk": {"sync": "ssp:0", "microbatches": 2},
    "a wave ahead": {"sync": "ssp:1", "transport": "mpi"},
    "clip and adam": {"sync": "ssp:2", "optimizer": "clip:0.1+decay:1e-3+adam", "lr": 0.01, "dropout": 0.2},
    "lars": {"sync": "ssp:1", "optimizer": "lars:0.02", "lr_policy": "warmup:3"},
    "zero bubbles": {"sync": "ssp:1", "schedule": "zero_bubble"},
    "several waves in flight": {"sync": "ssp:2", "schedule": "pipedream", "microbatches": 0, "partition": "2,1"},
    "a quorum of all": {"sync": "quorum:all", "deterministic": False, "partition": "equal"},
    "looked at each epoch": {"sync": "ssp:1", "patience": 2, "validate": 0.2, "epochs": 3, "steps": 0, "batch": 300},
}
IN_FLIGHT = "several waves in flight"


def ways(comm, way):
    """Give how many ranks take part and what is trained on them, on each grid on which that can be."""
    n, every = some(comm)
    for grid in [grid for grid in every if n < 4 or "pipe=2" in grid or (way == "bulk" and "tensor=2" in grid)]:
        changes = {"grid": grid, **EXACT, **WAYS[way]}
        if changes["sync"] == "quorum:all":
            changes["sync"] = f"quorum:{parse_grid(grid, n).sizes['data']}"
        if not (("schedule" in changes and "pipe=2" not in grid) or ("lars" in str(changes) and "tensor=1" not in grid)):
            yield n, changes


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_of_the_cpu(comm, way, place, monkeypatch):
    for n, changes in ways(comm, way):
        here, expected = run(comm, n_ranks=n, **changes)
        with on_device(monkeypatch, place=place):
            there, values = run(comm, n_ranks=n, **changes)
        if values is not None:
            np.testing.assert_allclose(values, expected, atol=1e-11, rtol=0, err_msg=str(changes))
            same = ("samples", "bytes_sent", "messages")[: 1 if way == "a quorum of all" else None]  # whose words depend on timing
            assert [there[name] for name in same] == [here[name] for name in same]
            assert way != "bulk" or there["final_loss"] == pytest.approx(here["final_loss"], rel=1e-5)  # else it is the last clock's that was told


def test_in_the_order_in_which_pushes_come_each_wave_reads_what_was_there(comm, monkeypatch):
    n, every = some(comm)
    for way in ({}, {"schedule": "two_bw", "microbatches": 0, "steps": 14}):
        for grid in [grid for grid in every if "schedule" not in way or "pipe=2" in grid]:
            with on_device(monkeypatch) as patched:
                found = ordered.Pushes(patched)
                _, values = run(comm, n_ranks=n, grid=grid, **ordered.ASP, **way)
            updates, _ = found.agreed(comm, n)
            if values is not None:
                assert np.abs(values - ordered.serial(updates, parse_grid(grid, n).sizes["data"], JOB.with_values(way, "test"))).max() < 1e-9, grid


def test_a_run_that_goes_on_comes_to_the_same(comm, monkeypatch, mpi_tmp_path):
    if comm.size == 1:
        return  # there is one replica
    with on_device(monkeypatch):
        _, expected = trained(comm, WAVES, steps=8)
        trained(comm, WAVES, steps=6, checkpoint_every=4, out=str(mpi_tmp_path / "run"), write=True)
        comm.Barrier()
        _, values = trained(comm, resumed(str(mpi_tmp_path / "run"), {"steps": 8}))
    np.testing.assert_allclose(values, expected, atol=1e-11, rtol=0)


def counted(comm, monkeypatch, job):
    """Return what a wave brings down and up on this rank, by the device's arrays and by the law: what stages move whose replicas sum, and once more each
    way the parameters: down what an update makes of its servers', up what is read of that."""
    held, free = [], Staged.free

    def of(n_steps):
        with on_device(monkeypatch) as patched:
            moved = over_the_double(patched)
            patched.setattr(Staged, "free", lambda self: (held.append(self.held), free(self)))
            trained(comm, job, steps=n_steps)
        return np.array(list(moved.values()))

    more, less = of(8), of(3)
    n = sum(8 * of.stage.n_params for of in held[0].values())
    return list((more - less) / 5), [law + n for law in over_the_bus(held[0], job, comm.size, False)]


def test_a_wave_moves_what_it_reads_and_its_gradient_once(comm, monkeypatch):
    if comm.size == 1:
        return  # there is one replica
    job = WAVES.with_values({"batch": 60, "microbatches": 2}, "test")
    found, law = counted(comm, monkeypatch, job)
    assert found == law
    monkeypatch.setattr(Exchange, "_write", changed(waves, [("gradient.get(out=room)", "gradient.get(out=gradient.get(out=room))")]).Exchange._write)
    put = "self.kernels.put(room, values)"
    monkeypatch.setattr(waves, "ReadThere", changed(read_there, [(put, f"{put}, {put}")]).ReadThere)
    found, law = counted(comm, monkeypatch, job)
    assert all(more > of for more, of in zip(found, law, strict=True))


def break_it(patched, what):
    if what == "the wait for a gradient":
        patched.setattr(Exchange, "_write", changed(waves, [("gradient.get(out=room)", "gradient.get(out=room, blocking=False)")]).Exchange._write)
    elif what == "what a wave reads":
        patched.setattr(waves, "ReadThere", changed(read_there, [("            self.kernels.put(room, values)\n", "")]).ReadThere)
    else:
        patched.setattr(waves, "ReadThere", lambda kernels, n, *of: ReadThere(kernels, max(1, n - 1), *of))


@pytest.mark.parametrize("what", ["the wait for a gradient", "what a wave reads", "room for a wave in flight"])
def test_what_is_left_out_is_noticed(comm, what, monkeypatch):
    for n, changes in ways(comm, IN_FLIGHT if what == "room for a wave in flight" else "a wave ahead"):
        _, expected = run(comm, n_ranks=n, **changes)
        with on_device(monkeypatch) as patched, np.errstate(all="ignore"):
            break_it(patched, what)
            patched.setattr(Staged, "check_alike", lambda self: None)  # which would notice it, too
            _, values = run(comm, n_ranks=n, **changes)
        assert values is None or not np.allclose(values, expected, atol=1e-6)


def test_passes_are_given_no_weights_of_the_host(comm, monkeypatch):
    given, init = [], OnDevice.__init__
    with on_device(monkeypatch) as patched:
        patched.setattr(OnDevice, "__init__", lambda self, net, m, memory, w, g, *more: given.append((w, g)) or init(self, net, m, memory, w, g, *more))
        if comm.size > 1:
            trained(comm, WAVES)
    assert not any(isinstance(array, np.ndarray) for pair in given for array in pair) and (given or comm.size == 1)


def test_a_wave_reads_anew_after_a_pause(comm):
    with placed("lazy"):
        there = ReadThere(kernels := device().kernels, 2, 3, "f8")
        rooms = [there.bring(wave, np.full(3, float(wave))) for wave in (4, 5, 4)]
        assert rooms[0] is rooms[2] is not rooms[1] and list(kernels.host(rooms[0])) == [4.0] * 3
        assert there.bring(6, np.full(3, 6.0)) is rooms[0]  # the oldest has been pushed
        there.begin()
        assert list(kernels.host(there.bring(6, np.full(3, 7.0)))) == [7.0] * 3
