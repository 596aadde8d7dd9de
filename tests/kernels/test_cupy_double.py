"""What the double takes, real CuPy takes: every name, parameter and keyword; and memory that lacks is one line that says of what, and how much there is."""

import ast
import importlib.util
import inspect
import re
import shutil
import textwrap
import types
from importlib.resources import files

import mpidml_kernels
import numpy as np
import pytest
from mpidml_kernels import launch

from tests.ranks import need
from tests.shim import cupy_double

P = inspect.Parameter
OF_NUMPY = {"dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "T", "data"}
"""Attributes of arrays that a type need not show."""


@pytest.fixture(scope="module")
def cupy():
    need(importlib.util.find_spec("cupy"), "CuPy (pip install '.[test]')")
    import cupy
    import cupy.cuda.nccl  # a module that comes when it is asked for

    return cupy


def declared(line):
    """Return the parameters that the first line of a compiled function's docstring declares: `Class.set(self, arr, stream=None)`; None where it has none."""
    found = re.match(r"(?:[\w.]+)\((.*)\)(?:\s*->.*)?\s*$", line.strip().replace("\\", ""))
    if found is None:
        return None
    kind, parameters = P.POSITIONAL_OR_KEYWORD, []
    for text in re.split(r",\s*(?![^()\[\]]*[)\]])", found[1]) if found[1] else []:
        name, equals, _ = text.partition("=")
        name = name.split()[-1]
        if name == "/":
            parameters = [p.replace(kind=P.POSITIONAL_ONLY) for p in parameters]
        elif name == "*":
            kind = P.KEYWORD_ONLY
        elif name.startswith("**"):
            parameters.append(P(name[2:], P.VAR_KEYWORD))
        elif name.startswith("*"):
            parameters.append(P(name[1:], P.VAR_POSITIONAL))
            kind = P.KEYWORD_ONLY
        else:
            parameters.append(P(name, kind, default=None if equals else P.empty))
    return parameters


def parameters_of(function, of_class=None):
    """Return the parameters, without self, of a function or a class; for a compiled one by its docstring. None where neither says."""
    lines = [line for line in (inspect.getdoc(function) or "").splitlines() if "(" in line]
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        found = declared(lines[0]) if lines else None
    if found is not None and {p.kind for p in found} <= {P.VAR_POSITIONAL, P.VAR_KEYWORD, P.KEYWORD_ONLY} and lines:  # it takes anything, says Python
        found = declared(lines[0]) or found
    if found and found[0].name == "self":
        found = found[1:]
    return found


def mismatches(ours, real, where):
    """List the calls that the double takes and CuPy would not."""
    mine, theirs = parameters_of(ours), parameters_of(real)
    if mine is None or theirs is None:
        return [f"{where}: nothing says what it takes"]
    mine = [p for p in mine if not p.name.startswith("_") and p.kind not in (P.VAR_POSITIONAL, P.VAR_KEYWORD)]
    kinds = {p.kind for p in theirs}
    places = [p for p in theirs if p.kind in (P.POSITIONAL_ONLY, P.POSITIONAL_OR_KEYWORD)]
    named = {p.name: p for p in theirs if p.kind in (P.KEYWORD_ONLY, P.POSITIONAL_OR_KEYWORD)}
    found = []
    for place, p in enumerate(p for p in mine if p.kind in (P.POSITIONAL_ONLY, P.POSITIONAL_OR_KEYWORD)):
        if place >= len(places):
            if P.VAR_POSITIONAL not in kinds:
                found.append(f"{where}: takes {len(places)} arguments by place, {p.name} is one more")
        elif p.kind == P.POSITIONAL_OR_KEYWORD and p.name != places[place].name:
            found.append(f"{where}: argument {place} is {places[place].name}, not {p.name}")
        elif p.default is not P.empty and places[place].default is P.empty:
            found.append(f"{where}: {p.name} may not be left out")
    for p in mine:
        if p.kind == P.KEYWORD_ONLY and p.name not in named and P.VAR_KEYWORD not in kinds:
            found.append(f"{where}: has no keyword {p.name}")
    given = {p.name for p in mine} | {p.name for p in places[: sum(p.kind == P.POSITIONAL_ONLY for p in mine)]}
    found += [
        f"{where}: needs {p.name}" for p in theirs if p.default is P.empty and p.kind not in (P.VAR_POSITIONAL, P.VAR_KEYWORD) and p.name not in given
    ]
    return found


def assigned(kind):
    """Name what the methods of one of the double's classes set on self."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "self"}


def within(names):
    """Give all that lies in namespaces."""
    for of in names.values():
        if isinstance(of, types.SimpleNamespace):
            yield from vars(of).values()
            yield from within(vars(of))


def drift(ours, real, where="cupy"):
    """List what the double offers and CuPy does not, in a module, a namespace or a class."""
    own = vars(ours) if not isinstance(ours, type) else {**vars(ours), **dict.fromkeys(assigned(ours))}
    if isinstance(ours, types.ModuleType):
        own = {
            name: value
            for name, value in own.items()
            if getattr(value, "__module__", None) == ours.__name__ or isinstance(value, types.SimpleNamespace)
        }
        inside = list(within(own))
        own = {name: value for name, value in own.items() if name not in ours.OURS and value not in inside}
    found = []
    for name, value in own.items():
        at = f"{where}.{name}"
        if name.startswith("_") or (isinstance(ours, type) and name in OF_NUMPY):
            continue
        of_instances = f"~{real.__name__.rpartition('.')[2]}.{name} " in (getattr(real, "__doc__", None) or "")  # those that no class shows, but its description
        if not hasattr(real, name) and not hasattr(getattr(real, "null", None), name) and not of_instances:
            found.append(f"{at}: there is no such name")
        elif isinstance(value, types.SimpleNamespace):
            found += drift(value, getattr(real, name), at)
        elif isinstance(value, type):
            if not issubclass(value, Exception):
                found += drift(value, getattr(real, name), at)
                found += mismatches(value, getattr(real, name), at)
            elif not issubclass(getattr(real, name), value.__base__):
                found.append(f"{at}: is no {value.__base__.__name__}")
            elif getattr(real, name).__module__ != value.__module__:  # by which `runtime.device_fault` knows it
                found.append(f"{at}: is of {getattr(real, name).__module__}, not of {value.__module__}")
        elif callable(value):
            found += mismatches(value, getattr(real, name), at)
    if isinstance(ours, type) and "__call__" in own:
        found += mismatches(ours.__call__, real.__call__, f"{where}()")
    return found


# Made by other calls, not by users: RawModule.get_function makes kernels. NCCL's names are there where its library is, and have a test of their own.
MADE = ("cupy.RawKernel: ", "cupy.cuda.nccl.")


def test_what_the_double_offers_is_cupys(cupy):
    found = [text for text in drift(cupy_double, cupy) if not text.startswith(MADE)]
    assert not found, "\n".join(found)


@pytest.mark.bench  # PyTorch brings the library
def test_what_the_double_offers_of_nccl_is_cupys(cupy):
    real, ours = cupy.cuda.nccl, cupy_double.cuda.nccl
    need(real.available, "NCCL (pip install nvidia-nccl-cu13)")
    found = drift(ours, real, "cupy.cuda.nccl")
    assert not found, "\n".join(found)
    numbers = {name: value for name, value in vars(ours).items() if name.startswith("NCCL_")}
    assert numbers == {name: getattr(real, name) for name in numbers} and "NCCL_SUM" in numbers
    assert type(real.get_unique_id()) is bytes and len(real.get_unique_id()) == 128  # as the double's; joining takes a GPU


def double(**changes):
    """Return a module like the double, with some names more or other."""
    made = types.ModuleType("made")
    vars(made).update(OURS=("mine",), mine=lambda: 0, **changes)
    for value in changes.values():
        if not isinstance(value, types.SimpleNamespace):
            value.__module__ = "made"
    return made


class Event:
    def __init__(self, block=False, timing=False):
        pass

    def record(self, on=None):
        pass

    def wait(self):
        pass


class Stream:
    def __init__(self, null=False):
        self.handle = 0

    def wait_event(self, event=None):
        pass


def of_cuda(**names):
    return {"cuda": types.SimpleNamespace(**names)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"emptied": lambda shape: 0}, "cupy.emptied: there is no such name"),
        ({"empty": lambda shape, kind=float: 0}, "cupy.empty: argument 1 is dtype, not kind"),
        ({"empty": lambda shape=(): 0}, "cupy.empty: shape may not be left out"),
        ({"empty": lambda shape, *, poison=0: 0}, "cupy.empty: has no keyword poison"),
        ({"empty": lambda: 0}, "cupy.empty: needs shape"),
        ({"empty": lambda shape, dtype, order, more: 0}, "cupy.empty: takes 3 arguments by place, more is one more"),
        ({"matmul": lambda a, b, out: 0}, "cupy.matmul: argument 0 is x1, not a"),
        (of_cuda(Event=Event), "cupy.cuda.Event: argument 1 is disable_timing, not timing"),
        (of_cuda(Event=Event), "cupy.cuda.Event.record: argument 0 is stream, not on"),
        (of_cuda(Event=Event), "cupy.cuda.Event.wait: there is no such name"),
        (of_cuda(Stream=Stream), "cupy.cuda.Stream.handle: there is no such name"),
        (of_cuda(Stream=Stream), "cupy.cuda.Stream.wait_event: event may not be left out"),
        (of_cuda(runtime=types.SimpleNamespace(getDeviceCount=lambda device: 0)), "cupy.cuda.runtime.getDeviceCount: takes 0 arguments by place, device is one more"),
        pytest.param(
            of_cuda(nccl=types.SimpleNamespace(get_version=lambda kind: 0)), "cupy.cuda.nccl.get_version: takes 0 arguments by place, kind is one more",
            marks=pytest.mark.bench,
        ),
        (of_cuda(alloc_pinned_memory=lambda nbytes: 0), "cupy.cuda.alloc_pinned_memory: argument 0 is size, not nbytes"),
        (of_cuda(memory=types.SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (OSError,), {}))), "cupy.cuda.memory.OutOfMemoryError: is no OSError"),
        (
            of_cuda(memory=types.SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {"__module__": "elsewhere"}))),
            "cupy.cuda.memory.OutOfMemoryError: is of cupy.cuda.memory, not of elsewhere",
        ),
    ],
)  # fmt: skip
def test_the_check_catches_each_kind_of_drift(cupy, changes, says):
    assert says in drift(double(**changes), cupy)


def test_compiled_functions_are_read_by_the_first_line_of_their_docstring():
    found = declared("RawModule(str code=None, *, tuple options=(), str backend='nvrtc', jitify=None)")
    assert [(p.name, p.kind, p.default is P.empty) for p in found] == [
        ("code", P.POSITIONAL_OR_KEYWORD, False), ("options", P.KEYWORD_ONLY, False), ("backend", P.KEYWORD_ONLY, False), ("jitify", P.KEYWORD_ONLY, False),
    ]  # fmt: skip
    assert [(p.name, p.kind) for p in declared("matmul(x1, x2, /, out=None, \\*\\*kwargs)")][1:] == [
        ("x2", P.POSITIONAL_ONLY), ("out", P.POSITIONAL_OR_KEYWORD), ("kwargs", P.VAR_KEYWORD),
    ]  # fmt: skip
    assert declared("getDeviceCount() -> int") == [] and declared("A sentence (with words).") is None


@pytest.mark.parametrize("n", [2.5, 1 << 63, float("nan")])
def test_a_number_that_its_type_does_not_hold_is_refused(n):
    kernels = mpidml_kernels.cuda(cupy_double)
    a, b = (kernels.here(np.ones(4, np.float32)) for _ in range(2))
    with pytest.raises((OverflowError, ValueError)):
        kernels.gpu.launch("update", "add", 1, 32, a, b, n)
    kernels.gpu.launch("update", "add", 1, 32, a, b, 4.0)
    assert (a.get() == 2).all()


def test_copies_that_cupy_refuses_are_refused():
    """Only memory without gaps is copied to, on either side; from a device's array with gaps CuPy copies what it has put together."""
    there, here = cupy_double.zeros((4, 4), "f4"), np.ones((4, 4), np.float32)
    with pytest.raises(RuntimeError, match="Cannot set to non-contiguous"):
        there[:, :2].set(here[:, :2].copy())
    with pytest.raises(RuntimeError, match="non-contiguous"):
        there[:, :2].get(out=here[:, :2])
    there.T.set(here)
    assert there[:, :2].get(out=np.empty((4, 2), np.float32)).all()


def test_scratch_memory_that_lacks_is_one_line_with_what_it_is_for_and_what_is_free():
    gpu = mpidml_kernels.cuda(cupy_double).gpu
    with cupy_double.room(1 << 20):
        assert gpu.scratch("sums", 1000, "f8").size == 1000
        with pytest.raises(MemoryError) as told:
            gpu.scratch("product", 1 << 20, "f4")
    assert str(told.value) == (
        "GPU 0: scratch memory 'product' for 1,048,576 values takes 4.0 MiB, and 1.0 of 8,192.0 MiB are free; "
        "compute fewer samples at once (a smaller --batch, or more --accumulate), use more GPUs, or take --device cpu"
    )
    assert gpu.scratch("product", 1 << 20, "f4").size == 1 << 20, "what failed is not kept in place of what is to be had"


@pytest.mark.parametrize(
    "make", [lambda kernels: kernels.zeros((512, 1024), np.float32), lambda kernels: kernels.here(np.zeros((512, 1024), np.float32))]
)
def test_whatever_array_lacks_memory_is_one_line_with_its_shape(make):
    kernels = mpidml_kernels.cuda(cupy_double)
    with cupy_double.room(1 << 20), pytest.raises(MemoryError) as told:
        make(kernels)
    assert str(told.value).startswith("GPU 0: an array (512, 1024) of float32 takes 2.0 MiB, and 1.0 of 8,192.0 MiB are free; compute fewer samples")


def test_what_lacks_memory_is_named_by_whoever_knows_what_it_is():
    kernels = mpidml_kernels.cuda(cupy_double)
    with cupy_double.room(10):
        with pytest.raises(MemoryError) as told, kernels.naming("the rows"), kernels.naming("the output of layer 3"):
            kernels.zeros((8, 9), np.float32)
        assert str(told.value).startswith("GPU 0: the output of layer 3, an array (8, 9) of float32 takes")
        with pytest.raises(MemoryError, match=r"^GPU 0: an array 9 of float32 takes"):
            kernels.zeros(9, np.float32)
    with mpidml_kernels.backend("numpy").naming("the rows"):
        pass


def test_memory_of_the_host_that_does_not_stay_in_place_is_one_line(monkeypatch):
    def refuse(size):
        raise cupy_double.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

    kernels = mpidml_kernels.cuda(cupy_double)
    monkeypatch.setattr(cupy_double.cuda, "alloc_pinned_memory", refuse)
    with pytest.raises(MemoryError) as told, kernels.naming("the rows"):
        kernels.gpu.pinned((512, 1024), np.float32)
    what = "the rows, an array (512, 1024) of float32 takes 2.0 MiB of the host's memory that stay in place, which the system refuses"
    assert str(told.value).startswith(f"{what} (cudaErrorMemoryAllocation: out of memory); compute fewer")


def test_whoever_chose_the_device_names_the_error_and_other_errors_pass():
    gpu = mpidml_kernels.cuda(cupy_double).gpu
    gpu.refusal = KeyError
    with cupy_double.room(10), pytest.raises(KeyError, match="weights takes 0"), gpu.allocating("weights", 1 << 17):
        cupy_double.empty(1 << 15, "f4")
    with pytest.raises(ZeroDivisionError), gpu.allocating("weights", 1):
        1 / 0  # noqa: B018
    gpu.allocating = lambda what, nbytes: __import__("contextlib").nullcontext()  # without it CuPy's own words come through
    with cupy_double.room(10), pytest.raises(cupy_double.OutOfMemoryError):
        gpu.scratch("product", 100, "f4")


def test_what_a_job_needs_is_compiled_before_its_first_launch(monkeypatch):
    compiled = []
    monkeypatch.setattr(cupy_double.RawModule, "compile", lambda self: compiled.append(self))
    kernels = mpidml_kernels.cuda(cupy_double, mpidml_kernels.update, mpidml_kernels.norm)
    assert not kernels.gpu.modules
    kernels.fetch("f4")
    assert set(kernels.gpu.modules) == {("update", "f4"), ("update", "f8"), ("norm", "f4")} and compiled == [*kernels.gpu.modules.values()]
    with cupy_double.streams("eager"):
        kernels.sum_of_squares(kernels.zeros(9, np.float32))
    assert len(kernels.gpu.modules) == 3, "a sum needs no other"


def test_what_a_header_changes_is_compiled_anew(monkeypatch, tmp_path):
    """CuPy keeps machine code between runs by the text and the options that it is given, and reads no header: a new one has to show in one of them."""
    folder, given = tmp_path / "mpidml_kernels", []
    shutil.copytree(files("mpidml_kernels"), folder)
    module = types.SimpleNamespace(get_function=lambda name: None)
    cupy = types.SimpleNamespace(RawModule=lambda **by: given.append((by["code"], by["options"])) or module)
    monkeypatch.setattr(launch, "files", lambda package: folder)
    for text in ("", "", "// other\n"):
        (folder / "device.cuh").write_text(text)
        launch.Gpu(cupy)._function("update", "add", "f4")
    assert given[0] == given[1] != given[2]
