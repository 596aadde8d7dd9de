"""Keep a scaling study in a folder, so that it goes on where it stopped, and tasks of a job array work on it at the same time.

    config.toml              the job, and how often it is run: written by whoever is first, and the same for all
    points/4-strong.json     a number of ranks and a kind: its runs, or why there are none
    points/costs-1.json      what computes cost, measured with the fewest ranks
    scale.json scale.png     made of them, again and again; costs/strong-64.json: what a point was simulated with
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.scale_request import ScaleRequest, asked, studied
from mpidml.runtime.net import NET_FILE, net_text
from mpidml.runtime.outputs import RunFolder, default_out, to_toml

SETTINGS = ("repeat", "warm_up")


class Study:
    """A study's folder, the job that it measures, and what is asked of it now; `draws`: a picture, too."""

    def __init__(self, path: Path, job: Job, request: ScaleRequest, draws: bool = True) -> None:
        self.path, self.job, self.request, self.draws = path, job, request, draws
        self.folder, self.points_folder = RunFolder(path), RunFolder(path / "points")

    def points(self, kind: str) -> dict[int, dict[str, Any]]:
        """Return what is known of a kind, by the number of ranks."""
        names = [path.name for path in self.points_folder.path.glob(f"*-{kind}.json") if re.fullmatch(rf"\d+-{kind}\.json", path.name)]
        return {int(name.partition("-")[0]): self._read(name) for name in sorted(names, key=lambda name: int(name.partition("-")[0]))}

    def missing(self, n_ranks: int, kinds: Sequence[str]) -> list[str]:
        """Return the kinds that are still to be measured on so many ranks; those left out for want of cores, too, where cores may be shared now."""
        found = []
        for kind in kinds:
            point = self.points(kind).get(n_ranks)
            if point is None or (self.request.share_cores and point.get("for_cores")):
                found.append(kind)
        return found

    def write_point(self, n_ranks: int, kind: str, point: Mapping[str, Any]) -> None:
        """Keep a point."""
        self.points_folder.write_json(f"{n_ranks}-{kind}.json", {"ranks": n_ranks, "kind": kind, **point})

    @property
    def costs(self) -> dict[str, Any]:
        """Return what was measured of costs with the fewest ranks; nothing where nothing was yet."""
        found = {int(path.stem.partition("-")[2]): path.name for path in self.points_folder.path.glob("costs-*.json")}
        return self._read(found[min(found)]) if found else {}

    def write_costs(self, n_ranks: int, costs: Mapping[str, Any]) -> None:
        """Keep costs that so many ranks have measured."""
        self.points_folder.write_json(f"costs-{n_ranks}.json", {"ranks": n_ranks, **costs})

    def write_cost(self, kind: str, n_ranks: int, cost: Mapping[str, Any]) -> None:
        """Write what a simulated point was simulated with, for `simulate --cost`."""
        folder = RunFolder(self.path / "costs")
        folder.create()
        folder.write_json(f"{kind}-{n_ranks}.json", cost)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.points_folder.path / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it, and it is measured again") from None
        if not isinstance(found, dict):
            raise UserError(f"{path}: holds no point of a study; remove it, and it is measured again")
        return found


def open_study(values: Mapping[str, Any]) -> Study:
    """Return the study in the folder `out` of `values`, a new one where there is none; UserError where that is one of another job."""
    given = {name.replace("-", "_"): value for name, value in values.items()}
    request, job = asked(given)
    out = str(given.get("out", ""))
    if not out and (request.only or request.table):
        raise UserError(f"--out: names the folder of the study, which --{'only' if request.only else 'table'} needs; give it")
    path = Path(out or f"{default_out(datetime.now())}-scale")
    if not (path / "config.toml").exists():
        if request.table:
            raise UserError(f"--out {path}: holds no study; measure first: python -m mpidml scale --config job.toml --ranks 1,2,4 --out {path}")
        _begin(path, studied(Job()) if job is None else job, request)
    return _checked(path, given, request, job, *_stored(path))


def _begin(path: Path, job: Job, request: ScaleRequest) -> None:
    """Write config.toml, unless another task was first: it appears whole, or is there already."""
    _check_steps(job, request)
    text = net_text(job)
    changed = {name: value for name, value in job.mapping().items() if value != getattr(Job, name)} | {"report": False}
    config = to_toml(changed | {name: getattr(request, name) for name in SETTINGS})
    try:
        RunFolder.prepare(path)
    except UserError:
        if (path / "config.toml").exists():
            return
        raise
    RunFolder(path / "points").create()
    part = path / f".config-{os.uname().nodename}-{os.getpid()}.part"
    part.write_text(config, encoding="utf-8")
    try:
        os.link(part, path / "config.toml")
        if text:
            RunFolder(path).write_text(NET_FILE, text)
    except FileExistsError:
        pass
    finally:
        part.unlink()


def _stored(path: Path) -> tuple[Job, dict[str, int]]:
    try:
        values = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        settings = {name: int(values.pop(name)) for name in SETTINGS}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--out {path}: the folder holds something else than a study; choose another --out") from None
    return studied(Job().with_values(values, str(path / "config.toml"))), settings


def _checked(path: Path, given: Mapping[str, Any], request: ScaleRequest, job: Job | None, stored: Job, settings: Mapping[str, int]) -> Study:
    """Return the stored study, if what is given now is the same."""
    now = stored if job is None else job
    differing = [(name, old, now.mapping()[name]) for name, old in stored.mapping().items() if now.mapping()[name] != old]
    differing += [(name, old, getattr(request, name)) for name, old in settings.items() if name in given and getattr(request, name) != old]
    for name, old, new in differing:
        raise UserError(f"--out {path}: this study was begun with {name} {old!r}, not {new!r}; give the same settings, or another --out")
    copy = path / NET_FILE
    if (text := net_text(stored)) and copy.exists() and copy.read_text(encoding="utf-8") != text:
        raise UserError(f"--out {path}: this study was begun with another {stored.model}, of which {copy} is a copy; give the same one, or another --out")
    request = replace(request, repeat=settings["repeat"], warm_up=settings["warm_up"])
    _check_steps(stored, request)
    return Study(path, stored, request, Job().with_values({name: given[name] for name in ("report",) if name in given}, "scale").report)


def _check_steps(job: Job, request: ScaleRequest) -> None:
    if job.steps <= request.warm_up:
        raise UserError(f"--steps {job.steps}: are no more than --warm-up {request.warm_up}, so none would count; give more, or a shorter warm-up")
