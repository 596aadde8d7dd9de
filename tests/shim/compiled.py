"""Build a CUDA C file with g++ and launch its kernels on NumPy arrays, called as CuPy's are: `function(grid, block, arguments)`."""

from __future__ import annotations

import ctypes as ct
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mpidml_kernels.signatures import Parameter, kernels

HERE = Path(__file__).resolve().parent
ORDERS = {"forward": 0, "reverse": 1, "shuffle": 2}
STATISTICS = ("nbytes_read", "nbytes_written", "n_barriers", "n_warp_operations", "shared_nbytes")
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
ONE_AT_A_TIME = threading.Lock()  # the runtime is one


class KernelError(RuntimeError):
    """A kernel broke a rule of the CUDA execution model, or its launch did."""


class _Buffer(ct.Structure):
    _fields_ = [("start", ct.c_void_p), ("nbytes", ct.c_uint64), ("itemsize", ct.c_uint32), ("writable", ct.c_uint32), ("name", ct.c_char_p)]


class _Launch(ct.Structure):
    _fields_ = [
        ("grid", ct.c_uint32 * 3),
        ("block", ct.c_uint32 * 3),
        ("dynamic_shared", ct.c_uint32),
        ("order", ct.c_int32),
        ("seed", ct.c_uint64),
        ("flush_subnormals", ct.c_int32),
        ("n_buffers", ct.c_int32),
        ("buffers", ct.POINTER(_Buffer)),
        ("error", ct.c_char_p),
        ("error_size", ct.c_int32),
        *((name, ct.c_uint64) for name in ("error_pc", *STATISTICS)),
    ]


class Module:
    """One file, built for one type. `checked` looks at every access (10 times slower); `order` is that of the threads and blocks of all launches.

    Of its kernels `only` those named can be launched, and only they are compiled, which takes a third of the time; None: all.
    """

    def __init__(
        self,
        code: str,
        real: Any,
        include: Sequence[Path] = (),
        checked: bool = True,
        order: str = "forward",
        where: str = "kernel.cu",
        only: Collection[str] | None = None,
    ) -> None:
        self.order, self.flushes = order, np.dtype(real) == np.float32  # CuPy has NVRTC flush subnormal numbers of this type alone
        self.kernels = kernels(code, real)
        spelt = {4: "float", 8: "double"}[np.dtype(real).itemsize]
        flags = [
            *COMMON,
            "-gdwarf-4",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
            "-Wall",
            "-Wno-unused",
            f"-DREAL={spelt}",
            *(f"-I{f}" for f in include),
        ]
        flags += ["-O1", "-fsanitize=thread", "-DSHIM_CHECKED"] if checked else ["-O2"]
        exports = "".join(f"SHIM_EXPORT({name})\n" for name in self.kernels if only is None or name in only)
        unit = f'#include "{HERE / "cuda_cpu.h"}"\n#line 1 "{where}"\n{code}\n{exports}'
        headers = "".join(file.read_text() for folder in include for file in sorted(folder.glob("*.cuh")))
        runtime = _built(
            "runtime", (HERE / "runtime.cpp").read_text(), "", [*COMMON, "-O2", f"-I{HERE}", *(["-DSHIM_CHECKED"] if checked else [])], []
        )
        self.file = _built("kernels", unit, headers, flags, [str(runtime)])
        self.library = ct.CDLL(str(self.file))

    def get_function(self, name: str) -> Function:
        """Return a kernel."""
        return Function(self, name)

    def line(self, pc: int) -> str:
        """Return where in the source a place of the code is, as far as binutils is installed."""
        if not pc or not shutil.which("addr2line"):
            return ""
        said = subprocess.run(["addr2line", "-i", "-s", "-e", str(self.file), hex(pc - 1)], capture_output=True, text=True).stdout
        lines = [line for line in said.split() if not line.startswith(("??", "cuda_cpu"))]
        return f" at {' from '.join(lines)}" if lines else ""


def _built(kind: str, source: str, more: str, flags: list[str], objects: list[str]) -> Path:
    """Return the object of `source`, or with `objects` the shared library of both; it is built once per text, headers and flags."""
    folder = Path(os.environ.get("MPIDML_SHIM_CACHE") or Path(tempfile.gettempdir()) / f"mpidml-shim-{os.getuid()}")
    language = (HERE / "cuda_cpu.h").read_text()
    key = hashlib.sha256("\0".join([source, more, language, *flags, *objects]).encode()).hexdigest()[:24]
    wanted = folder / f"{kind}-{key}.{'so' if objects else 'o'}"
    if wanted.exists():
        return wanted
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        Path(own, "unit.cpp").write_text(source)
        _compile([*flags, "-c", f"{own}/unit.cpp", "-o", f"{own}/unit.o"])
        if objects:
            _compile(["-shared", f"{own}/unit.o", *objects, "-o", f"{own}/unit.so"])
        os.replace(f"{own}/unit.{'so' if objects else 'o'}", wanted)  # several ranks may build at once
    return wanted


def _compile(arguments: list[str]) -> None:
    try:
        done = subprocess.run(["g++", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise KernelError("to run CUDA kernels on the CPU takes g++") from None
    if done.returncode:
        raise KernelError(f"g++ failed:\n{done.stderr}")


class Function:
    """A kernel; `statistics` of its latest launch: bytes read and written in its arguments, barriers, warp operations, shared memory."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name, self.parameters = module, name, module.kernels[name]
        self.entry = getattr(module.library, f"shim_launch_{name}")
        self.entry.argtypes, self.entry.restype = [ct.POINTER(_Launch), ct.POINTER(ct.c_void_p)], ct.c_int
        self.statistics: dict[str, int] = {}

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...], *, shared_mem: int = 0, seed: int = 0) -> None:
        if len(arguments) != len(self.parameters):
            raise KernelError(f"{self.name} takes {len(self.parameters)} arguments, {len(arguments)} given")
        self._check_overlaps(arguments)
        cells = [self._cell(parameter, given) for parameter, given in zip(self.parameters, arguments, strict=True)]
        slots = (ct.c_void_p * max(1, len(cells)))(*(ct.addressof(cell) for cell in cells))
        arrays = [(p, a) for p, a in zip(self.parameters, arguments, strict=True) if p.is_array and a is not None]
        buffers = [_Buffer(a.ctypes.data, a.nbytes, p.dtype.itemsize, p.written, p.name.encode()) for p, a in arrays]
        error = ct.create_string_buffer(512)
        launch = _Launch(
            dynamic_shared=shared_mem, order=ORDERS[self.module.order], seed=seed, flush_subnormals=self.module.flushes, n_buffers=len(buffers)
        )
        launch.buffers = (_Buffer * max(1, len(buffers)))(*buffers)
        launch.error, launch.error_size = ct.cast(error, ct.c_char_p), len(error)
        launch.grid[:], launch.block[:] = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        with ONE_AT_A_TIME:
            failed = self.entry(ct.byref(launch), slots)
        self.statistics = {name: getattr(launch, name) for name in STATISTICS}
        if failed:
            raise KernelError(f"{self.name}: {error.value.decode()}{self.module.line(launch.error_pc)}")

    def _check_overlaps(self, arguments: Sequence[Any]) -> None:
        seen: list[tuple[int, int, Parameter]] = []
        for p, a in zip(self.parameters, arguments, strict=True):
            if not p.is_array or not isinstance(a, np.ndarray):
                continue
            lo, hi = a.ctypes.data, a.ctypes.data + a.nbytes
            for start, stop, other in seen:
                if start < hi and lo < stop and any(each.alone and each.written for each in (p, other)):
                    raise KernelError(f"{self.name}, parameter {p.name}: overlaps {other.name}, and one of them is a written __restrict__ pointer")
            seen.append((lo, hi, p))

    def _cell(self, p: Parameter, given: Any) -> Any:
        """Return what is passed for one argument, as CuPy passes it: a Python number is 8 bytes wide whatever the kernel declares."""
        where = f"{self.name}, parameter {p.name}"
        if p.is_array:
            if given is None:
                return ct.c_void_p(0)
            if not isinstance(given, np.ndarray) or given.dtype != p.dtype or not given.flags.c_contiguous:
                raise KernelError(f"{where}: needs a C-contiguous {p.dtype} array, got {getattr(given, 'dtype', type(given))}")
            if p.written and not given.flags.writeable:
                raise KernelError(f"{where}: the array is read-only")
            return ct.c_void_p(given.ctypes.data)
        if isinstance(given, bool) or not isinstance(given, int | float | np.generic):
            raise KernelError(f"{where}: {given!r} is no number")
        value = given if isinstance(given, np.generic) else np.float64(given) if isinstance(given, float) else np.int64(given)
        if value.dtype != p.dtype:
            raise KernelError(f"{where}: declared {p.dtype}, would be passed {value.dtype}")
        return ct.create_string_buffer(value.tobytes(), max(8, value.itemsize))
