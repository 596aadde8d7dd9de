"""Ask NVIDIA's driver which GPUs this process sees, without CuPy, whose import takes half a second: where there are none nothing else is looked for.

    libcuda.so.1 -> cuInit -> how many -> name, memory and UUID of each
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any, NamedTuple

LIBRARY = "libcuda.so.1"
NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""
LEAST = 12000
"""The oldest CUDA for which there is a CuPy of today."""


class Lacks(Exception):
    """What a GPU lacks to be used, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class Card(NamedTuple):
    """A GPU, or a part of one: its name, bytes of memory, and UUID, which is the same in every process that sees it."""

    name: str
    nbytes: int
    uuid: str


class Driver(NamedTuple):
    """The `version` of CUDA that the driver speaks, 13010 for 13.1, and the cards that it shows to this process, in their order."""

    version: int
    cards: tuple[Card, ...]


def spelt(version: int) -> str:
    """Return a version of CUDA as people write it."""
    return f"{version // 1000}.{version % 1000 // 10}"


@cache
def driver() -> Driver:
    """Return the driver with at least one card, or raise Lacks; a failing look costs 0.1 ms, and each process has one that succeeds."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise Lacks(f"there is no NVIDIA driver ({error})", "take a host that has a GPU and its driver, or --device cpu") from None
    code = library.cuInit(0)
    n = ctypes.c_int()
    if code == 0:
        code = library.cuDeviceGetCount(ctypes.byref(n))
    if code not in (0, NO_DEVICE):
        raise Lacks(f"NVIDIA's driver does not start ({_name_of(library, code)})", "see what nvidia-smi says on this host, or take --device cpu")
    if n.value == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            raise Lacks(f"CUDA_VISIBLE_DEVICES='{visible}' shows no GPU", "unset it, or name one that nvidia-smi -L lists")
        raise Lacks("NVIDIA's driver finds no GPU", "take a host that has one (in a Slurm job: --gpus-per-node), or --device cpu")
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    if version.value < LEAST:
        raise Lacks(f"NVIDIA's driver speaks CUDA {spelt(version.value)}, which no CuPy here runs on", f"install one for CUDA {spelt(LEAST)} or newer")
    return Driver(version.value, tuple(_card(library, number) for number in range(n.value)))


def _card(library: Any, number: int) -> Card:
    device, name, nbytes, uuid = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t(), (ctypes.c_ubyte * 16)()
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(nbytes), device)
    library.cuDeviceGetUuid_v2(ctypes.byref(uuid), device)  # of a part of a GPU its own
    return Card(name.value.decode(errors="replace"), nbytes.value, bytes(uuid).hex())


def _name_of(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {code}"
