"""Give a training run its folder, and fill it; used by rank 0 alone.

    config.toml metrics.jsonl     at the beginning, and row by row
    checkpoints/                  see `checkpoint`
    coding.json                   how the rows were coded, see `coding`
    model.safetensors trace.json report.png summary.json    at the end, each whole or not there
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.core.trace import to_chrome
from mpidml.data.coding import Known
from mpidml.data.raw import Reading
from mpidml.runtime.events import Events
from mpidml.runtime.net import NET_FILE, categories, labels, net_text
from mpidml.runtime.outputs import FolderTaken, RunFolder, default_out, plain, to_toml

CODING_FILE = "coding.json"


def open_folder(job: Job, goes_on: bool) -> RunFolder:
    """Return the folder that a job writes, its own or a new one; UserError where none can be."""
    folder = RunFolder(Path(job.out)) if goes_on else RunFolder.prepare(job.out or default_out(datetime.now()))
    folder.events = Events() if job.tensorboard else None
    return folder


def claim(folder: RunFolder, job: Job, goes_on: bool = False, rows: Sequence[dict[str, Any]] = ()) -> str:
    """Make the run folder this run's own, with the net file in it; of two that start in one second, the second takes the next name.

    A run that `goes_on` in its folder writes its config anew; `rows` of its metrics were there when it was saved.
    Return what is to be said, a line or "".
    """
    net = net_text(job)
    if folder.events is not None and rows:
        folder.events.first = rows[-1]["clock"] + 1
    while True:
        values = job.mapping() | ({"model": str(folder.path / NET_FILE)} if net else {})
        config = to_toml({name: value for name, value in values.items() if name not in ("out", "resume", "requeue")})
        try:
            if not goes_on:
                folder.claim(config)
            told = folder.lock()
            if goes_on:
                (folder.path / "summary.json").unlink(missing_ok=True)  # of an end that this run has left behind
                folder.write_text("config.toml", config)
            if folder.events is not None:
                folder.events.open(folder.path)
            if net:
                folder.write_text(NET_FILE, net)
            if job.resume:
                folder.write_text("metrics.jsonl", "".join(json.dumps(plain(row)) + "\n" for row in rows))
            return told
        except FolderTaken:
            if job.out:
                raise
            folder.path = default_out(datetime.now())


def write(
    folder: RunFolder, strategy: Any, data: Any, found: dict[str, Any], metrics: list[dict[str, Any]], values: Array | None, traces: Any
) -> None:
    """Write what came of a run: the model, its trace, its picture and, last, its summary."""
    assert values is not None
    tensors = {**strategy.net.params.views(values), **{f"scaler.{k}": v for k, v in data.scaler.state().items()}}
    if data.targets is not None:
        tensors |= {"targets.offset": data.targets.offset, "targets.scale": np.array([data.targets.scale])}
    for of in data.heads:
        if of.targets is not None:
            tensors |= {f"targets.{of.name}.offset": of.targets.offset, f"targets.{of.name}.scale": np.array([of.targets.scale])}
    weights = [getattr(head.loss, "class_weights", None) for head in strategy.net.heads]
    heads = tuple(of._replace(class_weights=factors) for of, factors in zip(data.heads, weights, strict=False))
    largest = {c: float(max(x[:, c].max() for x in (data.x, data.test_x, data.val_x) if len(x))) for c in categories(strategy.job)}
    reading = Reading(**{name: getattr(strategy.job, name) for name in Reading._fields if name in strategy.job.mapping()} | {"label": labels(strategy.job)[0]})
    known = Known(data.name, data.task, data.x.shape[1], data.n_outputs, reading, data.coding, largest, None if heads else weights[0], heads)
    folder.write_json(CODING_FILE, known.mapping())
    folder.write_model(tensors, {"model_sha256": found["model_sha256"]})
    if traces is not None:
        about = {"collective": found["collective"]} if "collective" in found else None
        by_rank = [(r, names, columns) for r, (names, columns) in enumerate(zip(found["roles"], traces, strict=True))]
        folder.write_json("trace.json", to_chrome(by_rank, about))
    if strategy.job.report:
        from mpidml.runtime.report import draw

        draw(folder.path / "report.png", found, metrics)
    folder.write_json("summary.json", found)
    folder.close()


def since(columns: dict[str, Array], started: float) -> dict[str, Array]:
    """Count a rank's events from the barrier that began the run: clocks of different hosts share no other origin."""
    return {**columns, "start": columns["start"] - started}
