"""Harm to real jobs, drawn by seeds: each ends as promised; and what judges them sees each way of not doing so. `python -m tests.campaign` runs more."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from mpidml.cli import parse
from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm
from mpidml.strategies.base import train
from tests import ranks
from tests.campaign.__main__ import Verdict, line, table, told, tried
from tests.campaign.judge import TRACEBACK, Seen, blamed, judge, misreported, spoilt
from tests.campaign.link import Link, Repeated
from tests.campaign.observe import MARK, marked, memory, remaining
from tests.campaign.trials import FAULTS, LINES, MOMENTS, STRATEGIES, draw

SEEDS = range(40)
AT_A_TIME = 2


@pytest.fixture(scope="module")
def verdicts(request):
    """Start the trials whose tests are to run, two at a time, in their order."""
    seeds = [item.callspec.params["seed"] for item in request.session.items if getattr(item, "originalname", "") == "test_a_job_ends_as_promised"]
    threads = ThreadPoolExecutor(AT_A_TIME)
    yield {seed: threads.submit(tried, seed) for seed in seeds}
    threads.shutdown(cancel_futures=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_job_ends_as_promised(verdicts, seed):
    verdict = verdicts[seed].result()
    assert not verdict.wrong, f"{line(verdict)}\n{told(verdict.seen)}"


def test_seeds_draw_every_fault_under_every_strategy_at_every_moment():
    drawn = [draw(seed) for seed in range(36)]
    assert Counter((trial.fault, trial.strategy) for trial in drawn) == Counter((fault, strategy) for fault in FAULTS for strategy in STRATEGIES)
    assert {trial.moment for trial in map(draw, SEEDS)} == set(MOMENTS)
    more = [draw(seed) for seed in range(2000)]
    assert more[:36] == drawn and {trial.n for trial in more} == {2, 3, 4, 5} and all(0 <= trial.rank < trial.n for trial in more)
    assert {(trial.strategy, trial.n) for trial in more} == {(name, n) for name, lines in LINES.items() for each in lines for n in each.ranks}
    assert all(isinstance(parse(["train", *words])[1], Job) for words in {trial.words for trial in more})


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run with checkpoints that has come to its end."""
    out = tmp_path_factory.mktemp("ended") / "run"
    comm = CountedComm()
    train(Job(hidden=(8,), backend="numpy", epochs=1, checkpoint_every=10, out=str(out)).checked(), comm, quiet=True)
    comm.free()
    return out


@pytest.fixture
def failed(ended, tmp_path):
    """What is left of such a run that failed after its second checkpoint."""
    folder = shutil.copytree(ended, tmp_path / "run")
    for name in ("summary.json", "model.safetensors", "report.png", "coding.json"):
        (folder / name).unlink()
    (folder / ".model.safetensors.part").write_bytes(b"half")
    return folder


def seen(folder, trial):
    """What is to be seen of a trial on rank 1 of 3 that ends as it should."""
    report = {
        "exception": f"[rank 1/3] ArithmeticError: harm on purpose\n{TRACEBACK}:\n",
        "stop": f"[rank 0/3] WaitTimeout: sum over ranks: waits for rank 1 for 3.0 s; the limit is 3 s (--wait-limit)\n{TRACEBACK}:\n",
        "kill": "=   PID 101 RUNNING AT here\n",
    }.get(trial.fault, "")
    return Seen(int(trial.fault != "slow"), "", report, 1.0, -1, {0: 100, 1: 101, 2: 102}, [], "", folder)


def trial_of(fault):
    return draw(0)._replace(fault=fault, strategy="data_parallel", words=("--strategy", "data_parallel"), n=3, rank=1)


def lines(path, change):
    path.write_text(change(path.read_text()))


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("fault", "change", "says"),
    [
        ("exception", {"seconds": None}, "no harm was done"),
        ("exception", {"stacks": "Thread 1"}, "it did not end"),
        ("exception", {"seconds": 10.5}, "it ended 10.5 s after the harm, 10 s are allowed"),
        ("stop", {"seconds": 13.5}, "it ended 13.5 s after the harm, 13 s are allowed"),
        ("exception", {"code": 0}, "exit code 0"),
        ("kill", {"code": 0}, "exit code 0"),
        ("stop", {"code": 2}, "exit code 2"),
        ("slow", {"code": 1}, "exit code 1, it should have gone on"),
        ("exception", {"err": ("[rank 1/3] ArithmeticError: harm on purpose\n" + TRACEBACK) * 2}, "2 tracebacks"),
        ("exception", {"err": f"[rank 1/3] ArithmeticError: harm on purpose\n[rank 2/3] OSError: gone\n{TRACEBACK}"}, "2 reports"),
        ("exception", {"err": f"[rank 2/3] ArithmeticError: harm on purpose\n{TRACEBACK}"}, "not the report of rank 1"),
        ("exception", {"err": f"[rank 1/3] OSError: gone\n{TRACEBACK}"}, "not the report of rank 1"),
        ("exception", {"err": ""}, "0 reports"),
        ("stop", {"err": "[rank 0/3] WaitTimeout: sum over ranks: waits for rank 2 for 3.0 s; the limit"}, "does not name rank 1"),
        ("stop", {"err": "[rank 2/3] WaitTimeout: sum over ranks: waits for rank 1, 2 for 3.0 s; the limit"}, "waits for itself"),
        ("stop", {"err": "[rank 0/3] WaitTimeout: sum over ranks: waits for the others for 3.0 s; the limit"}, "does not name rank 1"),
        ("kill", {"err": f"=   PID 101 RUNNING\n{TRACEBACK}"}, "1 traceback(s)"),
        ("kill", {"err": ""}, "the launcher names the processes []"),
        ("slow", {"err": "[rank 2/3] WaitTimeout: sum over ranks: waits for rank 1"}, "a report: "),
        ("slow", {"model": "0" * 64}, "another model"),
        ("exception", {"left": ["123 python -m mpidml"]}, "left: 123"),
    ],
)
def test_a_job_that_does_not_end_as_promised_is_seen(ended, failed, fault, change, says):
    trial = trial_of(fault)
    good = seen(ended if fault == "slow" else failed, trial)
    assert judge(trial, good) == []
    assert says in "; ".join(judge(trial, good._replace(**change)))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda run: lines(run / "metrics.jsonl", lambda text: text[:-9]), "metrics.jsonl: the last line is torn"),
        (lambda run: lines(run / "metrics.jsonl", lambda text: text[: len(text) // 2] + "\n"), "metrics.jsonl: "),
        (lambda run: lines(run / "config.toml", lambda text: text + "lr ="), "config.toml: "),
        (lambda run: (run / "model.safetensors").write_bytes(b"half"), "model.safetensors: "),
        (lambda run: (run / "summary.json").write_text("{}"), "a summary of a run that failed"),
        (lambda run: (run / "model.tmp").write_text(""), "model.tmp: nobody writes such a file"),
        (lambda run: spoil(run / "checkpoints" / "000000000025" / "rank-0.safetensors"), "does not sum up to its SHA-256"),
        (lambda run: (run / "checkpoints" / "000000000025" / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda run: lines(run / "metrics.jsonl", lambda text: text.partition("\n")[0] + "\n"), "--resume is refused: "),
        (lambda run: lines(run / "config.toml", lambda text: text.replace('data = "digits"', 'data = "none.npz"')), "--resume is refused: "),
    ],
    ids=["torn line", "lost half", "config", "model", "summary", "other", "data", "manifest", "rows", "job"],
)
def test_a_folder_with_a_torn_file_or_a_run_that_cannot_go_on_is_seen(failed, harm, says):
    harm(failed)
    assert any(says in each for each in spoilt(failed, whole=False)), spoilt(failed, whole=False)


def test_a_run_that_went_on_has_all_its_files_and_its_picture_is_whole(ended, tmp_path):
    assert spoilt(ended, whole=True) == [] == spoilt(ended, whole=False, may_be=True) and "a summary of a run that failed" in spoilt(ended, whole=False)
    folder = shutil.copytree(ended, tmp_path / "run")
    data = (folder / "report.png").read_bytes()
    (folder / "report.png").write_bytes(data[: len(data) // 2])
    (folder / "coding.json").unlink()
    (folder / ".summary.json.part").write_text("{")
    found = spoilt(folder, whole=True)
    assert found == spoilt(folder, whole=False, may_be=True)
    assert found == [".summary.json.part: nobody writes such a file", "report.png: the picture is torn", "coding.json is missing"]


@pytest.mark.parametrize(
    ("words", "report", "ranks_"),
    [
        ("--servers 1", "table weights: pull of all rows by worker 1 waits for clock 7 since 3.0 s; worker 0 is at clock 6 and last spoke 3.0 s ago", {1}),
        ("--servers 2", "table weights: pull for clock 7 lacks 2 answer(s), asked of server(s) 0, 1, since 3.1 s", {0, 1}),
        ("--group 2", "table weights: pull of all rows by worker 0 waits for clock 7 since 3.0 s; worker 1 is at clock 6", {2, 3}),
        ("--group 2", "worker 0 waits for the gradient of rank 1 of its group, since 3.0 s", {1}),
        ("", "pipeline: waits for the output of stage 0 of microbatch 3 from rank 2 for 3.0 s", {2}),
        ("", "waits for all ranks to come to the comparison of replicas for 3.0 s", set()),
        ("", "nap 7 of all ranks: rank 3 has not answered for 3 s: its process is stopped", {3}),
        ("", "worker 1 waits for the coordinator's leave to start its clock, since 4.2 s", {0}),
        ("", "worker 0 asks for its next clock since 3.1 s; epoch 5 waits for worker(s) 1", {1}),
        ("", "table weights: rank 2 fails", set()),
    ],
)
def test_who_is_waited_for_is_read_from_a_report(words, report, ranks_):
    trial = draw(0)._replace(words=("--strategy", "parameter_server", *words.split()), n=4)
    assert blamed(trial, f"[rank 0/4] WaitTimeout: {report}; the limit is 3 s (--wait-limit)") == ranks_


def test_the_lines_below_a_report_may_name_the_rank_that_stands_still():
    trial = trial_of("stop")
    below = "    rank 2: waits at a.py:3: Barrier 7\n    rank 1: has not come; its process 101 is stopped (state T in /proc); when seen last, it computes\n"
    report = "[rank 0/3] WaitTimeout: sum over ranks: waits for rank 2 for 3.0 s; the limit is 3 s (--wait-limit)\n"
    found = seen(None, trial)._replace(err=report + below)
    assert misreported(trial, found) == [] and misreported(trial, found._replace(err=report + below.replace("stopped", "slow"))) != []


def test_a_process_that_is_left_is_found_and_ended():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, MARK: "left"}, start_new_session=True)
    while not marked("left"):  # a program has no environment yet when it has just begun
        assert child.poll() is None
    assert [each.split()[0] for each in remaining("left")] == [str(child.pid)] and child.wait(5) < 0
    assert remaining("left") == []


def test_shared_memory_that_is_left_is_found(tmp_path):
    (tmp_path / "harm.log").write_text(f"rank 0 1\nmemory {tmp_path}/segment\nmemory {tmp_path}/other\nharm 0.0 -1\n")
    (tmp_path / "segment").touch()
    assert memory(tmp_path / "harm.log") == [f"shared memory {tmp_path}/segment"]


def test_a_program_is_ended_as_soon_as_it_is_over():
    began = time.monotonic()
    result = ranks.run(["sleep", "60"], 60, os.environ, over=lambda: time.monotonic() - began > 0.5)
    assert result.timed_out and time.monotonic() - began < 10


@pytest.fixture
def comm():
    found = CountedComm()
    yield found
    found.free()


class Sender:
    """A persistent send that only notes when it begins."""

    def __init__(self, name, begun):
        self.name, self.begun = name, begun

    def Start(self):
        self.begun.append(self.name)

    def Test(self):
        return True

    def Wait(self):
        return


def test_what_is_late_comes_in_its_order_and_what_is_lost_never_comes(comm):
    for seconds, during, after in ((0.2, ["before"], ["before", "a", "b", "told"]), (float("inf"), ["before"], ["before", "told"])):
        begun, harmed = [], []
        link = Link(seconds, False, harmed.append)
        sends = {name: Repeated(link, comm, 0, 7 if name == "told" else 20, Sender(name, begun)) for name in ("before", "a", "b", "told")}
        sends["before"].Start()
        assert sends["before"].Test() and not harmed
        link.armed = True
        sends["a"].Start()
        sends["b"].Start()
        assert begun == during and harmed == [0] and [sends[name].Test() for name in "ab"] == [seconds > 1] * 2
        for name in "ab":
            sends[name].Wait()
        sends["told"].Start()
        assert begun == after


def test_the_table_counts_what_ended_well_and_names_the_slowest_end(failed):
    trial = trial_of("exception")
    good = Verdict(trial, seen(failed, trial), [])
    found = cells(table([good, Verdict(trial, good.seen._replace(seconds=2.5), ["exit code 0"])]))
    assert found[0] == ["fault", *STRATEGIES, "all"] and len({len(row) for row in found}) == 1 and [row[0] for row in found[2:]] == [*FAULTS, "all"]
    assert found[2] == ["exception", "-", "1/2 2.5 s", "-", "-", "-", "-", "1/2 2.5 s"] and found[3] == ["kill", *"-------"]
    assert found[-1][2::5] == ["1/2 2.5 s"] * 2


def cells(text):
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]


def test_the_readme_quotes_a_table_of_as_many_seeds_as_it_says():
    text = (ranks.ROOT / "README.md").read_text()
    quoted = re.search(r"`python -m tests\.campaign --seeds (\d+)`.*?\n\n((?:\|[^\n]*\n)+)", text, re.DOTALL)
    found = cells(quoted[2])
    assert found[0] == ["fault", *STRATEGIES, "all"] and [row[0] for row in found[2:]] == [*FAULTS, "all"]
    n = [[int(re.match(r"\d+/(\d+) \d+\.\d s$", cell)[1]) for cell in row[1:]] for row in found[2:]]
    assert n[-1][-1] == int(quoted[1]) == sum(map(sum, n[:-1])) // 2 and n[-1] == [sum(column) for column in zip(*n[:-1], strict=True)]
