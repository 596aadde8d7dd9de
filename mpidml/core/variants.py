"""Turn one description with lists into the jobs that it means: every combination of the values of every flag that was given a list.

    --sync bsp,ssp:3 --servers colocated,1      bsp, servers colocated | bsp, servers 1 | ssp:3, servers colocated | ssp:3, servers 1
    --grid 'data=2,pipe=2; tensor=4'            grid data=2,pipe=2 | grid tensor=4         a value that may hold commas itself
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from math import prod
from typing import Any, NamedTuple

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.idle import idle
from mpidml.core.job import STAGED, Job, members

LISTED = tuple(f.name for f in fields(Job) if "one" not in f.metadata["groups"])
WITH_COMMAS = tuple(name for name in LISTED if name in members("commas"))
MOST_VARIANTS = 64
ONE_PROCESS = "one process"
"""The name of the variant that `alone` makes."""


class Variant(NamedTuple):
    """One job of several, and what tells it from the others."""

    name: str
    job: Job


def several(value: Any, between: str = ",") -> list[Any] | None:
    """Return the values of a list (TOML, or text with commas, or what else is `between` them); None for a single value."""
    if isinstance(value, str) and between in value:
        return [part.strip() for part in value.split(between)]
    return list(value) if isinstance(value, list | tuple) else None


def expand(values: Mapping[str, Any], where: str) -> list[Variant]:
    """Return the variants that `values` (field name -> value or list) mean, in the order of the lists.

    Where several strategies are named, a flag that decides nothing under some of them is for the others alone, and these have one variant for all of
    its values. UserError for a list where none is taken, an empty one or one with a value twice, and for what `Job` itself refuses.
    """
    lists: dict[str, Sequence[Any]] = {}
    single: dict[str, Any] = {}
    for raw, value in values.items():
        name = raw.replace("-", "_")
        if name in ("checkpoint_every", "keep_checkpoints", "resume", "requeue"):
            raise UserError(f"{where}: {raw}: what is compared or simulated is not saved to go on with; leave it out")
        if name == "patience" and where == "simulate":
            raise UserError(f"{where}: {raw}: a simulation does not pause to look; leave it out")
        found = several(value, ";" if name in WITH_COMMAS else ",")
        if found is None or (name in members("commas") and name not in WITH_COMMAS):
            single[name] = value
            continue
        if name not in LISTED and name in {f.name for f in fields(Job)}:
            raise UserError(f"{where}: {raw}: is the same for all that are compared, '{_text(value)}' is a list; give one value")
        how = "semicolons, as a;b" if name in WITH_COMMAS else "commas, as bsp,ssp:3"
        if not all(str(v) for v in found) or not found:
            raise UserError(f"{where}: {raw}: '{_text(value)}' has an empty value; give values joined by {how}")
        if len(set(map(str, found))) < len(found):
            raise UserError(f"{where}: {raw}: '{_text(value)}' names a value twice; name each once")
        lists[name] = found
    if (n := _count(lists, single)) > MOST_VARIANTS:
        raise UserError(f"{where}: the lists make {n:,} variants, more than {MOST_VARIANTS}; shorten them")
    variants: list[Variant] = []
    every: set[tuple[tuple[str, str], ...]] = set()
    for combination in product(*lists.values()):
        meant = dict(zip(lists, combination, strict=True))
        left_out = _left_out(lists, single, meant)
        chosen = {name: value for name, value in meant.items() if name not in left_out}
        if (known := tuple((name, str(value)) for name, value in chosen.items())) in every:
            continue
        every.add(known)
        given = {name: value for name, value in single.items() if name not in left_out}
        job = Job().with_values(given | chosen, where).checked()
        words = [str(v) if n in ("sync", "strategy", "optimizer") else f"{n.replace('_', '-')} {v}" for n, v in chosen.items()]
        variants.append(Variant(", ".join(words) or job.policy(), job))
        if (twin := next((v.name for v in variants[:-1] if _same(v.job, job)), None)) is not None:
            raise UserError(f"{where}: '{twin}' and '{variants[-1].name}' are the same job; name each once")
    return variants


def _left_out(lists: Mapping[str, Sequence[Any]], single: Mapping[str, Any], meant: Mapping[str, Any]) -> set[str]:
    """Return the flags that decide nothing under the strategy that is `meant`, but something under another one of the list."""
    grouped = str({**single, **meant}.get("group", Job.group)) != str(Job.group)
    return {n for n in idle(meant.get("strategy", ""), grouped) if any(n not in idle(other, grouped) for other in lists.get("strategy", ()))}


def _count(lists: Mapping[str, Sequence[Any]], single: Mapping[str, Any]) -> int:
    """Return how many variants the lists make, before any is built: under each strategy the product of the lengths of the lists that are for it."""
    found: dict[tuple[tuple[str, str], ...], int] = {}
    heads = {name: lists[name] for name in ("strategy", "group") if name in lists}
    for combination in product(*heads.values()):
        meant = dict(zip(heads, combination, strict=True))
        left_out = _left_out(lists, single, meant)
        known = tuple((name, str(value)) for name, value in meant.items() if name not in left_out)
        found[known] = prod(len(values) for name, values in lists.items() if name not in heads and name not in left_out)
    return sum(found.values())


def _same(a: Job, b: Job) -> bool:
    """Tell whether two jobs are one, though their policy may be written in two ways, as ssp and ssp:1."""
    if replace(a, sync=b.sync, staleness=b.staleness) != b:
        return False
    one, other = (plugins.make("mpidml.sync", job.policy()) for job in (a, b))
    return type(one) is type(other) and vars(one) == vars(other)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value))


def alone(job: Job) -> Job:
    """Return `job` for one process: no policy, no servers, no grid, and of injected slowness only what slows every worker."""
    slowdown = job.slowdown if job.slowdown.startswith("exponential") else ""
    plain = {"sync": "bsp", "staleness": "", "servers": "colocated", "assign": "static", "reads": "fresh", "early_push": "auto", "slowdown": slowdown}
    plain |= {"budget": "0", "order": "fifo", "progress_thread": "auto", "memory_per_rank": ""}  # which limits a rank of many
    plain |= {"compress": ""} if job.transport == "auto" else {}  # nothing is sent inside a host
    if job.strategy in STAGED:
        plain |= {"grid": "data=1", "partition": Job.partition, "replicas": ""}
    return job.with_values(plain, "one process")
