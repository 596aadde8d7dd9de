"""Run a job's roles on virtual clocks at any number of workers: costs from a short real run or given, one policy or several.

    mpirun -n 2 python -m mpidml simulate --sync bsp,ssp:3,asp --workers 10000 --clocks 100

    short run on the ranks at hand -> cost.json, and the same run simulated beside it    (unless costs are given)
    each variant on virtual clocks                                                       rank 0 alone, the others sleep
    -> summary.json, metrics.jsonl, report.png as `train` writes them; for several variants compare.json and compare.png besides
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from mpidml import virtual_training
from mpidml.core import plugins
from mpidml.core.cost import CostModel
from mpidml.core.errors import UserError
from mpidml.core.job import NCCL, Job, members
from mpidml.core.placement import computing
from mpidml.core.simulation import CLOCKS, NAMES, Simulation
from mpidml.core.slowdown import Slowdown
from mpidml.core.target import parse_target
from mpidml.core.variants import ONE_PROCESS, Variant, alone, expand, several
from mpidml.fitting import FIT_CLOCKS, fit, fit_alone, of_one_process
from mpidml.nn.network import Network
from mpidml.runtime import comparison, device, straggler
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import Dataset, check_target, load
from mpidml.runtime.info import memory_nbytes
from mpidml.runtime.net import build_net
from mpidml.runtime.outputs import RunFolder, default_out, to_toml
from mpidml.runtime.payload import SIMULATED_WHOLE, net_of, payload, refuse_sparse
from mpidml.runtime.progress import Progress, launcher_terminal
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.summary import say
from mpidml.sim import data_parallel, memory
from mpidml.sim.parameter_server import Plan, Simulated
from mpidml.sim.parameter_server import simulate as run
from mpidml.sim.ranks import VirtualRanks
from mpidml.sim.summary import of_job, sentence, too_many
from mpidml.sync.base import make_policy

SAMPLES_A_WORKER = 16
CROSSES = "use --scale standard, or give --bandwidth 0"
NO_LINK = ", no bandwidth: these ranks share a host, so payloads take no time; --bandwidth gives a link's"
ASSUMED = "; assumed: its compute is that of all shares, one after the other"
MOST_SIZE = 1 << 40
NO_PART = ("epochs", "steps", "trace", "tensorboard", "wait_limit")
PLANNED = ("strategy", "collective", "sync", "staleness", "servers", "assign", "slowdown", "seconds", "batch", "seed", "report", "out")
"""What a simulation of sizes takes from the job; a fit runs the job itself."""
PAYLOAD = (*members("data"), "model", "hidden", "loss", "dtype", "compress", "transport")
VARIED = ("strategy", "collective", "sync", "staleness", "servers", "assign", "slowdown")


def simulate(values: Mapping[str, Any], comm: CountedComm | None = None, quiet: bool = False, write: bool = True) -> list[dict[str, Any]]:
    """Simulate every variant that `values` mean (fields of `Job` and `Simulation` -> a value or a list); return their summaries (Collective on comm).

    The first one of several is the same job in one process. UserError for anything that cannot be, before any run.
    """
    with given_or_all(comm) as ranks:
        return _simulate(values, ranks, quiet, write)


def _simulate(values: Mapping[str, Any], comm: CountedComm, quiet: bool, write: bool) -> list[dict[str, Any]]:
    leads = comm.rank == 0
    speak = say if leads and not quiet else lambda text: None
    scale = agree(comm, lambda: Simulation().with_values({k: v for k, v in values.items() if k in NAMES}, "simulate"))
    rest = {k: v for k, v in values.items() if k not in NAMES}
    rest.setdefault("batch", SAMPLES_A_WORKER * scale.workers)
    variants = agree(comm, lambda: expand(rest, "simulate"))
    cost = agree(comm, lambda: _given(scale, values))
    agree(comm, lambda: _check_lists(rest, scale))
    plans = agree(comm, lambda: [planned(scale, job, CostModel() if cost is None else cost, None) for _, job in variants])
    agree(comm, lambda: fits_memory(plans))
    agree(comm, lambda: _check(variants, scale, plans))
    if cost is None:  # the fit would find it, but after the folder is made
        device.of_job(variants[0].job, comm)
    data = load(variants[0].job, comm) if scale.learn else None
    if data is not None:
        refuse_sparse(data, "simulate", SIMULATED_WHOLE)
        check_target(variants[0].job, data)
        nets = agree(comm, lambda: [build_net(job, data, "numpy") for _, job in variants])
        agree(comm, lambda: fits_memory([virtual_training.with_memory(*each) for each in zip(plans, (job for _, job in variants), nets, strict=True)]))
    crosses = cost is None and "bandwidth" not in values and not comm.one_host
    moves = scale.bandwidth or (cost is not None and cost.bytes_per_second)
    net = net_of(variants[0].job, comm, CROSSES if crosses else SIMULATED_WHOLE) if moves or crosses else None
    folder = agree(comm, lambda: RunFolder.prepare(variants[0].job.out or default_out(datetime.now())) if leads and write else None)
    agree(comm, lambda: folder.claim(to_toml({k: v for k, v in values.items() if k != "out"})) if folder is not None else None)
    one: CostModel | None = None
    if cost is None:
        cost = _fit(scale, values, variants[0].job, net, comm, speak)
        one = fit_alone(variants[0].job, comm) if len(variants) > 1 and not scale.compute else None
    if leads:
        means = f"compute {cost.mean_of(scale.workers) * 1e3:.3g} ms a clock, latency {cost.latency * 1e6:.3g} us, apply {cost.apply * 1e6:.3g} us"
        link = f", bandwidth {cost.bytes_per_second / 1e9:.3g} GB/s" if cost.bytes_per_second else NO_LINK if scale.fits and "bandwidth" not in values else ""
        speak(f"costs ({cost.source}): {means}{link}")
        if slow := cost.slow(scale.workers):
            speak(slow)
    if cost.samples and cost.samples != (share := max(variants[0].job.batch // scale.workers, 1)):
        speak(f"these costs were measured with {cost.samples} samples a worker and clock, here are {share}: a fit would tell them")
    if idle := _idle(rest, scale, cost):
        why = "virtual clocks decide" if scale.learn else "sizes alone move" if scale.fits else "sizes alone move, and the costs are given"
        speak(f"without effect here: {', '.join(idle)} ({why})")
    if len(variants) > 1 and not variants[0].job.seconds and not variants[0].job.target:
        speak("no --seconds: each run ends with its clocks, so under --assign static each policy ends with its slowest worker")
    entries: list[dict[str, Any]] = []
    if leads:
        entries = _run_all(scale, variants, cost, one, net, data, folder, None if quiet else sys.stdout)
    comm.Barrier()
    result: list[dict[str, Any]] = comm.bcast(entries)
    return result


def _run_all(
    scale: Simulation, variants: list[Variant], cost: CostModel, one: CostModel | None, net: Network | None, data: Dataset | None, folder: RunFolder | None,
    stream: TextIO | None,
) -> list[dict[str, Any]]:
    """Simulate each variant, and before several the job in one process, which costs `one`, where that is known; write and say what came of it."""
    many = len(variants) > 1
    speak = say if stream is not None else lambda text: None
    target = parse_target(variants[0].job.target, variants[0].job.looks_at)
    named = [(name, job, scale) for name, job in variants]
    entries, curves = [], []
    if many:
        named.insert(0, (ONE_PROCESS, alone(variants[0].job), replace(scale, workers=1)))
    taken: dict[str, int] = {}
    for name, job, at in named:
        started = time.perf_counter()
        own = of_one_process(cost, scale.workers, one) if name == ONE_PROCESS else cost
        plan = planned(at, job, own, net)
        if data is None:
            found = of_sizes(job, plan)
            summary, metrics = of_job(job, plan, found, time.perf_counter() - started)
        else:
            progress = None if stream is None else Progress(min(plan.n_clocks, MOST_SIZE) * job.batch, stream, launcher_terminal())
            found, metrics, quality = virtual_training.train(job, plan, data, progress)
            summary = of_job(job, plan, found, time.perf_counter() - started)[0] | quality
            summary["samples_per_second"] = summary["samples"] / found.seconds if summary["samples"] and found.seconds else None
        summary["most_waited_for"] = most = straggler.find(_waits(plan, found), found.seconds, plan.n_workers)
        if most is not None and plan.n_shards and (own.apply or own.message or own.bytes_per_second):
            most["is_straggler"] = False  # it may be the last in a server's queue
        if folder is not None:
            _write(folder if not many else RunFolder(folder.path / comparison.folder_name(name, taken)), summary, metrics, own, job.report)
        entries.append(comparison.entry(name, summary, metrics, target))
        if folder is not None and many:
            folder.write_json("compare.json", entries)
        curves.append(metrics)
        speak(sentence(name, summary) + ASSUMED * (name == ONE_PROCESS and one is None))
        if name != ONE_PROCESS and (many_messages := too_many(plan, found)):
            speak(f"{name}: {many_messages}")
        if most is not None and most["is_straggler"] and not many:
            speak(straggler.sentence(most, None if job.budget else plan.policy.bound))
    if many:
        comparison.tell(folder, entries, curves, target, speak)
    elif folder is not None:
        speak(f"written: {folder.path}/ ({'report.png, ' * variants[0].job.report}summary.json, metrics.jsonl, cost.json)")
    return entries


def _waits(plan: Plan, found: Simulated) -> list[dict[str, Any]]:
    first = 0 if plan.colocated else plan.n_shards
    names = ["server 0", *(f"worker {w}" for w in range(plan.n_workers))]
    return straggler.totals(found.waited, names, [0, *range(first, first + plan.n_workers)], 2 * plan.cost.latency if plan.n_shards else 0.0)


def _idle(values: Mapping[str, Any], scale: Simulation, cost: CostModel) -> list[str]:
    """List the flags that were given and have no part in this simulation."""
    names = [name.replace("-", "_") for name in values]
    part = {name for name in names if name not in (*NO_PART, "shares", "progress_thread", "check_replicas")}
    if not scale.learn and not scale.fits:
        part &= {*PLANNED, *(PAYLOAD if cost.bytes_per_second else ())}
    if values.get("strategy", Job.strategy) != Job.strategy or not (scale.learn or cost.bytes_per_second):
        part.discard("compress")
    if not scale.fits:
        part.discard("device")  # of what is learnt the arithmetic is the CPU's
    return [f"--{name.replace('_', '-')}" for name in names if name not in part]


def _check_lists(values: Mapping[str, Any], scale: Simulation) -> None:
    """Refuse a list of what the costs of a simulation of sizes do not depend on."""
    for name, value in values.items():
        if name == "device" and several(value):
            raise UserError(f"simulate: device: costs are measured on one, '{value}' names several; give one value")
        if several(value) and name.replace("-", "_") not in (*VARIED, *members("commas")) and not scale.learn:
            raise UserError(f"simulate: {name}: the costs are the same for all of '{value}'; give one value, or --learn")


def _check(variants: list[Variant], scale: Simulation, plans: list[Plan]) -> None:
    """Let the strategy look at each job as if all its ranks were here, so that what cannot be is found before anything is written."""
    for (_, job), plan in zip(variants, plans, strict=True):
        strategy = plugins.load("mpidml.strategies", job.strategy)
        if job.transport == NCCL:
            raise UserError("simulate: --transport nccl: what sums on GPUs take is not known here; leave it out")
        if job.strategy != Job.strategy:
            data_parallel.check(job.strategy, job.collective, scale.learn)
            job.refuse(("memory_per_rank",), "simulate; plan counts what a rank takes")
        elif job.compress and any(of.job.strategy != Job.strategy for of in variants):
            raise UserError(f"simulate: --compress {job.compress}: codes to servers and back are known here, sums of codes are not; leave it, or the sums, out")
        ranks = scale.workers + (int(job.servers) if job.servers.isdecimal() else 0)
        strategy(virtual_training.ending(job, plan.n_clocks), VirtualRanks(ranks))


def _given(scale: Simulation, values: Mapping[str, Any]) -> CostModel | None:
    """Return the costs that the flags give; None where they are to be fitted."""
    if scale.cost:
        try:
            found = json.loads(Path(scale.cost).read_text())
        except FileNotFoundError:
            raise UserError(f"--cost {scale.cost}: there is no such file; give the cost.json of a simulation") from None
        except (OSError, ValueError) as error:
            raise UserError(f"--cost {scale.cost}: cannot be read as JSON ({error}); give the cost.json of a simulation") from None
        if not isinstance(found, dict):
            raise UserError(f"--cost {scale.cost}: holds no cost model; give the cost.json of a simulation")
        return scale.over(CostModel.from_mapping(found, scale.cost), values)
    return None if scale.fits else scale.over(CostModel(), values)


def of_sizes(job: Job, plan: Plan) -> Simulated:
    """Simulate what moves sizes alone."""
    return run(plan) if job.strategy == Job.strategy else data_parallel.simulate(plan, job.collective)


def planned(scale: Simulation, job: Job, cost: CostModel, net: Network | None) -> Plan:
    """Return what is simulated; UserError where the job's parts cannot be."""
    if job.group > 1:
        raise UserError(f"simulate: --group {job.group}: to its servers a group is one worker; give the number of groups as --workers, and leave it out")
    policy = make_policy(job.policy())
    try:
        policy.needed(scale.workers)
    except ValueError as error:
        raise UserError(f"--sync {job.sync}: {error}") from None
    if not scale.learn:
        given = {"target": job.target, "reads": job.reads != "fresh", "budget": job.budget, "early_push": job.early_push == "on", "deterministic": job.deterministic}
        for name in (name for name, is_given in given.items() if is_given):
            raise UserError(f"--{name.replace('_', '-')}: has no part in a simulation of sizes alone; give --learn, or leave it out")
    if job.batch < scale.workers:
        raise UserError(f"--batch {job.batch}: is below the {scale.workers} workers; give each at least one sample, or leave it out")
    sums = job.strategy != Job.strategy
    colocated = job.servers == "colocated" and not sums
    if not sums and not colocated and not (job.servers.isdecimal() and int(job.servers) > 0):
        raise UserError(f"--servers {job.servers}: not a number of servers; give 'colocated' or a number from 1 up")
    n_servers = scale.workers if colocated else 0 if sums else int(job.servers)
    moved = payload(job, net, n_servers)
    return Plan(
        policy,
        scale.workers,
        scale.clocks or (MOST_SIZE if job.seconds else CLOCKS),
        cost,
        n_servers,
        moved.values,
        colocated,
        job.assign == "dynamic",
        job.seconds,
        job.seed,
        Slowdown(job.slowdown, scale.workers, job.seed) if job.slowdown else None,
        pushed=moved.pushed,
        answer=moved.answer,
    )


def fits_memory(plans: list[Plan]) -> None:
    """Refuse what this machine has no memory for, by an estimate."""
    memory.check(plans, memory_nbytes())


def _fit(scale: Simulation, values: Mapping[str, Any], job: Job, net: Network | None, comm: CountedComm, speak: Any) -> CostModel:
    """Measure a short run on the ranks at hand, with as many samples a worker as in the simulation; say how well its simulation meets it."""
    share = max(job.batch // scale.workers, 1)
    speak(f"fitting: {FIT_CLOCKS} clocks of {share} samples a worker on {computing(comm.size, job.servers)} worker(s) ...")
    fitted = fit(job, share, comm, scale.latency)
    found: CostModel | None = None
    if fitted is not None:
        found = scale.over(fitted.cost, values)
        n_shards, nbytes = fitted.n_servers or fitted.n_workers, payload(replace(job, compress=""), None if "bandwidth" in values else net, 1).values
        plan = Plan(make_policy("asp"), fitted.n_workers, FIT_CLOCKS, found, n_shards, nbytes, not fitted.n_servers)
        rate = plan.n_workers * FIT_CLOCKS * share / run(plan).seconds
        speak(f"measured {fitted.samples_per_second:,.0f} samples/s, simulated {rate:,.0f} ({rate / fitted.samples_per_second:.2f} times)")
    cost: CostModel = comm.bcast(found)
    return cost


def _write(folder: RunFolder, summary: dict[str, Any], metrics: list[dict[str, Any]], cost: CostModel, draws: bool) -> None:
    folder.create()
    for row in metrics:
        folder.append_metrics(row)
    folder.close()
    folder.write_json("cost.json", cost.mapping())
    if draws:
        from mpidml.runtime.report import draw

        draw(folder.path / "report.png", summary, metrics)
    folder.write_json("summary.json", summary)
