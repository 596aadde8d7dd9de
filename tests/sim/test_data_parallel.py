"""The simulation of sums is their rounds: counted on arrays, priced by hand, and met by a run of the real thing."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.collectives.base import Collective
from mpidml.core import plugins
from mpidml.core.cost import CostModel
from mpidml.core.errors import UserError
from mpidml.core.rounds import carried_out, moved
from mpidml.core.slowdown import Slowdown
from mpidml.sim.data_parallel import CHOSEN, check, simulate, sum_of
from mpidml.sim.parameter_server import Plan
from mpidml.sync.base import make_policy

N = 1 << 20


def plan(n_workers, n_clocks=10, **changes):
    cost = CostModel((0.01,), **{"latency": 1e-4, "bytes_per_second": 1e9, **changes.pop("cost", {})})
    return Plan(make_policy("bsp"), n_workers, n_clocks, cost, 0, changes.pop("nbytes", N), **changes)


@pytest.mark.parametrize("n_workers", [1, 2, 3, 5, 16])
def test_a_clock_takes_the_slowest_compute_and_the_rounds(n_workers):
    found = simulate(plan(n_workers), "ring")
    rounds = 2 * (n_workers - 1) * (1e-4 + -(-N // n_workers) / 1e9)
    assert found.seconds == pytest.approx(10 * (0.01 + rounds), rel=1e-3)
    assert found.n_done == 10 * n_workers and found.staleness == {0: 10 * n_workers}
    assert found.nbytes == pytest.approx(10 * 2 * (n_workers - 1) * N, rel=1e-3)


@pytest.mark.parametrize("name", [*CHOSEN, "tree"])
def test_counts_are_those_of_the_rounds_carried_out(name):
    parts = [plugins.make("mpidml.collectives", name).rounds(rank, 6, 600) for rank in range(6)]
    buffers = [np.full(600, float(rank)) for rank in range(6)]
    carried_out([(*part.reduce, *part.gather) for part in parts], buffers)
    assert all((buffer == 15).all() for buffer in buffers)
    found = simulate(plan(6, 4, nbytes=600), name)
    assert found.nbytes == 4 * sum(moved((*part.reduce, *part.gather)) for part in parts)


def test_auto_is_the_cheapest_few_rounds_for_small_models_few_bytes_for_large_ones():
    small, large = sum_of(plan(64, nbytes=1000), "auto"), sum_of(plan(64, nbytes=10**8), "auto")
    assert small[1] == "recursive_doubling" and large[1] in ("ring", "rabenseifner")
    for name in CHOSEN:
        assert small[0].seconds <= sum_of(plan(64, nbytes=1000), name)[0].seconds


def test_the_straggler_is_the_one_that_is_waited_for():
    found = simulate(plan(4, 50, slowdown=Slowdown("permanent:3", 4, 0), cost={"latency": 0.0, "bytes_per_second": 0.0}), "ring")
    slow = max(found.waited, key=lambda role: found.waited[role].seconds) - 1
    assert found.busy_seconds[slow] == max(found.busy_seconds)
    assert sum(w.seconds for w in found.waited.values()) == pytest.approx(sum(found.seconds - busy for busy in found.busy_seconds), rel=1e-6)


def test_of_many_workers_no_round_is_built_and_of_a_rank_no_more_is_kept_than_is_counted(monkeypatch):
    """A ring of 2,000 has 3,998 rounds a rank: 64 ranks of them were a fifth of a million."""
    ring, built = plugins.load("mpidml.collectives", "ring"), []
    auto, found = sum_of(plan(2000), "auto"), simulate(plan(2000), "ring")
    rounds = ring.rounds
    monkeypatch.setattr(ring, "rounds", lambda *of: built.append(of) or rounds(*of))
    assert sum_of(plan(2000), "auto") == auto and simulate(plan(2000), "ring") == found and not built
    monkeypatch.setattr(ring, "sizes", Collective.sizes)
    assert sum_of(plan(2000, nbytes=12_345), "ring")[0].seconds > 0 and len(built) == 64, "the broken variant: what moves is counted from the rounds"


def test_ten_thousand_workers_are_no_matter_and_what_has_no_rounds_is_refused():
    found = simulate(plan(10_000, 3), "ring")
    assert found.seconds > 3 * 2 * 9_999 * 1e-4
    with pytest.raises(UserError, match="not written down as rounds"):
        check("data_parallel", "mpi", False)
    with pytest.raises(UserError, match="--learn: has no part"):
        check("data_parallel", "ring", True)
    with pytest.raises(UserError, match="--strategy averaging: is not known"):
        check("averaging", "ring", False)
    check("data_parallel", "auto", False)


@pytest.mark.parametrize(("n", "seconds"), [(10, 0.01), (6, 0.1), (3, 0.1)])
def test_of_equal_workers_nobody_waits_whatever_their_sum_rounds_to(n, seconds):
    assert simulate(Plan(make_policy("bsp"), n, 5, CostModel((seconds,)), n_shards=0), "auto").waited == {}


def test_the_longest_wait_is_that_of_the_fastest():
    """Of 0.1, 0.9 and 1.0 seconds it is 0.9, and all that others waited 1.0 each clock."""
    (waited,) = simulate(Plan(make_policy("bsp"), 3, 4, CostModel((1.0,), slowness=(0.1, 0.9, 1.0)), n_shards=0), "auto").waited.values()
    assert (waited.longest_seconds, waited.seconds) == pytest.approx((0.9, 4.0))


def test_a_message_of_a_sum_takes_its_time_too():
    def seconds(message):
        return simulate(Plan(make_policy("bsp"), 8, 10, CostModel((0.01,), message=message), n_shards=0), "ring").seconds

    assert seconds(1e-3) - seconds(0.0) == pytest.approx(10 * 2 * 7 * 1e-3)
