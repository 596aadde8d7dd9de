"""Replicas stay on the device and meet there: the CPU's weights come of it, and over the bus goes what is summed or mixed, once each way, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.runtime import replicas
from mpidml.runtime.mirror import Mirror
from mpidml.runtime.resume import resumed
from mpidml.strategies import averaging
from mpidml.strategies.averaging import Averaging
from tests.changed import changed
from tests.shim.devices import PLACES, over_the_double
from tests.strategies.test_identities import SMALL
from tests.strategies.test_resident import on_device
from tests.training import trained

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
JOB = SMALL.with_values({"strategy": "averaging", "average_every": 3, "wait_limit": 30.0, "collective": "ring"}, "test")
MEETINGS = {
    "mean": {},
    "gossip": {"collective": "gossip"},
    "exponential gossip": {"collective": "gossip:exponential", "optimizer": "adam", "lr": 0.01},
    "elastic": {"averaging": "elastic:0.3", "collective": "rabenseifner"},
    "elastic_async": {"averaging": "elastic_async:0.3", "collective": "auto"},
}
WAYS = MEETINGS | {
    "every clock": {"average_every": 1, "collective": "hierarchical", "dropout": 0.2},
    "lars in parts": {"optimizer": "clip:0.5+lars:0.1", "accumulate": 3, "lr_policy": "warmup:3"},
    "float32": {"dtype": "float32"},
    "few samples": {"batch": 1599, "steps": 2, "average_every": 1},
    "looked at each epoch": {"patience": 2, "validate": 0.2, "epochs": 3, "steps": 0, "batch": 300},
    "an epoch ends between meetings": {"batch": 400},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_of_the_cpu(comm, way, place, monkeypatch):
    if way == "elastic_async" and comm.size > 1:
        return  # no two runs are the same
    job = JOB.with_values(WAYS[way], "test")
    here, expected = trained(comm, job)
    with on_device(monkeypatch, place=place):
        there, values = trained(comm, job)
    assert type(values) is np.ndarray
    np.testing.assert_allclose(values, expected, atol=1e-5 if job.dtype == "float32" else 1e-11, rtol=0)
    assert [there[name] for name in ("samples", "bytes_sent", "messages")] == [here[name] for name in ("samples", "bytes_sent", "messages")]
    assert there["final_loss"] == pytest.approx(here["final_loss"], rel=1e-5)
    assert there["test_accuracy"] == pytest.approx(here["test_accuracy"], abs=1e-9)
    assert there["consensus_distance"] == pytest.approx(here["consensus_distance"], rel=1e-4, abs=1e-12)


def test_with_a_centre_on_the_host_replicas_of_a_device_learn_and_no_meeting_is_lost(comm, monkeypatch):
    """Without a step the mean of replicas and centre stays, whatever the order in which they meet."""
    job = JOB.with_values({**MEETINGS["elastic_async"], "lr": 1e-300, "average_every": 1}, "test")
    found, free = [], Averaging.free

    def looked(self):
        found.append(np.mean([*comm.allgather(self.replicas.backend.host(self.replicas.replica)), self.weights], axis=0))
        free(self)

    def apart(self):
        if not self.clock:
            self.strategy.replicas.replica.fill(comm.rank)
        step(self)

    step = averaging.Averager._step
    with on_device(monkeypatch) as patched:
        patched.setattr(Averaging, "free", looked)
        patched.setattr(averaging.Averager, "_step", apart)
        _, centre = trained(comm, job)
    first = [*(np.full(centre.size, float(rank)) for rank in range(comm.size)), start_of(job, comm)]
    np.testing.assert_allclose(found[0], np.mean(first, axis=0), rtol=1e-9, atol=1e-200)


def start_of(job, comm):
    """Return the weights with which a job begins: a rate of next to nothing leaves them."""
    return trained(comm, job.with_values({"averaging": "mean", "steps": 1, "collective": "ring"}, "test"))[1]


def test_by_device_pointers_the_weights_are_the_same(comm, monkeypatch):
    for name in ("mean", "gossip", "elastic"):
        job = JOB.with_values(MEETINGS[name], "test")
        with on_device(monkeypatch):
            _, staged = trained(comm, job)
        with on_device(monkeypatch, takes_pointers=True):
            summary, direct = trained(comm, job)
        np.testing.assert_allclose(direct, staged, atol=1e-12, rtol=0)
        if comm.size > 1:
            assert summary["gpu_mpi"] == {"takes_device_pointers": True, "reason": "for the test"}


def counted(comm, monkeypatch, job, takes_pointers):
    """Return what six steps and two meetings bring down and up on this rank, counted by the device's arrays, and the bytes of a replica."""
    def of(n_steps):
        with on_device(monkeypatch, takes_pointers) as patched:
            moved = over_the_double(patched)
            _, values = trained(comm, job, steps=n_steps)
        return np.array(list(moved.values())), values.nbytes

    (more, nbytes), (less, _) = of(9), of(3)
    return list(more - less), nbytes


def over_the_bus(comm, name, nbytes, takes_pointers):
    """Return the law: rows and labels up, sums of losses down; of a meeting each element of the replica once each way, and of its distance a number."""
    rows = len(range(*(JOB.batch * r // comm.size for r in (comm.rank, comm.rank + 1))))
    down, up = 6 * 8, 6 * rows * (240 * 8 + 8)
    travels = name == "elastic_async" or (comm.size > 1 and not takes_pointers)
    distance = 0 if name in ("gossip", "elastic_async") else 8
    return [down + 2 * (nbytes * travels + distance), up + 2 * nbytes * travels]


@pytest.mark.parametrize("takes_pointers", [False, True])
@pytest.mark.parametrize("name", ["mean", "gossip", "elastic", "elastic_async"])
def test_a_meeting_moves_each_element_once_each_way_and_a_step_its_rows(comm, name, takes_pointers, monkeypatch):
    found, nbytes = counted(comm, monkeypatch, JOB.with_values(MEETINGS[name], "test"), takes_pointers)
    assert found == over_the_bus(comm, name, nbytes, takes_pointers)


def test_a_replica_that_comes_to_the_host_for_each_update_is_counted(comm, monkeypatch):
    update = averaging.Averager._update
    monkeypatch.setattr(averaging.Averager, "_update", lambda self: (update(self), self.strategy.replicas.replica.get())[0])
    found, nbytes = counted(comm, monkeypatch, JOB, takes_pointers=False)
    assert found == [n + 6 * nbytes * (i == 0) for i, n in enumerate(over_the_bus(comm, "mean", nbytes, False))]


MUTANTS = {
    "the wait for the sum": [("        self.sum.start()\n        self.wait(self.sum)\n", "        self.sum.test() or self.wait(self.sum)\n        self.sum.start()\n")],
    "the mean": [("        self.backend.copy(self.replica, self.total)\n", "")],
}


@pytest.mark.parametrize("what", [*MUTANTS, "down"])
def test_what_is_left_out_is_noticed(comm, what, monkeypatch):
    if comm.size == 1 and what in MUTANTS:
        return  # there is nobody to meet
    _, expected = trained(comm, JOB)
    with on_device(monkeypatch) as patched:
        if what in MUTANTS:
            patched.setattr(averaging, "Replicas", changed(replicas, MUTANTS[what]).Replicas)
        else:
            patched.setattr(Mirror, "down", lambda self: None)
        patched.setattr(Averaging, "check_alike", lambda self: None)  # which would notice it, too
        _, values = trained(comm, JOB)
    assert not np.allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "elastic"])
def test_a_run_goes_on_with_what_the_host_has_read(comm, name, monkeypatch, mpi_tmp_path):
    job, out = JOB.with_values(MEETINGS[name], "test"), str(mpi_tmp_path / "run")
    _, expected = trained(comm, job)
    with on_device(monkeypatch) as patched:
        trained(comm, job, steps=4, checkpoint_every=4, out=out, write=True)
        comm.Barrier()
        _, values = trained(comm, resumed(out, {"steps": 8}))
        np.testing.assert_allclose(values, expected, atol=1e-11, rtol=0)
        patched.setattr(Mirror, "up", lambda self: None)
        _, values = trained(comm, resumed(out, {"steps": 8}))
    assert not np.allclose(values, expected, atol=1e-6)


class Watched:
    """A lock that compares, before it is let go, the centre in the host's memory with what the device has made of it."""

    def __init__(self, of, right):
        self.of, self.lock, self.right = of, of.lock, right

    def __enter__(self):
        self.lock.__enter__()

    def __exit__(self, *error):
        here = self.of.weights.copy()
        self.right.append(np.array_equal(here, self.of.backend.host(self.of.total)))
        self.lock.__exit__(*error)


@pytest.mark.parametrize("waits", [True, False])
def test_when_the_lock_is_let_go_the_centre_has_made_its_step(comm, waits, monkeypatch):
    of = changed(replicas, [] if waits else [("centre.get(out=self.weights)", "centre.get(out=self.weights, blocking=False)")])
    right, exchange = [], of.ElasticAsync.exchange

    def watched(self, clock):
        lock, self.lock = self.lock, Watched(self, right)
        exchange(self, clock)
        self.lock = lock

    with on_device(monkeypatch) as patched:
        patched.setattr(of.ElasticAsync, "exchange", watched)
        patched.setattr(averaging, "ElasticAsync", of.ElasticAsync)
        trained(comm, JOB.with_values({**MEETINGS["elastic_async"], "average_every": 1}, "test"))
    assert len(right) == JOB.steps and set(right) == {waits}


CENTRES = {"up": "backend.put(centre, self.weights)", "down": "centre.get(out=self.weights)"}


@pytest.mark.parametrize("what", CENTRES)
def test_a_centre_that_does_not_come_up_or_down_is_noticed(comm, what, monkeypatch):
    job = JOB.with_values({**MEETINGS["elastic_async"], "average_every": 1}, "test")
    if comm.size > 1:
        return  # no two runs are the same
    _, expected = trained(comm, job)
    broken = changed(replicas, [(CENTRES[what], "pass")])
    with on_device(monkeypatch) as patched:
        patched.setattr(averaging, "ElasticAsync", broken.ElasticAsync)
        _, values = trained(comm, job)
    assert not np.allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("takes_pointers", [False, True])
@pytest.mark.parametrize("name", ["mean", "gossip", "elastic_async"])
def test_the_heading_says_what_stays_there_and_how_replicas_meet(comm, name, takes_pointers, monkeypatch):
    said, free = [], Averaging.free
    monkeypatch.setattr(Averaging, "free", lambda self: (said.append(self.words()), free(self)))
    job = JOB.with_values(MEETINGS[name], "test")
    with on_device(monkeypatch, takes_pointers):
        trained(comm, job)
    way = ", MPI is given them there" if takes_pointers else ", they go through the host to meet"
    way, alone = (", where the centre comes to meet them", "") if name == "elastic_async" else (way, f"; on one rank --collective {job.collective} changes nothing")
    way = way if comm.size > 1 else alone
    assert said[0].endswith("; replicas and optimizer stay on the device" + way)
    trained(comm, job)
    assert "device" not in said[1]
