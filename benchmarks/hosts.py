"""Make several hosts of one machine, a network namespace and a name each, and start ranks on them by either MPI, with a script in place of ssh.

    h1  10.77.0.1  eth0 |        | eth0  10.77.0.2  h2        what lies between is `join`'s: a wire (`link`), or a switch

Needs root and `ip`; `lacking` says what is missing. Ranks of different hosts share no memory and no socket but through eth0, as MPI sees them, yet they share
the machine's cores, its files and /dev/shm. Whatever ends the program, hosts and all that runs there are gone afterwards; those of a program that
was killed go with the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from mpidml.runtime.launch import find_mpirun, flavour, mpirun_command

PREFIX = "mpidml-host"
UP_SECONDS = 10.0
TOOLS = {"ip": "iproute2", "unshare": "util-linux", "mount": "mount", "hostname": "hostname"}
# MPICH's choice, UCX, finds the memory behind the namespaces, and goes around the network.
BY_TCP = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "eth0"}
ON = """#!/bin/sh
# run a command on a host, under its name:  on HOST COMMAND...
host=$1; shift
exec ip netns exec {spaces}-$host unshare --uts sh -c 'hostname "$0" && mount --bind {folder}/hosts /etc/hosts && exec "$@"' $host "$@"
"""
AGENT = """#!/bin/sh
# what a launcher calls in place of ssh, [options] HOST COMMAND...: no variable goes along, what ends this does not reach the command, and that
# does not hold the launcher's output open
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1; shift
exec >>{folder}/said 2>&1
setsid env -i "PATH=$PATH" "HOME=$HOME" {folder}/on $host sh -c "$*" <&0 &
wait $!
"""


def lacking(*tools: str) -> str:
    """Return why there can be no hosts here, "" where there can; `tools` are needed besides."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in (*TOOLS, *tools):
        if shutil.which(tool) is None:
            return f"there is no '{tool}' (Debian: apt install {TOOLS.get(tool, 'iproute2')})"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"this system grants no network namespace ({done.stderr.strip()})"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


def namespaces(pid: int | None = None) -> list[str]:
    """List the namespaces of hosts: of one program, or of all."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [name for name in re.findall(rf"^{PREFIX}-\d+-\S+", listed, re.MULTILINE) if pid in (None, int(name.split("-")[2]))]


def processes(space: str) -> list[int]:
    """List what runs in a namespace."""
    return [int(pid) for pid in subprocess.run(["ip", "netns", "pids", space], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.split()]


def ip(*words: str) -> str:
    """Call `ip`; return what it says."""
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def _is_stale(name: str) -> bool:
    """Tell whether the program that gave something its name has ended."""
    return not Path("/proc", name.split("-")[2]).exists()


def _remove(space: str) -> None:
    """Take a namespace away with all that runs there."""
    while pids := processes(space):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    subprocess.run(["ip", "netns", "del", space], check=False, stderr=subprocess.DEVNULL)  # unless another program is just doing it


class Hosts:
    """Hosts h1, h2, ... while the `with` block runs."""

    def __init__(self, n: int) -> None:
        self.names = [f"h{i + 1}" for i in range(n)]
        self.addresses = [f"10.77.0.{i + 1}" for i in range(n)]
        self.spaces = [f"{PREFIX}-{os.getpid()}-{name}" for name in self.names]

    def __enter__(self) -> Self:
        self.before: Any = signal.signal(signal.SIGTERM, _terminated)
        self.folder = tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-")
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def join(self) -> None:
        """Give each host a device eth0 that leads to the others."""
        raise NotImplementedError

    def _build(self) -> None:
        for name in filter(_is_stale, namespaces()):
            _remove(name)
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*"):
            if _is_stale(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        for space in self.spaces:
            ip("netns", "add", space)
        self.join()
        for space, address in zip(self.spaces, self.addresses, strict=True):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "addrgenmode", "none")  # no IPv6, whose addresses take a second to be usable
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
        until = time.monotonic() + UP_SECONDS
        while any("LOWER_UP" not in (said := ip("-n", space, "link", "show", "eth0")) or "state DOWN" in said for space in self.spaces):
            if time.monotonic() > until:
                raise RuntimeError(f"hosts: eth0 did not come up within {UP_SECONDS:g} s")
            time.sleep(0.01)
        known = ["127.0.0.1 localhost", *(f"{address} {name}" for address, name in zip(self.addresses, self.names, strict=True))]
        Path(self.folder, "hosts").write_text("\n".join(known) + "\n")
        for name, text in (("on", ON), ("agent", AGENT)):
            script = Path(self.folder, name)
            script.write_text(text.format(spaces=f"{PREFIX}-{os.getpid()}", folder=self.folder))
            script.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        for space in namespaces(os.getpid()):
            _remove(space)
        shutil.rmtree(self.folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, self.before)

    def tx_bytes(self, host: int) -> int:
        """Return what has left a host through its eth0, headers and all."""
        return int(self.on(host, "cat", "/sys/class/net/eth0/statistics/tx_bytes"))

    def on(self, host: int, *words: str) -> str:
        """Run a command on a host; return what it says."""
        return subprocess.run([f"{self.folder}/on", self.names[host], *words], check=True, stdout=subprocess.PIPE, text=True).stdout

    def command(self, words: Sequence[str], env: Mapping[str, str], ranks_per_host: int = 1) -> tuple[list[str], dict[str, str]]:
        """Return the words and the environment that start python with `words` on every host, the first one's ranks being the first."""
        n = ranks_per_host * len(self.names)
        mpirun, (_, env) = find_mpirun(env), mpirun_command(n, env)
        agent, file = f"{self.folder}/agent", Path(self.folder, "hostfile")
        if flavour(mpirun) == "openmpi":
            env = {"OMPI_MCA_mpi_yield_when_idle": "1"} | env  # hosts share the cores, which MPI does not know
            listed = [f"{name} slots={ranks_per_host}" for name in self.names]
            over = ["--prtemca", "plm_ssh_agent", agent, "--bind-to", "none", "-x", "PYTHONPATH", "--hostfile", str(file)]
        else:
            listed = self.names
            over = ["-launcher", "ssh", "-launcher-exec", agent, "-ppn", str(ranks_per_host), "-f", str(file)]
            env = env | BY_TCP
        file.write_text("\n".join(listed) + "\n")
        return [f"{self.folder}/on", self.names[0], mpirun, *over, "-n", str(n), sys.executable, *words], env


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
