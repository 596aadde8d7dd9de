"""Hold the README to what is true: every block of code in it runs, its command lines parse, its floors are the floors."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from mpidml.cli import COMMANDS, parse
from mpidml.core.job import Job
from mpidml.strategies.base import train
from tests.ranks import ROOT, mpirun, python

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = re.findall(r"`(?:mpirun -n \d+ )?python -m mpidml ([^`]*)`", README) + re.findall(r"`(--[^`]*)`", README)


def block(kind: str, within: str) -> str:
    """Return the one block of a kind that holds some text."""
    (found,) = [text for of, text in BLOCKS if of == kind and within in text]
    return found


def quick(i):
    """Return what a block's i-th line that trains is given besides: fewer epochs; but for the first, no kernels to load and no picture."""
    return ["--epochs", "3", *["--backend", "numpy", "--no-report"] * (i > 0)]


EXAMPLE, TORCH, SKLEARN = (block("python", text) for text in ('"w": (1_000_000, 16)', "import torch", "sklearn"))


def numbers_printed(text, folder, n):
    """Run a program alone or on n ranks; return what its ranks print, a number each."""
    script = folder / "script.py"
    script.write_text(text)
    env = {"PYTHONUNBUFFERED": ""}  # else print tears lines of several ranks apart
    result = python([str(script)], 60, env) if n == 1 else mpirun(n, [str(script)], 60, env)
    assert result.code == 0, result
    found = [float(word) for word in result.out.split()]
    assert len(found) == n
    return found


@pytest.mark.bench
@pytest.mark.parametrize("n", [1, 3])
def test_a_module_of_pytorch_learns_in_under_30_lines_alone_and_under_mpirun(tmp_path, n):
    assert len(TORCH.splitlines()) < 30 and 'sync="ssp:1"' in TORCH
    assert max(numbers_printed(TORCH, tmp_path, n)) < 0.1  # predicting the mean would lose 3.5
    never = TORCH.replace("w.push(", "(")
    assert never != TORCH and (n > 1 or min(numbers_printed(never, tmp_path, n)) > 2)


@pytest.mark.bench("sklearn")
@pytest.mark.parametrize("n", [1, 3])
def test_an_estimator_is_as_good_on_every_rank(tmp_path, n):
    scores = numbers_printed(SKLEARN, tmp_path, n)
    assert min(scores) == max(scores) > 0.88


def test_every_block_of_code_is_run_by_one_of_these_tests():
    """A new block fails here until a test below runs it."""
    kinds = [kind for kind, _ in BLOCKS]
    assert {kind: kinds.count(kind) for kind in kinds} == {"sh": 2, "toml": 3, "python": 7, "bash": 8, "text": 1, "": 2}


@pytest.mark.parametrize("n", [1, 3])
def test_the_python_example_runs_alone_and_under_mpirun(tmp_path, n):
    means = numbers_printed(EXAMPLE, tmp_path, n)
    # one worker: 1 - 0.9**20; several add more in the same time, stale reads make them overshoot a little
    assert all(0.8 < mean < 1.5 for mean in means), means


def test_the_policy_of_ones_own_runs_and_does_what_it_says(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(block("python", "class Mine(SyncPolicy)"))
    result = mpirun(2, ["-m", "mpidml", "train", "--sync", f"{mine}:5", "--epochs", "2", "--hidden", "16", "--no-report", "--out", str(tmp_path / "run")])
    assert result.code == 0, result
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["staleness_bound"] == 5 and summary["staleness_max"] <= 5 and summary["epochs"] == 2
    own: dict = {}
    exec(mine.read_text(), own)
    policy = own["Mine"](3)
    assert [policy.oldest_readable(clock) for clock in (9, 10, 11, 20)] == [6, 10, 8, 20]


def test_the_net_of_a_file_trains_on_rows_with_codes(tmp_path):
    (tmp_path / "net.toml").write_text(block("toml", "embedding"))
    x = np.random.default_rng(0).normal(size=(60, 5))
    x[:, 0], x[:, 3] = np.arange(60) % 4, np.arange(60) % 3
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(60) % 4)
    job = Job(data=str(tmp_path / "d.npz"), model=str(tmp_path / "net.toml"), epochs=30, batch=16)
    assert train(job, quiet=True, write=False)["final_loss"] < 0.7, "the classes are the codes of column 0"


def test_the_net_with_heads_tells_kinds_and_prices(tmp_path):
    (tmp_path / "heads.toml").write_text(block("toml", "[[head]]"))
    script = block("python", "heads.toml")
    for name in ("houses.csv", "heads.toml", "houses"):
        script = script.replace(f'"{name}"', repr(str(tmp_path / name)))
    (tmp_path / "script.py").write_text(script)
    result = python([tmp_path / "script.py"])
    assert result.code == 0, result
    accuracy, r2 = map(float, result.out.split())
    assert accuracy > 0.93 and r2 > 0.97 and (tmp_path / "houses" / "report.png").exists()


def sbatch(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a batch script as Slurm would, on one rank: `srun` runs the command, and asks it to end as soon as it was saved, the first time."""
    (folder / "bin").mkdir(exist_ok=True)
    stubs = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done\nif [ -e second ]; then exec "$@" --hidden 16; fi\ntouch second\n"$@" --epochs 1000000 --hidden 16 &\n'
        'until compgen -G "runs/7/checkpoints/[0-9]*" > /dev/null; do sleep 0.1; done\nkill -USR1 $!\nwait $!',
        "scontrol": 'echo "$@" >> requeued',
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
    }
    for name, text in stubs.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "PYTHONPATH": paths}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_batch_script_saves_requeues_and_goes_on(tmp_path):
    script = block("bash", "#SBATCH")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    options = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(\S+))?$", script, re.MULTILINE)
    assert len(options) == script.count("#SBATCH") and script.startswith("#!/bin/bash\n#SBATCH")
    assert dict(options)["--signal"] == "USR1@120" and "--requeue" in dict(options)
    text = block("toml", "patience")
    assert Job().with_values(tomllib.loads(text), "job.toml").checked().patience == 5
    (tmp_path / "job.toml").write_text(text.replace("patience = 5", "patience = 0"))  # or it might end before it was asked to
    first = sbatch(script, tmp_path)
    assert first.returncode == 0 and "stopped by SIGUSR1" in first.stdout, first
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    again = sbatch(script, tmp_path)
    assert again.returncode == 0 and "resumed: " in again.stdout, again
    assert json.loads((tmp_path / "runs" / "7" / "summary.json").read_text())["sync"] == "ssp:3"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "a job that has ended does not come back"


def test_a_batch_script_whose_run_fails_does_not_come_back(tmp_path):
    (tmp_path / "job.toml").write_text('no_such_key = "1"\n')
    (tmp_path / "second").touch()
    failed = sbatch(block("bash", "#SBATCH"), tmp_path)
    assert failed.returncode == 2 and "no option 'no_such_key'" in failed.stderr and not (tmp_path / "requeued").exists()


def test_the_ways_to_average_learn_on_three_ranks(tmp_path):
    lines = block("bash", "--strategy averaging").strip().splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines):
        launcher, n, words = (words := shlex.split(line))[:2], words[2], words[3:]
        assert (launcher, n, words[0]) == (["mpirun", "-n"], "3", "python")
        result = mpirun(3, [*words[1:], *quick(i), "--out", str(tmp_path / str(i))])
        assert result.code == 0, result
        summary = json.loads((tmp_path / str(i) / "summary.json").read_text())
        assert summary["strategy"] == "averaging" and summary["test_accuracy"] > 0.9 and summary["consensus_distance"] > 0


def test_sums_of_gradients_learn_by_values_by_codes_and_on_virtual_clocks(tmp_path):
    lines = block("bash", "--shares measured").strip().splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines):
        words, folder = shlex.split(line), tmp_path / str(i)
        launched = words[0] == "mpirun"
        result = mpirun(3, [*words[4:], *quick(i), "--out", str(folder)]) if launched else python([*words[1:], "--out", str(folder), "--no-report"])
        assert result.code == 0, result
        if i < 2:
            assert json.loads((folder / "summary.json").read_text())["test_accuracy"] > 0.9
        else:
            assert [row["variant"] for row in json.loads((folder / "compare.json").read_text())][1:] == ["parameter_server", "data_parallel"]


def test_groups_of_ranks_learn_as_workers_of_one_server(tmp_path):
    words = shlex.split(block("bash", "--group 2"))
    result = mpirun(5, [*words[4:], *quick(1), "--out", str(tmp_path / "run")])
    assert words[:3] == ["mpirun", "-n", "5"] and result.code == 0 and "2 worker(s) of 2 ranks at most" in result.out, result
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.8 and summary["staleness_max"] <= 2
    assert [sent > 0 for sent in summary["bytes_in_groups"]] == [False, True, True, True, True]


def test_servers_and_workers_learn_by_codes_and_on_virtual_clocks(tmp_path):
    train, simulate = (shlex.split(line) for line in block("bash", "--servers 1 --epochs 10").strip().splitlines())
    result = mpirun(3, [*train[4:], *quick(1), "--out", str(tmp_path / "run")])
    assert result.code == 0 and "codes two_bit" in result.out, result
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] > 0.9
    sent = []
    for words in (simulate[1:], simulate[1:-2]):
        result = python([*words, "--out", str(tmp_path / str(len(sent))), "--no-report"])
        assert result.code == 0, result
        sent.append(json.loads((tmp_path / str(len(sent)) / "bsp" / "summary.json").read_text())["bytes_sent"][0])
    assert sent[1] > 10 * sent[0]


def test_cut_networks_learn_on_every_grid_that_is_shown(tmp_path):
    lines = [shlex.split(line) for line in block("bash", "--grid data=2,pipe=2").strip().splitlines()]
    assert [int(words[2]) for words in lines] == [3, 3, 4, 3, 2, 4]
    (tmp_path / "net.toml").write_text(block("toml", "embedding"))
    for i, words in enumerate(lines):
        more = [word for word in quick(i) if word != "--no-report"]
        result = mpirun(int(words[2]), [str(tmp_path / word) if word == "net.toml" else word for word in [*words[4:], *more]] + ["--out", str(tmp_path / str(i))])
        assert result.code == 0, result
        assert json.loads((tmp_path / str(i) / "summary.json").read_text())["test_accuracy"] > 0.9
        assert (tmp_path / str(i) / "report.png").exists()


@pytest.mark.parametrize("n", [1, 3])
def test_a_program_of_ones_own_sums_its_gradients(tmp_path, n):
    assert numbers_printed(block("python", "Gradients"), tmp_path, n) == [-2.0] * n


def test_the_schedule_is_as_drawn_and_one_of_ones_own_can_run(tmp_path):
    (line,) = re.findall(r"^`python -m mpidml (schedule .*)`:$", README, re.MULTILINE)
    result = python(["-m", "mpidml", *shlex.split(line), "--out", tmp_path / "picture.png"])
    assert result.code == 0 and result.out == f"{block('text', 'rank 0')}written: {tmp_path / 'picture.png'}\n", result
    (tmp_path / "mine.py").write_text(block("python", "class Mine(Schedule)"))
    result = python(["-m", "mpidml", "schedule", tmp_path / "mine.py", "--out", tmp_path / "mine.png"])
    assert result.code == 0 and result.out.startswith("mine.py: 4 stages, 8 microbatches; "), result
    assert "activations  of 4 microbatches at once (stages 0 to 3)" in result.out and "length       42 units" in result.out


def test_the_plan_is_made_and_runs(tmp_path):
    planned, run = (shlex.split(line.replace(" plan/plan", f" {tmp_path}/plan/plan")) for line in block("bash", "mpidml plan").strip().splitlines())
    result = python([*planned[1:-1], str(tmp_path / "plan")])
    assert result.code == 0 and result.out.splitlines()[-1].split()[:3] == run[:3] == ["mpirun", "-n", "4"], result
    result = mpirun(4, [*run[4:], "--backend", "numpy", "--no-report", "--out", str(tmp_path / "run")])
    assert result.code == 0 and json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 4, result


def test_a_study_measures_simulates_and_draws(tmp_path):
    """One rank and two, measured for real: the table's identities hold of it."""
    words, out = shlex.split(block("bash", "mpidml scale")), tmp_path / "study"
    assert words[:4] == ["python", "-m", "mpidml", "scale"] and words[-2:] == ["--out", "study"]
    quick = ["--hidden", "16", "--backend", "numpy", "--steps", "12", "--warm-up", "4", "--repeat", "1", "--share-cores"]
    result = python([*words[1:-1], out, *quick], 120)
    assert result.code == 0 and not result.err, result
    found = json.loads((out / "scale.json").read_text())
    for kind in ("strong", "weak"):
        of = {row["ranks"]: row for row in found["rows"] if row["kind"] == kind}
        seconds = {n: of[n]["seconds_per_step"] for n in (1, 2)}
        assert list(of) == [1, 2, 4, 64, 1024] and of[2]["batch"] == {"strong": 256, "weak": 512}[kind]
        assert of[2]["speed_up"] == pytest.approx(seconds[1] / seconds[2] * (2 if kind == "weak" else 1), rel=1e-12)
        assert of[2]["efficiency"] == of[2]["speed_up"] / 2
        assert all(of[n]["ratio"] == of[n]["simulated_seconds_per_step"] / seconds[n] for n in (1, 2)) and of[64]["simulated_speed_up"] > 0
        assert sum(of[2][f"{name}_share"] for name in ("compute", "wait", "comm")) == pytest.approx(1)
        assert (of[1024]["not_simulated"] is None) == (kind == "weak"), "256 samples are too few for 1,024 ranks"
    assert {path.name for path in out.iterdir()} == {"config.toml", "points", "costs", "scale.json", "scale.png"}
    assert "strong scaling" in result.out and "weak scaling" in result.out and "inside a host" in result.out and "(measured)" in result.out


def test_every_command_line_of_the_readme_is_understood(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("class Mine:\n    pass\n")
    (tmp_path / "config.toml").touch()
    checked = 0
    for line in LINES:
        given = {"runs/...": str(tmp_path), "runs/X": str(tmp_path), "N": "5"}
        words = [given.get(word, word) for word in shlex.split(line) if word != "..."]
        if words and words[0] == "-n":
            words = words[2:]
        if words and words[0].startswith("--") and not words[0].startswith("--config"):
            words = ["train", *words]
        if not words or words[0] not in COMMANDS or "--help" in words:
            continue
        if words[-1].startswith("--") and words[-1] not in ("--trace", "--tensorboard", "--deterministic", "--no-tune"):
            continue  # a flag named in a sentence, without its value
        if "--resume" in words:
            (tmp_path / "config.toml").write_text("")
            words[words.index("--resume") + 1] = str(tmp_path)
        parse(words)
        checked += 1
    assert checked >= 18
    with pytest.raises(Exception, match="no option"):
        parse(["train", "--no-such-flag", "1"])


GPU_RECORDS = sorted(path.name for path in (ROOT / "benchmarks" / "gpu_records").glob("*.md"))
GPU_PAGES = ("benchmarks/gpu_kernels/README.md", "benchmarks/gpu_step/README.md", "benchmarks/gpu_allreduce/README.md")
FIGURE = re.compile(r"\d[\d,.]* ?(?:times\b|%|[um]?s\b|[GT]B/s|[GT]FLOP/s)")


def faults_of_gpu(readme: str, pages: list[str], records: list[str]) -> list[str]:
    """Say what README and the benchmarks' pages claim of GPUs beyond what the records hold, or keep back of them."""
    section = readme.partition("## On a GPU\n")[2].partition("\n## ")[0]
    found = [f"README does not name the record {name}" for name in records if f"(benchmarks/gpu_records/{name})" not in section]
    if ("not yet on a GPU" in section) == bool(records):
        found.append(f"README says that nothing ran on a GPU yet, or leaves that out, and there are {len(records)} record(s)")
    results = [page.partition("## Results\n")[2] for page in pages]
    found += [f"a page's results: {text.strip()[:60]}" for text in results if (text.strip() == "Not run on a GPU yet.") == bool(records)]
    if not records:
        found += [f"a figure without a record: {line[:80]}" for line in readme.splitlines() if re.search(r"\bGPUs?\b", line) and FIGURE.search(line)]
    return found


def test_what_is_said_of_gpus_rests_on_a_record():
    assert faults_of_gpu(README, [(ROOT / page).read_text() for page in GPU_PAGES], GPU_RECORDS) == []


def test_a_claim_without_a_record_is_caught_and_so_is_a_record_without_a_word():
    page, none = "## Results\n\nNot run on a GPU yet.\n", "## On a GPU\n\nnot yet on a GPU\n\n## Limits\n"
    assert not faults_of_gpu(none, [page], [])
    for readme in (none.replace("not yet on a GPU", "it ran"), f"{none}| a step on one GPU | 12 us |\n", f"{none}On a GPU it is 3.5 times as fast.\n"):
        assert len(faults_of_gpu(readme, [page], [])) == 1
    assert faults_of_gpu(none, ["## Results\n\n| add | x0.9 |\n"], [])
    record = "2027-01-31.md"
    told = none.replace("not yet on a GPU", f"[a record](benchmarks/gpu_records/{record}): 3.5 times")
    assert not faults_of_gpu(told, [page.replace("Not run on a GPU yet.", "x0.9")], [record])
    assert len(faults_of_gpu(none, [page], [record])) == 3


def test_the_two_commands_stand_alone_in_a_block_each():
    blocks = [text for kind, text in BLOCKS if kind == "sh"]
    assert len(blocks) == 2 and all(len(block.strip().splitlines()) == 1 for block in blocks)
    assert "mpirun -n 4" in blocks[0] and "-m mpidml train" in blocks[0]
    assert blocks[1].strip().endswith("-m tests")
