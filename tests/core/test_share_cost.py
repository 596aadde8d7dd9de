"""A line through two measured shares: exact at both, and no part of it is below 0."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.cost import CostModel
from mpidml.core.share_cost import ShareCosts, line

seconds = st.floats(1e-6, 1.0)


def costs(high, low, rows, few):
    return ShareCosts(CostModel((0.5 * high, 1.5 * high), apply=1e-4, samples=rows), CostModel((low,), samples=few))


@given(low=seconds, more=seconds, few=st.integers(1, 50), gap=st.integers(1, 500))
def test_the_line_meets_what_was_measured(low, more, few, gap):
    of = costs(low + more, low, few + gap, few)
    assert of.at(few + gap).mean_seconds == pytest.approx(low + more) and of.at(few + gap).compute == pytest.approx(of.large.compute)
    fixed, per_row = of.line
    assert fixed >= 0 and per_row >= 0
    if fixed:
        assert of.at(few).mean_seconds == pytest.approx(low)


def test_what_does_not_shrink_is_found_and_a_line_through_nothing_would_miss_it():
    of = costs(10e-3, 3e-3, 64, 8)
    assert of.line == pytest.approx((2e-3, 1.25e-4))
    through_nothing = ShareCosts(of.large, of.large)  # one share alone
    assert through_nothing.line == pytest.approx((0, 10e-3 / 64)) and through_nothing.at(8).mean_seconds != pytest.approx(3e-3)
    assert of.at(16) == CostModel(tuple(s * 0.4 for s in of.large.compute), apply=1e-4, samples=16)


def test_one_measurement_is_all_for_each_sample():
    assert [line(n, 0.1, n, 0.1) for n in (3, 7, 49)] == [(0.0, 0.1 / n) for n in (3, 7, 49)], "and no rounding is left over as fixed"


def test_noise_makes_no_cost_negative():
    assert costs(1e-3, 2e-3, 64, 8).line == (1e-3, 0.0), "the small share took longer: nothing depends on it"
    assert costs(1e-2, 1e-4, 64, 8).line == (0.0, pytest.approx(1e-2 / 64)), "more than in proportion: nothing is fixed"
