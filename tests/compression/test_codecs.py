"""What single codecs promise beyond the contract that all of them share."""

import mpidml_kernels
import numpy as np
import pytest

from mpidml.compression.base import make_codec

BACKEND = mpidml_kernels.backend("numba")


def decoded(codec, x, state):
    code, out = np.zeros(codec.nbytes(x.shape, x.itemsize), np.uint8), np.empty_like(x)
    codec.encode(BACKEND, x, state, code)
    codec.decode(BACKEND, code, out)
    return out


def test_low_rank_finds_its_directions_again_after_a_tensor_of_zeros():
    codec, x = make_codec("low_rank:2"), np.random.default_rng(0).standard_normal((20, 30))
    state = codec.init(x.shape, x.dtype)
    assert not decoded(codec, np.zeros_like(x), state).any()
    assert np.square(decoded(codec, x, state)).sum() > 0.05 * np.square(x).sum()


def test_low_rank_sends_a_tensor_of_its_rank_in_full_and_gets_better_at_others_step_by_step():
    random = np.random.default_rng(1)
    codec, low = make_codec("low_rank:3"), random.standard_normal((20, 3)) @ random.standard_normal((3, 30))
    np.testing.assert_allclose(decoded(codec, low, codec.init(low.shape, low.dtype)), low, atol=1e-12)
    x, errors = random.standard_normal((20, 30)), []
    state = codec.init(x.shape, x.dtype)
    for _ in range(20):
        state["residual"][...] = 0
        errors.append(np.square(x - decoded(codec, x, state)).sum())
    best = np.square(np.linalg.svd(x, compute_uv=False)[3:]).sum()
    assert errors[-1] < errors[0] and errors[-1] == pytest.approx(best, rel=0.03)


def test_a_sampled_threshold_sees_all_columns_of_a_table():
    x = np.random.default_rng(2).standard_normal((200, 512))
    x[:, 1::2] *= 100
    codec = make_codec("top_k:0.01:sampled=true")
    out = decoded(codec, x, codec.init(x.shape, x.dtype))
    k, n = 1024, np.count_nonzero(out)
    assert 0.75 * k < n < codec.room(x.size) == k + k // 4
    assert np.abs(out[out != 0]).min() > 0.9 * np.partition(np.abs(x).reshape(-1), x.size - k)[x.size - k]


def test_an_adaptive_threshold_grows_with_what_waits_so_that_nothing_waits_for_ever():
    codec, x = make_codec("two_bit"), np.full(1000, 1e-3)
    x[7] = 1.0  # a hundred times what all others need
    state = codec.init(x.shape, x.dtype)
    waits = []
    for _ in range(2000):
        decoded(codec, x, state)
        waits.append(np.abs(state["residual"]).max())
    assert max(waits[1000:]) <= 1.1 * max(waits[:1000]), "the residual stays where it is"
    fixed, state, waits = make_codec("two_bit:0.03"), codec.init(x.shape, x.dtype), []
    for _ in range(2000):  # the broken variant: a threshold that lags for good
        decoded(fixed, x, state)
        waits.append(np.abs(state["residual"]).max())
    assert waits[-1] > 1.9 * waits[999] > 100
