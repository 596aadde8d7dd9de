"""`python -m mpidml train` as users start it: what a run leaves behind, what gives the same run again, and the same from a script."""

import gzip
import hashlib
import json
import os
import re
import shlex
import sys
import tomllib
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

import mpidml
from mpidml.core.job import Job
from mpidml.nn.models import build
from mpidml.runtime import monitor
from tests.ranks import mpirun, python, run

TRAIN = ("-m", "mpidml", "train")
SMALL = ("--epochs", "1", "--hidden", "16", "--backend", "numpy", "--no-report")  # no compiler to load, nothing to draw
KEYS = {
    *("strategy", "sync", "ranks", "roles", "seed", "epochs", "samples", "seconds", "samples_per_second", "final_loss", "test_accuracy"),
    *("bytes_sent", "compute_seconds", "wait_seconds", "comm_seconds", "staleness_max", "staleness_histogram", "model_sha256"),
}
PNG = b"\x89PNG\r\n\x1a\n"


def ok(result):
    """Return what a program said, once it has ended well and said nothing on stderr."""
    assert result.code == 0 and not result.timed_out, result
    assert result.err == "", result.err
    return result.out


def summary(out):
    return json.loads((out / "summary.json").read_text())


def spans(trace, rank):
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == rank]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Train on three ranks with a trace: (folder, what was said)."""
    out = tmp_path_factory.mktemp("traced") / "run"
    words = ["--trace", "--sync", "ssp:2", "--epochs", "3", "--hidden", "32", "--lr", "0.1", "--out", out]
    return out, ok(mpirun(3, [*TRAIN, *words]))


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """Train on three ranks in repeat mode: the folder."""
    out = tmp_path_factory.mktemp("repeated") / "run"
    ok(mpirun(3, [*TRAIN, "--deterministic", "--sync", "ssp", "--staleness", "1", *SMALL, "--seed", "7", "--out", out]))
    return out


def test_the_opening_says_what_becomes_of_the_rate_and_of_a_share(tmp_path):
    words = [*TRAIN, *SMALL, "--lr-policy", "warmup:5+cosine:0.1", "--accumulate", "2", "--out", tmp_path / "run"]
    lines = ok(python(words)).splitlines()
    assert "of 64 samples, each worker's share in 2 parts; optimizer momentum, learning rate 0.05" in lines[2]
    assert lines[3].startswith("learning rate rising over the first 5 clocks, falling to 0.1 of it over 25 clocks as a cosine (0.01 at first, 0.0289")
    found = summary(tmp_path / "run")
    assert (found["learning_rate"], found["lr_policy"]) == (0.05, "warmup:5+cosine:0.1")
    assert "at first" not in (plain := ok(python([*TRAIN, *SMALL, "--out", tmp_path / "plain"]))) and "parts" not in plain


def test_a_run_leaves_its_whole_folder(traced):
    out, _ = traced
    names = {"config.toml", "summary.json", "metrics.jsonl", "trace.json", "model.safetensors", "report.png", "coding.json"}
    assert {path.name for path in out.iterdir()} == names
    assert all(path.stat().st_size > 0 for path in out.iterdir())


def test_the_summary_says_what_was_done_and_how_well(traced):
    found = summary(traced[0])
    assert found.keys() >= KEYS
    assert (found["strategy"], found["sync"], found["ranks"], found["seed"], found["epochs"]) == ("parameter_server", "ssp:2", 3, 0, 3)
    assert found["roles"] == [[f"server {rank}", f"worker {rank}"] for rank in range(3)]
    assert found["samples"] == 3 * 1600 and found["test_accuracy"] > 0.9
    assert found["samples_per_second"] == pytest.approx(found["samples"] / found["seconds"])
    assert all(len(found[key]) == 3 for key in ("bytes_sent", "compute_seconds", "wait_seconds", "comm_seconds"))
    assert all(nbytes > 0 for nbytes in found["bytes_sent"])


def test_no_read_is_staler_than_the_bound(traced):
    found = summary(traced[0])
    histogram = {int(staleness): n for staleness, n in found["staleness_histogram"].items()}
    assert max(histogram) == found["staleness_max"] <= found["staleness_bound"] == 2
    assert sum(histogram.values()) == 3 * (found["clocks"] + 1)  # each worker reads at each clock, and once more at the end


def test_a_ranks_busy_waiting_and_communicating_seconds_are_its_seconds(traced):
    found = summary(traced[0])
    for own, *parts in zip(found["rank_seconds"], found["compute_seconds"], found["wait_seconds"], found["comm_seconds"], strict=True):
        assert all(part >= 0 for part in parts)
        assert sum(parts) == pytest.approx(own, rel=0.01)
    assert max(found["rank_seconds"]) == found["wall_seconds"]


def test_each_line_of_the_metrics_is_a_clock_and_the_loss_falls(traced):
    rows = [json.loads(line) for line in (traced[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["clock"] for row in rows] == list(range(75))
    # Rows are made in the order of time, and shares of a batch differ by one sample.
    assert [row["samples"] for row in rows] == pytest.approx([64 * (clock + 1) for clock in range(75)], abs=3) and rows[-1]["samples"] == 4800
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert sum("test_accuracy" in row for row in rows) == 2, "the test rows are scored at the start of the epochs 1 and 2"


def test_a_run_says_what_other_policies_would_have_done(traced):
    out, said = traced
    found = summary(out)["what_if"]
    assert found["ssp:2"] == 1.0 and {"bsp", "ssp:1", "asp", "adaptive", "quorum"} <= found.keys()
    assert all(0 < ratio < 20 for ratio in found.values()) and found["bsp"] <= 1.05 * found["asp"]
    assert "other policies would have done these times the clocks (simulated): bsp " in said


def test_the_saved_model_is_the_one_of_the_summary(traced):
    out, _ = traced
    job = Job().with_values(tomllib.loads((out / "config.toml").read_text()), "config.toml")
    net = build(job.model, 240, 10, job.hidden, job.activation, job.dropout, "cross_entropy", job.dtype, None)
    tensors = load_file(out / "model.safetensors")
    assert {name: tensors[name].shape for name in net.params.shapes} == dict(net.params.shapes)
    flat = np.empty(net.n_params, job.dtype)
    for name, view in net.params.views(flat).items():
        view[:] = tensors[name]
    assert hashlib.sha256(flat.tobytes()).hexdigest() == summary(out)["model_sha256"]
    assert tensors["scaler.factor"].shape == tensors["scaler.offset"].shape == (240,)
    flat[0] += 1
    assert hashlib.sha256(flat.tobytes()).hexdigest() != summary(out)["model_sha256"]


def test_the_report_is_a_picture(traced):
    data = (traced[0] / "report.png").read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert data[:8] == PNG and width >= 800 and height >= 500 and len(data) > 20_000


def test_the_trace_shows_what_every_worker_did_on_one_line_of_time(traced):
    out, _ = traced
    trace = json.loads((out / "trace.json").read_text())
    end = 1e6 * summary(out)["wall_seconds"]
    for rank in range(3):
        events = spans(trace, rank)
        assert {"compute", "wait", "pull", "push"} <= {event["name"] for event in events}
        assert all(event["dur"] >= 0 for event in events)
        first, last = min(event["ts"] for event in events), max(event["ts"] + event["dur"] for event in events)
        assert 0 <= first < 0.5 * end and last <= 1.1 * end, "events count from the start of the run, in microseconds"
        assert sum(event["name"] == "compute" for event in events) == 76  # 75 clocks and the score at the end
        named = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name" and event["pid"] == rank]
        assert named == [f"rank {rank}: server {rank}, worker {rank}"]


def test_the_events_of_a_lane_do_not_overlap(traced):
    trace = json.loads((traced[0] / "trace.json").read_text())
    lanes = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            lanes.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert len(lanes) >= 3 * 4
    for lane in lanes.values():
        lane.sort()
        assert all(before[1] <= after[0] + 1e-3 for before, after in pairwise(lane))


@pytest.mark.openmpi
def test_nothing_is_said_three_times(traced):
    out, said = traced
    lines = said.splitlines()
    assert len(lines) == len(set(lines))
    for once in ("mpidml: parameter_server on 3 ranks", "data digits: 1600 training and 400 test rows", "done: test accuracy", f"written: {out}/"):
        assert said.count(once) == 1, said
    assert "samples/s" in said and "staleness" in said


def test_the_written_configuration_gives_the_same_bits_again(repeated, tmp_path):
    ok(mpirun(3, [*TRAIN, "--config", repeated / "config.toml", "--out", tmp_path / "again"]))
    assert summary(tmp_path / "again")["model_sha256"] == summary(repeated)["model_sha256"]
    before, after = (tomllib.loads((out / "config.toml").read_text()) for out in (repeated, tmp_path / "again"))
    assert before == after and before.keys() == Job().mapping().keys() - {"out", "resume", "requeue"}  # a copy of the run would not fit into its folder


def test_a_slowdown_changes_time_alone(repeated, tmp_path):
    ok(mpirun(3, [*TRAIN, "--config", repeated / "config.toml", "--slowdown", "rotating:3", "--out", tmp_path / "slow"]))
    hashes = [summary(tmp_path / "slow")["model_sha256"]]
    (tmp_path / "script.py").write_text(
        f"import tomllib, mpidml\njob = mpidml.Job().with_values(tomllib.load(open({str(repeated / 'config.toml')!r}, 'rb')), 'script')\n"
        "for pattern in ('permanent:3', 'exponential:1'):\n"
        "    found = mpidml.train(job.with_values({'slowdown': pattern}, 'script'), quiet=True, write=False)\n"
        "    print(found['model_sha256'] + '\\n', end='', flush=True)\n"
    )
    hashes += ok(mpirun(3, [tmp_path / "script.py"])).split()
    assert len(hashes) == 1 + 2 * 3 and set(hashes) == {summary(repeated)["model_sha256"]}


def test_flags_win_over_the_file_and_another_seed_is_another_model(repeated, tmp_path):
    ok(mpirun(3, [*TRAIN, "--seed", "8", "--config", repeated / "config.toml", "--out", tmp_path / "other"]))
    assert tomllib.loads((tmp_path / "other" / "config.toml").read_text())["seed"] == summary(tmp_path / "other")["seed"] == 8
    assert summary(tmp_path / "other")["model_sha256"] != summary(repeated)["model_sha256"]


def test_a_file_written_by_hand_gives_the_job_that_the_flags_give(repeated, tmp_path):
    text = f'deterministic = true\nsync = "ssp"\nstaleness = 1\nepochs = 1\nhidden = [16]\nbackend = "numpy"\nreport = false\nseed = 7\nout = "{tmp_path}/run"\n'
    (tmp_path / "mine.toml").write_text(text)
    ok(mpirun(3, [*TRAIN, "--config", tmp_path / "mine.toml"]))
    assert summary(tmp_path / "run")["model_sha256"] == summary(repeated)["model_sha256"]
    by_flags, by_file = (tomllib.loads((out / "config.toml").read_text()) for out in (repeated, tmp_path / "run"))
    assert {**by_flags, "out": ""} == {**by_file, "out": ""}


@pytest.mark.openmpi
def test_without_mpirun_it_starts_its_ranks_itself(tmp_path):
    said = ok(python(["-m", "mpidml", "-n", "2", "train", *SMALL, "--out", tmp_path / "run"]))
    assert said.count("on 2 ranks: 2 worker(s), 2 server(s) beside them") == 1
    assert summary(tmp_path / "run")["ranks"] == 2


def test_one_process_does_the_same_job_alone(tmp_path):
    said = ok(python([*TRAIN, "--epochs", "1", "--hidden", "16", "--no-report", "--out", tmp_path / "run"]))
    assert "/ (summary.json, " in said and not (tmp_path / "run" / "report.png").exists()
    found = summary(tmp_path / "run")
    assert "on 1 rank:" in said and found["roles"] == [["server 0", "worker 0"]]
    assert found["staleness_max"] == 0 and found["samples"] == 1600 and found["test_accuracy"] > 0.7


NET = """
[[layer]]
type = "embedding"
columns = [2]
units = 3

[[layer]]
type = "dense"
units = 8
activation = "leaky_relu"

[[layer]]
type = "layer_norm"

[[layer]]
type = "dense"
"""


def test_a_run_of_a_net_file_holds_it_and_can_be_repeated_without_the_original(tmp_path):
    random = np.random.default_rng(0)
    code = random.integers(0, 6, 400)
    np.savez(tmp_path / "good.npz", x=np.column_stack([random.normal(size=(400, 2)), code]), y=code % 2)
    (tmp_path / "mine.toml").write_text(NET)
    words = ["--model", tmp_path / "mine.toml", "--epochs", "15", "--deterministic", "--backend", "numpy", "--no-report", "--class-weights", "balanced"]
    out, again = tmp_path / "run", tmp_path / "again"
    ok(mpirun(2, [*TRAIN, *words, "--data", tmp_path / "good.npz", "--out", out]))
    assert (out / "net.toml").read_text() == NET
    (tmp_path / "mine.toml").unlink()
    ok(mpirun(2, [*TRAIN, "--config", out / "config.toml", "--out", again]))
    first, second = summary(out), summary(again)
    assert first["model_sha256"] == second["model_sha256"] and first["test_accuracy"] > 0.95
    tensors = load_file(out / "model.safetensors")
    assert tensors["layers.0.table"].shape == (6, 3) and tensors["layers.2.gain"].shape == (8,)
    assert tensors["scaler.offset"][2] == 0 and tensors["scaler.factor"][2] == 1, "codes are not scaled"


@pytest.fixture(scope="module")
def blobs():
    """Draw three classes far apart in the plane: x (240, 2), y (240,)."""
    random = np.random.default_rng(5)
    y = np.arange(240) % 3
    return np.array([[0, 4], [4, 0], [-4, -4]])[y] + random.normal(size=(240, 2)), y


@pytest.mark.parametrize("form", ["npz", "npz in parts", "csv", "csv.gz"])
def test_files_of_ones_own_train_and_test_data_are_used(blobs, tmp_path, form):
    x, y = blobs
    n_test, more = 60, []
    path, test = tmp_path / f"train.{form.split()[0]}", tmp_path / f"test.{form.split()[0]}"
    if form == "npz in parts":
        np.savez(path, x_train=x[:180].reshape(180, 1, 2), y_train=y[:180], x_test=x[180:].reshape(60, 1, 2), y_test=y[180:])
    else:
        more = ["--test-data", test]
        for file, part in ((path, slice(0, 180)), (test, slice(180, 240))):
            if form == "npz":
                np.savez(file, x=x[part], y=y[part])
                continue
            words = ["red", "green", "blue"]
            text = "kind,a,b\n" + "".join(f"{words[k]},{a},{b}\n" for k, (a, b) in zip(y[part], x[part], strict=True))
            file.write_bytes(gzip.compress(text.encode()) if form == "csv.gz" else text.encode())
            more = ["--test-data", test, "--label", "kind"]
    words = ["--data", path, *more, "--model", "softmax", "--epochs", "10", "--lr", "0.1", "--backend", "numpy", "--no-report", "--out", tmp_path / "run"]
    said = ok(python([*TRAIN, *words]))
    assert f"180 training and {n_test} test rows x 2 features, 3 classes" in said
    assert summary(tmp_path / "run")["test_accuracy"] > 0.95


def test_a_policy_in_a_file_of_ones_own_trains(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from mpidml.sync.base import SyncPolicy\n\n\nclass Mine(SyncPolicy):\n"
        "    def __init__(self, lag=1):\n        self.bound = lag\n\n"
        "    def oldest_readable(self, clock, worker=-1, view=None):\n        return clock - self.bound\n"
    )
    ok(mpirun(2, [*TRAIN, "--sync", f"{tmp_path}/mine.py:2", *SMALL, "--out", tmp_path / "run"]))
    found = summary(tmp_path / "run")
    assert found["sync"].endswith("mine.py:2") and found["staleness_max"] <= found["staleness_bound"] == 2


@pytest.mark.parametrize(
    "words", [["--servers", "1", "--transport", "mpi", "--reads", "eager"], ["--servers", "2", "--optimize", "workers"]], ids=" ".join
)
def test_servers_may_have_ranks_of_their_own(tmp_path, words):
    ok(mpirun(3, [*TRAIN, "--sync", "ssp:1", *words, *SMALL, "--out", tmp_path / "run"]))
    found, n_servers = summary(tmp_path / "run"), int(words[1])
    assert found["roles"] == [[f"server {k}"] for k in range(n_servers)] + [[f"worker {k}"] for k in range(3 - n_servers)]
    assert found["staleness_max"] <= 1 and all(nbytes > 0 for nbytes in found["bytes_sent"]) and found["test_accuracy"] > 0.5


@pytest.mark.parametrize(("words", "least"), [(["--sync", "bsp"], 0.9), (["--sync", "ssp:2", "--order", "magnitude"], 0.1)], ids=["bsp", "ssp:2"])
def test_a_budget_bounds_what_a_worker_sends_in_a_clock(tmp_path, words, least):
    """A clock's update weighs at most one copy of the parameters; under ssp those that wait are summed up, and fewer bytes are sent."""
    shape = ["--epochs", "4", "--hidden", "32", "--backend", "numpy", "--servers", "1", "--transport", "mpi"]
    ok(mpirun(2, [*TRAIN, *words, "--budget", "3e6", *shape, "--out", tmp_path / "run"]))
    found = summary(tmp_path / "run")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    a_clock = found["bytes_sent"][1] / found["clocks"]  # rank 1 is the worker; questions and ends of clocks take a little
    assert least < a_clock / sum(w.nbytes for w in weights.values()) < 1.15
    assert found["staleness_max"] <= found["staleness_bound"] and found["test_accuracy"] > 0.8


SCRIPT = """
import sys
import numpy as np
import mpidml


def main(tables):
    me, n, w, rows = tables.worker, tables.n_workers, tables["w"], tables["rows"]
    mine = [me, 500_000 + me, 5]                     # row 5 is everyone's
    for clock in range(6):
        before = rows.pull(mine).wait().copy()
        assert before.shape == (3, 4)
        assert (before[0] == clock).all(), "a worker reads its own writes: rows that it alone writes"
        assert (before[2] >= clock).all() and (before[2] <= n * 6).all()
        rows.push(np.ones((3, 4)), mine)
        w.push(np.full((8, 2), 1.0))
        again = rows.pull(mine).wait()
        assert (again[:2] == clock + 1).all(), "... within a clock too"
        tables.clock()
    total = w.pull(latest=True).wait()
    assert (total == 6 * n + 1).all(), total          # began at 1, and all pushes of all workers are in it
    shared = rows.pull([5, 499_999], latest=True).wait()
    assert (shared[0] == 6 * n).all() and (shared[1] == 0).all()
    block = w.pull(slice(2, 5)).wait()
    assert block.shape == (3, 2)
    return float(total[0, 0])


result = mpidml.run_tables(main, {"w": (8, 2), "rows": (1_000_000, 4)}, sync="ssp:2", servers=sys.argv[1], initial={"w": np.ones((8, 2))})
summary = mpidml.train(mpidml.Job(epochs=1, hidden=(8,), servers=sys.argv[1], backend="numpy"), quiet=True, write=False)
assert summary["samples"] == 1600
print(f"{result} {summary['ranks']}\\n", end="", flush=True)
"""


@pytest.mark.openmpi
@pytest.mark.parametrize(("n", "servers"), [(1, "colocated"), (2, "colocated"), (2, "1"), (3, "colocated"), (3, "1")])
def test_a_script_uses_tables_and_trains_on_any_number_of_ranks(tmp_path, n, servers):
    (tmp_path / "script.py").write_text(SCRIPT)
    result = python([tmp_path / "script.py", servers]) if n == 1 else mpirun(n, [tmp_path / "script.py", servers])
    n_workers = n if servers == "colocated" else n - 1
    told = [f"{6 * n_workers + 1:.1f} {n}"] * n_workers + [f"None {n}"] * (n - n_workers)
    assert sorted(ok(result).splitlines()) == sorted(told)


def test_a_reader_who_leaves_does_not_end_the_run(tmp_path):
    """A pipe that nobody reads any more, and a disk that is full: the run goes on, silently, and its folder is whole."""
    words = ["train", "--steps", "2", "--backend", "numpy", "--no-report", "--out"]
    for name, n, output in (("pipe", 1, "| true"), ("disk", 1, "> /dev/full"), ("launcher", 2, "| head -1 > /dev/null")):
        line = f"set -o pipefail; {shlex.join([sys.executable, '-m', 'mpidml', '-n', str(n), *words, str(tmp_path / name)])} {output}"
        result = run(["bash", "-c", line], 60, os.environ)
        assert result.code == 0 and not result.err, result
        assert (tmp_path / name / "summary.json").exists()


def test_a_run_that_diverges_says_so_once_and_claims_no_accuracy(tmp_path):
    result = python(["-m", "mpidml", "train", "--epochs", "2", "--lr", "1e30", "--backend", "numpy", "--out", tmp_path / "run"])
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "DIVERGED" in ok(result) and "accuracy" not in result.out
    assert found["test_accuracy"] is None and found["diverged_at_clock"] is not None


def test_a_batch_above_the_rows_is_told_as_what_it_is(tmp_path):
    np.savez(tmp_path / "few.npz", x=np.eye(5), y=np.arange(5) % 2)
    found = mpidml.train(mpidml.Job(data=str(tmp_path / "few.npz"), hold_out=0, batch=64, steps=2, hidden=(4,), backend="numpy"), quiet=True, write=False)
    assert found["batch"] == 5 and found["samples"] == 10


def test_ranks_of_a_host_compile_each_kernel_once(tmp_path):
    """With an empty cache: one rank compiles and saves, for both types; the others load what it saved for theirs, which is compiled first."""
    env = {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": "", "NUMBA_DEBUG_CACHE": "1"}
    result = mpirun(4, ["-m", "mpidml", "train", "--steps", "2", "--no-report", "--out", tmp_path / "run"], timeout=240, env=env)
    assert result.code == 0, result
    saved = re.findall(r"data saved to '([^']*)'", result.out)
    loaded = re.findall(r"data loaded from '([^']*)'", result.out)
    assert len(saved) == len(set(saved)) > 30
    assert sorted(loaded) == sorted(3 * [path for path in saved if path.endswith(".1.nbc")]) and len(loaded) == 3 * len(saved) // 2
    assert result.out.count("compiling kernels") == 1


def test_the_final_loss_is_that_of_the_last_epoch_also_where_rows_sum_up_clocks(monkeypatch):
    job = mpidml.Job(steps=100, hidden=(8,), backend="numpy")  # 25 clocks an epoch
    every, rows = mpidml.train(job, quiet=True, write=False), {}
    monkeypatch.setattr(monitor, "MOST_ROWS", 20)
    few = mpidml.train(job, quiet=True, write=False, keep=rows)
    assert len(rows["metrics"]) < 30 and few["final_loss"] == pytest.approx(every["final_loss"], rel=0.1), "a row at the border sums up clocks before it, too"
    assert few["final_loss"] < 0.5 * np.mean([row["loss"] for row in rows["metrics"]]), "not the mean of 25 rows"
