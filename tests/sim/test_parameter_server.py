"""A simulated job obeys the arithmetic of its costs, whatever its size; one shard stands for all that are like it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mpidml.core.cost import CostModel
from mpidml.core.slowdown import Slowdown
from mpidml.sim import parameter_server as ps
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sim.summary import too_many
from mpidml.sync.adaptive import Adaptive
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.dssp import Dssp
from mpidml.sync.quorum import Quorum
from mpidml.sync.ssp import Ssp
from mpidml.sync.warmup import Warmup
from tests.changed import changed

POLICIES = [Bsp(), Ssp(3), Asp(), Warmup(5, 2), Dssp(), Adaptive(), Quorum()]
NONE = CostModel((1.0,), latency=0.0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_workers_without_latency_take_one_compute_a_clock(policy, n, dynamic):
    found = simulate(Plan(policy, n, 20, NONE, dynamic=dynamic))
    dropped = found.n_dropped if isinstance(policy, Quorum) else 0
    assert found.n_done + dropped == 20 * n if dynamic or not isinstance(policy, Quorum) else found.n_done == 20 * policy.needed(n)
    assert found.seconds == pytest.approx(20.0, abs=1e-6 if not isinstance(policy, Quorum) else 3.0)
    assert sum(found.done_by) == found.n_done and found.rows[-1][1] == found.n_done


def test_bsp_takes_the_longest_of_each_clock():
    cost = CostModel((1.0,), 1.0, latency=0.0)
    found = simulate(Plan(Bsp(), 6, 50, cost, seed=4))
    drawn = np.array([[cost.seconds(4, 6).of(w, s) for s in range(50)] for w in range(6)])
    assert found.seconds == pytest.approx(drawn.max(axis=0).sum(), rel=1e-12)
    assert found.busy_seconds == pytest.approx(drawn.sum(axis=1).tolist())
    assert simulate(Plan(Asp(), 6, 50, cost, seed=4)).seconds == pytest.approx(drawn.sum(axis=1).max(), rel=1e-12)


def test_the_latency_of_a_clock_is_that_of_the_messages_in_its_way():
    """Bsp: a push there, an answer back. Ssp(1) asks for a read ahead, so nothing is in the way of equal workers but the first read."""
    latency = 0.01
    bsp, ssp = (simulate(Plan(policy, 3, 30, CostModel((1.0,), latency=latency))).seconds for policy in (Bsp(), Ssp(1)))
    assert bsp == pytest.approx(30 * (1.0 + 2 * latency), abs=2 * latency)
    assert ssp == pytest.approx(30 + 2 * latency, abs=2 * latency)


def test_one_server_is_the_bottleneck_of_what_it_applies_one_after_the_other():
    """n pushes a clock, each `apply` long on one server; on k servers a k-th of that."""
    n, apply = 20, 0.2
    for k in (1, 2, 4):
        found = simulate(Plan(Asp(), n, 30, CostModel((1.0,), latency=0.0, apply=apply), n_shards=k))
        assert found.seconds == pytest.approx(max(30 * n * apply / k, 30.0), rel=0.08)


def test_payloads_take_the_time_of_the_link_and_are_counted():
    nbytes, rate, n = 8_000_000, 1e8, 10
    found = simulate(Plan(Ssp(1), n, 20, CostModel((0.01,), latency=0.0, bytes_per_second=rate), nbytes=nbytes))
    assert found.seconds == pytest.approx(20 * n * nbytes / rate, rel=0.1), "what goes in and what goes out at once"
    assert found.nbytes == pytest.approx(2 * 20 * n * nbytes, rel=0.1)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_no_clock_is_faster_than_what_a_ranks_link_has_to_carry(n):
    """Beside each worker a server: the gradient to the other servers and theirs here, values from them and to them; (n - 1) / n of each is another rank's."""
    nbytes, rate, clocks = 8_000_000, 1e8, 20
    found = simulate(Plan(Bsp(), n, clocks, CostModel((1e-4,), latency=0.0, bytes_per_second=rate), n, nbytes=nbytes, colocated=True))
    least = 2 * (n - 1) / n * nbytes / rate
    assert least * 0.95 <= found.seconds / clocks <= 1.2 * least


def test_many_servers_do_not_make_a_workers_link_wider():
    nbytes, rate, clocks = 8_000_000, 1e8, 20
    for k in (1, 2, 8):
        found = simulate(Plan(Bsp(), 1, clocks, CostModel((1e-4,), latency=0.0, bytes_per_second=rate), k, nbytes=nbytes))
        assert found.seconds / clocks == pytest.approx(2 * nbytes / rate, rel=0.1), "the gradient out, then the values in"


def test_shards_that_are_alike_are_simulated_as_one():
    """Counts of messages and bytes are those of all; the time is that of one shard of its size."""
    one, four = (simulate(Plan(Ssp(2), 8, 25, CostModel((1.0,), 0.5, bytes_per_second=1e9), k, nbytes=800_000)) for k in (1, 4))
    assert four.n_messages == 4 * one.n_messages and four.nbytes == pytest.approx(one.nbytes, rel=1e-3)


def test_a_limit_of_time_ends_it():
    found = simulate(Plan(Asp(), 4, 1 << 40, CostModel((1.0,), 0.5), seconds=200.0))
    assert found.seconds == pytest.approx(200, abs=6) and found.n_done == pytest.approx(800, rel=0.1)


def test_a_permanent_straggler_holds_every_bounded_policy_and_quorum_drops_it():
    slow = Slowdown("permanent:3", 4, 0)
    seconds = {type(p).__name__: simulate(Plan(p, 4, 40, NONE, slowdown=slow)).seconds for p in (Bsp(), Ssp(3), Quorum())}
    assert seconds["Bsp"] == pytest.approx(120) and seconds["Ssp"] == pytest.approx(120) and seconds["Quorum"] == pytest.approx(40, abs=3)
    found = simulate(Plan(Ssp(3), 4, 40, NONE, slowdown=slow))
    assert max(found.waited, key=lambda role: found.waited[role].seconds) == 1, "worker 0 is role 1"


class Unshared(ps.SizeStore):
    """Counts the bytes of all shards for each of them."""

    def __init__(self, n):
        super().__init__(4 * n)


def test_the_check_catches_a_shard_of_the_wrong_size(monkeypatch):
    monkeypatch.setattr(ps, "SizeStore", Unshared)
    with pytest.raises(AssertionError):
        test_payloads_take_the_time_of_the_link_and_are_counted()


MEMORY = """
from pathlib import Path
from mpidml.core.cost import CostModel
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sync.ssp import Ssp
for n in (10, 10_000):
    plan = Plan(Ssp(3), n, 3, CostModel((1.0,), 1.0))
    found = simulate(plan)
    assert found.n_done == 3 * n and len(found.waited) <= n + 1
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024, plan.memory_nbytes)
"""


def test_ten_thousand_workers_take_no_more_memory_than_is_told():
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=True)
    (before, _), (after, told) = (map(int, line.split()) for line in found.stdout.splitlines())
    assert 20e6 < after - before < told - ps.BASE_NBYTES and told < 300e6


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("policy", POLICIES[:3], ids=lambda p: type(p).__name__)
def test_where_codes_travel_their_bytes_are_counted_and_values_first_and_last(n, policy):
    values, code, clocks = 8_000_000, 500_000, 20
    cost = CostModel((0.01,), latency=0.0, bytes_per_second=1e8)
    found = simulate(Plan(policy, n, clocks, cost, nbytes=values, pushed=code, answer=code))
    assert found.nbytes == n * (clocks * code + (clocks - 1) * code + 2 * values)
    assert found.seconds < simulate(Plan(policy, n, clocks, cost, nbytes=values)).seconds / 3
    half = simulate(Plan(policy, n, clocks, cost, nbytes=values, pushed=code))
    assert half.nbytes == n * (clocks * code + (clocks + 1) * values)


def test_messages_that_cost_nothing_are_said_where_no_rank_could_take_so_many():
    def said(n, **cost):
        plan = Plan(Ssp(3), n, 15, CostModel((0.01,), 0.5, **cost), n, colocated=True)
        return too_many(plan, simulate(plan))

    assert said(1000).startswith("messages cost nothing here: ") and " a second on each of the servers' ranks" in said(1000)
    assert said(100) == said(1000, message=1e-5) == ""
    plan = Plan(Ssp(3), 1000, 15, CostModel((0.01,), 0.5))
    assert too_many(plan, simulate(plan)), "one server, and all are its messages"
    assert not too_many(replace(plan, n_shards=0), simulate(plan)), "sums have no server"


def granting(module, policy):
    """Return what is sent besides what servers send and are sent: messages of one server less those that another one adds."""
    of = [module.simulate(module.Plan(policy, 4, 30, CostModel((1.0,), 0.5), k, dynamic=True)).n_messages for k in (1, 2, 3)]
    assert of[2] - of[1] == of[1] - of[0] > 0
    return of[0] - (of[1] - of[0])


@pytest.mark.parametrize("policy", [Asp(), Adaptive(1, 8)], ids=["asp", "adaptive"])
def test_there_is_one_coordinator_whatever_the_servers(policy):
    """It is asked for each of 4 x 30 blocks and grants it, and then says once to each of 4 workers that there is no more."""
    assert 2 * 120 <= granting(ps, policy) <= 2 * (120 + 3 * 4)
    assert granting(changed(ps, [(" - granting) * alike + granting", ") * alike")]), policy) == 0
