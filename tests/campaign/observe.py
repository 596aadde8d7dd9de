"""Carry a trial out: start the real job with the harm in it, and note all that is seen of it, to the last process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mpidml.runtime.launch import mpirun_command
from tests import ranks
from tests.campaign.harm import VARIABLE
from tests.campaign.judge import Seen, limit_seconds
from tests.campaign.trials import GO_ON, SECONDS, Trial

RUN_SECONDS = 90.0
"""For a whole run on a busy machine."""
LATE_SECONDS = 1.0
"""So much later than it should have ended a job is ended."""
GONE_SECONDS = 2.0
MARK = "MPIDML_CAMPAIGN"
_models: dict[tuple[tuple[str, ...], int], str] = {}
_lock = threading.Lock()


def observe(trial: Trial, home: Path) -> Seen:
    """Run a trial in the folder `home`, which is empty."""
    log, folder = home / "harm.log", home / "run"
    log.touch()
    what = {"rank": trial.rank, "place": trial.place, "fault": trial.fault, "at": trial.at, "seconds": SECONDS, "once": trial.once, "log": str(log)}

    def over() -> bool:
        since = harmed(log)[0]
        return since is not None and trial.fault not in GO_ON and time.monotonic() - since > limit_seconds(trial) + LATE_SECONDS

    mark = uuid.uuid4().hex
    words, env = mpirun_command(trial.n, {**os.environ, VARIABLE: json.dumps(what), MARK: mark})
    result = ranks.run([*words, sys.executable, "-m", "tests.campaign.harm", "train", *trial.words, "--out", str(folder)], RUN_SECONDS, env, over)
    ended = time.monotonic()
    left = [*remaining(mark), *memory(log)]
    began, to = harmed(log)
    processes = {int(of[1]): int(of[2]) for line in log.read_text().splitlines() if (of := line.split())[0] == "rank"}
    model = undisturbed(trial, home) if trial.same and trial.fault in GO_ON and not result.code else ""
    return Seen(result.code, result.out, result.err, None if began is None else ended - began, to, processes, left, result.stacks, folder, model)


def harmed(log: Path) -> tuple[float | None, int]:
    """Return when harm was done, None where none was, and the rank that a message does not reach."""
    for line in log.read_text().splitlines():
        if line.startswith("harm "):
            _, seconds, to = line.split()
            return float(seconds), int(to)
    return None, -1


def memory(log: Path) -> list[str]:
    """Return the shared memory of a job that is there after its end."""
    noted = [line.partition(" ")[2] for line in log.read_text().splitlines() if line.startswith("memory ")]
    return [f"shared memory {path}" for path in noted if os.path.exists(path)]


def remaining(mark: str) -> list[str]:
    """Return the processes that bear the mark of a job still some seconds after its end, and end them."""
    end = time.monotonic() + GONE_SECONDS
    while (found := marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"{pid} {words}" for pid, words in found.items()]


def marked(mark: str) -> Mapping[int, str]:
    """Return the processes in whose environment a mark is, with their command lines; one that has ended and waits for its parent has none."""
    found, word = {}, f"{MARK}={mark}".encode()
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdecimal() and word in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def undisturbed(trial: Trial, home: Path) -> str:
    """Return the digest of the model that the same job learns without harm; each job is run once."""
    with _lock:
        key = (without_passing(trial.words), trial.n)
        if key not in _models:
            result = ranks.mpirun(trial.n, ["-m", "mpidml", "train", *key[0], "--no-report", "--out", home / "undisturbed"], RUN_SECONDS)
            assert result.code == 0, result
            _models[key] = json.loads((home / "undisturbed" / "summary.json").read_text())["model_sha256"]
        return _models[key]


def without_passing(words: Sequence[str]) -> tuple[str, ...]:
    """Leave out flags that decide nothing about what is learnt."""
    found, given = [], list(words)
    while given:
        word = given.pop(0)
        if word == "--checkpoint-every":
            given.pop(0)
        elif word != "--no-report":
            found.append(word)
    return tuple(found)
