"""Hold grids to one rank where layers are cut between others that need whole rows: whichever half of a backward a schedule puts off."""

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.nn.split.dense import Slices
from tests.strategies.test_hybrid import alone, grids, run

pytestmark = pytest.mark.shows_from(3)

NET = "\n".join('[[layer]]\ntype = "dense"\nunits = 8\n[[layer]]\ntype = "layer_norm"' for _ in range(2)) + '\n[[layer]]\ntype = "dense"\n'
SCHEDULES = ("gpipe", "one_f_one_b", "zero_bubble", "interleaved")


def net_in(tmp_path):
    (tmp_path / "net.toml").write_text(NET)
    return {"model": str(tmp_path / "net.toml"), "hidden": Job.hidden, "microbatches": 4}


@pytest.mark.mpi
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_grid_gives_the_weights_of_one_rank(comm, tmp_path, schedule):
    how = net_in(tmp_path)
    expected = alone(comm, **how)[1]
    for grid in grids(min(comm.size, 4)):
        _, values = run(comm, n_ranks=min(comm.size, 4), grid=grid, schedule=schedule, **how)
        if values is not None:
            np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12, err_msg=grid)


@pytest.mark.mpi(min_size=2)
def test_the_check_catches_a_part_that_is_added_before_it_is_made(comm, tmp_path, monkeypatch):
    how = net_in(tmp_path)
    expected = alone(comm, **how)[1]
    monkeypatch.setattr(Slices, "apart", ())
    monkeypatch.setattr(Slices, "adds", ())
    _, values = run(comm, grid=f"tensor={comm.size}", schedule="zero_bubble", **how)
    assert np.abs(values - expected).max() > 1e-4
