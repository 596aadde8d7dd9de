"""A scaling study: what is simulated is what `simulate` and `plan` say, a study goes on where it stopped, and what cannot be measured is told."""

from __future__ import annotations

import json

import pytest
from threadpoolctl import threadpool_limits

from mpidml.__main__ import _starts_ranks
from mpidml.cli import parse
from mpidml.core.cost import CostModel
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.scale_request import sized
from mpidml.plan import plan
from mpidml.planner.layout import why_not
from mpidml.planner.price import Pricer
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.launch import BUDGETED, THREAD_VARIABLES
from mpidml.runtime.threads import place
from mpidml.scale import point, scale
from mpidml.scaling import point as of_point
from mpidml.simulate import simulate

JOB = {"batch": 48, "hidden": "24,24", "steps": 30, "warm_up": 5, "report": False}
COSTS = {
    "large": CostModel((4e-3, 5e-3, 6e-3), apply=1e-4, samples=48, source="fitted").mapping(),
    "small": CostModel((1e-3,), apply=1e-4, samples=6, source="fitted").mapping(),
}
LAYERS = [[[0.0, 1e-6], [0.0, 2e-6]]] * 3


class Measured:
    """In place of starting ranks: seconds that the number of ranks decides; `asked` lists what was started."""

    def __init__(self, stops_at=0, layers=False):
        self.asked, self.stops_at, self.layers = [], stops_at, layers

    def __call__(self, study, n, kinds):
        if n == self.stops_at:
            raise KeyboardInterrupt
        self.asked.append(n)
        if n == min(study.request.ranks):
            study.write_costs(n, {"layers": LAYERS, "update": 1e-9, "add": 1e-10, "rows": 48} if self.layers else COSTS)
        for kind in study.missing(n, kinds):
            seconds = (5e-3 / n + 1e-3) if kind == "strong" else 5e-3 + 1e-4 * n
            run = {"seconds_per_step": seconds, "samples_per_second": sized(study.job, kind, n).batch / seconds, "compute_share": 0.7, "wait_share": 0.2, "comm_share": 0.1}
            place = {"hosts": 1, "ranks_per_host": n, "cores": 2, "shares_cores": n > 2, "link": [2e-6, 4e9] if n > 1 else None}
            study.write_point(n, kind, {**place, "runs": [{**run, "nbytes_per_rank_and_step": 100.0}]})


def study(out, start=None, **values):
    return scale({**JOB, "out": str(out), **values}, start or Measured(), quiet=True)


def rows(found, kind):
    return {row["ranks"]: row for row in found["rows"] if row["kind"] == kind}


@pytest.mark.parametrize(
    "job", [{"sync": "bsp"}, {"sync": "ssp:3", "servers": "2"}, {"strategy": "data_parallel"}], ids=["bsp", "ssp, two servers", "data_parallel"]
)
def test_a_simulated_point_is_what_simulate_says_of_the_same_job_and_costs(tmp_path, job):
    found = study(tmp_path, ranks="1,2,4", simulate="16,200", **job)
    n_servers = int(job.get("servers", 0))
    for kind, n in (("strong", 1), ("strong", 16), ("weak", 16), ("weak", 200)):
        row = rows(found, kind)[n]
        workers = n - n_servers if n > 1 else 1
        values = {**job, "cost": str(tmp_path / "costs" / f"{kind}-{n}.json"), "workers": workers, "clocks": row["simulated_clocks"], "hidden": JOB["hidden"]}
        (entry,) = simulate({**values, "batch": row["simulated_batch"]}, quiet=True, write=False)
        assert row["simulated_seconds_per_step"] == entry["seconds"] * row["simulated_batch"] / entry["samples"]
        assert row["simulated_nbytes_per_rank_and_step"] * n * entry["clocks"] == pytest.approx(entry["bytes_sent"][0])
        cost = json.loads((tmp_path / "costs" / f"{kind}-{n}.json").read_text())
        assert cost["samples"] == max(row["simulated_batch"] // workers, 1)
        assert cost["latency"] == {1: 0.0, 16: 50e-6, 200: 50e-6}[n], "more ranks than were measured are on several hosts"
        assert (cost["bytes_per_second"] > 0) == (n > 1), "between hosts payloads take time"
    inside = json.loads((tmp_path / "costs" / "strong-4.json").read_text())
    assert inside["latency"] == 2e-6 and (inside["bytes_per_second"] > 0) == (job.get("strategy") == "data_parallel"), "inside a host servers' payloads take none"
    assert {row["ranks"]: row["not_simulated"] is not None for row in found["rows"] if row["kind"] == "strong"}[200], "48 samples are too few for 200 workers"
    assert rows(found, "strong")[4]["ratio"] == rows(found, "strong")[4]["simulated_seconds_per_step"] / (5e-3 / 4 + 1e-3)


def test_costs_at_another_share_would_be_seen(tmp_path):
    """The check above compares what depends on the share: 16 ranks at the share of one take longer."""
    found = study(tmp_path, ranks="1,2", simulate="16")
    row = rows(found, "strong")[16]
    values = {"cost": str(tmp_path / "costs" / "weak-16.json"), "workers": 16, "clocks": row["simulated_clocks"], "batch": 48, "hidden": "24,24"}
    (entry,) = simulate(values, quiet=True, write=False)
    assert entry["seconds"] / entry["clocks"] > 2 * row["simulated_seconds_per_step"]


def test_a_pipeline_is_what_the_planner_says_of_it(tmp_path):
    found = study(tmp_path, Measured(layers=True), ranks="1,2", strategy="pipeline", strong=True, simulate="4", microbatches=6)
    row = rows(found, "strong")[2]
    values = {"ranks": 2, "cores": 2, "grid": "pipe=2", "schedule": "one_f_one_b", "microbatches": 6, "batch": 48, "hidden": "24,24"}
    priced = plan({**values, "flops_per_second": 1e9, "apply": 1e-9, "host_latency": 2e-6, "host_bandwidth": 4e9}, quiet=True, write=False)
    costs = {"ranks": 1, "layers": [[of["forward"], of["backward"]] for of in priced["layers"]], "update": priced["update_seconds_per_byte"]}
    costs |= {"add": priced["add_seconds_per_byte"], "rows": 48}
    (tmp_path / "points" / "costs-1.json").write_text(json.dumps(costs))
    again = scale({"out": str(tmp_path), "table": True, "report": False}, quiet=True)
    best = next(of for of in priced["candidates"] if of["grid"] == "pipe=2")
    assert rows(again, "strong")[2]["simulated_seconds_per_step"] == pytest.approx(best["seconds"], rel=1e-12) != row["simulated_seconds_per_step"]
    assert rows(found, "strong")[4]["not_simulated"].endswith("layer(s)"), "three layers make no four stages"


def test_a_study_that_was_cut_in_two_is_one(tmp_path):
    whole = study(tmp_path / "whole", ranks="1,2,4", simulate="16")
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "cut", Measured(stops_at=4), ranks="1,2,4", simulate="16")
    assert not (tmp_path / "cut" / "scale.json").exists()
    rest = Measured()
    assert study(tmp_path / "cut", rest, ranks="1,2,4", simulate="16") == whole and rest.asked == [4]
    nothing = Measured()
    assert scale({"out": str(tmp_path / "cut"), "table": True, "simulate": "16", "report": False}, nothing, quiet=True) == whole and not nothing.asked
    assert (tmp_path / "cut" / "scale.json").read_bytes() == (tmp_path / "whole" / "scale.json").read_bytes()
    one = Measured()
    other = study(tmp_path / "other", one, ranks="1,2,4", simulate="16", lr=0.01, batch=96)
    assert one.asked == [1, 2, 4] and other != whole


def test_kinds_that_were_not_asked_for_are_measured_later(tmp_path):
    assert {row["kind"] for row in study(tmp_path, ranks="1,2", strong=True)["rows"]} == {"strong"}
    later = Measured()
    assert {row["kind"] for row in study(tmp_path, later, ranks="1,2")["rows"]} == {"strong", "weak"} and later.asked == [1, 2]


def test_without_one_rank_all_is_relative_to_the_fewest(tmp_path, capsys):
    found = scale({**JOB, "out": str(tmp_path), "ranks": "2,4", "weak": True}, Measured())
    row = rows(found, "weak")[4]
    assert row["relative_to"] == 2 and row["efficiency"] == pytest.approx((5e-3 + 2e-4) / (5e-3 + 4e-4)) and row["speed_up"] == 2 * row["efficiency"]
    said = capsys.readouterr().out
    assert "relative to 2 ranks, the fewest" in said and "this is speed, not learning" in said
    assert "* 4 ranks of a host on 2 core(s): shared" in said and "\n   4*" in said


def test_a_grid_that_does_not_fit_is_left_out_with_its_reason(tmp_path, capsys):
    start = Measured(layers=True)
    found = scale({**JOB, "out": str(tmp_path), "ranks": "1,2,3,4", "strategy": "hybrid", "grid": "data=0,pipe=2", "strong": True}, start)
    assert start.asked == [2, 4] and [row["ranks"] for row in found["rows"]] == [1, 2, 3, 4]
    assert "do not divide 3" in rows(found, "strong")[3]["skipped"]
    assert "1, 3 rank(s): not measured: --grid data=0,pipe=2: 2 ranks of the others do not divide 1" in capsys.readouterr().out


def test_more_ranks_than_were_measured_lie_on_full_hosts(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("mpidml.scaling.virtual.Pricer", lambda task, machine, *rest: seen.setdefault(machine.n_ranks, machine) and Pricer(task, machine, *rest))
    job = {"strategy": "hybrid", "grid": "data=0", "strong": True, "simulate": "9,10"}
    study(tmp_path, Measured(layers=True), ranks="1,4", **job)
    assert {n: (machine.n_hosts, machine.per_host) for n, machine in seen.items()} == {1: (1, 1), 4: (1, 4), 9: (3, 4), 10: (3, 4)}


def test_what_has_no_simulation_is_measured_alone(tmp_path):
    found = study(tmp_path, ranks="1,2", strategy="averaging", strong=True)
    assert all(row["speed_up"] and "is not known on virtual clocks" in row["not_simulated"] for row in found["rows"])


def test_a_job_that_may_run_on_several_hosts_is_not_refused_for_one():
    _, values = parse(["train", "--compress", "two_bit"])
    assert why_not(values, 4) == "", "codes are off inside a host alone"
    assert "--compress two_bit" in why_not(values, 4, several=False)
    assert "is below the 100 workers" in why_not(values.with_values({"compress": ""}, "test"), 100)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"batch": 64}, "this study was begun with batch 48, not 64; give the same settings, or another --out"),
        ({"repeat": 5}, "this study was begun with repeat 3, not 5"),
        ({"warm_up": 6}, "this study was begun with warm_up 5, not 6"),
        ({"steps": 5}, "this study was begun with steps 30, not 5"),
        ({"ranks": ""}, "--ranks : names no number"),
    ],
)
def test_other_settings_are_refused(tmp_path, changed, says):
    study(tmp_path, ranks="1")
    with pytest.raises(UserError) as error:
        study(tmp_path, **{"ranks": "1", **changed})
    assert says in str(error.value)


def test_a_net_file_that_has_changed_is_refused(tmp_path):
    net = tmp_path / "net.toml"
    net.write_text('[[layer]]\ntype = "dense"\n')
    values = {"model": str(net), "steps": 30, "ranks": "1", "report": False, "out": str(tmp_path / "study")}
    scale(values, Measured(), quiet=True)
    scale(values, Measured(), quiet=True)
    net.write_text('[[layer]]\ntype = "dense"\nunits = 8\n[[layer]]\ntype = "dense"\n')
    with pytest.raises(UserError, match="begun with another"):
        scale(values, Measured(), quiet=True)


def test_what_cannot_be_is_said_before_anything_is_written(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("lr = 0.1\n")
    for values, says in (
        ({"out": str(tmp_path / "a")}, "--ranks: names no number of ranks to measure"),
        ({"out": str(tmp_path / "a"), "table": True}, "holds no study; measure first"),
        ({"only": 1}, "--out: names the folder of the study, which --only needs"),
        ({"out": str(tmp_path / "a"), "ranks": "1", "steps": 20}, "--steps 20: are no more than --warm-up 20"),
        ({"out": str(tmp_path / "run"), "ranks": "1"}, "the folder holds something else than a study"),
    ):
        with pytest.raises(UserError) as error:
            scale(values, Measured(), quiet=True)
        assert says in str(error.value) and not (tmp_path / "a").exists()


def test_a_launcher_may_start_the_ranks_of_one_point_alone():
    assert _starts_ranks({"ranks": "1,2"}, None) and _starts_ranks({"only": "2"}, None) and _starts_ranks({"table": True}, None)
    assert not _starts_ranks({"only": "1"}, None) and not _starts_ranks({"only": "2"}, "hydra")
    with pytest.raises(UserError, match="starts the ranks of each point itself, and hydra has started these"):
        _starts_ranks({"ranks": "1,2"}, "hydra")


def test_a_point_says_which_flags_do_nothing_as_the_study_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpidml.scale.measure", lambda *of: None)
    values = {**JOB, "out": str(tmp_path), "only": 1, "seconds": 5.0, "keep-checkpoints": 3}
    point(values)
    scale(values, lambda study, n, kinds: [study.write_point(n, kind, {"skipped": "no"}) for kind in kinds])
    assert capsys.readouterr().out.splitlines() == ["without effect here: --seconds, --keep-checkpoints (a study counts steps)"] * 2
    point(values, quiet=True)
    point({"out": str(tmp_path), "only": 1})
    assert not capsys.readouterr().out


def test_sparse_rows_are_refused_by_the_name_and_the_flags_of_who_asks(tmp_path):
    rows_of = [f"{i % 2} {1 + i % 7}:1 {8 + i % 5}:{i}\n" for i in range(60)]
    (tmp_path / "rows.svm").write_text("".join(rows_of))
    job = {"data": str(tmp_path / "rows.svm"), "scale": "maxabs", "model": "softmax", "optimizer": "adagrad", "batch": 8}
    said = study(tmp_path / "study", ranks="1", simulate="4", strong=True, **{**job, "hidden": Job.hidden})["rows"][1]["not_simulated"]
    assert said.startswith("scale: the rows of ") and said.endswith("; use --scale standard"), said
    with pytest.raises(UserError, match=r"^plan: the rows of .*; use --scale standard$"):
        plan({**job, "ranks": 2}, quiet=True, write=False)
    with pytest.raises(UserError, match=r"^simulate: the rows of .*; use --scale standard, or leave out --learn and --bandwidth$"):
        simulate({**job, "compute": "0.01", "workers": 2, "bandwidth": 1e9}, quiet=True, write=False)


@pytest.fixture
def threads_seen(monkeypatch):
    """List how many threads BLAS has wherever a point computes, on a machine whose ranks would have two."""
    seen: list[int] = []

    def watched(function):
        def call(*args, **more):
            seen.append(place().n_threads)
            return function(*args, **more)

        return call

    for name in ("train", "fit", "costs_of"):
        monkeypatch.setattr(f"mpidml.scaling.point.{name}", watched(getattr(of_point, name)))
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "2")
    with threadpool_limits(2, "blas"):
        yield seen


@pytest.mark.parametrize("job", [{"strategy": "data_parallel"}, {"strategy": "pipeline"}], ids=["sums", "layers"])
@pytest.mark.parametrize("given", [False, True], ids=["shared out", "set by the user"])
def test_runs_and_costs_have_one_thread_at_any_number_of_ranks_or_those_that_the_user_set(tmp_path, monkeypatch, threads_seen, job, given):
    monkeypatch.setenv(BUDGETED, "" if given else " ".join(THREAD_VARIABLES))
    point({**job, "out": str(tmp_path), "only": 1, "batch": 60, "hidden": "8", "steps": 4, "warm_up": 1, "repeat": 1, "strong": True}, quiet=True)
    assert len(threads_seen) >= 2 and set(threads_seen) == {2 if given else 1}
    assert place().n_threads == 2, "what computes afterwards has its own again"


@pytest.mark.mpi
def test_a_point_is_measured_on_the_ranks_that_were_started(comm, tmp_path):
    n, out = comm.size, comm.bcast(str(tmp_path / "study"))
    ranks = CountedComm(comm)
    values = {"out": out, "ranks": "1,2,3,5", "batch": 60, "hidden": "8", "backend": "numpy", "steps": 8, "warm_up": 2, "repeat": 2, "dropout": 0.1}
    with pytest.raises(UserError, match=f"--only {n + 1}: {n} rank"):
        point({**values, "ranks": f"{n},{n + 1}", "only": n + 1}, ranks, quiet=True)
    point({**values, "only": n, "share_cores": True}, ranks, quiet=True)
    if comm.rank == 0:
        for kind, batch in (("strong", 60), ("weak", 60 * n)):
            found = json.loads((tmp_path / "study" / "points" / f"{n}-{kind}.json").read_text())
            assert found["ranks"] == n and len(found["runs"]) == 2 and found["hosts"] == 1 and found["ranks_per_host"] == n
            assert all(run["batch"] == batch and run["seconds_per_step"] > 0 for run in found["runs"]) and (found["link"] is None) == (n == 1)
        assert (tmp_path / "study" / "points" / f"costs-{n}.json").exists() == (n == 1), "the fewest ranks measure what computes cost"
    ranks.free()


@pytest.mark.mpi(min_size=2)
def test_costs_are_those_of_a_kind_that_can_run(comm, tmp_path):
    """A batch of one sample is none for two ranks, and one for each of them under weak scaling."""
    out, ranks = comm.bcast(str(tmp_path)), CountedComm(comm)
    values = {"out": out, "only": comm.size, "share_cores": True, "batch": 1, "hidden": "8", "backend": "numpy", "steps": 4, "warm_up": 1, "repeat": 1}
    point(values, ranks, quiet=True)
    ranks.free()
    if comm.rank == 0:
        strong, weak = (json.loads((tmp_path / "points" / f"{comm.size}-{kind}.json").read_text()) for kind in ("strong", "weak"))
        assert "is below" in strong["skipped"] and len(weak["runs"]) == 1
        assert json.loads((tmp_path / "points" / f"costs-{comm.size}.json").read_text())["large"]["samples"] == 1


@pytest.mark.mpi
def test_a_point_of_stages_tells_what_layers_cost_and_a_cut_of_other_ranks_is_left_out(comm, tmp_path):
    n, out, ranks = comm.size, comm.bcast(str(tmp_path)), CountedComm(comm)
    values = {"only": n, "share_cores": True, "strategy": "pipeline", "batch": 60, "hidden": "8", "steps": 4, "warm_up": 1, "repeat": 1, "strong": True}
    point({**values, "out": f"{out}/study"}, ranks, quiet=True)
    point({**values, "out": f"{out}/by-hand", "partition": "1,1"}, ranks, quiet=True)
    ranks.free()
    if comm.rank == 0:
        found, by_hand = (json.loads((tmp_path / name / "points" / f"{n}-strong.json").read_text()) for name in ("study", "by-hand"))
        costs = json.loads((tmp_path / "study" / "points" / f"costs-{n}.json").read_text())
        assert len(costs["layers"]) == 2 and costs["rows"] == 60 and all(part >= 0 for layer in costs["layers"] for half in layer for part in half)
        assert len(found["runs"]) == 1 and ("runs" in by_hand) == (n == 2) and (n == 2 or "--partition 1,1" in by_hand["skipped"])


@pytest.mark.mpi(min_size=2)
def test_ranks_that_would_share_cores_are_left_out_until_asked_for(comm, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    out, ranks = comm.bcast(str(tmp_path / "study")), CountedComm(comm)
    values = {"out": out, "only": comm.size, "batch": 60, "hidden": "8", "backend": "numpy", "steps": 8, "warm_up": 2, "repeat": 1, "strong": True}
    point(values, ranks, quiet=True)
    path = tmp_path / "study" / "points" / f"{comm.size}-strong.json"
    first = json.loads(path.read_text()) if comm.rank == 0 else {}
    point({**values, "share_cores": True}, ranks, quiet=True)
    if comm.rank == 0:
        assert "would share 1 core(s); --share-cores measures them all the same" in first["skipped"] and "runs" not in first
        assert json.loads(path.read_text())["shares_cores"] and json.loads(path.read_text())["runs"]
    ranks.free()
