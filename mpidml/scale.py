"""Measure how a job scales, and simulate it side by side: a process without MPI starts the ranks of each point in turn, and makes table and picture of them.

    python -m mpidml scale --config job.toml --ranks 1,2,4 --simulate 16,64,1024 --out study

    mpirun -n 1 ... --only 1 -> points/1-*.json, costs      each a program of its own; a job array starts them by itself
    mpirun -n 2 ... --only 2 -> points/2-*.json
    all points, simulated ones beside them -> scale.json, scale.png, the table
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.scale_request import IDLE, KINDS, sized
from mpidml.planner.layout import why_not
from mpidml.runtime import launch
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.summary import say
from mpidml.runtime.threads import same_threads
from mpidml.scaling import text
from mpidml.scaling.folder import Study, open_study
from mpidml.scaling.point import measure
from mpidml.scaling.rows import Row, measured, rows
from mpidml.scaling.virtual import Virtual

Start = Callable[[Study, int, tuple[str, ...]], None]


def point(values: Mapping[str, Any], comm: CountedComm | None = None, quiet: bool = False) -> None:
    """Measure the point of the ranks that were started, and keep it (Collective on comm)."""
    with given_or_all(comm) as ranks:
        study: Study = ranks.bcast(agree(ranks, lambda: open_study(values) if ranks.rank == 0 else None))  # others may see its files late
        agree(ranks, lambda: _check_size(study, ranks.size))
        if idle := _idle(values) if ranks.rank == 0 and not quiet else "":
            say(idle)
        with same_threads():
            measure(study, study.request.kinds(values), ranks, quiet)


def _idle(values: Mapping[str, Any]) -> str:
    """Say which of the flags that are given do nothing here; "" where each does something."""
    given = {key.replace("-", "_") for key in values}
    idle = [f"--{name.replace('_', '-')}" for name in IDLE if name in given]
    return f"without effect here: {', '.join(idle)} (a study counts steps)" if idle else ""


def _check_size(study: Study, n_ranks: int) -> None:
    if study.request.only != n_ranks:
        raise UserError(f"--only {study.request.only}: {n_ranks} rank(s) were started; start {study.request.only}, or give --only {n_ranks}")


def scale(values: Mapping[str, Any], start: Start | None = None, quiet: bool = False) -> dict[str, Any]:
    """Measure what is missing of a study by `start`, which starts ranks, and return what scale.json holds; of `--only` the point alone, and nothing.

    UserError for what cannot be, before any run.
    """
    study, start, speak = open_study(values), start or started, (lambda words: None) if quiet else say
    request = study.request
    kinds = request.kinds(values)
    if idle := _idle(values):
        speak(idle)
    for n in sorted([request.only] if request.only else request.ranks):
        for kind in study.missing(n, kinds):
            if why := why_not(sized(study.job, kind, n), n):
                study.write_point(n, kind, {"skipped": why})
                speak(f"{n} rank(s), {kind}: left out: {why}")
        if study.missing(n, kinds):
            start(study, n, kinds)
            if study.missing(n, kinds):
                raise UserError(f"--out {study.path}: the point of {n} rank(s) was not written; look above for why, and give the same command again")
    return {} if request.only else tabulated(study, kinds, speak)


def started(study: Study, n_ranks: int, kinds: tuple[str, ...]) -> None:
    """Run the point of `n_ranks` as a program of its own; end with its code where it fails."""
    request = study.request
    words = ["-m", "mpidml", "scale", "--out", str(study.path), "--only", str(n_ranks), *(f"--{kind}" for kind in kinds)]
    words += ["--ranks", ",".join(map(str, request.ranks))] if request.ranks else []
    words += ["--share-cores"] * request.share_cores
    launcher, env = launch.mpirun_command(n_ranks, os.environ) if n_ranks > 1 else ([], launch.without_launcher(os.environ))
    if code := _run([*launcher, sys.executable, *words], env):
        sys.stderr.write(f"mpidml: scale: the point of {n_ranks} rank(s) ended with code {code}, see above; what is measured is kept, give the same command again\n")
        raise SystemExit(code if code > 0 else 1)


def _run(words: list[str], env: Mapping[str, str]) -> int:
    """Run a program and return its code; it ends where this process is asked to."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    sys.stdout.flush()
    child = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL)
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
        signal.signal(signal.SIGTERM, before)


def tabulated(study: Study, kinds: tuple[str, ...], speak: Callable[[str], None]) -> dict[str, Any]:
    """Simulate the points of a study and further ones, and write and say what came of all."""
    wanted = [kind for kind in KINDS if kind in kinds and (study.points(kind) or study.request.simulate)]
    if not any(study.points(kind) for kind in wanted):
        raise UserError(f"--out {study.path}: no point is measured yet; give --ranks, or start --only of each")
    found: list[Row] = []
    with given_or_all(None) as ranks:
        virtual = Virtual(study, ranks)
        for kind in wanted:
            points = {n: {**of, **measured(of["runs"], sized(study.job, kind, n).batch)} if "runs" in of else of for n, of in study.points(kind).items()}
            numbers = sorted({*points, *study.request.simulate})
            speak(f"simulating {kind} scaling on {', '.join(f'{n:,}' for n in numbers)} rank(s) ...")
            simulated = {n: virtual.point(kind, n) for n in numbers}
            found += rows(kind, {n: _told(of) for n, of in points.items()}, simulated)
            for n, cost in virtual.used.items():
                study.write_cost(kind, n, cost.mapping())
            virtual.used.clear()
        assumed = virtual.assumed({row["ranks"]: row for row in found if "simulated_seconds_per_step" in row})
    result = {"strategy": study.job.strategy, "sync": study.job.policy(), "data": study.job.data, "model": study.job.model, "steps": study.job.steps}
    result |= {"warm_up": study.request.warm_up, "repeat": study.request.repeat, "assumed": assumed, "rows": found}
    study.folder.write_json("scale.json", result)
    if study.draws:
        from mpidml.scaling.plot import draw

        draw(study.path / "scale.png", result)
    speak(text.table(result))
    speak(f"written: {study.path}/ ({'scale.png, ' * study.draws}scale.json, costs/ for simulate --cost)")
    return result


def _told(point: Mapping[str, Any]) -> Row:
    """Return of a point what its row tells."""
    return {name: value for name, value in point.items() if name not in ("runs", "link", "kind", "ranks", "for_cores")}
