"""Hold the tables of a plain program to what they say: sums are exact, runs leave nothing behind, memory does not grow."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.tables import run_tables


def total(comm, value):
    return sum(v for v in comm.allgather(value) if v is not None)


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("reads", ["fresh", "cached", "eager"])
@pytest.mark.parametrize("servers", ["colocated", "1"])
def test_a_run_leaves_nothing_for_the_next_one(comm, reads, servers):
    """Workers end at different clocks, with reads asked for and never taken; the next run in the same processes counts from zero."""
    counted = CountedComm(comm)

    def main(tables):
        w = tables["w"]
        for step in range(4 + 3 * tables.worker):
            w.pull().wait()
            w.push(np.ones((40, 3)))
            tables.clock()
            if step % 2:
                w.pull(slice(0, 30))
        w.pull()
        return 40 * 3 * (4 + 3 * tables.worker)

    def last(tables):
        tables["w"].push(np.ones((40, 3)))
        tables.clock()
        return float(tables["w"].pull(latest=True).wait().sum())

    for _ in range(4):
        run_tables(main, {"w": (40, 3), "v": (7, 1)}, sync="ssp:1", reads=reads, servers=servers, comm=counted, wait_limit=20)
        found = run_tables(last, {"w": (40, 3)}, sync="bsp", reads=reads, servers=servers, comm=counted, wait_limit=20)
        n_workers = 1 if comm.size == 1 else comm.size - (servers == "1")
        assert found is None or found == 40 * 3 * n_workers
    counted.free()


@pytest.mark.mpi
def test_a_large_read_that_nobody_waits_for_holds_nothing_up(comm):
    counted = CountedComm(comm)
    assert run_tables(lambda tables: tables["w"].pull() and 1, {"w": (300_000, 8)}, servers="1", comm=counted, wait_limit=20) in (1, None)
    counted.free()


@pytest.mark.mpi
def test_a_worker_reads_its_own_writes_in_any_order_of_kinds_of_reads(comm):
    counted = CountedComm(comm)

    def main(tables):
        w, before = tables["w"], 0.0
        for _ in range(12):
            w.push(np.ones((5, 1)))
            tables.clock()
            for latest in (True, False):
                now = float(w.pull(latest=latest).wait()[0, 0])
                assert now >= before if tables.n_workers == 1 else now > 0
                before = now
        return before

    for deterministic in (False, True):
        run_tables(main, {"w": (5, 1)}, sync="ssp:2", deterministic=deterministic, comm=counted, wait_limit=20)
    counted.free()


@pytest.mark.mpi
def test_memory_does_not_grow_with_pushes(comm):
    """A worker that only pushes keeps no more than a few hundred of its writes; sparse pushes take no buffers for good."""
    counted = CountedComm(comm)

    def main(tables):
        session = tables._session
        for step in range(1000):
            tables["w"].push(np.ones((2, 4)), [step % 100, 7])
            tables["v"].push(np.ones((9, 1))).wait()
            tables.clock()
        buffers = sum(len(given) for given in session.buffers.given.values())
        writes = sum(len(own.writes) for own in session.client.own.values())
        assert buffers < 50, buffers
        assert writes < 600 * len(session.client.own), writes
        return float(tables["w"].pull(latest=False).wait().sum())

    run_tables(main, {"w": (100, 4), "v": (9, 1)}, sync="ssp:2", comm=counted, wait_limit=20)
    counted.free()


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "warmup:5:3"])
def test_a_cache_of_few_rows_loses_no_write(comm, sync):
    """Each worker reads listed rows that it wrote, more than its cache holds; in the end all increments are there, each once. Under bsp no copy is new enough."""
    counted = CountedComm(comm)

    def main(tables):
        w, n_hits = tables["w"], 0
        mine = np.zeros((30, 2))
        rng = np.random.default_rng(tables.worker)
        for _ in range(25):
            rows = rng.zipf(1.5, 6) % 30
            reading = w.pull(rows)
            w.push(np.ones((3, 2)), rows[:3])  # before the read is taken, so it shows
            np.add.at(mine, rows[:3], 1)
            values = reading.wait()
            assert (values >= mine[rows]).all(), "an own write is missing"
            assert (values <= 25 * 3 * tables.n_workers).all()
            tables.clock()
        session = tables._session
        assert all(len(cache) <= 4 for cache in session.client.caches.values())
        n_hits = sum(cache.n_hits for cache in session.client.caches.values())
        return n_hits, float(w.pull(np.arange(30), latest=True).wait().sum())

    for servers in ("colocated", "1"):
        found = run_tables(main, {"w": (30, 2)}, sync=sync, reads="cached", cache_rows=4, servers=servers, comm=counted, wait_limit=20)
        n_workers = 1 if comm.size == 1 else comm.size - (servers == "1")
        if found is not None:
            assert found[1] == 25 * 6 * n_workers
            assert (found[0] > 0) == (sync != "bsp")
    counted.free()


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp"])
@pytest.mark.parametrize("order", ["fifo", "random", "magnitude"])
def test_under_a_budget_own_writes_are_read_at_once_and_none_is_lost(comm, sync, order):
    """Nine clocks; in the end a read waits for everybody's, and all are there once, except under asp, where nobody waits."""
    counted = CountedComm(comm)

    def main(tables):
        w, v = tables["w"], tables["v"]
        for step in range(6):
            before = w.pull()
            w.push(np.ones((50, 4)))
            v.push(np.ones((2, 1)), [step % 5, step % 5])
            assert (before.wait() >= step + 1).all(), "an own write is missing"
            tables.clock()
        for _ in range(3):  # nothing is read: the clocks wait by themselves where they must not mix
            w.push(np.ones((50, 4)))
            tables.clock()
        assert (w.pull([49, 0, 7]).wait() >= 9).all()
        return [float(tables[name].pull(latest=True).wait().sum()) for name in ("w", "v")], tables.n_workers

    options = {"sync": sync, "order": order, "comm": counted, "wait_limit": 20}
    for servers, budget in (("1", 20_000), ("colocated", 10**9)):
        started = time.perf_counter()
        found = run_tables(main, {"w": (50, 4), "v": (5, 1)}, servers=servers, budget=budget, **options)
        if found is not None:
            (w, v), n_workers = found
            assert (w, v) == (n_workers * 9 * 200, n_workers * 12)
        if budget == 20_000 and sync == "bsp":
            assert time.perf_counter() - started > 0.2  # 9 clocks of 800 bytes
    counted.free()


N_CLOCKS, RATE, START = 12, 0.05, np.linspace(-1, 1, 14)
GOAL = np.arange(14.0).reshape(7, 2)


def descend(tables):
    """Push this worker's share of the gradient of |w - GOAL|^2 / 2 + n w^3 / 30, whose parts differ over workers; return the last values."""
    w = tables["w"]
    for _ in range(N_CLOCKS):
        values = w.pull().wait()
        w.push((values - GOAL + (1 + tables.worker) * values**2 / 10) / tables.n_workers)
        tables.clock()
    return w.pull(latest=True).wait()


def descended(n_workers, staleness=0, tuned=True):
    """Descend in a plain loop with momentum 0.9; each gradient is that of the values `staleness` clocks before, and is softened for it."""
    w, v = [START.reshape(7, 2)], np.zeros((7, 2))
    for clock in range(N_CLOCKS):
        old = w[max(0, clock - staleness)]
        late = min(clock, staleness) if tuned else 0
        gradient = old - GOAL + (n_workers + 1) / 2 * old**2 / 10
        v = (1 - min(1.0, 0.1 * (1 + late))) * v + gradient
        w.append(w[-1] - RATE / (1 + late) * v)
    return w[-1]


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("servers", ["colocated", "1"])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_pushed_gradients_descend_as_a_plain_loop_does(comm, servers, staleness):
    """In repeat mode it is known how stale each read is; under bsp none is, and its clocks are those of one process on the sum of the gradients."""
    counted = CountedComm(comm)
    options = {"servers": servers, "optimizer": "momentum", "lr": RATE, "dtype": "float64", "comm": counted, "wait_limit": 20}
    options |= {"sync": f"ssp:{staleness}", "deterministic": True} if staleness else {"sync": "bsp"}
    n_workers = 1 if comm.size == 1 else comm.size - (servers == "1")
    for tune in (True, False):
        found = run_tables(descend, {"w": (7, 2)}, initial={"w": START}, tune=tune, **options)
        if found is not None:
            np.testing.assert_allclose(found, descended(n_workers, staleness, tune), rtol=1e-12)
            others = [descended(n_workers, s, t) for s in range(3) for t in (True, False) if (s, t) != (staleness, tune) and staleness]
            assert all(np.abs(found - other).max() > 1e-3 for other in others), "the check tells none of them apart"
    counted.free()


@pytest.mark.mpi
def test_tables_begin_with_the_values_of_rank_0(comm):
    """So a module that every rank draws by itself begins as one, and the other ranks need not hold its values."""
    counted = CountedComm(comm)
    mine = {"w": START + comm.rank} if comm.rank % 2 == 0 else None
    for servers in ("colocated", "1"):
        found = run_tables(lambda tables: tables["w"].pull().wait(), {"w": (14, 1)}, servers=servers, initial=mine, dtype="float64", comm=counted, wait_limit=20)
        assert found is None or found.ravel().tolist() == START.tolist()
    counted.free()


def refusal(**options):
    with pytest.raises(UserError) as error:
        run_tables(lambda tables: None, **{"tables": {"w": (4, 2)}, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.mpi
def test_tables_that_cannot_be_are_refused(comm):
    counted = CountedComm(comm)
    for size in ((0, 2), (4,), (3, 4, 5), 5, "x", (4, 1.5)):
        assert "table 'w': " in (said := refusal(tables={"w": size}, comm=counted)) and "give (rows, width)" in said
    assert "nothing to serve" in refusal(tables={}, comm=counted)
    assert "choose float32 or float64" in refusal(dtype="int32", comm=counted)
    assert "have shape (2, 4), the table has (4, 2)" in refusal(initial={"w": np.zeros((2, 4))}, comm=counted)
    assert "does nothing without an optimizer" in refusal(tune=False, comm=counted)
    assert "there is no table 'v'" in refusal(initial={"v": np.zeros((4, 2))}, comm=counted)
    assert "positive number of seconds" in refusal(wait_limit=-1, comm=counted)
    assert "needs the whole gradient" in refusal(optimizer="clip:1+sgd", comm=counted)
    assert "depends on when rows arrive" in refusal(sync="ssp:3", reads="eager", deterministic=True, comm=counted)
    for reads in ("fresh", "eager"):
        assert "does nothing beside reads=" in refusal(cache_rows=3, reads=reads, comm=counted)
    for rows in (-1, 1.5, True):
        assert "is not a number of rows" in refusal(cache_rows=rows, reads="cached", comm=counted)
    assert "depends on when answers arrive" in refusal(cache_rows=3, reads="cached", deterministic=True, comm=counted)
    for budget in (-1, float("nan"), "x"):
        assert "is not a number of bytes a second" in refusal(budget=budget, comm=counted)
    assert "there is no such choice" in refusal(budget=1.0, order="lifo", comm=counted)
    assert "does nothing without a budget" in refusal(order="random", comm=counted)
    assert "use a policy without a gate" in refusal(budget=1.0, sync="adaptive", comm=counted)
    assert "depends on timing" in refusal(budget=1.0, deterministic=True, comm=counted)
    counted.free()


@pytest.mark.mpi
def test_rows_and_deltas_that_do_not_fit_are_refused(comm):
    counted = CountedComm(comm)

    def main(tables):
        w = tables["w"]
        for rows, error in (([True, False], "whole numbers"), ([1.7], "whole numbers"), ([[1]], "whole numbers"), ([9], "not all in 0..3"), (slice(0, 4, 2), "step 1")):
            with pytest.raises((ValueError, IndexError), match=error):
                w.pull(rows)
        with pytest.raises(ValueError, match=r"shape \(2, 4\); give 4 rows of width 2"):
            w.push(np.zeros((2, 4)))
        with pytest.raises(ValueError, match="the delta is complex128, which float32 does not hold"):
            w.push(np.ones((4, 2)) * 1j)
        assert w.pull([]).wait().shape == (0, 2)
        w.push(np.zeros((0, 2)), [])
        return True

    run_tables(main, {"w": (4, 2)}, comm=counted, wait_limit=20)
    counted.free()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sync": "quorum"}, "grants whole clocks"),
        ({"sync": "adaptive"}, "grants whole clocks"),
        ({"sync": "asp", "reads": "cached"}, "never be read anew"),
        ({"sync": "asp", "reads": "cached", "cache_rows": 4}, "never be read anew"),
    ],
)
def test_what_would_lose_updates_or_never_see_any_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        run_tables(lambda tables: None, {"w": (4, 1)}, **options)


@pytest.mark.mpi(min_size=2)
def test_bytes_go_by_the_rows_that_are_touched_and_not_by_the_rows_there_are(comm):
    """A read sends the rows' numbers, a write their numbers and values; what else is sent does not depend on either count."""

    def sent(n_rows, k):
        def main(tables):
            driver = tables._session.driver
            for step in range(10):
                rows = np.arange(step, step + k) * 7 % n_rows
                tables["w"].push(tables["w"].pull(rows).wait(), rows)
                tables.clock()
            tables["w"].pull(slice(0, 1), latest=True).wait()
            return driver.comm.nbytes_sent + driver.nbytes_window

        return run_tables(main, {"w": (n_rows, 4)}, servers="1", optimizer="adagrad", comm=CountedComm(comm))

    small, more, of_many = sent(10_000, 100), sent(10_000, 1100), sent(1_000_000, 100)
    if small is not None:
        assert more - small == 10 * 1000 * (8 + 8 + 4 * 4)
        assert of_many == small
