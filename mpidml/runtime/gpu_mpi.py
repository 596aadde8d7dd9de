"""Find out whether this MPI takes pointers to device memory, without giving it one here: one that does not take them dies by SIGSEGV, no exception.

    MPIDML_GPU_MPI=yes|no  >  info key mpi_memory_alloc_kinds  >  MPIX_GPU_query_support  >  MPIX_Query_cuda_support  >  no
          a yes ----> the first rank of each host has a process of its own give MPI a device pointer (`gpu_mpi_trial`) ----> all ranks agree

mpi4py passes on whatever pointer an array names, and asks nobody. Sources: MPI 4.1, 11.4.3 (kinds of memory); MPICH's and Open MPI's extensions.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

from mpidml.core.errors import UserError
from mpidml.runtime.agree import agree
from mpidml.runtime.launch import openmpi_environment, without_launcher

VARIABLE = "MPIDML_GPU_MPI"
KIND_CUDA = 0
"""MPIX_GPU_SUPPORT_CUDA."""
LIMIT_SECONDS = 60
Verdict = tuple[bool, str]


def takes_device_pointers(comm: Any, index: int = 0) -> Verdict:
    """Return whether MPI may be given pointers to memory of the device `index`, and how that is known; all ranks the same (Collective on comm).

    Costs one process a host where it is claimed, under a limit; else next to nothing. UserError for a value of MPIDML_GPU_MPI that says neither.
    """
    claims = agree(comm, lambda: claimed(os.environ))
    found = tried(claims, index) if claims[0] and comm.host.rank == 0 else claims
    everyone: list[Verdict] = comm.allgather(found)
    for rank, (takes, reason) in enumerate(everyone):
        if not takes:
            return False, reason if all(other == everyone[0] for other in everyone) else f"rank {rank}: {reason}"
    return everyone[0]


def claimed(env: Mapping[str, str]) -> Verdict:
    """Return what the user, or else the library says of itself."""
    asked = env.get(VARIABLE, "")
    if asked not in ("", "yes", "no"):
        raise UserError(f"{VARIABLE}={asked}: says neither yes nor no; give one of them, or unset it to have MPI asked")
    if asked:
        return asked == "yes", f"{VARIABLE}={asked}"
    info = MPI.COMM_WORLD.Get_info()
    kinds = info.get("mpi_memory_alloc_kinds") or ""
    info.Free()
    if "cuda" in [kind.partition(":")[0] for kind in kinds.split(",")]:
        return True, f"mpi_memory_alloc_kinds={kinds}"
    return queried(ctypes.CDLL(MPI.__file__))


def queried(library: Any) -> Verdict:
    """Return what the extensions of `library`, as ctypes shows it, say; they are found beside mpi4py alone, not among the symbols of the process."""
    if hasattr(library, "MPIX_GPU_query_support"):
        flag = ctypes.c_int(0)
        if library.MPIX_GPU_query_support(KIND_CUDA, ctypes.byref(flag)) == MPI.SUCCESS:
            return bool(flag.value), f"MPIX_GPU_query_support says {'yes' if flag.value else 'no'}"
    if hasattr(library, "MPIX_Query_cuda_support"):
        supports = bool(library.MPIX_Query_cuda_support())
        return supports, f"MPIX_Query_cuda_support says {'yes' if supports else 'no'}"
    return False, f"the MPI library cannot be asked; set {VARIABLE}=yes where it takes device pointers"


def tried(claims: Verdict, index: int = 0, limit_seconds: float = LIMIT_SECONDS) -> Verdict:
    """Return whether a process of its own lives through what is claimed.

    That process knows nothing of this job's launcher, so it begins an MPI of its own; it ends itself at the limit, should this one be gone.
    """
    env = {name: value for name, value in without_launcher(os.environ).items() if not name.startswith("SLURM_")}
    words = [sys.executable, "-m", "mpidml.runtime.gpu_mpi_trial", str(index), str(int(limit_seconds) + 1)]
    try:
        env |= openmpi_environment(env, 1)
        done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_seconds)
    except OSError as error:
        return False, f"{claims[1]}, but the process that was to give MPI a device pointer could not be started ({error})"
    except subprocess.TimeoutExpired:
        return False, f"{claims[1]}, but a process that was to give MPI a device pointer had not ended after {limit_seconds:g} s"
    said = done.stdout.split()
    if done.returncode == 0 and said[-1:] == ["right"]:
        return True, f"{claims[1]}, and a process that gave MPI a device pointer got back what it had sent"
    if said[-1:] == ["wrong"]:
        return False, f"{claims[1]}, but a process that gave MPI a device pointer got back something else"
    if "giving" in said:
        died = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        return False, f"{claims[1]}, but a process that gave MPI a device pointer died by {died}"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
    return False, f"{claims[1]}, but the process that was to give MPI a device pointer did not come to that ({last})"
