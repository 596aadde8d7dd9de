"""Read from the environment what Slurm gave this job, find what of it does not fit the ranks, and put the job back into its queue.

    SLURM_JOB_ID, SLURM_STEP_TASKS_PER_NODE, SLURM_CPUS_PER_TASK ...    srun and sbatch tell each process
    squeue --jobs J --Format TimeLeft                                   when the job ends, where the environment does not say
    scontrol requeue J                                                  the same job, with its number, waits for its next start

A site's `squeue` and `scontrol` are asked by rank 0 alone, each once.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mpidml.core.errors import UserError
from mpidml.core.job import Job

ASK_SECONDS = 30.0
MPIRUNS = {"HYDI_CONTROL_FD", "OMPI_COMM_WORLD_RANK"}
"""What hydra and Open MPI's mpirun tell their ranks, and srun does not."""
Problem = tuple[str, str]


class Allocation(NamedTuple):
    """What a job has: of this step the `tasks` of each of its nodes; cores of a task and bytes of a node, 0 where Slurm does not say."""

    job: str
    nodes: str
    tasks: tuple[int, ...]
    cores_per_task: int
    memory_nbytes: int

    def words(self) -> str:
        """Say it in one line."""
        least, most = min(self.tasks), max(self.tasks)
        text = f"job {self.job}: {sum(self.tasks)} task(s) on {len(self.tasks)} node(s) {self.nodes}, {least}{f' to {most}' * (most > least)} a node"
        text += f", {self.cores_per_task} core(s) a task" * bool(self.cores_per_task)
        return text + f", {self.memory_nbytes / 2**20:.0f} MiB a node" * bool(self.memory_nbytes)


def allocation(env: Mapping[str, str]) -> Allocation | None:
    """Return what Slurm gave the job of this process; None outside Slurm. A step that mpirun made for its proxies, one a node, is not what ranks have."""
    if not env.get("SLURM_JOB_ID"):
        return None
    step = {} if MPIRUNS.intersection(env) else env
    tasks = tasks_per_node(step.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")) or [max(1, _number(env, "SLURM_NTASKS"))]
    cores, memory = _number(env, "SLURM_CPUS_PER_TASK"), _number(env, "SLURM_MEM_PER_NODE")
    if not memory:
        memory = _number(env, "SLURM_MEM_PER_CPU") * max(tasks) * max(cores, 1)
    nodes = step.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    return Allocation(env["SLURM_JOB_ID"], nodes, tuple(tasks), cores, memory << 20)


def _number(env: Mapping[str, str], name: str) -> int:
    return int(env[name]) if env.get(name, "").isdecimal() else 0


def tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node from Slurm's list, where "2(x3),1" means three nodes of two tasks, then one of one."""
    tasks: list[int] = []
    for word in text.split(","):
        count, _, times = word.partition("(x")
        if count.isdecimal():
            tasks += [int(count)] * int(times.rstrip(")") or 1)
    return tasks


def unused(env: Mapping[str, str], n_ranks: int) -> str:
    """Return one line where a run takes fewer ranks than Slurm gave tasks, as one that nothing launches in a batch script, else ""."""
    given = allocation(env)
    if given is None or n_ranks >= sum(given.tasks):
        return ""
    return f"job {given.job}: has {sum(given.tasks)} task(s), and this run takes {n_ranks}; to take all, start it by srun without -n, or mpirun -n $SLURM_NTASKS\n"


def problems(given: Allocation, records: Sequence[Mapping[str, Any]], memory_nbytes: int = 0) -> list[Problem]:
    """Compare what Slurm gave with what ranks describe of themselves (`info`), and with a job's --memory: (problem, remedy) pairs."""
    found, n_tasks = [], sum(given.tasks)
    if len(records) != n_tasks:
        remedy = "start as many: srun without -n, or mpirun -n $SLURM_NTASKS; or ask for other --ntasks"
        found.append((f"{len(records)} rank(s) run where Slurm gave {n_tasks} task(s)", remedy))
    threads = max(max(record["blas_threads"], record["numba_threads"]) for record in records)
    if given.cores_per_task and threads != given.cores_per_task:
        set_them = f"export OPENBLAS_NUM_THREADS={given.cores_per_task} NUMBA_NUM_THREADS={given.cores_per_task}"
        remedy = set_them if threads > given.cores_per_task else f"ask for --cpus-per-task={threads} and more tasks, or {set_them}"
        found.append((f"a rank has {threads} thread(s), Slurm gave a task {given.cores_per_task} core(s)", remedy))
    if given.memory_nbytes and (taken := max(record["resident_nbytes"] for record in records) * max(given.tasks)) > given.memory_nbytes:
        problem = f"{max(given.tasks)} rank(s) take {taken / 2**20:.0f} MiB of a node before they have data, Slurm gave {given.memory_nbytes / 2**20:.0f} MiB"
        found.append((problem, f"ask for --mem={2 * taken >> 20}M or more, or for fewer tasks a node"))
    if given.memory_nbytes and memory_nbytes > given.memory_nbytes:
        problem = f"data may take {memory_nbytes / 2**20:.0f} MiB of a node (memory), Slurm gave {given.memory_nbytes / 2**20:.0f} MiB"
        found.append((problem, "lower memory, which keeps more rows on the disk, or ask for more --mem"))
    return found


def own_number(env: Mapping[str, str]) -> str:
    """Return this job's number, "" outside Slurm: of an array's task that of the task, since one of them has the array's own as its SLURM_JOB_ID."""
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID", "")


def seconds_left(env: Mapping[str, str]) -> float | None:
    """Return how long this job may go on; None outside Slurm, without a limit, or where nobody says."""
    if not (job := own_number(env)):
        return None
    told = env.get("SLURM_JOB_END_TIME", "")
    end = float(told) if told.isdecimal() else _asked_end(job)
    return None if end is None else end - time.time()


@functools.cache
def _asked_end(job: str) -> float | None:
    """Ask Slurm once when a job ends, in seconds since 1970."""
    try:
        words = ["squeue", "--noheader", f"--jobs={job}", "--Format=TimeLeft"]
        said = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=ASK_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    left = of_clock(said.strip())
    return None if left is None else time.time() + left


def of_clock(text: str) -> float | None:
    """Return the seconds of Slurm's [days-][hours:]minutes:seconds; None for UNLIMITED and the like."""
    days, _, clock = text.rpartition("-")
    parts = [days or "0", *clock.split(":")]
    if not all(part.isdecimal() for part in parts) or len(parts) < 3:
        return None
    seconds = 0
    for part in parts[1:]:
        seconds = 60 * seconds + int(part)
    return float(86400 * int(days or 0) + seconds)


class Deadline:
    """Foresee that a job ends before its run has saved or ended: told once, on rank 0, from the run's first clocks. `ends`: when, by the clock that `told` is given."""

    def __init__(self, ends: float) -> None:
        self.ends, self.every, self.n_clocks, self.seconds = ends, 0, 0, 0.0

    def expect(self, every: int, n_clocks: int, seconds: float) -> None:
        """Take what is to come: a checkpoint `every` so many clocks (0: none), `n_clocks` in all, or an end after `seconds` (0: none)."""
        self.every, self.n_clocks, self.seconds = every, n_clocks, seconds

    def told(self, clocks: int, seconds: float, now: float) -> str:
        """Return what is to be said once `clocks` of this start took `seconds`, "" for nothing."""
        if not self.n_clocks or clocks < LOOK_CLOCKS or seconds < LOOK_SECONDS:
            return ""
        each, left = seconds / clocks, self.ends - now
        to_end = (self.n_clocks - clocks) * each
        needs = min(to_end, (self.every - clocks) * each if self.every else to_end, self.seconds - seconds if self.seconds and not self.every else to_end)
        self.n_clocks = 0
        if needs <= left:
            return ""
        says = f"time limit: at {each:.3g} s a clock this Slurm job ends {needs - left:.0f} s before "
        if self.every:
            return says + f"the first checkpoint; give --checkpoint-every {max(int(left / each / 2), 1)}, and --signal=USR1@120 or a longer --time to sbatch"
        return says + "the run, and nothing is saved; give --checkpoint-every, or a longer --time to sbatch"


LOOK_CLOCKS, LOOK_SECONDS = 10, 2.0
"""From so many clocks that took so long the rest is foreseen."""


def check(job: Job, env: Mapping[str, str]) -> float | None:
    """Return the seconds that this Slurm job has left, None without a limit; UserError for a run that it cannot bring to an end, or back into a queue.

    Where --seconds is but an upper bound, the run may end long before: `Deadline` foresees it.
    """
    if job.requeue and not env.get("SLURM_JOB_ID"):
        raise UserError("--requeue: this process is not in a Slurm job (no SLURM_JOB_ID), so there is no queue; leave it out, or start by sbatch")
    left = seconds_left(env)
    if left is not None and job.endless and not (job.target or job.patience) and job.seconds > left and not job.checkpoint_every:
        raise UserError(
            f"--seconds {job.seconds:g}: this Slurm job ends in {left:.0f} s, before the run, and nothing would be saved; "
            "give fewer --seconds, a longer --time to sbatch, or --checkpoint-every"
        )
    return left


def requeue(env: Mapping[str, str]) -> None:
    """Put this job back into its queue, which ends its processes; UserError where that is refused."""
    words = ["scontrol", "requeue", own_number(env)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=ASK_SECONDS)
        said = "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        raise UserError(f"--requeue: {' '.join(words)} failed ({said}); submit the script with the same --out: the run goes on from what is saved")
