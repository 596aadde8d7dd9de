"""`python -m mpidml plan` as users start it: what it proposes runs, and it says what was measured and what assumed."""

from __future__ import annotations

import json
import tomllib

import pytest

from mpidml.cli import parse
from mpidml.core.errors import UserError
from mpidml.core.plan_request import asked
from mpidml.plan import plan
from tests.ranks import mpirun, python

PLAN = ("-m", "mpidml", "plan", "--flops-per-second", "1e9", "--apply", "1e-4", "--hidden", "24,24,24", "--backend", "numpy")


def lines(result):
    assert result.code == 0 and not result.err, result
    return result.out.splitlines()


@pytest.mark.parametrize(
    ("words", "n", "grid"),
    [
        (["--ranks", "2", "--cores", "2"], 2, None),
        (["--ranks", "4", "--cores", "4", "--grid", "data=2,pipe=2", "--schedule", "gpipe", "--microbatches", "4"], 4, "data=2,pipe=2"),
        (["--ranks", "2", "--cores", "2", "--grid", "data=2"], 2, "data=2"),
        (["--ranks", "2", "--cores", "1"], 1, "data=1"),
    ],
    ids=["two ranks", "a grid that is given", "replicas that are given", "one rank where two share a core"],
)
def test_what_is_proposed_runs(tmp_path, words, n, grid):
    out = tmp_path / "plan"
    said = lines(python([*PLAN, *words, "--lr", "0.1", "--out", out], 60))
    assert said[-1] == f"mpirun -n {n} python -m mpidml train --config {out / 'plan.toml'}"
    found, config = json.loads((out / "plan.json").read_text()), tomllib.loads((out / "plan.toml").read_text())
    best = found["candidates"][0]
    assert (grid is None or best["grid"] == grid) and best["seconds"] > 0 and config["strategy"] == best["strategy"] and config["lr"] == "0.1"
    assert not {"ranks", "flops_per_second", "out"} & {*config}
    run = ["-m", "mpidml", "train", "--config", out / "plan.toml", "--epochs", "1", "--no-report", "--out", tmp_path / "run"]
    result = mpirun(n, run) if n > 1 else python(run)
    assert result.code == 0, result
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ranks"] == n and summary["strategy"] == best["strategy"] and summary["epochs"] == 1


def test_it_says_what_was_measured_and_what_assumed(tmp_path):
    said = lines(python([*PLAN, "--ranks", "8", "--hosts", "2", "--cores", "2", "--latency", "1e-4", "--out", tmp_path / "plan"], 60))
    assert said[0].startswith("layers: ") and "(by --flops-per-second); update of 7," in said[0] and said[0].endswith("0.1 ms (by --apply)")
    assert said[1] == "ranks: 8 on 2 host(s) of 2 core(s) (given): 4 ranks share them, and wake after 125 us (assumed)"
    assert said[2] == "inside a host: 5 us, 5 GB/s (assumed; mpirun -n 2 python -m mpidml plan measures it)"
    assert said[3] == "between hosts: 100 us, 1.25 GB/s (in part given)"
    head = next(i for i, line in enumerate(said) if line.startswith("grid "))
    assert said[head].split() == ["grid", "schedule", "microbatches", "s/batch", "s/epoch", "samples/s", "sent", "memory", "idle"]
    assert 1 <= sum(bool(line) for line in said[head + 1 : head + 6]) <= 5


@pytest.mark.openmpi
def test_on_two_ranks_it_measures_the_layers_and_what_is_between_them(tmp_path):
    result = mpirun(2, ["-m", "mpidml", "plan", "--ranks", "2", "--hidden", "16,16", "--out", tmp_path / "plan"])
    assert result.code == 0, result
    assert result.out.count("layers: ") == 1 and "(measured on this machine)" in result.out and "GB/s (measured)" in result.out
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert all(cost >= 0 for layer in found["layers"] for half in layer.values() for cost in half) and found["inside"] != [5e-6, 5e9]


def lightest(found):
    """Return the least memory of what was timed."""
    return min(int(each["memory_nbytes"]) for each in found["candidates"] if "memory_nbytes" in each)


def test_everything_that_was_looked_at_is_told():
    values = {"ranks": 6, "hidden": "24,24,24", "flops_per_second": 1e9, "apply": 1e-4, "cores": 6, "batch": 48}
    found = plan(values, quiet=True, write=False)
    told = [*found["candidates"], *found["left_out"]]
    keys = {(each["grid"], each["schedule"], each["microbatches"], each["recompute"], each["mix"]) for each in told}
    assert len(keys) == len(told) and {"data=6", "pipe=6", "tensor=6", "data=3,pipe=2", "data=2,pipe=3", "data=2,tensor=3", "data=1"} <= {key[0] for key in keys}
    seconds = [each.get("seconds") or each["at_least_seconds"] for each in found["candidates"]]
    assert seconds[:5] == sorted(seconds)[:5] and all(each["why"] for each in found["left_out"])
    least, said = lightest(found), ""
    while not said:  # what needs less may be slower, and is found where nothing else fits
        less = plan({**values, "memory_per_rank": str(least)}, quiet=True, write=False)
        assert lightest(less) <= least and less["candidates"][0]["seconds"] >= seconds[0] and any(each["why"].startswith("needs ") for each in less["left_out"])
        assert all(each["memory_nbytes"] <= least for each in less["candidates"] if "memory_nbytes" in each)
        least = lightest(less)
        try:
            plan({**values, "memory_per_rank": str(least - 1)}, quiet=True, write=False)
            least -= 1
        except UserError as error:
            said = str(error)
    assert said.startswith(f"--memory-per-rank {least - 1}: nothing fits, the least that is needed is {least} ")


def test_a_plan_keeps_out_of_the_folder_of_another(tmp_path):
    (tmp_path / "plan.toml").touch()
    with pytest.raises(UserError, match="the folder holds another plan; choose another --out"):
        plan({"ranks": 2, "flops_per_second": 1e9, "out": str(tmp_path)}, quiet=True)
    with pytest.raises(UserError, match="--collective mpi: what it costs is not written down as rounds; plan by auto"):
        plan({"ranks": 2, "collective": "mpi"}, quiet=True, write=False)


def test_only_what_computes_again_where_that_is_asked_for():
    values = {"ranks": 2, "hidden": "24,24,24", "flops_per_second": 1e9, "apply": 1e-4, "cores": 2, "grid": "pipe=2", "recompute": True}
    found = plan(values, quiet=True, write=False)
    assert {each["recompute"] for each in found["candidates"]} == {True}
    assert {each["schedule"] for each in found["left_out"] if "twice" in each["why"]} == {"zero_bubble"}


@pytest.mark.parametrize("hidden", ["24,24,24", "512,512,512"])
@pytest.mark.parametrize("given", [{"schedule": "gpipe"}, {"schedule": "one_f_one_b"}, {"recompute": True}, {"schedule": "gpipe", "recompute": True}], ids=str)
def test_a_flag_of_stages_that_is_given_is_kept(tmp_path, given, hidden):
    """Without it what has one stage is faster; the default's name, too, is a schedule that is given."""
    values = {"ranks": 4, "cores": 4, "hidden": hidden, "flops_per_second": 1e9, "apply": 1e-4, "backend": "numpy", "out": str(tmp_path / "plan")}
    assert all("pipe" not in each["grid"] for each in plan(values, quiet=True, write=False)["candidates"][:1])
    found = plan({**values, **given}, quiet=True)
    config = tomllib.loads((tmp_path / "plan" / "plan.toml").read_text())
    assert {**config, **given} == config and "pipe" in config["grid"]
    told = [*found["candidates"], *found["left_out"]]
    assert all("pipe" in each["grid"] and {**each, **given} == each for each in found["candidates"]) and all("pipe" in each["grid"] for each in told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"schedule": "gpipe", "ranks": 1}, "--schedule gpipe: is for several stages, and --ranks 1 has one; leave it out, or give more on the pipe"),
        ({"recompute": True, "grid": "data=2,tensor=2"}, "--recompute: is for several stages, and --grid data=2,tensor=2 has one; leave it out"),
        ({"schedule": "one_f_one_b", "grid": "data=4"}, "--schedule one_f_one_b: is for several stages, and --grid data=4 has one"),
        ({"recompute": True, "mix": "1=tensor"}, "--recompute: is for several stages, and --mix 1=tensor for one that replicas share out; leave one of them out"),
    ],
    ids=str,
)  # fmt: skip
def test_a_flag_that_cannot_be_kept_is_refused(given, told):
    with pytest.raises(UserError, match=f"^{told}"):
        plan({"ranks": 4, "flops_per_second": 1e9, **given}, quiet=True, write=False)


def test_the_flags_are_those_of_train_and_its_own():
    command, given = parse(["plan", "--ranks", "64", "--hosts", "8", "--hidden", "64,64", "--no-report"])
    request, job = asked(given)
    assert command == "plan" and (request.ranks, request.hosts, job.hidden, job.report) == (64, 8, (64, 64), False) and not job.memory_per_rank
    for words, says in ((["--ranks", "0"], "--ranks 0: is below 1"), (["--wake", "nan"], "--wake nan: is not a number"), (["--rank", "4"], "did you mean '--ranks'?")):
        with pytest.raises(UserError, match=says.replace("?", r"\?")):
            parse(["plan", *words])
    for word, value in (("--compress", "two_bit"), ("--slowdown", "permanent:2")):
        with pytest.raises(UserError, match=f"{word} {value}: does nothing under plan, which prices sums of plain values on ranks that are alike"):
            asked(parse(["plan", "--ranks", "2", word, value])[1])
    with pytest.raises(UserError, match="--host-latency 1e-6: does nothing with one rank on each host"):
        parse(["plan", "--ranks", "2", "--hosts", "2", "--host-latency", "1e-6"])
