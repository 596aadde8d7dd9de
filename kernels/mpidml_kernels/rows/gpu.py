"""Lay the row kernels over threads, sorting the entries of what adds up by the rows that they name; their meaning is in reference.py."""

from __future__ import annotations

from typing import Any

from mpidml_kernels.launch import BLOCK, COLUMNS, ROWS, Gpu, blocks, tiles


def take(gpu: Gpu, table: Any, ids: Any, out: Any) -> None:
    """Compute out[i] = table[ids[i]]."""
    if out.size:
        gpu.launch("rows", "take", tiles(*out.shape), (COLUMNS, ROWS), table, ids, out, *out.shape)


def put_rows(gpu: Gpu, table: Any, ids: Any, rows: Any) -> None:
    """Compute table[ids[i]] = rows[i]; no index comes twice."""
    if rows.size:
        gpu.launch("rows", "put_rows", tiles(*rows.shape), (COLUMNS, ROWS), table, ids, rows, *rows.shape)


def embed(gpu: Gpu, x: Any, passed: Any, columns: Any, starts: Any, table: Any, out: Any) -> None:
    """Compute out[i] = x[i, passed], then for each c the row starts[c] + x[i, columns[c]] of `table`."""
    embed_of(gpu, x, passed, columns, starts, 0, table, out)


def embed_of(gpu: Gpu, x: Any, passed: Any, columns: Any, starts: Any, first: int, table: Any, out: Any) -> None:
    """Compute `embed` where `table` holds rows first to first + len(table) of the whole one; the rows of others give 0."""
    (m, width), (n_rows, n) = out.shape, table.shape
    if out.size:
        sizes = m, x.shape[1], passed.size, n_rows, max(n, 1), width
        gpu.launch("rows", "embed", tiles(m, width), (COLUMNS, ROWS), x, passed, columns, starts, first, table, out, *sizes)


def embed_backward(gpu: Gpu, d: Any, x: Any, passed: Any, columns: Any, starts: Any, g: Any) -> None:
    """Compute g = 0, then add the gradient d of `embed`'s output to the rows of the table that it read, in the order of rows and columns."""
    embed_backward_of(gpu, d, x, passed, columns, starts, 0, g)


def embed_backward_of(gpu: Gpu, d: Any, x: Any, passed: Any, columns: Any, starts: Any, first: int, g: Any) -> None:
    """Compute `embed_backward` where g holds rows first to first + len(g) of the whole table."""
    g.fill(0)
    m, c = len(x), columns.size
    if not m * c * g.size:
        return
    low = bits_of(c)
    bits = low + bits_of(m)
    keys = gpu.scratch("keys", m * c, "i8")
    gpu.launch("rows", "embed_keys", blocks(m * c), BLOCK, x, columns, starts, first, keys, bits, low, m, x.shape[1], c, len(g))
    _add(gpu, g, d, bits, low, d.shape[1], passed.size, m * c)


def add_rows(gpu: Gpu, table: Any, ids: Any, delta: Any) -> None:
    """Compute table[ids[i]] += delta[i] for i in order."""
    m, n = delta.shape
    if not delta.size:
        return
    bits = bits_of(m)
    gpu.launch("rows", "row_keys", blocks(m), BLOCK, ids, gpu.scratch("keys", m, "i8"), bits, m, real=table.dtype.str[1:])
    _add(gpu, table, delta, bits, 0, n, 0, m)


def _add(gpu: Gpu, table: Any, source: Any, bits: int, low: int, width: int, before: int, n_keys: int) -> None:
    """Add the pieces of `source` that the first n_keys of the scratch "keys" name to the rows that they name."""
    n_rows, n = table.shape
    keys = sort(gpu, n_keys, table.dtype.str[1:])
    gpu.launch("rows", "add_runs", tiles(n_keys, n), (COLUMNS, ROWS), table, keys, source, bits, low, width, before, n_rows, n_keys, n)


def sort(gpu: Gpu, n: int, real: str) -> Any:
    """Sort the first n > 0 of the scratch "keys", all different, and return the array that then holds them; 1 + log2(n / 256) launches, each one pass."""
    keys, merged = gpu.scratch("keys", n, "i8"), gpu.scratch("merged", n, "i8")
    gpu.launch("rows", "sort_tiles", -(-n // BLOCK), BLOCK, keys, n, real=real)
    run = BLOCK
    while run < n:
        gpu.launch("rows", "merge_runs", blocks(n), BLOCK, keys, merged, run, n, real=real)
        keys, merged, run = merged, keys, 2 * run
    return keys


def bits_of(n: int) -> int:
    """Return how many bits hold the numbers below n > 0."""
    return (n - 1).bit_length()
