"""Hold the scaling to one result, bit for bit, at any number of ranks, and to the textbook's formulas."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.core.errors import UserError
from mpidml.data import scaling
from mpidml.data.scaling import BLOCK, KINDS, Scaler, block_range, block_sums

Array = np.ndarray[Any, Any]


def rows(n: int, n_features: int = 5, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(3, 2, (n, n_features)) * 10.0 ** np.arange(n_features)  # sums of these do round


def gathered(x: Array, size: int) -> Array:
    return np.concatenate([block_sums(x, *block_range(len(x), rank, size)) for rank in range(size)])


def scaled(x: Array, kind: str, size: int = 1) -> Array:
    out = np.empty(x.shape, np.float64)
    Scaler.fit(gathered(x, size), kind).apply(x, out)
    return out


@given(n=st.integers(0, 20000), size=st.integers(1, 40))
def test_ranks_share_whole_blocks_and_each_row_once(n: int, size: int) -> None:
    ranges = [block_range(n, rank, size) for rank in range(size)]
    assert ranges[0][0] == 0 and ranges[-1][1] == n
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert all(edge % BLOCK == 0 or edge == n for pair in ranges for edge in pair)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6000), size=st.integers(2, 9), kind=st.sampled_from(KINDS))
def test_any_number_of_ranks_fits_the_same_bits(n: int, size: int, kind: str) -> None:
    x = rows(n)
    one, many = Scaler.fit(gathered(x, 1), kind), Scaler.fit(gathered(x, size), kind)
    assert one.offset.tobytes() == many.offset.tobytes() and one.factor.tobytes() == many.factor.tobytes()


def test_sums_over_the_shares_of_ranks_are_caught() -> None:
    x = rows(6000)

    def broken(size: int) -> bytes:
        shares = [x[6000 * rank // size : 6000 * (rank + 1) // size].astype(np.float64) for rank in range(size)]
        return (sum(share.sum(axis=0) for share in shares) / 6000).tobytes()  # type: ignore[union-attr]

    assert broken(1) != broken(3)
    assert Scaler.fit(gathered(x, 1), "standard").offset.tobytes() == Scaler.fit(gathered(x, 3), "standard").offset.tobytes()


def test_standard_scaling_has_mean_0_and_variance_1() -> None:
    x = rows(5000)
    scaler = Scaler.fit(gathered(x, 3), "standard")
    np.testing.assert_allclose(scaler.offset, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(1 / scaler.factor, x.astype(np.float64).std(axis=0), rtol=1e-12)
    out = scaled(x, "standard")
    assert abs(out.mean(axis=0)).max() < 1e-10 and abs(out.std(axis=0) - 1).max() < 1e-10


def test_minmax_scaling_spans_0_to_1_and_none_changes_nothing() -> None:
    x = rows(3000)
    out = scaled(x, "minmax")
    assert (out.min(axis=0) == 0).all() and abs(out.max(axis=0) - 1).max() < 1e-15
    assert (scaled(x, "none") == x).all()


def test_maxabs_scaling_reaches_1_keeps_zeros_and_leaves_columns_of_zeros_alone() -> None:
    x = rows(3000) - 3
    x[::3], x[:, 2] = 0, 0
    out = scaled(x, "maxabs", 3)
    assert (abs(out).max(axis=0)[[0, 1, 3, 4]] == 1).all() and ((out == 0) == (x == 0)).all()
    assert (np.sign(out) == np.sign(x)).all() and Scaler.fit(gathered(x, 3), "maxabs").factor[2] == 1


def test_a_large_offset_costs_no_digits() -> None:
    x = 1e9 + np.random.default_rng(0).normal(0, 1, (5000, 3))
    scaler = Scaler.fit(gathered(x, 2), "standard")
    np.testing.assert_allclose(1 / scaler.factor, (x - 1e9).std(axis=0), rtol=1e-6)
    naive = (x * x).mean(axis=0) - x.mean(axis=0) ** 2
    assert abs(naive - 1).max() > 1, "the formula that this guards against fails here"


@pytest.mark.parametrize("kind", ["none", "standard", "minmax"])
def test_constant_columns_get_divisor_1(kind: str) -> None:
    x = np.full((3000, 2), 0.1)
    x[:, 1] = np.arange(3000)
    scaler = Scaler.fit(gathered(x, 2), kind)
    assert scaler.factor[0] == 1 and np.isfinite(scaler.factor).all()
    assert (scaled(x, kind)[:, 0] == (0.1 if kind == "none" else 0)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_apply_rounds_once_to_the_dtype_given(dtype: Any) -> None:
    x = np.random.default_rng(1).integers(0, 255, (2500, 4)).astype(np.uint8)
    scaler = Scaler.fit(gathered(x, 1), "standard")
    out = np.empty(x.shape, dtype)
    scaler.apply(x, out)
    assert (out == ((x.astype(np.float64) - scaler.offset) * scaler.factor).astype(dtype)).all()


def test_a_scaler_comes_back_from_its_state() -> None:
    scaler = Scaler.fit(gathered(rows(100), 1), "standard")
    again = Scaler.from_state(scaler.state())
    assert again.offset.tobytes() == scaler.offset.tobytes() and again.factor.tobytes() == scaler.factor.tobytes()


def test_an_unknown_kind_and_no_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'standard'"):
        Scaler.fit(gathered(rows(10), 1), "standart")
    with pytest.raises(ValueError, match="no blocks"):
        Scaler.fit(gathered(rows(0), 1), "standard")


def test_spared_columns_keep_their_values_and_the_others_are_scaled_as_before() -> None:
    x = np.random.default_rng(0).integers(0, 9, (50, 4)).astype(float)
    whole = Scaler.fit(block_sums(x, 0, 50), "standard")
    scaled, spared = np.empty_like(x), np.empty_like(x)
    whole.apply(x, scaled)
    whole.sparing((1, 3)).apply(x, spared)
    assert np.array_equal(spared[:, [1, 3]], x[:, [1, 3]]) and np.array_equal(spared[:, [0, 2]], scaled[:, [0, 2]])
    assert not np.array_equal(scaled[:, 1], x[:, 1]), "unspared, codes would not survive"


@pytest.mark.parametrize("width", [1, 2, 3, 17, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_that_are_summed_in_pieces_have_the_same_bits(width, dtype, monkeypatch):
    x = (np.random.default_rng(width).standard_normal((2500, width)) * 10 + 1e3).astype(dtype)
    whole = scaling.block_sums(x, 0, 2500)
    monkeypatch.setattr(scaling, "PIECE_NBYTES", 8 * width * 37)
    assert scaling.rows_in_piece(8 * width) == 37
    assert scaling.block_sums(x, 0, 2500).tobytes() == whole.tobytes()
    block = x[1024:2048].astype(np.float64)
    assert whole[1, 1].tobytes() == block.mean(axis=0).tobytes(), "as NumPy sums a whole block"
