"""Hold the compiled kernels of the codecs to their references, to the bit wherever no sum of many values is involved."""

import mpidml_kernels
import numpy as np
import pytest
from mpidml_kernels.packed.reference import draw, pack, unpack

REFERENCE, CPU = mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")
types = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
both = pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=lambda b: b.name)
SIZES = [0, 1, 7, 16, 17, 64, 65, 255, 256, 257, 513, 1024, 1025, 3000]
FILLS = ["random", "wide", "subnormal", "zero", "negative zero", "outlier", "equal"]
fills = pytest.mark.parametrize("fill", FILLS)
KEY = np.uint64(0x9ABCDEF012345678)
BLOCK = 1024


def vector(n, dtype, fill="random", seed=0):
    random = np.random.default_rng([seed, n])
    x = random.standard_normal(n)
    if fill == "wide":
        x *= 10.0 ** random.integers(-30, 30, n)
    elif fill == "subnormal":
        x *= {np.float32: 1e-40, np.float64: 1e-310}[dtype]
    elif fill in ("zero", "negative zero"):
        x *= 0 if fill == "zero" else -0.0
    elif fill == "outlier":
        x[n // 2 : n // 2 + 1] = 1e6
    elif fill == "equal":
        x = np.sign(x)
    return x.astype(dtype)


def same(a, b):
    """Compare numbers, not the sign of a zero."""
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def call(backend, name, *arguments):
    """Call a kernel on copies; return (its result, the arrays after it)."""
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    with np.errstate(all="ignore"):
        result = getattr(backend, name)(*copies)
    return result, [a for a in copies if isinstance(a, np.ndarray)]


def alike(name, *arguments):
    """Assert that both backends give the same bits, and return them."""
    expected, reference = call(REFERENCE, name, *arguments)
    got, cpu = call(CPU, name, *arguments)
    assert got == expected or expected is None, (got, expected)
    for a, b in zip(cpu, reference, strict=True):
        assert same(a, b), np.flatnonzero(a != b)[:5]
    return got, cpu


def blocks(n):
    return -(-n // BLOCK)


@types
@fills
@pytest.mark.parametrize("form", ["bf16", "fp16"])
def test_halves_are_bit_equal_and_decode_to_what_the_residual_lacks(form, fill, dtype):
    for n in SIZES:
        x, r = vector(n, dtype, fill), vector(n, dtype, "random", 1) * dtype(0.01)
        finite, (_, left, codes) = alike(f"{form}_encode", x, r, np.zeros(n, np.uint16))
        assert finite and same(alike(f"{form}_round", x + r, np.zeros(n, np.uint16))[1][1], codes)
        _, (_, out) = alike(f"{form}_decode_add", codes, np.zeros(n, dtype))
        assert same((x + r) - out, left)


def test_fp16_is_numpys_and_keeps_every_half():
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16)) & (halves != 0x8000)]  # a sum with 0 is never -0
    x, codes = halves.view(np.float16).astype(np.float32), np.zeros(halves.size, np.uint16)
    r = np.zeros_like(x)
    assert CPU.fp16_encode(x, r, codes) and np.array_equal(codes, halves) and not r.any()
    between = (x[1:] + x[:-1]) / 2  # ties, which go to the even one
    codes, r = np.zeros(between.size, np.uint16), np.zeros_like(between)
    assert CPU.fp16_encode(between, r, codes) and np.array_equal(codes.view(np.float16), between.astype(np.float16))
    odd, out = np.array([0x7C00, 0xFC00, 0x7E00, 0xFFFF], np.uint16), np.zeros(4, np.float32)
    CPU.fp16_decode_add(odd, out)
    assert np.array_equal(out, odd.view(np.float16).astype(np.float32), equal_nan=True)  # infinity and NaN, of which no finite value makes one


@pytest.mark.bench
@types
def test_bf16_is_torchs(dtype):
    import torch

    x = np.concatenate([vector(4000, dtype, fill) for fill in FILLS]) + dtype(0)  # a sum with 0 is never -0
    codes = np.zeros(x.size, np.uint16)
    CPU.bf16_encode(x, np.zeros_like(x), codes)
    expected = torch.tensor(x).float().bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(codes, expected)


@both
@types
@pytest.mark.parametrize(("form", "largest"), [("fp16", 65504.0), ("bf16", float.fromhex("0x1.fep127"))])
def test_what_is_beyond_a_format_is_sent_as_its_largest_and_the_rest_stays(form, largest, dtype, backend):
    x = np.array([1.004, -1.004], dtype) * dtype(largest) if dtype == np.float64 or form == "fp16" else np.array([3.4e38, -3.4e38], dtype)
    _, (_, left, codes) = call(backend, f"{form}_encode", x, np.zeros(2, dtype), np.zeros(2, np.uint16))
    out = np.zeros(2, dtype)
    getattr(backend, f"{form}_decode_add")(codes, out)
    assert np.array_equal(out, dtype(largest) * np.array([1, -1], dtype)) and np.array_equal(left, x - out) and np.isfinite(left).all()


@types
@fills
@pytest.mark.parametrize("block", [1, 5, BLOCK])
def test_int8_is_bit_equal_within_half_a_unit_and_decodes_to_what_the_residual_lacks(block, fill, dtype):
    for n in SIZES:
        x, r = vector(n, dtype, fill), vector(n, dtype, "random", 1) * dtype(0.01 if fill == "random" else 0)
        units = np.zeros(-(-n // block), dtype)
        finite, (_, left, units, codes) = alike("int8_encode", x, r, block, units, np.zeros(n, np.int8))
        _, (_, units_alone, codes_alone) = alike("int8_round", x + r, block, units, np.zeros(n, np.int8))
        assert same(units_alone, units) and same(codes_alone, codes)
        _, (_, _, out) = alike("int8_decode_add", codes, units, block, np.zeros(n, dtype))
        assert finite and same((x + r) - out, left)
        unit = np.repeat(units, block)[:n]
        assert (np.abs(left) <= np.where(unit > 0, unit * 0.5001, np.abs(x + r))).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packing_keeps_every_code_in_as_few_bytes_as_can_be(bits):
    for n in SIZES:
        values = np.random.default_rng(n).integers(0, 1 << bits, n)
        codes = np.zeros(-(-n * bits // 8), np.uint8)
        pack(values, bits, codes)
        assert np.array_equal(unpack(codes, n, bits), values)


@types
@fills
def test_two_bit_is_bit_equal_and_decodes_to_what_the_residual_lacks(fill, dtype):
    for n in SIZES:
        x, r = vector(n, dtype, fill), vector(n, dtype, fill, 1)
        codes, unit = np.full(-(-n // 4), 255, np.uint8), np.array([2.0 if fill == "equal" else 0.7], dtype)  # equal ones reach it exactly
        expected, reference = call(REFERENCE, "two_bit_encode", x, r, float(unit[0]), codes)
        got, (_, left, codes) = call(CPU, "two_bit_encode", x, r, float(unit[0]), codes)
        assert got == pytest.approx(expected, rel=1e-12) and same(codes, reference[2]) and same(left, reference[1])
        _, (*_, out) = alike("codes_decode_add", codes, unit, max(n, 1), 2, np.zeros(n, dtype))
        v = x + r
        assert same(out, np.where(np.abs(v) >= unit, np.copysign(unit, v), dtype(0))) and same(v - out, left)


@types
@fills
@pytest.mark.parametrize("block", [256, 1280])
def test_adaptive_codes_send_what_exceeds_a_share_of_the_mean_as_its_own_mean(fill, dtype, block):
    for n in SIZES:
        x, r = vector(n, dtype, fill), vector(n, dtype, fill, 1)
        codes, units = np.full(-(-n // 4), 255, np.uint8), np.zeros(-(-n // block), dtype)
        expected, reference = call(REFERENCE, "adaptive_encode", x, r, block, units, codes)
        got, (_, left, units, codes) = call(CPU, "adaptive_encode", x, r, block, units, codes)
        assert got == expected and same(codes, reference[3])
        np.testing.assert_allclose(units, reference[2], rtol=30 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).smallest_subnormal)
        _, (*_, out) = alike("codes_decode_add", codes, units, block, 2, np.zeros(n, dtype))
        v = x + r
        assert same(v - out, left)  # what is not sent, to the bit
        for i, unit in enumerate(units):
            part = np.abs(v[i * block : (i + 1) * block]).astype(np.float64)
            sent = out[i * block : (i + 1) * block] != 0
            assert sent.sum() == (part > dtype(0.7 * part.mean())).sum() or unit == 0
            if sent.any():
                assert unit == pytest.approx(part[sent].mean(), rel=1e-6)


@types
@fills
def test_one_bit_sends_the_sign_and_the_mean_magnitude_of_a_block(fill, dtype):
    for n in SIZES:
        x, r = vector(n, dtype, fill), vector(n, dtype, fill, 1)
        x[::5] = r[::5] = 0  # counts as positive, on both sides
        units, codes = np.zeros(blocks(n), dtype), np.full(-(-n // 8), 255, np.uint8)
        expected, (_, _, reference_units, reference_codes) = call(REFERENCE, "one_bit_encode", x, r, BLOCK, units, codes)
        got, (_, left, units, codes) = call(CPU, "one_bit_encode", x, r, BLOCK, units, codes)
        assert got == expected and got and same(codes, reference_codes)
        np.testing.assert_allclose(units, reference_units, rtol=BLOCK * np.finfo(dtype).eps)
        _, (*_, out) = alike("bits_decode_add", codes, units, BLOCK, np.zeros(n, dtype))
        assert same((x + r) - out, left)


@types
@fills
def test_votes_are_signs_and_a_coin_for_zero(fill, dtype):
    for n in SIZES:
        x = vector(n, dtype, fill)
        x[::3] = 0
        finite, (_, codes) = alike("vote_encode", x, KEY, np.full(-(-n // 8), 255, np.uint8))
        _, (*_, out) = alike("bits_decode_add", codes, np.ones(1, dtype), max(n, 1), np.zeros(n, dtype))
        assert finite and np.array_equal(out[x != 0], np.sign(x[x != 0])) and set(out[x == 0]) <= {-1, 1}
        if n > 1000:
            assert abs(out[x == 0].mean()) < 5 / np.sqrt((x == 0).sum())


@types
@fills
@pytest.mark.parametrize(("bits", "euclidean"), [(2, False), (4, False), (2, True), (4, True)])
def test_stochastic_codes_are_bit_equal_and_within_one_unit(bits, euclidean, fill, dtype):
    for n in SIZES:
        x = vector(n, dtype, fill)
        units, codes = np.zeros(blocks(n), dtype), np.full(-(-n * bits // 8), 255, np.uint8)
        if euclidean:  # the norm is a sum: codes can differ where a value lies on an edge
            _, (_, reference_units, _) = call(REFERENCE, "stochastic_encode", x, KEY, BLOCK, bits, True, units, codes)
            finite, (_, units, codes) = call(CPU, "stochastic_encode", x, KEY, BLOCK, bits, True, units, codes)
            np.testing.assert_allclose(units, reference_units, rtol=1e-6 if dtype == np.float32 else 1e-13)
        else:
            finite, (_, units, codes) = alike("stochastic_encode", x, KEY, BLOCK, bits, False, units, codes)
        _, (*_, out) = alike("codes_decode_add", codes, units, BLOCK, bits, np.zeros(n, dtype))
        unit = np.repeat(units, BLOCK)[:n]
        assert finite and (np.abs(out - x) <= np.where(unit > 0, unit * 1.0001, np.abs(x))).all()


@types
@pytest.mark.parametrize(("name", "bits"), [("bf16", 16), ("fp16", 16), ("int8", 8), ("codes", 4), ("codes", 2), ("bits", 1)])
def test_what_is_decoded_is_rounded_before_it_is_added(name, bits, dtype):
    """Else a receiver who adds to values and one who adds to zeros would not have decoded the same."""
    for n in SIZES:
        codes = (
            np.random.default_rng(n).integers(0, 128, -(-n * bits // 8) if bits < 8 else n).astype({16: np.uint16, 8: np.int8}.get(bits, np.uint8))
        )
        codes = codes << 7 if bits == 16 else codes  # about 1
        units = () if bits == 16 else (vector(blocks(n), dtype), BLOCK)
        more = (bits,) if name == "codes" else ()
        _, (*_, alone) = call(REFERENCE, f"{name}_decode_add", codes, *units, *more, np.zeros(n, dtype))
        out = vector(n, dtype, seed=1)
        assert same(alike(f"{name}_decode_add", codes, *units, *more, out)[1][-1], out + alone)


@types
@fills
def test_the_kth_magnitude_is_exact_and_selection_moves_just_k(fill, dtype):
    for n in SIZES[1:]:
        x, r = vector(n, dtype, fill), vector(n, dtype, fill, 1)
        scratch = np.zeros(2048, np.int64)
        for k in {1, n, max(1, n // 100), max(1, n // 3)}:
            threshold, (*_, counts) = call(CPU, "kth_magnitude", x, r, k, scratch)
            expected, (*_, expected_counts) = call(REFERENCE, "kth_magnitude", x, r, k, scratch)
            n_equal = int(counts[0])
            assert threshold == expected and n_equal == expected_counts[0]
            arguments = x, r, threshold, n_equal, np.full(k, np.nan, dtype), np.full(k, 9, np.uint32)
            count, (_, left, values, ids) = alike("select", *arguments)
            _, (*_, out) = alike("scatter_add", values, ids, np.zeros(n, dtype))
            assert count == k and same(left + out, x + r) and not (left * out).any()
            assert np.abs(left).max() <= threshold


@both
@types
def test_selection_stops_where_there_is_no_room_and_clears_what_it_does_not_need(dtype, backend):
    x = np.arange(-20, 20, dtype=dtype)
    count, (_, left, values, ids) = call(backend, "select", x, np.zeros(40, dtype), 15.0, 99, np.zeros(4, dtype), np.zeros(4, np.uint32))
    assert count == 4 and values.tolist() == [-20, -19, -18, -17] and ids.tolist() == [0, 1, 2, 3] and left[4] == -16
    count, (_, _, values, ids) = call(backend, "select", x, np.zeros(40, dtype), 19.0, 99, np.full(9, 7, dtype), np.full(9, 7, np.uint32))
    assert count == 3 and not values[3:].any() and not ids[3:].any()


@types
def test_strata_hold_one_drawn_value_each(dtype):
    for n in SIZES:
        x = vector(n, dtype)
        for k in {0, min(n, 1), n // 7, n}:
            _, (left, values) = alike("strata_move", x, KEY, np.zeros(k, dtype))
            _, (_, out) = alike("strata_add", values, KEY, np.zeros(n, dtype))
            assert same(left + out, x) and np.count_nonzero(out) == k
            _, (_, weighed) = alike("strata_take", x, KEY, np.zeros(k, dtype))
            lengths = np.diff(np.arange(k + 1) * n // max(k, 1))
            assert same(weighed, values * lengths.astype(dtype))


def test_noise_is_uniform_uncorrelated_and_changes_with_each_half_of_the_key():
    n = 100_000
    index = np.arange(n)
    drawn = {key: draw(np.uint64(key), index) / 2**32 - 0.5 for key in (3, 4, 3 + (1 << 40))}
    sigma = np.sqrt(1 / 12)
    for noise in drawn.values():
        assert abs(noise.mean()) < 5 * sigma / np.sqrt(n) and abs(noise.var() - sigma**2) < 0.002
        assert all(abs((noise[lag:] * noise[:-lag]).mean()) < 5 * sigma**2 / np.sqrt(n) for lag in (1, 2, 64, 512))
    a, b, c = drawn.values()
    assert all(abs((p * q).mean()) < 5 * sigma**2 / np.sqrt(n) for p, q in ((a, b), (a, c), (b, c)))


@both
@types
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [3, 2000])
@pytest.mark.parametrize("where", ["x", "r"])
def test_a_value_that_is_not_finite_is_told_wherever_it_stands(where, n, bad, dtype, backend):
    for at in (0, n // 2, n - 1):
        x, r = vector(n, dtype), vector(n, dtype, seed=1)
        bits, units = np.zeros(n, np.uint8), np.zeros(blocks(n), dtype)
        halves, values, ids = np.zeros(n, np.uint16), np.zeros(n, dtype), np.zeros(n, np.uint32)
        own = (x, KEY)
        (x if where == "x" else r)[at] = bad
        told = {
            "bf16_encode": (x, r, halves), "fp16_encode": (x, r, halves), "int8_encode": (x, r, BLOCK, units, bits.view(np.int8)),
            "one_bit_encode": (x, r, BLOCK, units, bits[: -(-n // 8)]),
        }  # fmt: skip
        if where == "x":
            told |= {"is_finite": (x,), "bf16_round": (x, halves), "fp16_round": (x, halves), "int8_round": (x, BLOCK, units, bits.view(np.int8))}
            told["vote_encode"] = (*own, bits[: -(-n // 8)])
            told["stochastic_encode"] = (*own, BLOCK, 4, False, units, bits[: -(-n // 2)])
            told["stochastic_encode "] = (*own, BLOCK, 4, True, units, bits[: -(-n // 2)])
        assert not any(call(backend, name.strip(), *arguments)[0] for name, arguments in told.items())
        assert not np.isfinite(call(backend, "two_bit_encode", x, r, 0.5, bits[: -(-n // 4)])[0])
        assert call(backend, "select", x, r, 0.5, n, values, ids)[0] == -1


@both
@types
@pytest.mark.parametrize(("k", "m", "n"), [(1, 1, 1), (2, 7, 5), (4, 33, 65), (3, 2, 9)])
def test_rows_become_orthonormal_and_keep_their_span(k, m, n, dtype, backend):
    p = vector(k * m, dtype).reshape(k, m)
    before, eps = p.copy(), np.finfo(dtype).eps
    backend.orthonormalise(p)
    rank = min(k, m)
    np.testing.assert_allclose(p @ p.T, np.diag([1.0] * rank + [0.0] * (k - rank)), atol=20 * eps)
    np.testing.assert_allclose(before @ p.T @ p, before, atol=100 * eps)
    q, v = vector(k * n, dtype, seed=2).reshape(k, n), vector(m * n, dtype, seed=3).reshape(m, n)
    expected = v - (p.T.astype(np.float64) @ q)
    backend.add_product(p, q, -1.0, v)
    np.testing.assert_allclose(v, expected, atol=30 * eps)
    zero = np.zeros((k, m), dtype)
    backend.orthonormalise(zero)
    assert not zero.any()


def test_codecs_kernels_are_loaded_when_first_asked_for():
    fresh = mpidml_kernels.Backend(name="numpy")
    assert "fp16_encode" not in vars(fresh)
    fresh.fp16_encode(np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.uint16))
    assert "fp16_encode" in vars(fresh) and "bf16_encode" in vars(fresh) and "select" not in vars(fresh)
    with pytest.raises(AttributeError, match="no kernel 'fp17_encode'"):
        fresh.fp17_encode  # noqa: B018
