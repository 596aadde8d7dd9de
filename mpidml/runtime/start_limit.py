"""Give what keeps the interpreter to itself a limit: the start of MPI and its end, where a rank that is missing would be waited for unseen.

No thread of Python could end it: faulthandler has a thread that needs no interpreter and prints all stacks. An alarm then ends this process, since hydra
ends ranks that have not come to MPI for one that a signal ends, and for none that exits; where the program uses alarms itself, that thread exits.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mpidml.runtime import launch

LIMIT_SECONDS = 300.0
VARIABLE = "MPIDML_START_LIMIT"


def start_seconds(env: Mapping[str, str]) -> float:
    """Return the limit of the start of MPI; end this process with code 2 where the environment gives none, before ranks could tell each other."""
    text = env.get(VARIABLE, str(LIMIT_SECONDS))
    try:
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    except ValueError:
        pass
    launch.refuse(launch.world_from_environment(env), f"{VARIABLE}={text}: is not a number of seconds; give one such as {LIMIT_SECONDS:g}")
    return LIMIT_SECONDS


@contextmanager
def counted(seconds: float | None = None) -> Iterator[None]:
    """End this process, and so the job, where the block takes longer than `seconds` (default: the limit of the start of MPI)."""
    limit = start_seconds(os.environ) if seconds is None else seconds
    free = signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    faulthandler.dump_traceback_later(limit, exit=not free, file=2)
    inherited = signal.alarm(math.ceil(limit) + 1) if free else 0
    began = time.monotonic()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        if free:
            signal.alarm(max(1, math.ceil(inherited - (time.monotonic() - began))) if inherited else 0)
