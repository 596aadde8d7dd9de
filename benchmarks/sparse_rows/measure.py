"""Pull and push listed rows of a large table on two servers: rows a second and bytes a row, beside NumPy on the same rows in one process."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mpidml
from benchmarks.rounds import Rounds, Sample

WIDTH = 16
TOUCHED = (1024, 4096, 16384)
ROW_NBYTES = 2 * (8 + 4 * WIDTH)  # its number and its values, there and back


def draw(random: np.random.Generator, n_rows: int, k: int) -> np.ndarray[Any, Any]:
    """Return k different rows, few of them often: the logarithm of a row's number is uniform, as of words by frequency."""
    return np.unique((n_rows ** random.random(2 * k)).astype(np.int64) % n_rows)[:k]


def moved(tables: Any) -> int:
    """Return the bytes that this rank has sent so far, by message and by window."""
    driver = tables._session.driver
    return int(driver.comm.nbytes_sent + driver.nbytes_window)


def alone(n_rows: int, rows: list[np.ndarray[Any, Any]]) -> float:
    """Return NumPy's seconds for reading the rows and an adagrad step on them, in one process."""
    table, squares = np.zeros((n_rows, WIDTH), np.float32), np.zeros((n_rows, WIDTH), np.float32)
    start = time.perf_counter()
    for each in rows:
        values = table[each]
        g = values * 0.5 + 1
        s = squares[each] + g * g
        squares[each] = s
        table[each] = values - 0.1 * g / (np.sqrt(s) + 1e-10)
    return time.perf_counter() - start


def main() -> None:
    """Measure in rounds; worker 0 prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "rounds", "clocks"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    touched = (64,) if given.smoke else TOUCHED

    def work(tables: Any) -> Any:
        table, random, rounds = tables["rows"], np.random.default_rng(tables.worker), Rounds()
        for _ in range(given.rounds):
            for k in touched:
                rows = [draw(random, given.rows, k) for _ in range(given.clocks)]
                n = sum(each.size for each in rows)
                before, start = moved(tables), time.perf_counter()
                for each in rows:
                    values = table.pull(each).wait()
                    table.push(values * 0.5 + 1, each)
                    tables.clock()
                seconds = time.perf_counter() - start
                rounds.add(f"{k} rows", Sample(seconds / n, 0.0, {"sent": (moved(tables) - before) / n}))
                if tables.worker == 0:
                    rounds.add(f"{k} rows, NumPy", Sample(alone(given.rows, rows) / n))
        return rounds

    found = mpidml.run_tables(work, {"rows": (given.rows, WIDTH)}, sync="ssp:1", servers="2", optimizer="adagrad", lr=0.1)
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank != 2:  # worker 0
        return
    n_workers = MPI.COMM_WORLD.size - 2
    print(f"\na) a table of {given.rows:,} rows x {WIDTH} float32 on 2 servers, {n_workers} worker(s), ssp:1, adagrad on the servers; per worker")
    print(f"{'rows a clock':>14s} {'rows/s':>10s} {'NumPy alone':>12s} {'ratio':>7s} {'sent by the worker':>20s} {'law':>8s}")
    for k in touched:
        name = f"{k} rows"
        own, numpy = 1 / found.median(name), 1 / found.median(f"{name}, NumPy")
        sent = found.extra(name, "sent")
        print(f"{k:14,d} {own:10,.0f} {numpy:12,.0f} {own / numpy:7.2f} {sent:14.0f} B a row {8 + 8 + 4 * WIDTH:6d} B")


if __name__ == "__main__":
    main()
