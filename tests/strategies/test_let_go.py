"""A run lets go of all that it has made in MPI: a program may train as often as it likes in one process."""

from __future__ import annotations

from collections import Counter

import pytest
from mpi4py import MPI

from mpidml.runtime.comm import CountedComm
from mpidml.runtime.own_links import OwnLinks
from mpidml.runtime.serverless import Serverless
from mpidml.runtime.watched import Watched
from tests.strategies.test_identities import SMALL
from tests.training import trained

JOB = SMALL.with_values({"wait_limit": 20.0, "steps": 4, "batch": 60, "target": "loss:1e-9"}, "test")
NO_MORE = (MPI.COMM_NULL, MPI.WIN_NULL, MPI.REQUEST_NULL)
SUMMED = ("auto", "mpi", "ring", "tree", "shared", "hierarchical", "ordered")
WAYS = [
    *({"strategy": "data_parallel", "optimizer": "clip:1+momentum", "collective": name} for name in SUMMED),
    {"strategy": "data_parallel", "optimizer": "clip:1+momentum", "collective": "hierarchical", "per_host": 1}, {"strategy": "hybrid", "grid": "data=2", "per_host": 1},
    {"strategy": "data_parallel", "optimizer": "clip:1+momentum", "transport": "mpi"}, {"strategy": "data_parallel", "compress": "fp16", "transport": "mpi"},
    *({"strategy": "averaging", "average_every": 2} | how for how in ({"collective": "mpi"}, {"collective": "gossip"}, {"averaging": "elastic"})),
    *({"strategy": "parameter_server", "sync": sync, "transport": "mpi"} for sync in ("bsp", "ssp:2")), {"strategy": "parameter_server"},
    *({"strategy": name, "transport": "mpi"} for name in ("pipeline", "tensor")), {"strategy": "pipeline"}, {"strategy": "pipeline", "schedule": "pipedream"},
    *({"strategy": "hybrid", "grid": "data=2", "sync": sync, "transport": "mpi"} for sync in ("bsp", "ssp:1", "asp")),
    *({"strategy": "parameter_server", "group": 2} | how for how in ({"collective": "mpi"}, {"collective": "ring"})),
    {"strategy": "data_parallel", "compress": "fp16", "per_host": 2}, {"strategy": "hybrid", "grid": "data=2", "compress": "fp16", "per_host": 1},
    {"strategy": "hybrid", "grid": "data=2", "mix": "dense=tensor"}, {"strategy": "tensor", "optimizer": "lars:0.1"},
]  # fmt: skip


def left(comm, monkeypatch, per_host=0, **way):
    """Return how many communicators, windows and requests of each kind a run leaves unfreed on this rank, and how many it has made."""
    made = []

    def keep(of, name, found):
        method = getattr(of, name)

        def noting(*given, **named):
            result = method(*given, **named)
            made.append((name, found(given, result)))
            return result

        patch.setattr(of, name, noting)

    with monkeypatch.context() as patch:
        keep(Watched, "__init__", lambda given, _: given[1])
        keep(Watched, "window", lambda _, window: window)
        keep(CountedComm, "Recv_init", lambda _, request: request)
        keep(CountedComm, "Allreduce_init", lambda _, request: request)
        keep(CountedComm, "Send_init", lambda _, sending: sending.request)
        trained(comm, JOB, per_host, **way)
    return Counter(name for name, handle in made if handle not in NO_MORE), len(made)


def fits(way, size):
    """Whether so many ranks can train in this way."""
    return size == 2 if way["strategy"] == "hybrid" else size > 1 or "group" not in way


@pytest.mark.mpi
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nothing_that_a_run_has_made_is_left(comm, way, monkeypatch):
    if not fits(way, comm.size):
        return
    found, n_made = left(comm, monkeypatch, **way)
    assert not found and n_made > 1, found


@pytest.mark.mpi
def test_the_count_catches_votes_and_norms_that_are_kept(comm, monkeypatch):
    ring = {"strategy": "data_parallel", "optimizer": "clip:1+momentum", "collective": "ring"}
    kept = [(Serverless, {"strategy": "data_parallel", "collective": "mpi"}), (Serverless, {"strategy": "averaging", "collective": "mpi", "average_every": 2})]
    kept += [(Serverless, {"strategy": "pipeline"}), (OwnLinks, ring)] if comm.size > 1 else []
    for of, way in kept:
        with monkeypatch.context() as patch:
            patch.setattr(of, "free", lambda self: None)
            assert left(comm, monkeypatch, **way)[0], (of, way)
