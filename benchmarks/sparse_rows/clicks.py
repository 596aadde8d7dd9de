"""Learn which e-mails are spam from the words in them: a factorization machine (Rendle, ICDM 2010) over rows of a table that nobody ever reads whole.

Each word's number is scattered over the rows of the table, as a hashed feature of a click log is. Row: a weight, and 15 factors.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import diags_array

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mpidml
from mpidml.data.readers import read
from mpidml.data.sampler import Sampler
from mpidml.data.split import hold_out

WIDTH, BATCH, EPOCHS, SEED = 16, 128, 3, 0


def first_values(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the small values at which the factors of rows start, a function of the row: the table itself starts at 0."""
    noise = np.sin(rows[:, None] * 12.9898 + np.arange(WIDTH) * 78.233) * 43758.5453
    values = 0.1 * (noise - np.floor(noise) - 0.5)
    values[:, 0] = 0
    return values.astype(np.float32)


def scores(x: Any, values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return each sample's score w x + sum of v_i v_j x_i x_j over pairs, and its sums of factors."""
    weights, factors = values[:, 0], values[:, 1:]
    sums = x @ factors
    return x @ weights + 0.5 * (sums**2 - x.multiply(x) @ factors**2).sum(axis=1), sums


def gradient(x: Any, y: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the gradient of the sum of the logistic losses."""
    score, sums = scores(x, values)
    d = (1 / (1 + np.exp(-score)) - y)[:, None]
    return np.hstack([x.T @ d, x.T @ (d * sums) - values[:, 1:] * (x.multiply(x).T @ d)]).astype(np.float32)


def main() -> None:
    """Train on two workers and two servers, then test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--data", required=True)
    given = parser.parse_args()
    raw = read(given.data)
    counts = raw.x.copy()
    counts.data = np.log1p(counts.data)
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    x = (diags_array(1 / np.maximum(norms, 1e-9)) @ counts).tocsr()
    row_of = (np.arange(x.shape[1], dtype=np.int64) * 2654435761) % given.rows
    train, test = hold_out(x.shape[0], 0.2, SEED)

    def work(tables: Any) -> Any:
        table, driver = tables["words"], tables._session.driver
        sampler = Sampler(len(train), BATCH * tables.n_workers, tables.n_workers, SEED)
        start, n_rows = time.perf_counter(), 0
        for clock in range(EPOCHS * sampler.clocks_per_epoch):
            batch = x[train[sampler.indices(clock, tables.worker)]]
            words, batch.indices = np.unique(batch.indices, return_inverse=True)
            batch.resize(batch.shape[0], words.size)
            rows = row_of[words]
            n_rows += rows.size
            values = table.pull(rows).wait() + first_values(rows)
            table.push(gradient(batch, raw.y[train[sampler.indices(clock, tables.worker)]], values) / sampler.batch_size(clock), rows)
            tables.clock()
        sent = driver.comm.nbytes_sent + driver.nbytes_window
        values = table.pull(row_of, latest=True).wait() + first_values(row_of)
        right = (scores(x[test], values)[0] > 0) == raw.y[test]
        return time.perf_counter() - start, n_rows, sent, right.mean()

    found = mpidml.run_tables(work, {"words": (given.rows, WIDTH)}, sync="ssp:1", servers="2", optimizer="adagrad", lr=0.2)
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 2:
        seconds, n_rows, sent, accuracy = found
        print(f"\nb) {len(train):,} e-mails, {x.shape[1]:,} words on {given.rows:,} rows x {WIDTH}: test accuracy {accuracy:.4f} after {EPOCHS} epochs, {seconds:.1f} s")
        whole = given.rows * WIDTH * 4 / 1e6
        print(f"   each worker touched {n_rows:,} rows and sent {sent / 1e6:.1f} MB, {sent / n_rows:.0f} bytes a row; a read of all rows would be {whole:,.0f} MB")


if __name__ == "__main__":
    main()
