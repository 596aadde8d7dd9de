"""Hold ranks on a grid to arithmetic."""

import itertools

import pytest

from mpidml.core.errors import UserError
from mpidml.core.grid import AXES, ProcessGrid, parse_grid


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 1), (2, 2, 2), (1, 4, 3)])
def test_coordinates_and_ranks_are_one_to_one_and_the_last_axis_is_fastest(sizes):
    grid = ProcessGrid(dict(zip(AXES, sizes, strict=True)))
    every = [dict(zip(AXES, at, strict=True)) for at in itertools.product(*map(range, sizes))]
    assert [grid.rank(**at) for at in every] == list(range(grid.n_ranks))
    assert [grid.coords(rank) for rank in range(grid.n_ranks)] == every


def test_a_line_has_every_rank_that_differs_on_its_axis_alone():
    grid = ProcessGrid({"data": 2, "pipe": 3, "tensor": 2})
    for axis in AXES:
        lines = {tuple(grid.line(axis, rank)) for rank in range(12)}
        assert sorted(rank for line in lines for rank in line) == list(range(12))
        for line in lines:
            assert len({tuple(v for k, v in grid.coords(rank).items() if k != axis) for rank in line}) == 1


def test_ranks_are_named_by_the_axes_that_have_more_than_one():
    assert ProcessGrid({"data": 2, "pipe": 2}).name(3) == "data 1 pipe 1" and ProcessGrid({}).name(0) == "alone"


@pytest.mark.parametrize(("text", "sizes"), [("pipe=4", (1, 4, 1)), ("data=0,pipe=2", (2, 2, 1)), (" tensor = 2 , data=2", (2, 1, 2)), ("pipe=0", (1, 4, 1))])
def test_what_is_written_is_the_grid(text, sizes):
    assert tuple(parse_grid(text, 4).sizes.values()) == sizes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pip=4", "no axis 'pip'; known: data, pipe, tensor; did you mean 'pipe'"),
        ("pipe", "gives no number of ranks"), ("pipe=x", "gives no number"), ("pipe=2,pipe=2", "names pipe twice"),
        ("pipe=3", "3 = 3 ranks, and 4 were started"), ("data=2,pipe=3", "2 x 3 = 6 ranks, and 4 were started"), ("data=0,pipe=3", "do not divide 4"),
        ("data=0,pipe=0", "one axis of size 0 alone"), ("pipe=" + "9" * 5000, "gives no number of ranks"),
        ("pipe=" + "9" * 4000 + ",data=" + "9" * 4000, "gives no number of ranks"),
    ],
)  # fmt: skip
def test_a_grid_that_does_not_fit_is_refused_in_one_line(text, told):
    with pytest.raises(UserError, match=r"^--grid") as caught:
        parse_grid(text, 4)
    assert told in str(caught.value) and "\n" not in str(caught.value)
