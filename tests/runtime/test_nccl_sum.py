"""Sums by NCCL inside hosts are the sums, cost what their law says, need every wait that they make, and give NCCL the same calls in one order on all ranks.

NCCL is the double's: it takes each call when its turn on its stream comes, compares it between the ranks, and sums by MPI.
"""

import contextlib
import shutil

import mpidml_kernels
import numpy as np
import pytest
from mpidml_kernels import update

from mpidml.collectives.base import make_collective
from mpidml.core.errors import UserError, WaitTimeout
from mpidml.core.job import EXPERIMENTAL, Job
from mpidml.core.rounds import moved
from mpidml.runtime import summed_there
from mpidml.strategies import base, data_parallel
from tests.changed import changed
from tests.ranks import need
from tests.runtime.test_device_sum import LENGTHS, N_STEPS, PART, given, summed
from tests.shim import cupy_double as cupy
from tests.shim import nccl_double as nccl
from tests.shim.devices import device, placed
from tests.strategies.test_identities import SMALL
from tests.training import trained

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
JOB = SMALL.with_values({"strategy": "data_parallel", "bucket": 4096, "wait_limit": 30.0, "backend": "numba"}, "test")
BY_NCCL = {"transport": "nccl"}

BROADCAST = "            sums.host.broadcast(at, at, *self.what, 0, sums.stream.ptr)\n"
# What is changed in the module, and whether that shows on so many ranks of so many hosts.
MUTANTS = {
    "ready": ([("        sums.stream.wait_event(self.ready)\n", "")], lambda n_ranks, n_hosts: n_ranks > 1),
    "back": ([("self.ended and self.sums.done(self.back)", "self.ended")], lambda n_ranks, n_hosts: n_ranks > 1),
    "sum inside a host": ([("            with sums.stream:", "            if True:")], lambda n_ranks, n_hosts: 1 < n_hosts < n_ranks),  # hosts do not wait for it
    "sum between hosts": (  # what the first rank has of its own host is broadcast
        [
            ("        self.between.start()\n", "        if len(sums.leaders) > 1:\n" + BROADCAST + "        self.between.start()\n"),
            (BROADCAST + "        self.back", "            pass\n        self.back"),
        ],
        lambda n_ranks, n_hosts: 1 < n_hosts < n_ranks,
    ),
}  # fmt: skip


def module(changes=()):
    """Return the module under test with pieces of its source replaced."""
    from mpidml.runtime import nccl_sum

    return changed(nccl_sum, changes)


@contextlib.contextmanager
def on_hosts(comm, per_host):
    """Give the ranks, every `per_host` of them a host of their own (0: all on one)."""
    from mpidml.runtime.comm import CountedComm

    ranks = CountedComm(comm, per_host)
    try:
        yield ranks
    finally:
        ranks.free()


def kernels():
    need(shutil.which("g++"), "a C++ compiler (g++)")
    return mpidml_kernels.cuda(cupy, update)


def by_nccl(ranks, name="ring", way="StagedSums", nbytes=(), of=None, on=None):
    from mpidml.runtime import device_sum

    on = on or kernels()
    return (of or module()).NcclSums(ranks, on, lambda few: getattr(device_sum, way)(make_collective(name, few), on, *nbytes))


def right(found, size, lengths=LENGTHS):
    """Whether what was summed are the sums."""
    expected = [[sum(given(rank, step, n) for rank in range(size)) for n in lengths] for step in range(N_STEPS)]
    return all(np.allclose(a, b, rtol=0, atol=1e-12) for got, want in zip(found, expected, strict=True) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("way", "name", "nbytes"), [("StagedSums", "rabenseifner", (PART * 8,)), ("StagedSums", "mpi", ()), ("DirectSums", "ring", ())])
@pytest.mark.parametrize("per_host", [0, 1, 2])
@pytest.mark.parametrize("how", ["lazy", "eager"])
def test_several_sums_at_once_are_the_sums(comm, per_host, way, name, nbytes, how):
    with cupy.streams(how), on_hosts(comm, per_host) as ranks:
        assert right(summed(by_nccl(ranks, name, way, nbytes), ranks.rank), ranks.size)


@pytest.mark.gpu
def test_by_the_real_nccl_they_are_the_sums(comm):
    import cupy

    from mpidml.runtime.device import lacks_nccl

    with on_hosts(comm, 0) as ranks:
        cupy.cuda.Device(ranks.rank % cupy.cuda.runtime.getDeviceCount()).use()
        if any(lacks_nccl(cupy, ranks)):
            return  # ranks share a GPU, or there is no NCCL
        sums = by_nccl(ranks, on=mpidml_kernels.cuda(cupy, update))
        buffer = sums.allocate(1000, "f8")
        total = sums.plan(buffer)
        for step in range(N_STEPS):
            buffer.set(given(ranks.rank, step, 1000))
            total.start()
            total.wait(30)
            np.testing.assert_allclose(buffer.get(), sum(given(rank, step, 1000) for rank in range(ranks.size)), rtol=0, atol=1e-12)
        total.free()
        sums.free()


@pytest.mark.parametrize("per_host", [0, 1, 2])
def test_each_wait_is_needed(comm, per_host):
    if comm.size > 3:
        return  # three find them all
    n_hosts = -(-comm.size // per_host) if per_host else 1
    for which, (changes, shows) in {"none": ((), lambda *_: False), **MUTANTS}.items():
        with on_hosts(comm, per_host) as ranks, cupy.streams("lazy"), np.errstate(all="ignore"):
            found = summed(by_nccl(ranks, of=module(changes)), ranks.rank, [1000, 500])
            assert (not all(comm.allgather(right(found, comm.size, [1000, 500])))) == shows(comm.size, n_hosts), which


@pytest.mark.parametrize("per_host", [0, 2])
def test_between_hosts_goes_what_one_rank_a_host_sends(comm, per_host):
    """By count: of P ranks on H hosts each first rank sends 2 (H - 1) / H of the buffer, where without NCCL each of all P sends 2 (P - 1) / P; others send nothing."""
    with cupy.streams("lazy"), on_hosts(comm, per_host) as ranks:
        sums = by_nccl(ranks)
        total = sums.plan(sums.allocate(n := 6000, "f8"))
        before = ranks.nbytes_sent
        for _ in range(N_STEPS):
            total.start()
            total.wait(30)
        sent, n_hosts = ranks.nbytes_sent - before, len(sums.leaders)
        part = make_collective("ring", ranks).rounds(sums.leaders.index(ranks.leader), n_hosts, n)
        least = 8 * moved((*part.reduce, *part.gather)) if ranks.rank == ranks.leader and n_hosts > 1 else 0
        assert sent == N_STEPS * least and total.nbytes == least
        assert sum(comm.allgather(sent)) == N_STEPS * 8 * 2 * (n_hosts - 1) * n  # and that of ring alone: P - 1 in place of H - 1
        total.free()
        sums.free()


@pytest.mark.parametrize("per_host", [0, 1, 2])
def test_calls_and_waits_are_those_of_the_law_in_one_order_on_all_ranks_of_a_host(comm, per_host, monkeypatch):
    calls, waits = [], []

    def noted(name, real):
        return lambda self, *arguments: calls.append((name, arguments[2])) or real(self, *arguments)

    for name in ("allReduce", "reduce", "broadcast"):
        monkeypatch.setattr(nccl.NcclCommunicator, name, noted(name, getattr(nccl.NcclCommunicator, name)))
    for owner, name in ((cupy.Stream, "synchronize"), (cupy.Event, "synchronize")):
        monkeypatch.setattr(owner, name, lambda self, *more: waits.append(self))
    lengths = [1000, 130, 64]
    with cupy.streams("lazy"), on_hosts(comm, per_host) as ranks:
        sums = by_nccl(ranks)
        totals = [sums.plan(sums.allocate(n, "f8")) for n in lengths]
        for _ in range(N_STEPS):
            for total in totals:
                total.start()
            for total in totals[::-1]:
                total.wait(30)
        one_host = len(sums.leaders) == 1
        assert calls == N_STEPS * [(name, n) for n in lengths for name in (("allReduce",) if one_host else ("reduce", "broadcast"))]
        assert not waits  # the host asks, and is never blocked
        sums.free()


def test_a_device_that_fails_is_told_and_not_waited_for(comm):
    def fails():
        raise cupy.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    with cupy.streams("lazy"), on_hosts(comm, 0) as ranks:
        sums = by_nccl(ranks)
        total = sums.plan(sums.allocate(100, "f8"))
        cupy.get_current_stream()._give(fails)
        with pytest.raises(cupy.CUDARuntimeError, match="illegal memory access"):
            total.start()
            total.wait(1)


def test_a_wait_has_its_limit_and_no_sum_is_started_twice(comm, monkeypatch):
    with cupy.streams("lazy"), on_hosts(comm, 2) as ranks:
        sums = by_nccl(ranks)
        total = sums.plan(sums.allocate(100, "f8"))
        done = cupy.Event.done
        monkeypatch.setattr(cupy.Event, "done", property(lambda self: False))
        total.start()
        with pytest.raises(WaitTimeout, match=r"waits for (this rank's device, or the others of its host, in NCCL|rank \d) for .* the limit is 0.05 s"):
            total.wait(0.05)
        with pytest.raises(RuntimeError, match="started again"):
            total.start()
        ranks.Barrier()
        monkeypatch.setattr(cupy.Event, "done", done)
        total.wait(30)
        monkeypatch.setattr(nccl.NcclCommunicator, "check_async_error", lambda self: (_ for _ in ()).throw(nccl.NcclError("NCCL_ERROR_REMOTE_ERROR")))
        total.start()
        with pytest.raises(nccl.NcclError, match="REMOTE"):
            total.wait(30)
        monkeypatch.undo()
        total.wait(30)
        total.free()
        sums.free()


@pytest.mark.parametrize("where", ["get_unique_id", "NcclCommunicator"])
def test_where_nccl_does_not_start_on_one_rank_all_have_the_line(comm, where, monkeypatch):
    def fails(*given):
        raise nccl.NcclError("NCCL_ERROR_SYSTEM_ERROR: no memory")

    ended = []
    monkeypatch.setattr(nccl, "NCCL_LIMIT_SECONDS", 1.0)  # that the others wait for the one
    monkeypatch.setattr(nccl.NcclCommunicator, "abort", lambda self: ended.append(self))
    at = 0 if where == "get_unique_id" else comm.size - 1
    with on_hosts(comm, 2) as ranks:
        if ranks.rank == at:
            monkeypatch.setattr(cupy.cuda.nccl, where, fails)
        with pytest.raises(UserError, match=r"^--transport nccl: NCCL does not start on rank \d \(NCCL_ERROR.*\); see what NCCL_DEBUG=WARN says, or leave it out$") as told:
            by_nccl(ranks)
        assert len(set(comm.allgather(str(told.value)))) == 1
        host_is_whole = where == "NcclCommunicator" and at not in range(ranks.leader, ranks.leader + ranks.host.size)
        assert len(ended) == host_is_whole, "who has one ends it without the others"


def test_a_rank_inside_the_start_of_nccl_waits_for_those_of_its_host(comm, monkeypatch):
    """So a rank that never comes is told under the limit of waits, which looks at what is noted."""
    from mpidml.core.current_wait import MAIN

    found = []
    make = nccl.NcclCommunicator
    monkeypatch.setattr(cupy.cuda.nccl, "NcclCommunicator", lambda *given: (found.append(MAIN.now), make(*given))[1])
    with on_hosts(comm, 2) as ranks:
        sums = by_nccl(ranks)
        (wait,) = found
        assert "the start of NCCL" in (wait.what if isinstance(wait.what, str) else wait.what()) and tuple(wait.call.ranks) == ranks.host.ranks
        sums.free()


def test_buffers_that_differ_are_refused_on_every_rank(comm):
    if comm.size == 1:
        return  # there is nobody to differ from
    with on_hosts(comm, 2) as ranks:
        sums = by_nccl(ranks)
        with pytest.raises(UserError, match=f"rank 0 gives 5 x float32, rank {ranks.size - 1} gives 6 x float32"):
            sums.plan(cupy.zeros(5 + (ranks.rank == ranks.size - 1), "f4"))
        sums.free()


def test_the_double_finds_ranks_that_do_not_make_the_same_calls(comm):
    """Another kind, count, type or order; memory that is not the device's; a name that others do not come to."""
    if comm.size == 1:
        return  # there is nobody to differ from
    number = comm.bcast(nccl.get_unique_id() if comm.rank == 0 else None)
    joined, last = nccl.NcclCommunicator(comm.size, number, comm.rank), comm.rank == comm.size - 1
    array, stream = cupy.zeros(10, "f8"), cupy.Stream(non_blocking=True)
    at, double, single = array.data.ptr, cupy.cuda.nccl.NCCL_FLOAT64, cupy.cuda.nccl.NCCL_FLOAT32
    ways = {
        "kind": lambda: joined.broadcast(at, at, 4, double, 0, stream.ptr) if last else joined.allReduce(at, at, 4, double, 0, stream.ptr),
        "count": lambda: joined.allReduce(at, at, 4 + last, double, 0, stream.ptr),
        "type": lambda: joined.allReduce(at, at, 4, single if last else double, 0, stream.ptr),
        "root": lambda: joined.reduce(at, at, 4, double, 0, int(last), stream.ptr),
    }
    for which, call in ways.items():
        call()
        with pytest.raises(RuntimeError, match="wait for ever"):
            stream.synchronize()
        assert all(comm.allgather(True)), which
    host = np.zeros(10)
    with pytest.raises(nccl.NcclError, match="no memory of the device"):
        joined.allReduce(host.ctypes.data, host.ctypes.data, 10, double, 0, stream.ptr)
    with pytest.raises(TypeError):
        joined.allReduce(at, at, 10, double, 0, stream)
    joined.abort()
    with pytest.raises(nccl.NcclError, match="is gone"):
        joined.allReduce(at, at, 10, double, 0, stream.ptr)


@contextlib.contextmanager
def on_device(monkeypatch, takes_pointers=False, place="lazy"):
    """Let jobs compute on a device that NCCL knows."""
    with monkeypatch.context() as patched, placed(place):
        patched.setattr(base.device, "choose", lambda wanted, comm: device())
        patched.setattr(summed_there, "takes_device_pointers", lambda comm, index: (takes_pointers, "for the test"))
        patched.setattr(base, "compile_on", lambda *given: None)
        yield


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "clip:0.5+adam", "lr": 0.01, "dropout": 0.2, "shares": "measured", "steps": 10}, {"dtype": "float32"}, {"accumulate": 3}], ids=str
)
@pytest.mark.parametrize("per_host", [0, 2])
@pytest.mark.parametrize("takes_pointers", [False, True])
def test_training_gives_the_weights_of_sums_through_the_host(comm, changes, per_host, takes_pointers, monkeypatch):
    with on_device(monkeypatch, takes_pointers):
        _, staged = trained(comm, JOB, **changes)
        summary, values = trained(comm, JOB, per_host, **BY_NCCL, **changes)
    np.testing.assert_allclose(values, staged, atol=1e-5 if "dtype" in changes else 1e-12, rtol=0)
    assert summary["device"]["NCCL"] == "2.30.7"
    between = comm.size > 2 and per_host == 2
    assert ("gpu_mpi" in summary) == between  # nobody else asks MPI
    assert not between or summary["gpu_mpi"]["takes_device_pointers"] == takes_pointers


def test_between_hosts_training_sends_the_gradients_of_the_first_ranks(comm, monkeypatch):
    steps = [3, 8]
    with on_device(monkeypatch):
        (few, values), (many, _) = (trained(comm, JOB, 2, collective="ring" if comm.size > 2 else "auto", **BY_NCCL, steps=n) for n in steps)
    n_hosts, more = -(-comm.size // 2), np.subtract(many["bytes_sent"], few["bytes_sent"])
    told = more[1] if comm.size > 1 else 0  # by each rank to rank 0, of its clocks
    assert sum(more) == 5 * 2 * (n_hosts - 1) * values.nbytes + (comm.size - 1) * told and told < 1000


def test_a_run_says_what_sums_inside_hosts_and_between_them_and_that_it_is_an_experiment(comm, monkeypatch):
    said, free = [], data_parallel.DataParallel.free
    monkeypatch.setattr(data_parallel.DataParallel, "free", lambda self: (said.append(self.words()), free(self)))
    with on_device(monkeypatch):
        trained(comm, JOB, 2, **BY_NCCL)
    if comm.rank == 0:
        between = ", between hosts gradients go through the host" * (comm.size > 2)
        way = f", NCCL sums gradients inside each host ({EXPERIMENTAL}){between}" if comm.size > 1 else "; on one rank --bucket 4096 changes nothing"
        assert said[0].endswith(f"stay on the device{way}")
        assert f"sums by {'rabenseifner' if comm.size > 2 else 'nccl'}, buckets" in said[0]


@pytest.mark.parametrize(
    ("changes", "per_host", "says"),
    [
        ({"collective": "ring"}, 0, "--collective ring: does nothing on one host under --transport nccl"),
        ({"collective": "hierarchical"}, 1, "--collective hierarchical: cannot go between the first ranks of hosts"),
        ({"collective": "ordered", "bucket": Job.bucket}, 1, "--collective ordered: cannot go between"),
        ({"collective": "gossip"}, 1, "--collective gossip: cannot go between"),
        ({"collective": "auto:memory=false"}, 1, "--collective auto:memory=false: cannot go between"),
        ({"progress_thread": "on"}, 0, "--progress-thread on: has gradients in the memory of the host"),
        ({"compress": "two_bit"}, 0, "--compress two_bit: sends codes by MPI, --transport nccl sums values"),
    ],
)
def test_what_it_does_not_go_with_is_one_line_before_any_work(comm, changes, per_host, says, monkeypatch):
    if comm.size == 1 and per_host:
        return  # on one rank there is one host
    with on_device(monkeypatch), pytest.raises(UserError, match=f"^{says}.*; (leave|use)"):
        monkeypatch.setattr(base, "load", None)  # nobody comes to the data
        trained(comm, JOB, per_host, **BY_NCCL, **changes)


def test_ranks_of_one_host_that_share_a_gpu_are_refused_and_those_of_two_are_not(comm, monkeypatch):
    from mpidml.runtime.device import lacks_nccl

    monkeypatch.setattr(cupy._Device, "pci_bus_id", "0000:01:00.0")
    line = "ranks 0 and 1 of one host share GPU 0000:01:00.0, and NCCL takes one rank a GPU", "start no more ranks there than it has GPUs, by --device cuda"
    for per_host in (0, 1):
        with on_hosts(comm, per_host) as ranks:
            found = lacks_nccl(cupy, ranks)
        shares = comm.size > 1 and not per_host
        assert found == (line if shares else ("", ""))
