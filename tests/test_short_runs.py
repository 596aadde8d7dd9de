"""A time in which no clock ends is the end of a run as any other: it says so, and nothing is held against what was not measured."""

from __future__ import annotations

import pytest

from mpidml.core.clocks import NO_CLOCK
from mpidml.core.job import Job
from mpidml.runtime import comparison, report, summary
from mpidml.simulate import simulate
from mpidml.strategies import base
from tests.changed import changed
from tests.training import trained

SHORT = Job(seconds=1e-9, hidden=(4,), batch=16, backend="numpy", epochs=0)


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:3", "asp", "quorum:1", "adaptive"])
def test_a_run_of_no_clock_ends_well(comm, sync, tmp_path):
    found, values = trained(comm, SHORT, sync=sync)
    assert (found["samples"], found["clocks"], found["final_loss"], found["samples_per_second"]) == (0, 0, None, None)
    assert values is not None and found["seconds"] > 0 and found["test_loss"] > 0
    if comm.rank == 0:
        assert NO_CLOCK in summary.closing(found, None, False)
        report.draw(tmp_path / "report.png", found, [])


def test_a_summary_that_takes_a_row_for_granted_is_seen(alone, monkeypatch):
    guarded = 'monitor.metrics[-1] if monitor.metrics else {"clock": -1, "seconds": max(r["seconds"] for r in ranks)}'
    monkeypatch.setattr(base, "summary", changed(summary, [(guarded, "monitor.metrics[-1]")]))
    with pytest.raises(IndexError):
        trained(alone.mpi, SHORT)


@pytest.mark.parametrize("learn", [False, True])
def test_a_simulation_of_no_clock_is_not_compared(alone, learn, capsys):
    values = {"compute": 1.0, "seconds": 1e-6, "sync": "bsp,asp", "learn": learn, "hidden": "4", "backend": "numpy", "workers": 2}
    one, *others = simulate(values, alone, write=False)
    said = capsys.readouterr().out
    assert [row["samples_per_second"] for row in others] == [None, None] and one["samples"] > 0
    assert f"bsp: {NO_CLOCK}" in said and f"bsp, asp: {NO_CLOCK}" in said and "times as fast" not in said
    rated = [row | {"samples_per_second": 0.0} for row in others]
    assert any("000,000 times" in text for text in comparison.verdict([one, *rated], None)), "the broken variant: a rate of nothing is a measure"
