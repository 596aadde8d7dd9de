"""Propose how to run a job: what its layers cost is measured on this machine, every way to use the ranks is timed, the fastest is written down.

    python -m mpidml plan --ranks 64 --hosts 8 --hidden 2048,2048

    layers profiled here, or given rates -> costs -> search over grids, schedules, microbatches -> plan.toml, which `train --config` runs, plan.json
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from mpidml.core import plugins
from mpidml.core.checking import guarded
from mpidml.core.errors import UserError
from mpidml.core.grid import parse_grid
from mpidml.core.job import OF_STAGES, Job
from mpidml.core.plan_request import NAMES, PlanRequest, asked
from mpidml.core.share_cost import line
from mpidml.core.sizes import parse_size
from mpidml.nn.network import Network
from mpidml.nn.parts import NetParts
from mpidml.nn.split import mix
from mpidml.optim.base import make_chain
from mpidml.planner import table
from mpidml.planner.candidate import Candidate, Grid, candidates, factorisations
from mpidml.planner.layout import why_not
from mpidml.planner.machine import Link, Machine
from mpidml.planner.price import Cost, Costs, Priced, Pricer, Task, made
from mpidml.planner.search import Found, search
from mpidml.runtime import grid_rules
from mpidml.runtime.agree import agree
from mpidml.runtime.arithmetic import compiled
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import Dataset, load
from mpidml.runtime.info import pingpong
from mpidml.runtime.net import build_net
from mpidml.runtime.outputs import RunFolder, default_out, to_toml
from mpidml.runtime.own_links import needs_whole
from mpidml.runtime.payload import refuse_sparse
from mpidml.runtime.profiling import counted, profiles, written
from mpidml.runtime.rank_memory import FLAG
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.scoring import BLOCK
from mpidml.runtime.summary import say
from mpidml.runtime.threads import one_thread
from mpidml.sim import data_parallel

MOST_ROWS, FEW = 256, 8
"""Rows for which layers are measured at most, and the part of them for which they are measured, too."""
REPEATS = 5
"""Of which the median counts."""
MOST_VALUES = 1 << 24
"""Weights whose update is measured at most."""


def plan(values: Mapping[str, Any], comm: CountedComm | None = None, quiet: bool = False, write: bool = True) -> dict[str, Any]:
    """Return what plan.json holds, on every rank, for `values`: fields of `PlanRequest` and `Job` (Collective on comm).

    Layers are measured by rank 0 alone; on several ranks what is between the first and the last one is measured, too. UserError for what cannot be.
    """
    with given_or_all(comm) as ranks, one_thread():  # a rank is a core
        request, job = agree(ranks, lambda: asked(values))
        schedules, grids = agree(ranks, lambda: (_schedules(job, values), _grids(request, job, _of_stages(job, values))))
        agree(ranks, lambda: _check_sync(job))
        agree(ranks, lambda: _check_collective(job))
        data = load(job, ranks)
        agree(ranks, lambda: refuse_sparse(data, "plan"))
        net = agree(ranks, lambda: build_net(job, data, "numpy"))
        folder = agree(ranks, lambda: _folder(job) if ranks.rank == 0 and write else None)
        net = build_net(job, data, compiled(job, ranks, quiet))
        measured = pingpong(ranks.mpi, ranks.size - 1) if ranks.size > 1 and not {"host_latency", "host_bandwidth"} & {*values} else None
        link = measured if ranks.one_host else None
        what = schedules, grids
        found = agree(ranks, lambda: _found(request, job, values, data, net, what, link, folder, quiet) if ranks.rank == 0 else None)
        result: dict[str, Any] = ranks.bcast(found)
        return result


def _found(
    request: PlanRequest, job: Job, values: Mapping[str, Any], data: Dataset, net: Network, what: tuple[list[str], list[Grid]],
    link: tuple[float, float] | None, folder: RunFolder | None, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    speak = say if not quiet else lambda text: None
    schedules, grids = what
    chain = make_chain(job.optimizer, job.rate)
    links, after = chain.split()
    n_cores = request.cores or len(os.sched_getaffinity(0))
    inside = Link(request.host_latency, request.host_bandwidth) if link is None else Link(*link)
    machine = Machine(request.ranks, request.hosts, n_cores, inside, Link(request.latency, request.bandwidth), request.wake)
    costs = costs_of(request, net, min(job.batch, len(data.x)), after)
    owns = links is None if job.deterministic else not needs_whole(links)
    task = Task(min(job.batch, len(data.x)), chain.state_per_byte(net.dtype), owns, job.collective, BLOCK, job.transport != "auto")
    pricer = Pricer(task, machine, costs, NetParts(net))
    began = time.perf_counter()
    grids = grids if job.grid or _of_stages(job, values) else list(dict.fromkeys([*grids, (1, 1, 1)]))  # one rank alone may be faster than all
    listed = list(candidates(grids, task.batch, schedules, job.microbatches, _mixes(request, job, net)))
    if not listed:
        raise UserError(f"--microbatches {job.microbatches}: no grid's share of --batch {job.batch} has as many samples; give fewer, or a larger batch")
    limit = float(parse_size(job.memory_per_rank, FLAG)) if job.memory_per_rank else math.inf
    found = search(pricer, listed, limit, refused=_refused(job, request.hosts > 1), recompute=job.recompute)
    seconds = time.perf_counter() - began
    for text in _sources(request, values, machine, link is not None, net, costs):
        speak(text)
    speak(f"{len(listed):,} candidates in {seconds:.1f} s, of which {len(found.best) + len(found.others):,} had to be timed\n")
    speak("\n".join(table.rows(found.best, job.batch, len(data.x))))
    if text := table.left_out(found):
        speak(f"\n{text}")
    best = found.best[0]
    kept = {name: value for name, value in values.items() if name.replace("-", "_") not in (*NAMES, *OF_STAGES, "out")} | chosen(best)
    n_ranks = best.candidate.n_ranks
    if folder is not None:
        line = f"mpirun -n {n_ranks} python -m mpidml train --config {folder.path / 'plan.toml'}"
        result = _result(request, machine, costs, found, job)
        folder.create()
        folder.write_json("plan.json", result)
        folder.write_text("plan.toml", f"# {line}\n{to_toml(kept)}")
        speak(f"\nwritten: {folder.path}/ (plan.toml, plan.json); run it by\n{line}")
        return result
    return _result(request, machine, costs, found, job)


def chosen(best: Priced) -> dict[str, Any]:
    """Return the fields of a job that run a candidate."""
    of = best.candidate
    if of.is_plain:
        return {"strategy": of.strategy} | ({"accumulate": of.microbatches} if of.microbatches > 1 else {})
    found: dict[str, Any] = {"strategy": of.strategy, "grid": of.grid, "microbatches": of.microbatches, "recompute": of.recompute}
    found |= {"mix": of.mix} if of.mix else {}
    return found | ({"schedule": of.schedule, "partition": ",".join(map(str, best.partition))} if of.pipe > 1 else {})


def _result(request: PlanRequest, machine: Machine, costs: Costs, found: Found, job: Job) -> dict[str, Any]:
    layers = [{"forward": list(forward), "backward": list(backward)} for forward, backward in costs.layers]
    said: dict[str, Any] = {"ranks": request.ranks, "hosts": request.hosts, "cores": machine.n_cores, "wake": machine.wake}
    said |= {"inside": list(machine.inside), "between": list(machine.between)}
    return said | {"update_seconds_per_byte": costs.update, "add_seconds_per_byte": costs.add, "layers": layers} | table.everything(found, job.batch)


def _schedules(job: Job, values: Mapping[str, Any]) -> list[str]:
    """Return the schedules that are looked at: the one that is given, or all that end a batch by a flush."""
    names = [job.schedule] if "schedule" in values else [f"{name}:2" if made(name).n_chunks > 1 else name for name in plugins.names("mpidml.schedules")]
    found = [name for name in names if made(name).trains and not _every(name)]
    if not found:
        raise UserError(f"--schedule {job.schedule}: ends no batch by a flush, and a plan counts seconds of a batch; give another, as one_f_one_b, or leave it out")
    return found


def _every(name: str) -> int:
    with guarded(f"--schedule {name}", "update_every"):
        try:
            return made(name).update_every(4)
        except ValueError:
            return 1


def _of_stages(job: Job, values: Mapping[str, Any]) -> str:
    """Return the flag that is given and does nothing without several stages, "" where none is."""
    return f"--schedule {job.schedule}" if "schedule" in values else "--recompute" * job.recompute


def _grids(request: PlanRequest, job: Job, of_stages: str) -> list[Grid]:
    """Return the grids that are looked at: those with several stages alone where a flag is given that is `of_stages`; UserError where there are none."""
    sizes = parse_grid(job.grid, request.ranks).sizes if job.grid else {}
    found = [(sizes["data"], sizes["pipe"], sizes["tensor"])] if job.grid else list(factorisations(request.ranks))
    if of_stages and job.mix:
        raise UserError(f"{of_stages}: is for several stages, and --mix {job.mix} for one that replicas share out; leave one of them out")
    found = [each for each in found if each[1] > 1 or not of_stages]
    if not found:
        where = f"--grid {job.grid}" if job.grid else f"--ranks {request.ranks}"
        raise UserError(f"{of_stages}: is for several stages, and {where} has one; leave it out, or give more on the pipe")
    return found


def _mixes(request: PlanRequest, job: Job, net: Network) -> list[str]:
    """Return the mixes that are looked at: the one that is given alone, or none and, of each layer that has half of the weights, the one that cuts it."""
    if job.mix:
        grid_rules.cut_layers(job, parse_grid(job.grid or f"data={request.ranks}", request.ranks))
        return [job.mix]
    return ["", *mix.dominant(net)]


def _check_sync(job: Job) -> None:
    """Refuse what makes replicas wait less, or answers for some of them: no candidate has it."""
    if job.policy() != Job.sync or job.group != Job.group:
        flag = f"--sync {job.policy()}" if job.policy() != Job.sync else f"--group {job.group}"
        raise UserError(f"{flag}: a plan is of training in step, by sums alone; leave it out here, and compare it by train or compare")


def _check_collective(job: Job) -> None:
    """Refuse a collective whose price is not known."""
    try:
        data_parallel.check("data_parallel", job.collective, False)
    except UserError:
        plugins.load("mpidml.collectives", job.collective.partition(":")[0])
        known = ", ".join(("auto", *data_parallel.CHOSEN))
        raise UserError(f"--collective {job.collective}: what it costs is not written down as rounds; plan by {known} or tree") from None


def _folder(job: Job) -> RunFolder:
    """Return where the plan goes; UserError where that cannot be."""
    path = Path(job.out or f"{default_out(datetime.now())}-plan")
    folder = RunFolder.prepare(path)
    if (path / "plan.toml").exists():
        raise UserError(f"--out {path}: the folder holds another plan; choose another --out or remove it")
    return folder


def _refused(job: Job, several: bool) -> Callable[[Candidate], str]:
    """Return what asks a candidate's strategy whether it can run: its answer without its ranks is that with them."""

    @cache
    def ask(of: Candidate) -> str:
        values = chosen(Priced(of, 0.0, 0.0, 0.0, 0.0, ())) | {"out": ""}
        values |= {} if of.is_plain else {"partition": Job.partition}
        if of.is_plain:  # whose flags of stages are part of what is asked for, where others are looked at
            values |= {"grid": "", "mix": "", "schedule": Job.schedule, "microbatches": 0, "recompute": False}
        try:
            return why_not(job.with_values(values, "plan"), of.n_ranks, several)
        except UserError as error:
            return str(error)

    return lambda of: ask(of._replace(microbatches=1))


def costs_of(request: PlanRequest, net: Network, batch: int, after: Any) -> Costs:
    """Return what layers cost, measured here unless rates are given."""
    itemsize = net.dtype.itemsize
    rows = max(1, min(batch, MOST_ROWS))
    update, add = _update_seconds(net, after)
    if request.apply:
        update = add = request.apply / max(1, net.n_params * itemsize)
    if request.flops_per_second:
        rate = request.flops_per_second
        layers = tuple((Cost(0.0, p.forward_seconds / rate), Cost(0.0, p.backward_seconds / rate)) for p in counted(net, 1))
        return Costs(layers, update, add, rows)
    few = max(1, rows // FEW)
    tables = {n: [profiles(net, n) for _ in range(REPEATS)] for n in {rows, few}}
    found = []
    for i in range(len(tables[rows][0])):
        at = {n: [median(each[i][half] for each in of) for half in (0, 1)] for n, of in tables.items()}
        forward, backward = (Cost(*line(few, at[few][half], rows, at[rows][half])) for half in (0, 1))
        found.append((forward, backward))
    return Costs(tuple(found), update, add, rows)


def _update_seconds(net: Network, after: Any) -> tuple[float, float]:
    """Return the seconds for each byte of weights of an update by the optimizer, and of adding up a gradient."""
    n = min(max(net.n_params, 1), MOST_VALUES)
    w, g = written(n, net.dtype), written(n, net.dtype)
    state = after.init(n, net.dtype)
    best = [float("inf")] * 2
    for step in range(1, REPEATS + 1):
        began = time.perf_counter()
        after.apply(net.backend, w, w, g, state, step)
        between = time.perf_counter()
        net.backend.add(w, g)
        best = [min(best[0], between - began), min(best[1], time.perf_counter() - between)]
    return best[0] / w.nbytes, best[1] / w.nbytes


def _sources(request: PlanRequest, values: Mapping[str, Any], machine: Machine, link_measured: bool, net: Network, costs: Costs) -> list[str]:
    """Say what was measured and what assumed."""
    compute = 1e3 * sum(cost.seconds(costs.rows) for each in costs.layers for cost in each)
    given = {name.replace("-", "_") for name in values}
    layers = "by --flops-per-second" if request.flops_per_second else "measured on this machine"
    update = "by --apply" if request.apply else "measured"
    lines = [
        f"layers: {compute:.3g} ms for forward and backward of {costs.rows} rows ({layers}); "
        f"update of {net.n_params:,} weights: {1e3 * costs.update * net.n_params * net.dtype.itemsize:.3g} ms ({update})"
    ]
    per_host = request.ranks // request.hosts
    cores = f"{machine.n_cores} core(s) ({'given' if request.cores else 'as here'})"
    wake = f": {per_host} ranks share them, and wake after {machine.wake * 1e6:.3g} us ({'given' if 'wake' in given else 'assumed'})"
    lines.append(f"ranks: {request.ranks} on {request.hosts} host(s) of {cores}" + wake * (per_host > machine.n_cores))

    def told(link: Link, how: str) -> str:
        rate = f"{link.bytes_per_second / 1e9:.3g} GB/s" if link.bytes_per_second else "payloads in no time"
        return f"{link.latency * 1e6:.3g} us, {rate} ({how})"

    if per_host > 1:
        here = {"host_latency", "host_bandwidth"} & given
        how = "measured" if link_measured else "given" if len(here) == 2 else "in part given" if here else ""
        how = how or "assumed; mpirun -n 2 python -m mpidml plan measures it"
        lines.append(f"inside a host: {told(machine.inside, how)}")
    if request.hosts > 1:
        there = {"latency", "bandwidth"} & given
        lines.append(f"between hosts: {told(machine.between, 'given' if len(there) == 2 else 'in part given' if there else 'assumed')}")
    return lines
