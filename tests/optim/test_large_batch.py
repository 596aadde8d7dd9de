"""Hold large batches to what the small one learns: on the shipped digits, 16 times the batch, 16 times the rate."""

from __future__ import annotations

import pytest

from mpidml.core.job import Job
from mpidml.strategies.base import train

SMALL = Job(strategy="data_parallel", backend="numpy", hidden=(64, 64), epochs=12, batch=32, lr=0.05, lr_batch=32)
WAYS = {
    "lars": {"optimizer": "lars:0.02", "lr_policy": "warmup:9+cosine"},
    "lamb": {"optimizer": "lamb", "lr": 0.002, "lr_policy": "warmup:9+poly"},
}


def accuracy(seed, **changes):
    """Return the test accuracy; 0 of a run whose loss is no number any more."""
    return train(SMALL.with_values({"seed": seed, **changes}, "test"), quiet=True, write=False)["test_accuracy"] or 0.0


@pytest.mark.parametrize("seed", [1, 2])
def test_at_16_times_the_batch_lars_and_lamb_learn_what_the_small_batch_does_and_plain_momentum_does_not(seed):
    small = accuracy(seed)
    assert small > 0.96
    assert accuracy(seed, batch=512) < small - 0.03
    for way, changes in WAYS.items():
        assert accuracy(seed, batch=512, **changes) >= small - 0.01, way
