"""Say what layers and passes need of arrays besides kernels, of NumPy's and of a device's, so that neither they nor whoever feeds them names an array module.

    zeros(shape, dtype)    copy(out, a)    xor(a, b, out)    maximum(a, b, out)    take_columns(a, at, out)    sign(a, out)    address(a)        where arithmetic runs
    here(a)    put(there, a)     from the host to where arithmetic runs                            host(a): back, which waits for the device
    naming(what)                 a context: what is allocated within is `what`, if a device has no room for it

On the CPU `here` and `host` return what they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Functions = dict[str, Callable[..., Any]]


LINE_NBYTES, LARGE_NBYTES = 64, 1 << 12
"""Of a line of a cache, and from which size on an array begins with one."""


def aligned_zeros(shape: Any, dtype: Any) -> Array:
    """Return zeros that, where they are many, begin with a line of the cache: of vectors as long as a line each then reads one, not two.

    NumPy's may begin in the middle of one. Pages that nobody touches take no memory, as with NumPy's.
    """
    of = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * of.itemsize
    if nbytes < LARGE_NBYTES or of.hasobject:
        return np.zeros(shape, of)
    room = np.zeros(nbytes + LINE_NBYTES, np.uint8)
    start = -int(room.__array_interface__["data"][0]) % LINE_NBYTES
    found: Array = room[start : start + nbytes].view(of).reshape(shape)
    return found


def of_numpy() -> Functions:
    """Return them for NumPy's arrays."""

    def put(there: Array, a: Any) -> None:
        there[...] = a

    def take_columns(a: Array, at: Array, out: Array) -> None:
        a.take(at, 1, out, "clip")

    def naming(what: str) -> Any:
        return nullcontext()

    def address(a: Array) -> int:
        return int(a.__array_interface__["data"][0])

    found: Functions = {"zeros": aligned_zeros, "copy": np.copyto, "xor": np.bitwise_xor, "take_columns": take_columns, "here": np.asarray, "put": put, "host": np.asarray}
    return found | {"naming": naming, "sign": np.sign, "maximum": np.maximum, "address": address}


def of_cupy(cupy: Any, allocating: Callable[[str, int], Any], naming: Callable[[str], Any]) -> Functions:
    """Return them for arrays of `cupy` on the current device, in the order of the current stream; `allocating` tells what lacks memory, `naming` what it is (`Gpu`)."""

    def zeros(shape: Any, dtype: Any) -> Any:
        n, of = int(np.prod(shape)), np.dtype(dtype)
        with allocating(f"an array {shape} of {of}", n * of.itemsize):
            return cupy.zeros(shape, of)

    def here(a: Any) -> Any:
        with allocating(f"an array {a.shape} of {a.dtype}", a.nbytes):
            return cupy.asarray(a)

    def xor(a: Any, b: Any, out: Any) -> None:
        cupy.bitwise_xor(a, b, out=out)

    def maximum(a: Any, b: Any, out: Any) -> None:
        cupy.maximum(a, b, out=out)

    def take_columns(a: Any, at: Any, out: Any) -> None:
        cupy.take(a, at, 1, out)

    def sign(a: Any, out: Any) -> None:
        cupy.sign(a, out=out)

    def address(a: Any) -> int:
        return int(a.data.ptr)

    def put(there: Any, a: Any) -> None:
        if there.size:
            there.set(np.ascontiguousarray(a, there.dtype), cupy.cuda.get_current_stream())

    def host(a: Any) -> Array:
        found: Array = a.get()
        return found

    found = {"zeros": zeros, "copy": cupy.copyto, "xor": xor, "take_columns": take_columns, "here": here, "put": put, "host": host}
    return found | {"naming": naming, "sign": sign, "maximum": maximum, "address": address}
