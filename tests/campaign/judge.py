"""Judge what was seen of a trial: did the job end soon, with the right code and one report that names the right rank, and is all whole that it left?"""

from __future__ import annotations

import json
import re
import threading
import tomllib
import zlib
from pathlib import Path
from typing import NamedTuple

from mpidml.core.errors import UserError
from mpidml.runtime.checkpoint import FOLDER, Checkpoint, Damaged
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.resume import resumed
from mpidml.strategies.base import Run
from tests.campaign.harm import MESSAGE
from tests.campaign.trials import GO_ON, WAIT_LIMIT, Trial

END_SECONDS = 10.0
TRACEBACK = "Traceback (most recent call last)"
PASSING = re.compile(r"\..*\.part")
"""Names that say that a file, or what lies in a folder, is not whole."""
LEFT_BY_ALL = ("config.toml", "metrics.jsonl", "model.safetensors", "coding.json", "summary.json")
ALONE = {"servers": "colocated", "group": 1, "sync": "bsp", "assign": "static", "reads": "fresh", "grid": "", "partition": "auto"}
"""What lets one rank go on with any run."""
_one = threading.Lock()


class Seen(NamedTuple):
    """What was seen of a trial.

    `seconds` from the harm to the end, None where no harm was done; `to`: the rank that a message did not reach; `processes` of the ranks; `left`: processes
    and shared memory that were there after the end; `stacks`, where a limit ended it; `model`: the digest of what is learnt without the harm, "" where none is promised.
    """

    code: int
    out: str
    err: str
    seconds: float | None
    to: int
    processes: dict[int, int]
    left: list[str]
    stacks: str
    folder: Path
    model: str = ""


def limit_seconds(trial: Trial) -> float:
    """Return how soon after the harm a job is to end that cannot go on."""
    return END_SECONDS + (WAIT_LIMIT if trial.fault in ("stop", "lost") else 0.0)


def judge(trial: Trial, seen: Seen) -> list[str]:
    """Return what is wrong; nothing where all is as it should be."""
    if seen.seconds is None:
        return [f"no harm was done: exit code {seen.code}"]
    goes_on = trial.fault in GO_ON
    wrong = []
    if seen.stacks:
        wrong.append("it did not end")
    elif goes_on and seen.code:
        wrong.append(f"exit code {seen.code}, it should have gone on")
    elif not goes_on and (seen.code != 1 if trial.fault != "kill" else not seen.code):
        wrong.append(f"exit code {seen.code}")
    if not goes_on and not seen.stacks and seen.seconds > limit_seconds(trial):
        wrong.append(f"it ended {seen.seconds:.1f} s after the harm, {limit_seconds(trial):g} s are allowed")
    wrong += misreported(trial, seen)
    wrong += [f"left: {each}" for each in seen.left]
    wrong += spoilt(seen.folder, goes_on and not seen.code, trial.moment == "end")
    if seen.model and not seen.code and (summary := seen.folder / "summary.json").exists():
        found = json.loads(summary.read_text())["model_sha256"]
        if found != seen.model:
            wrong.append(f"another model: {found[:8]}, without the harm {seen.model[:8]}")
    return wrong


def misreported(trial: Trial, seen: Seen) -> list[str]:
    """Return what is wrong with the reports: one is due, of the rank that failed, or of who waits for whom; of SIGKILL the launcher's; else none."""
    reports = [line for line in seen.err.splitlines() if line.startswith("[rank ")]
    n = seen.err.count(TRACEBACK)
    if trial.fault in (*GO_ON, "kill"):
        wrong = [f"a report: {line}" for line in reports] + [f"{n} traceback(s)"] * bool(n)
        named = {int(pid) for pid in re.findall(r"\bPID (\d+)", seen.out + seen.err)}
        if trial.fault == "kill" and not (named and named <= set(seen.processes.values())):  # MPICH's may name one that it killed itself
            wrong.append(f"the launcher names the processes {sorted(named)}, those of the job are {sorted(seen.processes.values())}")
        return wrong
    if len(reports) != 1:
        return [f"{len(reports)} reports", *reports]
    if trial.fault == "exception":
        wrong = [f"{n} tracebacks"] * (n != 1)
        if not re.match(rf"\[rank {trial.rank}/{trial.n}\b[^]]*\] ArithmeticError: {MESSAGE}$", reports[0]):
            wrong.append(f"not the report of rank {trial.rank}: {reports[0]}")
        return wrong
    own = int(reports[0].split()[1].partition("/")[0])
    right = {trial.rank} if trial.fault == "stop" else {trial.rank, seen.to}
    if trial.fault == "lost" and trial.strategy != "parameter_server":  # soon each waits for another, all alive, and one of these waits is as true as the others
        right = set(range(trial.n)) - {own}
    wrong = [f"{n} tracebacks"] * (n > 1)
    found = blamed(trial, reports[0])
    if own in found:
        wrong.append(f"waits for itself: {reports[0]}")
    elif not right & (found | stopped(seen.err)):
        wrong.append(f"does not name rank {' or '.join(map(str, sorted(right)))}: {reports[0]}")
    return wrong


def blamed(trial: Trial, report: str) -> set[int]:
    """Return the ranks that a report says are waited for, by their number or that of a worker or server of theirs."""
    if silent := re.findall(r"rank (\d+)(?: \(and \d+ more\))? has not answered", report):
        return set(map(int, silent))
    text = re.split(r"waits? for|lacks", report.partition("; the limit is")[0], maxsplit=1)
    text = text[1] if len(text) > 1 else ""
    placement, found = trial.placement, {0} if "the coordinator" in text else set[int]()
    for kind, numbers in re.findall(r"(rank|worker|server|replica)(?:s|\(s\))? (\d+(?:, \d+)*)", text):
        for number in map(int, numbers.split(", ")):
            if kind == "rank":
                found.add(number)
            elif kind == "worker":
                found |= set(placement.groups[number] if placement.groups else placement.worker_ranks[number : number + 1])
            elif kind == "server":
                found |= set(placement.server_ranks[number : number + 1])
            else:  # of two, one behind the other
                found |= {rank for rank in range(trial.n) if rank * 2 // trial.n == number}
    return found


def stopped(text: str) -> set[int]:
    """Return the ranks that the lines below a report say stand still: who comes to the limit first may wait for one that waits for them."""
    return {int(rank) for rank in re.findall(r"^ +rank (\d+): .*process \d+ is stopped", text, re.MULTILINE)}


def spoilt(folder: Path, whole: bool, may_be: bool = False) -> list[str]:
    """Return what a run's folder has that cannot be read, and what it lacks where the run is `whole`.

    One that failed has no summary; one whose last moment was fatal `may_be` whole, and is where it has one.
    """
    if not folder.exists():
        return ["no folder"] * whole
    wrong = []
    whole |= may_be and (folder / "summary.json").exists()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        if any(PASSING.fullmatch(part) for part in parts) and not whole:
            continue
        try:
            read(path)
        except (OSError, ValueError, AssertionError) as error:
            wrong.append(f"{'/'.join(parts)}: {' '.join(str(error).split())}")
    if whole:
        wrong += [f"{name} is missing" for name in LEFT_BY_ALL if not (folder / name).exists()]
    elif (folder / "summary.json").exists():
        wrong.append("a summary of a run that failed")
    return wrong + unfit(folder)


def read(path: Path) -> None:
    """Read a file as what its name says it is; ValueError, OSError or AssertionError where it is not that."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        text = path.read_text()
        assert not text or text.endswith("\n"), "the last line is torn"
        for line in text.splitlines():
            json.loads(line)
    elif path.suffix == ".toml":
        tomllib.loads(path.read_text())
    elif path.suffix == ".safetensors":
        try:
            load_file(path)
        except SafetensorError as error:
            raise ValueError(error) from None
    elif path.suffix == ".png":
        read_png(path.read_bytes())
    else:
        assert path.name == ".lock", "nobody writes such a file"


def read_png(data: bytes) -> None:
    """Check a picture's chunks, each by its sum, up to the last."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "is no PNG"
    at, kind = 8, b""
    while kind != b"IEND":
        assert at + 12 <= len(data), "the picture is torn"
        n, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunk, check = data[at + 4 : at + 8 + n], data[at + 8 + n : at + 12 + n]
        assert zlib.crc32(chunk).to_bytes(4, "big") == check, "the picture is torn"
        at += 12 + n


def unfit(folder: Path) -> list[str]:
    """Return what is wrong with checkpoints: each is what its manifest says, and one rank can go on from the newest."""
    names = sorted(p.name for p in (folder / FOLDER).glob("*") if p.name.isdecimal())
    wrong = []
    for name in names:
        try:
            if of := Checkpoint.open(folder / FOLDER / name).wrong(0, 1):
                wrong.append(f"checkpoint {name}: {of}")
        except Damaged as error:
            wrong.append(f"checkpoint {name}: {error}")
    if not names:
        return wrong
    try:
        with _one:
            done = go_on(folder)
    except (UserError, OSError, ValueError) as error:
        return [*wrong, f"--resume is refused: {error}"]
    if done != int(names[-1]):
        wrong.append(f"--resume goes on from clock {done}, the newest checkpoint is of {int(names[-1])}")
    return wrong


def go_on(folder: Path) -> int:
    """Begin to go on with a run, in this process and without a file; return after how many clocks."""
    grid = {"grid": "data=0,pipe=1"} if tomllib.loads((folder / "config.toml").read_text())["strategy"] == "hybrid" else {}
    job = resumed(folder, {**ALONE, **grid, "epochs": 100, "out": f"{folder}-resumed"})
    comm = CountedComm()
    try:
        run = Run(job.checked(), comm, quiet=True, write=False, brief=True)
        done = sum(run.position.turns) // run.strategy.n_workers
        run.strategy.free()
        run.data.close()
    finally:
        comm.free()
    return done
