"""`python -m mpidml simulate` as users start it: costs fitted or given, one policy or several, sizes beyond this machine."""

from __future__ import annotations

import json
import re

import pytest

from mpidml.runtime import report, straggler
from mpidml.sim.summary import sentence
from mpidml.simulate import simulate
from tests.changed import changed
from tests.ranks import mpirun, python
from tests.test_bad_input import run_many

SIMULATE = ("-m", "mpidml", "simulate")
GIVEN = ("--compute", "0.01", "--jitter", "0.5")


def ok(result):
    assert result.code == 0 and result.err == "", result
    return result.out


def test_costs_are_fitted_to_a_short_run_and_the_same_run_is_simulated_beside_it(tmp_path):
    said = ok(mpirun(2, [*SIMULATE, "--sync", "ssp:2", "--workers", "50", "--clocks", "30", "--hidden", "32", "--backend", "numpy", "--out", tmp_path / "run"]))
    assert re.search(r"measured [\d,]+ samples/s, simulated [\d,]+ \(\d+\.\d\d times\)", said)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.toml", "cost.json", "metrics.jsonl", "report.png", "summary.json"}
    assert " us, no bandwidth: these ranks share a host, so payloads take no time; --bandwidth gives a link's\n" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["simulated"] and (summary["workers"], summary["clocks"], summary["samples"]) == (50, 30, 50 * 30 * 16)
    assert summary["final_loss"] is None and summary["staleness_max"] <= 2 and "loss -" in said
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["source"] == "fitted" and len(cost["compute"]) > 50
    again = ok(python([*SIMULATE, "--cost", tmp_path / "run" / "cost.json", "--sync", "ssp:2", "--workers", "50", "--clocks", "30", "--out", tmp_path / "b"]))
    assert "fitting" not in again and "bandwidth" not in again and "without effect" not in again and "samples a worker and clock" not in again
    same = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert same["seconds"] == summary["seconds"], "the same costs give the same run"


def test_several_policies_make_one_table_with_one_process_first(tmp_path):
    words = ["--sync", "bsp,ssp:3,adaptive,quorum", "--workers", "100", "--clocks", "20", "--no-report", "--out", tmp_path / "run"]
    said = ok(mpirun(2, [*SIMULATE, *GIVEN, *words]))
    rows = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [row["variant"] for row in rows] == ["one process", "bsp", "ssp:3", "adaptive", "quorum"]
    assert rows[0]["samples"] == rows[1]["samples"], "one process does the work of all"
    assert rows[1]["samples_per_second"] < rows[2]["samples_per_second"] and rows[4]["dropped_samples"] > 0
    assert "assumed: its compute is that of all shares, one after the other" in said
    assert "one process is slower than all of them" in said and [p.name for p in (tmp_path / "run").rglob("*.png")] == ["compare.png"]


def test_flags_that_have_no_part_and_costs_of_another_batch_are_named(tmp_path):
    said = ok(python([*SIMULATE, *GIVEN, "--epochs", "30", "--dropout", "0", "--clocks", "2", "--no-report", "--out", tmp_path / "run"]))
    assert "without effect here: --epochs, --dropout (sizes alone move, and the costs are given)" in said
    assert "/ (summary.json" in said and not (tmp_path / "run" / "report.png").exists()
    (tmp_path / "cost.json").write_text('{"compute": [0.01], "samples": 7}')
    said = ok(python([*SIMULATE, "--cost", tmp_path / "cost.json", "--clocks", "100", "--seconds", "0.1", "--no-report", "--out", tmp_path / "b"]))
    assert "these costs were measured with 7 samples a worker and clock, here are 16" in said
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["clocks"] == 11, "a default that is given counts as given; the time ends it first"


REFUSED = {  # what is given -> what the line says
    "--workers 100000000": "--workers 100000000: would take about ",
    "--workers 3,5": "simulate: workers: '3,5' is a list, and one value is taken here; simulate each by itself",
    "--workers 0": "--workers 0: is below 1",
    "--clocks -3": "--clocks -3: is below 0",
    "--workers 50 --batch 10": "--batch 10: is below the 50 workers",
    "--jitter 2": "--jitter 2.0: is not a share",
    "--latency -1": "--latency -1.0: is not a number from 0 up",
    "--target 0.9": "--target: has no part in a simulation of sizes alone",
    "--budget 1e6": "--budget: has no part in a simulation of sizes alone",
    "--reads eager": "--reads: has no part in a simulation of sizes alone",
    "--sync quorum:9": "--sync quorum:9: a quorum of 9 gradients needs as many workers, there are 4",
    "--compress two_bit": "--compress two_bit: is off where all ranks share memory, for nothing is sent there; add --transport mpi",
    "--compress two_bit --transport mpi --strategy parameter_server,data_parallel": "codes to servers and back are known here, sums of codes are not",
    "--cost nowhere.json": "--cost nowhere.json: does nothing beside --fit or --compute",
    "--batch 64,128": "simulate: batch: the costs are the same for all of '64,128'",
    "--optimizer nope": "optim: there is no 'nope'",
    "--strategy nope": "strategies: there is no 'nope'",
    "--wrokers 5": "simulate: there is no option '--wrokers'",
    "--servers none": "--servers none: not a number of servers",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Run each command line in a process of its own: words -> its result; none writes anything."""
    folder = tmp_path_factory.mktemp("refused")
    argvs = [(["simulate", *GIVEN, *words.split(), "--out", str(folder / "run")], {}) for words in REFUSED]
    found = run_many(tmp_path_factory.mktemp("jobs") / "jobs.json", argvs)
    assert list(folder.iterdir()) == []
    return dict(zip(REFUSED, found, strict=True))


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_simulated_is_one_line_before_anything_ran(refused, words):
    result = refused[words]
    assert result.code == 2 and result.err.count("\n") == 1 and REFUSED[words] in result.err and result.out == "", result


def test_a_file_of_costs_that_is_none_is_one_line(tmp_path):
    texts = {"[1]": "holds no cost model", "{": "cannot be read as JSON", '{"compute": [-1]}': "compute is not a positive number"}
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.json").write_text(text)
    argvs = [(["simulate", "--cost", str(tmp_path / f"{i}.json"), "--out", str(tmp_path / "run")], {}) for i in range(len(texts))]
    for result, says in zip(run_many(tmp_path / "jobs", argvs), texts.values(), strict=True):
        assert result.code == 2 and says in result.err and result.err.count("\n") == 1, result


def test_the_arithmetic_of_many_workers_runs_on_virtual_clocks(tmp_path):
    """Ends at its target in virtual seconds; bsp of 8 workers learns what one process learns."""
    words = ["--sync", "bsp,ssp:2", "--learn", "--workers", "8", "--clocks", "150", "--batch", "64", "--target", "0.9", "--hidden", "32", "--backend", "numpy"]
    said = ok(python([*SIMULATE, *GIVEN, *words, "--out", tmp_path / "run"]))
    one, bsp, ssp = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert one["samples_to_target"] == bsp["samples_to_target"] > 0 and ssp["seconds_to_target"] > 0
    assert one["seconds_to_target"] / bsp["seconds_to_target"] == pytest.approx(8 / 2.2, rel=0.35), "jitter costs bsp of 8 about half"
    assert bsp["final_loss"] > 0 and "loss -" not in said and (tmp_path / "run" / "ssp-2" / "report.png").exists()


def test_what_is_learnt_on_virtual_clocks_is_what_is_learnt_on_mpi(tmp_path):
    """In repeat mode the same layout gives the same losses, whatever the time."""
    same = ["--sync", "ssp:2", "--deterministic", "--batch", "60", "--hidden", "16", "--dtype", "float64", "--backend", "numpy", "--no-report"]
    same += ["--lr-policy", "warmup:4+cosine"]
    ok(mpirun(3, ["-m", "mpidml", "train", *same, "--steps", "20", "--out", tmp_path / "mpi"]))
    ok(python([*SIMULATE, *GIVEN, *same, "--learn", "--workers", "3", "--clocks", "20", "--out", tmp_path / "virtual"]))
    mpi, virtual = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("mpi", "virtual"))
    assert virtual["test_loss"] == mpi["test_loss"] and virtual["test_accuracy"] == mpi["test_accuracy"]
    assert virtual["samples"] == mpi["samples"] == 1200 and virtual["staleness_max"] == mpi["staleness_max"] == 2


def test_a_schedule_over_the_run_needs_an_end_and_the_clocks_of_a_simulation_are_one(tmp_path):
    words = [*SIMULATE, *GIVEN, "--learn", "--workers", "2", "--batch", "60", "--hidden", "4", "--backend", "numpy", "--seconds", "0.05", "--lr-policy", "poly"]
    ok(python([*words, "--clocks", "8", "--out", tmp_path / "run"]))
    result = python([*words, "--epochs", "3", "--out", tmp_path / "other"])  # a simulation does not look at epochs
    assert result.code == 2 and "--lr-policy poly: takes the whole run" in result.err and not (tmp_path / "other").exists(), result


def test_more_workers_than_one_process_can_compute_for_is_one_line(tmp_path):
    result = python([*SIMULATE, *GIVEN, "--learn", "--workers", "65", "--out", tmp_path / "run"])
    assert result.code == 2 and "--workers 65: --learn runs the arithmetic of at most 64" in result.err, result


def test_one_policy_says_whether_its_target_was_reached(tmp_path):
    words = [*SIMULATE, *GIVEN, "--learn", "--workers", "2", "--batch", "64", "--hidden", "16", "--backend", "numpy", "--clocks", "10", "--no-report"]
    missed = ok(python([*words, "--target", "0.9999", "--out", tmp_path / "missed"]))
    assert "; test accuracy 0.9999 was NOT reached; " in missed
    met = ok(python([*words, "--target", "loss:2.6", "--out", tmp_path / "met"]))
    summary = json.loads((tmp_path / "met" / "summary.json").read_text())
    assert f"; test loss 2.6 was reached at {summary['target_seconds']:.4g} s, after {summary['target_samples']:,} samples; " in met
    none = ok(python([*words, "--out", tmp_path / "none"]))
    assert "reached" not in none
    assert "reached" not in sentence("bsp", summary | {"target": None}), "the broken variant: a summary whose target is not told"


def waited_for(*words):
    return simulate(dict(words) | {"compute": 1e-3, "clocks": 50}, quiet=True, write=False)[0]


def test_of_equal_workers_none_is_a_straggler_and_a_slow_one_is_with_what_others_waited():
    """All ten wait for messages alone; of two, of which worker 0 is twice as slow, each clock of worker 1 waits 1 ms, without what messages take."""
    assert waited_for(("workers", 10))["most_waited_for"] is None
    slow = waited_for(("workers", 2), ("slowdown", "permanent:2"), ("latency", 2e-4))["most_waited_for"]
    assert slow["rank"] == 0 and slow["is_straggler"] and slow["seconds"] == pytest.approx(49 * 1e-3, rel=0.05)
    every = changed(straggler, [("row[\"seconds\"] - travel_seconds * row[\"times\"])", "row[\"seconds\"])")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpidml.simulate.straggler", every)
        assert waited_for(("workers", 10))["most_waited_for"]["is_straggler"]


def labels(found, module=report):
    """Return the labels of the bars in the order of their length of work."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    module._rank_time(axes, found)
    return [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]


def test_a_bar_is_called_by_its_rank_where_servers_lie_apart():
    found = waited_for(("workers", 3), ("servers", 2), ("slowdown", "permanent:4"))
    assert len(found["roles"]) == 5 and found["compute_seconds"][0] == pytest.approx(4 * found["compute_seconds"][1])
    assert labels(found) == ["rank 2 worker 0", "rank 3 worker 1", "rank 4 worker 2"]
    assert labels(found, changed(report, [('first = len(summary["roles"]) - n', "first = 0")]))[0] == "rank 0 server 0"
