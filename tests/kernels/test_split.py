"""Hold the kernels of one rank's columns or rows to those of the whole: side by side, or added up, they are the same."""

import itertools

import mpidml_kernels
import numpy as np
import pytest

from tests.kernels.test_kernels import BACKENDS, EVERYWHERE, FILLS, SHAPES, array, assert_close, candidates, compare, everywhere, run, types

CUTS = [(0, 9), (0, 4, 9), (0, 0, 9), (0, 2, 2, 5, 9), (0, 1, 3, 7, 9, 9)]
cuts = pytest.mark.parametrize("edges", CUTS, ids=str)
N, M = 9, 11
KEY = np.array([0x9ABCDEF012345678], np.uint64)


def columns(x, edges):
    return [np.ascontiguousarray(x[:, lo:hi]) for lo, hi in itertools.pairwise(edges)]


@types
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_of_parts_agree_with_the_reference(shape, fill, dtype):
    m, n = shape
    z, y, first = array(shape, dtype, fill), np.arange(m) % (n + 5), 3
    weights = np.abs(array(n + 5, dtype, seed=2))
    scale = float(np.nanmax(np.abs(z), initial=1.0))
    (_, (_, expected)), (_, (_, largest)) = (run(backend, "largest_of_rows", (z, np.empty(m, dtype))) for backend in BACKENDS)
    assert np.array_equal(expected, largest)
    for backend in candidates("largest_of_rows"):  # to the bit, but what is below the normal numbers is 0 on a GPU
        np.testing.assert_allclose(run(backend, "largest_of_rows", (z, np.empty(m, dtype)))[1][1], expected, rtol=0, atol=1e-30)
    largest[~np.isfinite(largest)] = 0
    for k in (2, 3):
        _, (e, *_, sums) = compare("xent_part_sums", (z, y, first, largest, weights, np.empty((k, m))), dtype, n_terms=n + 1, at_least=scale)
        sums[0] += 1.0
        compare("xent_part", (e, y, first, sums, weights, 0.1 * (k - 2), 0.25), dtype, n_terms=2, result_scale=8 * (m + 1) * (n + 1) * scale)
    passed, of, starts = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    codes = np.ascontiguousarray((np.arange(m) % 7)[:, None], dtype)
    table = array((3, n), dtype, fill)
    compare("embed_part", (codes, passed, of, starts, 2, table, np.empty((m, n + 1), dtype)), dtype)
    d = np.ascontiguousarray(np.concatenate([codes, z], axis=1))
    compare("embed_part_backward", (d, codes, passed, of, starts, 2, table), dtype, n_terms=m)


@cuts
@types
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
def test_dropped_parts_lie_side_by_side_as_the_whole_to_the_bit(rate, dtype, edges):
    x, ids = array((M, N), dtype) + dtype(10), np.arange(M) * 3_000_000_019 + 5
    for backend in EVERYWHERE:
        whole, parts = np.empty_like(x), columns(x, edges)
        backend.dropout(x, ids, KEY, rate, whole)
        for part, first in zip(parts, edges, strict=False):
            backend.dropout_part(part, ids, KEY, rate, first)
        assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()


@everywhere
def test_noise_by_the_own_column_is_caught(backend):
    x, ids = np.ones((M, N)), np.arange(M)
    whole, parts = np.empty_like(x), columns(x, (0, 4, 9))
    backend.dropout(x, ids, KEY, 0.5, whole)
    for part in parts:
        backend.dropout_part(part, ids, KEY, 0.5, 0)
    assert not np.array_equal(np.concatenate(parts, axis=1), whole)


@everywhere
@cuts
@types
def test_embedded_rows_of_all_parts_add_up_to_those_of_the_whole(backend, dtype, edges):
    x = np.array([[0.5, 2, 7, 0], [1.5, 0, 8, 1], [2.5, 6, 9, 0]], dtype)  # columns 1 and 3 hold codes of 7 and 2 categories
    passed, of, starts = np.array([0, 2]), np.array([1, 3]), np.array([0, 7])
    table, out = array((N, 4), dtype), np.empty((3, 10), dtype)
    d, g = array((3, 10), dtype, seed=1), np.empty((N, 4), dtype)
    backend.embed(x, passed, of, starts, table, out)
    backend.embed_backward(d, x, passed, of, starts, g)
    total, gradients = np.zeros_like(out), []
    for lo, hi in itertools.pairwise(edges):
        part, own = np.full_like(out, np.nan), np.full((hi - lo, 4), np.nan, dtype)
        backend.embed_part(x, passed, of, starts, lo, table[lo:hi], part)
        assert np.array_equal(part[:, :2], x[:, [0, 2]]), "what passes is there on every rank"
        total[:, 2:] += part[:, 2:]
        backend.embed_part_backward(d, x, passed, of, starts, lo, own)
        gradients.append(own)
    assert np.array_equal(total[:, 2:], out[:, 2:]) and np.array_equal(np.concatenate(gradients), g)


def by_parts(backend, z, y, edges, weights, smoothing, scale, whole_maximum=True):
    """Return the losses of all ranks and the gradient, the parts added up as ranks would."""
    parts, m = columns(z, edges), len(z)
    largest = np.empty((len(parts), m), z.dtype)
    for part, own in zip(parts, largest, strict=True):
        backend.largest_of_rows(part, own)
    sums = np.empty((len(parts), 3 if smoothing else 2, m))
    for r, part in enumerate(parts):
        backend.xent_part_sums(part, y, edges[r], largest.max(axis=0) if whole_maximum else largest[r], weights, sums[r])
    total = sums.sum(axis=0)
    losses = [backend.xent_part(part, y, edges[r], total, weights, smoothing, scale) for r, part in enumerate(parts)]
    return losses, np.concatenate(parts, axis=1)


@everywhere
@cuts
@types
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_cross_entropy_of_parts_is_that_of_the_whole(backend, dtype, edges, smoothing, weighted):
    z, y = array((M, N), dtype) * dtype(5), (np.arange(M) * 4) % N
    weights = np.linspace(0.2, 3, N).astype(dtype) if weighted else np.ones(N, dtype)
    name, constants = ("weighted_xent", (weights, smoothing)) if weighted or smoothing else ("softmax_xent", ())
    expected, (gradient, *_) = run(backend, name, (z, y, *constants, 0.25))
    losses, parts = by_parts(backend, z, y, edges, weights, smoothing, 0.25)
    assert len(set(losses)) == 1, "every rank knows the same loss"
    assert_close(losses[0], expected, dtype, 100)
    assert_close(parts, gradient, dtype, 2)


@everywhere
def test_a_maximum_over_the_own_columns_alone_is_caught(backend):
    z, y = array((M, N), np.float64) * 5, np.arange(M) % N
    expected, (gradient, _) = run(backend, "softmax_xent", (z, y, 0.25))
    losses, parts = by_parts(backend, z, y, (0, 4, 9), np.ones(N), 0.0, 0.25, whole_maximum=False)
    assert abs(losses[0] - expected) > 1e-3 and not np.allclose(parts, gradient, rtol=1e-3)


@types
def test_a_nan_spoils_the_loss_and_large_outputs_do_not_overflow(dtype):
    z = np.array([[1e30, -1e30, 0, 1e30], [0, 1, 2, 3]], dtype)
    for backend in EVERYWHERE:
        losses, parts = by_parts(backend, z.copy(), np.array([0, 1]), (0, 2, 4), np.ones(4, dtype), 0.0, 1.0)
        assert np.isfinite(losses).all() and np.isfinite(parts).all()
        spoilt = z.copy()
        spoilt[1, 3] = np.nan
        assert np.isnan(by_parts(backend, spoilt, np.array([0, 1]), (0, 2, 4), np.ones(4, dtype), 0.0, 1.0)[0]).all()


def test_these_kernels_are_loaded_when_they_are_asked_for():
    assert mpidml_kernels.split in mpidml_kernels.ON_DEMAND
