"""Lay the kernels of sparse rows over threads; their meaning is in reference.py."""

from __future__ import annotations

from typing import Any

from mpidml_kernels.launch import BLOCK, COLUMNS, MOST_BLOCKS, ROWS, Gpu, blocks, tiles
from mpidml_kernels.rows.gpu import bits_of, sort


def csr_take(
    gpu: Gpu, starts: Any, columns: Any, values: Any, rows: Any, number: Any, ids: Any, out_starts: Any, out_columns: Any, out_values: Any
) -> int:
    """Copy the listed rows, fewer than 2^31 values, with the columns numbered as they come; return how many have a number. Waits for the device."""
    m, n, real = rows.size, out_columns.size, values.dtype.str[1:]
    gpu.launch("csr", "lengths_of_rows", blocks(m + 1), BLOCK, starts, rows, out_starts, m, real=real)
    gpu.launch("csr", "scan", 1, 1024, out_starts, m + 1, real=real)
    if not m * n:
        return 0
    firsts, found = (gpu.scratch(name, n, "i4") for name in ("firsts", "found"))
    k = blocks(n)
    counts = gpu.scratch("counts", k, "i8")
    row_blocks = min(MOST_BLOCKS, -(-m // ROWS))
    gpu.launch("csr", "copy_rows", row_blocks, (32, ROWS), starts, columns, values, rows, out_starts, out_columns, out_values, number, m)
    gpu.launch("csr", "find_firsts", k, BLOCK, number, out_starts, out_columns, firsts, counts, m, n, real=real)
    gpu.launch("csr", "scan", 1, 1024, counts, k, real=real)
    gpu.launch("csr", "number_columns", k, BLOCK, out_starts, out_columns, firsts, counts, ids, found, number, m, n, real=real)
    gpu.launch("csr", "renumber", blocks(n), BLOCK, out_starts, firsts, found, out_columns, m, real=real)
    return int(counts[k - 1 : k].get()[0])


def csr_matmul(gpu: Gpu, starts: Any, columns: Any, values: Any, table: Any, out: Any) -> None:
    """Compute out[i] = sum of values[j] table[columns[j]] over row i, in the order of its values."""
    if out.size:
        gpu.launch("csr", "csr_matmul", tiles(*out.shape), (COLUMNS, ROWS), starts, columns, values, table, out, *out.shape)


def csr_matmul_backward(gpu: Gpu, starts: Any, columns: Any, values: Any, d: Any, g: Any) -> None:
    """Add to g[columns[j]] values[j] d[i], row by row; takes time for all of `columns`, those of other rows too: the device alone knows which are."""
    (m, n), k, real = d.shape, columns.size, values.dtype.str[1:]
    if not d.size * k:
        return
    bits = bits_of(k)
    rows = gpu.scratch("rows", k, "i8")
    gpu.launch("csr", "value_keys", blocks(k), BLOCK, starts, columns, rows, gpu.scratch("keys", k, "i8"), bits, len(g), m, k, real=real)
    gpu.launch("csr", "csr_matmul_backward", tiles(k, n), (COLUMNS, ROWS), sort(gpu, k, real), rows, values, d, g, bits, len(g), k, n)
