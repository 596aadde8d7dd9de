"""Say what of a job servers and workers cannot do together, before anything is read."""

from __future__ import annotations

from mpidml.core.errors import UserError
from mpidml.core.idle import idle
from mpidml.core.job import Job
from mpidml.optim.base import make_chain
from mpidml.sync.base import SyncPolicy


def check_rules(job: Job, policy: SyncPolicy) -> None:
    """Refuse flags that contradict each other under the policy, and those of other strategies."""
    job.refuse(idle("parameter_server", grouped=job.group > 1), "--strategy parameter_server, whose servers sum")
    if job.deterministic and not policy.repeatable:
        raise UserError(f"--deterministic: {job.sync} cannot repeat, its reads depend on timing; use bsp or ssp")
    job.check_repeats({"--assign dynamic": job.assign == "dynamic", "--target": job.target and not job.patience, "--seconds": job.seconds})
    if job.deterministic and job.reads == "eager" and (policy.bound or 0) > 1:
        raise UserError("--deterministic: with --reads eager a staleness above 1 depends on when rows arrive; use --reads fresh or cached")
    if job.reads == "cached" and policy.bound is None:
        raise UserError(f"--reads cached: under {job.sync} nothing says when a copy is too old, so it would never be read anew; use fresh or eager")
    if job.deterministic and job.budget:
        raise UserError("--deterministic: --budget cannot repeat, what it lets through depends on timing; leave one of them out")


def check_workers(job: Job, policy: SyncPolicy, n_workers: int, n_computing: int) -> None:
    """Refuse a batch that so many computing ranks cannot share, a policy that needs more workers, and links that measure a sum of which each has a part."""
    job.check_workers(n_computing)
    if job.optimize == "servers" and n_workers > 1 and any(link.scope == "tensor" for link in make_chain(job.optimizer, job.rate).links):
        raise UserError(f"--optimizer {job.optimizer}: measures the summed gradient of each tensor, of which a server has a part; use --strategy data_parallel")
    try:
        policy.needed(n_workers)
    except ValueError as error:
        raise UserError(f"--sync {job.sync}: {error}") from None


def check_early(job: Job, is_possible: bool) -> None:
    """Refuse gradients that are to be pushed layer by layer where that cannot be."""
    if job.early_push == "on" and not is_possible:
        raise UserError(
            "--early-push on: needs several ranks, the optimizer on the servers, no link such as clip that needs the whole gradient, no gate in the policy,"
            " no --group; use auto"
        )
