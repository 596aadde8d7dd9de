"""Multiply few rows by a matrix as it lies, out = a @ b, strip by strip of b's columns, each of as many as three vectors hold.

    a    8 rows      one value of each, spread over a vector
    b    1 row       three vectors: 24 multiplications and additions of vectors for 11 that are read
    out  8 x 3       vectors of sums, kept in registers for PART terms; then those rows of b have given all, and come no more

While the first rows of a take a strip, the next strip of b is asked for. An element is the sum, in their order, of sums of PART terms, each term rounded once:
it has the same bits wherever its tile lies, and however many rows and columns there are.
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
from mpidml_kernels.lanes import ask, fma, intrinsic, spread

ROWS, VECTORS, PART = 8, 3, 128
LEAST_NBYTES = 64
"""Of a vector: where registers are half as large and half as many this is no faster than BLAS."""


def fits(a: Any, b: Any) -> bool:
    """Tell whether `strips(a, b, out)` computes a product of few rows faster than BLAS does."""
    return NBYTES == LEAST_NBYTES and len(a) >= ROWS and b.shape[1] * a.itemsize % NBYTES == 0 and b.flags.c_contiguous


def _tile(n_rows: int, n_vectors: int, asks: bool = False) -> Any:
    @intrinsic
    def tile(typing, a, i, b, j, first, last, out):
        """Add the sum of the terms first .. last - 1 to out, which begins with the first, of n_rows rows from i and n_vectors vectors of columns from j on."""

        def generate(context, builder, signature, arguments):
            views = [context.make_array(signature.args[at])(context, builder, arguments[at]) for at in (0, 2, 6)]
            i, j, first, last = (arguments[at] for at in (1, 3, 4, 5))
            k, n = (builder.extract_value(view.shape, 1) for view in views[:2])
            n_lanes = NBYTES * 8 // a.dtype.bitwidth
            vector = ir.VectorType(context.get_value_type(a.dtype), n_lanes)
            zeros, multiply_add = ir.Constant(vector, [0.0] * n_lanes), fma(builder, vector)

            def place(view, row, length, column, h=0):
                return builder.gep(view.data, [builder.add(builder.add(builder.mul(row, length), column), column.type(h * n_lanes))])

            def vectors(view, row, length, more=0):
                found = (place(view, row, length, j, h + more) for h in range(n_vectors))
                return [builder.bitcast(pointer, vector.as_pointer()) for pointer in found]

            rows = [builder.add(i, i.type(r)) for r in range(n_rows)]
            places = [vectors(views[2], row, n) for row in rows]
            sums = [[cgutils.alloca_once(builder, vector) for _ in of_row] for of_row in places]
            begins, align = builder.icmp_signed("==", first, first.type(0)), a.dtype.bitwidth // 8
            for each in chain(*sums):
                builder.store(zeros, each)
            with cgutils.for_range_slice(builder, first, last, first.type(1), intp=first.type) as (term, _):
                taken = [builder.load(pointer, align=align) for pointer in vectors(views[1], term, n)]
                for pointer in vectors(views[1], term, n, n_vectors) if asks else ():
                    ask(builder, pointer, 3)
                for row, of_row in zip(rows, sums, strict=True):
                    x = spread(builder, n_lanes, builder.load(place(views[0], row, k, term)))
                    for y, each in zip(taken, of_row, strict=True):
                        builder.store(builder.call(multiply_add, [x, y, builder.load(each)]), each)
            for pointer, each in zip(chain(*places), chain(*sums), strict=True):
                before = builder.select(begins, zeros, builder.load(pointer, align=align))
                builder.store(builder.fadd(before, builder.load(each)), pointer, align=align)
            return context.get_dummy_value()

        return types.void(a, types.intp, b, types.intp, types.intp, types.intp, out), generate

    return tile


_first, _many, _one = _tile(ROWS, VECTORS, asks=True), _tile(ROWS, VECTORS), _tile(1, VECTORS)
_many_end, _one_end = _tile(ROWS, 1), _tile(1, 1)


@kernel("void(R2, R2, T[:,::1])")
def strips(a, b, out):
    """Compute out = a @ b of what `fits`."""
    (m, k), n = a.shape, b.shape[1]
    lanes = NBYTES // a.itemsize
    width, whole = VECTORS * lanes, m - m % ROWS
    for first in range(0, k, PART):
        last = min(first + PART, k)
        for j in range(0, n - n % width, width):
            if whole:
                _first(a, 0, b, j, first, last, out)
            for i in range(ROWS, whole, ROWS):
                _many(a, i, b, j, first, last, out)
            for i in range(whole, m):
                _one(a, i, b, j, first, last, out)
        for j in range(n - n % width, n, lanes):
            for i in range(0, whole, ROWS):
                _many_end(a, i, b, j, first, last, out)
            for i in range(whole, m):
                _one_end(a, i, b, j, first, last, out)
