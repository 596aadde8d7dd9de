"""A mean is that of the exact sum, rounded once, whatever the order and the portions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mpidml.core.rng import stream
from mpidml.data.exact import ExactMean


def spread(n: int) -> np.ndarray:
    random = stream(3, "exact")
    return random.normal(size=n) * 10.0 ** random.integers(-300, 300, n)


@pytest.mark.parametrize(
    "values", [spread(2000), np.array([5e-324, 1e308, -1e308, 0.0]), np.full(3, 1.1), np.array([1.7e308] * 5), np.array([0.1, 0.2, 0.3, -0.6])]
)
def test_a_mean_is_the_exact_one_rounded_once_in_any_portions(values: np.ndarray) -> None:
    exact = float(sum(map(Fraction, values.tolist())) / len(values))
    for cut in (0, 1, len(values) // 2, len(values)):
        one, other = ExactMean(), ExactMean()
        one.add(values[cut:][::-1])
        other.add(values[:cut])
        one.merge(other)
        assert one.mean() == exact
    assert ExactMean().mean() == 0.0


def test_a_sum_that_rounds_as_it_goes_is_caught() -> None:
    values = spread(2000)
    assert np.mean(values) != float(sum(map(Fraction, values.tolist())) / len(values))  # the broken variant
