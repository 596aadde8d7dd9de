"""Stand in for what the package uses of CuPy, strictly, on machines without a GPU. Not NumPy under another name:

- `RawModule` builds the real CUDA C source with g++ and runs it under the checks of `compiled`;
- arrays refuse to become NumPy's unasked, kernels refuse NumPy's, and new memory holds NaN;
- streams do nothing until somebody waits (`streams("lazy")`, the default), and then no more than what the wait orders: who reads a buffer too early
  finds what was there before. `streams("eager")` does all at once. Right code gives the same under both;
- while a stream records, nothing is done: what would wait, copy from or to the host or call cuBLAS is refused. Memory can be taken, as in the mode in which
  CuPy records, though nothing keeps it for the recording;
- after an error in the work of a stream its events are never `done`; who waits is told (NCCL: `nccl_double`);
- after `dies_in` whatever is asked of the device fails, for good.

Whoever tests passes this module where production code passes `cupy`; nothing imports it by itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.shim import nccl_double
from tests.shim.compiled import Module

__version__ = "14.2.0+double"
OURS = ("streams", "threads", "room", "dies_in")
"""What is not CuPy's."""
POISON = 0xFF
TOTAL_NBYTES = 8 << 30
_how: dict[str, Any] = {"streams": "lazy", "order": "forward", "checked": True, "free": TOTAL_NBYTES, "devices": 1}
n_waits = 0
"""How often the host has waited for a stream or an event, also where a copy did; asking an event whether it is done is no wait."""


@contextlib.contextmanager
def streams(how: str) -> Iterator[None]:
    """Let streams work "lazy" (as late as may be) or "eager" (at once)."""
    before, _how["streams"] = _how["streams"], how
    try:
        yield
    finally:
        _how["streams"] = before


@contextlib.contextmanager
def threads(order: str, checked: bool = True) -> Iterator[None]:
    """Build modules whose launches take threads and blocks in this order: "forward", "reverse" or "shuffle"."""
    before = dict(_how)
    _how.update(order=order, checked=checked)
    try:
        yield
    finally:
        _how.update(before)


def _count_wait() -> None:
    global n_waits
    n_waits += 1


@contextlib.contextmanager
def room(nbytes: int) -> Iterator[None]:
    """Let the device have no room for an array of more than `nbytes`."""
    before, _how["free"] = _how["free"], nbytes
    try:
        yield
    finally:
        _how["free"] = before


class CUDARuntimeError(RuntimeError):
    """What CUDA refuses."""

    __module__ = "cupy_backends.cuda.api.runtime"


class CUDADriverError(RuntimeError):
    """What its driver does."""

    __module__ = "cupy_backends.cuda.api.driver"


class OutOfMemoryError(MemoryError):
    """What CuPy raises in place of an array."""

    __module__ = "cupy.cuda.memory"


def _take(nbytes: int) -> None:
    if nbytes > _how["free"]:
        raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes (allocated so far: 0 bytes).")


_recording: list[Stream] = []


def _refuse_while_recording(what: str) -> None:
    if _recording:
        _recording[-1]._worthless = True
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream is capturing")


def _refuse_copies(stream: Stream, what: str) -> None:
    if stream in _recording:
        raise RuntimeError(f"the current stream is capturing, so {what} transfers are disallowed")


class Event:
    """What a stream had been given when it was recorded."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._stream: Stream | None = None
        self._ticket = 0
        self.ptr = id(self)
        _events[self.ptr] = self

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or get_current_stream()
        self._ticket = self._stream._n_given

    def synchronize(self) -> None:
        _refuse_while_recording("an event is waited for")
        _count_wait()
        if self._stream is not None:
            self._stream._work_off(self._ticket)

    @property
    def done(self) -> bool:
        """Tell, and let time pass: whoever asks again and again sees one piece of work done after the other. No error is told, as CuPy tells none."""
        stream = self._stream
        if stream is not None and stream._failed is None and stream._n_done < self._ticket:
            try:
                stream._work_off(stream._n_done + 1)
            except Exception as error:
                stream._failed = error  # for whoever waits
            return False
        return event_query(self.ptr) == 0


def event_query(event: int) -> int:
    """Return 0 where an event has come, 600 where not yet, 719 where the work of its stream has failed."""
    stream, ticket = _events[event]._stream, _events[event]._ticket
    if stream is None:
        return 0
    return 719 if stream._failed is not None else 0 if stream._n_done >= ticket else 600


class Stream:
    """A queue of work. Only a wait takes from it."""

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self._n_given = self._n_done = 0
        self._recorded: list[Callable[[], object]] = []
        self._worthless = False
        self._failed: Exception | None = None
        self._blocking = not non_blocking
        self.ptr = id(self)
        _streams[self.ptr] = self

    def begin_capture(self, mode: int | None = None) -> None:
        if self._blocking or _recording:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the legacy stream, or a second one")
        self._recorded, self._worthless = [], False
        _recording.append(self)

    def end_capture(self) -> Graph:
        if self not in _recording:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        _recording.remove(self)
        if self._worthless:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture")
        return Graph(self._recorded)

    def is_capturing(self) -> bool:
        return self in _recording

    def _give(self, work: Callable[[], object]) -> None:
        if self in _recording:
            self._recorded.append(work)
            return
        self._queue.append(work)
        self._n_given += 1
        if _how["streams"] == "eager":
            self._work_off(self._n_given)

    def _work_off(self, ticket: int) -> None:
        if self._failed is not None:
            error, self._failed = self._failed, None  # on a GPU it stays for good
            raise error
        while self._n_done < ticket:
            work = self._queue.popleft()
            self._n_done += 1
            try:
                work()
            except BaseException:
                self._queue.clear()  # after an error nothing of what was given is done
                self._n_done = self._n_given
                raise

    def synchronize(self) -> None:
        _refuse_while_recording("a stream is waited for")
        _count_wait()
        self._work_off(self._n_given)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        source, ticket = event._stream, event._ticket  # as it was recorded by now
        if source is not None:
            self._give(lambda: source._work_off(ticket))

    @property
    def done(self) -> bool:
        return not self._queue

    def __enter__(self) -> Stream:
        _current.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _current.pop()


class Graph:
    """What a stream has recorded: work whose arguments are those that were given then."""

    def __init__(self, works: list[Callable[[], object]]) -> None:
        self._works = works

    def launch(self, stream: Stream | None = None) -> None:
        (stream or get_current_stream())._give(self._run)

    def _run(self) -> None:
        for work in self._works:
            work()


_events: weakref.WeakValueDictionary[int, Event] = weakref.WeakValueDictionary()
_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
_arrays: weakref.WeakSet[ndarray] = weakref.WeakSet()
Stream.null = Stream()
_current = [Stream.null]


def get_current_stream() -> Stream:
    return _current[-1]


class ndarray:
    """Device memory: nothing but work on a stream touches `_memory`."""

    __array_priority__ = 100

    def __init__(self, shape: Any, dtype: Any = np.float64, _memory: np.ndarray[Any, Any] | None = None) -> None:
        if _memory is None:
            _memory = np.empty(shape, dtype)
            _take(_memory.nbytes)
            if _memory.size:
                _memory.reshape(-1).view(np.uint8)[:] = POISON
        self._memory: np.ndarray[Any, Any] = _memory
        self.data = types.SimpleNamespace(ptr=_memory.ctypes.data, mem=self)
        _arrays.add(self)

    shape = property(lambda self: self._memory.shape)
    dtype = property(lambda self: self._memory.dtype)
    size = property(lambda self: self._memory.size)
    nbytes = property(lambda self: self._memory.nbytes)
    ndim = property(lambda self: self._memory.ndim)
    itemsize = property(lambda self: self._memory.itemsize)
    flags = property(lambda self: self._memory.flags)
    T = property(lambda self: ndarray(None, _memory=self._memory.T))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What an MPI that takes device pointers is given: it reads and writes at once, whatever the streams have still to do."""
        at = self._memory.__array_interface__
        return {"shape": at["shape"], "typestr": at["typestr"], "data": at["data"], "strides": at["strides"], "version": 3}

    def __len__(self) -> int:
        return len(self._memory)

    def __array__(self, *a: Any, **k: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __bool__(self) -> bool:
        raise NotImplementedError("waits for the device: get() what you mean")

    def __getitem__(self, key: Any) -> ndarray:
        part = self._memory[key]
        if not isinstance(part, np.ndarray):
            raise NotImplementedError("one element is no array here: take a slice")
        return ndarray(None, _memory=part)

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(None, _memory=self._memory.reshape(*shape))

    def view(self, dtype: Any) -> ndarray:
        return ndarray(None, _memory=self._memory.view(dtype))

    def ravel(self) -> ndarray:
        return self.reshape(-1)

    def fill(self, value: Any) -> None:
        get_current_stream()._give(lambda: self._memory.fill(value))

    def copy(self) -> ndarray:
        out = ndarray(self.shape, self.dtype)
        get_current_stream()._give(lambda: np.copyto(out._memory, self._memory))
        return out

    def get(self, stream: Stream | None = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray[Any, Any]:
        host = np.empty(self.shape, self.dtype) if out is None else out
        _check_host(host, self)
        _refuse_copies(stream or get_current_stream(), "D2H")
        if not (host.flags.c_contiguous or host.flags.f_contiguous):
            raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
        used = stream or get_current_stream()
        used._give(lambda: np.copyto(host, self._memory))
        if blocking:
            used.synchronize()
        return host

    def set(self, arr: Any, stream: Stream | None = None) -> None:
        _check_host(arr, self)
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        used = stream or get_current_stream()
        _refuse_copies(used, "H2D")
        used._give(lambda: np.copyto(self._memory, arr))
        if stream is None:
            used.synchronize()


def _check_host(host: Any, device: ndarray) -> None:
    if not isinstance(host, np.ndarray) or host.dtype != device.dtype or host.shape != device.shape:
        raise TypeError(f"Only numpy.ndarray of {device.dtype} and shape {device.shape} can be copied to or from, not {type(host)}")


def empty(shape: Any, dtype: Any = float) -> ndarray:
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    array = ndarray(shape, dtype)
    array.fill(0)
    return array


def empty_like(a: ndarray, /) -> ndarray:
    return ndarray(a.shape, a.dtype)


def asarray(a: Any, dtype: Any = None) -> ndarray:
    if isinstance(a, ndarray):
        return a
    memory = np.array(a, dtype=dtype, order="C")
    _refuse_copies(get_current_stream(), "H2D")
    _take(memory.nbytes)
    return ndarray(None, _memory=memory)


def asnumpy(a: ndarray, stream: Stream | None = None) -> np.ndarray[Any, Any]:
    return a.get(stream)


def matmul(a: ndarray, b: ndarray, /, out: ndarray) -> ndarray:
    """Multiply as cuBLAS does; nothing of ours is tried by it but who waits for whom."""
    _check_device(a, b, out)
    if _recording:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    get_current_stream()._give(lambda: np.matmul(a._memory, b._memory, out=out._memory))
    return out


def copyto(dst: ndarray, src: ndarray) -> None:
    _check_device(dst, src)
    get_current_stream()._give(lambda: np.copyto(dst._memory, src._memory))


def bitwise_xor(a: ndarray, b: ndarray, /, out: ndarray) -> ndarray:
    _check_device(a, b, out)
    get_current_stream()._give(lambda: np.bitwise_xor(a._memory, b._memory, out=out._memory))
    return out


def maximum(a: ndarray, b: ndarray, /, out: ndarray) -> ndarray:
    _check_device(a, b, out)
    get_current_stream()._give(lambda: np.maximum(a._memory, b._memory, out=out._memory))
    return out


def sign(x: ndarray, /, out: ndarray) -> ndarray:
    _check_device(x, out)
    get_current_stream()._give(lambda: np.sign(x._memory, out=out._memory))
    return out


def take(a: ndarray, indices: ndarray, axis: int, out: ndarray) -> ndarray:
    _check_device(a, indices, out)
    get_current_stream()._give(lambda: np.take(a._memory, indices._memory, axis, out._memory, "wrap"))
    return out


def _check_device(*arrays: Any) -> None:
    if not all(isinstance(a, ndarray) for a in arrays):
        raise TypeError(f"Unsupported type {[type(a) for a in arrays if not isinstance(a, ndarray)]}")


class RawKernel:
    """A kernel of a `RawModule`."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        if any(isinstance(a, np.ndarray) for a in args):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        host = tuple(a._memory if isinstance(a, ndarray) else a for a in args)
        get_current_stream()._give(lambda: self._kernel(grid, block, host, shared_mem=shared_mem))


class RawModule:
    """CUDA C source, built for the CPU."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        if not isinstance(options, tuple):
            raise TypeError("options has to be a tuple")
        include = [Path(option[2:]) for option in options if option.startswith("-I")]
        real = next((np.dtype({"float": "f4", "double": "f8"}[option[7:]]) for option in options if option.startswith("-DREAL=")), np.dtype("f4"))
        self._module = Module(code, real, include, checked=bool(_how["checked"]), order=str(_how["order"]))

    def compile(self) -> None:
        """Do nothing more: the source is built."""

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self._module.get_function(name))


def dies_in(n: int) -> None:
    """Let the device of this process fail in the n-th piece of work from now on: whoever waits is told, and whatever is asked of it after that fails at once."""
    n_left, is_dead = n, False
    give, work_off = Stream._give, Stream._work_off

    def fail() -> None:
        nonlocal is_dead
        is_dead = True
        raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def given(self: Stream, work: Callable[[], object]) -> None:
        nonlocal n_left
        if is_dead:
            raise CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")
        n_left -= 1
        give(self, work if n_left else fail)

    def worked_off(self: Stream, ticket: int) -> None:
        if is_dead:
            fail()
        work_off(self, ticket)

    Stream._give, Stream._work_off = given, worked_off  # type: ignore[method-assign]


_taken = threading.local()


class _Device:
    compute_capability = "90"

    def __init__(self, device: int | None = None) -> None:
        self.id = getattr(_taken, "id", 0) if device is None else device
        if self.id not in range(int(_how["devices"])):
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    @property
    def pci_bus_id(self) -> str:
        """Where it is: each process has a GPU of its own."""
        return f"{os.getpid():08X}:{self.id:02X}:00.0"

    def use(self) -> None:
        """Be the device of this thread."""
        _taken.id = self.id

    def synchronize(self) -> None:
        raise NotImplementedError("wait for the stream or the event that you mean")


locked: dict[int, int] = {}
"""Of each page-locked memory its address and bytes. No test may leave any: its address may be given out again."""


def host_register(ptr: int, size: int, flags: int) -> None:
    """Page-lock memory; the same page twice is refused."""
    if size and any(ptr < at + n and at < ptr + size for at, n in locked.items()):
        raise CUDARuntimeError("cudaErrorHostMemoryAlreadyRegistered: part or all of the requested memory range is already mapped")
    locked[ptr] = size


def host_unregister(ptr: int) -> None:
    if locked.pop(ptr, None) is None:
        raise CUDARuntimeError("cudaErrorHostMemoryNotRegistered: pointer does not correspond to a registered memory region")


class _Pinned(bytearray):
    @property
    def mem(self) -> _Pinned:
        return self


cuda = types.SimpleNamespace(
    Stream=Stream,
    Graph=Graph,
    Event=Event,
    Device=_Device,
    get_current_stream=get_current_stream,
    alloc_pinned_memory=lambda size: _Pinned(bytes([POISON]) * size),
    is_available=lambda: True,
    using_allocator=lambda allocator=None: contextlib.nullcontext(),  # here each array has memory of its own anyway
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
    nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 1)),
    nccl=nccl_double.namespace(),
    runtime=types.SimpleNamespace(
        getDeviceCount=lambda: _how["devices"],
        memGetInfo=lambda: (_how["free"], TOTAL_NBYTES),
        driverGetVersion=lambda: 0,  # as CuPy says where there is none
        runtimeGetVersion=lambda: 13010,
        CUDARuntimeError=CUDARuntimeError,
        eventQuery=event_query,
        hostRegister=host_register,
        hostUnregister=host_unregister,
    ),
)
