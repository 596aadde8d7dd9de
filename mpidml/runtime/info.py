"""Check the installation on the ranks that run now, measure what they can do, and name for each problem its remedy.

Each rank describes itself in one record; rank 0 compares the records, because the problems that cost most (threads against cores,
two MPIs, a slow kernel on one host) show only between ranks.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpidml
from mpidml.core.errors import UserError
from mpidml.core.sizes import parse_size
from mpidml.runtime import device, slurm
from mpidml.runtime.launch import export_line, mismatch, openmpi_environment, world_from_environment
from mpidml.runtime.threads import Place, crowding, launchers_cores

if TYPE_CHECKING:
    from mpi4py import MPI

ROUNDS, BURST_SECONDS = 50, 0.03  # of one ping-pong: whichever ends first
# OpenBLAS kernels with AVX-512, by the names that threadpoolctl gives.
AVX512_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids", "Zen4", "Zen5")
Problem = tuple[str, str]


def info(comm: MPI.Intracomm, job: Any = None, strategy: Any = None) -> str:
    """Return on rank 0 the report, "" elsewhere: one line a subject, then `problem: ...; remedy: ...` lines and their number.

    With a `job` also whether these ranks fit it, which the class of its strategy says.

    Collective on comm, an mpi4py communicator. Takes under 0.3 s beside the imports of NumPy, Numba and CuPy, where it is installed; sends about 50 MB.
    """
    from mpi4py import MPI

    from mpidml.runtime.watched import ranks_of, waiting

    with waiting("the self-check of all ranks", ranks_of(comm)):
        misfit = _misfit(comm, job, strategy) if job is not None else ""
        records = comm.gather(_describe(), root=0)
        shared = comm.gather(_try_shared_window(comm), root=0)
        devices, lacking = device.survey("auto" if job is None else "cpu" if job.backend == "numpy" else job.device, comm)
    if comm.bcast(any(text.startswith("cuda: ") for _, text in devices)):
        devices += _of_mpi(comm)
    speeds = [(partner, *pingpong(comm, partner)) for partner in sorted({1, comm.size - 1}) if comm.size > 1]
    if records is None or shared is None:
        return ""
    library = " ".join(MPI.Get_library_version().split("\n")[0].strip("\0 ").split(",")[0].split())
    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized", MPI.THREAD_MULTIPLE: "multiple"}
    level = levels[MPI.Query_thread()]
    first = records[0]
    hosts = Counter(record["host"] for record in records)
    lines = [
        ("mpidml", f"{mpidml.__version__}, Python {platform.python_version()}, NumPy {first['numpy']}, {sys.executable}"),
        ("MPI", f"{library}, standard {'.'.join(map(str, MPI.Get_version()))}, thread level {level}"),
        ("ranks", f"{comm.size} on {len(hosts)} host(s): " + ", ".join(f"{host} x {count}" for host, count in list(hosts.items())[:8])),
        ("BLAS", ", ".join(sorted({f"{record['blas']} (kernel {record['kernel']})" for record in records}))),
        ("threads", _threads(records)),
        ("numba", f"{first['numba']}, kernel cache in {first['cache']}"),
        ("shared memory", f"window works on {sum(shared)} of {comm.size} rank(s), {first['shm'] / 2**20:.0f} MiB free in /dev/shm"),
        *devices,
    ]
    given = slurm.allocation(os.environ)
    if given is not None:
        lines.append(("Slurm", given.words()))
    for partner, latency, bandwidth in speeds:
        where = "same host" if records[partner]["host"] == first["host"] else records[partner]["host"]
        lines.append((f"0 <-> {partner}", f"{latency * 1e6:.1f} us latency (8 bytes), {bandwidth / 1e9:.1f} GB/s (4 MB), {where}"))
    problems = find_problems(records, comm.size, level) + lacking
    if given is not None:
        problems += slurm.problems(given, records, parse_size(job.memory, "memory") if job is not None and job.memory else 0)
    if misfit:
        problems.append((misfit.rpartition("; ")[0], misfit.rpartition("; ")[2]))
    if failing := [rank for rank in range(comm.size) if not shared[rank]]:
        problems.append((f"the shared-memory window fails on rank(s) {failing}", "give the container more shared memory (--shm-size=1g)"))
    text = [f"{name:<14} {value}" for name, value in lines]
    if "Open MPI" in library and first["world"].launcher is None and (missing := openmpi_environment(os.environ, len(first["cores"]) + 1)):
        text.append(f"{'by hand':<14} before mpirun: {export_line(missing)}")
    text += [f"problem: {problem}; remedy: {remedy}" for problem, remedy in problems]
    return "\n".join([*text, f"{len(problems)} problem(s)" if problems else "no problems found"])


def find_problems(records: list[dict[str, Any]], comm_size: int, level: str = "multiple") -> list[Problem]:
    """Compare the ranks' records (what `_describe` gives) and return (problem, remedy) pairs; each kind once a host."""
    found: dict[str, str] = {}
    if text := mismatch(records[0]["world"], comm_size):
        found[text.rpartition("; ")[0]] = text.rpartition("; ")[2]
    if level != "multiple":
        found[f"the MPI thread level is {level}, not multiple: nothing is sent while a rank computes"] = "unset MPI4PY_RC_THREAD_LEVEL"
    for host in dict.fromkeys(record["host"] for record in records):
        here = [record for record in records if record["host"] == host]
        places = [Place(host, frozenset(r["cores"]), max(r["blas_threads"], r["numba_threads"]), r["given"]) for r in here]
        if crowd := crowding(places):
            found[crowd[0]] = crowd[1]
        for record in here:
            if record["avx512"] and record["blas"].startswith("openblas") and record["kernel"] not in AVX512_KERNELS:
                cause = "unset OPENBLAS_CORETYPE" if record["coretype"] else "upgrade NumPy"
                found[f"{host}: BLAS runs kernel {record['kernel']} on a CPU with AVX-512, about half its speed"] = cause
            if record["cache_instead"]:
                problem, _, remedy = record["cache_instead"].partition("; ")
                found[f"{host}: {problem}"] = remedy
    for what in ("numpy", "numba", "blas", "python"):
        if len(kinds := {record[what] for record in records}) > 1:
            found[f"ranks differ in {what}: {', '.join(sorted(kinds))}"] = "install the same environment on every host"
    return list(found.items())


def _describe() -> dict[str, Any]:
    """Describe this rank: host, cores it may use, and what the loaded libraries (not the environment) say of their threads."""
    import numba
    import numpy
    import threadpoolctl
    from mpidml_kernels import cache

    blas: dict[str, Any] = next((pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"), {})
    folder, instead = cache.folder()
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    return {
        "world": world_from_environment(os.environ),
        "host": socket.gethostname(),
        "cores": os.sched_getaffinity(0),
        "given": len(launchers_cores()),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "blas": f"{blas.get('internal_api', 'unknown')} {blas.get('version', '')}".strip(),
        "kernel": blas.get("architecture", "unknown"),
        "coretype": os.environ.get("OPENBLAS_CORETYPE", ""),
        "blas_threads": blas.get("num_threads", 1),
        "numba_threads": numba.get_num_threads(),
        "avx512": "avx512f" in _cpu_flags(),
        "cache": str(folder),
        "cache_instead": instead,
        "shm": shm.f_bavail * shm.f_frsize if shm else 0,
        "resident_nbytes": next((int(line.split()[1]) * 1024 for line in _lines(Path("/proc/self/status")) if line.startswith("VmRSS:")), 0),
    }


def _of_mpi(comm: MPI.Intracomm) -> list[tuple[str, str]]:
    """Say whether MPI takes pointers to the memory of GPUs. Collective on comm."""
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.gpu_mpi import takes_device_pointers

    counted = CountedComm(comm)
    try:
        takes, reason = takes_device_pointers(counted)
    finally:
        counted.free()
    return [("GPU by MPI", f"{'takes device pointers' if takes else 'sums go through the host'}: {reason}")]


def _misfit(comm: MPI.Intracomm, job: Any, strategy: Any) -> str:
    """Return what a strategy that is made for these ranks says against them. Collective on comm."""
    from mpidml.runtime.agree import agree
    from mpidml.runtime.comm import CountedComm

    counted = CountedComm(comm)
    try:
        agree(counted, lambda: strategy(job, counted))
    except UserError as error:
        return str(error)
    finally:
        counted.free()
    return ""


def _threads(records: list[dict[str, Any]]) -> str:
    kinds = Counter((record["blas_threads"], record["numba_threads"], len(record["cores"])) for record in records)
    return "; ".join(f"{count} rank(s) with {blas} BLAS, {numba} Numba, {cores} core(s) to run on" for (blas, numba, cores), count in kinds.items())


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


def memory_nbytes() -> int | None:
    """Return the bytes of memory that are free on this machine, within the limit of its container; None where that is unknown."""
    free = [int(line.split()[1]) * 1024 for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable:")]
    limit, used = (_lines(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdecimal():
        free.append(int(limit[0]) - int(used[0]))
    return max(min(free), 0) if free else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")
    except OSError:
        return []


def _try_shared_window(comm: MPI.Intracomm) -> bool:
    """Write this rank's number into a window of the host and read the next rank's. Collective on comm."""
    import numpy as np
    from mpi4py import MPI

    host: Any = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        window = MPI.Win.Allocate_shared(8, 8, comm=host)
    except MPI.Exception:
        host.Free()
        return False
    next_rank = (host.rank + 1) % host.size
    mine, other = (np.asarray(window.Shared_query(rank)[0]).view(np.int64) for rank in (host.rank, next_rank))
    window.Fence()
    mine[0] = comm.rank + 1
    window.Fence()
    works = bool(host.allgather(comm.rank + 1)[next_rank] == other[0])
    del mine, other
    window.Free()
    host.Free()
    return works


def pingpong(comm: MPI.Intracomm, partner: int) -> tuple[float, float]:
    """Return on rank 0 the median one-way seconds of 8 bytes and the bytes per second of 4 MB; zeros elsewhere. Collective on comm."""
    from mpidml.runtime.watched import ranks_of, waiting

    with waiting("a ping-pong between two ranks", ranks_of(comm)):
        return _pingpong(comm, partner)


def _pingpong(comm: MPI.Intracomm, partner: int) -> tuple[float, float]:
    import numpy as np
    from mpi4py import MPI

    measured = []
    for nbytes in (8, 4_000_000):
        comm.Barrier()
        buffer = np.zeros(nbytes, np.uint8)
        if comm.rank == partner:
            go = True  # rank 0's clock decides when it is enough: two clocks would deadlock
            while go:
                status = MPI.Status()
                comm.Recv(buffer, 0, status=status)
                comm.Send(buffer, 0)
                go = status.tag == 1
        elif comm.rank == 0:
            seconds: list[float] = []
            start, again = time.perf_counter(), True
            while again:
                again = len(seconds) < ROUNDS and time.perf_counter() - start < BURST_SECONDS
                before = time.perf_counter()
                comm.Send(buffer, partner, tag=int(again))
                comm.Recv(buffer, partner)
                seconds.append((time.perf_counter() - before) / 2)
            measured.append(float(np.median(seconds)))
    return (measured[0], 4_000_000 / measured[1]) if measured else (0.0, 0.0)
