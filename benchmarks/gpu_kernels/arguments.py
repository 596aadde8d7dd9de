"""Make arguments for every kernel at the sizes of its law, by the names that its reference gives them: NumPy arrays, for whoever carries them to a device."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import mpidml_kernels
import numpy as np
from mpidml_kernels import csr, low_rank, packed, rounded, rows, sparse, split
from mpidml_kernels.kernel import Kernel

Array = np.ndarray[Any, Any]
REFERENCE = mpidml_kernels.backend("numpy")
BLOCK, BITS, LIST_LENGTH = 1024, 4, 32
"""Of codes: values with a unit of their own, and bits of a value where the kernel takes several; of sparse rows: values in a row."""
NUMBERS = {
    "s": 1.0, "scale": 1.0, "rate": 1e-3, "first": 0, "block": BLOCK, "bits": BITS, "euclidean": False, "key": np.uint64(0x9ABCDEF012345678), "n_equal": 1,
    "sign": 1.0, "count": 1.0, "margin": 1.0, "smoothing": 0.1,
}  # fmt: skip
DRAWN = np.random.default_rng(0).random((1 << 16) + 1, np.float32) / 2 + np.float32(0.5)
HALF = 0.5
"""Every other number: a share, a threshold or a limit."""


def arity(law: Kernel) -> int:
    """Return how many sizes a law has."""
    return len(inspect.signature(law.flops).parameters)


def arguments(family: ModuleType, name: str, sizes: tuple[int, ...]) -> list[Any]:
    """Return what a kernel takes, float32 where it is real: each array is new, and large enough for `sizes`, those of the kernel's law."""
    known = of_family(family, name, sizes)
    found: list[Any] = []
    for parameter in inspect.signature(getattr(REFERENCE, name)).parameters.values():
        if parameter.name in known:
            found.append(known[parameter.name])
        elif parameter.annotation == "Array":
            found.append(real(*sizes))
        else:
            found.append(NUMBERS.get(parameter.name, HALF))
    return found


def real(*shape: int) -> Array:
    """Return values in [0.5, 1), which every kernel takes: as weights, states, variances."""
    return np.resize(DRAWN, shape)


def of_family(family: ModuleType, name: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments that are no values of the shape `sizes`, by name."""
    if family is low_rank:
        m, n, k = sizes if len(sizes) == 3 else (sizes[0], 1, sizes[-1])
        return {"p": real(k, m), "q": real(k, n), "v": real(m, n)}
    if family is csr:
        return of_sparse_rows(name, *sizes)
    if family in (rounded, packed, sparse):
        return of_codes(family, name, *sizes)
    if name in ("matmul", "matmul_add"):
        m, k, n = sizes
        return {"a": real(m, k), "b": real(k, n), "out": real(m, n)}
    if len(sizes) == 1:
        return {}
    m, n = sizes
    of_column = ("b", "gb", "gain", "bias", "dgain", "dbias", "weights")
    known = {column: real(n) for column in of_column} | {"y": np.arange(m) % n, "ids": np.arange(m), "key": np.array([3], np.uint64)}
    known |= {"stats": real(m, 2), "largest": np.ones(m, np.float32), "sums": np.ones((2, m))}
    if family in (rows, split) and name.startswith("embed"):
        codes = np.random.default_rng(0).permutation(m).astype(np.float32)[:, None]
        known |= {"x": codes, "passed": np.zeros(0, np.int64), "columns": np.zeros(1, np.int64), "starts": np.zeros(1, np.int64)}
    return known


def of_codes(family: ModuleType, name: str, n: int) -> dict[str, Any]:
    """Return codes, units, and the one value in a hundred that is chosen."""
    width = 1 if name in ("one_bit_encode", "vote_encode", "bits_decode_add") else 2 if name in ("two_bit_encode", "adaptive_encode") else BITS
    kind = np.uint8 if family is packed else np.int8 if name.startswith("int8") else np.uint16
    k = max(1, n // 100)
    return {
        "codes": np.zeros(-(-n * width // 8) if kind is np.uint8 else n, kind),
        "units": real(-(-n // BLOCK)),
        "values": real(k),
        "ids": (np.arange(k) * (n // k)).astype(np.uint32),
        "k": k,
        "counts": np.zeros(2048, np.int64),
    }


def of_sparse_rows(name: str, k: int, width: int = 1) -> dict[str, Any]:
    """Return rows of LIST_LENGTH values each, k in all, whose columns are drawn from as many as there are rows."""
    m = max(1, k // LIST_LENGTH)
    starts = np.minimum(np.arange(m + 1) * LIST_LENGTH, k)
    starts[-1] = k
    known = {"starts": starts, "columns": np.random.default_rng(0).integers(0, m, k).astype(np.int32), "values": real(k)}
    if name == "csr_take":
        known |= {"rows": np.arange(m), "number": np.full(m, -1, np.int32), "ids": np.zeros(m, np.int64)}
        return known | {"out_starts": np.zeros(m + 1, np.int64), "out_columns": np.zeros(k, np.int32), "out_values": real(k)}
    return known | {"table": real(m, width), "out": real(m, width), "d": real(m, width), "g": real(m, width)}
