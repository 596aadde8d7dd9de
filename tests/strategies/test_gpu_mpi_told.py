"""What a run found out of MPI and device pointers stands in its summary, whoever of its ranks asked."""

import pytest

from mpidml.core.job import Job
from mpidml.runtime import served, summed_there
from tests.changed import changed
from tests.shim.devices import placed
from tests.strategies.test_on_device import on_device
from tests.training import trained

pytestmark = pytest.mark.mpi
JOB = Job(data="digits", hidden=(8,), steps=2, batch=50, backend="numpy", seed=3, report=False, wait_limit=60.0)
GROUPS = {"strategy": "parameter_server", "optimizer": "clip:0.5+sgd", "group": 2}
WAYS = {
    "sums": {"strategy": "data_parallel"},
    "parts of layers": {"strategy": "tensor"},
    "parts of layers, mixed": {"strategy": "hybrid", "grid": "data=0", "mix": "dense=tensor"},
    "groups": GROUPS,
    "groups behind a server": {**GROUPS, "servers": "1"},
    "codes of hosts": {"strategy": "data_parallel", "compress": "int8", "ranks_per_host": 2},
}
SAID = {"takes_device_pointers": True, "reason": "for the test"}


def told(comm, monkeypatch, changes):
    """Return what rank 0's summary says of MPI."""
    monkeypatch.setattr(summed_there, "takes_device_pointers", lambda comm, index: tuple(SAID.values()))
    on_device(monkeypatch)
    with placed("lazy"):
        return trained(comm, JOB, **changes)[0].get("gpu_mpi")


def asks(comm, way):
    """Say whether ranks of a run sum among each other."""
    n = {"groups behind a server": comm.size - 1}.get(way, comm.size)
    return n > 1


@pytest.mark.shows_from(3)  # a server, and a group of two
@pytest.mark.parametrize("way", WAYS)
def test_the_verdict_and_its_reason_are_told(comm, monkeypatch, way):
    if comm.size == 1 and way != "sums":
        return  # one rank is no group, and has nothing to cut
    found = told(comm, monkeypatch, WAYS[way])
    assert comm.rank or found == (SAID if asks(comm, way) else None)


def test_a_verdict_that_rank_0_did_not_ask_for_comes_from_who_did(comm, monkeypatch):
    if comm.size < 3:
        return  # a server, and a group of two
    broken = changed(summed_there, [("comm.gather(asked) or []", "[asked]")])
    monkeypatch.setattr(served, "verdict", broken.verdict)
    found = told(comm, monkeypatch, WAYS["groups behind a server"])
    assert comm.rank or found is None
