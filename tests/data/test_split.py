"""Hold the hold-out to a partition that the seed alone decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.errors import UserError
from mpidml.data.split import hold_out


@given(n=st.integers(0, 300), fraction=st.floats(0, 0.999), seed=st.integers(0, 9))
def test_each_row_is_in_one_part_and_both_parts_are_sorted(n: int, fraction: float, seed: int) -> None:
    train, test = hold_out(n, fraction, seed)
    assert sorted([*train, *test]) == list(range(n))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    assert train.dtype == test.dtype == np.int64
    if n > 1 and fraction > 0:
        assert len(test) == min(n - 1, max(1, round(n * fraction)))
    else:
        assert len(test) == 0


def test_the_seed_alone_decides() -> None:
    assert hold_out(100, 0.2, 3)[1].tolist() == hold_out(100, 0.2, 3)[1].tolist() != hold_out(100, 0.2, 4)[1].tolist()


def test_rows_for_validation_are_drawn_apart_from_those_for_testing() -> None:
    assert hold_out(100, 0.2, 3, "validate")[1].tolist() != hold_out(100, 0.2, 3)[1].tolist()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 20, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="outside"):
        hold_out(10, fraction, 0)
