"""When a loss has stopped falling, and which look was the best."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.patience import Patience

LOSSES = st.lists(st.floats(0, 3, width=16) | st.just(math.nan) | st.none(), max_size=12)


def plain(losses, limit):
    """Look back over all losses at each look: where the first least one is, and whether it lies `limit` looks behind."""
    for n in range(1, len(losses) + 1):
        seen = [(loss, i) for i, loss in enumerate(losses[:n], 1) if loss is not None and not math.isnan(loss)]
        least, at = min(seen, default=(None, 0))
        if n - at >= limit:
            return n, least, at or None
    return None


def followed(losses, limit, cls=Patience):
    patience = cls(limit)
    for n, loss in enumerate(losses, 1):
        patience.look(loss, n)
        if patience.over:
            return n, patience.least, patience.epoch
        state = patience.state()
        patience = cls(limit)
        patience.restore(state)  # a run may go on anywhere
    return None


@given(LOSSES, st.integers(1, 4))
def test_it_ends_when_the_first_least_loss_lies_so_many_looks_behind(losses, limit):
    assert followed(losses, limit) == plain(losses, limit)


def test_the_law_catches_one_that_takes_an_equal_loss_for_a_lower_one():
    class Patient(Patience):
        def look(self, loss, epoch):
            return super().look(None if loss is None else loss - 1e-9 * epoch, epoch)

    assert followed([1.0, 1.0, 1.0], 2, Patient) != plain([1.0, 1.0, 1.0], 2) == (3, 1.0, 1)


def test_a_look_that_does_not_count_may_be_the_best_and_costs_no_patience():
    patience = Patience(1)
    patience.look(2.0, 1)
    assert not patience.look(3.0, 1.5, counts=False) and not patience.over
    assert patience.look(1.0, 1.7, counts=False) and patience.epoch == 1.7


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_no_number_is_never_the_best(loss):
    patience = Patience(2)
    assert not patience.look(loss, 1) and not patience.over and patience.epoch is None
    assert patience.look(5.0, 2) and not patience.look(loss, 3) and patience.epoch == 2
