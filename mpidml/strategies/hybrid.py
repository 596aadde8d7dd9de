"""Train a network on a grid of ranks: replicas that share each batch, each of them a pipeline of stages.

    --grid data=2,pipe=2        rank 0 -> rank 1        stages of replica 0
                                  |         |           gradients of a stage are summed over its replicas
                                rank 2 -> rank 3        stages of replica 1
"""

from __future__ import annotations

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.staged import Staged


class Hybrid(Staged):
    """Ranks along the axes that --grid names. Source: Narayanan et al. 2021 (PTD-P)."""

    def __init__(self, job: Job, comm: CountedComm) -> None:
        """Read everything that the job alone decides; UserError names what cannot be."""
        if not job.grid:
            raise UserError(f"--strategy hybrid: needs a grid for its {comm.size} rank(s); give for example --grid data=0,pipe=1, where 0 takes what is left")
        super().__init__(job, comm)
