"""Rows are scored with the same bits however they are shared out: fixed blocks of global rows, and sums that no order changes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from mpidml.nn.models import build
from mpidml.runtime import scoring


def model(dtype: str = "float32") -> tuple[Any, Any, Any, Any]:
    net = build("mlp", 37, 7, (65, 33), dtype=dtype, backend="numpy")
    draw = np.random.default_rng(2)
    x = draw.standard_normal((1000, 37)).astype(dtype)
    return net, net.init(1), x, draw.integers(0, 7, 1000)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 40])
def test_shares_are_whole_blocks_that_cover_each_row_once(n: int, parts: int) -> None:
    shares = [scoring.share(n, part, parts) for part in range(parts)]
    assert [row for lo, hi in shares for row in range(lo, hi)] == list(range(n))
    assert all(lo % scoring.BLOCK == 0 or lo == n for lo, _ in shares)
    n_blocks = [-(-(hi - lo) // scoring.BLOCK) for lo, hi in shares]
    assert max(n_blocks) - min(n_blocks) <= 1


def in_parts(parts: int) -> tuple[Any, Any]:
    net, w, x, y = model()
    outputs = np.empty((1000, 7), np.float32)
    found = []
    for part in range(parts):
        lo, hi = scoring.share(1000, part, parts)
        found.append(scoring.score(net, w, x[lo:hi], y[lo:hi], None, outputs[lo:hi]))
    random.Random(parts).shuffle(found)
    return scoring.total(found), outputs


@pytest.mark.parametrize("parts", [2, 3, 5, 16, 33])
def test_any_number_of_parts_in_any_order_is_one_part_to_the_last_bit(parts: int) -> None:
    (one, of_one), (several, of_several) = in_parts(1), in_parts(parts)
    assert several == one and of_several.tobytes() == of_one.tobytes()
    net, w, x, y = model()
    assert one[0] == pytest.approx(net.score(w, x, y)[0], rel=1e-6) and one[1:] == (net.score(w, x, y)[1], 1000)
    assert one[1] == (of_one.argmax(axis=1) == y).sum()


def test_the_check_sees_sums_that_depend_on_the_shares() -> None:
    """The broken variant: each part sums for itself, and the parts are added up in their order."""
    draw = np.random.default_rng(0)
    losses = (draw.standard_normal(100) * 10.0 ** draw.uniform(-8, 8, 100)).tolist()
    halves = [scoring.Scores(tuple(of), (0.0,) * len(of), 1) for of in (losses[:37], losses[37:])]
    assert scoring.total(halves)[0] == scoring.total([scoring.Scores(tuple(losses), (0.0,) * 100, 2)])[0] == scoring.total(halves[::-1])[0]
    whole = scoring.exact(losses)
    for seed in range(20):
        random.Random(seed).shuffle(losses)
        assert scoring.exact(losses) == whole
    assert any(sum(losses[:cut]) + sum(losses[cut:]) != sum(losses) for cut in range(100))


def test_losses_that_are_no_numbers_have_a_sum_that_is_none() -> None:
    assert np.isnan(scoring.exact([1.0, float("inf"), -float("inf")])) and np.isnan(scoring.exact([float("nan")]))
    assert scoring.total([]) == (0.0, 0.0, 0)
