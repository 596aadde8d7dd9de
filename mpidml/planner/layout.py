"""Ask a job's strategy whether it can run on so many ranks, without them: its answer is that with them."""

from __future__ import annotations

from typing import Any

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.sim.ranks import VirtualRanks


def laid_out(job: Job, n_ranks: int, several: bool = True) -> Any:
    """Return the strategy of a job laid out on `n_ranks`; UserError says why it cannot be, neither inside a host nor, where there may be, on `several`."""
    strategy = plugins.load("mpidml.strategies", job.strategy)
    ranks = VirtualRanks(n_ranks)
    try:
        return strategy(job, ranks)
    except UserError:
        ranks.one_host = n_ranks == 1 or not several
        if ranks.one_host:
            raise
    try:
        return strategy(job, ranks)
    except UserError:
        return strategy(job, VirtualRanks(n_ranks))  # which raises what is wrong inside a host


def why_not(job: Job, n_ranks: int, several: bool = True) -> str:
    """Say why a job cannot run on so many ranks; "" where it can."""
    try:
        laid_out(job, n_ranks, several)
    except UserError as error:
        return str(error)
    return ""
