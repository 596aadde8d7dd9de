"""Join what workers measured: by clock, in any order, with the seconds of evaluation left out."""

from __future__ import annotations

import itertools
import math

import pytest

from mpidml.runtime import monitor as monitor_module
from mpidml.runtime import scoring
from mpidml.runtime.monitor import MOST_ROWS, STRETCH, Monitor
from tests.changed import changed


def measurements(n_workers, n_clocks, per_epoch=3):
    """Each clock takes a second, each scoring (at the start of an epoch) 10 seconds for everybody and 1 more for the last worker."""
    rows = []
    for worker in range(n_workers):
        for clock in range(n_clocks):
            scores = clock > 0 and clock % per_epoch == 0
            evaluated = (10.0 + (worker == n_workers - 1)) if scores else 0.0
            seconds = clock + 1 + 11.0 * (clock // per_epoch)
            rows.append((worker, seconds, clock, worker, 1, 0.5 + evaluated, 2.0 * clock, 4, 1.5 * scores, 3 * scores, 5 * scores, evaluated, clock // per_epoch, 0, 0))
    return rows


def accuracy(score, rows, loss, of):
    return {"test_accuracy": score / rows}


def joined(rows, n_workers, n_clocks, pieces):
    written = []
    monitor = Monitor(n_workers, n_clocks, 3, None, written.append, accuracy, 5 * n_workers)
    for start in range(0, len(rows), pieces):
        monitor.take(rows[start : start + pieces])
    monitor.end({})
    return monitor, written


@pytest.mark.parametrize("pieces", [1, 4, 1000])
@pytest.mark.parametrize("by_clock", [False, True])
def test_rows_are_the_same_however_the_measurements_arrive(pieces, by_clock):
    rows = measurements(3, 7)
    if by_clock:
        rows.sort(key=lambda row: row[2])
    monitor, written = joined(rows, 3, 7, pieces)
    assert [row["clock"] for row in written] == list(range(7))
    assert [row["seconds"] for row in written] == pytest.approx([1, 2, 3, 4, 5, 6, 7])  # the 11 seconds of each scoring are left out
    assert [row["samples"] for row in written] == [12 * (c + 1) for c in range(7)]
    assert [row["loss"] for row in written] == pytest.approx([6.0 * c / 12 for c in range(7)])
    assert all(row["staleness"] == 1.0 for row in written)
    assert [row.get("test_accuracy") for row in written] == [None, None, None, 0.6, None, None, 0.6]
    assert monitor.samples == 84


def test_a_loss_has_the_same_bits_whoever_reports_first():
    losses, found, rounded = (0.1, 0.7, 1e3 / 3, 1e-3), set(), set()
    for order in itertools.permutations(range(4)):
        rows = [(worker, 1.0 + place / 8, 0, 0, 1, 0.5, losses[worker], 2, 0, 0, 0, 0, 0, 0, 0) for place, worker in enumerate(order)]
        found.add(joined(rows, 4, 1, 1000)[1][-1]["loss"])
        rounded.add(sum(losses[worker] for worker in order))
    assert len(found) == 1 and len(rounded) > 1, "one after the other they would add up to several sums"


def looked(losses, cuts, with_rests=True):
    """Return the row of a clock before which two workers looked at blocks of rows, the first at the first `cuts`, for a net of two heads."""
    own = [scoring.Scores(part, (), len(part), (scoring.Scores(part, part, len(part)),) * 2) for part in (losses[:cuts], losses[cuts:])]
    rests = [scoring.rests(of) if with_rests else (0.0,) * 6 for of in own]
    rows = [
        (worker, 1.0, 0, 0, 1, 0.5, 1.0, 2, *sums[:2], of.n_rows, 0.0, 1, *rest[:2], *sums[2:], *rest[2:])
        for worker, (of, sums, rest) in enumerate(zip(own, map(scoring.sums, own), rests, strict=True))
    ]
    written = []
    quality = lambda score, rows, loss, of, *of_heads: dict(enumerate(of_heads))
    monitor = Monitor(2, 1, 1, None, written.append, quality, len(losses), n_of_heads=8)
    monitor.take(rows)
    monitor.end({})
    return tuple(written[-1][name] for name in ("test_loss", 0, 1, 2, 3))


def test_scores_have_the_same_bits_whoever_scored_which_rows():
    losses = tuple(1 / (3 + k) ** 3 for k in range(40))
    found = {looked(losses, cuts) for cuts in range(1, 40)}
    assert found == {(math.fsum(losses) / 40, *(math.fsum(losses),) * 4)}
    assert len({looked(losses, cuts, with_rests=False) for cuts in range(1, 40)}) > 1, "what each rounds would show"


def test_a_long_run_writes_few_rows_and_every_score():
    rows = measurements(1, 20_001, per_epoch=5000)
    _, written = joined(rows, 1, 20_001, 999)
    assert 3000 < len(written) < 5100
    assert sum("test_accuracy" in row for row in written) == 4
    assert written[-1]["samples"] == 4 * 20_001


def test_a_look_at_a_paused_run_is_in_the_row_of_the_last_clock_before_it():
    """The row waits for it on its way to the file; the seconds of the look are left out of later ones."""
    written = []
    monitor = Monitor(1, 4, 2, None, written.append, lambda score, rows, loss, of: {f"{of}_accuracy": score / rows}, 5, of="val", pauses=True)
    reports = [(0, clock + 1 + 10.0 * (clock >= 2), clock, 0, 1, 0.5, 2.0, 4, 0, 0, 0, 0, 0, 0, 0) for clock in range(4)]
    for start in (0, 2):
        monitor.take(reports[start : start + 2])
        monitor.pause()
        monitor.look(7.5, 3, 5, 10.0)
    monitor.end({"val_loss": 1.0, "val_accuracy": 0.8})
    assert [(row["clock"], row["seconds"], row.get("val_loss"), row.get("val_accuracy")) for row in written] == [
        (0, 1, None, None), (1, 2, 1.5, 0.6), (2, 3, None, None), (3, 4, 1.5, 0.6)
    ]  # fmt: skip


@pytest.mark.parametrize("by_clock", [True, False])
@pytest.mark.parametrize("pieces", [1, 2, 1000])
def test_a_report_of_the_next_clock_that_comes_first_waits_for_those_of_its_own(by_clock, pieces):
    """A worker whose share is empty reports clock 1 before the other has told of clock 0. By time alone the rows would be mixed."""
    rows = [
        (worker, seconds, clock, 0, 1, 0.5, loss, n, 0, 0, 0, 0, 0, 0, 0)
        for worker, seconds, clock, loss, n in ((0, 1.0, 0, 4.0, 2), (0, 1.1, 1, 0.0, 0), (1, 1.2, 0, 8.0, 2), (1, 2.0, 1, 30.0, 3))
    ]
    written = []
    monitor = Monitor(2, 2, 3, None, written.append, accuracy, by_clock=by_clock)
    for start in range(0, len(rows), pieces):
        monitor.take(rows[start : start + pieces])
    monitor.end({})
    assert ([row["loss"] for row in written] == pytest.approx([3.0, 10.0])) == by_clock
    assert written[-1]["samples"] == 7


class Drains:
    """Notes when a run is said to drain."""

    n = 0

    def drains(self):
        self.n += 1

    def update(self, *state):
        pass


def drains(module):
    """Return how often it is said: after each report of two workers of a run, and 3 times after the last."""
    progress = Drains()
    monitor = module.Monitor(2, 3, 3, progress, lambda row: None, accuracy, 10)
    found = []
    for row in measurements(2, 3):
        monitor.hear([row])
        found.append(progress.n)
    for worker in (1, 0):
        monitor.hear([(worker, 9.0, -1.0, *(0.0,) * 12)])
        found.append(progress.n)
    for _ in range(3):
        monitor.hear([])
    return [*found, progress.n]


def test_a_run_drains_once_all_workers_have_come_to_their_end():
    assert drains(monitor_module) == [0] * 6 + [0, 1, 4]
    assert drains(changed(monitor_module, [("self.latest.min() == math.inf", "self.latest.max() == math.inf")])) == [0] * 6 + [1, 2, 5], "the first of them"
    assert drains(changed(monitor_module, [("self.latest.min() == math.inf", "False")]))[-1] == 0


def kept(of, n_clocks):
    """Return the clocks of which two workers' seconds are kept: a second more at each clock, and half a one more of worker 1."""
    monitor = of(2, n_clocks, n_clocks, None, lambda row: None, accuracy, 10)
    for clock in range(n_clocks):
        monitor.take([(w, clock + 1.0, clock, 0, 1, clock + 0.5 * w, 1.0, 4, 0, 0, 0, 0, 0, 0, 0) for w in range(2)])
    assert monitor.n_finished == n_clocks
    first, second = monitor.step_seconds
    assert second == [s + 0.5 for s in first], "the same clocks of each"
    return first


def test_of_a_long_run_the_seconds_of_stretches_from_all_of_it_are_kept():
    assert kept(Monitor, 3 * STRETCH + 7) == list(range(3 * STRETCH + 7)), "of a short one all"
    few = changed(monitor_module, [("MOST_ROWS = 5000", "MOST_ROWS = 500")])
    n = 5 * few.MOST_ROWS
    found = kept(few.Monitor, n)
    assert few.MOST_ROWS / 2 <= len(found) <= few.MOST_ROWS < MOST_ROWS
    starts = found[::STRETCH]
    assert found == [start + k for start in starts for k in range(STRETCH)] and len({b - a for a, b in itertools.pairwise(starts)}) == 1
    assert starts[0] == 0 and starts[-1] > 0.7 * n
    first = changed(monitor_module, [("MOST_ROWS = 5000", "MOST_ROWS = 500"), ("% self.stride:\n            self.steps.s", "> 9:\n            self.steps.s")])
    assert kept(first.Monitor, n)[-1] < 0.3 * n, "the first clocks alone"
