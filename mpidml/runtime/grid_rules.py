"""Say what goes on a grid of ranks, and what does not, before anything is read."""

from __future__ import annotations

from mpidml.collectives.base import FOLDER
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.grid import ProcessGrid, parse_grid
from mpidml.core.job import AUTO, Job
from mpidml.core.turns import TurnGrid, parse_replicas
from mpidml.nn import models
from mpidml.nn.split import mix
from mpidml.runtime.net import net_text


def laid(job: Job, n_ranks: int, axis: str) -> ProcessGrid:
    """Return where the ranks of a job lie, all along `axis` unless it says otherwise; those of --replicas auto at first along one stage. UserError where they cannot."""
    if not job.replicas:
        return parse_grid(job.grid or f"{axis}={n_ranks}", n_ranks)
    where = f"--replicas {job.replicas}"
    if job.strategy != "pipeline":
        raise UserError(f"{where}: is for stages of --strategy pipeline, and --strategy {job.strategy} was given; leave one of them out")
    job.refuse(("grid", "mix", "compress"), f"{where}, which lays stages on ranks by itself")
    if job.replicas == AUTO:
        job.refuse(("partition",), f"{where}, which cuts the layers, too")
        job.check_repeats({where: True})
        return TurnGrid((n_ranks,))
    replicas = parse_replicas(job.replicas)
    if sum(replicas) != n_ranks:
        raise UserError(f"{where}: are {sum(replicas)} ranks, and {n_ranks} were started; start {sum(replicas)}, or give numbers that add up to {n_ranks}")
    return TurnGrid(replicas)


def summing(job: Job) -> str:
    """Return by which collective gradients of replicas are summed; UserError for one that sums nothing, or uses memory that is not to be shared."""
    found = job.collective
    if found == Job.collective:
        found = "ring" if job.deterministic else "auto:memory=false" if job.transport == "mpi" else found
    if not plugins.make(FOLDER, found).exact:
        raise UserError(f"--collective {job.collective}: does not sum over all ranks; use one of ring, rabenseifner, tree, mpi, auto")
    if job.transport == "mpi" and job.collective.partition(":")[0] in ("shared", "hierarchical"):
        raise UserError(f"--transport mpi: uses no shared memory, --collective {job.collective} does; leave one of them out")
    return found


def cut_layers(job: Job, grid: ProcessGrid) -> frozenset[int]:
    """Return which layers of the job's network --mix has cut into parts over the ranks that share out a batch; none without it."""
    if not job.mix:
        return frozenset()
    if grid.n_ranks > grid.sizes["data"]:
        raise UserError(f"--mix {job.mix}: lays layers over the ranks of one axis, data, and the grid is {grid}; give --grid data={grid.n_ranks}, or leave --mix out")
    plan = models.layers_of(job, net_text(job))
    return mix.cut_layers(job.mix, [*plan.layers, *(layer for head in plan.heads for layer in head.layers)])


def asides(job: Job, grid: ProcessGrid, pushes: bool) -> str:
    """Say which flags that were given decide nothing on this grid, whose replicas push to servers or not: no errors, as scripts run one command on grids of any shape."""
    sums = not pushes and (job.replicas or grid.sizes["data"] > 1 or grid.sizes["tensor"] > 1)
    summed = f"; --collective {job.collective} changes nothing, no ranks sum" * (job.collective != Job.collective and not sums)
    return summed + "; --no-tune changes nothing, no gradient is stale" * (not job.tune and not pushes)


def told(cut: frozenset[int]) -> str:
    """Say which layers are cut."""
    return f"layer{'s' * (len(cut) > 1)} {', '.join(str(i + 1) for i in sorted(cut))} in parts over all ranks"
