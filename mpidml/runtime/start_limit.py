"""Give the start of MPI a limit: a rank that is missing there has no place yet where others could look for it.

MPI's start keeps the interpreter to itself, so no thread of Python could end it. The kernel does: SIGALRM, which first has the stack printed.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT_SECONDS = 300


@contextmanager
def counted() -> Iterator[None]:
    """End this process, and so the job, where the block takes longer than the limit; where the program has an alarm of its own, that stays."""
    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    if not own:
        yield
        return
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.unregister(signal.SIGALRM)
