"""A comparison counts the first row that reaches the target, says when one process is faster, and is legible as text and as a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.target import Target
from mpidml.runtime.comparison import Row, entry, reached, table, verdict
from mpidml.runtime.comparison_plot import draw, page
from tests.runtime.test_report import faults

ACCURACY, LOSS = Target("accuracy", 0.95), Target("loss", 0.2)
NAMES = [
    "one process",
    "bsp",
    "ssp:3",
    "ssp:3, servers 2",
    "asp",
    "asp, servers 2",
    "warmup:100:3",
    "ssp:9, reads eager",
    "bsp, reads cached",
    "ssp:1",
]
Metrics = list[dict[str, Any]]


def run(seconds: float = 0.01, best: float = 0.97, n_ranks: int = 4, n_rows: int = 60, **changes: Any) -> tuple[dict[str, Any], Metrics]:
    """Make up a run of `seconds` a clock whose test accuracy, measured each fifth clock, climbs to `best`."""
    metrics: Metrics = []
    for i in range(n_rows):
        metrics.append({"clock": i, "epoch": i / 5, "seconds": seconds * (i + 1), "samples": 64 * (i + 1), "loss": 2 * 0.95**i, "staleness": 1.0})
        if i % 5 == 4:
            metrics[-1] |= {"test_accuracy": best * (1 - 0.5 ** (i / 4)), "test_loss": 0.1 + 2 * 0.93**i}
    summary = {
        "model": "mlp",
        "data": "digits",
        "optimizer": "momentum",
        "learning_rate": 0.05,
        "ranks": n_ranks,
        "samples": 64 * n_rows,
        "seconds": seconds * n_rows,
        "samples_per_second": 64 / seconds,
        "final_loss": metrics[-1]["loss"],
        "diverged_at_clock": None,
        "test_accuracy": metrics[-1].get("test_accuracy"),
        "test_loss": metrics[-1].get("test_loss"),
        "bytes_sent": [1_000_000] * n_ranks,
        "bytes_window": [500_000] * n_ranks,
        "compute_seconds": [0.5] * n_ranks,
        "wait_seconds": [0.3] * n_ranks,
        "comm_seconds": [0.2] * n_ranks,
        "staleness_max": 3,
        "staleness_histogram": {"0": 10, "1": 20, "3": 10},
    }
    return summary | changes, metrics


def compared(
    runs: Sequence[tuple[dict[str, Any], Metrics]], target: Target | None, names: Sequence[str] = NAMES
) -> tuple[list[dict[str, Any]], list[Metrics]]:
    return [entry(names[i], *each, target) for i, each in enumerate(runs)], [metrics for _, metrics in runs]


def without_test(runs: Sequence[tuple[dict[str, Any], Metrics]]) -> list[tuple[dict[str, Any], Metrics]]:
    bare = [{key: value for key, value in row.items() if not key.startswith("test_")} for _, metrics in runs for row in metrics]
    n = len(runs[0][1])
    return [(summary | {"test_accuracy": None, "test_loss": None}, bare[n * i : n * (i + 1)]) for i, (summary, _) in enumerate(runs)]


def diverged(run_: tuple[dict[str, Any], Metrics]) -> tuple[dict[str, Any], Metrics]:
    summary, metrics = run_
    rows = [row if row["clock"] < 20 else {key: row[key] for key in ("clock", "epoch", "seconds", "samples")} | {"loss": math.nan} for row in metrics]
    return summary | {"diverged_at_clock": 20, "final_loss": math.nan, "test_loss": math.nan, "test_accuracy": 0.1, "dropped_samples": 1280}, rows


def simulated(n: int) -> list[tuple[dict[str, Any], Metrics]]:
    runs = [run(0.01 * (1 + i)) for i in range(n)]
    return [(summary | {"final_loss": None, "test_accuracy": None, "test_loss": None}, []) for summary, _ in runs]


MANY = [run(0.02, n_ranks=1), *(run(0.005 + 0.001 * i, 0.94 if i in (4, 5) else 0.97) for i in range(1, 10))]
LONG = ["one process", *(f"{name}, servers {i}, reads eager, transport mpi, backend numba" for i, name in enumerate(NAMES[1:]))]
CASES: dict[str, tuple[list[dict[str, Any]], list[Metrics], Target | None]] = {
    "one": (*compared(MANY[:1], ACCURACY), ACCURACY),
    "three": (*compared(MANY[:3], ACCURACY), ACCURACY),
    "ten": (*compared(MANY, ACCURACY), ACCURACY),
    "ten, no target": (*compared(MANY, None), None),
    "loss": (*compared(MANY[:5], LOSS), LOSS),
    "long names": (*compared(MANY, ACCURACY, LONG), ACCURACY),
    "nobody": (*compared(MANY[:4], Target("accuracy", 0.99)), Target("accuracy", 0.99)),
    "a loss of nothing": (*compared(MANY[:3], Target("loss", 0.0)), Target("loss", 0.0)),
    "only one process": (*compared([MANY[0], *MANY[4:6]], ACCURACY), ACCURACY),
    "all but one process": (*compared([MANY[4], *MANY[1:3]], ACCURACY), ACCURACY),
    "far apart": (*compared([run(5.0, n_ranks=1), *MANY[1:3]], ACCURACY), ACCURACY),
    "no test rows": (*compared(without_test(MANY[:3]), ACCURACY), ACCURACY),
    "diverged": (*compared([*MANY[:2], diverged(run())], ACCURACY), ACCURACY),
    "diverged, no test": (*compared(without_test([MANY[0], diverged(run())]), None), None),
    "all diverged": (*compared([diverged(MANY[0]), diverged(MANY[1])], None), None),
    "simulated": (*compared(simulated(3), None), None),
    "simulated, with a target": (compared(simulated(3), ACCURACY)[0], [], ACCURACY),
    "nothing measured": (
        *compared([({"samples_per_second": None, "staleness_histogram": {}, "staleness_max": 0}, [{"clock": 0, "seconds": 0, "samples": 0, "loss": None}])] * 2, None),
        None,
    ),
}  # fmt: skip


@cache
def drawn(name: str) -> Any:
    """Return the page of a case, which is looked at and never changed."""
    return page(*CASES[name])


def first(metrics: Sequence[Row], target: Target) -> float | None:
    return entry("bsp", {}, metrics, target)["seconds_to_target"]


def last(metrics: Sequence[Row], target: Target) -> float | None:
    return next((row["seconds"] for row in reversed(metrics) if reached(row, target)), None)


def at_best(metrics: Sequence[Row], target: Target) -> float | None:
    rows = [row for row in metrics if reached(row, target)]
    return max(rows, key=lambda row: row["test_accuracy"])["seconds"] if rows else None


def breaks_the_law(find: Callable[[Sequence[Row], Target], float | None], accuracies: Sequence[float | None]) -> bool:
    """Return whether `find` errs: a row before the one found reaches the target, or this one does not, or one does and none is found."""
    metrics = [{"seconds": 0.5 + i, "samples": 64 * (i + 1), "loss": 1.0, "test_accuracy": value} for i, value in enumerate(accuracies)]
    found = find(metrics, ACCURACY)
    good = [value is not None and value >= 0.95 for value in accuracies]
    return any(good) if found is None else any(good[: int(found)]) or not good[int(found)]


@given(st.lists(st.none() | st.floats(0, 1) | st.just(math.nan), max_size=12))
def test_the_seconds_to_the_target_are_those_of_the_first_row_that_reaches_it(accuracies: list[float | None]) -> None:
    assert not breaks_the_law(first, accuracies)


@pytest.mark.parametrize("broken", [last, at_best])
def test_the_law_catches_the_last_row_and_the_best_row(broken: Callable[[Sequence[Row], Target], float | None]) -> None:
    assert breaks_the_law(broken, [0.9, 0.95, 0.97, 0.96]) and not breaks_the_law(first, [0.9, 0.95, 0.97, 0.96])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_was_not_measured_reaches_nothing(value: float | None) -> None:
    for key in ("test_accuracy", "test_loss", "final_test_accuracy", "final_test_loss"):
        assert not reached({key: value}, Target("accuracy", 0.0)) and not reached({key: value}, Target("loss", 9.0))
    assert not reached({"clock": 3}, ACCURACY) and not reached({"test_accuracy": 0.1}, LOSS)


def test_a_target_is_reached_from_its_own_side_and_by_the_final_score_too() -> None:
    assert reached({"test_accuracy": 0.95}, ACCURACY) and not reached({"test_accuracy": 0.949}, ACCURACY)
    assert reached({"test_loss": 0.2}, LOSS) and not reached({"test_loss": 0.201}, LOSS)
    assert reached({"test_accuracy": 0.96, "final_test_accuracy": 0.9}, ACCURACY), "a run that stopped at its target has reached it"
    assert reached({"test_accuracy": 0.9, "final_test_accuracy": 0.96}, ACCURACY) and reached({"final_test_loss": 0.1}, LOSS)


def test_the_final_score_of_the_summary_counts_where_the_file_of_metrics_lacks_it() -> None:
    summary, metrics = run(best=0.9, test_accuracy=0.96)
    found = entry("bsp", summary, metrics, ACCURACY)
    assert (found["seconds_to_target"], found["samples_to_target"], found["best_test_accuracy"]) == (summary["seconds"], summary["samples"], 0.96)


def test_an_entry_is_the_summary_and_what_the_comparison_needs() -> None:
    summary, metrics = run()
    found = entry("ssp:3", summary, metrics, ACCURACY)
    assert found.items() >= summary.items() and found["variant"] == "ssp:3"
    enough = next(row for row in metrics if row.get("test_accuracy", 0) >= 0.95)
    assert (found["seconds_to_target"], found["samples_to_target"]) == (enough["seconds"], enough["samples"])
    assert found["staleness_mean"] == pytest.approx((20 + 30) / 40) and found["waiting_share"] == pytest.approx(0.3)
    assert found["bytes_moved"] == 4 * 1_500_000 and found["dropped_samples"] == 0
    assert entry("ssp:3", summary | {"dropped_samples": 7}, metrics, None)["dropped_samples"] == 7
    nothing = entry("ssp:3", {}, [], None)
    assert {key for key, value in nothing.items() if value is None} >= {"seconds_to_target", "samples_to_target", "staleness_mean", "waiting_share"}


def columns(lines: Sequence[str]) -> list[set[int]]:
    """Return for each line where its cells end; cells are parted by two blanks or more, and the first one begins the line."""
    return [{match.end() for match in re.finditer(r"\S+(?: \S+)*", line) if match.start()} for line in lines]


@pytest.mark.parametrize("name", list(CASES))
def test_the_columns_of_the_table_line_up(name: str) -> None:
    entries, _, target = CASES[name]
    lines = table(entries, target).splitlines()
    head, *rows = lines[1 : 2 + len(entries)]
    assert [line.split("  ")[0] for line in (head, *rows)] == ["variant", *(each["variant"] for each in entries)]
    assert all(ends == columns([head])[0] for ends in columns(rows)), "a number ends elsewhere than its heading"
    assert columns([lines[0]])[0] <= columns([head])[0]
    assert ("to target" in head) == (target is not None)
    assert name == "long names" or max(map(len, lines[: 2 + len(entries)])) <= 120


@pytest.mark.parametrize("name", list(CASES))
def test_nothing_is_printed_as_nan_or_none(name: str) -> None:
    entries, _, target = CASES[name]
    said = "\n".join([table(entries, target), *verdict(entries, target), *titles(name)])
    assert not re.search(r"\b(nan|inf|None)\b", said), said


def test_a_note_of_the_table_says_what_a_variant_that_never_reached_the_target_had() -> None:
    entries, _ = compared([MANY[0], run(best=0.93), run(best=0.9499999)], ACCURACY)
    lines = table(entries, ACCURACY).splitlines()
    assert lines[5:] == ["target: test accuracy 0.95", "bsp: never, best 0.93", "ssp:3: never, best 0.94997"] and lines[3].split()[1:3] == ["-", "-"]
    assert table(compared(simulated(2), ACCURACY)[0], ACCURACY).endswith("bsp: never, nothing was measured")


@given(st.floats(0, 0.95, exclude_max=True))
def test_the_best_of_who_missed_the_target_never_reads_as_the_target(accuracy: float) -> None:
    entries, _ = compared([({"test_accuracy": accuracy, "seconds": 1, "samples": 1}, [])], ACCURACY)
    text = re.search(r"never, best (.*)", table(entries, ACCURACY))
    assert text and float(text[1]) < 0.95


def test_the_verdict_says_that_one_process_is_faster() -> None:
    said = verdict(compared([run(0.01), run(0.02), run(0.05)], ACCURACY)[0], ACCURACY)
    assert said == [
        "fastest to test accuracy 0.95: 0.25 s and 1,600 samples (one process)",
        "one process is faster than all of them: 0.25 s to the target against 0.5 s (bsp), 2.0 times as fast; 1.25 s (ssp:3), 5.0 times",
    ]
    assert verdict(compared([run(0.01), run(0.02)], None)[0], None) == [
        "most samples/s: 6,400 (one process)",
        "highest test accuracy at the end: 0.97 (one process; bsp)",
        "one process is faster than bsp: 6,400 samples/s against 3,200 (bsp), 2.0 times as fast",
    ]


def test_the_verdict_says_than_whom_one_process_is_slower() -> None:
    runs = [run(0.02), run(0.01), run(0.04), run(0.0201), run(0.01, best=0.94)]
    assert verdict(compared(runs, ACCURACY)[0], ACCURACY)[2:] == [
        "one process is faster than ssp:3: 0.5 s to the target against 1 s (ssp:3), 2.0 times as fast",
        "one process is as fast (within 1%) as ssp:3, servers 2: 0.5 s to the target against 0.502 s (ssp:3, servers 2)",
        "one process is slower than bsp: 0.5 s to the target against 0.25 s (bsp), which is 2.0 times as fast",
    ]
    said = verdict(compared([run(0.02), run(0.01), run(0.01, best=0.94)], ACCURACY)[0], ACCURACY)
    assert any("slower than bsp" in line for line in said), "who never reached the target is not faster"


def test_the_verdict_names_who_missed_the_target_diverged_or_dropped_samples() -> None:
    said = verdict(CASES["diverged"][0], ACCURACY)
    assert said[1].startswith("never reached test accuracy 0.95: ssp:3 (best 0.9")
    assert said[-2:] == ["ssp:3 diverged: its loss is not a number from clock 20 on", "ssp:3 dropped 1,280 samples"]
    assert "one process alone reached the target" in verdict(CASES["only one process"][0], ACCURACY)
    assert verdict(CASES["nobody"][0], CASES["nobody"][2])[0].startswith("no variant reached test accuracy 0.99: one process (best 0.97); bsp (")
    assert not any("process is" in line for line in verdict(CASES["all but one process"][0], ACCURACY)), "there is no ratio to who never got there"


@pytest.mark.parametrize("name", list(CASES))
def test_no_text_of_the_picture_is_cut_or_overlaps_and_each_panel_has_a_title_and_content(name: str) -> None:
    figure = drawn(name)
    assert faults(figure) == []
    names = figure.legends[0].get_window_extent()
    panels = [axes.get_tightbbox() for axes in figure.axes]
    assert names.x0 >= 0 and names.x1 <= figure.bbox.x1 and names.y0 >= max(panel.y1 for panel in panels), "the names are cut or lie on a panel"
    assert len(figure.axes) == 4 and all(axes.get_title(loc="left") for axes in figure.axes)
    assert all(axes.lines or axes.patches or axes.texts for axes in figure.axes)


def titles(name: str) -> list[str]:
    return [axes.get_title(loc="left") for axes in drawn(name).axes]


def test_titles_state_the_findings() -> None:
    assert titles("three") == [
        "First at 0.95: bsp, after 0.15 s",
        "Fewest samples to 0.95: 1,600 (3 variants)",
        "bsp is 3.3 times as fast as one process",
        "Waited most: one process, 30% of its time",
    ]
    assert titles("ten, no target")[:3] == [
        "Best at the end: test accuracy 0.97 (8 variants)",
        "After 3,840 samples: 0.94 to 0.97",
        "bsp is 3.3 times as fast as one process",
    ]
    assert titles("nobody")[0] == "No variant reached test accuracy 0.99" and titles("only one process")[2] == "Only one process reached it: 0.5 s"
    assert titles("no test rows")[1] == "After 3,840 samples all are at 0.0995"
    assert (
        titles("simulated")[:2] == ["The loss was never finite", "3,840 samples were seen"] and titles("all diverged")[0] == "Every variant diverged"
    )


def test_the_picture_shows_what_the_entries_say() -> None:
    entries, curves, _ = CASES["three"]
    over_seconds, over_samples, race, shares = drawn("three").axes
    assert [bar.get_width() for bar in race.patches] == pytest.approx([each["seconds_to_target"] for each in entries])
    assert race.lines[0].get_xdata()[0] == pytest.approx(entries[0]["seconds_to_target"]) and race.lines[0].get_linestyle() == "--"
    for axes, key in ((over_seconds, "seconds"), (over_samples, "samples")):
        one, bsp, _, at = axes.lines
        assert list(bsp.get_xdata())[:-1] == pytest.approx([row[key] for row in curves[1] if "test_accuracy" in row])
        assert one.get_linestyle() == "--" and list(at.get_ydata()) == [0.95, 0.95]
    assert [bar.get_width() for bar in shares.patches[::3]] == pytest.approx([50, 30, 20])
    assert "1.25" in [text.get_text() for text in shares.texts]


def test_a_diverged_variant_is_drawn_up_to_where_it_diverged() -> None:
    curves, lines = CASES["diverged"][1], drawn("diverged").axes[0].lines
    good = [row["test_accuracy"] for row in curves[2] if "test_accuracy" in row]
    assert list(lines[2].get_ydata()) == good and lines[3].get_marker() == "x" and list(lines[3].get_ydata()) == good[-1:]


@pytest.mark.parametrize("name", ["ten", "no test rows", "diverged", "simulated"])
def test_the_picture_is_a_png(name: str, tmp_path: Path) -> None:
    draw(tmp_path / "compare.png", *CASES[name])
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
