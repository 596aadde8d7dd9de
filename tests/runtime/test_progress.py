"""Hold the progress line to its rules: one line on a terminal, few lines elsewhere, and the last state always shown."""

from __future__ import annotations

import io
import os
import types
from pathlib import Path

import pytest

from mpidml.runtime import progress as progress_module
from mpidml.runtime.progress import DRAIN_SECONDS, Progress, launcher_terminal, nobody_reads
from tests.changed import changed


class Clock:
    """Read a time that the test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def run(live: bool, step_seconds: float, n: int = 10, columns: int = 200, close: bool = True) -> str:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(10 * n, stream, live, clock=clock, columns=lambda: columns)
    for i in range(1, n + 1):
        clock.seconds += step_seconds
        progress.update(10 * i, i // 5, 2, 2.0 / i, 1234.5, 0.5, 0.91 if i == n else None)
    if close:
        progress.close()
    return stream.getvalue()


def test_plain_lines_come_at_most_every_two_seconds_and_one_at_the_end() -> None:
    assert run(False, 0.01).count("\n") == 1
    assert run(False, 0.5).count("\n") == 3, "5 seconds: at 2, at 4 and the end"
    assert run(False, 3.0).count("\n") == 10, "the last line is not repeated by close"
    assert "\r" not in run(False, 3.0)


def test_a_line_tells_epoch_loss_rate_staleness_accuracy_and_time_left() -> None:
    lines = run(False, 3.0).splitlines()
    for word in ("epoch 1/2", "50%", "loss 0.4 ", "1,234 samples/s", "staleness 0.5", "0:01 left"):
        assert word in lines[4]
    assert "accuracy" not in lines[4] and "accuracy 91.0%" in lines[-1] and "100%" in lines[-1] and "left" not in lines[-1]


def test_a_live_line_redraws_in_place_and_ends_with_one_newline() -> None:
    shown = run(True, 0.5)
    assert shown.count("\r") == 10 and shown.count("\n") == 1 and shown.endswith("\n")
    assert run(True, 0.001).count("\r") == 2, "the first and the last state: redrawing costs time"


def test_a_live_line_covers_the_one_before_it() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, stream, True, clock=clock, columns=lambda: 200)
    progress.update(50, 1, 2, 0.123456, 1000000, 10.0, 0.5)
    clock.seconds += 1
    progress.update(100, 2, 2, 1.0, 1, 0.0)
    long, short = stream.getvalue().split("\r")[1:]
    assert len(short) == len(long) and len(short.rstrip()) < len(long)


@pytest.mark.parametrize("columns", [1, 20, 40, 80])
def test_a_live_line_never_reaches_the_edge_of_the_terminal(columns: int) -> None:
    assert all(len(line) <= max(1, columns - 1) for line in run(True, 0.5, columns=columns).rstrip("\n").split("\r"))


def test_the_bar_makes_room_for_the_figures() -> None:
    wide, narrow = run(True, 0.5, columns=200).split("\r")[5], run(True, 0.5, columns=80).split("\r")[5]
    assert len(narrow.rstrip()) < 80 < len(wide.rstrip()) and "[" in narrow
    for shown in (wide, narrow, run(True, 0.5, columns=72).split("\r")[5]):
        assert "0:01 left" in shown


def test_a_run_without_updates_shows_nothing() -> None:
    assert run(True, 1.0, n=0) == "" and run(False, 1.0, n=0) == ""


def drained(module: types.ModuleType, live: bool = False, step: float = 1.0, n: int = 20) -> str:
    """Have a run drain after its last sample; return what is shown meanwhile, before the end of it."""
    clock, stream = Clock(), io.StringIO()
    progress = module.Progress(100, stream, live, clock=clock, columns=lambda: 200)
    clock.seconds += 10
    progress.update(100, 2, 2, 1.0, 1234.5, 0.0)
    before = len(stream.getvalue())
    for _ in range(n):
        progress.drains()
        clock.seconds += step
    return stream.getvalue()[before:]


def check_drain(module: types.ModuleType) -> None:
    told = f"{progress_module.DRAINS}\n"
    assert drained(module, step=0.2) == "", "a short one is not told"
    assert drained(module) == told and drained(module, n=200) == told, "once"
    assert drained(module, live=True) == "\n" + told, "on a line of its own"
    assert drained(module, step=DRAIN_SECONDS, n=2) == told, "after as many seconds as that"


def test_a_long_drain_after_the_last_sample_is_told_once() -> None:
    check_drain(progress_module)


@pytest.mark.parametrize(
    "broken",
    [
        ("self._drains_since = math.inf", "pass"),
        (" >= DRAIN_SECONDS:", " >= math.inf:"),
        ("            self.close()\n            show(self._stream, DRAINS", "            show(self._stream, DRAINS"),
    ],
    ids=["tells it again", "is silent", "writes into the line"],
)
def test_the_check_of_a_drain_catches_one_that(broken: tuple[str, str]) -> None:
    with pytest.raises(AssertionError):
        check_drain(changed(progress_module, [broken]))


def test_odd_numbers_do_not_end_a_run() -> None:
    stream = io.StringIO()
    progress = Progress(0, stream, False)
    progress.update(0, 0.25, 1, float("nan"), float("inf"), 0.0)
    progress.close()
    assert "loss nan" in stream.getvalue() and "epoch 0.2/1" in stream.getvalue()


def processes(proc: Path, chain: list[tuple[str, str]]) -> Path:
    """Lay out ancestors (name, target of its stdout) of this process, from the nearest on, as the kernel shows them."""
    pids = [os.getpid(), *range(7001, 7001 + len(chain) - 1), 1]
    for pid, parent, (name, target) in zip(pids[:-1], pids[1:], chain, strict=True):
        (proc / str(pid) / "fd").mkdir(parents=True)
        (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0")
        (proc / str(pid) / "fd" / "1").symlink_to(target)
    return proc


PIPE = "pipe:[123]"


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([("python", PIPE), ("hydra_pmi_proxy", PIPE), ("mpiexec.hydra", "/dev/pts/3"), ("bash", "/dev/pts/3")], True),
        ([("python", PIPE), ("prterun", "/dev/tty1")], True),
        ([("python", PIPE), ("odd (name) here", PIPE), ("mpirun", "/dev/pts/0")], True),
        ([("python", PIPE), ("mpirun", PIPE), ("bash", "/dev/pts/3")], False),
        ([("python", PIPE), ("bash", "/dev/pts/3")], False),
        ([("python", PIPE), ("mpirun", "/tmp/log.txt")], False),
    ],
)
def test_a_launcher_with_a_terminal_counts_as_one(tmp_path: Path, chain: list[tuple[str, str]], expected: bool) -> None:
    assert launcher_terminal(processes(tmp_path, chain), io.StringIO()) is expected


def test_without_a_process_table_there_is_no_terminal(tmp_path: Path) -> None:
    assert launcher_terminal(tmp_path / "none", io.StringIO()) is False
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / str(os.getpid()) / "stat").write_text("odd")
    assert launcher_terminal(tmp_path, io.StringIO()) is False


def test_a_pipe_is_left_once_its_last_reader_has_closed_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    output = Path(f"/proc/self/fd/{writer}")
    assert not nobody_reads(output)
    os.close(reader)
    assert nobody_reads(output)
    os.close(writer)
    assert not nobody_reads(output), "it is gone, which says nothing"
    with (tmp_path / "file").open("w") as file:
        assert not nobody_reads(Path(f"/proc/self/fd/{file.fileno()}"))


def test_a_stdout_that_is_a_terminal_is_enough(tmp_path: Path) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        assert launcher_terminal(tmp_path, terminal) is True
    os.close(master)
