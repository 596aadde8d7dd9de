"""Hold the tables of a plain program to what they say: sums are exact, runs leave nothing behind, memory does not grow."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.tables import run_tables


def total(comm, value):
    return sum(v for v in comm.allgather(value) if v is not None)


@pytest.mark.mpi
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
        for step in range(2000):
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
    assert "there is no table 'v'" in refusal(initial={"v": np.zeros((4, 2))}, comm=counted)
    assert "positive number of seconds" in refusal(wait_limit=-1, comm=counted)
    assert "needs the whole gradient" in refusal(optimizer="clip:1+sgd", comm=counted)
    assert "depends on when rows arrive" in refusal(sync="ssp:3", reads="eager", deterministic=True, comm=counted)
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
