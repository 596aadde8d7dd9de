"""Give each rank as many threads for BLAS and Numba as it has cores, hold BLAS to one where bits are promised, and say where ranks crowd.

    a launcher with cores    0 1 2 3 4 5 6 7                 a rank computes with
    4 ranks                  run anywhere                    2 threads: 8 cores over 4 ranks
    4 ranks                  [0 1] [2 3] [4 5] [6 7]         2: as many, and never more than it is bound to
    2 ranks                  [0]   [1]                       1: bound to it

Nothing here imports NumPy when it is imported: a number of threads only counts if it is in the environment before.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mpidml.runtime.launch import BUDGETED, THREAD_VARIABLES, World, world_from_environment

QUOTA = Path("/sys/fs/cgroup/cpu.max")
PROC = Path("/proc")
LAUNCHERS = {"hydra_pmi_proxy", "mpiexec.hydra", "mpiexec", "mpirun", "prterun", "prted", "orted", "slurmstepd"}  # the kernel keeps 15 letters
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
COST = "each waits for the others' turns, and for threads that wait for theirs"
UNBIND = "let the launcher bind each rank to cores of its own (mpirun -bind-to core), or none (-bind-to none)"


def budget(env: Mapping[str, str]) -> int:
    """Return the cores of this process: alone all that it may use, launched its share of the launcher's, at least 1; within the container's quota.

    A launcher that does not tell how many ranks it has started here leaves 1.
    """
    return share(world_from_environment(env), len(os.sched_getaffinity(0)), given(env), quota())


def given(env: Mapping[str, str]) -> int:
    """Return how many cores of this host the launcher has for its ranks, however few of them this one is bound to."""
    if world_from_environment(env).launcher == "srun" and env.get("SLURM_CPUS_ON_NODE", "").isdecimal():
        return int(env["SLURM_CPUS_ON_NODE"])  # what starts its ranks may run on cores of other jobs
    return len(launchers_cores())


def share(world: World, mine: int, given: int, limit: float = math.inf) -> int:
    """Return how many of a launcher's `given` cores, of whose time `limit` may be used, are this rank's, which is bound to `mine`."""
    if world.launcher is not None and world.size is None:
        return 1
    return max(1, min(mine, int(min(given, limit)) // world.local_size))


def launchers_cores() -> set[int]:
    """Return the cores of the launcher, if this process was bound to some of them; else its own."""
    mine = os.sched_getaffinity(0)
    try:
        launchers = os.sched_getaffinity(_launcher())
    except OSError:
        return mine
    return launchers if launchers > mine else mine


def _launcher() -> int:
    """Return the launcher's process above this one, maybe behind a script that was bound together with it; where none is known, its parent."""
    pid = first = os.getppid()
    while pid > 1:
        try:
            name, words = (PROC / str(pid) / "stat").read_text().partition("(")[2].rsplit(")", 1)
            parent = int(words.split()[1])
        except (OSError, ValueError):
            break
        if name in LAUNCHERS:
            return pid
        pid = parent
    return first


def quota(file: Path = QUOTA) -> float:
    """Return how many cores' time this container may use."""
    try:
        most, period = file.read_text().split()
        return max(1.0, int(most) / int(period))
    except (OSError, ValueError):  # there is none: "max"
        return math.inf


def budget_threads(env: MutableMapping[str, str]) -> None:
    """Give this process `budget` BLAS and Numba threads, or OMP_NUM_THREADS of them; what the user set stays, and waiting OpenMP threads sleep.

    Acts only if it runs before numpy and numba are imported. To check: `"numpy" not in sys.modules` just before the call, or the
    line "threads" of `python -m mpidml info`, which asks the loaded libraries.
    """
    free = [name for name in THREAD_VARIABLES if not _is_users(name, env)]
    n = env.get("OMP_NUM_THREADS", "") if "OMP_NUM_THREADS" not in free else ""
    env.update(dict.fromkeys(free, n if n.isdecimal() else str(budget(env))))
    env[BUDGETED] = " ".join(free)
    env.setdefault("OMP_WAIT_POLICY", "passive")


def misread(env: Mapping[str, str]) -> str | None:
    """Return one line if the user has set a number of threads that is none: libraries would pass it over, each warn of it, or end by a traceback."""
    for name in THREAD_VARIABLES:
        text = env.get(name, "")
        for each in text.split(",") if name == "OMP_NUM_THREADS" else [text]:  # of OpenMP a number for each level of nesting
            if text and not (each.strip().isdecimal() and int(each)):
                return f"{name}={text}: is not a number of threads; give a whole number from 1 up, or unset it"
    return None


def chosen(env: Mapping[str, str]) -> bool:
    """Tell whether the user has set a number of threads."""
    return any(_is_users(name, env) for name in THREAD_VARIABLES)


def _is_users(name: str, env: Mapping[str, str]) -> bool:
    return name in env and name not in env.get(BUDGETED, "").split()


def limit_threads() -> None:
    """Hold BLAS to this process's `budget`, unless the environment names a number of threads.

    `python -m mpidml` sets the environment before NumPy is loaded; a script may have loaded NumPy already, and its ranks would then run
    as many threads as the host has cores, each. SciPy has a BLAS of its own, which is loaded when a kernel first asks for it, and reads the environment then.
    """
    if BUDGETED in os.environ or chosen(os.environ):
        return
    from threadpoolctl import threadpool_limits

    budget_threads(os.environ)
    threadpool_limits(budget(os.environ), "blas")


@cache
def _pools(with_scipy: bool) -> Any:
    """Find the BLAS libraries that are loaded; SciPy's own may come later."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let BLAS compute with one thread, whatever is set: how it shares out a product among threads decides the last bits.

    So wherever the same bits are promised at any number of ranks, or in another cut, the number of threads may not follow theirs.
    """
    before = {name: os.environ.get(name) for name in BLAS_VARIABLES}
    os.environ.update(dict.fromkeys(BLAS_VARIABLES, "1"))  # for a BLAS that is loaded meanwhile, which then stays at one
    try:
        with _pools("scipy.linalg" in sys.modules).limit(limits=1):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def same_threads() -> Iterator[None]:
    """Let BLAS compute with as many threads as the user has set, else with one: where different numbers of ranks are compared, a rank is a core."""
    with nullcontext() if chosen(os.environ) else one_thread():
        yield


class Place(NamedTuple):
    """Where a rank computes: its host, the cores it may run on, its BLAS threads, and the number of cores that its launcher has."""

    host: str
    cores: frozenset[int]
    n_threads: int
    n_given: int


def place() -> Place:
    """Describe this rank, by what the loaded BLAS says of its threads."""
    from threadpoolctl import threadpool_info

    n_threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    return Place(socket.gethostname(), frozenset(os.sched_getaffinity(0)), n_threads, len(launchers_cores()))


def crowding(here: Sequence[Place]) -> tuple[str, str] | None:
    """Return what is wrong on one host, and its remedy: cores whose ranks, those that can run nowhere else, have more threads than there are cores."""
    sets = {place.cores for place in here} | {frozenset[int]().union(*(place.cores for place in here))}
    found = [(cores, [place for place in here if place.cores <= cores]) for cores in sets]
    cores, ranks = max(found, key=lambda of: (sum(place.n_threads for place in of[1]) / len(of[0]), len(of[0])))
    n_threads, host, n = sum(place.n_threads for place in ranks), here[0].host, len(ranks)
    if n_threads <= len(cores):
        return None
    if n > 1 and len(cores) < ranks[0].n_given:
        where = f"{n} rank(s) with {n_threads} threads are" if n_threads > n else f"{n} ranks are"
        return f"{host}: {where} bound to {len(cores)} of {ranks[0].n_given} cores", UNBIND
    if n_threads > n:
        remedy = "unset OPENBLAS_NUM_THREADS, OMP_NUM_THREADS and NUMBA_NUM_THREADS: python -m mpidml then shares the cores out"
        return f"{host}: {n} rank(s) have {n_threads} threads on {len(cores)} core(s)", remedy
    return f"{host}: {n} ranks share {len(cores)} core(s)", f"start at most {len(cores)} ranks here, or accept that timings mean little"


def warning(comm: Any) -> str:
    """Return on rank 0 one line where the ranks of a host have more threads than cores, else "" (Collective on comm)."""
    places = comm.gather(place()) or []
    hosts = {each.host: [other for other in places if other.host == each.host] for each in places}
    found = [of for here in hosts.values() if (of := crowding(here))]
    if not found:
        return ""
    more = f" (and {len(found) - 1} more hosts)" if len(found) > 1 else ""
    return f"threads: {found[0][0]}{more}: {COST}; {found[0][1]}\n"
