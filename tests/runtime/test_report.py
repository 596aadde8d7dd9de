"""Hold the report to what a reader needs: each panel full, each title a finding, no text cut off or printed over another."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.runtime.report import draw, page, smoothed

Summary = dict[str, Any]
Metrics = list[dict[str, Any]]


def run(n_rows: int = 50, n_ranks: int = 4, **changes: Any) -> tuple[Summary, Metrics]:
    """Make up a run whose loss falls from 2 to 0.02."""
    loss = 2 * 0.01 ** (np.arange(n_rows) / max(1, n_rows - 1))
    metrics: Metrics = [
        {"clock": i, "epoch": i / 10, "seconds": 0.1 * (i + 1), "samples": 64 * (i + 1), "loss": float(loss[i]), "staleness": 1.0}
        for i in range(n_rows)
    ]
    summary: Summary = {
        "strategy": "parameter_server",
        "sync": "ssp:3",
        "ranks": n_ranks,
        "roles": [[f"server {rank}", f"worker {rank}"] for rank in range(n_ranks)],
        "samples": 64 * n_rows,
        "seconds": 0.1 * n_rows,
        "samples_per_second": 640.0,
        "final_loss": metrics[-1]["loss"],
        "compute_seconds": [0.05 * n_rows] * n_ranks,
        "wait_seconds": [0.032 * n_rows] * n_ranks,
        "comm_seconds": [0.01 * n_rows] * n_ranks,
        "staleness_histogram": {"0": 10, "1": 20, "3": 2},
        "staleness_max": 3,
        "staleness_bound": 3,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "bytes_sent": [1_500_000] * n_ranks,
    }
    return summary | changes, metrics


def with_accuracy() -> tuple[Summary, Metrics]:
    summary, metrics = run(test_accuracy=0.9)
    for row in metrics[9::10]:
        row.update(test_accuracy=0.9, test_loss=0.1)
    return summary, metrics


def with_loss(values: list[float | None]) -> tuple[Summary, Metrics]:
    summary, metrics = run(len(values))
    for row, value in zip(metrics, values, strict=True):
        row["loss"] = value
    return summary | {"final_loss": values[-1]}, metrics


RUNS: dict[str, tuple[Summary, Metrics]] = {
    "plain": run(),
    "accuracy": with_accuracy(),
    "one row": run(1, 1, staleness_bound=0, staleness_histogram={"0": 1}, staleness_max=0, sync="bsp"),
    "64 ranks": run(300, 64, staleness_bound=None, staleness_histogram={str(i): 70 - i for i in range(70)}, sync="asp"),
    "16 ranks": run(30, 16, staleness_histogram={str(i): 1000 for i in range(13)}, sync="adaptive:minimum=1:cap=8"),
    "many roles": run(5, 3, roles=[["server 0", "server 1", "server 2", "worker 0", "scheduler 0"], ["worker 1"], []]),
    "no reads": run(10, 2, staleness_histogram={}, staleness_bound=None),
    "no time": run(10, 1, seconds=0.0, compute_seconds=[0], wait_seconds=[0], comm_seconds=[0]),
    "diverged": with_loss([2.0, 1.5, math.inf, math.nan]),
    "never finite": with_loss([None, math.nan]),
    "flat": with_loss([0.0] * 30),
    "scheduled": run(test_accuracy=0.9, optimizer="clip:1+decay:1e-4+momentum:0.95", lr_policy="warmup:1000+cosine:0.01"),
}


def texts(figure: Any) -> list[tuple[str, Any]]:
    """List all text on show with its box, as one drawing lays it out."""
    figure.draw_without_rendering()
    shown = list(figure.texts)
    for axes in figure.axes:
        shown += [axes.title, axes._left_title, *axes.texts, *(axes.get_legend().get_texts() if axes.get_legend() else [])]
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_visible():
                shown += [axis.label, *(label for tick in axis._update_ticks() for label in (tick.label1, tick.label2))]
    return [(text.get_text(), text.get_window_extent()) for text in shown if text.get_text() and text.get_visible()]


def faults(figure: Any) -> list[str]:
    """List texts that leave the page and pairs of texts that overlap."""
    shown = texts(figure)
    whole = figure.bbox
    found = [f"cut: {text}" for text, box in shown if box.x0 < 0 or box.y0 < 0 or box.x1 > whole.x1 or box.y1 > whole.y1]
    for (a, one), (b, two) in combinations(shown, 2):
        wide, high = min(one.x1, two.x1) - max(one.x0, two.x0), min(one.y1, two.y1) - max(one.y0, two.y0)
        if wide > 1 and high > 1:
            found.append(f"overlap: {a} / {b}")
    return found


@pytest.mark.parametrize("name", list(RUNS))
def test_no_text_is_cut_or_overlaps_and_each_panel_has_a_title_and_content(name: str) -> None:
    figure = page(*RUNS[name])
    assert faults(figure) == []
    titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titled) == 4
    assert all(axes.lines or axes.patches or axes.texts for axes in titled)


def test_a_title_too_long_for_its_panel_is_caught() -> None:
    figure = page(*RUNS["plain"])
    figure.axes[1].set_title("a finding that says more than fits on a line above the panel that it belongs to")
    figure.axes[0].set_title("a finding that runs into the title of its neighbour, since nobody looked at the picture")
    assert any("cut" in fault for fault in faults(figure)) and any("overlap" in fault for fault in faults(figure))


def titles(name: str) -> list[str]:
    return [axes.get_title(loc="left") for axes in page(*RUNS[name]).axes if axes.get_title(loc="left")]


def test_titles_state_the_findings() -> None:
    assert titles("plain") == [
        "Loss 2 → 0.02 in 5.0 s",
        "The loss halved within 576 of 3,200 samples",
        "32% of rank time was waiting",
        "Staleness 0.81 on average, 3 at most (bound 3)",
    ]
    assert titles("one row")[0] == "Loss 2 after 100 ms" and titles("one row")[3] == "Every read was fresh (bound 0)"
    assert titles("diverged")[0] == "The loss diverged: not finite after clock 1"
    assert titles("never finite")[0] == "The loss was never finite"
    assert titles("no reads")[3] == "No reads were counted"


def test_a_rate_that_goes_on_is_told_and_one_that_stays_is_not() -> None:
    said = {name: " ".join(text for text, _ in texts(page(*RUNS[name]))) for name in ("scheduled", "plain")}
    assert "learning rate 0.001 x warmup:1000+cosine:0.01 " in said["scheduled"] and "learning rate 0.001 " in said["plain"]


def test_the_picture_names_the_straggler_where_there_is_one() -> None:
    summary, metrics = RUNS["plain"]
    for most, title in (
        ({"rank": 12, "share": 0.83, "is_straggler": True}, "32% of rank time was waiting, 83% of it for rank 12"),
        ({"rank": 12, "share": 0.4, "is_straggler": False}, "32% of rank time was waiting"),
    ):
        figure = page({**summary, "most_waited_for": most}, metrics)
        assert title in [axes.get_title(loc="left") for axes in figure.axes] and faults(figure) == []


def test_the_shares_of_a_rank_fill_its_bar() -> None:
    bars = page(*RUNS["plain"]).axes[2].patches
    ends = [bar.get_x() + bar.get_width() for bar in bars[-4:]]
    assert ends == pytest.approx([100] * 4)
    assert [bar.get_width() for bar in bars[::4]] == pytest.approx([50, 32, 10, 8])


def test_the_report_is_a_png(tmp_path: Path) -> None:
    draw(tmp_path / "report.png", *RUNS["accuracy"])
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_smooth_line_is_the_same_however_many_clocks_a_row_sums_up():
    """A run of 2,000 clocks that goes on for 18,000 has a row for each clock at first, then one for ten."""
    loss = 1 / (1 + np.arange(20_000) / 500)
    ends = np.concatenate([np.arange(2000), np.arange(2009, 20_000, 10)])
    rows = np.concatenate([loss[:2000], loss[2000:].reshape(-1, 10).mean(axis=1)])
    wanted = smoothed(loss, np.arange(20_000.0))[ends]
    assert smoothed(rows, ends.astype(float)) == pytest.approx(wanted, rel=0.02)
    assert smoothed(rows, np.arange(float(len(rows)))) != pytest.approx(wanted, rel=0.02), "the broken variant: a row is a row"
