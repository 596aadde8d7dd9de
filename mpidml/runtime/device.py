"""Choose where networks compute, the same on all ranks, and say why: the only place that imports CuPy.

    driver, asked without CuPy -> CuPy -> its CUDA against the driver's -> which GPU -> NVRTC -> memory, a kernel and a product of matrices, compared

The first step that fails on any rank is under `auto` the reason why all ranks take the CPU, under `cuda` the end: one line, exit code 2. Each step is looked
at as it will be used, because CuPy loads without most of what it needs. Without a driver `auto` costs one failing dlopen, and imports nothing.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.device import Device
from mpidml.core.errors import UserError
from mpidml.core.job import NCCL, Job
from mpidml.runtime import cuda_driver
from mpidml.runtime.cuda_driver import Card, Lacks, spelt
from mpidml.runtime.launch import world_from_environment

TRIED = np.arange(300, dtype=np.float32) % 7
"""Small whole numbers: sums of their products are exact in any order."""
CPU_INSTEAD = "or take --device cpu"
OLDEST = {12: "5.0", 13: "7.5"}
"""The least compute capability that a CUDA compiles for."""


class Found(NamedTuple):
    """What a rank has found: its host, the GPUs that its driver shows, and which of them it takes, or what it `lacks` for that."""

    host: str
    cards: tuple[Card, ...] = ()
    number: int = -1
    versions: tuple[tuple[str, str], ...] = ()
    lacks: str = ""
    remedy: str = ""


def of_job(job: Job, comm: Any) -> Device:
    """Choose for a job, before its data are read (Collective on comm); UserError on all ranks where it asks for NCCL, and one cannot have it."""
    found = Device("cpu", f"--backend {job.backend} is the CPU's") if job.backend == "numpy" else choose(job.device, comm)
    if job.transport != NCCL:
        return found
    if found.kernels is None:
        what = f"sums on GPUs, and networks compute on the CPU ({found.reason})"
        raise UserError(f"--transport nccl: {what}; --device cuda says what a GPU needs, or leave it out")
    cupy = found.kernels.gpu.cupy
    if any(lacking := lacks_nccl(cupy, comm)):
        raise UserError(f"--transport nccl: {'; '.join(lacking)}, or leave it out")
    version = cupy.cuda.nccl.get_version()
    return found._replace(facts=found.facts | {"NCCL": f"{version // 10000}.{version // 100 % 100}.{version % 100}"})


def lacks_nccl(cupy: Any, comm: Any) -> tuple[str, str]:
    """Return the first thing that keeps NCCL from joining the ranks of each host, and its remedy, both "" where nothing does (Collective on comm).

    Where nothing lacks, `cupy.cuda.nccl` is loaded. NCCL knows a GPU by its place on the bus, and takes no two ranks on one.
    """
    every: list[tuple[int, str, str]] = comm.allgather((comm.leader, cupy.cuda.Device().pci_bus_id, "" if _nccl(cupy).available else socket.gethostname()))
    seen: dict[tuple[int, str], int] = {}
    for rank, (leader, place, lacking) in enumerate(every):
        if lacking:
            package = f"nvidia-nccl-cu{cupy.cuda.runtime.runtimeGetVersion() // 1000}"
            return f"CuPy finds no NCCL on rank {rank} ({lacking})", f"pip install {package} there"
        if (other := seen.setdefault((leader, place), rank)) != rank:
            return f"ranks {other} and {rank} of one host share GPU {place}, and NCCL takes one rank a GPU", "start no more ranks there than it has GPUs, by --device cuda"
    return "", ""


def _nccl(cupy: Any) -> Any:
    """Return CuPy's NCCL, a module that comes when it is asked for; it is `available` where the library is."""
    if not hasattr(cupy.cuda, "nccl"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several lines of CuPy's on what it does not find
            importlib.import_module("cupy.cuda.nccl")
    return cupy.cuda.nccl


def choose(wanted: str, comm: Any) -> Device:
    """Choose for "auto", "cpu", "cuda" or "cuda:N" (Collective on comm); UserError on all ranks where "cuda" cannot be had by one of them.

    A rank takes the GPU whose number is its own on its host, modulo how many it sees, and makes it the current one of this thread; any other thread that
    computes there has to do so, too. The first choice starts CUDA and compiles; kernels are kept, so later ones cost a message.
    """
    if wanted == "cpu":
        return Device("cpu", "--device cpu")
    found, kernels = _look(wanted, comm.rank)
    every = comm.allgather(found)
    first = next((rank for rank, of in enumerate(every) if of.lacks), None)
    if first is None:
        shared = _sharing(every, wanted)
        reason = "tried, and right" if wanted == "auto" else f"--device {wanted}"
        return Device("cuda", reason, kernels, facts(every) | ({"warning": shared} if shared else {}))
    of, alike = every[first], len({of.lacks for of in every}) == 1
    lacks = of.lacks if alike else f"rank {first} of {len(every)} ({of.host}): {of.lacks}"
    if wanted != "auto":
        raise UserError(f"--device {wanted}: {lacks}; {of.remedy}")
    unused = any(of.cards for of in every)
    return Device("cpu", lacks, facts={"warning": f"device: all ranks compute on the CPU, though there is a GPU: {lacks}; {of.remedy}"} if unused else {})


def lacks() -> str:
    """Return what this process alone lacks for "cuda", "" where it has a GPU that was tried; no other rank is asked."""
    return _look("cuda", 0)[0].lacks


def warm(tell: Callable[[str], None]) -> None:
    """Compile every kernel for this host's GPU into CuPy's cache, and `tell` what is done; nothing without a GPU, and why where one cannot be used."""
    found, kernels = _look("cuda", 0)
    if kernels is None:
        if found.cards:
            tell(f"for GPUs nothing is compiled: {found.lacks}; {found.remedy}")
        return
    import mpidml_kernels

    n, where = mpidml_kernels.warm_cuda(kernels), os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")
    tell(f"{n} kernels are compiled for {found.cards[found.number].name} in {where} (CUPY_CACHE_DIR)")


def told(device: Device) -> list[str]:
    """Return the lines that open a run: none where a host without a GPU computes on its CPU."""
    of = device.facts
    lines = [of["warning"]] if "warning" in of else []
    if device.name != "cpu":
        lines.append(f"device {device.name}: {', '.join(of['cards'])} ({device.reason}); CuPy {of['CuPy']}, CUDA {of['CUDA']}, the driver's {of['driver']}")
    return lines


def survey(wanted: str, comm: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return on rank 0 what `info` prints of devices, as (subject, text), and problems with their remedies (Collective on comm); empty lists elsewhere."""
    every = comm.gather(_look(wanted, comm.rank)[0] if wanted != "cpu" else Found(socket.gethostname()))
    if every is None:
        return [], []
    lacking = [rank for rank, of in enumerate(every) if of.lacks]
    cards = {(of.host, n): card for of in every for n, card in enumerate(of.cards)}
    chosen = ", ".join(f"rank {rank} {of.host}:{of.number}" for rank, of in list(enumerate(every))[:8])
    where = f"{'cpu' if wanted == 'auto' else 'none'}: {_each_once(every)}" if lacking else f"cuda: {chosen}{', ...' * (len(every) > 8)}"
    lines = [("device", where), ("CuPy", _words(every))] if wanted != "cpu" else [("device", "cpu: asked for")]
    lines += [("GPUs", ", ".join(f"{host}:{n} {card.name} {card.nbytes / 2**30:.1f} GiB" for (host, n), card in list(cards.items())[:8]))] * bool(cards)
    problems = [(every[rank].lacks, every[rank].remedy) for rank in lacking if cards or wanted != "auto"]
    if not lacking and (text := _sharing(every, wanted)):
        problems.append((text.rpartition("; ")[0], text.rpartition("; ")[2]))
    return lines, list(dict.fromkeys(problems))


def facts(every: Sequence[Found]) -> dict[str, Any]:
    """Return what a report says of GPUs that all ranks have: which, of how much memory, by which software."""
    taken = [of.cards[of.number] for of in every]
    return {
        "cards": list(dict.fromkeys(card.name for card in taken)),
        "numbers": [of.number for of in every],
        "memory_nbytes": [card.nbytes for card in taken],
        **dict(every[0].versions),
    }


def _look(wanted: str, rank: int) -> tuple[Found, Any]:
    """Return what this rank finds, and the kernels of the GPU that it takes."""
    host, cards = socket.gethostname(), tuple[Card, ...]()
    try:
        driver = cuda_driver.driver()
        cards = driver.cards
        cupy = _cupy(driver.version)
        world, asked = world_from_environment(os.environ), wanted.partition(":")[2]
        number = int(asked) if asked else (world.local_rank if world.launcher else rank) % len(cards)
        if number >= len(cards):
            raise Lacks(f"there is no GPU {number}, this process sees {len(cards)}", f"give a number from 0 to {len(cards) - 1}")
        kernels = _tried(cupy, number, f"GPU {number} ({cards[number].name})")
        cupy.cuda.Device(number).use()
        return Found(host, cards, number, (*_versions(cupy), ("driver", spelt(driver.version)))), kernels
    except Lacks as lacks:
        return Found(host, cards, lacks=lacks.what, remedy=lacks.remedy), None


def _cupy(driver_version: int) -> Any:
    """Import CuPy and hold it to the driver."""
    fits = f"pip install 'mpidml[cuda{driver_version // 1000}]'"
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise Lacks(f"CuPy cannot be imported ({_one_line(error)})", f"install it anew: {fits}") from None
        raise Lacks("CuPy is not installed", f"{fits} (extras cuda12 and cuda13: this driver speaks CUDA {spelt(driver_version)})") from None
    except Exception as error:
        raise Lacks(f"CuPy cannot be imported ({_one_line(error)})", f"install it anew, one cupy package alone: {fits}") from None
    version = cupy.cuda.runtime.runtimeGetVersion()
    if version // 1000 > driver_version // 1000:  # within one of these numbers newer ones run on older drivers
        made = f"CuPy {cupy.__version__} is made for CUDA {spelt(version)}, NVIDIA's driver speaks {spelt(driver_version)}"
        raise Lacks(made, f"install a newer driver, or pip uninstall cupy-cuda{version // 1000}x and {fits}")
    return cupy


@cache
def _tried(cupy: Any, number: int, name: str) -> Any:
    """Return the kernels of a GPU that has computed rightly."""
    import mpidml_kernels

    brings = f"pip install 'mpidml[cuda{cupy.cuda.runtime.runtimeGetVersion() // 1000}]', which brings it"
    with _step("NVRTC, which compiles kernels, cannot be loaded", brings):
        cupy.cuda.nvrtc.getVersion()
    with _step(f"{name} does not start", f"see what nvidia-smi says of it, {CPU_INSTEAD}", name):
        cupy.cuda.Device(number).use()
        x = cupy.asarray(TRIED)
    _check_age(cupy, number, name)
    kernels: Any = mpidml_kernels.cuda(cupy)
    with _step(f"{name} does not run a kernel", f"see what nvidia-smi says of it, {CPU_INSTEAD}", name):
        _compare(name, "sum of squares", kernels.sum_of_squares(x), float(TRIED @ TRIED))
    with _step(f"{name} does not multiply matrices, which is cuBLAS's work", brings, name):
        rows, out = TRIED.reshape(2, -1), cupy.empty((2, 2), "f4")  # of one row and one column CuPy makes a sum by itself, without cuBLAS
        cupy.matmul(x.reshape(2, -1), x.reshape(2, -1).T, out=out)
        for given, right in zip(out.get().flat, (rows @ rows.T).flat, strict=True):
            _compare(name, "product", float(given), float(right))
    kernels.gpu.refusal = UserError  # what a run lacks memory for is the user's to change
    return kernels


@contextmanager
def _step(what: str, remedy: str, name: str = "") -> Iterator[None]:
    """Turn whatever goes wrong in a step into what is lacking; no memory has a remedy of its own."""
    try:
        yield
    except Lacks:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "cudaErrorMemoryAllocation" in str(error):
            free = f"end what else runs on it (nvidia-smi lists it), name another by --device cuda:N, {CPU_INSTEAD}"
            raise Lacks(f"{name} has no memory left for a trial of some numbers ({_one_line(error)})", free) from None
        raise Lacks(f"{what} ({_one_line(error)})", remedy) from None


def _check_age(cupy: Any, number: int, name: str) -> None:
    """Refuse a GPU that this CUDA no longer compiles for, before its compiler does in words of its own."""
    cuda, text = cupy.cuda.runtime.runtimeGetVersion() // 1000, str(cupy.cuda.Device(number).compute_capability)
    has, least = (int(text[:-1]), int(text[-1])), OLDEST.get(cuda, "0.0")
    if has >= tuple(map(int, least.split("."))):
        return
    older = [version for version, of in OLDEST.items() if has >= tuple(map(int, of.split(".")))]
    other = f"pip uninstall cupy-cuda{cuda}x and pip install 'mpidml[cuda{older[-1]}]', {CPU_INSTEAD}" if older else CPU_INSTEAD.removeprefix("or ")
    raise Lacks(f"{name} has compute capability {has[0]}.{has[1]}, and CUDA {cuda} compiles for {least} and newer", other)


def _compare(name: str, what: str, given: float, right: float) -> None:
    if given != right:
        raise Lacks(f"{name} computes wrongly: a {what} is {given:g} there, not {right:g}", f"try another one by --device cuda:N, {CPU_INSTEAD}")


def _versions(cupy: Any) -> tuple[tuple[str, str], ...]:
    return (
        ("CuPy", cupy.__version__),
        ("CUDA", spelt(cupy.cuda.runtime.runtimeGetVersion())),
        ("NVRTC", ".".join(map(str, cupy.cuda.nvrtc.getVersion()))),
    )


def _words(every: Sequence[Found]) -> str:
    """Say of which versions the software is, by rank 0, also where no driver lets it run."""
    if every[0].versions:
        of = dict(every[0].versions)
    else:
        try:
            import cupy

            of = dict(_versions(cupy))
        except ImportError:
            return "not installed"
        except Exception as error:
            return f"installed, {_one_line(error)}"
    return f"{of['CuPy']} for CUDA {of['CUDA']}, NVRTC {of['NVRTC']}" + (f", driver for CUDA {of['driver']}" if "driver" in of else "")


def _sharing(every: Sequence[Found], wanted: str) -> str:
    """Return one line where ranks of a host share a GPU, "" elsewhere; the first such host is named."""
    for host in dict.fromkeys(of.host for of in every):
        here = [of for of in every if of.host == host]
        n_taken, n_cards = (len({card.uuid for card in cards}) for cards in ([of.cards[of.number] for of in here], [c for of in here for c in of.cards]))
        if n_taken < len(here):
            spread = n_cards > n_taken and wanted.startswith("cuda:")
            remedy = "--device cuda gives each rank another" if spread else f"start at most {n_taken} there, or accept that timings mean little"
            return f"device: {host}: {len(here)} ranks share {n_taken} GPU(s): each waits for the others' kernels; {remedy}"
    return ""


def _each_once(every: Sequence[Found]) -> str:
    """Say what ranks lack, each kind with the first rank that lacks it."""
    kinds = {of.lacks: rank for rank, of in reversed(list(enumerate(every)))}
    return "; ".join(f"rank {rank}: {lacks or 'has one'}" if len(kinds) > 1 else lacks for lacks, rank in sorted(kinds.items(), key=lambda of: of[1]))


def _one_line(error: BaseException) -> str:
    return re.sub(r"[\s;]+", " ", f"{type(error).__name__}: {error}").strip()[:300]
