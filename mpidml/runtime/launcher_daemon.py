"""End the launcher's daemon of this host where it outlives an abort: over a link that is cut it would wait for the other hosts for ever.

    host 1   prterun  <- waits for ->  prted   host 2       Open MPI: both stay, though all ranks have ended
             rank 0      /  cut  /     rank 1               and each rank that aborts leaves a process behind that sees to its own

MPICH's (hydra) ends by itself, and a daemon that `prte` started serves several jobs (`prun`): both are left alone. A launcher whose host has no rank
of the job has nobody to end it: there `mpirun --timeout` does.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DAEMONS = ("prterun", "prted")
OF_ONE_JOB = "prterun-"
"""How the name of a job begins whose daemons end with it."""
PATIENCE_SECONDS = 5
"""In which a daemon ends where nothing is cut."""
# Its process: gone, or only waiting to be fetched by its parent, it has no program any more.
WATCH = """
for i in $(seq {tenths}); do [ -e /proc/{pid}/exe ] || exit; sleep 0.1; done
kill -TERM {pid}
for i in $(seq 20); do [ -e /proc/{pid}/exe ] || exit; sleep 0.1; done
kill -KILL {pid}
"""


def end_later(pid: int | None = None, seconds: float = PATIENCE_SECONDS) -> bool:
    """See to it that the daemon that has started this process (or `pid`) is gone in `seconds`, and 2 more; return whether there is one. Returns at once."""
    pid = os.getppid() if pid is None else pid
    if not os.environ.get("PMIX_NAMESPACE", "").startswith(OF_ONE_JOB):
        return False
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return False
    if name not in {daemon[:15] for daemon in DAEMONS}:  # the kernel keeps so many characters
        return False
    text = WATCH.format(pid=pid, tenths=round(10 * seconds))
    # A session of its own: launchers kill the groups of their ranks.
    subprocess.Popen(["/bin/sh", "-c", text], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return True
