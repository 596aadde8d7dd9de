"""A budget of bytes delays updates and sums them up: no second carries more, no promise of a policy is broken, nothing is lost or counted twice."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpidml_kernels import backend

from mpidml.core.errors import WaitTimeout
from mpidml.core.partition import shards
from mpidml.core.position import Position
from mpidml.core.role import CLOCK, LAST, LOAD, PUSH, After, Lease, Send
from mpidml.optim.base import make_chain
from mpidml.ps.budget import ORDERS, TokenBucket
from mpidml.ps.client import Client
from mpidml.ps.managed import ManagedClient
from mpidml.ps.shard import Shard
from mpidml.ps.store import Store
from mpidml.ps.table import TableSpec
from mpidml.sim import virtual
from mpidml.sync.adaptive import Adaptive
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.quorum import Quorum
from mpidml.sync.ssp import Ssp
from tests.scenarios import Scenario, misses, sums_up

POLICIES = {"bsp": Bsp(), "ssp2": Ssp(2), "asp": Asp(), "adaptive": Adaptive(1, 8), "quorum": Quorum()}


def run(scenario, seed, in_order=True, mean_latency=0.2):
    """Run on virtual clocks; return the roles and worker -> [(seconds, bytes)] of what its updates weigh."""
    rng, sent = random.Random(seed), {}

    def arrival(now, source, target, message):
        if message.kind == PUSH:
            nbytes = message.data.array.nbytes + (0 if message.rows is None else message.rows.nbytes)
            sent.setdefault(source, []).append((now, nbytes))
        return now + rng.expovariate(1 / mean_latency)

    roles = scenario.roles()
    virtual.run(roles, lambda role, clock, now: rng.expovariate(1), arrival=arrival, in_order=in_order)
    return roles, sent


def check_windows(sent, most):
    """Hold each closed window of a second, from each message on, to `most` bytes."""
    for grants in sent.values():
        times, nbytes = np.array(grants).T
        for now in times:
            assert nbytes[(times >= now) & (times <= now + 1)].sum() <= most * (1 + 1e-9)


def shows_exactly(scenario, seen):
    """Tell whether reads under bsp show no update of their own clock or a later one."""
    clock_of = {s.row: s.clock for s in seen}
    return all(not s.values[row] for s in seen for row, clock in clock_of.items() if clock >= s.clock)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.booleans(),
    st.sampled_from(("fresh", "cached", "eager", "rows")), st.sampled_from(ORDERS), st.sampled_from((80.0, 200.0, 900.0)), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
def test_a_tight_budget_keeps_every_promise(name, n_workers, n_servers, n_clocks, sparse, reads, order, budget, in_order, seed):
    policy, rows = POLICIES[name], reads == "rows"
    scenario = Scenario(
        policy,
        n_workers,
        n_servers,
        n_clocks,
        reads="cached" if rows else reads,
        sparse=sparse or rows,
        cache_rows=5 * rows,
        budget=budget,
        order=order,
    )
    _, sent = run(scenario, seed, in_order)
    seen = scenario.seen()
    assert misses(scenario, seen, policy.bound) == []
    assert all(sums_up(scenario, task.final, seen) for task in scenario.tasks.values())  # every update exactly once, or dropped whole
    assert name != "bsp" or shows_exactly(scenario, seen)
    check_windows(sent, 1.1 * budget)


class NoBucket(TokenBucket):
    def take(self, now, nbytes):
        return True


class Unlimited(ManagedClient):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.bucket = NoBucket(self.bucket.rate)


def test_the_windows_catch_a_client_without_a_bucket():
    for cls, keeps in ((ManagedClient, True), (Unlimited, False)):
        _, sent = run(Scenario(Ssp(2), 3, 2, 12, budget=200.0, client_class=cls), 1)
        if keeps:
            check_windows(sent, 1.1 * 200)
        else:
            with pytest.raises(AssertionError):
                check_windows(sent, 1.1 * 200)


def sent_over_pauses(keeps):
    """Run with a pause at each clock, which takes no time; return what `run` does of what was sent. Where `keeps` is false each stretch begins with a full bucket."""
    scenario, sent, began = Scenario(Bsp(), 3, 2, 12, coordinated=True, budget=900.0), {}, 0.0

    def arrival(now, source, target, message):
        if message.kind == PUSH:
            sent.setdefault(source, []).append((began + now, message.data.array.nbytes))
        return now + 0.01

    for done in range(12):
        scenario.pause_at = (done + 1) % 12
        roles = scenario.roles()
        seconds = virtual.run(roles, lambda role, clock, now: 0.01, arrival=arrival).seconds
        began += seconds
        clock = max(role.clocks.highest for role in roles if isinstance(role, Shard))
        scenario.position = Position(clock, scenario.coordinator.turns_done())
        for client in scenario.clients.values():
            client.bucket.since -= seconds  # virtual clocks begin at 0 again
        if not keeps:
            scenario.clients.clear()
    assert all(sums_up(scenario, task.final, scenario.seen()) for task in scenario.tasks.values())
    return sent


def test_pauses_bring_no_budget():
    check_windows(sent_over_pauses(keeps=True), 1.1 * 900)


def test_the_windows_catch_a_budget_that_each_pause_fills():
    with pytest.raises(AssertionError):
        check_windows(sent_over_pauses(keeps=False), 1.1 * 900)


class TicksAtOnce(ManagedClient):
    """Tells the end of a clock before all of it is sent."""

    def _tell(self, now, effects):
        while self.untold:
            effects += [self._numbered(role, self.untold[0][0]) for role in self.routing.shard_of]
            self.untold.popleft()


class TicksAClockEarly(ManagedClient):
    def _oldest(self, table):
        oldest = super()._oldest(table)
        return oldest + (oldest < 1 << 40)


class HidesTheUnsent(ManagedClient):
    """Does not show what is unsent in the answers that come meanwhile."""

    def _fill(self, *arguments):
        Client._fill(self, *arguments)


class HidesFromAnswers(ManagedClient):
    """Does not show a write in what was answered before it and not taken yet."""

    def _show(self, table, region, values):
        pass


class ShowsTwice(ManagedClient):
    """Shows a write again when it is sent."""

    def _wrote(self, role, write):
        Client._wrote(self, role, write)

    def _send(self, table, piece):
        before = {role: len(own.writes) for role, own in self.own.items()}
        effects = super()._send(table, piece)
        for role, own in self.own.items():
            for write in own.writes[before[role] :]:
                self._wrote(role, write)
        return effects


class KeepsItsTurn(ManagedClient):
    """Sends the same piece again and again, as if nothing had been taken out."""

    def _send(self, table, piece):
        backlog = self.backlogs[table]
        if backlog.next_turn % 5 == 0:
            lo, hi, rows = piece.region
            backlog.add(piece.newest_clock, piece.values, lo, hi, rows)
        return super()._send(table, piece)


@cache
def is_caught(cls, name="ssp2"):
    """Tell whether a run of a client breaks a promise."""

    def caught(seed):
        scenario = Scenario(POLICIES[name], 3, 2, 10, budget=300.0, client_class=cls)
        try:
            run(scenario, seed)
        except (WaitTimeout, AssertionError, KeyError):
            return True
        seen = scenario.seen()
        return bool(misses(scenario, seen, scenario.policy.bound)) or not all(sums_up(scenario, task.final, seen) for task in scenario.tasks.values())

    return any(map(caught, range(12)))


@pytest.mark.parametrize("broken", [TicksAtOnce, TicksAClockEarly, HidesTheUnsent, HidesFromAnswers, ShowsTwice, KeepsItsTurn])
def test_the_checker_catches_broken_clients(broken):
    assert is_caught(broken) and not is_caught(ManagedClient)


@pytest.mark.parametrize("broken", [TicksAtOnce, TicksAClockEarly, KeepsItsTurn])
@pytest.mark.parametrize("name", ["adaptive", "quorum"])
def test_it_catches_them_where_a_gate_stands(name, broken):
    assert is_caught(broken, name) and not is_caught(ManagedClient, name)


@pytest.mark.parametrize("reads", ["fresh", "cached"])
def test_a_budget_that_is_never_reached_changes_no_read(reads):
    """As long as the bucket grants all at once a clock ends when it did; only the messages are more."""

    def reads_of(**options):
        scenario = Scenario(Ssp(2), 3, 2, 20, reads=reads, **options)
        virtual.run(scenario.roles(), lambda role, clock, now: 1.0 + 0.37 * ((role * 7 + clock * 3) % 5), 0.01)
        return [(s.worker, s.clock, s.version, s.values.tobytes()) for s in scenario.seen()]

    assert reads_of(budget=1e9) == reads_of()


TABLE = TableSpec("t", 12, 2, np.dtype(np.float64), shards(12, 2), 0)


def managed(policy=None, spec=TABLE, **options):
    return ManagedClient([spec], policy or Asp(), (policy or Asp()).commit == "clock", **options)


def pushes(effects):
    return [e.message for e in effects if isinstance(e, Send) and e.message.kind == PUSH]


def kinds(effects):
    return [e.message.kind for e in effects if isinstance(e, Send)]


def drain(client, now=0.0):
    """Wake the client until nothing is left; return all messages that it has sent."""
    messages = []
    for _ in range(1000):
        now += 0.1
        effects = client.flush(now)
        messages += [e.message for e in effects if isinstance(e, Send)]
        if not client.untold and not any(b.nbytes for b in client.backlogs):
            return messages
    raise AssertionError("something is never sent")


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_is_the_one_that_was_asked_for(order):
    client = managed(budget=320.0, order=order, seed=3)  # pieces of two rows
    delta = np.repeat([3.0, 1.0, 6.0, 2.0, 5.0, 4.0], 4)
    for k in (4, 0, 2, 1, 3, 5):  # piece by piece, so that they have waited for different times
        client.push(0, Lease(delta[4 * k : 4 * k + 4]), block=(2 * k, 2 * k + 2))
    found = [message.lo // 2 for message in drain(client)]
    assert found == {"fifo": [4, 0, 2, 1, 3, 5], "magnitude": [2, 4, 5, 0, 3, 1]}.get(order, found)
    assert sorted(found) == list(range(6)) and (order != "random" or found not in ([4, 0, 2, 1, 3, 5], [2, 4, 5, 0, 3, 1]))


def test_what_waits_is_summed_up_and_softened_by_its_stalest_delta():
    client = managed(budget=320.0)
    client.push(0, Lease(np.ones(24)))
    first = pushes(client.tick(0.0))
    for version in (1, 3):
        client.push(0, Lease(np.full(24, 10.0 * version)), version=version)
        assert not pushes(client.tick(0.0))
    messages = drain(client)
    for message in [m for m in messages if m.kind == PUSH and m.lo < 10]:
        assert (message.clock, message.version) == ((2, 0) if message.lo >= 2 else (2, 1)), message
    assert sum(m.data.array.sum() for m in [*first, *messages] if m.kind == PUSH) == 24 * (1 + 10 + 30)
    assert [m.clock for m in messages if m.kind == CLOCK] == [0, 0, 1, 1, 2, 2]  # in order, to both shards
    assert messages[-1].kind == CLOCK


def test_a_clock_is_told_once_its_last_piece_is_sent_and_the_end_after_all():
    client = managed(budget=320.0)
    client.push(0, Lease(np.ones(24)))
    said = kinds(client.tick(0.0)) + kinds(client.last(0.0))
    assert said == [PUSH]  # a tenth of a second's bytes
    said = [m.kind for m in drain(client)]
    assert said == [PUSH] * 5 + [CLOCK] * 2 + [LAST] * 2
    numbered = managed(budget=1e6)
    numbered.push(0, Lease(np.ones(24)))
    told = [(e.target, e.message.counted) for e in [*numbered.tick(0.0), *numbered.last(0.0)]]
    assert sorted(told) == [(role, n) for role in (0, 1) for n in (1, 2, 3)]


def test_clocks_do_not_mix_where_deltas_count_by_clock():
    client = managed(Bsp(), budget=320.0)
    client.push(0, Lease(np.ones(24)))
    client.tick(0.0)
    assert not client.open()
    with pytest.raises(RuntimeError, match="before the last one is sent"):
        client.push(0, Lease(np.ones(24)))
    drain(client)
    assert client.open()
    client.push(0, Lease(np.ones(24)))


def test_one_timer_runs_at_a_time():
    client = managed(budget=320.0)
    client.push(0, Lease(np.ones(24)))
    timers = [e.seconds for e in client.tick(0.0) if isinstance(e, After)]
    assert len(timers) == 1 and 0 < timers[0] <= 0.11
    assert client.flush(timers[0] / 2) == []
    assert [type(e) for e in client.flush(timers[0])] == [Send, After]


def test_an_optimizer_is_sent_no_row_that_was_not_pushed():
    rows = np.array([0, 1, 3, 4, 5])
    for update, sent in ((make_chain("momentum", 0.1), [1, 1, 1, 1, 1]), (None, [1, 1, 0, 1, 1, 1, 0, 0])):
        client = managed(spec=TABLE._replace(width=1, update=update), budget=640.0)
        client.push(0, Lease(np.ones(5)), rows=rows)
        assert [v for message in drain(client) for v in message.data.array] == sent


class Watching(Asp):
    watches_seconds = 0.5


def test_timers_of_load_and_budget_live_in_one_worker():
    loads = []

    def load(worker, now):
        loads.append((worker, now))
        return float(int(now) % 2)

    scenario, said = Scenario(Watching(), 2, 1, 10, coordinated=True, load=load, budget=100.0), []
    rng = random.Random(0)

    def arrival(now, source, target, message):
        if message.kind == LOAD:
            said.append(now)
        return now + 0.01

    virtual.run(scenario.roles(), lambda role, clock, now: rng.expovariate(1), arrival=arrival)
    assert misses(scenario, scenario.seen(), None) == []
    assert {s.row for s in scenario.seen()} == set(np.flatnonzero(scenario.tasks[0].final))  # without a gate a LOAD takes a turn, too
    looks = [now for worker, now in loads if worker == 0 and now * 2 == int(now * 2)]
    assert said and looks == [0.5 * k for k in range(len(looks))] and len(looks) > 5


def test_a_wait_says_what_the_budget_holds_back():
    client = managed(Ssp(0), budget=320.0)
    client.push(0, Lease(np.ones(24)))
    client.tick(1.0)
    client.pull(1.0, 0, np.zeros((12, 2)))
    (wait,) = client.waiting(1.5)
    assert "pull for clock 1 lacks" in wait.text and "160 bytes of its updates wait for its budget of 320 bytes/s" in wait.text


def factorised(order, seed, n_nbytes=20_000, n=80, rank=4):
    """Factorise a matrix whose rows and columns are drawn with skewed frequencies; return the servers' error after so many bytes."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n)) / np.sqrt(rank)
    draw = 1.0 / np.arange(1, n + 1)
    draw /= draw.sum()
    specs = [TableSpec(name, n, rank, np.dtype(np.float64), shards(n, 1), i) for i, name in enumerate("lr")]
    values = [0.3 * rng.normal(size=(n, rank)) for _ in specs]
    stores = [Store([v.ravel().copy()], 0, rank, backend("numpy")) for v in values]
    client = ManagedClient(specs, Asp(), False, budget=4000.0, order=order, seed=seed)
    left, right = values
    now = nbytes = 0.0
    while nbytes < n_nbytes:
        i, j = rng.choice(n, 20, p=draw), rng.choice(n, 20, p=draw)
        error = (truth[i, j] - (left[i] * right[j]).sum(1))[:, None]
        steps = 0.05 * error * right[j], 0.05 * error * left[i]
        for table, (rows, step) in enumerate(zip((i, j), steps, strict=True)):
            np.add.at(values[table], rows, step)  # what the worker reads: its own writes at once
            client.push(table, Lease(step.ravel()), rows=rows)
        now += 0.02
        for effect in client.tick(now):
            if isinstance(effect, Send) and effect.message.kind == PUSH:
                message = effect.message
                nbytes += message.data.array.nbytes + (0 if message.rows is None else message.rows.nbytes)
                stores[effect.target].apply([message])
    weights = np.outer(draw, draw)
    left, right = (store.at(0) for store in stores)
    return float((weights * (truth - left @ right.T) ** 2).sum())


def test_the_largest_first_are_no_worse_than_the_oldest_first_on_a_skewed_problem():
    errors = {order: np.mean([factorised(order, seed) for seed in range(5)]) for order in ORDERS}
    assert errors["magnitude"] <= errors["fifo"], errors
