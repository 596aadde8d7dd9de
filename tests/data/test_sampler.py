"""Hold the sampler to its law: each sample exactly once an epoch, and N workers together see what one would have seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.data.sampler import Sampler

Array = np.ndarray[Any, Any]
layouts = {
    "n": st.integers(1, 60),
    "batch": st.integers(1, 70),
    "n_workers": st.integers(1, 9),
    "epoch": st.integers(0, 3),
    "seed": st.integers(0, 3),
}


class SeededByWorker(Sampler):
    """Break the law on purpose: each worker draws an order of its own."""

    def indices(self, clock: int, worker: int) -> Array:
        return Sampler(self.n, self.batch, self.n_workers, self.seed + worker).indices(clock, worker)


def epoch_of(sampler: Sampler, epoch: int) -> list[int]:
    clocks = range(epoch * sampler.clocks_per_epoch, (epoch + 1) * sampler.clocks_per_epoch)
    return [int(i) for clock in clocks for worker in range(sampler.n_workers) for i in sampler.indices(clock, worker)]


@given(**layouts)
def test_each_sample_comes_exactly_once_an_epoch(n: int, batch: int, n_workers: int, epoch: int, seed: int) -> None:
    assert sorted(epoch_of(Sampler(n, batch, n_workers, seed), epoch)) == list(range(n))


@given(**layouts)
def test_n_workers_in_order_see_the_batches_of_one(n: int, batch: int, n_workers: int, epoch: int, seed: int) -> None:
    many, one = Sampler(n, batch, n_workers, seed), Sampler(n, batch, 1, seed)
    assert many.clocks_per_epoch == one.clocks_per_epoch == -(-n // batch)
    for clock in range(epoch * one.clocks_per_epoch, (epoch + 1) * one.clocks_per_epoch):
        shares = [many.indices(clock, worker) for worker in range(n_workers)]
        assert np.concatenate(shares).tolist() == one.indices(clock, 0).tolist() == one.global_batch(clock).tolist()
        assert sum(map(len, shares)) == many.batch_size(clock) <= batch
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_order_seeded_by_the_worker_is_caught() -> None:
    assert sorted(epoch_of(SeededByWorker(60, 16, 4, 0), 0)) != list(range(60))
    assert epoch_of(SeededByWorker(60, 16, 4, 0), 0) != epoch_of(Sampler(60, 16, 1, 0), 0)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sampler = Sampler(50, 8, 2, 1)
    orders = [epoch_of(sampler, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [epoch_of(sampler, epoch) for epoch in range(3)] == orders, "an order drawn again is the same"
    assert epoch_of(Sampler(50, 8, 2, 2), 0) != orders[0]


def test_shares_are_views_of_at_most_two_kept_orders_and_cannot_be_written() -> None:
    sampler = Sampler(50, 8, 2, 1)
    share = sampler.indices(0, 1)
    assert share.dtype == np.int64 and share.base is not None and np.shares_memory(share, sampler.global_batch(0))
    with pytest.raises(ValueError, match="read-only"):
        share[0] = 0
    for clock in range(sampler.clocks_per_epoch * 5):
        sampler.indices(clock, 0)
        assert len(sampler._orders) <= 2


def test_workers_beyond_the_rows_get_empty_shares() -> None:
    sampler = Sampler(2, 8, 5, 0)
    assert sorted(len(sampler.indices(0, worker)) for worker in range(5)) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Sampler(*sizes, seed=0)
