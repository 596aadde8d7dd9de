"""Run CUDA's kernels of sparse and low-rank codes on the CPU: the tests of test_codecs.py over again, and what is CUDA's own; break each, and see that it is noticed."""

import functools
import inspect
import itertools

import numpy as np
import pytest
from mpidml_kernels import launch, low_rank, sparse
from mpidml_kernels.launch import Gpu

from tests.kernels import test_codecs
from tests.kernels.test_codecs import (  # noqa: F401  (collected here once more)
    KEY,
    REFERENCE,
    call,
    same,
    test_strata_hold_one_drawn_value_each,
    test_the_kth_magnitude_is_exact_and_selection_moves_just_k,
    types,
    vector,
)
from tests.kernels.test_gpu import assert_noticed
from tests.shim.backend import ORDERS, on_shim

FAMILIES = [sparse, low_rank]
SIZES = [0, 1, 65, 1025]
on_device = functools.cache(lambda order: on_shim(order, *FAMILIES))
orders = pytest.mark.parametrize("order", ORDERS)
next_order = itertools.cycle(ORDERS)


def flushed(a):
    """Return the array with 0 for what is below the normal numbers of float32, which CUDA's arithmetic does not know."""
    return np.where(np.abs(a) < np.finfo(a.dtype).tiny, a.dtype.type(0), a) if a.dtype == np.float32 else a


@pytest.fixture(autouse=True)
def _cuda_in_place_of_numba(monkeypatch):
    """Hand the tests of test_codecs.py CUDA's kernels, each test with its threads in another order; so few blocks that a thread takes several elements."""
    monkeypatch.setattr(launch, "MOST_BLOCKS", 3)
    monkeypatch.setattr(test_codecs, "CPU", on_device(next(next_order)))
    monkeypatch.setattr(test_codecs, "SIZES", SIZES)
    monkeypatch.setattr(test_codecs, "vector", lambda *of, **more: flushed(vector(*of, **more)))


def places(n, k):
    """Return k places in order, the last quarter of them the rest: zeros for place 0."""
    n_real = k - k // 4
    ids = np.zeros(k, np.uint32)
    ids[:n_real] = np.sort(np.random.default_rng(n).permutation(n)[:n_real])
    return ids


def of_codes(kernel, n=1500, dtype=np.float32):
    """Return arguments of a kernel, by the names that the references give them; a third of the sums is plus or minus the threshold, which is the k-th."""
    name, k, threshold = kernel.__name__, n // 7, dtype(1.1)
    x, r = vector(n, dtype), vector(n, dtype, seed=1)
    x[::3], r[::3] = 0, np.copysign(threshold, r[::3])
    known = {"x": x, "r": r, "out": vector(n, dtype, seed=2), "threshold": float(threshold), "n_equal": n // 9, "key": KEY, "sign": -1.0}
    known |= {"k": max(1, np.count_nonzero(np.abs(x + r) >= threshold)), "counts": np.zeros(2048, np.int64)}
    known |= {"values": vector(n // 2, dtype, seed=3), "ids": np.full(n // 2, 9, np.uint32)}
    if name == "scatter_add":
        known["ids"] = places(n, n // 2)
        known["values"][known["ids"] == 0] = 0
    if name == "is_finite" and n:
        known["x"][n // 2] = np.inf
    if name.startswith("strata"):
        known["values"] = known["values"][:k]
    if name in low_rank.LAWS:
        known |= {"p": dependent(4, 300, dtype), "q": vector(4 * 33, dtype, seed=1).reshape(4, 33)}
        known["v"] = vector(300 * 33, dtype, seed=2).reshape(300, 33)
    return [known[parameter] for parameter in inspect.signature(kernel).parameters]


def dependent(k, m, dtype):
    """Return k rows of m, of which the last but one depends on others."""
    p = vector(k * m, dtype).reshape(k, m)
    p[-2] = p[0] - p[1]
    return p


@orders
@types
@pytest.mark.parametrize("name", sparse.LAWS)
def test_sparse_kernels_give_the_bits_of_their_references_in_every_order(name, dtype, order):
    for n in (*SIZES[name == "kth_magnitude" :], 3000):
        given = of_codes(getattr(REFERENCE, name), n, dtype)
        expected, here = call(REFERENCE, name, *given)
        got, there = call(on_device(order), name, *given)
        assert got == expected and all(same(a, b) for a, b in zip(there, here, strict=True)), n


@types
def test_more_warps_than_a_block_has_threads_find_their_places(dtype, monkeypatch):
    monkeypatch.setattr(launch, "MOST_BLOCKS", 1056)
    given = of_codes(REFERENCE.select, 34_000, dtype)
    (got, there), (expected, here) = (call(backend, "select", *given) for backend in (on_device("shuffle"), REFERENCE))
    assert got == expected > 10_000 and all(same(a, b) for a, b in zip(there, here, strict=True))


@orders
@types
@pytest.mark.parametrize(("k", "m", "n"), [(1, 1, 1), (2, 7, 5), (4, 33, 65), (3, 2, 9), (3, 600, 7), (0, 5, 5), (2, 0, 3)])
def test_low_rank_kernels_agree_with_their_references_in_every_order(k, m, n, dtype, order):
    p, q, v, eps = (*(vector(a * b, dtype, seed=a).reshape(a, b) for a, b in ((k, m), (k, n), (m, n))), np.finfo(dtype).eps)
    if k > 2:
        p[1] = 2 * p[0]  # what nothing is left of becomes 0 everywhere
    for name, arguments, near in (("orthonormalise", (p,), 20 * eps), ("add_product", (p, q, -0.5, v), 8 * (k + 1) * eps)):
        for a, b in zip(call(on_device(order), name, *arguments)[1], call(REFERENCE, name, *arguments)[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=30 * eps, atol=near)
        assert name == "add_product" or k < 3 or not call(on_device(order), name, p)[1][0][1].any()


def test_more_rows_than_a_warp_has_lanes_become_orthonormal():
    p = dependent(34, 40, np.float64)
    expected = call(REFERENCE, "orthonormalise", p)[1][0]
    on_device("shuffle").orthonormalise(p)
    np.testing.assert_allclose(p, expected, atol=30 * np.finfo(p.dtype).eps)


@pytest.mark.parametrize("name", [*sparse.LAWS, *low_rank.LAWS])
def test_a_result_has_the_same_bits_whatever_the_order_of_threads(name):
    given = of_codes(getattr(REFERENCE, name))
    results = [call(on_device(order), name, *given) for order in ORDERS]
    assert all(got == results[0][0] and [a.tobytes() for a in arrays] == [a.tobytes() for a in results[0][1]] for got, arrays in results)


@orders
@types
def test_the_tests_of_both_backends_hold_for_cuda(dtype, order):
    device = on_device(order)
    test_codecs.test_selection_stops_where_there_is_no_room_and_clears_what_it_does_not_need(dtype, device)
    for k, m, n in ((1, 1, 1), (2, 7, 5), (4, 33, 65), (3, 2, 9)):
        test_codecs.test_rows_become_orthonormal_and_keep_their_span(k, m, n, dtype, device)


@types
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_told_wherever_it_stands(bad, dtype):
    device, n = on_device("forward"), 2000
    for at in (0, n // 2, n - 1):
        x, r = vector(n, dtype), vector(n, dtype, seed=1)
        assert device.is_finite(x) and call(device, "select", x, r, 0.5, n, *room(n, dtype))[0] > 0
        for spoilt in (x, r):
            spoilt[at] = bad
            assert call(device, "select", x, r, 0.5, n, *room(n, dtype))[0] == -1
            spoilt[at] = 0
        x[at] = bad
        assert not device.is_finite(x)
        threshold, _ = call(device, "kth_magnitude", x, r, 1, np.zeros(2048, np.int64))
        assert np.isnan(threshold) if np.isnan(bad) else threshold == np.inf, "NaN counts as largest"


def room(k, dtype):
    return np.zeros(k, dtype), np.zeros(k, np.uint32)


@pytest.mark.parametrize("threshold", [0.0, 1e-39])
def test_what_is_below_the_normal_numbers_of_float32_counts_as_0(threshold):
    x, r = vector(500, np.float32), np.zeros(500, np.float32)
    x[::2] *= np.float32(1e-40)
    device = on_device("forward")
    assert call(device, "kth_magnitude", x, r, 400, np.zeros(2048, np.int64))[0] == 0
    count, (_, left, values, _) = call(device, "select", x, r, threshold, 0, *room(500, np.float32))
    assert count == 250 and not left.any() and same(values[:250], x[1::2])


def out_of_order(n=300, k=2000):
    """Return values of many magnitudes, their places, each several times and in no order, and an array to add them to."""
    random = np.random.default_rng(0)
    return vector(k, np.float32, "wide").clip(-1e20, 1e20), random.integers(0, n, k).astype(np.uint32), vector(n, np.float32)


@orders
def test_values_for_one_place_are_added_in_the_order_in_which_they_are_given(order):
    values, ids, out = out_of_order()
    _, (_, _, expected) = call(REFERENCE, "scatter_add", values, ids, out)
    assert same(call(on_device(order), "scatter_add", values, ids, out)[1][2], expected)
    backwards = call(REFERENCE, "scatter_add", values[::-1].copy(), ids[::-1].copy(), out)[1][2]  # the broken variant: another order
    assert not same(backwards, expected)


@orders
@pytest.mark.parametrize("ids", [[0, 0], [3, 3], [0, 3, 0, 0], [0, 3, 0, 3], [2, 0, 0, 1], [0, 0, 1], [5, 4]], ids=str)
def test_whatever_the_places_are_the_sum_is_that_of_the_reference(ids, order):
    for n_zero in range(len(ids) + 1):  # the last of which may be the rest
        values = np.arange(1, len(ids) + 1, dtype=np.float32)
        values[len(ids) - n_zero :] = 0
        arguments = values, np.array(ids, np.uint32), np.ones(8, np.float32)
        assert same(call(on_device(order), "scatter_add", *arguments)[1][2], call(REFERENCE, "scatter_add", *arguments)[1][2])


def nearly_parallel(m=500):
    return vector(m, np.float32) + np.float32(1e-3) * vector(6 * m, np.float32, seed=1).reshape(6, m)


def test_rows_that_are_nearly_parallel_become_orthogonal_to_rounding_and_once_is_not_enough(monkeypatch):
    p, eps = nearly_parallel(), np.finfo(np.float32).eps
    device = on_device("forward")
    device.orthonormalise(p)
    np.testing.assert_allclose(p @ p.T, np.eye(6), atol=20 * eps)
    go = Gpu.launch

    def once(gpu, family, name, grid, block, *given, **more):  # the broken variant: the first time nothing is taken
        if name == "take_parts" and given[1] is gpu.scratches["products given", "f4"]:
            name, given = "products_of_row", (given[0], *given[2:])
        go(gpu, family, name, grid, block, *given, **more)

    monkeypatch.setattr(Gpu, "launch", once)
    device.orthonormalise(p := nearly_parallel())
    assert np.abs(p @ p.T - np.eye(6)).max() > 100 * eps


def test_a_row_costs_four_launches_and_nothing_is_waited_for(monkeypatch):
    names, go = [], Gpu.launch
    monkeypatch.setattr(Gpu, "launch", lambda gpu, family, name, *rest: (names.append(name), go(gpu, family, name, *rest)))
    monkeypatch.setattr("tests.shim.cupy_double.Stream.synchronize", lambda stream: pytest.fail("waited"))
    device = on_device("forward")
    device.kernels.orthonormalise(device.cupy.asarray(vector(4 * 300, np.float32).reshape(4, 300)))
    device.kernels.scatter_add(*map(device.cupy.asarray, out_of_order()))
    assert names == [*["products_of_row", "take_parts", "take_parts", "make_unit"] * 4, "find_disorder", "scatter_add"]
    monkeypatch.undo()
    device.cupy.Stream.null.synchronize()


MUTANTS = [
    ("kth_magnitude", "own[d] = 0;\n    __syncthreads();", "own[d] = 0;", "race|uninitialised"),
    ("kth_magnitude", "atomicAdd(&own[(bits >> (high - width)) & ((1u << width) - 1)], 1u);", "own[(bits >> (high - width)) & ((1u << width) - 1)] += 1;", "race"),
    ("kth_magnitude", "atomicAdd((unsigned long long*)&counts[d], (unsigned long long)own[d]);", "counts[d] += own[d];", "race on counts"),
    ("kth_magnitude", "if (bits >> high == settled) ", "", "differs"),
    ("kth_magnitude", "high < TOP ? state[0] : 0", "state[0]", "differs"),
    ("kth_magnitude", "counts[digit] = counts[digit - 1] = 0;", "", "differs"),
    ("kth_magnitude", "= 0;\n    __syncthreads();\n    if (above", "= 0;\n    if (above", "race on counts"),
    ("kth_magnitude", "is_upper = left <= above + upper", "is_upper = left < above + upper", "differs"),
    ("kth_magnitude", "& 0x7fffffffu", "", "differs"),
    ("kth_magnitude", "if (lane >= by) upto", "upto", "differs"),
    ("kth_magnitude", "w < warp; ++w", "w <= warp; ++w", "differs"),
    ("select", "    __syncthreads();  // the scratch's last use is over\n", "", "race"),
    ("select", "r[i] = v;\n        above", "above", "differs"),
    ("select", "equal = sum_before(equal, scratch);", "", "race on values"),
    ("select", "sums[2 * warp + 1] = equal;\n        above += own_above;", "above += own_above;", "race on values"),
    ("select", "threadIdx.x == blockDim.x - 1", "threadIdx.x == 0", "race on values"),
    ("select", "equal_before < n_equal", "equal_before <= n_equal", "race on values"),
    ("select", "+ min(n_equal, equal_before)", "+ equal_before", "race on values"),
    ("select", "above += __popc(all_above);", "", "race on values"),
    ("select", "equal += __popc(all_equal);", "", "race on values"),
    ("select", "earlier = (1u << lane) - 1", "earlier = (2u << lane) - 1", "race on values"),
    ("select", "all_above = __ballot_sync(EVERY_LANE, is_above)", "all_above = __ballot_sync(0x0000ffffu, is_above)", "lacks the calling lane"),
    ("select", "r[i] = 0;\n        }\n        above", "}\n        above", "differs"),
    ("select", "ids[n_moved + i] = 0;", "", "differs"),
    ("scatter_add", "if (values[i] != 0) out", "out", "race on out"),
    ("scatter_add", "found |= disorder[b];\n    if", "found |= ~disorder[b];\n    if", None),  # not wrong, but slow: all is done in order
    ("is_finite", "total = block_sum(total, scratch);", "", "differs"),
    ("is_finite", "!(x[i] - x[i] == 0)", "x[i] != x[i]", "differs"),
    ("strata_move", "r[at] = 0;", "", "differs"),
    ("strata_take", "(i + 1) * n / k - start", "n / k", "differs"),
    ("strata_take", "(unsigned)(key >> 32)", "(unsigned)key", "differs"),
    ("strata_add", "out[drawn(n, k, i, key,", "out[drawn(n, k, i, key >> 1,", "differs"),
    ("orthonormalise", "parts[j] = part;\n        }\n        __syncthreads();", "parts[j] = part;\n        }", "race|uninitialised"),
    ("orthonormalise", "for (int b = threadIdx.x & 31; b < n_blocks; b += 32)", "for (int b = 0; b < n_blocks; ++b)", "differs"),
    ("orthonormalise", "total = block_sum(total, scratch);", "", "differs"),
    ("orthonormalise", "j * gridDim.x + blockIdx.x] = total", "j * gridDim.x] = total", "race on sums"),
    ("orthonormalise", "scratch[32];\n    leave_products(p, sums, i, m, scratch);", "scratch[32];\n    leave_products(p, sums, i, m + 1, scratch);", "out-of-bounds"),
    ("orthonormalise", "norm > rounding * was", "norm > 0", "differs"),
    ("add_product", "sign * total", "total", "differs"),
    ("add_product", "p[l * m + i]", "p[l * n + i]", "differs"),
]  # fmt: skip
SPECIAL = [
    ("little room", "select", ") && place < room)", "))", "out-of-bounds"),
    ("infinity", "select", "zero += v - v;", "zero += v != v;", "differs"),
    ("no order", "scatter_add", "            __syncwarp();\n", "", "race on out"),
    ("no order", "scatter_add", "if (lane == __ffs(own) - 1) out", "if (own >> lane & 1) out", "race on out"),
    ("no order", "scatter_add", "ids[i] % n_warps == warp", "ids[i] % 8 == warp % 8", "race on out"),
    ("one repeated", "scatter_add", "found = __syncthreads_or(found);", "", "race on out"),
    ("one repeated", "scatter_add", "ids[i] <= ids[i - 1]", "ids[i] < ids[i - 1]", "race on out"),
    ("after the rest", "scatter_add", "(i > 1 && is_rest(values, ids, i - 1))", "0", "race on out"),
    ("many rows", "orthonormalise", "        __syncthreads();  // the parts' last use is over\n", "", "race"),
    ("many rows", "orthonormalise", "parts[j] * p[(first + j) * m + c]", "parts[j] * p[j * m + c]", "differs"),
]  # fmt: skip


def special(kind):
    """Return arguments that lie on one edge."""
    if kind in ("little room", "infinity"):
        x, r, threshold, n_equal, values, ids = of_codes(REFERENCE.select)
        if kind == "little room":
            return [x, r, threshold, n_equal, values[:50], ids[:50]]
        r[7] = np.inf
        return [x, r, threshold, n_equal, values, ids]
    if kind == "no order":
        return list(out_of_order())
    if kind == "many rows":
        return [vector(34 * 40, np.float32).reshape(34, 40)]
    ids = np.arange(300, dtype=np.uint32)
    values = np.ones(300, np.float32)
    if kind == "one repeated":
        ids[100] = ids[99]
    else:
        ids[100], values[100], ids[101:] = 0, 0, np.arange(50, 249)
    return [values, ids, np.zeros(300, np.float32)]


def notice(monkeypatch, name, old, new, said, given):
    """Break a kernel, and hold it to its reference on these arguments."""
    assert_noticed(monkeypatch, FAMILIES, given, "low_rank" if name in low_rank.LAWS else "sparse", name, old, new, said)


@pytest.mark.parametrize(("name", "old", "new", "said"), MUTANTS, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(MUTANTS)])
def test_a_broken_kernel_is_noticed(name, old, new, said, monkeypatch):
    notice(monkeypatch, name, old, new, said, of_codes(getattr(REFERENCE, name)))


@pytest.mark.parametrize(("kind", "name", "old", "new", "said"), SPECIAL, ids=[f"{i}-{kind}" for i, (kind, *_) in enumerate(SPECIAL)])
def test_a_kernel_that_is_broken_at_an_edge_is_noticed(kind, name, old, new, said, monkeypatch):
    notice(monkeypatch, name, old, new, said, special(kind))


def test_each_kernel_has_its_mutant():
    assert {name for name, *_ in MUTANTS} == {*sparse.LAWS, *low_rank.LAWS}
