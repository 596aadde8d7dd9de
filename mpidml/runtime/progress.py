"""Show rank 0's progress: one line that redraws itself on a terminal, a plain line now and then elsewhere.

    epoch 2/5  [========>           ]   42%  loss 0.3127  11,700 samples/s  staleness 1.2  0:07 left
"""

from __future__ import annotations

import math
import os
import select
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TextIO

_LAUNCHERS = ("mpirun", "mpiexec", "hydra", "prterun", "orterun")
_BAR_WIDTH = 20
_REDRAW_SECONDS = 0.1
DRAIN_SECONDS = 5.0
DRAINS = "all batches are computed; what is left is that servers apply the last updates, and the final scores"


class Progress:
    """Report on `total_samples` samples to `stream`. `live` redraws one line; otherwise a line comes at most every `interval` seconds.

    `clock` reads seconds; `columns` reads the width of the terminal. The last state is always shown, by `close` at the latest.
    """

    def __init__(
        self,
        total_samples: int,
        stream: TextIO,
        live: bool,
        clock: Callable[[], float] = time.perf_counter,
        interval: float = 2.0,
        columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self._total, self._stream, self._live, self._clock, self._columns = total_samples, stream, live, clock, columns
        self._interval = _REDRAW_SECONDS if live else interval
        self._shown_at = -math.inf if live else clock()
        self._line = ""
        self._is_shown = True
        self._width = 0
        self._drains_since: float | None = None

    def update(
        self,
        samples: int,
        epoch: float,
        epochs: float | None,
        loss: float,
        samples_per_second: float,
        staleness: float,
        accuracy: float | None = None,
        done: float | None = None,
        rmse: float | None = None,
    ) -> None:
        """Take the state after `samples` samples; shown if enough time has passed since the last one shown.

        `done` is the share of the run that is over where samples do not tell it; then `epochs` is None.
        """
        by_samples = done is None
        done = min(1.0, samples / self._total if by_samples and self._total > 0 else 1.0 if done is None else done)
        parts = [f"epoch {_short(epoch)}" + (f"/{_short(epochs)}" if epochs is not None else ""), f"{math.floor(100 * done):3d}%", f"loss {loss:.4g}"]
        parts += [f"{samples_per_second:,.0f} samples/s", f"staleness {staleness:.1f}"]
        if accuracy is not None:
            parts.append(f"accuracy {accuracy:.1%}")
        if rmse is not None:
            parts.append(f"RMSE {rmse:.4g}")
        left = self._total - samples
        if by_samples and left > 0 and 0 < samples_per_second < math.inf:
            parts.append(f"{_duration(left / samples_per_second)} left")
        room = self._columns() - len("  ".join(parts)) - 5 if self._live else _BAR_WIDTH
        if room >= 5:  # the bar takes what the figures leave
            parts.insert(1, _bar(done, min(room, _BAR_WIDTH)))
        self._line, self._is_shown = "  ".join(parts), False
        if self._clock() - self._shown_at >= self._interval:
            self._show()

    def drains(self) -> None:
        """Hear that workers compute no more although the run goes on; say so once, DRAIN_SECONDS after the first call."""
        if self._drains_since is None:
            self._drains_since = self._clock()
        elif self._clock() - self._drains_since >= DRAIN_SECONDS:
            self._drains_since = math.inf
            self.close()
            show(self._stream, DRAINS + "\n")

    def close(self) -> None:
        """Show the last state if it is not on show yet, and end the line."""
        if not self._is_shown:
            self._show()
        if self._live and self._width:
            show(self._stream, "\n")
            self._width = 0

    def _show(self) -> None:
        if self._live:
            line = self._line[: max(1, self._columns() - 1)]  # a full line would wrap, and \r return to its second half
            show(self._stream, "\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            show(self._stream, self._line + "\n")
        self._shown_at, self._is_shown = self._clock(), True


def show(stream: TextIO, text: str) -> None:
    """Write and flush; where nobody reads any more (a closed pipe, a full disk) stop showing instead of ending the run."""
    try:
        if stream is sys.stdout and any(map(nobody_reads, launchers(Path("/proc")))):
            raise BrokenPipeError  # a launcher that writes to it would end all ranks
        stream.write(text)
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # what is still buffered goes there, too
        os.close(null)


def launcher_terminal(proc: Path = Path("/proc"), stdout: TextIO | None = None) -> bool:
    """Tell whether output ends on a terminal: that of the launcher (mpirun, mpiexec, ...) that started this process, else its own.

    A launcher reads its ranks through pipes or terminals of its own, so the outputs of ancestors are looked up in `proc`, where that can be read.
    """
    outputs = launchers(proc)
    return any(map(_is_terminal, outputs)) if outputs else (stdout or sys.stdout).isatty()


@cache
def launchers(proc: Path) -> list[Path]:
    """List the outputs of the launchers that started this process, as far as `proc` shows them."""
    pid, found = os.getpid(), []
    try:
        while pid > 1:
            # "pid (name) state parent ...": the name may itself hold blanks and brackets
            before, _, after = (proc / str(pid) / "stat").read_text().rpartition(")")
            if before.partition("(")[2].startswith(_LAUNCHERS):
                found.append(proc / str(pid) / "fd" / "1")
            pid = int(after.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return found


def nobody_reads(output: Path) -> bool:
    """Tell whether `output`, that of another process, is a pipe whose reader has left."""
    try:
        if not os.readlink(output).startswith("pipe:"):
            return False
        end = os.open(output, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    asked = select.poll()
    asked.register(end, select.POLLOUT)
    found = any(event & select.POLLERR for _, event in asked.poll(0))
    os.close(end)
    return found


def _is_terminal(output: Path) -> bool:
    try:
        return os.readlink(output).startswith(("/dev/pts/", "/dev/tty", "/dev/console"))
    except OSError:
        return False


def _bar(done: float, width: int) -> str:
    head = int(done * width)
    return f"[{'=' * head + '>' * (head < width) + ' ' * (width - head - 1)}]"


def _short(number: float) -> str:
    return f"{number:d}" if isinstance(number, int) else f"{number:.1f}".removesuffix(".0")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
