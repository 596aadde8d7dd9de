"""Put hosts on a switch with delay, rate and jitter, run ranks of either MPI on them, cut a host off, freeze it or kill all that runs there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.hosts import Hosts, ip, lacking, processes
from tests.ranks import ROOT, Result, need, run


def need_hosts() -> None:
    """Skip where there can be no hosts; under CI that is a failure."""
    why = lacking()
    need(not why, f"hosts ({why})")
    need(os.access("/dev/net/tun", os.R_OK | os.W_OK), "/dev/net/tun")


class Cluster(Hosts):
    """n hosts on one switch (`tests.switch`) while the `with` block runs; `delay` in seconds one way, `rate` in bits a second of each link, both ways at once."""

    def __init__(self, n: int, delay: float = 0.0, rate: float = 0.0, jitter: float = 0.0) -> None:
        super().__init__(n)
        self.settings = {"delay": delay, "rate": rate, "jitter": jitter}
        self.switch: Any = None

    def join(self) -> None:
        """Start the switch, and give each host its device."""
        prefix = f"m{os.getpid()}h"
        words = [sys.executable, "-m", "tests.switch", prefix, str(len(self.names))]
        self.switch = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if self.switch.stdout.readline() != "up\n":
            raise RuntimeError("hosts: the switch did not start")
        for i, space in enumerate(self.spaces):
            ip("link", "set", f"{prefix}{i}", "netns", space, "name", "eth0")
            ip("-n", space, "link", "set", "eth0", "address", f"02:00:00:00:00:{i + 1:02x}", "mtu", "9000", "txqueuelen", "5000")
        for what, value in self.settings.items():
            self.change(what, value)

    def change(self, what: str, value: float) -> None:
        """Have the switch obey one line of its input from now on."""
        self.switch.stdin.write(f"{what} {value}\n")
        self.switch.stdin.flush()
        if self.switch.stdout.readline() != "done\n":
            raise RuntimeError(f"hosts: the switch did not obey '{what} {value}'")

    def __exit__(self, *error: object) -> None:
        if self.switch is not None:
            self.switch.stdin.close()
            self.switch.wait(10)
            self.switch.stdout.close()
        super().__exit__(*error)

    def processes(self) -> list[int]:
        """List what runs on any host, without what only waits to be fetched by its parent."""
        return [pid for space in self.spaces for pid in processes(space) if running(pid)]

    def signal(self, host: int, number: int) -> None:
        """Send a signal to all that runs on a host."""
        for pid in processes(self.spaces[host]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self, host: int) -> set[int]:
        """Stop all that runs on a host; return that, and what waits for it on others: a launcher's agents, in place of which ssh would stand."""
        self.signal(host, signal.SIGSTOP)
        agents = [pid for space in self.spaces for pid in processes(space) if f"{self.folder}/agent" in _read(pid, "cmdline").split("\0")[:2]]
        return {*processes(self.spaces[host]), *agents}

    def mpirun(self, words: Sequence[str | Path], ranks_per_host: int = 1, timeout: float = 90) -> Result:
        """Run `python WORDS` on all hosts, as `tests.ranks.mpirun` does on this one."""
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        command, env = self.command([*map(str, words)], {**os.environ, "PYTHONPATH": paths}, ranks_per_host)
        return run(command, timeout, env)


def running(pid: int) -> bool:
    """Tell whether a process runs, or is frozen; one that only waits to be fetched by its parent does not."""
    return (stat := _read(pid, "stat")).rpartition(")")[2].split()[:1] not in ([], ["Z"]) and bool(stat)


def name_of(pid: int) -> str:
    """Return the name of what a process runs now, "" if it has ended."""
    return _read(pid, "comm").strip()


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(errors="replace")
    except OSError:
        return ""
