"""Lay the sparse kernels over threads; their meaning is in reference.py. Those that return a number wait for the device, once."""

from __future__ import annotations

from typing import Any

from mpidml_kernels.launch import BLOCK, Gpu, blocks

LARGEST_BLOCK = 1024
WARP = 32
DIGIT = 11
"""Bits that are settled by one look at all values."""


def kth_magnitude(gpu: Gpu, x: Any, r: Any, k: int, counts: Any) -> float:
    """Return the k-th largest |x + r|: a count of digits and a choice of one, for each 11 bits of it; what is settled stays on the device."""
    state, found = gpu.scratch("settled", 2, "u8"), gpu.scratch("kth", 1, x.dtype.str[1:])
    counts.fill(0)
    high = 8 * x.dtype.itemsize - 1
    while high:
        width = min(DIGIT, high)
        gpu.launch("sparse", "count_digits", blocks(x.size), BLOCK, x, r, state, counts, high, width, x.size)
        gpu.launch("sparse", "settle_digit", 1, LARGEST_BLOCK, counts, state, found, k, high, width)
        high -= width
    return float(found.get()[0])


def select(gpu: Gpu, x: Any, r: Any, threshold: float, n_equal: int, values: Any, ids: Any) -> int:
    """Count what each warp finds in its stretch, place it behind what those before it found, move it."""
    n, room = r.size, values.size
    grid = blocks(n)
    n_warps = grid * BLOCK // WARP
    length = -(-n // (n_warps * WARP)) * WARP
    sums, found = gpu.scratch("chosen", 2 * n_warps, "i8"), gpu.scratch("moved", 2, "i8")
    nothing = gpu.scratch("nothing", n_warps, r.dtype.str[1:])
    gpu.launch("sparse", "count_chosen", grid, BLOCK, x, r, threshold, sums, nothing, length, n)
    gpu.launch("sparse", "place_chosen", 1, LARGEST_BLOCK, sums, nothing, found, n_equal, room, n_warps)
    gpu.launch("sparse", "move_chosen", grid, BLOCK, r, sums, found, threshold, n_equal, values, ids, room, length, n)
    n_moved, finite = found.get()
    return int(n_moved) if finite else -1


def scatter_add(gpu: Gpu, values: Any, ids: Any, out: Any) -> None:
    """Compute out[ids[i]] += values[i], repeated places in the order in which they are given; fast if they ascend, as `select` leaves them."""
    n = values.size
    if n:
        disorder = gpu.scratch("disorder", blocks(n), "i4")
        gpu.launch("sparse", "find_disorder", blocks(n), BLOCK, values, ids, disorder, n)
        gpu.launch("sparse", "scatter_add", blocks(n), BLOCK, values, ids, out, disorder, n)


def is_finite(gpu: Gpu, x: Any) -> bool:
    """Tell whether no value is NaN or infinite."""
    n = blocks(x.size)
    sums = gpu.scratch("sums", n, "f8")
    gpu.launch("sparse", "count_infinite", n, BLOCK, x, sums, x.size)
    return gpu.total(sums, n) == 0


def strata_move(gpu: Gpu, r: Any, key: Any, values: Any) -> None:
    """Move the value drawn from each stretch out of r."""
    _each_stretch(gpu, "strata_move", r, key, values, r.size, values.size)


def strata_take(gpu: Gpu, x: Any, key: Any, values: Any) -> None:
    """Take the value drawn from each stretch, times the stretch's length."""
    _each_stretch(gpu, "strata_take", x, key, values, x.size, values.size)


def strata_add(gpu: Gpu, values: Any, key: Any, out: Any) -> None:
    """Add each value where the key says that it came from."""
    _each_stretch(gpu, "strata_add", values, key, out, out.size, values.size)


def _each_stretch(gpu: Gpu, name: str, *arguments: Any) -> None:
    k = arguments[-1]
    if k:
        gpu.launch("sparse", name, blocks(k), BLOCK, *arguments)
