"""Hold every grid to the loss curve of one rank: of each clock the loss that is told, not the weights in the end alone."""

import numpy as np
import pytest

from mpidml.runtime import staged
from mpidml.runtime.grid_updates import Updates
from mpidml.runtime.staged_training import GridStepper
from tests.strategies.test_hybrid import JOB, grids
from tests.strategies.test_mix import looked_at


def curve(comm, n, **changes):
    """Return the losses of all clocks on the first n ranks; nothing is found on others."""
    part = comm.Split(0 if comm.rank < n else 1, comm.rank)
    found = looked_at(part, JOB, **changes)[0] if comm.rank < n else None
    part.Free()
    return found


def of_one(comm):
    found = comm.bcast(curve(comm, 1, grid="data=1"))
    assert len(found) == JOB.steps and found[-1] < 0.9 * found[0]
    return found


@pytest.mark.mpi
def test_every_grid_has_the_loss_curve_of_one_rank(comm):
    """Of all ranks, and of four of five."""
    expected = of_one(comm)
    for n in (comm.size, 4) if comm.size > 4 else (comm.size,):
        for grid in grids(n):
            found = curve(comm, n, grid=grid)
            assert found is None or found == pytest.approx(expected, rel=1e-9, abs=1e-12), grid


def forgets_the_first(self, item, loss, lost=GridStepper._lost):
    return lost(self, item, loss if item % self.strategy.n_items else 0.0)


def of_this_replica(self, i, loss, told=GridStepper._told):
    """Tell a loss as if this replica had all rows of a batch."""
    return told(self, i, loss * self.strategy.n_workers)


@pytest.mark.mpi
def test_the_curve_catches_the_loss_of_a_microbatch_that_is_not_counted(comm, monkeypatch):
    """The weights are right all the same."""
    expected = of_one(comm)
    monkeypatch.setattr(GridStepper, "_lost", forgets_the_first)
    for grid in grids(comm.size):
        assert max(abs(a - b) for a, b in zip(curve(comm, comm.size, grid=grid), expected, strict=True)) > 1e-3, grid


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", [(GridStepper, "_told", of_this_replica), (Updates, "start", lambda self, held: None)])
def test_the_curve_catches_replicas_that_are_taken_for_all_or_do_not_sum(comm, monkeypatch, broken):
    expected = of_one(comm)
    monkeypatch.setattr(staged.Staged, "check_alike", lambda self: None)
    monkeypatch.setattr(*broken)
    if broken[1] == "start":
        monkeypatch.setattr(Updates, "_prepare", lambda self, held, clock: None)
    found = curve(comm, comm.size, grid=f"data={comm.size}")
    assert np.abs(np.subtract(found, expected)).max() > 1e-3
