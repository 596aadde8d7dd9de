"""Read the kernels that a CUDA C file declares: a launch passes bytes without types, so the declaration is what every argument is held to."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

TYPES = {
    "signed char": "i1", "unsigned char": "u1", "short": "i2", "unsigned short": "u2", "int": "i4", "unsigned": "u4", "unsigned int": "u4",
    "long long": "i8", "unsigned long long": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
REAL = "real"
"""How the files spell the type that they are compiled for, float or double."""
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')


class Parameter(NamedTuple):
    """One parameter of a kernel: an array's elements are of `dtype`, and `written` unless they are const."""

    name: str
    dtype: np.dtype[Any]
    is_array: bool
    written: bool
    alone: bool
    """Whether it is declared __restrict__."""


def kernels(source: str, real: Any) -> dict[str, tuple[Parameter, ...]]:
    """Return the `extern "C" __global__` kernels of a CUDA C source by name, `real` read as the dtype `real`; TypeError for a type that is not known."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", source, flags=re.DOTALL)
    found = {}
    for name, declared in KERNEL.findall(text):
        found[name] = tuple(_parameter(name, text.strip(), real) for text in declared.split(",") if text.strip())
    return found


def _parameter(kernel: str, text: str, real: Any) -> Parameter:
    words = re.findall(r"\w+|\*", text)
    base = " ".join(word for word in words[:-1] if word not in ("const", "*", "__restrict__"))
    if base != REAL and base not in TYPES:
        raise TypeError(f"{kernel}: the type of '{text}' is none of {', '.join([REAL, *TYPES])}")
    is_array = "*" in words
    dtype = np.dtype(real if base == REAL else TYPES[base])
    return Parameter(words[-1], dtype, is_array, is_array and words[0] != "const", "__restrict__" in words)
