"""Every script of jobs/ runs to its end on a real Slurm of four nodes; a job that its time limit or a node ends goes on where it was saved."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from mpidml.cli import COMMANDS, parse
from mpidml.core.job import Job
from mpidml.runtime.launch import find_mpirun, flavour
from tests import slurm
from tests.ranks import ROOT, need
from tests.slurm import Cluster, install, lacking

LIMIT_SECONDS = 240.0
SMALL = ["--hidden", "16", "--backend", "numpy", "--no-report"]
TINY = ["--epochs", "1", *SMALL]
ENDLESS = ["--epochs", "1000000", *SMALL, "--slowdown", "permanent:20"]  # rank 0 sleeps most of the time: other tests run beside it
PMI, TRAIN = "--mpi=pmi2", ["python", "-m", "mpidml", "train", "--no-report"]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
RUN = {  # every script, by the test that runs it
    "one_node.sbatch": "its end", "nodes.sbatch": "its end", "nodes_mpirun.sbatch": "its end", "nodes_openmpi.sbatch": "Open MPI", "sweep.sbatch": "array",
    "chain_train.sbatch": "chain", "chain_evaluate.sbatch": "chain", "chain_report.sbatch": "chain", "long.sbatch": "requeue, node",
    "scale.sbatch": "array of a study", "gpu.sbatch": "", "gpu_suite.sbatch": "",  # written, not run: no machine of the tests has a GPU
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if os.environ.get("CI") == "true" and lacking() and "root" not in lacking() and shutil.which("apt-get"):
        install()
    need(not lacking(), "root and Slurm (python -m tests.slurm install)")
    with Cluster() as up:
        up.folder = tmp_path_factory.mktemp("submitted")
        (up.folder / "jobs").symlink_to(ROOT / "jobs")
        yield up
    assert up.left() == [] and not up.home.exists()


@pytest.fixture(scope="module")
def long(cluster):
    """Submit a job that its time limit will end: Slurm sends the signal half a minute or so after the start, while other tests run."""
    return submit(cluster, "--nodes=1", "--ntasks-per-node=1", "--time=1", "--signal=USR1@20", "jobs/long.sbatch", *ENDLESS, "--seconds", "42")


def submit(cluster, *words):
    done = subprocess.run(["sbatch", "--parsable", *words], cwd=cluster.folder, env=cluster.env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fields(cluster, job):
    """Return what Slurm says of a job, of an array of its last task."""
    return dict(re.findall(r"(\w+)=(\S*)", cluster.run("scontrol", "show", "job", "--oneliner", job)))


def until(cluster, job, condition, limit=LIMIT_SECONDS):
    end = time.monotonic() + limit
    while not condition(found := fields(cluster, job)):
        assert time.monotonic() < end and found, f"{found}\n{outputs(cluster)}"
        if found.get("Reason") == "BeginTime":  # a requeued job waits two minutes by default
            cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        time.sleep(0.3)
    return found


def ended(cluster, job):
    found = until(cluster, job, lambda found: found.get("JobState") in OVER)
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), f"{found}\n{outputs(cluster)}"
    return found


def outputs(cluster):
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(cluster.folder.glob("*.out")))


def summary(cluster, folder):
    return json.loads((cluster.folder / "runs" / folder / "summary.json").read_text())


def srun(cluster, *words, env=None):
    """Run a step of its own; return its exit code and what it says without srun's own lines."""
    command = ["srun", "--kill-on-bad-exit=1", *map(str, words)]
    done = subprocess.run(command, cwd=cluster.folder, env={**cluster.env, **(env or {})}, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith(("srun:", "slurmstepd"))]
    return done.returncode, done.stdout, said


def test_every_script_is_a_few_lines_that_slurm_takes_and_is_run_by_a_test():
    scripts = {path.name: path.read_text().splitlines() for path in (ROOT / "jobs").glob("*.sbatch")}
    assert scripts.keys() == RUN.keys()
    for name, lines in scripts.items():
        assert lines[0] == "#!/bin/bash" and f"#SBATCH --job-name={name.removesuffix('.sbatch')}" in lines, name
        commands = [line for line in lines if not line.startswith("#")]
        assert len(commands) == 1 + (name == "sweep.sbatch") and '"$@"' in commands[-1] and len(lines) <= 14, name
        assert "SBATCH" in lines[1] and not any(line.startswith("#SBATCH") for line in lines[lines.index(commands[0]) :]), name
    readme = (ROOT / "jobs/README.md").read_text()
    for path in (ROOT / "jobs").iterdir():
        assert path.name == "README.md" or f"`{path.name}" in readme, f"jobs/README.md says nothing of {path.name}"


def test_the_numbers_of_a_studys_array_are_its_ranks():
    text = (ROOT / "jobs/scale.sbatch").read_text()
    assert re.findall(r"--array=(\S+)", text) == re.findall(r"--ranks (\S+)", text) == ["1,2,4"]


def test_ranks_are_started_by_srun_with_its_interface_or_by_an_mpirun_whose_step_has_all_cores():
    scripts = sorted((ROOT / "jobs").glob("*.sbatch"))
    texts = {path.name: path.read_text() for path in scripts}
    pages = [(ROOT / name).read_text() for name in ("README.md", "jobs/README.md")]
    lines = [line for text in [*texts.values(), *pages] for line in re.findall(r"srun [^`\n]*python -m mpidml", text)]
    assert len(lines) > 10 and [line for line in lines if "--mpi=" not in line] == []
    by_mpirun = [path.name for path in scripts if "srun" not in texts[path.name] and path.name != "chain_report.sbatch"]
    assert by_mpirun == ["gpu_suite.sbatch", "nodes_mpirun.sbatch", "scale.sbatch"]
    for name in by_mpirun:
        assert "--cpus-per-task" not in texts[name], f"{name}: Slurm 21.08 would give the launcher's step one core for all its ranks"


def test_what_jobs_readme_says_was_run_is_what_a_test_runs():
    rows = [row.split("|") for row in (ROOT / "jobs/README.md").read_text().partition("| run to its end | not run |")[2].splitlines()[2:]]
    run, not_run = ("\n".join(row[column] for row in rows if len(row) > 2) for column in (1, 2))
    for name, by in RUN.items():
        assert ("the chain" if by == "chain" else f"`{name}`") in (run if by else not_run), name


def submitted(folder, *words, fails=""):
    """Submit the chain to an sbatch that counts, and refuses the script `fails`."""
    (folder / "sbatch").write_text(f'#!/bin/bash\necho x >> "{folder}/asked"\n[[ "$*" != *{fails or "nothing"}* ]] && grep -c x "{folder}/asked"\n')
    (folder / "sbatch").chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(["jobs/chain_submit.sh", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_a_chain_wants_a_folder_and_prints_each_number_as_soon_as_it_is_known(tmp_path):
    without = submitted(tmp_path)
    assert without.returncode != 0 and "folder" in without.stderr and not (tmp_path / "asked").exists()
    assert submitted(tmp_path, "runs/a").stdout.split() == ["1", "2", "3"]
    half = submitted(tmp_path, "runs/a", fails="chain_evaluate")
    assert half.returncode != 0 and half.stdout.split() == ["4"], "what was submitted can be cancelled"


def test_a_cluster_that_cannot_be_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(slurm, "lacking", lambda: ["root", "munged"])
    monkeypatch.setattr(sys, "argv", ["slurm", "run", "true"])
    assert slurm.main() == 2
    assert capsys.readouterr().err == "slurm: this machine lacks root, munged; be root, and run: python -m tests.slurm install\n"


def test_every_toml_is_a_job_and_every_twin_a_command():
    for path in (ROOT / "jobs").glob("*.toml"):
        Job().with_values(tomllib.loads(path.read_text()), path.name).checked()
    twins = {path.name: path.read_text() for path in (ROOT / "jobs").glob("*.sh") if path.name not in ("chain_submit.sh", "gpu_suite.sh")}
    assert {f"{name.removesuffix('.sh')}.toml" for name in twins} | {"gpu.toml"} == {path.name for path in (ROOT / "jobs").glob("*.toml")}
    for line in re.findall(r"python -m mpidml (.*)$", "\n".join(twins.values()), re.MULTILINE):
        words = [word for word in shlex.split(line.replace('--out "$@"', "--out run")) if word != "$@"]
        if words[0] in COMMANDS:
            parse([str(ROOT / word) if word.startswith("jobs/") else word for word in words])


@pytest.mark.parametrize(("script", "n_nodes", "n_tasks"), [("one_node", 1, 2), ("nodes", 3, 1), ("nodes_mpirun", 2, 2)])
def test_a_script_runs_to_its_end(cluster, long, script, n_nodes, n_tasks):
    job = submit(cluster, f"--nodes={n_nodes}", f"--ntasks-per-node={n_tasks}", f"jobs/{script}.sbatch", *TINY)
    found = ended(cluster, job)
    run = summary(cluster, f"{script}-{job}")
    assert run["ranks"] == n_nodes * n_tasks and int(found["NumNodes"]) == n_nodes
    assert (sum(run["bytes_sent"]) > 100_000) == (n_nodes > 1), "between nodes gradients travel, inside one headers alone"


def test_an_array_has_a_rate_for_each_task(cluster, long):
    job = submit(cluster, "--ntasks-per-node=1", "jobs/sweep.sbatch", *TINY)
    for task in range(4):
        ended(cluster, f"{job}_{task}")
    configs = [(cluster.folder / f"runs/sweep-{job}/{task}/config.toml").read_text() for task in range(4)]
    assert [re.search(r"^lr = (.*)$", text, re.MULTILINE)[1] for text in configs] == ["0.01", "0.03", "0.1", "0.3"]


if "scale" in COMMANDS:

    def test_an_array_measures_a_study_in_parts(cluster, long):
        job = submit(cluster, "--array=1-2", "--ntasks-per-node=2", "jobs/scale.sbatch", "--ranks", "1,2", *SMALL, "--steps", "12", "--warm-up", "4", "--repeat", "1")
        for task in (1, 2):
            ended(cluster, f"{job}_{task}")
        study = cluster.folder / f"runs/scale-{job}"
        assert {path.name.partition("-")[0] for path in study.glob("points/[0-9]*.json")} == {"1", "2"}
        words = [sys.executable, "-m", "mpidml", "scale", "--table", "--out", study]
        done = subprocess.run(words, env=cluster.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and (study / "scale.json").exists(), done


def test_a_chain_trains_then_evaluates_then_reports_and_stops_where_a_link_fails(cluster, long):
    def chain(*words):
        done = subprocess.run(["jobs/chain_submit.sh", *words], cwd=cluster.folder, env=cluster.env, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split()

    train, evaluate, report = chain("runs/chain", *TINY, "--patience", "1")
    ended(cluster, report)
    starts = [fields(cluster, job)["StartTime"] for job in (train, evaluate, report)]
    ends = [fields(cluster, job)["EndTime"] for job in (train, evaluate)]
    assert ends[0] <= starts[1] and ends[1] <= starts[2]
    for name in ("evaluation.json", "report/evaluation.json", "report/evaluation.png"):
        assert (cluster.folder / "runs/chain" / name).exists()
    *_, report = chain("runs/broken", "--batch", "0")
    until(cluster, report, lambda found: not found or found["JobState"] == "CANCELLED", 30)


def test_a_node_that_fails_puts_the_job_on_others_where_it_goes_on(cluster, long):
    job = submit(cluster, "--nodes=2", "--ntasks-per-node=1", "jobs/long.sbatch", *ENDLESS, "--seconds", "5", "--checkpoint-every", "10")
    run = cluster.folder / f"runs/long-{job}"
    until(cluster, job, lambda found: any(run.glob("checkpoints/[0-9]*")))
    node = fields(cluster, job)["BatchHost"]
    other = next(n for n in cluster.nodes if n != node and n in cluster.run("scontrol", "show", "hostnames", fields(cluster, job)["NodeList"]).split())
    cluster.run("scontrol", "update", f"NodeName={other}", "State=DOWN", "Reason=test")
    try:
        found = ended(cluster, job)
    finally:
        cluster.run("scontrol", "update", f"NodeName={other}", "State=IDLE")
    assert found["Restarts"] == "1" and other not in cluster.run("scontrol", "show", "hostnames", found["NodeList"]).split()
    assert "resumed: " in (cluster.folder / f"long-{job}.out").read_text() and summary(cluster, f"long-{job}")["ranks"] == 2


def test_info_says_what_slurm_gave_and_what_of_it_does_not_fit(cluster, long, tmp_path):
    (tmp_path / "job.toml").write_text('servers = "2"\n')
    step = f"--wrap=srun {PMI} python -m mpidml info --config {tmp_path}/job.toml"
    job = submit(cluster, "--output=info.out", "--nodes=2", "--ntasks=2", "--cpus-per-task=2", "--mem=1", step)
    ended(cluster, job)
    out = (cluster.folder / "info.out").read_text()
    (line,) = [line for line in out.splitlines() if line.startswith("Slurm ")]
    assert re.fullmatch(r"Slurm +job \d+: 2 task\(s\) on 2 node\(s\) n\S+, 1 a node, 2 core\(s\) a task, 1 MiB a node", line)
    for problem, remedy in (
        ("a rank has 1 thread(s), Slurm gave a task 2 core(s)", "--cpus-per-task=1"),
        ("before they have data, Slurm gave 1 MiB", "ask for --mem="),
        ("--servers 2: 2 server(s) leave no worker on 2 ranks", "start at least 3 ranks"),
    ):
        assert [line for line in out.splitlines() if line.startswith("problem: ") and problem in line and remedy in line.partition("; remedy: ")[2]], out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ntasks=2", *TRAIN], "launch: srun started 2 rank(s) without --mpi, this environment holds mpich; name its interface: srun --mpi=pmi2"),
        (["--mpi=pmix", "--ntasks=2", *TRAIN], "launch: srun started 2 rank(s) with --mpi=pmix, this environment holds mpich; name its interface: srun --mpi=pmi2"),
        ([PMI, "--ntasks=2", *TRAIN, "--servers", "2"], "--servers 2: 2 server(s) leave no worker on 2 ranks; start at least 3 ranks"),
        ([PMI, "--ntasks=2", *TRAIN, "--strategy", "hybrid", "--grid", "data=2,pipe=2"], "--grid data=2,pipe=2: "),
        ([PMI, "--ntasks=1", "--time=2", *TRAIN, "--seconds", "900"], "--seconds 900: this Slurm job ends in "),
    ],
    ids=["no interface", "another interface", "servers", "grid", "time"],
)
def test_a_step_that_cannot_work_ends_with_one_line(cluster, long, tmp_path, words, says):
    code, out, err = srun(cluster, *words, "--out", tmp_path / "run")
    assert code == 2 and out == "" and len(err) == 1 and err[0].startswith(f"mpidml: {says}") and "; " in err[0], (out, err)
    assert not (tmp_path / "run").exists()


def test_a_home_that_cannot_be_written_is_no_hindrance_and_a_cache_folder_that_cannot_is_one_line(cluster, long, tmp_path):
    (tmp_path / "file").touch()
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")  # where kernels may be compiled already
    env = {"HOME": str(tmp_path / "file"), "XDG_CACHE_HOME": caches, "NUMBA_CACHE_DIR": str(tmp_path / "file/cache")}
    code, out, err = srun(cluster, PMI, "--ntasks=2", *TRAIN, "--epochs", "1", "--hidden", "16", "--out", tmp_path / "run", env=env)
    assert code == 0 and (tmp_path / "run/summary.json").exists(), (out, err)
    (line,) = [line for line in out.splitlines() if "NUMBA_CACHE_DIR" in line]
    assert "cannot be written" in line and "; " in line and "Traceback" not in "".join(err)


def test_a_job_that_its_time_limit_ends_is_saved_goes_back_and_goes_on(cluster, long):
    found = ended(cluster, long)
    text = (cluster.folder / f"long-{long}.out").read_text()
    assert int(found["Restarts"]) >= 1 and text.count("stopped by SIGUSR1: ") == text.count("resumed: ") == int(found["Restarts"]), text
    saved = [int(n.replace(",", "")) for n in re.findall(r"stopped by SIGUSR1: ([\d,]+) clocks", text)]
    assert saved == [int(n.replace(",", "")) for n in re.findall(r"resumed: ([\d,]+) clocks", text)], "each start goes on where the one before was saved"
    assert summary(cluster, f"long-{long}")["clocks"] > saved[-1]


@pytest.mark.openmpi(only=True)
@pytest.mark.parametrize("script", ["nodes_openmpi", "nodes_mpirun"])
def test_open_mpi_runs_over_nodes_by_srun_and_by_mpirun(cluster, script):
    assert flavour(find_mpirun(os.environ)) == "openmpi" and sys.executable
    cluster.env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    job = submit(cluster, "--nodes=2", "--ntasks-per-node=1", f"jobs/{script}.sbatch", *TINY)
    ended(cluster, job)
    assert summary(cluster, f"{script}-{job}")["ranks"] == 2


