"""Launch CUDA kernels: choose the module for the type of the arrays, hold each argument to its declaration, lay elements over threads.

A launch passes bytes, and CuPy passes a Python number as 8 of them whatever the kernel declares: so every number is cast to the declared type here,
and an array of another type, of another device or with gaps is refused.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import numpy as np

from mpidml_kernels.signatures import Parameter, kernels

Size = int | tuple[int, ...]
BLOCK = 256
ROWS, COLUMNS = 8, 32
"""Of a block that goes over rows."""
MOST_BLOCKS = 1056
"""Of a kernel whose threads take several elements each: 8 for each multiprocessor of the largest GPU of today."""
LESS = "compute fewer samples at once (a smaller --batch, or more --accumulate), use more GPUs, or take --device cpu"
NOT_READY = 600
"""What CUDA says of an event that has not come yet (cudaErrorNotReady)."""
SPELT = {"f4": "float", "f8": "double"}


class NotRecorded(Exception):
    """What was launched is nothing that a CUDA graph can hold."""


class Gpu:
    """The kernels of all families on the current device. `cupy` is the module (it is imported by whoever chose the device, and nowhere else).

    `refusal`: the error that says in one line that memory lacks. `n_graphs`: how many graphs were launched.
    """

    refusal: type[Exception] = MemoryError
    records = True
    """Whether what is launched over and over is recorded (`Recorded`)."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.modules: dict[tuple[str, str], Any] = {}
        self.parameters: dict[tuple[str, str], dict[str, tuple[Parameter, ...]]] = {}
        self.functions: dict[tuple[str, str, str], Any] = {}
        self.scratches: dict[tuple[str, str], Any] = {}
        self.total_at: Any = None
        self.named = ""
        self.held: list[Any] | None = None
        self.n_graphs = 0

    @functools.cached_property
    def copies(self) -> Any:
        """The stream of what goes to the host while the current stream computes; it waits for no other stream unasked."""
        return self.cupy.cuda.Stream(non_blocking=True)

    @functools.cached_property
    def recorder(self) -> Any:
        """The stream that `Recorded` records by; nothing runs on it."""
        return self.cupy.cuda.Stream(non_blocking=True)

    def pinned(self, shape: Size, dtype: Any) -> np.ndarray[Any, Any]:
        """Return zeros in host memory that stays where it is, so that it is copied without the host's help. Taking it is slow: keep it."""
        n = int(np.prod(shape))
        nbytes = max(1, n) * np.dtype(dtype).itemsize
        try:
            memory = self.cupy.cuda.alloc_pinned_memory(nbytes)
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            what = f"{self._whole('an array')} {shape} of {np.dtype(dtype)} takes {nbytes / 2**20:,.1f} MiB of the host's memory that stay in place"
            raise self.refusal(f"{what}, which the system refuses ({error}); {LESS}") from None
        array = np.frombuffer(memory, dtype, max(1, n))[:n].reshape(shape)
        array[...] = 0
        return array

    def launch(self, family: str, name: str, grid: Size, block: Size, *arguments: Any, real: str = "", shared_nbytes: int = 0) -> None:
        """Start kernel `name` of a family's file for the real type of the arguments, or for `real`, "f4" or "f8", where none of them has one.

        TypeError or OverflowError for an argument that does not fit.
        """
        real = real or self._real(name, arguments)
        function, parameters = self._function(family, name, real)
        if len(arguments) != len(parameters):
            raise TypeError(f"{name} takes {len(parameters)} arguments, {len(arguments)} given")
        passed = tuple(self._passed(parameter, given, name) for parameter, given in zip(parameters, arguments, strict=True))
        function(_size(grid), _size(block), passed, shared_mem=shared_nbytes)

    def scratch(self, name: str, n: int, dtype: str) -> Any:
        """Return an array of at least n elements that the kernels of one call may write; the next call with that name gets it again."""
        found = self.scratches.get((name, dtype))
        if found is None or found.size < n:
            with self.allocating(f"scratch memory '{name}' for {n:,} values", n * np.dtype(dtype).itemsize):
                found = self.scratches[name, dtype] = self.cupy.empty(n, dtype)
        if self.held is not None:
            self.held.append(found)
        return found

    @contextmanager
    def recording(self) -> Iterator[list[Any]]:
        """Give the arrays of ours that what is launched within will use whenever the recording runs: it has to hold them."""
        self.held = []
        try:
            yield self.held
        finally:
            self.held = None

    def no_recording(self, why: str) -> None:
        """Raise `NotRecorded` within a recording, before CUDA would make it worthless."""
        if self.held is not None:
            raise NotRecorded(why)

    def done(self, event: Any) -> bool:
        """Tell without waiting whether an event has come; CUDARuntimeError where it never will, since the device has failed, which CuPy's `done` does not tell."""
        if event.done:
            return True
        if self.cupy.cuda.runtime.eventQuery(event.ptr) not in (0, NOT_READY):
            event.synchronize()
        return False

    @contextmanager
    def naming(self, what: str) -> Iterator[None]:
        """Say of all that is allocated within that it is `what`."""
        before, self.named = self.named, what
        try:
            yield
        finally:
            self.named = before

    def _whole(self, what: str) -> str:
        return f"{self.named}, {what}" if self.named else what

    @contextmanager
    def allocating(self, what: str, nbytes: int) -> Iterator[None]:
        """Raise `refusal` where the device has no room for `what`, of `nbytes`: how much is free, once CuPy has given back what it kept, and what to do.

        Nothing is allocated while a recording is made: CuPy would, and give the memory to others before the recording runs.
        """
        self.no_recording(f"memory is taken, for {what}")
        try:
            yield
        except self.cupy.cuda.memory.OutOfMemoryError:
            free, total = (of / 2**20 for of in self.cupy.cuda.runtime.memGetInfo())
            where = f"GPU {self.cupy.cuda.Device().id}: {self._whole(what)} takes {nbytes / 2**20:,.1f} MiB, and {free:,.1f} of {total:,.1f} MiB are free"
            raise self.refusal(f"{where}; {LESS}") from None

    def total(self, sums: Any, n: int) -> float:
        """Return the sum of the first n float64 of `sums`; waits for the device. Within `totals_at` nobody waits, and NaN is returned."""
        out = self.scratch("total", 1, "f8") if self.total_at is None else self.total_at
        self.launch("update", "sum_up", 1, BLOCK, sums, out, n)
        return float(out.get()[0]) if self.total_at is None else math.nan

    @contextmanager
    def totals_at(self, out: Any) -> Iterator[None]:
        """Have kernels that return a sum leave it in `out`, float64 (1,) on the device; a kernel that finds nothing to sum leaves it as it is."""
        self.total_at = out
        try:
            yield
        finally:
            self.total_at = None

    def finite(self, family: str, name: str, grid: Size, block: Size, *arguments: Any) -> bool:
        """Start a kernel whose last parameter is a flag that it raises for what is not finite, and tell whether it stayed down; waits for the device."""
        flag = self.scratch("flag", 1, "i4")
        flag.fill(0)
        self.launch(family, name, grid, block, *arguments, flag)
        return not flag.get()[0]

    def _real(self, name: str, arguments: tuple[Any, ...]) -> str:
        for given in arguments:
            if isinstance(given, self.cupy.ndarray) and given.dtype.kind == "f":
                return str(given.dtype.str[1:])
        raise TypeError(f"{name}: none of the arguments is a device array of real numbers")

    def compile(self, family: str, real: str) -> None:
        """Compile a family's file for "f4" or "f8", or load what an earlier run has compiled, which else its first launch does."""
        self._module(family, real).compile()

    def _module(self, family: str, real: str) -> Any:
        key = family, real
        if key not in self.modules:
            if real not in SPELT:
                raise TypeError(f"{family}: there is no kernel for {np.dtype(real)}; use float32 or float64")
            folder = files("mpidml_kernels")
            code, header = ((folder / name).read_text() for name in (f"{family}/gpu.cu", "device.cuh"))
            # CuPy keeps machine code between runs by text and options, and does not look at what the text includes: of a header it is told the digest.
            seen = f"-DMPIDML_HEADER={hashlib.sha256(header.encode()).hexdigest()[:16]}"
            self.modules[key] = self.cupy.RawModule(code=code, options=("--std=c++17", f"-I{folder}", f"-DREAL={SPELT[real]}", seen))
            self.parameters[key] = kernels(code, real)
        return self.modules[key]

    def _function(self, family: str, name: str, real: str) -> tuple[Any, tuple[Parameter, ...]]:
        module = self._module(family, real)
        if (family, real, name) not in self.functions:
            self.functions[family, real, name] = module.get_function(name)
        return self.functions[family, real, name], self.parameters[family, real][name]

    def _passed(self, parameter: Parameter, given: Any, kernel: str) -> Any:
        dtype = parameter.dtype
        if parameter.is_array:
            if not isinstance(given, self.cupy.ndarray) or given.dtype != dtype or not given.flags.c_contiguous:
                what = f"{given.dtype} of shape {given.shape}" if hasattr(given, "dtype") else type(given).__name__
                raise TypeError(f"{kernel}: {parameter.name} has to be a contiguous device array of {dtype}, not {type(given).__module__}'s {what}")
            return given
        number = dtype.type(given)
        if dtype.kind in "iu" and number != given:
            raise OverflowError(f"{kernel}: {parameter.name}={given} does not fit {dtype}")
        return number


def blocks(n: int) -> int:
    """Return how many blocks go over n elements."""
    return max(1, min(MOST_BLOCKS, -(-n // BLOCK)))


def tiles(m: int, n: int) -> tuple[int, int]:
    """Return how many blocks of 32 columns and 8 rows go over m rows of n elements; several rows of blocks where there are many."""
    across = max(1, -(-n // COLUMNS))
    return across, max(1, min(-(-m // ROWS), -(-MOST_BLOCKS // across)))


def parts(m: int, n: int, threads: int) -> tuple[int, int]:
    """Return how many blocks of so many threads go over m pieces of n elements, each piece by one or, where there are few, by several."""
    return m, max(1, min(-(-n // threads), -(-MOST_BLOCKS // m)))


def _size(given: Size) -> tuple[int, ...]:
    return given if isinstance(given, tuple) else (given,)


def row_block(n: int) -> int:
    """Return how many threads take one row of n elements: whole warps, at most 1024."""
    return min(1024, max(32, -(-n // 32) * 32))


def each(family: str, name: str) -> Callable[..., None]:
    """Return what launches a kernel over the elements of its first array, whose number it is given last; nothing where there are none."""

    def go(gpu: Gpu, *arguments: Any) -> None:
        n = arguments[0].size
        if n:
            gpu.launch(family, name, blocks(n), BLOCK, *arguments, n)

    return go
