"""Hold every file of mpidml/compression to the contract of a codec, found by the folder alone; and some of them with other arguments than their own."""

from functools import lru_cache

import hypothesis
import mpidml_kernels
import numpy as np
import pytest
from hypothesis import strategies

from mpidml.compression.base import Codec, make_codec
from mpidml.core import plugins, rng
from mpidml.core.errors import UserError

NAMES = plugins.names("mpidml.compression")
VARIANTS = [*NAMES, "two_bit:0.5", "top_k:0.05:sampled=true", "random_k:unbiased=true", "qsgd:bits=2", "int8:block=100", "low_rank:rank=1"]
LOSSY = ["bf16:residual=false", "fp16:residual=false", "int8:residual=false"]
BACKEND = mpidml_kernels.backend("numba")
DTYPES = [np.float32, np.float64]
each = pytest.mark.parametrize("text", VARIANTS + LOSSY)
types = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
SIZES = [0, 1, 7, 16, 17, 513, 3000]
BITS = {"fp16": 16, "bf16": 16, "int8": 8, "one_bit": 1, "two_bit": 2, "ternary": 2, "qsgd": 4, "sign_majority": 1}


def buffer(codec, shape, dtype):
    return np.full(codec.nbytes(shape, np.dtype(dtype).itemsize), 0xAB, np.uint8)


def draws(n, shape, dtype, seed=0):
    """Give n tensors like gradients: drifting, of unlike scales."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.standard_normal(shape))
    drift = random.standard_normal(shape)
    for _ in range(n):
        yield ((random.standard_normal(shape) + 0.3 * drift) * scale).astype(dtype)


@lru_cache(2)
def drawn(n, shape, dtype):
    return list(draws(n, shape, dtype))


def decoded(codec, x, state, noise=0):
    code, out = buffer(codec, x.shape, x.dtype), np.empty_like(x)
    codec.encode(BACKEND, x, state, code, noise)
    codec.decode(BACKEND, code, out)
    return out


def conservation_error(codec, shape, dtype, steps=1000, keep=lambda step, state: None):
    """Return the largest of |given - decoded - residual| over all elements, over the largest sum of magnitudes; sums are exact to float64."""
    given, received, size = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    state = codec.init(shape, dtype)
    for step, x in enumerate(drawn(steps, shape, dtype)):
        received += decoded(codec, x, state, rng.key(0, "test", step))
        given += x
        size += np.abs(x)
        keep(step, state)
    return float(np.abs(given - received - state["residual"].reshape(shape)).max() / size.max())


def tolerance(dtype):
    return 1e-12 if dtype == np.float64 else 3e-6


def test_the_folder_holds_the_promised_codecs():
    named = {"fp16", "bf16", "int8", "one_bit", "two_bit", "top_k", "random_k", "ternary", "qsgd", "sign_majority", "low_rank"}
    assert named <= set(NAMES)


@each
def test_a_codec_declares_what_becomes_of_what_it_does_not_send(text):
    codec = make_codec(text)
    assert isinstance(codec, Codec) and codec.has_residual + codec.unbiased + codec.votes == (text not in LOSSY)
    state = codec.init((6, 5), np.float64)
    assert ("residual" in state) == codec.has_residual and all(not array.any() for key, array in state.items() if key != "q")


@each
@types
def test_decoded_and_residual_are_what_was_given_over_a_thousand_steps(text, dtype):
    codec = make_codec(text)
    if not codec.has_residual:
        return
    assert conservation_error(codec, (25, 40), dtype) < tolerance(dtype)


@types
def test_conservation_catches_a_residual_that_is_dropped(dtype):
    def drop(step, state):
        if step == 500:  # once is enough
            state["residual"][...] = 0

    assert conservation_error(make_codec("two_bit"), (25, 40), dtype, keep=drop) > 10 * tolerance(dtype)


@each
@types
def test_a_code_has_the_size_of_the_formula_fills_it_and_is_added_as_it_is_decoded(text, dtype):
    codec = make_codec(text)
    for n in SIZES:
        for shape in ((n,), (n, 1), (4, n)):
            x = next(draws(1, shape, dtype))
            first, second = buffer(codec, shape, dtype), buffer(codec, shape, dtype)
            second[...] = 0xCD
            for code in (first, second):
                codec.encode(BACKEND, x, codec.init(shape, dtype), code, 5)
            assert np.array_equal(first, second), "every byte is written, and by nothing but what was given"
            assert x.size < 64 or first.size < x.nbytes or (codec.whole and first.size == x.nbytes)
            if name := next((name for name in BITS if text == name), None):
                assert abs(first.size - x.size * BITS[name] / 8) <= 4 + 8 * (1 + x.size / 512)
            out, before = np.empty(shape, dtype), next(draws(1, shape, dtype, 7))
            first.flags.writeable = False
            codec.decode(BACKEND, first, out)
            total = before.copy()
            codec.decode_add(BACKEND, first, total)
            if codec.whole:
                np.testing.assert_allclose(total, before + out, rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-4 if dtype == np.float32 else 1e-12)
            else:
                assert np.array_equal(total, before + out)


def test_the_check_catches_a_code_that_is_shorter_than_its_formula(monkeypatch):
    codec = make_codec("two_bit")
    nbytes = type(codec).nbytes
    monkeypatch.setattr(type(codec), "nbytes", lambda self, shape, itemsize: nbytes(self, shape, itemsize) + 4)
    x = next(draws(1, (513,), np.float32))
    codes = [np.full(codec.nbytes(x.shape, 4), fill, np.uint8) for fill in (0xAB, 0xCD)]
    for code in codes:
        codec.encode(BACKEND, x, codec.init(x.shape, x.dtype), code, 5)
    assert not np.array_equal(*codes), "bytes that nobody writes"


def test_sizes_are_these_formulas():
    def size(text, shape=(1000003,), itemsize=4):
        return make_codec(text).nbytes(shape, itemsize)

    n = 1000003
    assert size("fp16") == size("bf16") == 2 * n
    assert size("int8") == n + 4 * 977 and size("int8", itemsize=8) == n + 8 * 977
    assert size("one_bit") == 4 * 31251 + 4 * 977 and size("sign_majority") == 4 * 31251
    assert size("two_bit") == 4 * 62501 + 4 * 31 and size("two_bit:0.1") == 4 * 62501 + 4
    assert size("ternary") == 4 * 62501 + 4 * 977 and size("qsgd") == 4 * 125001 + 4 * 1954
    assert size("top_k") == 8 * 10001 and size("top_k:sampled=true") == 8 * (10001 + 2501) and size("top_k", itemsize=8) == 12 * 10001
    assert size("random_k") == 8 + 4 * 10001
    assert size("low_rank", (100, 20, 5)) == 4 * 4 * 200 and size("low_rank", (1000,)) == 4000
    assert 4 * n / size("two_bit") > 15.99


@each
def test_a_million_and_three_values_come_back(text):
    codec, shape = make_codec(text), (1000003,)
    x = next(draws(1, shape, np.float32))
    state = codec.init(shape, np.float32)
    out = decoded(codec, x, state, 3)
    if codec.has_residual:
        assert np.abs(x - out - state["residual"]).max() <= 1e-6 * np.abs(x).max()
    elif codec.votes:
        assert np.array_equal(out, np.sign(x))
    else:
        assert abs((out - x).mean()) < 5 * (out - x).std() / 1000


@types
def test_without_a_residual_the_codes_are_those_of_the_first_step(dtype):
    x = next(draws(1, (3000,), dtype))
    for text in LOSSY:
        plain, keeping = make_codec(text), make_codec(text.partition(":")[0])
        assert plain.init(x.shape, dtype) == {} and np.array_equal(decoded(plain, x, {}), decoded(keeping, x, keeping.init(x.shape, dtype)))


@each
@types
@pytest.mark.parametrize("shape", [(50,), (10, 300)])
def test_what_is_not_finite_raises_one_clear_error(text, shape, dtype):
    for bad in (np.nan, np.inf, -np.inf):
        codec = make_codec(text)
        for at in (0, -1):
            x = next(draws(1, shape, dtype))
            x.reshape(-1)[at] = bad
            with pytest.raises(FloatingPointError, match="holds NaN or infinity"):
                codec.encode(BACKEND, x, codec.init(shape, dtype), buffer(codec, shape, dtype))


@each
@types
def test_nothing_in_gives_nothing_out_and_small_numbers_stay(text, dtype):
    codec, shape = make_codec(text), (30, 40)
    tiny = dtype({np.float32: 1e-40, np.float64: 1e-310}[dtype])
    for value in (dtype(0), dtype(-0.0), tiny):
        x, state = np.full(shape, value), codec.init(shape, dtype)
        out = decoded(codec, x, state)
        if codec.has_residual:
            np.testing.assert_allclose(out + state["residual"].reshape(shape), x, rtol=1e-2 if value == tiny else 0)
        elif codec.votes:
            assert set(np.unique(out)) <= {-1, 1} and (value == tiny or abs(out.mean()) < 0.2)
        else:
            assert not out.any() if value != tiny else np.abs(out).max() <= tiny * x.size


@each
@types
def test_the_same_noise_gives_the_same_bits_and_only_codecs_that_draw_mind_it(text, dtype):
    shape = (30, 40)
    x = next(draws(1, shape, dtype))
    if make_codec(text).votes:
        x[::2] = 0
    codes = []
    for noise in (3, 3, 4):
        codec = make_codec(text)
        codes.append(buffer(codec, shape, dtype))
        codec.encode(BACKEND, x, codec.init(shape, dtype), codes[-1], noise)
    assert np.array_equal(codes[0], codes[1])
    draws_noise = codec.unbiased or codec.votes or codec.same_noise
    assert np.array_equal(codes[0], codes[2]) == (not draws_noise)


@each
@types
def test_the_compiled_kernels_and_the_reference_give_one_result(text, dtype):
    shape, reference = (30, 40), mpidml_kernels.backend("numpy")
    codec = make_codec(text)
    own, other = codec.init(shape, dtype), codec.init(shape, dtype)
    for step, x in enumerate(draws(3, shape, dtype)):
        a, b, out_a, out_b = buffer(codec, shape, dtype), buffer(codec, shape, dtype), np.empty(shape, dtype), np.empty(shape, dtype)
        codec.encode(BACKEND, x, own, a, step)
        codec.encode(reference, x, other, b, step)
        codec.decode(BACKEND, a, out_a)
        codec.decode(reference, b, out_b)
        np.testing.assert_allclose(out_a, out_b, rtol=1e-3 if dtype == np.float32 else 1e-10, atol=1e-3 if dtype == np.float32 else 1e-10)


UNBIASED = [text for text in VARIANTS if make_codec(text).unbiased]
N_DRAWS = 100_000


def z_scores(codec, x, n_draws=N_DRAWS):
    """Return the deviation of each element's mean over the draws in standard errors, and the variance summed over the elements.

    A draw is one of many copies of x in a long vector, where elements differ by their index, under several keys.
    """
    copies = n_draws // 10
    many = np.tile(x, copies)
    total, squares = np.zeros(x.size), np.zeros(x.size)
    for key in range(10):
        error = (decoded(codec, many, codec.init(many.shape, many.dtype), rng.key(key, "z")).astype(np.float64) - many).reshape(copies, x.size)
        total += error.sum(axis=0)
        squares += np.square(error).sum(axis=0)
    mean, variance = total / n_draws, squares / n_draws
    return mean / np.sqrt(np.maximum(variance, 1e-30) / n_draws), variance.sum()


def block_of(dtype=np.float32):
    """Return 512 values of unlike sizes and both signs, none so small that it is hardly ever sent."""
    x = next(draws(1, (512,), dtype))
    return x + dtype(0.2) * np.sign(x)


@pytest.mark.parametrize("text", UNBIASED)
def test_unbiased_codecs_are_unbiased(text):
    z, _ = z_scores(make_codec(text), block_of())
    assert np.abs(z).max() < 5 and abs(np.square(z).mean() - 1) < 0.35, (np.abs(z).max(), np.square(z).mean())


def test_the_test_of_means_catches_rounding_to_nearest():
    codec = make_codec("int8:block=512")
    z, _ = z_scores(codec, block_of(), 10_000)
    assert np.abs(z).max() > 50


@pytest.mark.parametrize(("text", "s"), [("qsgd:bits=2", 1), ("qsgd", 7)])
def test_the_variance_of_qsgd_is_within_its_bound(text, s):
    x = block_of()
    _, variance = z_scores(make_codec(text), x, 20_000)
    norm, n = float(np.square(x, dtype=np.float64).sum()), x.size
    assert variance <= min(n / s**2, np.sqrt(n) / s) * norm
    assert variance > min(n / s**2, np.sqrt(n) / s) * norm / 4, "the bound is of the right size"


def test_the_variances_of_ternary_and_random_k_are_these():
    x = np.tile(block_of(), 2)
    _, variance = z_scores(make_codec("ternary"), x, 10_000)
    sizes = np.abs(x).astype(np.float64)
    assert variance == pytest.approx((sizes * (sizes.max() - sizes)).sum(), rel=0.05)
    _, variance = z_scores(make_codec("random_k:0.125:unbiased=true"), x, 10_000)
    assert variance == pytest.approx(7 * np.square(sizes).sum(), rel=0.05)


@hypothesis.given(strategies.integers(1, 2000), strategies.sampled_from([text for text in VARIANTS if make_codec(text).has_residual]))
@hypothesis.settings(max_examples=60)
def test_any_length_conserves(n, text):
    assert conservation_error(make_codec(text), (n,), np.float64, steps=3) < 1e-13


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("two_bits", "did you mean 'two_bit'"), ("two_bit:-1", "neither a number > 0 nor 'adaptive'"), ("two_bit:often", "neither a number > 0"),
        ("top_k:2", "is not a share in"), ("top_k:0", "is not a share in"), ("top_k:sampled=3", "neither true nor false"), ("one_bit:100", "multiple of 512"),
        ("int8:0", "whole number > 0"), ("qsgd:bits=3", "neither 2 nor 4"), ("low_rank:1.5", "whole number > 0"), ("random_k:ratio=x", "not a share"),
        ("bf16:3", "neither true nor false"), ("sign_majority:3", "takes 0 argument"), ("base", "there is no 'base'"),
        ("two_bit:0.1:512", "block = 512 does nothing beside a threshold"),
        ("qsgd:4.0", "neither 2 nor 4"), ("two_bit:1e39", "out of the range of float32"), ("two_bit:1e-46", "out of the range of float32"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_one_clear_line(text, said):
    with pytest.raises(UserError, match=said) as error:
        make_codec(text)
    assert "\n" not in str(error.value)
