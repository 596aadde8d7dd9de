"""Look at several neighbouring values at once: loops over single values, that do what these functions do, are compiled to two to four times as many instructions.

Called from compiled code, with an array of float32 or float64 and a bound of its type; that the array reaches so far is not checked. All is written for vectors of a fixed
number of values, whatever the width of a CPU's, and is the same to the bit on every CPU but for the order in which a sum is taken.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

N, FEW, GROUP = 32, 8, 64  # FEW: so that what a loop keeps from one round to the next stays in registers
intrinsic: Any = extending.intrinsic  # which is typed as if `typing` were the caller's to give
u1, i8, i32, i64 = (ir.IntType(width) for width in (1, 8, 32, 64))


def _all(element, n, value):
    """Return a constant vector."""
    return ir.Constant(ir.VectorType(element, n), [value] * n)


def spread(builder, n, value):
    """Return a vector of one value that is not constant."""
    empty = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(empty, value, i32(0)), empty, _all(i32, n, 0))


def _take(context, builder, array_type, array, at, n):
    """Return the n values at `at` as a vector, and their magnitudes."""
    real = array_type.dtype
    vector = ir.VectorType(context.get_value_type(real), n)
    place = builder.gep(context.make_array(array_type)(context, builder, array).data, [at])
    values = builder.load(builder.bitcast(place, vector.as_pointer()), align=real.bitwidth // 8)
    fabs = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector]), f"llvm.fabs.v{n}f{real.bitwidth}")
    return values, builder.call(fabs, [values])


def fma(builder, vector):
    """Return the function that multiplies two vectors and adds a third, rounded once."""
    name = f"llvm.fma.v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)


def ask(builder, place, cache):
    """Ask for the cache line of a place, to be read from the first of the caches (3), or the second (2)."""
    byte = i8.as_pointer()
    fetches = builder.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]))
    builder.call(fetches, [builder.bitcast(place, byte), i32(0), i32(cache), i32(1)])  # to read, data


@intrinsic
def reaching(typing, xs, at, bound):
    """Return a uint32 whose bit i says whether |xs[at + i]| >= bound, or is NaN."""

    def generate(context, builder, signature, arguments):
        array, at, bound = arguments
        _, sizes = _take(context, builder, signature.args[0], array, at, N)
        return builder.bitcast(builder.fcmp_unordered(">=", sizes, spread(builder, N, bound)), ir.IntType(N))

    return types.uint32(xs, types.intp, xs.dtype), generate


@intrinsic
def lowest(typing, bits):
    """Return the place of the lowest bit that is set in a uint32 other than 0."""

    def generate(context, builder, signature, arguments):
        count = builder.module.declare_intrinsic("llvm.cttz", [i32], ir.FunctionType(i32, [i32, u1]))
        return builder.zext(builder.call(count, [arguments[0], u1(1)]), i64)

    return types.int64(types.uint32), generate


@intrinsic
def pack_three(typing, xs, bound, codes):
    """Write the codes, 2 bits each, of all whole groups of 256 values: 1 where above bound, 3 where below -bound.

    Byte i of a group's 64 has its values i, i + 64, i + 128 and i + 192. Returns the sum of the magnitudes above the bound, in the type of xs, and their number.
    """

    def generate(context, builder, signature, arguments):
        array, bound, codes = arguments
        real, whole = context.get_value_type(xs.dtype), ir.IntType(xs.dtype.bitwidth)
        bound, words, none = spread(builder, FEW, bound), ir.VectorType(whole, FEW), _all(real, FEW, 0.0)
        total, count = cgutils.alloca_once_value(builder, none), cgutils.alloca_once_value(builder, i64(0))
        size = builder.extract_value(context.make_array(signature.args[0])(context, builder, array).shape, 0)
        with cgutils.for_range(builder, builder.mul(builder.udiv(size, size.type(4 * GROUP)), size.type(GROUP // FEW))) as loop:
            byte = builder.mul(loop.index, size.type(FEW))
            within = builder.and_(byte, size.type(GROUP - 1))
            at = builder.add(builder.mul(builder.sub(byte, within), size.type(4)), within)
            packed: Any = None
            for k in (3, 2, 1, 0):
                values, sizes = _take(context, builder, signature.args[0], array, builder.add(at, at.type(k * GROUP)), FEW)
                above = builder.fcmp_ordered(">", sizes, bound)
                high = builder.lshr(
                    builder.bitcast(values, words), _all(whole, FEW, xs.dtype.bitwidth - 2)
                )  # the sign, and a bit that is overwritten
                code = builder.and_(builder.sext(above, words), builder.or_(high, _all(whole, FEW, 1)))
                packed = code if packed is None else builder.or_(builder.shl(packed, _all(whole, FEW, 2)), code)
                builder.store(builder.fadd(builder.load(total), builder.select(above, sizes, none)), total)
            packed = builder.trunc(packed, ir.VectorType(i8, FEW))
            place = builder.gep(context.make_array(signature.args[2])(context, builder, codes).data, [byte])
            builder.store(packed, builder.bitcast(place, packed.type.as_pointer()), align=1)
            ones = builder.module.declare_intrinsic("llvm.ctpop", [i64])
            sent = builder.call(ones, [builder.and_(builder.bitcast(packed, i64), i64(0x5555555555555555))])  # either code has its low bit set
            builder.store(builder.add(builder.load(count), sent), count)
        add_up = ir.FunctionType(real, [real, none.type])
        add_up = cgutils.get_or_insert_function(builder.module, add_up, f"llvm.vector.reduce.fadd.v{FEW}f{xs.dtype.bitwidth}")
        added = builder.call(add_up, [real(-0.0), builder.load(total)], fastmath=("reassoc",))
        return context.make_tuple(builder, signature.return_type, [added, builder.load(count)])

    return types.Tuple((xs.dtype, types.int64))(xs, xs.dtype, codes), generate


@intrinsic
def fetch(typing, xs, at):
    """Ask for the cache line of xs[at], so that it is there when it is read; `at` may lie beyond the end."""

    def generate(context, builder, signature, arguments):
        array, at = arguments
        ask(builder, builder.gep(context.make_array(signature.args[0])(context, builder, array).data, [at]), 2)
        return context.get_dummy_value()

    return types.void(xs, types.intp), generate
