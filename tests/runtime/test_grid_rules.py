"""A flag that decides nothing on a grid is told in the heading of the run."""

import pytest

from mpidml.core.grid import parse_grid
from mpidml.core.job import Job
from mpidml.runtime.grid_rules import asides

RING = {"collective": "ring"}


@pytest.mark.parametrize(
    ("changes", "grid", "pushes", "said"),
    [
        (RING, "pipe=4", False, "; --collective ring changes nothing, no ranks sum"), (RING, "data=2,pipe=2", False, ""), (RING, "tensor=4", False, ""),
        ({}, "pipe=4", False, ""), ({"tune": False}, "data=4", False, "; --no-tune changes nothing, no gradient is stale"), ({"tune": False}, "data=4", True, ""),
        (RING | {"replicas": "3,1"}, "pipe=4", False, ""),
        (RING | {"tune": False}, "pipe=4", False, "; --collective ring changes nothing, no ranks sum; --no-tune changes nothing, no gradient is stale"),
    ],
)  # fmt: skip
def test_a_heading_names_what_changes_nothing_on_a_grid(changes, grid, pushes, said):
    assert asides(Job(**changes), parse_grid(grid, 4), pushes) == said
