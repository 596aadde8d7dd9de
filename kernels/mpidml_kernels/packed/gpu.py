"""Lay the packing kernels over threads, one a byte; their meaning is in reference.py. Each `encode` waits for the device, for what it returns."""

from __future__ import annotations

from typing import Any

from mpidml_kernels.launch import BLOCK, Gpu, blocks, parts, row_block


def _n_bytes(n: int, bits: int) -> int:
    return -(-n * bits // 8)


def _encode(gpu: Gpu, name: str, bits: int, x: Any, block: int, units: Any, *arguments: Any) -> bool:
    """Launch a block of threads for each unit."""
    return not x.size or gpu.finite("packed", name, units.size, row_block(_n_bytes(min(block, x.size), bits)), x, *arguments, x.size)


def _decode(gpu: Gpu, name: str, bits: int, codes: Any, units: Any, block: int, out: Any, *arguments: Any) -> None:
    """Launch for each unit as many blocks of threads as its bytes fill."""
    if out.size:
        n_bytes = _n_bytes(min(block, out.size), bits)
        threads = min(BLOCK, row_block(n_bytes))
        gpu.launch("packed", name, parts(units.size, n_bytes, threads), threads, codes, units, block, *arguments, out, out.size)


def one_bit_encode(gpu: Gpu, x: Any, r: Any, block: int, units: Any, codes: Any) -> bool:
    """Send whether v >= 0, and the mean magnitude of a block."""
    return _encode(gpu, "one_bit_encode", 1, x, block, units, r, block, units, codes)


def vote_encode(gpu: Gpu, x: Any, key: Any, codes: Any) -> bool:
    """Send whether x > 0; for 0 a coin decides."""
    return not x.size or gpu.finite("packed", "vote_encode", blocks(codes.size), BLOCK, x, key, codes, x.size)


def bits_decode_add(gpu: Gpu, codes: Any, units: Any, block: int, out: Any) -> None:
    """Compute out += or -= the unit of its block."""
    _decode(gpu, "bits_decode_add", 1, codes, units, block, out)


def two_bit_encode(gpu: Gpu, x: Any, r: Any, threshold: float, codes: Any) -> float:
    """Send what reaches the threshold as the threshold; return the sum of v^2: of blocks, then their sum, so always the same bits for one size."""
    if not x.size:
        return 0.0
    n = blocks(codes.size)
    sums = gpu.scratch("sums", n, "f8")
    gpu.launch("packed", "two_bit_encode", n, BLOCK, x, r, threshold, codes, sums, x.size)
    return gpu.total(sums, n)


def adaptive_encode(gpu: Gpu, x: Any, r: Any, block: int, units: Any, codes: Any) -> bool:
    """Send what exceeds 0.7 of the mean magnitude of its block as their own mean."""
    return _encode(gpu, "adaptive_encode", 2, x, block, units, r, block, units, codes)


def stochastic_encode(gpu: Gpu, x: Any, key: Any, block: int, bits: int, euclidean: bool, units: Any, codes: Any) -> bool:
    """Round |x| / unit down or up at random."""
    return _encode(gpu, "stochastic_encode", bits, x, block, units, key, block, bits, euclidean, units, codes)


def codes_decode_add(gpu: Gpu, codes: Any, units: Any, block: int, bits: int, out: Any) -> None:
    """Compute out += code x unit of its block."""
    _decode(gpu, "codes_decode_add", bits, codes, units, block, out, bits)
