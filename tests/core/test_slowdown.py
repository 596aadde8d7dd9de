"""A slowdown is a function of (seed, worker, clock), and its mean is what its name promises."""

import numpy as np
import pytest

from mpidml.core import rng, slowdown
from mpidml.core.errors import UserError
from mpidml.core.slowdown import PATTERNS, PHASE_CLOCKS, Slowdown
from tests.changed import changed


def table(text, n_workers=3, n_clocks=6 * PHASE_CLOCKS, seed=0):
    slowdown = Slowdown(text, n_workers, seed)
    return np.array([[slowdown.extra(w, c) for c in range(n_clocks)] for w in range(n_workers)])


@pytest.mark.parametrize("name", PATTERNS)
def test_the_same_seed_gives_the_same_pattern_and_nobody_gets_faster(name):
    assert np.array_equal(table(name), table(f"{name}:2")), "2 is the default"
    assert table(name).min() >= 0


def test_exponential_stretches_by_the_factor_on_average_and_by_its_own_amount_each_clock():
    extra = table("exponential:3", 4, 1000)
    assert abs(extra.mean() - 3) < 5 * 3 / np.sqrt(extra.size)
    assert len(np.unique(extra)) == extra.size
    assert not np.array_equal(extra, table("exponential:3", 4, 1000, seed=1))


def generators(module, n_workers=3, n_clocks=50):
    """Return how many generators all draws take."""
    made, stream = [], rng.stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "stream", lambda *of: made.append(of) or stream(*of))
        slowdown = module.Slowdown("exponential:3", n_workers, 0)
        for clock in range(n_clocks):
            for worker in range(n_workers):
                slowdown.extra(worker, clock)
    return len(made)


def test_draws_do_not_depend_on_the_order_in_which_they_are_asked_for_and_cost_few_generators():
    """Ten thousand simulated workers ask for a draw each clock."""
    one, other = Slowdown("exponential:3", 3, 0), table("exponential:3")
    asked = np.random.default_rng(0).permutation([(w, c) for w in range(3) for c in range(other.shape[1])]).tolist()
    assert all(one.extra(w, c) == other[w, c] for w, c in asked)
    assert generators(slowdown) == 3 * -(-50 // slowdown.DRAWN_CLOCKS)
    assert generators(changed(slowdown, [("if found is None or found[0] != block:", "if True:")])) == 150
    stale = changed(slowdown, [("if found is None or found[0] != block:", "if found is None:")]).Slowdown("exponential:3", 3, 0)
    assert any(stale.extra(w, c) != other[w, c] for w, c in asked)


def test_rotating_slows_one_worker_at_a_time_and_each_for_as_long():
    extra = table("rotating:4")
    assert set(np.unique(extra)) == {0.0, 3.0}
    assert np.array_equal((extra > 0).sum(0), np.ones(extra.shape[1])), "one at a time"
    assert np.array_equal((extra > 0).sum(1), np.full(3, 2 * PHASE_CLOCKS)), "each in turn"
    assert extra[0, :PHASE_CLOCKS].all()


@pytest.mark.parametrize("name", PATTERNS)
def test_what_lasts_is_what_one_worker_has_for_ever(name):
    slowdown = Slowdown(f"{name}:4", 3, 0)
    assert slowdown.lasting() is (slowdown if name == "permanent" else None)


def test_permanent_slows_worker_0_for_ever():
    extra = table("permanent:5")
    assert (extra[0] == 4).all() and not extra[1:].any()
    assert not table("permanent:1").any(), "a factor of 1 is no slowdown"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rotate:2", "did you mean 'rotating'"),
        ("", "known: exponential, permanent, rotating"),
        ("rotating:fast", "'fast' is not a number; write for example rotating:2"),
        ("permanent:0.5", "out of range; give a number from 1 up"),
        *((f"exponential:{f}", "out of range; give a number from 0 up") for f in ("-1", "nan", "inf")),
    ],
)
def test_a_pattern_that_cannot_be_is_one_line(text, says):
    with pytest.raises(UserError) as error:
        Slowdown(text, 2, 0)
    assert says in str(error.value) and "\n" not in str(error.value)
