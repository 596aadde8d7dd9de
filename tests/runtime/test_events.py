"""Hold the events for TensorBoard to the rows of metrics.jsonl: the same numbers at the same clocks, also over a run that was gone on with."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mpidml
from mpidml.compare import compare
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.runtime.resume import resumed
from mpidml.simulate import simulate

needs = pytest.mark.bench("tensorboardX")
SMALL = Job(hidden=(8,), steps=60, batch=64, tensorboard=True, report=False)


def shown(folder: Path) -> dict[tuple[str, int], float]:
    """Read all event files as TensorBoard does: a session that starts at a step takes the place of what came at and after it."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])  # 8 bytes of length, 4 of its checksum, the event, 4 of its checksum
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.START:
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def written(folder: Path) -> dict[tuple[str, int], float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(name, row["clock"]): np.float32(value) for row in rows for name, value in row.items() if name != "clock" and value is not None}


@needs
def test_events_are_the_rows_of_the_metrics(tmp_path: Path) -> None:
    mpidml.train(mpidml.Job(**{**SMALL.mapping(), "out": str(tmp_path / "run")}), quiet=True)
    assert shown(tmp_path / "run") == written(tmp_path / "run")
    assert {name for name, _ in shown(tmp_path / "run")} == {"epoch", "seconds", "samples", "loss", "staleness", "test_loss", "test_accuracy"}


@needs
def test_a_run_that_is_gone_on_with_shows_each_clock_once(tmp_path: Path) -> None:
    """The run went 60 clocks and is gone on with from clock 40, as after a kill: events of 40 to 59 count no more."""
    out = tmp_path / "run"
    mpidml.train(mpidml.Job(**{**SMALL.mapping(), "out": str(out), "checkpoint_every": 20}), quiet=True)
    first = shown(out)
    newest = max((out / "checkpoints").iterdir(), key=lambda path: path.name)
    assert "60" in newest.name
    for path in sorted(newest.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    newest.rmdir()
    mpidml.train(resumed(str(out), {"steps": 50, "lr": 0.01}), quiet=True)
    assert shown(out) == written(out) and max(step for _, step in shown(out)) == 49
    assert all(shown(out)[key] == first[key] for key in first if key[1] < 40) and shown(out)["loss", 45] != first["loss", 45]


@needs
def test_a_loss_that_is_no_number_has_no_event(tmp_path: Path) -> None:
    mpidml.train(mpidml.Job(**{**SMALL.mapping(), "out": str(tmp_path / "run"), "lr": 1e30}), quiet=True)
    assert shown(tmp_path / "run") == written(tmp_path / "run")
    assert ("loss", 50) not in shown(tmp_path / "run") and ("samples", 50) in shown(tmp_path / "run")


@needs
def test_each_run_that_is_compared_has_its_events_and_the_warm_up_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"tensorboard": True, "sync": "bsp,asp", "hidden": "8", "steps": 60, "batch": 64, "report": False, "backend": "numpy", "out": str(tmp_path / "run")}
    compare(values, quiet=True)
    folders = [path.parent for path in (tmp_path / "run").rglob("metrics.jsonl")]
    assert sorted(folder.name for folder in folders) == ["asp", "bsp", "one-process"]
    assert all(shown(folder) == written(folder) for folder in folders)
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 3
    monkeypatch.setattr("mpidml.core.job.Job.with_values", leaves_events_on(Job.with_values))
    with pytest.raises(UserError, match="writes no folder"):
        compare(values | {"out": str(tmp_path / "again")}, quiet=True)


def leaves_events_on(with_values: Callable[..., Job]) -> Callable[..., Job]:
    """Return what changes a job as `with_values` does, but for its events: the broken variant."""
    return lambda job, values, where: with_values(job, {name: value for name, value in values.items() if name != "tensorboard" or value}, where)


def test_without_the_package_or_a_folder_the_run_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--tensorboard: does nothing in a run that writes no folder"):
        mpidml.train(SMALL, quiet=True, write=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    out = str(tmp_path / "run")
    for run in (lambda: mpidml.train(Job(tensorboard=True, out=out), quiet=True), lambda: compare({"tensorboard": True, "out": out, "target": "0.5"}, quiet=True)):
        with pytest.raises(UserError, match=r"pip install 'mpidml\[tensorboard\]'"):
            run()
    assert not list(tmp_path.iterdir())


@needs
def test_a_simulation_says_that_events_have_no_part_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate({"tensorboard": True, "hidden": "8", "out": str(tmp_path / "run"), "workers": 2, "clocks": 5})
    assert "--tensorboard" in capsys.readouterr().out and not list((tmp_path / "run").glob("events*"))
