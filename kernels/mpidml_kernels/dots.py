"""Multiply few rows by a transposed matrix as it lies, out = a @ b.T: each element is the dot of two contiguous rows, and nothing is copied beforehand.

    b    8 rows   ----------------->      one vector of each, kept in registers
    a    3 rows   ----------------->      one vector of each: 24 multiplications and additions of vectors for 11 that are read
    out  3 x 8                            24 vectors of sums, in the end each added up: neighbouring lanes, then neighbouring pairs, ...

A CPU with half as many registers, of half the size, takes tiles of 3 x 4. The rows of b stay in the first
cache while all rows of a pass. An element has the same bits wherever its tile lies, and however many rows a and b have.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mpidml_kernels.few_rows import NBYTES
from mpidml_kernels.jit import kernel
from mpidml_kernels.lanes import fma, i32, intrinsic

TILES = {64: (3, 8), 32: (3, 4)}
"""Of vectors of so many bytes: rows and columns whose sums, and what is read for them, registers hold."""
ROWS, COLUMNS = TILES.get(NBYTES, TILES[64])
MOST_NBYTES = 4096
"""Of a row, up to which this was measured to be faster than BLAS: what is read again stays in caches."""


def fits(a: Any, b: Any) -> bool:
    """Tell whether `dots(a, b.T, out)` computes a product a @ b of few rows faster than BLAS does."""
    row = a.shape[1] * a.itemsize
    return row <= MOST_NBYTES and not (row % NBYTES or b.shape[1] % COLUMNS) and b.flags.f_contiguous


def _tile(n_rows: int) -> Any:
    @intrinsic
    def tile(typing, a, i, b, j, out):
        """Compute out[i + r, j + c] for the rows r of a tile and its columns c."""

        def generate(context, builder, signature, arguments):
            views = [context.make_array(signature.args[at])(context, builder, arguments[at]) for at in (0, 2, 4)]
            i, j = arguments[1], arguments[3]
            n = builder.extract_value(views[0].shape, 1)
            n_lanes = NBYTES * 8 // a.dtype.bitwidth
            vector = ir.VectorType(context.get_value_type(a.dtype), n_lanes)
            multiply_add = fma(builder, vector)

            def row(view, start, r, length):
                return builder.gep(view.data, [builder.mul(builder.add(start, start.type(r)), length)])

            def take(pointer, at):
                return builder.load(builder.bitcast(builder.gep(pointer, [at]), vector.as_pointer()), align=a.dtype.bitwidth // 8)

            left, right = [row(views[0], i, r, n) for r in range(n_rows)], [row(views[1], j, c, n) for c in range(COLUMNS)]
            sums = [[cgutils.alloca_once(builder, vector) for _ in right] for _ in left]
            for each in chain(*sums):
                builder.store(ir.Constant(vector, [0.0] * n_lanes), each)
            with cgutils.for_range(builder, builder.udiv(n, n.type(n_lanes)), intp=n.type) as loop:
                at = builder.mul(loop.index, n.type(n_lanes))
                taken = [take(pointer, at) for pointer in right]
                for pointer, of_row in zip(left, sums, strict=True):
                    x = take(pointer, at)
                    for y, each in zip(taken, of_row, strict=True):
                        builder.store(builder.call(multiply_add, [x, y, builder.load(each)]), each)
            found = [builder.load(each) for of_row in sums for each in of_row]
            even, odd = (ir.Constant(ir.VectorType(i32, n_lanes), list(range(first, 2 * n_lanes, 2))) for first in (0, 1))
            for _ in range(n_lanes.bit_length() - 1):  # of two vectors one, of half as many lanes of each
                found += found[-1:] * (len(found) % 2)
                pairs = zip(found[::2], found[1::2], strict=True)
                found = [builder.fadd(builder.shuffle_vector(p, q, even), builder.shuffle_vector(p, q, odd)) for p, q in pairs]
            width = builder.extract_value(views[2].shape, 1)
            for r in range(n_rows):
                place = builder.gep(row(views[2], i, r, width), [j])
                for c in range(COLUMNS):
                    whole, lane = divmod(r * COLUMNS + c, n_lanes)
                    builder.store(builder.extract_element(found[whole], i32(lane)), builder.gep(place, [j.type(c)]))
            return context.get_dummy_value()

        return types.void(a, types.intp, b, types.intp, out), generate

    return tile


_many, _one = _tile(ROWS), _tile(1)


@kernel("void(R2, R2, T[:,::1])")
def dots(a, b, out):
    """Compute out = a @ b.T of what `fits`."""
    m, n = out.shape
    whole = m - m % ROWS
    for j in range(0, n, COLUMNS):
        for i in range(0, whole, ROWS):
            _many(a, i, b, j, out)
        for i in range(whole, m):
            _one(a, i, b, j, out)
