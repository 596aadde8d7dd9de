"""An emulated link lets two hosts share nothing but itself, and leaves no trace, whatever ends the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from benchmarks.hosts import namespaces
from benchmarks.link import Link, lacking
from tests.ranks import ROOT, need, run

HOLD = """
import signal, time
from benchmarks.link import Link
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it leaves in the background deaf to it
with Link('1gbit'):
    print('up', flush=True)
    time.sleep(60)
"""
RANKS = """
from mpidml.runtime.comm import CountedComm
comm = CountedComm()
own = comm.host_rank_of
if comm.rank == 0:
    print(comm.size, comm.one_host, own)
comm.free()
"""


def test_ranks_live_on_two_hosts_and_what_they_send_crosses_the_link() -> None:
    need(not lacking(), "root, ip and tc")
    send = RANKS.replace("comm.free()", "import numpy as np\ncomm.Bcast(np.zeros(1_000_000, np.uint8))\ncomm.free()")
    with Link("1gbit") as link:
        before = link.tx_bytes(0)
        command, env = link.command(["-c", send], os.environ)
        done = run(command, 60, env)
        assert done.out.split() == ["2", "False", "[0,", "-1]"], done.err
        assert link.tx_bytes(0) - before > 1_000_000
    assert namespaces(os.getpid()) == []


def test_an_exception_takes_the_hosts_down() -> None:
    need(not lacking(), "root, ip and tc")
    with pytest.raises(ValueError, match="mine"), Link("1gbit"):
        assert len(namespaces(os.getpid())) == 2
        raise ValueError("mine")
    with pytest.raises(subprocess.CalledProcessError), Link("0mbit"):  # half-built
        pass
    assert namespaces(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_takes_the_hosts_down_at_once_or_with_the_next_link(number: signal.Signals) -> None:
    need(not lacking(), "root, ip and tc")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    assert len(namespaces(child.pid)) == 2
    child.send_signal(number)
    assert child.wait(30) != 0
    child.stdout.close()
    if number == signal.SIGKILL:
        assert len(namespaces(child.pid)) == 2
        with Link("1gbit"):
            pass
    assert namespaces(child.pid) == []


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert lacking() == "network namespaces need root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    assert "there is no 'ip'" in lacking()
