"""A share that is computed in parts gives the gradient of the whole, and nothing of it is told before it is final."""

from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.nn.models import build
from mpidml.runtime.training import Training

N_ROWS, N_FEATURES = 23, 9
X = np.random.default_rng(0).standard_normal((N_ROWS, N_FEATURES))
Y = np.arange(N_ROWS) % 4


def training(parts, cls=Training, **model):
    """Return a worker's program without a run around it: what `_sum_up` needs."""
    task = object.__new__(cls)
    task.job = Job(accumulate=parts, dropout=model.get("dropout", 0.0))
    task.net = build("mlp", N_FEATURES, 4, (8, 5), dtype="float64", backend="numpy", **model)
    task.net.split = True
    task.data, task.sampler = SimpleNamespace(x=X, y=Y, targets=None), SimpleNamespace(clocks_per_epoch=10)
    task.summand = np.full(task.net.n_params, np.nan)  # of the last share, say
    task.kernels = task.net.backend
    task.salt_epoch = -1
    return task


def summed_up(task, rows, told=None):
    """Return loss and gradient; with `told`, put there each range that was reported, with its values of that moment."""
    g = np.full(task.net.n_params, np.nan)
    report = None if told is None else lambda lo, hi: told.append((lo, hi, g[lo:hi].copy())) if lo < hi else None
    return task._sum_up(rows, 3, task.net.init(1), g, 1 / 50, report), g


def check_told(told, g):
    assert all(np.array_equal(values, g[lo:hi]) for lo, hi, values in told), "told before it was final"
    assert sorted(i for lo, hi, _ in told for i in range(lo, hi)) == list(range(g.size)), "each element once"


@pytest.mark.parametrize("model", [{}, {"dropout": 0.4}, {"loss": "squared_error"}], ids=str)
@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 23, 40])
def test_parts_sum_up_to_the_whole_and_tell_only_what_is_final(parts, reports, model):
    rows = np.random.default_rng(1).permutation(N_ROWS)
    loss, expected = summed_up(training(1, **model), rows)
    told = [] if reports else None
    found, g = summed_up(task := training(parts, **model), rows, told)
    assert found == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(g, expected, rtol=1e-10, atol=1e-14)
    assert [memory.m for memory in task.net._memory.values()] == [-(-N_ROWS // parts)], "memory for the larger part alone"
    if reports:
        check_told(told, g)


class TellsEachPart(Training):
    def _adding(self, g, part, is_last, report):
        return super()._adding(g, part, True, report)


class AddsTheNextOne(Training):
    """Tells of the last part before it is added."""

    def _adding(self, g, part, is_last, report):
        adding = super()._adding(g, part, False, report)
        return lambda lo, hi: (report(lo, hi) if is_last else None, adding(lo, hi))


@pytest.mark.parametrize("broken", [TellsEachPart, AddsTheNextOne])
def test_the_check_catches_what_is_told_too_early(broken):
    told = []
    _, g = summed_up(training(3, broken), np.arange(N_ROWS), told)
    with pytest.raises(AssertionError):
        check_told(told, g)
