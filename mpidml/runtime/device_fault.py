"""Say in one line that a GPU has failed while it computed, where CuPy raises from whatever is asked of it next.

    a launch, a copy, a wait, a product of cuBLAS, a sum of NCCL  ->  an error of CuPy's  ->  DeviceFailed: which GPU, CUDA's words, how to go on

A process whose GPU has failed can do nothing more with it (CUDA Runtime API, "sticky" errors), so the rank ends, and the others with it. What lacks memory
where none of ours was asked for, as for a graph, is the user's to change, like an array of ours that finds no room (`mpidml_kernels.launch`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mpidml.core.errors import DeviceFailed, UserError
from mpidml.runtime import cuda_driver

FROM = ("cupy_backends.", "cupy.cuda.memory")
"""Modules of the errors: of CUDA and its libraries, and what CuPy's own memory lacks."""
NO_MEMORY = re.compile(r"OutOfMemoryError|MemoryAllocation|OUT_OF_MEMORY|ALLOC_FAILED")
LOOK = "see what nvidia-smi and the system's log (dmesg, Xid) say of it"


@contextmanager
def told(goes_on: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn an error of CuPy's into DeviceFailed, or into UserError where memory lacks; `goes_on` says how a run that is saved can go on."""
    try:
        yield
    except Exception as error:
        if not f"{type(error).__module__}.".startswith(FROM):
            raise
        from mpidml_kernels.launch import LESS

        text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:300]
        if NO_MEMORY.search(text):
            raise UserError(f"{_gpu()} has no memory left ({text}); {LESS}") from error
        raise DeviceFailed(f"{_gpu()} has failed ({text}); {'; '.join(filter(None, [LOOK, goes_on()]))}") from error


def _gpu() -> str:
    """Name the GPU of this thread, which CUDA knows even where it has failed."""
    with suppress(Exception):
        cupy: Any = sys.modules["cupy"]
        number = cupy.cuda.Device().id
        return f"GPU {number} ({cuda_driver.driver().cards[number].name})"
    return "the GPU"
