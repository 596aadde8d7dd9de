"""Estimate what a simulation takes of this machine's memory, so that one that does not fit is refused before it starts.

    all                 the process, its plot, and what each worker, and each server apart, has on virtual clocks
    --learn, besides    the parameters: their versions, the optimizer's state, and of each worker its gradients and copies
"""

from __future__ import annotations

from collections.abc import Sequence

from mpidml.core.errors import UserError
from mpidml.sim.parameter_server import Plan
from mpidml.sync.base import SyncPolicy

LEARNING_NBYTES, COMPILED_NBYTES = 25_000_000, 100_000_000
"""What the arithmetic takes besides, with a small set of rows, and what its compiler does."""
SHARD_NBYTES = 5000
STATE = 2.0
"""Arrays of the optimizer, about, as large as the parameters."""
IN_STEP, AHEAD, COPIES, CACHED = 1.3, 2.5, 3.4, 1.0
"""Arrays of a worker: its gradients where all go in step or it may go ahead; its copies where it does not read in place, and those it keeps. Measured."""


def learning_nbytes(
    nbytes: int, n_workers: int, n_shards: int, policy: SyncPolicy, versions: int, in_place: bool, repeat: bool, keeps: bool, compiled: bool
) -> int:
    """Estimate what the arithmetic of parameters of `nbytes` takes, `versions` of which a server has; `repeat`: gradients wait for their clock."""
    gradients = IN_STEP if policy.bound == 0 else AHEAD
    if repeat and policy.bound:
        gradients = 2.0 + policy.bound
    of_worker = gradients + COPIES * (not in_place) + CACHED * keeps
    return LEARNING_NBYTES + COMPILED_NBYTES * compiled + n_shards * SHARD_NBYTES + round(nbytes * (versions + STATE + n_workers * of_worker))


def check(plans: Sequence[Plan], room: int | None) -> None:
    """Refuse what takes more than four fifths of the `room`; None: unknown."""
    worst = max(plans, key=lambda plan: plan.memory_nbytes)
    wanted = worst.memory_nbytes
    if room is None or wanted <= 0.8 * room:
        return
    servers, workers = worst.servers_nbytes, worst.workers_nbytes
    takes = f"would take about {wanted / 1e9:.1f} GB of memory, {room / 1e9:.1f} GB are free;"
    if worst.kept > max(servers, workers):
        raise UserError(f"--workers {worst.n_workers}: --learn {takes} simulate fewer workers or a smaller network, or leave --learn out")
    if servers > workers:
        raise UserError(f"--servers {worst.n_shards}: {takes} simulate fewer")
    most = max(int((0.8 * room - wanted) / (workers / worst.n_workers)) + worst.n_workers, 1)
    raise UserError(f"--workers {worst.n_workers}: {takes} simulate at most about {most:,}")
