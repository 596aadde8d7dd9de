"""Run `python -m mpidml` with harm to one rank, in place of it: `mpirun -n N python -m tests.campaign.harm train ...`.

The environment says what is done, on which rank, and where: a function of the program that this rank alone gets in a wrapping. Nothing else is other than in
a run without harm. Each rank notes its process, and the harm its time, in a file.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import signal
import time
from typing import Any

from tests.campaign.link import Link

VARIABLE = "MPIDML_HARM"
MESSAGE = "harm on purpose"
PLACES = {  # name -> module, function, and whether harm is done before it or after it
    "data": ("mpidml.strategies.base", "load", "after"),
    "network": ("mpidml.strategies.base", "build_net", "after"),
    "gradient": ("mpidml.runtime.training", "Training.compute", "before"),
    "member": ("mpidml.runtime.group_training", "GroupTraining.help", "before"),
    "served": ("mpidml.ps.shard", "Shard.handle", "before"),
    "program": ("mpidml.runtime.staged_training", "GridStepper._step", "before"),
    "score": ("mpidml.runtime.scoring", "score", "before"),
    "pieces": ("mpidml.runtime.checkpoint", "_write_pieces", "after"),
    "commit": ("mpidml.runtime.checkpoint", "sync", "before"),
    "model": ("mpidml.runtime.outputs", "_sort_header", "before"),  # the file is written under its passing name
    "gathered": ("mpidml.strategies.base", "bring", "after"),
}
LATER_SECONDS = 0.005


def note(log: str, *words: object) -> None:
    """Add a line to the log, in one piece."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{' '.join(map(str, words))}\n".encode())
    os.close(descriptor)


class Harm:
    """What is done when the place is come to for the `at`-th time; a slow rank is slow from then on."""

    def __init__(self, fault: str, at: int, seconds: float, once: bool, log: str) -> None:
        self.fault, self.at, self.seconds, self.log, self.n = fault, at, seconds, log, 0
        self.link = Link(seconds if fault == "delay" else math.inf, once, self.done) if fault in ("delay", "lost") else None

    def met(self) -> None:
        """Come to the place."""
        self.n += 1
        if self.n < self.at:
            return
        if self.n > self.at:
            if self.fault == "slow":
                time.sleep(LATER_SECONDS)
            return
        if self.link is not None:
            self.link.armed = True
            return
        self.done(-1)
        if self.fault == "exception":
            raise ArithmeticError(MESSAGE)
        if self.fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)
        time.sleep(self.seconds)

    def done(self, to: int) -> None:
        """Note the shared memory that has a name, the time of the harm, and the rank that a message does not reach."""
        with open("/proc/self/maps") as maps:
            for path in sorted({line.rstrip("\n").partition("/")[2] for line in maps if " /dev/shm/" in line and not line.endswith(" (deleted)\n")}):
                note(self.log, "memory", f"/{path}")
        note(self.log, "harm", time.monotonic(), to)

    def at_place(self, module: str, function: str, when: str) -> None:
        """Wrap a function."""
        *path, name = function.split(".")
        owner = functools.reduce(getattr, path, importlib.import_module(module))
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*given: Any, **named: Any) -> Any:
            if when == "before":
                self.met()
            found = real(*given, **named)
            if when == "after":
                self.met()
            return found

        setattr(owner, name, wrapped)


def main() -> None:
    """Do harm where this rank is the one, and run."""
    from mpidml.runtime import launch
    from mpidml.runtime.threads import budget_threads

    what = json.loads(os.environ[VARIABLE])
    rank, place = what.pop("rank"), what.pop("place")
    budget_threads(os.environ)  # before NumPy is loaded
    own = launch.world_from_environment(os.environ).rank
    note(what["log"], "rank", own, os.getpid())
    if own == rank:
        harm = Harm(**what)
        harm.at_place(*PLACES[place])
        if harm.link is not None:
            harm.link.cut()
    from mpidml.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
