"""Sum over the replicas of a grid by every collective that leaves a sum on every rank: the training of one rank within rounding, also where they have stages or parts."""

import numpy as np
import pytest

from mpidml.collectives.base import FOLDER
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.runtime import staged
from mpidml.runtime.grid_updates import Updates
from tests.strategies.test_hybrid import JOB, alone, run
from tests.strategies.test_identities import serial

EXACT = [name for name in plugins.names(FOLDER) if plugins.make(FOLDER, name).exact]
ROUNDING = {"float64": 1e-9, "float32": 2e-6}
"""How far weights may be from those of one rank, where sums are made in other orders."""


def shapes(n):
    """List grids of n ranks, or of the first four of them, and how many ranks a host has (0: all)."""
    return [(n, f"data={n}", 0), (n, f"data={n}", 2), (n, f"tensor={n}", 0)] + [(4, "data=2,pipe=2", 0), (4, "data=2,tensor=2", 2)] * (n >= 4)


def furthest(comm, collective, dtype):
    """Return how far the weights of any grid are from those of one rank."""
    plain = serial() if dtype == "float64" else alone(comm, dtype=dtype)[1]
    found = [0.0]
    for n, grid, per_host in shapes(comm.size):
        if collective != "shared" or not per_host:  # which is for one host
            _, values = run(comm, n_ranks=n, per_host=per_host, grid=grid, collective=collective, dtype=dtype)
            found += [] if values is None else [float(np.abs(values - plain).max())]
    return max(found)


def test_those_that_are_known_are_among_them():
    assert {"auto", "ring", "recursive_doubling", "rabenseifner", "tree", "mpi", "shared", "hierarchical", "ordered"} <= {*EXACT}


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("collective", [*EXACT, "hierarchical:tree"])
def test_by_any_collective_a_grid_gives_the_training_of_one_rank(comm, collective, dtype):
    assert furthest(comm, collective, dtype) < ROUNDING[dtype]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_replicas_that_do_not_sum_are_seen(comm, monkeypatch, dtype):
    """The broken variant: each goes by its own gradient."""
    monkeypatch.setattr(staged.Staged, "check_alike", lambda self: None)
    monkeypatch.setattr(Updates, "start", lambda self, held: None)
    monkeypatch.setattr(Updates, "_prepare", lambda self, held, clock: None)
    plain = serial() if dtype == "float64" else alone(comm, dtype=dtype)[1]
    _, values = run(comm, grid=f"data={comm.size}", collective="mpi", dtype=dtype)
    assert np.abs(values - plain).max() > 100 * ROUNDING[dtype]


@pytest.mark.mpi
def test_what_leaves_no_sum_is_refused(comm):
    with pytest.raises(UserError, match="--collective gossip: does not sum over all ranks; use one of ring"):
        run(comm, JOB, collective="gossip", grid=f"data={comm.size}")
