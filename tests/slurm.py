"""Run a real Slurm on this machine: munge, a controller, and emulated nodes n1 to nN, a slurmd each; no systemd, no cgroups, no user but root.

    python -m tests.slurm install            by apt-get: Debian, Ubuntu
    python -m tests.slurm run COMMAND ...    bring four nodes up, run the command with SLURM_CONF set, take them down

All of it lies in one folder below the system's for temporary files. Every daemon is a child of this process, and none survives it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.ranks import ROOT

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "libpmix2", "libpmi2-0")
PROGRAMS = ("unshare", "setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
LIMIT_SECONDS = 30
HOST = "hostname {node} && mount --bind {home}/hosts /etc/hosts && mount -t tmpfs tmpfs /dev/shm && exec slurmd -D -N {node}"
"""A node has a name and shared memory of its own: two that share them trip each other's MPI."""
CONFIG = """
ClusterName=mpidml
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.sock
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
TmpFS={home}/tmp/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000
ReturnToService=0
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=2
OverTimeLimit=1
SlurmctldTimeout=30
SlurmdTimeout=30
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def lacking() -> list[str]:
    """Name what a cluster here lacks."""
    paths = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return ["root"] * (os.geteuid() != 0) + [name for name in PROGRAMS if shutil.which(name, path=paths) is None]


def install() -> None:
    """Install Slurm's packages (25 s); CalledProcessError with what was said where that fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-q", *words], env=env, stdin=subprocess.DEVNULL, check=True, timeout=300, capture_output=True, text=True)


def _let_pmix_be_found() -> None:
    """Give PMIx the name under which Debian 12's Slurm plug-in opens it, which only the development package has."""
    for library in Path("/usr/lib").glob("*-linux-gnu/pmix2/lib/libpmix.so.2"):
        with contextlib.suppress(FileExistsError):
            library.with_name("libpmix.so").symlink_to(library.name)


class Cluster:
    """Be `n_nodes` nodes of `n_cpus` CPUs each, all of them this machine. `env` is what a user's shell has there: SLURM_CONF, this python first on PATH."""

    def __init__(self, n_nodes: int = 4, n_cpus: int = 2) -> None:
        self.nodes, self.n_cpus = [f"n{i + 1}" for i in range(n_nodes)], n_cpus
        self.home = Path(tempfile.mkdtemp(prefix="mpidml-slurm-"))
        self.daemons: list[subprocess.Popen[bytes]] = []
        paths = [sysconfig.get_path("scripts"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
        self.env = {**_outside_slurm(os.environ), "SLURM_CONF": str(self.home / "slurm.conf"), "PATH": os.pathsep.join(paths)}
        self.env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        _let_pmix_be_found()
        home, host = self.home, socket.gethostname().partition(".")[0]
        home.chmod(0o755)
        for name in ("state", "munge", *(f"{kind}/{node}" for kind in ("spool", "tmp") for node in self.nodes)):
            (home / name).mkdir(parents=True)
        (home / "munge").chmod(0o700)
        (home / "munge/key").write_bytes(secrets.token_bytes(1024))
        (home / "munge/key").chmod(0o400)
        port, *ports = _free_ports(1 + len(self.nodes))
        lines = [f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={p} CPUs={self.n_cpus} RealMemory=2000" for n, p in zip(self.nodes, ports, strict=True)]
        (home / "slurm.conf").write_text(CONFIG.format(host=host, port=port, home=home) + "\n".join(lines) + "\n")
        munge = [f"--{name}={home}/munge/{name.partition('-')[0]}" for name in ("key-file", "log-file", "seed-file")]
        self._daemon("munged", "--foreground", "--force", f"--socket={home}/munge.sock", f"--pid-file={home}/munged.pid", *munge)
        self._until(lambda: (home / "munge.sock").exists(), "munged")
        self._daemon("slurmctld", "-D", "-i")
        (home / "hosts").write_text(Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {node}\n" for node in self.nodes))
        for node in self.nodes:
            self._daemon("unshare", "--mount", "--ipc", "--uts", "sh", "-c", HOST.format(node=node, home=home), log=f"slurmd-{node}")
        self._until(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").split() == [str(len(self.nodes))], "the nodes")

    def _daemon(self, *words: str, log: str = "") -> None:
        with (self.home / f"{log or words[0]}.log").open("wb") as file:
            words = ("setpriv", "--pdeathsig", "TERM", *words)  # however this process ends
            self.daemons.append(subprocess.Popen(words, env=self.env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True))

    def _until(self, condition: object, what: str) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not condition():  # type: ignore[operator]
            if time.monotonic() > end:
                logs = "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(self.home.glob("*.log")))
                raise RuntimeError(f"Slurm: {what} did not come up in {LIMIT_SECONDS} s\n{logs}")
            time.sleep(0.1)

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands and return what it says on its output."""
        done = subprocess.run(words, env={**self.env, **(env or {})}, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        return done.stdout

    def __exit__(self, *_: object) -> None:
        """Cancel all jobs, end the daemons, the controller first, and what their steps have left, and remove the folder."""
        with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError):
            self.run("scancel", "--user=root")
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
        for daemon in [*self.daemons[1:], *self.daemons[:1]]:
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)

    def left(self) -> list[int]:
        """List the processes that have this cluster in their environment: steps, ranks, daemons."""
        mark, found = f"SLURM_CONF={self.home}/slurm.conf".encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found


def _outside_slurm(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(("SLURM", "SBATCH", "PMI", "HYDI"))}


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main() -> int:
    if sys.argv[1:] == ["install"]:
        install()
        return 0
    if sys.argv[1:2] != ["run"] or len(sys.argv) < 3:
        sys.stderr.write(f"{__doc__}")
        return 2
    if lacks := lacking():
        sys.stderr.write(f"slurm: this machine lacks {', '.join(lacks)}; be root, and run: python -m tests.slurm install\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Cluster() as cluster:
        return subprocess.run(sys.argv[2:], env=cluster.env).returncode


if __name__ == "__main__":
    sys.exit(main())
