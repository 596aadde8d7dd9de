"""Run the CUDA kernels of codes on the CPU: the tests of test_codecs.py over again, and what is CUDA's own; break each, and see that it is noticed."""

import functools
import inspect
import itertools
import math
import re

import numpy as np
import pytest
from mpidml_kernels import launch, packed, rounded

from tests.kernels import test_codecs
from tests.kernels.test_codecs import (  # noqa: F401  (collected here once more)
    KEY,
    REFERENCE,
    call,
    same,
    test_adaptive_codes_send_what_exceeds_a_share_of_the_mean_as_its_own_mean,
    test_fp16_is_numpys_and_keeps_every_half,
    test_halves_are_bit_equal_and_decode_to_what_the_residual_lacks,
    test_int8_is_bit_equal_within_half_a_unit_and_decodes_to_what_the_residual_lacks,
    test_one_bit_sends_the_sign_and_the_mean_magnitude_of_a_block,
    test_stochastic_codes_are_bit_equal_and_within_one_unit,
    test_two_bit_is_bit_equal_and_decodes_to_what_the_residual_lacks,
    test_votes_are_signs_and_a_coin_for_zero,
    test_what_is_decoded_is_rounded_before_it_is_added,
    types,
    vector,
)
from tests.kernels.test_gpu import assert_noticed
from tests.kernels.test_gpu_compile import FOLDER, compiled
from tests.shim import cupy_double
from tests.shim.backend import ORDERS, on_shim
from tests.shim.compiled import Module

FAMILIES = [rounded, packed]
SIZES = [0, 1, 7, 65, 513, 1025, 1700]
on_device = functools.cache(lambda order: on_shim(order, *FAMILIES))
next_order = itertools.cycle(ORDERS)
orders = pytest.mark.parametrize("order", ORDERS)
TOLD = [name for family in FAMILIES for name in family.LAWS if "_add" not in name and name != "two_bit_encode"]


def flushed(a):
    """Return the array with 0 for what is below the normal numbers of float32, which CUDA's arithmetic does not know."""
    return np.where(np.abs(a) < np.finfo(a.dtype).tiny, np.copysign(np.float32(0), a), a) if a.dtype == np.float32 else a


@pytest.fixture(autouse=True)
def _cuda_in_place_of_numba(monkeypatch):
    """Hand the tests of test_codecs.py CUDA's kernels, each test with its threads in another order."""
    monkeypatch.setattr(test_codecs, "CPU", on_device(next(next_order)))
    monkeypatch.setattr(test_codecs, "SIZES", SIZES)
    monkeypatch.setattr(test_codecs, "vector", lambda *of, **seed: flushed(vector(*of, **seed)))
    monkeypatch.setattr(test_codecs, "same", lambda a, b: same(flushed(a), flushed(b)))


EDGES = [0, 0.7, -0.7, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 1e-6, -3e-7, 1e5]
"""Where comparisons and roundings turn: zero, the threshold, ties of bfloat16 and of halves, subnormal halves, what is too large for one."""


def of_codes(kernel, n=1701, dtype=np.float32, block=512, bits=4):
    """Return arguments of a kernel of codes, by the names that the references give them: edges in the first 512 values, nothing but zeros in the next."""
    name, width = kernel.__name__, {"one_bit_encode": 1, "vote_encode": 1, "bits_decode_add": 1, "two_bit_encode": 2, "adaptive_encode": 2}
    x, r = vector(n, dtype), vector(n, dtype, seed=1)
    x[:512:9], r[:512:9] = np.resize(EDGES, x[:512:9].size), 0
    x[512:1024] = r[512:1024] = 0
    known = {"x": x, "r": r, "out": vector(n, dtype, seed=2), "units": np.abs(vector(-(-n // block), dtype, seed=3)), "key": KEY}
    known |= {"block": block, "bits": bits, "euclidean": False, "threshold": 0.7}
    codes = np.random.default_rng(n).integers(0, 0x7C00, n) | (np.arange(n) % 2 << 15)  # as halves they are finite
    known["codes"] = codes.astype(np.int8 if name.startswith("int8") else np.uint16)
    if name in packed.LAWS:
        known["codes"] = codes[: -(-n * width.get(name, bits) // 8)].astype(np.uint8)
    return [known[parameter] for parameter in inspect.signature(kernel).parameters]


@orders
@types
@pytest.mark.parametrize("name", [*rounded.LAWS, *packed.LAWS])
def test_codes_and_decoded_values_agree_with_their_references_in_every_order(name, dtype, order):
    eps = 30 * float(np.finfo(dtype).eps) if name in ("one_bit_encode", "adaptive_encode") else 0  # their unit is a sum
    for n, block in itertools.product(SIZES, (512, 1 << 20)):
        given = of_codes(getattr(REFERENCE, name), n, dtype, block)
        expected, here = call(REFERENCE, name, *given)
        got, there = call(on_device(order), name, *given)
        assert got == expected or got == pytest.approx(expected, rel=1e-12)
        for a, b in zip(there, here, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=eps * np.abs(b).max(initial=0) if b.dtype.kind == "f" else 0)


def take_few_threads(monkeypatch):
    """Lay all over so few threads that each goes around several times."""
    monkeypatch.setattr(launch, "MOST_BLOCKS", 2)
    for family in ("rounded", "packed"):
        monkeypatch.setattr(f"mpidml_kernels.{family}.gpu.row_block", lambda n: 32)
        monkeypatch.setattr(f"mpidml_kernels.{family}.gpu.BLOCK", 64)
    monkeypatch.setattr(launch, "BLOCK", 64)


@types
@pytest.mark.parametrize("name", [*rounded.LAWS, *packed.LAWS])
def test_few_threads_go_over_all_values(name, dtype, monkeypatch):
    take_few_threads(monkeypatch)
    test_codes_and_decoded_values_agree_with_their_references_in_every_order(name, dtype, "shuffle")


@orders
@types
def test_a_code_has_the_same_bits_whatever_the_order_of_threads(dtype, order):
    for name in [*rounded.LAWS, *packed.LAWS]:
        given = of_codes(getattr(REFERENCE, name), 1500, dtype)
        (got, there), (expected, here) = (call(on_device(way), name, *given) for way in (order, "forward"))
        assert got == expected and all(a.tobytes() == b.tobytes() for a, b in zip(there, here, strict=True)), name


def with_bad(name, bad, at, dtype):
    """Return arguments of which one value is not finite."""
    given = of_codes(getattr(REFERENCE, name), 1701, dtype)
    given[0][at] = bad
    return given


@types
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_told_wherever_it_stands(bad, dtype):
    device = on_device("forward")
    for name in TOLD:
        for at in (0, 1100, 1700):
            assert call(device, name, *with_bad(name, bad, at, dtype))[0] is False, (name, at)
        assert call(device, name, *of_codes(getattr(REFERENCE, name), 1701, dtype))[0] is True, "the flag is down again"
    assert not math.isfinite(call(device, "two_bit_encode", *with_bad("two_bit_encode", bad, 1000, dtype))[0])


@pytest.mark.parametrize("name", [n for n in (*rounded.LAWS, *packed.LAWS) if n != "bf16_round"])
def test_what_is_below_the_normal_numbers_of_float32_counts_as_0(name):
    given = of_codes(getattr(REFERENCE, name))
    for array in given:
        if isinstance(array, np.ndarray) and array.dtype == np.float32:
            array[1::2] *= np.float32(1e-39)
    zeros = [flushed(a) if isinstance(a, np.ndarray) else a for a in given]
    (got, there), (expected, here) = (call(on_device("forward"), name, *arguments) for arguments in (given, zeros))
    assert got == expected and all(same(flushed(a), flushed(b)) for a, b in zip(there, here, strict=True))


def test_bfloat16_keeps_what_is_below_the_normal_numbers_where_no_arithmetic_comes_in():
    x = np.concatenate([vector(500, np.float64) * 10.0**e for e in range(-48, -36)])
    for dtype in (np.float32, np.float64):
        expected, got = (
            call(backend, "bf16_round", x.astype(dtype), np.zeros(x.size, np.uint16))[1][1] for backend in (REFERENCE, on_device("forward"))
        )
        assert same(got, expected) and np.count_nonzero((got & 0x7FFF > 0) & (got & 0x7FFF < 0x80)) > 100
    _, (_, out) = call(on_device("forward"), "bf16_decode_add", got, np.zeros(x.size))
    assert same(out, call(REFERENCE, "bf16_decode_add", got, np.zeros(x.size))[1][1])


@types
@pytest.mark.parametrize(("form", "largest"), [("fp16", 65504.0), ("bf16", float.fromhex("0x1.fep127"))])
def test_what_is_beyond_a_format_is_sent_as_its_largest(form, largest, dtype):
    test_codecs.test_what_is_beyond_a_format_is_sent_as_its_largest_and_the_rest_stays(form, largest, dtype, on_device("forward"))


MUTANTS = [
    ("rounded", "bf16_round", "0x7fffu + (bits >> 16 & 1u)", "0x8000u", "differs"),
    ("rounded", "bf16_encode", "r[i] = v - from_##form(code);", "r[i] = v;", "differs"),
    ("rounded", "bf16_decode_add", "__uint_as_float(code << 16)", "__uint_as_float((code & 0x7fffu) << 16)", "differs"),
    ("rounded", "fp16_round", "(low >> 13 & 1u)", "1u", "differs"),
    ("rounded", "fp16_encode", "low < 0x38800000u ? subnormal : normal", "normal", "differs"),
    ("rounded", "fp16_encode", "0x477fe000u", "0x7f7fffffu", "differs"),
    ("rounded", "fp16_decode_add", "low < 0x00800000u ? __uint", "false ? __uint", "differs"),
    ("rounded", "int8_round", "rint(times(x[i]", "floor(times(x[i]", "differs"),
    ("rounded", "int8_round", "largest = block_max(largest, scratch);", "", "differs"),
    ("rounded", "int8_encode", "larger(fabs(v), largest)", "larger(v, largest)", "differs"),
    ("rounded", "int8_encode", "r[i] = v;\n        largest", "largest", "differs"),
    ("rounded", "int8_decode_add", "min(block, n - begin)", "block", "out-of-bounds"),
    ("rounded", "int8_decode_add", "(Index)blockIdx.y * blockDim.x + threadIdx.x", "threadIdx.x", "race on out"),
    ("device", "int8_encode", "if (norm < ", "if (norm < 0 * ", "differs"),
    ("packed", "one_bit_encode", "v >= 0", "v > 0", "differs"),
    ("packed", "one_bit_encode", "/ (real)min(block, n - blockIdx.x * block)", "/ (real)block", "differs"),
    ("packed", "one_bit_encode", "(b) >> 6) << (6 + (shift))", "(b) >> 6) << 6", "race on r|differs"),
    ("packed", "vote_encode", "draw(key, i) >> 31", "draw(key, i) & 1", "differs"),
    ("packed", "vote_encode", "min(group + (64 << (shift)), n)", "group + (64 << (shift))", "out-of-bounds"),
    ("packed", "vote_encode", "(((n) + (1 << (shift)) - 1) >> (shift))", "((n) >> (shift))", "differs"),
    ("packed", "bits_decode_add", "byte >> k & 1 ? unit : -unit", "byte >> k & 1 ? unit : (real)0", "differs"),
    ("packed", "bits_decode_add", "min((blockIdx.x + 1) * width, N_BYTES(n, shift))", "(blockIdx.x + 1) * width", "out-of-bounds"),
    ("packed", "two_bit_encode", "v <= -threshold", "v < -threshold", "differs"),
    ("packed", "two_bit_encode", "total = block_sum(total, scratch);\n    if (threadIdx.x == 0) sums", "sums", "race on sums"),
    ("packed", "adaptive_encode", "below ? 3u", "below ? 2u", "differs"),
    ("packed", "adaptive_encode", "if (sent) total", "total", "differs"),
    ("packed", "adaptive_encode", "n_above = block_sum(n_above, counts);", "", "differs"),
    ("packed", "stochastic_encode", "draw(key, i) >> 8", "draw(key, i - group) >> 8", "differs"),
    ("packed", "stochastic_encode", "v < 0 ? -c : c", "c", "differs"),
    ("packed", "codes_decode_add", "const int c = (int)(byte", "const int c = (byte", "differs"),
    ("packed", "codes_decode_add", "bits * (k + 1)", "bits * k", "differs"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "old", "new", "said"), MUTANTS, ids=range(len(MUTANTS)))
def test_a_broken_kernel_is_noticed(where, name, old, new, said, monkeypatch):
    families = [family for family in FAMILIES if name in family.LAWS]
    assert_noticed(monkeypatch, families, of_codes(getattr(REFERENCE, name)), where, name, old, new, said)


FEW = [
    ("rounded", "int8_encode", "i += (Index)gridDim.y * blockDim.x", "i += 64", "differs"),
    ("rounded", "int8_decode_add", "(Index)gridDim.y * blockDim.x", "blockDim.x", "race on out|differs"),
    ("packed", "adaptive_encode", "b += (Index)gridDim.y * blockDim.x", "b += 64", "differs"),
    ("packed", "codes_decode_add", "b += (Index)gridDim.y * blockDim.x", "b += blockDim.x", "race on out"),
]


@pytest.mark.parametrize(("where", "name", "old", "new", "said"), FEW, ids=range(len(FEW)))
def test_a_kernel_that_leaves_out_values_or_takes_them_twice_is_noticed(where, name, old, new, said, monkeypatch):
    take_few_threads(monkeypatch)
    families = [family for family in FAMILIES if name in family.LAWS]
    assert_noticed(monkeypatch, families, of_codes(getattr(REFERENCE, name), block=1 << 20), where, name, old, new, said)


def test_every_kernel_has_a_broken_variant():
    assert {name for _, name, *_ in MUTANTS} == {*rounded.LAWS, *packed.LAWS}


def test_a_kernel_that_raises_no_flag_is_noticed(monkeypatch):
    def build(source, *arguments, **how):
        assert "atomicOr(flag, 1)" in source
        return Module(source.replace("atomicOr(flag, 1)", "(void)flag"), *arguments, **how)

    monkeypatch.setattr(cupy_double, "Module", build)
    broken = on_shim("forward", *FAMILIES)
    assert all(call(broken, name, *with_bad(name, np.nan, 1100, np.float32))[0] for name in TOLD)


def not_rounded(code, real):
    """Return the kernels with a product of two `real` numbers that the compiler fuses with a sum, or may: it may unless the rounding is spelt out."""
    ptx = compiled(code, real, "80")[1]
    product = re.compile(rf"\b(mul|fma\.rn)\.(ftz\.)?f{8 * int(real[1])}\b")
    return {text.split("(")[0] for text in ptx.split(".entry ")[1:] if product.search(text)}


def test_every_product_is_rounded_but_where_squares_are_added_up_and_a_mean_is_scaled():
    """The CPU never fuses, so only the compiler for GPUs can tell; what is subtracted fused with its product is not what is added elsewhere."""
    for family in ("rounded", "packed"):
        code = (FOLDER / family / "gpu.cu").read_text()
        assert not not_rounded(code, "f4") and not_rounded(code, "f8") <= {"two_bit_encode", "stochastic_encode", "adaptive_encode"}
    header = (FOLDER / "device.cuh").read_text().replace("#pragma once", "")
    for rounds, real in (("__fmul_rn(a, b)", "f4"), ("__dmul_rn(a, b)", "f8")):
        assert rounds in header
        broken = (FOLDER / "rounded/gpu.cu").read_text().replace('#include "device.cuh"', header.replace(rounds, "a * b"))
        assert not_rounded(broken, real) >= {"int8_encode", "int8_decode_add"}
