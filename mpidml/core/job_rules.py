"""Say which values of a job can be, and which would do nothing: found before anything is read."""

from __future__ import annotations

import math
from dataclasses import fields

from mpidml.core.device import check_wanted
from mpidml.core.errors import UserError, nearest
from mpidml.core.job import AUTO, NCCL, Job
from mpidml.core.sizes import parse_size
from mpidml.core.target import parse_target


def check(job: Job) -> Job:
    """Return `job`, or raise UserError naming the first value that cannot be, or would do nothing."""
    least: dict[str, float] = {"epochs": 0, "batch": 1, "steps": 0, "checkpoint_every": 0, "keep_checkpoints": 1, "accumulate": 1, "patience": 0, "microbatches": 0}
    least |= {"lr_batch": 0, "check_replicas": 0, "average_every": 1, "group": 1, "bucket": 1}
    for name, bound in least.items():
        if getattr(job, name) < bound:
            raise UserError(f"--{name.replace('_', '-')} {getattr(job, name)}: is below {bound:g}; give a whole number from {bound:g} up")
    for name in ("hold_out", "validate", "dropout", "label_smoothing"):
        if not 0 <= getattr(job, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(job, name)}: is not a share; give a number from 0 to below 1")
    for name in ("lr", "wait_limit"):
        value = getattr(job, name)
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name.replace('_', '-')} {value}: is not a positive number; give for example {getattr(Job(), name)}")
    if any(width < 1 for width in job.hidden):
        raise UserError(f"--hidden {','.join(map(str, job.hidden))}: a width is below 1; give positive widths, as 512,512")
    if job.staleness != "" and not str(job.staleness).isdecimal():
        raise UserError(f"--staleness {job.staleness}: is not a whole number from 0 up; give for example 3")
    if not (math.isfinite(job.seconds) and job.seconds >= 0):
        raise UserError(f"--seconds {job.seconds}: is not a number of seconds; give one from 0 up")
    if not (math.isfinite(job.budget) and job.budget >= 0):
        raise UserError(f"--budget {job.budget}: is not a number of bytes a second; give one from 0 up")
    parse_target(job.target)
    check_wanted(job.device)
    if job.backend == "numpy" and job.device.startswith("cuda"):
        raise UserError(f"--device {job.device}: --backend numpy is the CPU's reference; leave one of them out")
    if job.transport == NCCL:
        _check_nccl(job)
    if job.memory:
        parse_size(job.memory, "--memory")
    elif job.scratch:
        raise UserError(f"--scratch {job.scratch}: does nothing without --memory; give a limit, or leave it out")
    if job.memory_per_rank:
        parse_size(job.memory_per_rank, "--memory-per-rank")
        if job.compress or job.device.startswith("cuda"):
            beside = f"--compress {job.compress}" if job.compress else f"--device {job.device}"
            raise UserError(f"--memory-per-rank {job.memory_per_rank}: counts values in the memory of the host, and {beside} has others; leave one of them out")
    for f in fields(job):
        value, choices = getattr(job, f.name), f.metadata["choices"]
        if (choices or f.metadata["plugins"]) and "," in value:
            raise UserError(f"--{f.name.replace('_', '-')} {value}: is a list, and one value is taken here; `compare` takes lists")
        if choices and value not in choices:
            raise UserError(f"--{f.name.replace('_', '-')} {value}: there is no such choice; {nearest(str(value), choices)}")
    if job.test_data and job.hold_out != Job.hold_out:
        raise UserError(f"--hold-out {job.hold_out}: does nothing beside --test-data {job.test_data}; leave one of them out")
    if not job.test_data:
        for name in ("test_labels", "unseen"):
            if getattr(job, name) != getattr(Job, name):
                raise UserError(f"--{name.replace('_', '-')} {getattr(job, name)}: does nothing without --test-data; leave it out")
    if job.unseen == "ignore" and job.categories == "codes":
        raise UserError("--unseen ignore: --categories codes has no code for a word that was never seen; use --categories onehot")
    if job.steps and job.epochs:
        raise UserError(f"--epochs {job.epochs}: does nothing beside --steps {job.steps}, which says when to end; leave one of them out")
    if job.keep_checkpoints != Job.keep_checkpoints and not job.checkpoint_every:
        raise UserError(f"--keep-checkpoints {job.keep_checkpoints}: does nothing without --checkpoint-every; give one, or leave it out")
    if job.resume == AUTO and not (job.out and job.checkpoint_every):
        lacks = "--checkpoint-every, without which nothing is saved" if job.out else "--out, the folder in which to go on"
        raise UserError(f"--resume {AUTO}: needs {lacks}; give it")
    if job.requeue and job.resume != AUTO:
        would = f"go on from {job.resume} again" if job.resume else "begin anew"
        raise UserError(f"--requeue: the job's next start would {would}; give --resume {AUTO}{'' if job.resume else ', too'}")
    if job.patience and not job.validate:
        raise UserError(
            f"--patience {job.patience}: needs rows to judge by that are not the test rows, whose score would then be too good; give for example --validate 0.1"
        )
    if job.order != Job.order and not job.budget:
        raise UserError(f"--order {job.order}: does nothing without --budget; give one, or leave it out")
    if job.budget and job.early_push == "on":
        raise UserError("--early-push on: cannot go beside --budget, which sends a gradient in pieces of its own; leave one of them out")
    if job.model == "mlp" and not job.hidden:
        raise UserError("--hidden: names no width; give widths as 512,512, or --model softmax, which has no hidden layers")
    for name in ("hidden", "activation", "dropout") if job.model.endswith(".toml") else ():
        if getattr(job, name) != getattr(Job, name):
            raise UserError(f"--{name}: does nothing in --model {job.model}, which lists its layers itself; leave it out")
    if job.model == "softmax" and job.activation != Job.activation:
        raise UserError(f"--activation {job.activation}: does nothing in --model softmax, which has no hidden layers; use --model mlp")
    return job


def _check_nccl(job: Job) -> None:
    """Refuse what NCCL has no part in: it sums values that lie on GPUs, in an order of its own."""
    if job.strategy != "data_parallel":
        raise UserError(f"--transport nccl: sums gradients on GPUs, which --strategy {job.strategy} does not do; give --strategy data_parallel, or leave it out")
    if job.device == "cpu" or job.backend == "numpy":
        where = "--device cpu" if job.device == "cpu" else "--backend numpy"
        raise UserError(f"--transport nccl: sums on GPUs, {where} computes on none; give --device cuda, or leave it out")
    if job.deterministic:
        raise UserError("--deterministic: --transport nccl sums in an order that NCCL chooses; leave one of them out")
    if job.compress:
        raise UserError(f"--compress {job.compress}: sends codes by MPI, --transport nccl sums values; leave one of them out")
    if job.progress_thread == "on":
        raise UserError("--progress-thread on: has gradients in the memory of the host, --transport nccl sums them on GPUs; leave one of them out")
