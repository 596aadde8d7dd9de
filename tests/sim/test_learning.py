"""What is learnt on virtual clocks is a function of the arguments: nothing of the machine on which it is computed has a part in it."""

from __future__ import annotations

import pytest

from mpidml import virtual_training
from mpidml.core.cost import CostModel
from mpidml.core.job import Job
from mpidml.core.simulation import Simulation
from mpidml.runtime.dataset import load
from mpidml.simulate import planned, simulate
from mpidml.strategies import parameter_server


class Robbed:
    """Says that others have most of every core."""

    def __call__(self, now):
        return 0.7 if now > 0.2 else 0.0


def learnt(comm, n_clocks=30, seconds=0.0, **changes):
    """Return the seconds, the quotas and the losses of four workers."""
    job = Job().with_values({"sync": "adaptive", "batch": 64, "hidden": "4", "backend": "numpy", "seconds": seconds} | changes, "test")
    data = load(job, comm)
    plan = planned(Simulation(workers=4, clocks=n_clocks, learn=True), job, CostModel((0.01,)), None)
    found, metrics, quality = virtual_training.train(job, plan, data)
    return found.seconds, found.quotas.rows, [row["loss"] for row in metrics], quality


def with_load(make):
    """Return what a strategy does that watches the machine wherever it is made."""

    def changed(self, *arguments):
        make(self, *arguments)
        self.load = parameter_server.Occupancy()

    return changed


def test_what_others_take_of_the_machine_changes_nothing(alone, monkeypatch):
    idle = learnt(alone)[:3]
    monkeypatch.setattr(parameter_server, "Occupancy", Robbed)
    assert learnt(alone)[:3] == idle
    monkeypatch.setattr(parameter_server.ParameterServer, "make", with_load(parameter_server.ParameterServer.make))
    assert learnt(alone)[:3] != idle, "the broken variant: the load of the machine decides the quotas"


@pytest.mark.parametrize("servers", ["colocated", "2"])
@pytest.mark.parametrize("codec", ["", "low_rank"])
def test_links_and_bytes_are_those_of_sizes_alone(servers, codec):
    """Where the arithmetic runs, too, each shard is a role of its own; of sizes alone one stands for all."""
    values = {"workers": 4, "servers": servers, "sync": "bsp", "hidden": "8", "compute": 1e-3, "bandwidth": 1e7, "clocks": 10, "backend": "numpy", "transport": "mpi"}
    sizes, learnt = (simulate(values | {"compress": codec, "learn": learn}, quiet=True, write=False)[0] for learn in (False, True))
    assert sum(learnt["bytes_sent"]) == pytest.approx(sum(sizes["bytes_sent"]), rel=0.05)
    assert codec or learnt["seconds"] == pytest.approx(sizes["seconds"], rel=0.1)
