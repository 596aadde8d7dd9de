"""Look at 32 neighbouring values at once: what these functions do in a few vectors, loops over single values are compiled to several times as many for.

Called from compiled code, with an array of float32 or float64 and a bound of its type; that the array reaches so far is not checked. Each is written for vectors of 32, of
whatever width a CPU's are, and is the same to the bit on all of them but for the order in which a sum is taken.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

N, GROUP = 32, 64
intrinsic: Any = extending.intrinsic  # which is typed as if `typing` were the caller's to give
u1, i8, i32, i64 = (ir.IntType(width) for width in (1, 8, 32, 64))


def _all(element, value):
    """Return a constant vector."""
    return ir.Constant(ir.VectorType(element, N), [value] * N)


def _spread(builder, value):
    """Return a vector of one value that is not constant."""
    empty = ir.Constant(ir.VectorType(value.type, N), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(empty, value, i32(0)), empty, _all(i32, 0))


def _take(context, builder, array_type, array, at):
    """Return the values at `at` as a vector, and their magnitudes."""
    real = array_type.dtype
    vector = ir.VectorType(context.get_value_type(real), N)
    place = builder.gep(context.make_array(array_type)(context, builder, array).data, [at])
    values = builder.load(builder.bitcast(place, vector.as_pointer()), align=real.bitwidth // 8)
    fabs = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector]), f"llvm.fabs.v{N}f{real.bitwidth}")
    return values, builder.call(fabs, [values])


def _count_of_codes(builder, packed):
    """Return how many codes of 2 bits have their low bit set, in a vector of bytes."""
    words, count = builder.bitcast(packed, ir.VectorType(i64, N // 8)), i64(0)
    ones = builder.module.declare_intrinsic("llvm.ctpop", [i64])
    for j in range(N // 8):
        count = builder.add(count, builder.call(ones, [builder.and_(builder.extract_element(words, i32(j)), i64(0x5555555555555555))]))
    return count


@intrinsic
def reaching(typing, xs, at, bound):
    """Return a uint32 whose bit i says whether |xs[at + i]| >= bound, or is NaN."""

    def generate(context, builder, signature, arguments):
        array, at, bound = arguments
        _, sizes = _take(context, builder, signature.args[0], array, at)
        return builder.bitcast(builder.fcmp_unordered(">=", sizes, _spread(builder, bound)), ir.IntType(N))

    return types.uint32(xs, types.intp, xs.dtype), generate


@intrinsic
def lowest(typing, bits):
    """Return the place of the lowest bit that is set in a uint32 other than 0."""

    def generate(context, builder, signature, arguments):
        count = builder.module.declare_intrinsic("llvm.cttz", [i32], ir.FunctionType(i32, [i32, u1]))
        return builder.zext(builder.call(count, [arguments[0], u1(1)]), i64)

    return types.int64(types.uint32), generate


@intrinsic
def pack_three(typing, xs, at, bound, codes):
    """Write codes[at : at + 32] of a group of 256 values, those in xs at `at`, `at` + 64, + 128 and + 192: 2 bits each, 1 where above bound, 3 where below -bound.

    Returns the sum of the magnitudes above the bound, in the type of xs, and their number.
    """

    def generate(context, builder, signature, arguments):
        array, at, bound, codes = arguments
        real, whole = context.get_value_type(xs.dtype), ir.IntType(xs.dtype.bitwidth)
        bound, words = _spread(builder, bound), ir.VectorType(whole, N)
        total: Any = None
        packed: Any = None
        for k in (3, 2, 1, 0):
            values, sizes = _take(context, builder, signature.args[0], array, builder.add(at, at.type(k * GROUP)))
            above = builder.fcmp_ordered(">", sizes, bound)
            size = builder.select(above, sizes, _all(real, 0.0))
            high = builder.lshr(builder.bitcast(values, words), _all(whole, xs.dtype.bitwidth - 2))  # the sign, and a bit that is overwritten
            code = builder.and_(builder.sext(above, words), builder.or_(high, _all(whole, 1)))
            total = size if total is None else builder.fadd(total, size)
            packed = code if packed is None else builder.or_(builder.shl(packed, _all(whole, 2)), code)
        packed = builder.trunc(packed, ir.VectorType(i8, N))
        place = builder.gep(context.make_array(signature.args[3])(context, builder, codes).data, [at])
        builder.store(packed, builder.bitcast(place, packed.type.as_pointer()), align=1)
        add_up = ir.FunctionType(real, [real, total.type])
        add_up = cgutils.get_or_insert_function(builder.module, add_up, f"llvm.vector.reduce.fadd.v{N}f{xs.dtype.bitwidth}")
        total = builder.call(add_up, [real(-0.0), total], fastmath=("reassoc",))
        return context.make_tuple(builder, signature.return_type, [total, _count_of_codes(builder, packed)])

    return types.Tuple((xs.dtype, types.int64))(xs, types.intp, xs.dtype, codes), generate


@intrinsic
def fetch(typing, xs, at):
    """Ask for the cache line of xs[at], so that it is there when it is read; `at` may lie beyond the end."""

    def generate(context, builder, signature, arguments):
        array, at = arguments
        byte = i8.as_pointer()
        ask = builder.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]))
        place = builder.gep(context.make_array(signature.args[0])(context, builder, array).data, [at])
        builder.call(ask, [builder.bitcast(place, byte), i32(0), i32(2), i32(1)])  # to read, into the second of the caches, data
        return context.get_dummy_value()

    return types.void(xs, types.intp), generate
