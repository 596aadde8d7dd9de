"""A cache of few rows changes what is asked, never what a read promises: judged by values alone, whatever the delays, the order and the evictions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.core.role import PULL, PUSH, ROWS, Lease, Message
from mpidml.ps.cached_rows import CachingClient
from mpidml.ps.row_cache import RowCache
from mpidml.ps.task import Read
from mpidml.sim import virtual
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.ssp import Ssp
from mpidml.sync.warmup import Warmup
from tests.ps.test_consistency import jittered
from tests.scenarios import OracleTask, Scenario, misses

POLICIES = {"bsp": Bsp(), "ssp1": Ssp(1), "ssp3": Ssp(3), "asp": Asp(), "warmup": Warmup(4, 3)}


@dataclass
class Chunked(OracleTask):
    """Reads the listed rows by three questions at a time, one of them with a row named twice."""

    def reads(self, step):
        out, n = self.out[step % 2], self.n_rows
        self.rows[:] = np.random.default_rng((self.worker, step)).permutation(n)
        cuts = [0, n // 3, n // 2, n]
        self.twice = np.zeros((cuts[1] + 1, self.width))
        first = np.append(self.rows[: cuts[1]], self.rows[0])
        return [Read(0, self.twice, first), *(Read(0, out[a:b], self.rows[a:b].copy()) for a, b in pairwise(cuts[1:]))]

    def values(self, step):
        n = len(self.twice) - 1
        self.out[step % 2][:n] = self.twice[:n]
        assert n == 0 or np.array_equal(self.twice[0], self.twice[n])
        return super().values(step)


class Watched(CachingClient):
    """Holds its caches to the capacity, after each message."""

    def answer(self, now, source, message):
        super().answer(now, source, message)
        assert all(len(cache) <= self.cache_rows and len(cache.values) <= self.cache_rows for cache in self.caches.values())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)), st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.sampled_from((1, 3, 3, 9, 100)),
    st.sampled_from((OracleTask, Chunked)), st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_reads_keep_the_promise_with_a_cache_of_few_rows(name, n_workers, n_servers, n_clocks, cache_rows, task, in_order, seed):
    policy = POLICIES[name]
    scenario = Scenario(
        policy, n_workers, n_servers, n_clocks, reads="cached", sparse=True, cache_rows=cache_rows, task_class=task, client_class=Watched
    )
    virtual.run(scenario.roles(), in_order=in_order, **jittered(seed))
    assert misses(scenario, scenario.seen(), policy.bound) == []
    assert all((task.final == 1).all() for task in scenario.tasks.values())  # every update exactly once


def asked(policy, cache_rows, **changes):
    """Return how many rows all workers asked the servers for, and how many hits their caches had."""
    scenario, n = Scenario(policy, 3, 2, 40, reads="cached", sparse=True, cache_rows=cache_rows, **changes), 0
    rng = random.Random(1)

    def arrival(now, source, target, message):
        nonlocal n
        n += message.rows.size if message.kind == PULL and message.rows is not None else 0
        return now + rng.expovariate(100)

    roles = scenario.roles()
    virtual.run(roles, lambda role, clock, now: rng.expovariate(1), arrival=arrival)
    assert misses(scenario, scenario.seen(), policy.bound) == []
    caches = [cache for i in scenario.worker_roles for cache in getattr(roles[i].client, "caches", {}).values()]
    return n, sum(cache.n_hits for cache in caches)


def test_rows_read_again_are_not_asked_again():
    without, some, all_held = (asked(Ssp(3), n)[0] for n in (0, 30, 120))
    assert all_held < 0.6 * without and all_held < some < without
    total = 3 * (40 + 1) * 120
    assert without == total and sum(asked(Ssp(3), 30)) == total


def test_where_nothing_old_may_be_read_the_cache_saves_nothing():
    assert asked(Bsp(), 120)[0] == asked(Bsp(), 0)[0]


class NoOverlay(CachingClient):
    def _overlay_hits(self, role, out, rows, versions, counts):
        pass


class ForgetsBeneathTheCache(CachingClient):
    def _forget(self, source, version, counted):
        self.own[source].forget(version, counted)


class Patient(RowCache):
    def find(self, rows, oldest):
        return super().find(rows, oldest - 2)


class ServesTooOldRows(CachingClient):
    def _cache(self, table):
        cache = super()._cache(table)
        cache.__class__ = Patient
        return cache


class AddsOnlyToAnswers(CachingClient):
    """Does not show a write in cached rows that were read before it and not taken yet."""

    def _wrote(self, role, write):
        hits, self.hits = self.hits, {}
        super()._wrote(role, write)
        self.hits = hits


@cache
def is_caught(cls):
    """Tell whether a run of a client breaks the promise."""

    def caught(seed):
        scenario = Scenario(Ssp(3), 3, 2, 24, reads="cached", sparse=True, cache_rows=50, client_class=cls)
        virtual.run(scenario.roles(), **jittered(seed))
        return bool(misses(scenario, scenario.seen(), 3))

    return any(map(caught, range(20)))


@pytest.mark.parametrize("broken", [NoOverlay, ForgetsBeneathTheCache, ServesTooOldRows])
def test_the_checker_catches_broken_caches(broken):
    assert is_caught(broken) and not is_caught(CachingClient)


def test_a_write_between_the_question_and_the_use_is_seen_in_cached_rows():
    """A plain program may push after it has asked: `take` is where the values are settled."""
    for cls, seen in ((CachingClient, 5.0), (AddsOnlyToAnswers, 0.0)):
        scenario = Scenario(Asp(), 1, 1, 4, reads="cached", sparse=True, cache_rows=4, client_class=cls)
        client = scenario.client()
        rows, out = np.arange(4), np.zeros((4, 1))
        ticket, effects = client.pull(0.0, 0, out, rows=rows)
        question = effects[0].message
        client.answer(0.0, 0, Message(ROWS, ticket=question.ticket, rows=rows, data=Lease(np.zeros(4).view(np.uint8))))
        client.take(ticket)
        again, effects = client.pull(0.0, 0, out, rows=rows)
        assert again.done and not effects
        sent = client.push(0, Lease(np.array([5.0])), rows=np.array([2]))
        assert [effect.message.kind for effect in sent] == [PUSH]
        client.take(again)
        assert out.ravel().tolist() == [0, 0, seen, 0]


class NeverDrops(RowCache):
    def drop(self, version, counted, lo=0, hi=None):
        pass


class KeepsAllWrites(CachingClient):
    def _cache(self, table):
        cache = super()._cache(table)
        cache.__class__ = NeverDrops
        return cache


@pytest.mark.parametrize(("cls", "bounded"), [(CachingClient, True), (KeepsAllWrites, False)])
def test_rows_that_are_held_for_ever_do_not_keep_all_writes(cls, bounded, monkeypatch):
    most = 64  # of fewer writes a read is judged sooner
    for module in ("client", "cached_rows"):
        monkeypatch.setattr(f"mpidml.ps.{module}.MOST_WRITES", most)
    n_clocks = 2 * most + 100
    scenario = Scenario(Asp(), 1, 1, n_clocks, reads="cached", sparse=True, cache_rows=n_clocks, client_class=cls)
    roles = scenario.roles()
    virtual.run(roles, lambda role, clock, now: 1.0)
    assert misses(scenario, scenario.seen(), None) == []
    assert (max(len(own.writes) for own in roles[1].client.own.values()) <= 2 * (most + 1)) == bounded
