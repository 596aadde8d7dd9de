"""Over several hosts with a network between them jobs compute what they compute on one, send what they say, and end by themselves when a host is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import hosts
from benchmarks.hosts import namespaces, processes
from mpidml.collectives import base
from mpidml.core import plugins
from mpidml.core.job import Job
from mpidml.runtime.launch import find_mpirun, flavour
from mpidml.strategies.base import train
from tests import test_faults
from tests.hosts import Cluster, name_of, need_hosts, running
from tests.ranks import ROOT, mpirun

MS, GBIT = 1e-3, 1e9
BASE: dict[str, Any] = {
    "data": "digits", "hidden": [24, 16, 12], "steps": 6, "batch": 48, "dtype": "float64", "backend": "numpy", "seed": 3, "report": False, "wait_limit": 60,
}  # fmt: skip
AS_ONE: dict[str, dict[str, Any]] = {  # what one rank computes
    "servers": {"sync": "bsp"},
    "ring": {"strategy": "data_parallel", "collective": "ring"},
    "rabenseifner": {"strategy": "data_parallel", "collective": "rabenseifner"},
    "hierarchical": {"strategy": "data_parallel", "collective": "hierarchical"},
    "pipeline": {"strategy": "pipeline"},
    "tensor": {"strategy": "tensor"},
    "hybrid": {"strategy": "hybrid", "grid": "data=2,pipe=2"},
    "average": {"strategy": "averaging", "average_every": 1, "collective": "ring"},
}
AS_LAID_OUT: dict[str, dict[str, Any]] = {  # what the same ranks compute on one host, where it is taken for as many, to the bit
    "ssp": {"sync": "ssp:2", "deterministic": True},
    "servers, codes": {"sync": "bsp", "compress": "two_bit", "transport": "mpi"},
    "codes": {"strategy": "data_parallel", "compress": "two_bit"},
    "codes of hosts": {"strategy": "data_parallel", "compress": "top_k:0.1", "collective": "hierarchical"},
    "groups": {"sync": "ssp:1", "deterministic": True, "group": 2},
    "gossip": {"strategy": "averaging", "average_every": 2, "collective": "gossip"},
}
SUMS = ("ring", "rabenseifner", "hierarchical")
N, TIMES = 120_000, 3
HEADERS = 1.1
"""What frames, acknowledgements and MPI's own words may add to what is sent."""
END_SECONDS, WAIT_LIMIT = 30, 4
SERVERS, RING, PIPELINE = ["--sync", "ssp:2"], ["--strategy", "data_parallel", "--collective", "ring"], ["--strategy", "pipeline", "--partition", "equal"]
HOLD = """
import subprocess, time
from tests.hosts import Cluster
with Cluster(2) as cluster:
    subprocess.Popen([f"{cluster.folder}/on", "h2", "sleep", "1000"])
    print(cluster.switch.pid, cluster.folder, flush=True)
    time.sleep(60)
"""
# Descend, and say once when the training is under way.
LINK = """
import os
from mpidml.optim.base import Link


class Told(Link):
    def transform(self, backend, g, state, w, step, memory=1.0):
        if step == 5 and os.environ.setdefault("TOLD", "no") == "no":
            os.environ["TOLD"] = "yes"
            print(f"rank {os.getpid()}\\ntraining\\n", end="", flush=True)

    def apply(self, backend, w, out, g, state, rate, step, memory=1.0):
        self.transform(backend, g, state, w, step)
        out[...] = w - rate * g

    descends = True
"""


def is_mpich() -> bool:
    return flavour(find_mpirun(os.environ)) == "mpich"


def asked(folder: Path, jobs: dict[str, Any], sums: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps({"base": BASE, "jobs": jobs, "sums": sums, "n": N, "times": TIMES}))
    return folder


def done(cluster: Cluster, folder: Path, ranks_per_host: int, *layouts: int) -> dict[str, Any]:
    """Run the request of a folder on the hosts; return the facts."""
    result = cluster.mpirun(["-m", "tests.on_hosts", folder, *layouts], ranks_per_host)
    assert result.code == 0, result
    assert cluster.processes() == []
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


@pytest.fixture(scope="module")
def alone() -> Any:
    """Train on one rank."""
    kept: dict[str, Any] = {}
    train(Job().with_values(BASE, "test"), quiet=True, write=False, keep=kept)
    return kept["values"]


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on four ranks of one host, which are taken for hosts of two ranks, and of one."""
    folder = asked(tmp_path_factory.mktemp("one") / "host", AS_LAID_OUT)
    result = mpirun(4, ["-m", "tests.on_hosts", folder, 2, 1], 90)
    assert result.code == 0, result
    return folder


def crossing(name: str, host_of: list[int], n: int) -> list[int]:
    """Return the elements that each host sends to others in a sum by rounds, or by `hierarchical`, in which the first ranks of the hosts take part."""
    if name == "hierarchical":
        name, host_of = plugins.make(base.FOLDER, name).between, sorted(set(host_of))
    collective, sent = plugins.make(base.FOLDER, name), [0] * (max(host_of) + 1)
    for rank, host in enumerate(host_of):
        part = collective.rounds(rank, len(host_of), n)
        for move in (move for each in (*part.reduce, *part.gather) for move in each.sends):
            sent[host] += (host_of[move.peer] != host) * (move.hi - move.lo)
    return sent


@pytest.mark.parametrize(("n_hosts", "r"), [(2, 1), (2, 2), (4, 2), (2, 4), (4, 4), (2, 3), (3, 2), (5, 3)])
def test_by_hosts_an_rth_crosses_of_what_the_flat_sum_of_their_ranks_sends(n_hosts, r):
    size, n = n_hosts * r, 16 * 17 * 60
    in_order, by_turns = [rank // r for rank in range(size)], [rank % n_hosts for rank in range(size)]
    ours, flat = crossing("hierarchical", in_order, n), crossing("rabenseifner", in_order, n)
    if size & size - 1 == 0:  # a rank has a partner on each host, as has the one that stands for all
        assert [r * own for own in ours] == flat
    assert r * sum(ours) <= sum(flat)
    assert sum(ours) == 2 * (n_hosts - 1) * n
    # A ring leaves each host once where ranks are numbered host by host; dealt out by turns every rank's part crosses.
    assert sum(crossing("ring", in_order, n)) * size == 2 * n_hosts * (size - 1) * n * (n_hosts > 1)
    assert sum(crossing("ring", by_turns, n)) == 2 * (size - 1) * n


@pytest.mark.openmpi
def test_info_and_the_main_strategies_over_two_hosts_of_two_ranks(tmp_path, alone, request):
    """And what crosses is what was counted, on the wire, too: by hosts a half of rabenseifner's bytes."""
    need_hosts()
    jobs = AS_ONE | (AS_LAID_OUT if is_mpich() else {})
    folder = asked(tmp_path / "hosts", jobs, SUMS)
    with Cluster(2, delay=MS, rate=GBIT) as cluster:
        facts = done(cluster, folder, 2, 0)
    assert "4 on 2 host(s): h1 x 2, h2 x 2" in facts["info"] and facts["host_rank_of"] == [0, 1, -1, -1], facts
    (far,) = re.findall(r"0 <-> 3 +([0-9.]+) us latency \(8 bytes\), ([0-9.]+) GB/s \(4 MB\), h2", facts["info"])
    assert float(far[0]) >= 1e6 * MS and float(far[1]) * 8e9 <= 1.2 * GBIT, facts["info"]
    check_sums(facts["sums"], [0, 0, 1, 1])
    check_learnt(folder, alone, request, 2)


def test_the_main_strategies_over_four_hosts(tmp_path, alone, request):
    need_hosts()
    folder = asked(tmp_path / "hosts", AS_ONE | AS_LAID_OUT)
    with Cluster(4, delay=MS, rate=GBIT) as cluster:
        facts = done(cluster, folder, 1, 0)
    assert "4 on 4 host(s): h1 x 1, h2 x 1, h3 x 1, h4 x 1" in facts["info"] and facts["host_rank_of"] == [0, -1, -1, -1], facts
    check_learnt(folder, alone, request, 1)


def check_learnt(folder, alone, request, ranks_per_host):
    """Compare with one rank, and with MPICH with the same layout on one host."""
    found = np.load(folder / "0.npz")
    assert found.files
    for name in AS_ONE:
        np.testing.assert_allclose(found[name], alone, rtol=1e-9, atol=1e-12, err_msg=name)
    if AS_LAID_OUT.keys() & set(found.files):
        expected = np.load(request.getfixturevalue("laid_out") / f"{ranks_per_host}.npz")
        for name in AS_LAID_OUT:
            assert np.array_equal(found[name], expected[name]), name
            assert not np.allclose(found[name], alone, rtol=1e-9, atol=1e-12), f"{name} is what one rank computes, and shows nothing"


def check_sums(sums, host_of):
    """Hold what was counted to the rounds, and what went over the wire to what was counted."""
    itemsize = np.dtype(np.float64).itemsize
    for name, of_hosts in sums.items():
        for (counted, wire), elements in zip(of_hosts, crossing(name, host_of, N), strict=True):
            assert counted == TIMES * itemsize * elements, (name, sums)
            assert counted < wire < HEADERS * counted, (name, sums)


def test_on_the_wire_hosts_of_three_ranks_send_what_their_first_ranks_do(tmp_path):
    need_hosts()
    folder = asked(tmp_path / "hosts", {}, SUMS)
    with Cluster(2, delay=MS, rate=GBIT) as cluster:
        check_sums(done(cluster, folder, 3)["sums"], [0, 0, 0, 1, 1, 1])


def test_the_wire_sees_where_mpi_goes_around_the_network(tmp_path, monkeypatch):
    """MPICH's own choice finds the memory of the other host, since there is one machine: then less goes over the wire than was sent."""
    need_hosts()
    monkeypatch.setattr(hosts, "BY_TCP", {"MPIR_CVAR_CH4_NETMOD": "ucx"})
    folder = asked(tmp_path / "hosts", {}, ("ring",))
    with Cluster(2) as cluster:
        sums = done(cluster, folder, 1)["sums"]
    with pytest.raises(AssertionError):
        check_sums(sums, [0, 1])
    assert all(wire < counted for counted, wire in sums["ring"])


def program(tmp_path, strategy):
    """Return the words that train without an end; nothing has to be compiled first."""
    (tmp_path / "told.py").write_text(LINK)
    words = ["-m", "mpidml", "train", *strategy, "--optimizer", tmp_path / "told.py", "--hidden", "8,8,8", "--backend", "numpy", "--epochs", "1000000"]
    return [*words, "--wait-limit", WAIT_LIMIT, "--no-report", "--out", tmp_path / "run"]


def harmed(monkeypatch, tmp_path, cluster, strategy, ranks_per_host, harm):
    """Train until `harm` is done; return how the job ended, with what was left of it then, but for what is frozen."""
    monkeypatch.setattr(test_faults, "N", len(cluster.names) * ranks_per_host)
    frozen: set[int] = set()

    def act(launcher, ranks):
        frozen.update(harm() or ())

    ended = test_faults.run(program(tmp_path, strategy), act, lambda words, env: cluster.command(words, env, ranks_per_host))
    assert ended.seconds < END_SECONDS and not (tmp_path / "run" / "summary.json").exists(), ended
    until = time.monotonic() + END_SECONDS  # beyond the link a job ends by itself
    while (left := set(cluster.processes()) - frozen) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left, ended
    return ended


def report(ended):
    """Return the one report of a wait that ended a job."""
    assert ended.code != 0, ended
    assert ended.err.count("Traceback (most recent call last)") == 1, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("[rank ") and "WaitTimeout" in line]
    assert f"the limit is {WAIT_LIMIT} s (--wait-limit)" in line, line
    return line


@pytest.mark.parametrize(
    ("strategy", "ranks_per_host", "waits"),
    [
        pytest.param(SERVERS, 1, r"\[rank 0/2\] .*pull .*(worker 1 is at clock \d+ and last spoke|server\(s\) 1)", marks=pytest.mark.openmpi),
        (RING, 2, r"\[rank [01]/4\] .*waits for rank [0-3]"),
    ],
    ids=["servers", "ring"],
)
def test_behind_a_cut_link_and_before_it_the_job_ends_with_one_report_of_who_waits_for_whom(tmp_path, monkeypatch, strategy, ranks_per_host, waits):
    need_hosts()
    with Cluster(2, delay=MS, rate=GBIT) as cluster:
        ended = harmed(monkeypatch, tmp_path, cluster, strategy, ranks_per_host, lambda: cluster.change("cut", 1))
    assert re.search(waits, report(ended)), ended.err


@pytest.mark.openmpi
def test_a_host_that_is_frozen_is_waited_for_no_longer_than_the_limit_and_ends_when_it_wakes(tmp_path, monkeypatch):
    need_hosts()
    with Cluster(2, delay=MS, rate=GBIT) as cluster:
        ended = harmed(monkeypatch, tmp_path, cluster, PIPELINE, 1, lambda: cluster.freeze(1))
        assert "[rank 0/2 pipe 0] WaitTimeout: " in (line := report(ended)) and "rank 1" in line, ended.err
        cluster.signal(1, signal.SIGCONT)
        until = time.monotonic() + END_SECONDS
        while (left := cluster.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == []


@pytest.mark.openmpi
def test_a_host_all_of_whose_processes_are_killed_ends_the_job(tmp_path, monkeypatch):
    """The launcher finds out sooner than the limit; Open MPI's then names the host, and may yet end with 0."""
    need_hosts()
    with Cluster(2, delay=MS, rate=GBIT) as cluster:
        ended = harmed(monkeypatch, tmp_path, cluster, SERVERS, 1, lambda: cluster.signal(1, signal.SIGKILL))
    assert ended.err.count("Traceback (most recent call last)") <= 1, ended.err
    said = ended.out + ended.err
    assert ended.code != 0 if is_mpich() else re.search(r"(lost communication|failed to report back).*on node h2|Remote host: +h2", said, re.DOTALL), said


def test_what_a_killed_program_leaves_on_its_hosts_goes_with_the_next():
    need_hosts()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    child = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    switch, folder = child.stdout.readline().split()
    child.kill()
    child.wait()
    child.stdout.close()
    left = sorted(namespaces(child.pid))  # listed in no order
    assert [name[-3:] for name in left] == ["-h1", "-h2"]
    until = time.monotonic() + 20
    while not (found := [pid for pid in processes(left[1]) if name_of(pid) == "sleep"]) and time.monotonic() < until:
        time.sleep(0.05)  # it has been started, and what comes before it in its shell may still run
    (sleeping,) = found
    with Cluster(1):
        pass
    assert namespaces(child.pid) == namespaces(os.getpid()) == [] and not running(sleeping) and not running(int(switch)) and not Path(folder).exists()
