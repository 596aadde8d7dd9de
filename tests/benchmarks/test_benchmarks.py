"""Run each benchmark once at its smallest size, so that none rots; nothing is timed. The arithmetic of rounds is checked by example."""

from __future__ import annotations

import os

import pytest

from benchmarks.data_parallel.problem import LOSS_TOLERANCE as NEAR
from benchmarks.data_parallel.run import OURS, SERVER, compare
from benchmarks.link import lacking
from benchmarks.plan import run as plan
from benchmarks.rounds import QUIET, Rounds, Sample, interleave
from benchmarks.scaling import run as scaling
from benchmarks.training_step.problem import LOSS_TOLERANCE, problem
from benchmarks.training_step.run import check_losses
from tests.ranks import ROOT, need, python

MACHINE_LINES = ("CPU", "BLAS", "threads", "sgemm")

BENCHMARKS = sorted(path.parent.name for path in (ROOT / "benchmarks").glob("*/run.py"))
ON_A_LINK = ("overlap", "compression_link")


@pytest.mark.parametrize("folder", BENCHMARKS)
def test_a_benchmark_runs_by_one_command_and_names_its_machine(folder: str) -> None:
    """Its README's command, at its smallest size, ends well, and prints what the figures were measured on."""
    if folder in ON_A_LINK:
        need(not lacking(), "root, ip and tc")
    result = python([ROOT / "benchmarks" / folder / "run.py", "--smoke"], timeout=100)
    assert result.code == 0, result.out + result.err
    said = [line.split(" ")[0] for line in result.out.splitlines()]
    assert all(word in said for word in MACHINE_LINES), result.out
    assert "MISSED" not in result.out and "met" not in said, "figures of a smoke run are no verdict"
    text = (ROOT / "benchmarks" / folder / "README.md").read_text()
    assert f"python benchmarks/{folder}/run.py" in text


def drifting_rounds() -> Rounds:
    """B is always twice A on a machine that is ten times slower in one half of the rounds, within which it changes."""
    rounds = Rounds()
    for a, others in ((1.0, 0.0), (1.1, 0.0), (10.0, 1.5), (11.0, 1.5), (10.5, 1.5)):
        rounds.add("A", Sample(a, others))
        rounds.add("B", Sample(2 * a, others))
    return rounds


def test_a_ratio_within_rounds_outlives_a_drift_that_ruins_a_quotient_of_bests() -> None:
    rounds = drifting_rounds()
    assert rounds.ratio("B", "A") == pytest.approx(2)
    first, last = rounds.samples["A"][0], rounds.samples["B"][-1]
    assert last.seconds / first.seconds != pytest.approx(2, rel=1)  # the broken variant: one measured before, one after


def test_quiet_ratios_come_from_rounds_that_others_left_alone() -> None:
    rounds = drifting_rounds()
    assert len(rounds.ratios("B", "A", quiet=True)) == 2
    rounds.samples["B"][0] = Sample(2.0, QUIET)
    assert len(rounds.ratios("B", "A", quiet=True)) == 1  # a round is quiet only if both of its measurements were


def test_every_round_measures_every_variant_once_in_order() -> None:
    calls: list[str] = []

    def measure(name: str) -> Sample:
        calls.append(name)
        return Sample(1.0)

    rounds = interleave({"A": lambda: measure("A"), "B": lambda: measure("B")}, 3)
    assert calls == ["A", "B"] * 3
    assert rounds.median("A") == rounds.least("B") == 1.0


def test_a_planned_run_is_timed_after_its_first_clocks() -> None:
    ends = [1.0, *(1.2 + 0.2 * k for k in range(4)), *(2.0 + 0.01 * k for k in range(20))]
    rows = [{"seconds": seconds, "samples": 32 * k} for k, seconds in enumerate(ends, 1)]
    assert plan.seconds_of(rows, 32) == pytest.approx((ends[-1] - ends[4]) / 20)
    assert rows[-1]["seconds"] / len(rows) > 0.08  # the broken variant: all clocks count
    assert plan.seconds_of(rows[:5], 32) == pytest.approx(0.2)  # of a run that is no longer


def test_a_plan_names_the_mix_of_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    rounds, best = Rounds(), {"schedule": "", "recompute": False, "microbatches": 1, "mix": None}
    for name, seconds in (("data=2", 1.0), ("pipe=2", 0.98)):
        rounds.add(name, Sample(seconds))
    plan.show("small", {"data=2": best | {"seconds": 0.5, "mix": "1,2"}, "pipe=2": best | {"seconds": 2.0}}, rounds, smoke=False)
    said = capsys.readouterr().out
    assert "\ndata=2 mix 1,2 " in said and "chooses data=2 mix 1,2, the fastest is pipe=2: 1.02" in said and "\npipe=2   " in said


def test_two_jobs_that_never_talk_have_a_core_each_and_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees the other's core busy, which is none of the others'; what started them keeps its cores."""
    before, seen, rates = os.sched_getaffinity(0), list[set[int]](), [10.0, 30.0]

    def started(*_: object) -> dict[str, float]:
        seen.append(os.sched_getaffinity(0))
        return {"samples_per_second": rates.pop(), "others": 1.25}

    monkeypatch.setattr(scaling, "started", started)
    sample = scaling.apart([], {})
    assert (1 / sample.seconds, sample.others) == (pytest.approx(40), 0.25)
    assert [len(cores) for cores in seen] == [1, 1] and len(set.union(*seen)) == min(2, len(before))
    assert os.sched_getaffinity(0) == before


def test_a_peer_that_does_other_work_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    ours = [2.0, 1.5, 1.0]
    check_losses(ours, [2.0, 1.5, 1.0 + LOSS_TOLERANCE / 2], "peer")
    assert "agree" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="would mean nothing"):
        check_losses(ours, [2.0, 1.5, 1.0 + 2 * LOSS_TOLERANCE], "peer")


def test_a_server_that_trains_something_else_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    ours = [2.0, 1.5, 1.0]
    compare({OURS: ours, SERVER: [2.0, 1.5, 1.0 + NEAR / 2]})
    assert capsys.readouterr().out.count("agree") == 2
    with pytest.raises(AssertionError, match="would mean nothing"):
        compare({OURS: ours, SERVER: [2.0, 1.5, 1.0 + 2 * NEAR]})


def test_both_sides_are_given_the_same_problem() -> None:
    a, b = problem((4, 3, 2), 5), problem((4, 3, 2), 5)
    assert all((p == q).all() for p, q in zip([a.x, a.y, *a.weights, *a.biases], [b.x, b.y, *b.weights, *b.biases], strict=True))
    assert (problem((4, 3, 2), 5, seed=1).x != a.x).any()
