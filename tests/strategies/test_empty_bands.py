"""Train, save and go on where a stage has fewer weights than there are ranks that hold parts of it: some have a band of none, and take part all the same."""

import numpy as np
import pytest

from mpidml.runtime.resume import resumed
from mpidml.runtime.serverless import Serverless
from tests.strategies.test_hybrid import JOB, alone, folder_of, grids, run
from tests.training import driven

NARROW = {"hidden": (1, 1), "optimizer": "momentum"}


@pytest.mark.mpi
def test_a_model_is_whole_at_the_end_is_saved_and_goes_on(comm, tmp_path):
    expected = alone(comm, **NARROW)[1]
    cut, folder = {"grid": f"tensor={comm.size}", "schedule": "interleaved:3", "partition": "equal", **NARROW}, folder_of(comm, tmp_path)
    np.testing.assert_allclose(run(comm, **cut)[1], expected, rtol=1e-9, atol=1e-12)
    run(comm, steps=4, checkpoint_every=4, write=True, out=folder, **cut)
    comm.Barrier()
    same = resumed(folder, {"steps": 8})
    np.testing.assert_allclose(run(comm, same)[1], expected, rtol=1e-9, atol=1e-12)
    n = min(comm.size, 3)
    for grid in grids(n):
        _, values = run(comm, same, n, grid=grid, schedule="gpipe")
        if values is not None:
            np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12, err_msg=grid)


def takes_part(comm):
    """Tell whether this rank has a store for each stage that it holds a part of: what brings elements together is collective."""
    with driven(comm, JOB, grid=f"tensor={comm.size}", schedule="interleaved:3", partition="equal", **NARROW) as running:
        n_here = len(running.strategy.stores)
        running.strategy.stores = getattr(running.strategy, "all_stores", running.strategy.stores)
    return n_here == 3


@pytest.mark.mpi
def test_every_rank_takes_part_in_every_stage(comm):
    assert takes_part(comm)


@pytest.mark.mpi
def test_the_check_catches_ranks_that_leave_an_empty_band_out(comm, monkeypatch):
    if comm.size < 3:
        return  # a layer has two weights
    employ = Serverless.employ

    def without(self, task, gradient, stores, shards):
        employ(self, task, gradient, {n: store for n, store in stores.items() if shards[n].lo < shards[n].hi}, shards)
        self.all_stores = stores

    monkeypatch.setattr(Serverless, "employ", without)
    assert not all(comm.allgather(takes_part(comm)))
