"""Start programs on several ranks from a serial test, with a limit that ends all of them and shows where each rank stood."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from mpidml.runtime.launch import mpirun_command, without_launcher

ROOT = Path(__file__).resolve().parents[1]
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
BENCH = ("torch", "sklearn", "onnx", "onnxruntime", "tensorboardX")
LACKING = [name for name in BENCH if importlib.util.find_spec(name) is None]
LOOK_SECONDS = 0.05
LAUNCHERS = ("mpirun", "mpiexec", "prte", "orte", "hydra")


@dataclass(frozen=True)
class Result:
    """What a program left: exit code, its two outputs, and, where the limit ended it, every process's Python stacks in `stacks`."""

    code: int
    out: str
    err: str
    stacks: str = ""

    @property
    def timed_out(self) -> bool:
        return bool(self.stacks)


def mpirun(n: int, args: Sequence[str | Path], timeout: float = 60, env: Mapping[str, str] | None = None) -> Result:
    """Run `mpirun -n N python ARGS` with this environment plus `env`; one thread a rank. Never raises on failure: look at `code`.

    A rank shows its stacks at the limit if it registered SIGUSR2 with faulthandler, as mpidml.runtime.abort.install does.
    """
    words, ready = mpirun_command(n, {**os.environ, **(env or {})})
    return run([*words, sys.executable, *map(str, args)], timeout, ready)


def python(args: Sequence[str | Path], timeout: float = 60, env: Mapping[str, str] | None = None) -> Result:
    """Run `python ARGS` without a launcher, as `mpirun` does with one."""
    return run([sys.executable, *map(str, args)], timeout, without_launcher({**os.environ, **(env or {})}))


def run(command: Sequence[str], timeout: float, env: Mapping[str, str], over: Callable[[], bool] | None = None) -> Result:
    """Run any command from the project's folder; at the limit, or once it is `over`, collect the stacks of all its processes, then kill them."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # files: a full pipe would stop the program
        paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), env.get("PYTHONPATH", "")]))
        child = subprocess.Popen(
            command, cwd=ROOT, env={**env, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        stacks, ends, began = "", None, time.monotonic()
        try:
            code = _wait(child, timeout, over)
        except subprocess.TimeoutExpired:
            ends = [os.fstat(file.fileno()).st_size for file in (out, err)]  # the stacks come after these
            stacks = _stacks(child.pid, [out, err]) or "no process answered SIGUSR2\n"
            stacks = f"after {time.monotonic() - began:.0f} s, the limit:\n{stacks}"
            code = -signal.SIGKILL
        finally:
            _kill(child)
        return Result(code, *(_text(file)[:end] for file, end in zip((out, err), ends or (None, None), strict=True)), stacks)


def need(present: object, what: str) -> None:
    """Skip the test where `what` ("Slurm", "a C++ compiler", "root") is not present; under CI=true that is a failure instead."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}: under CI this may not be missing", pytrace=False)
    pytest.skip(f"needs {what}", allow_module_level=True)


def descendants(pid: int) -> list[int]:
    """List the processes that `pid` started, directly or not, by walking /proc; a process that changed its session counts too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found += below
    return sorted(found)


def _stacks(pid: int, outputs: Sequence[IO[bytes]]) -> str:
    """Ask each process below `pid` for its stacks, one after the other, so that what comes meanwhile is that process's."""
    text = ""
    for child in [pid, *descendants(pid)]:
        status = _read(Path(f"/proc/{child}/status"))
        caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")), 0)
        if not caught >> (signal.SIGUSR2 - 1) & 1 or _read(Path(f"/proc/{child}/comm")).startswith(LAUNCHERS):
            continue  # the signal would kill a process that does not wait for it, and a launcher passes it on to all ranks
        variables = dict(word.split("=", 1) for word in _read(Path(f"/proc/{child}/environ")).split("\0") if "=" in word)
        rank = next((variables[name] for name in RANK_VARIABLES if name in variables), "none")
        before = [os.fstat(file.fileno()).st_size for file in outputs]
        try:
            os.kill(child, signal.SIGUSR2)
        except ProcessLookupError:
            continue
        time.sleep(0.5)
        said = "".join(_text(file, start) for file, start in zip(outputs, before, strict=True))
        text += f"--- rank {rank}, process {child}\n{said}"
    return text


def _wait(child: subprocess.Popen[bytes], timeout: float, over: Callable[[], bool] | None) -> int:
    """Return the exit code; TimeoutExpired after the limit, or as soon as it is `over`."""
    end = time.monotonic() + timeout
    while over is not None:
        try:
            return child.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if over() or time.monotonic() > end:
                raise
    return child.wait(timeout)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End `child` and everything below it: first politely, since a launcher clears up after its ranks."""
    below = {pid: _started(pid) for pid in descendants(child.pid)} if child.poll() is None else {}
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(3)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for pid, started in below.items():
        if started and _started(pid) == started:  # still the same process
            os.kill(pid, signal.SIGKILL)


def _started(pid: int) -> str:
    stat = _read(Path(f"/proc/{pid}/stat"))
    return stat.rpartition(")")[2].split()[19] if stat else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _text(file: IO[bytes], start: int = 0) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size - start, start).decode(errors="replace")
