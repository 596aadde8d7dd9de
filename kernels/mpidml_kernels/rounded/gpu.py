"""Lay the rounding kernels over threads; their meaning is in reference.py. Each `round` and `encode` waits for the device, to tell whether all was finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml_kernels.launch import BLOCK, Gpu, blocks, each, parts, row_block


def _halves(name: str) -> Callable[..., bool]:
    def go(gpu: Gpu, x: Any, *rest: Any) -> bool:
        return not x.size or gpu.finite("rounded", name, blocks(x.size), BLOCK, x, *rest, x.size)

    return go


def _threads(block: int, n: int) -> int:
    """Return how many threads take the values of one unit, four each or more."""
    return row_block(-(-min(block, n) // 4))


def _int8(name: str) -> Callable[..., bool]:
    """Return what launches a block of threads for each unit."""

    def go(gpu: Gpu, x: Any, *rest: Any) -> bool:
        *_, block, units, _ = rest
        return not x.size or gpu.finite("rounded", name, units.size, _threads(block, x.size), x, *rest, x.size)

    return go


bf16_round = _halves("bf16_round")
bf16_encode = _halves("bf16_encode")
bf16_decode_add = each("rounded", "bf16_decode_add")
fp16_round = _halves("fp16_round")
fp16_encode = _halves("fp16_encode")
fp16_decode_add = each("rounded", "fp16_decode_add")
int8_round = _int8("int8_round")
int8_encode = _int8("int8_encode")


def int8_decode_add(gpu: Gpu, codes: Any, units: Any, block: int, out: Any) -> None:
    """Compute out += code x unit of its block."""
    if out.size:
        threads = _threads(block, out.size)
        grid = parts(units.size, min(block, out.size), threads)
        gpu.launch("rounded", "int8_decode_add", grid, threads, codes, units, block, out, out.size)
