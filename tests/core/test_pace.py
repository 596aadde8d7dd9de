"""The speeds of ranks become those of stages and parts: whoever is waited for decides."""

import itertools

import pytest

from mpidml.core.balance import Profile
from mpidml.core.grid import ProcessGrid
from mpidml.core.pace import paced, part_weights, relative, stage_speeds

LAYERS = [Profile(1.0, 2.0, 0.0, 0.0)] * 8


def slow(grid, factor=0.25, **at):
    found = [1.0] * grid.n_ranks
    found[grid.rank(**at)] = factor
    return found


def seconds(grid, speeds, plan, weights):
    """Return what the last rank takes for a microbatch, straight from the definition: its share of its stage's layers at its own speed."""
    return max(
        sum(p.forward_seconds + p.backward_seconds for p in LAYERS[plan.stages[at["pipe"]].lo : plan.stages[at["pipe"]].hi])
        * weights[at["tensor"]] * len(weights) / sum(weights) / speeds[rank]
        for rank in range(grid.n_ranks)
        for at in [grid.coords(rank)]
    )  # fmt: skip


def test_small_differences_are_none():
    assert relative([1.0, 1.2, 3.0, 1.3]) == [1.0, 1.0, pytest.approx(1 / 3), pytest.approx(1 / 1.3)]


def test_a_slow_replica_makes_its_stage_slow_and_a_slow_part_gets_less():
    grid = ProcessGrid({"data": 2, "pipe": 2})
    assert stage_speeds(grid, slow(grid, data=1, pipe=0), (1.0,), 4) == [0.25, 1.0, 0.25, 1.0], "of two stages a rank, too"
    grid = ProcessGrid({"tensor": 3})
    speeds = slow(grid, tensor=2)
    assert part_weights(grid, speeds) == (1.0, 1.0, 0.25)
    assert stage_speeds(grid, speeds, (1.0, 1.0, 1.0), 1) == [0.25] and stage_speeds(grid, speeds, (1.0, 1.0, 0.25), 1) == [pytest.approx(0.75)]


@pytest.mark.parametrize("sizes", [(1, 2, 1), (2, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2), (1, 4, 1), (1, 1, 4)])
def test_what_a_plan_says_is_what_the_last_rank_takes_and_no_equal_cut_is_faster(sizes):
    grid = ProcessGrid(dict(zip(("data", "pipe", "tensor"), sizes, strict=True)))
    for rank, factor in itertools.product(range(grid.n_ranks), (0.25, 0.5, 1.0)):
        speeds = [factor if r == rank else 1.0 for r in range(grid.n_ranks)]
        plan, weights = paced(LAYERS, grid, speeds, sizes[1])
        assert plan.seconds == pytest.approx(seconds(grid, speeds, plan, weights))
        even, alike = paced(LAYERS, grid, [1.0] * grid.n_ranks, sizes[1])
        assert alike == (1.0,) * sizes[2]
        assert plan.seconds <= seconds(grid, speeds, even, alike) * (1 if factor == 1 else 0.75)
