"""Measure one point of a scaling study on the ranks that were started for it: a few short runs of each kind, and with the fewest ranks what computes cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.job import STAGED, Job
from mpidml.core.plan_request import PlanRequest
from mpidml.core.scale_request import sized
from mpidml.fitting import fit
from mpidml.optim.base import make_chain
from mpidml.plan import costs_of
from mpidml.planner.layout import laid_out, why_not
from mpidml.runtime import device
from mpidml.runtime.agree import agree
from mpidml.runtime.arithmetic import compiled
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import load
from mpidml.runtime.info import pingpong
from mpidml.runtime.net import build_net
from mpidml.runtime.summary import say
from mpidml.scaling.folder import Study
from mpidml.scaling.rows import measured, of_run
from mpidml.strategies.base import train

FEW = 8
"""Costs are measured at a rank's share of the batch, and at so small a part of it."""
FITTED = ("parameter_server", "data_parallel")


def measure(study: Study, kinds: Sequence[str], comm: CountedComm, quiet: bool = False) -> None:
    """Run the kinds that are missing on the ranks of `comm`, and keep them (Collective on comm). UserError for data that cannot be read."""
    n, leads = comm.size, comm.rank == 0
    speak = say if leads and not quiet else lambda text: None
    missing = comm.bcast(study.missing(n, kinds))
    jobs = {kind: sized(study.job, kind, n) for kind in missing}
    refused = {kind: comm.bcast(why_not(job, n)) for kind, job in jobs.items()}
    place = _place(comm)
    if place["shares_cores"] and not study.request.share_cores:
        place["for_cores"] = True
        shared = f"{place['ranks_per_host']} ranks of a host would share {place['cores']} core(s); --share-cores measures them all the same"
        refused = {kind: why or shared for kind, why in refused.items()}
    n_rows = _rows(study.job, comm) if not all(refused.values()) else 0
    refused |= {kind: f"--batch {jobs[kind].batch}: the data have {n_rows:,} training rows" for kind in missing if not refused[kind] and jobs[kind].batch > n_rows}
    wanted = [kind for kind in missing if not refused[kind]]
    link = pingpong(comm.mpi, n - 1) if wanted and n > 1 else None
    if wanted and comm.bcast(_is_first(study, n, kinds)):
        slow = _keep_costs(study, jobs[wanted[0]], comm)
        speak(f"{n} rank(s): costs of computes measured{slow}")
    point: dict[str, Any] = {}
    for i, kind in enumerate(missing):
        if refused[kind]:
            point = {"skipped": refused[kind]}
        elif n > 1 or i == 0:  # one rank has the same job in both kinds
            point = {"link": link, **_runs(study, jobs[kind], comm)}
        if leads:
            study.write_point(n, kind, {**place, **point})
        speak(f"{n} rank(s), {kind}: {'left out: ' + point['skipped'] if 'skipped' in point else told(point, jobs[kind].batch)}")


def told(point: dict[str, Any], batch: int) -> str:
    """Say what was measured in one line."""
    of = measured(point["runs"], batch)
    low, high = 1e3 * of["least_seconds"], 1e3 * of["most_seconds"]
    return f"{1e3 * of['seconds_per_step']:.3g} ms a step ({low:.3g} to {high:.3g}), {of['samples_per_second']:,.0f} samples/s"


def _runs(study: Study, job: Job, comm: CountedComm) -> dict[str, Any]:
    """Return the runs of a point; why there are none, where the strategy refuses what it finds in the data (Collective on comm)."""
    found = []
    for _ in range(study.request.repeat):
        kept: dict[str, Any] = {}
        ranks = CountedComm(comm.mpi)  # its own, so that its windows go with it: the next run needs the memory
        try:
            summary = train(job, ranks, quiet=True, write=False, keep=kept)
        except UserError as error:
            return {"skipped": str(error)}
        finally:
            ranks.free()
        if comm.rank == 0:
            found.append(of_run(summary, kept["metrics"], study.request.warm_up, job.batch))
    return {"runs": comm.bcast(found)}


def _rows(job: Job, comm: CountedComm) -> int:
    """Read the data once and build the network, so that what is wrong with them is no reason to leave a point out; count the training rows."""
    ranks = CountedComm(comm.mpi)
    try:
        device.of_job(job, ranks)
        data = load(job, ranks)
        agree(ranks, lambda: build_net(job, data, "numpy"))
        n = len(data.x)
        data.close()
        return n
    finally:
        ranks.free()


def _place(comm: CountedComm) -> dict[str, Any]:
    """Say on how many hosts the ranks are, and whether those of any share its cores (Collective on comm)."""
    cores = len(set[int]().union(*comm.host.allgather(os.sched_getaffinity(0))))
    each = comm.allgather((comm.rank == comm.leader, comm.host.size, cores))
    crowded = max(((ranks, n) for _, ranks, n in each), key=lambda found: found[0] / found[1])
    return {"hosts": sum(first for first, _, _ in each), "ranks_per_host": crowded[0], "cores": crowded[1], "shares_cores": crowded[0] > crowded[1]}


def _is_first(study: Study, n: int, kinds: Sequence[str]) -> bool:
    """Tell whether these are the fewest ranks that can be measured, of those that are asked for; costs of more ranks do not count."""
    fewer = [m for m in study.request.ranks if m < n and not all(why_not(sized(study.job, kind, m), m) for kind in kinds)]
    return not fewer and not study.costs.get("ranks", n + 1) <= n


def _keep_costs(study: Study, job: Job, comm: CountedComm) -> str:
    """Measure what computes cost, of layers or of a rank's share of a `job` that can run, and keep it; return what there is to say (Collective on comm)."""
    n = comm.size
    if job.strategy in STAGED:
        found, slow = _layers(job, comm), ""
    elif job.strategy in FITTED:
        large = max(job.batch // laid_out(job, n).n_workers, 1)
        small = min(large, max(job.accumulate, large // FEW))
        fits = []
        for share in (large, small):
            ranks = CountedComm(comm.mpi)
            fits.append(fit(job, share, ranks))
            ranks.free()
        found = {name: of.cost.mapping() for name, of in zip(("large", "small"), fits, strict=True) if of is not None}
        slow = fits[0].cost.slow(fits[0].n_workers) if fits[0] is not None else ""
    else:
        return ""
    if comm.rank == 0:
        study.write_costs(n, found)
    return f"; {slow}" if slow else ""


def _layers(job: Job, comm: CountedComm) -> dict[str, Any]:
    """Return on rank 0 what the layers of the network cost there, the others sleep."""
    data = load(job, comm)
    net = build_net(job, data, compiled(job, comm, True))
    found: dict[str, Any] = {}
    if comm.rank == 0:
        _, after = make_chain(job.optimizer, job.rate).split()
        costs = costs_of(PlanRequest(), net, min(job.batch, len(data.x)), after)
        found = {"layers": [[list(forward), list(backward)] for forward, backward in costs.layers], "update": costs.update, "add": costs.add, "rows": costs.rows}
    data.close()
    comm.Barrier()
    return found
