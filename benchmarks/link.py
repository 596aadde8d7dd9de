"""Emulate two hosts and the link between them on one machine: a network namespace each, and the kernel's limit on what leaves it.

    host 1, 10.77.0.1 | eth0, at most RATE out  ==========  eth0, at most RATE out | host 2, 10.77.0.2

Needs root, `ip`, `tc` and MPICH; `lacking` says what is missing. Ranks on the two hosts share no memory, as MPI sees them, but the cores of one machine.
The link has no delay of its own (some 20 us). Whatever ends the program, the namespaces are gone afterwards; those of a program that was killed go with the next.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mpidml.runtime.launch import find_mpirun, flavour, mpirun_command

PREFIX = "mpidml-link"
UP_SECONDS = 10.0
BURST_SECONDS, MTU, GSO_NBYTES = 150e-6, 1514, 65536
ADDRESSES = ("10.77.0.1", "10.77.0.2")
AGENT = """#!/bin/sh
# what a launcher calls in place of ssh: [options] HOST COMMAND...
while [ "${{1#-}}" != "$1" ]; do shift; done
case $1 in {first}) space={spaces[0]} ;; *) space={spaces[1]} ;; esac
shift
exec ip netns exec $space sh -c "$*"
"""


def lacking() -> str:
    """Return why no link can be emulated here, "" where one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"there is no '{tool}' (Debian: apt install iproute2)"
    if flavour(find_mpirun(os.environ)) != "mpich":
        return "the launcher is not MPICH's, which alone is known to start ranks there"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"this system grants no network namespace ({done.stderr.strip()})"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


def namespaces(pid: int | None = None) -> list[str]:
    """List the namespaces of links: of one program, or of all."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [name for name in re.findall(rf"^{PREFIX}-\d+-\S+", listed, re.MULTILINE) if pid in (None, int(name.split("-")[2]))]


class Link:
    """Two hosts joined by a link of `rate`, such as "1gbit" or "100mbit", both ways at once, while the `with` block runs."""

    def __init__(self, rate: str) -> None:
        self.rate = rate
        number, unit = re.fullmatch(r"(\d+)([kmg])bit", rate).groups()  # type: ignore[union-attr]
        self.burst = max(2 * MTU, int(BURST_SECONDS * int(number) * 1000 ** (1 + "kmg".index(unit)) / 8))
        self.spaces = [f"{PREFIX}-{os.getpid()}-{host}" for host in (1, 2)]

    def __enter__(self) -> Link:
        self.before: Any = signal.signal(signal.SIGTERM, _terminated)
        self.folder = tempfile.mkdtemp(prefix="mpidml-link-")
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        for name in namespaces():
            if not Path("/proc", name.split("-")[2]).exists():
                subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)  # unless another link is just doing it
        for space in self.spaces:
            _ip("netns", "add", space)
        _ip("link", "add", "eth0", "netns", self.spaces[0], "type", "veth", "peer", "name", "eth0", "netns", self.spaces[1])
        for space, address in zip(self.spaces, ADDRESSES, strict=True):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "addrgenmode", "none")  # no IPv6, whose addresses take a second to be usable
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
            # What may go at once, 150 us at the rate, is also the largest piece that the kernel hands over: it need not cut pieces up, which takes a core.
            _ip("-n", space, "link", "set", "eth0", "gso_max_size", str(min(self.burst, GSO_NBYTES)))
            limit = ["root", "tbf", "rate", self.rate, "burst", str(self.burst), "latency", "50ms"]
            subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", "eth0", *limit], check=True)
        until = time.monotonic() + UP_SECONDS
        while any("LOWER_UP" not in (said := _ip("-n", space, "link", "show", "eth0")) or "state UP" not in said for space in self.spaces):
            if time.monotonic() > until:
                raise RuntimeError(f"link: eth0 did not come up within {UP_SECONDS:g} s")
            time.sleep(0.01)
        self.agent = Path(self.folder, "agent")
        self.agent.write_text(AGENT.format(first=ADDRESSES[0], spaces=self.spaces))
        self.agent.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        for name in namespaces(os.getpid()):
            _ip("netns", "del", name)
        shutil.rmtree(self.folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, self.before)

    def command(self, words: list[str], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Return the words and the environment that start python with `words` as one rank on each host."""
        mpirun, (_, env) = find_mpirun(env), mpirun_command(2, env)
        there = ["ip", "netns", "exec", self.spaces[0], mpirun]
        # Without a word MPICH finds the memory behind the namespaces and goes around the link.
        env = env | {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "eth0"}
        hosts = ["-launcher", "ssh", "-launcher-exec", str(self.agent), "-hosts", ",".join(ADDRESSES), "-localhost", ADDRESSES[0]]
        return [*there, *hosts, "-n", "2", sys.executable, *words], env


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
