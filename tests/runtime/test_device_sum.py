"""Sums of buffers on a device have the bits of the host's, on a GPU too, cost the copies that their law says, and need every wait that they make."""

import shutil

import mpidml_kernels
import numpy as np
import pytest
from mpidml_kernels import update

from mpidml.collectives.base import make_collective
from mpidml.core.errors import UserError, WaitTimeout
from tests.changed import changed
from tests.ranks import need
from tests.shim import cupy_double as cupy

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
NAMES = ["ring", "rabenseifner", "recursive_doubling", "mpi", "shared", "hierarchical"]
MIXING = ["gossip", "gossip:exponential"]
"""Weighted rounds: terms are scaled, too."""
BY_ROUNDS = ["ring", "rabenseifner", "recursive_doubling", "tree", *MIXING]
PART = 64
"""Elements of float64 in a slot."""
LENGTHS = [1000, 130, 64, 1, 0]
N_STEPS = 3

# What is changed in the module, and on how many ranks at least that shows: on one a sum is what was given.
MUTANTS = {
    "ready": ([("        self.sums.copies.wait_event(self.ready)\n", "")], 1),
    "came": ([("part.phase == COMING and not self.done(part.came)", "False")], 2),
    "sum": (  # it goes up as soon as it has come
        [
            ("        self.came.record(copies)\n", "        self.came.record(copies)\n        self.device.set(self.host, stream=copies)\n"),
            ("        self.device.set(self.host, stream=copies)\n        self.phase = QUEUED", "        self.phase = QUEUED"),
        ],
        2,
    ),
    "slot": (  # it is filled while its sum is under way; sums go on one after the other
        [
            ("self.holder[part.slot] is not None", "False"),
            ("not self.done(part.came)", "(not self.done(part.came) or any(other.slot == part.slot and other.phase == SUMMING for other in self.line))"),
        ],
        2,
    ),
    "back": ([("                self.compute.wait_event(self.back)\n", "                pass\n")], 2),
    "last part": ([("        if not self.of.n_left:\n", "        if self.of.n_left == len(self.of.parts) - 1:\n")], 2),
}
DIRECT_MUTANTS = {
    "ready": ([("            if not self.sums.done(self.ready):\n                return False\n", "")], 2),
    "added": ([("return self.sums.done(self.added)", "return True")], 2),
}
SCALING = [("self._launch(self.sums.kernels.scale, array, factor)", "self.sums.kernels.scale(array, factor)")]
MIXING_MUTANTS = DIRECT_MUTANTS | {"scaled by the stream that computes": (SCALING, 3)}  # of two ranks, whose weights are 1/2, the bits are those of a sum that is halved


def module(changes=()):
    """Return the module under test with pieces of its source replaced."""
    from mpidml.runtime import device_sum

    return changed(device_sum, changes)


@pytest.fixture
def ranks(comm):
    from mpidml.runtime.comm import CountedComm

    own = CountedComm(comm)
    yield own
    own.free()


@pytest.fixture(params=["lazy", "eager"])
def how(request):
    with cupy.streams(request.param):
        yield request.param


def kernels(on=cupy):
    need(on is not cupy or shutil.which("g++"), "a C++ compiler (g++)")
    return mpidml_kernels.cuda(on, update)


def given(rank, step, n):
    return np.random.default_rng([rank, step, n]).standard_normal(n)


def on_host(inner, ranks, step, n, length):
    """Return the plain sums of slices of n elements, `length` at a time."""
    buffer = given(ranks.rank, step, n)
    for lo in range(0, n, length):
        total = inner.plan(buffer[lo : lo + length])
        total.start()
        total.wait(30)
        total.free()
    return buffer


def summed(sums, rank, lengths=LENGTHS):
    """Sum buffers of all lengths at once, some steps one after the other; return what the computing stream then reads of them."""
    buffers = [sums.allocate(n, "f8") for n in lengths]
    totals = [sums.plan(buffer) for buffer in buffers]
    found = []
    for step in range(N_STEPS):
        for buffer, total, n in zip(buffers, totals, lengths, strict=True):
            buffer.set(given(rank, step, n), stream=sums.cupy.cuda.get_current_stream())  # as a kernel would that was launched and has not run
            total.start()
        for total in totals[::-1]:
            total.wait(30)
        found.append([buffer.copy() for buffer in buffers])
    read = [[array.get() for array in arrays] for arrays in found]  # before sums are let go, which may end what is under way
    for total in totals:
        total.free()
    sums.free()
    return read


def same(found, expected):
    return all(np.array_equal(a, b) for got, want in zip(found, expected, strict=True) for a, b in zip(got, want, strict=True))


def expected(inner, ranks, length=10**9, lengths=LENGTHS):
    return [[on_host(inner, ranks, step, n, length) for n in lengths] for step in range(N_STEPS)]


@pytest.mark.parametrize("name", [*NAMES, *MIXING])
def test_through_the_host_the_sum_has_the_bits_of_the_plain_one(name, ranks, cupys):
    from mpidml.runtime.device_sum import StagedSums

    inner = make_collective(name, ranks)
    assert same(summed(StagedSums(inner, kernels(cupys), PART * 8), ranks.rank), expected(inner, ranks, PART))
    inner.free()


@pytest.mark.parametrize("name", BY_ROUNDS)
def test_by_device_pointers_the_sum_has_the_bits_of_the_plain_one(name, ranks, cupys, monkeypatch):
    from mpidml.core import carry
    from mpidml.runtime.device_sum import DirectSums
    from mpidml.runtime.gpu_mpi import takes_device_pointers

    if cupys is not cupy and not takes_device_pointers(ranks)[0]:
        return  # this MPI takes none of a GPU, and would die of one
    monkeypatch.setattr(carry, "PIECE_NBYTES", 512)  # so that moves are cut
    inner = make_collective(name, ranks)
    sums = DirectSums(inner, kernels(cupys))
    monkeypatch.setattr(cupy.ndarray, "set", counted(cupy.ndarray.set, down := []))
    monkeypatch.setattr(cupy.ndarray, "get", counted(cupy.ndarray.get, up := []))
    n_before = ranks.nbytes_sent
    found = summed(sums, ranks.rank)
    sent = ranks.nbytes_sent - n_before
    assert cupys is not cupy or len(down) == len(up) == N_STEPS * len(LENGTHS)  # those of this test alone
    assert same(found, expected(inner, ranks))
    assert sent == N_STEPS * sum(8 * moved_by(inner, ranks, n) for n in LENGTHS)
    inner.free()


def moved_by(inner, ranks, n):
    from mpidml.core.rounds import moved

    part = inner.rounds(ranks.rank, ranks.size, n)
    return moved((*part.reduce, *part.gather))


def counted(function, calls):
    def call(*arguments, **named):
        calls.append(arguments[0])
        return function(*arguments, **named)

    return call


def staged(of, inner):
    return of.StagedSums(inner, kernels(), PART * 8)


def direct(of, inner):
    return of.DirectSums(inner, kernels())


def caught(sums, ranks, length):
    """Whether it is noticed on any rank that sums of parts of that length are wrong."""
    lengths = [1000, 500]
    with cupy.streams("lazy"), np.errstate(all="ignore"):
        found = summed(sums, ranks.rank, lengths)
    return not all(ranks.allgather(same(found, expected(sums.inner, ranks, length, lengths))))


@pytest.mark.parametrize("name", ["ring", "shared"])
def test_each_wait_of_a_staged_sum_is_needed(name, ranks):
    if ranks.size > 3:
        return  # three find them all, and five take turns on two cores
    inner = make_collective(name, ranks)
    assert not caught(staged(module(), inner), ranks, PART)
    for which, (changes, least) in MUTANTS.items():
        assert caught(staged(module(changes), inner), ranks, PART) or ranks.size < least, which
    inner.free()


@pytest.mark.parametrize(("name", "mutants"), [("ring", DIRECT_MUTANTS), ("gossip", MIXING_MUTANTS)])
def test_each_wait_of_a_direct_sum_is_needed(name, mutants, ranks):
    inner = make_collective(name, ranks)
    assert not caught(direct(module(), inner), ranks, 1000)
    for which, (changes, least) in mutants.items():
        assert caught(direct(module(changes), inner), ranks, 1000) or ranks.size < least, which
    inner.free()


def test_copies_bytes_and_waits_are_those_of_the_law(ranks, how, monkeypatch):
    from mpidml.runtime.device_sum import StagedSums

    inner = make_collective("ring", ranks)
    calls = {name: [] for name in ("get", "set", "wait_event", "synchronize", "event_synchronize", "register", "unregister")}
    for owner, name, key in [
        (cupy.ndarray, "get", "get"),
        (cupy.ndarray, "set", "set"),
        (cupy.Stream, "wait_event", "wait_event"),
        (cupy.Stream, "synchronize", "synchronize"),
        (cupy.Event, "synchronize", "event_synchronize"),
    ]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), calls[key]))
    for name, key in [("hostRegister", "register"), ("hostUnregister", "unregister")]:
        monkeypatch.setattr(cupy.cuda.runtime, name, counted(getattr(cupy.cuda.runtime, name), calls[key]))
    sums = StagedSums(inner, kernels(), PART * 8)
    buffer = sums.allocate(n := 1000, "f8")
    total = sums.plan(buffer)
    for calls_of in calls.values():
        calls_of.clear() if calls_of is not calls["register"] else None
    for _ in range(N_STEPS):
        total.start()
        total.wait(30)
    n_parts = -(-n // PART)
    for key in ("get", "set"):
        assert len(calls[key]) == N_STEPS * n_parts
        assert sum(part.nbytes for part in calls[key]) == N_STEPS * 8 * n
    assert len(calls["wait_event"]) == 2 * N_STEPS  # ready and back
    assert not calls["synchronize"] and not calls["event_synchronize"]  # the host asks, and is never blocked
    assert total.nbytes == sum(8 * moved_by(inner, ranks, min(PART, n - lo)) for lo in range(0, n, PART))
    assert len(sums.sums) == min(2, n_parts) + 1  # two slots, and the last part, which is shorter
    assert sum(array.nbytes for slots in sums.slots.values() for array in slots) == 2 * PART * 8  # whatever the buffer's length
    sums.free()
    assert len(calls["register"]) == len(calls["unregister"]) == 1
    inner.free()


def test_where_memory_cannot_be_locked_the_sum_is_right_and_says_so(ranks, how, monkeypatch):
    from mpidml.runtime.device_sum import StagedSums

    def refuse(ptr, size, flags):
        raise cupy.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

    monkeypatch.setattr(cupy.cuda.runtime, "hostRegister", refuse)
    inner = make_collective("ring", ranks)
    sums = StagedSums(inner, kernels(), PART * 8)
    assert same(summed(sums, ranks.rank), expected(inner, ranks, PART))
    slow = ", in memory that the system does not lock (cudaErrorMemoryAllocation: out of memory): each copy makes the host wait"
    assert sums.way == "gradients go through the host" + slow
    inner.free()


@pytest.mark.parametrize("make", [staged, direct])
def test_a_wait_has_its_limit_and_says_for_whom(make, ranks, monkeypatch):
    from mpidml.runtime import device_sum

    inner = make_collective("ring", ranks)
    sums = make(device_sum, inner)
    total = sums.plan(sums.allocate(100, "f8"))
    total.start()
    done = cupy.Event.done
    monkeypatch.setattr(cupy.Event, "done", property(lambda self: False))
    with pytest.raises(WaitTimeout, match=r"waits for this rank's device for .* the limit is 0.05 s"):
        total.wait(0.05)
    with pytest.raises(RuntimeError, match="started again"):
        total.start()
    ranks.Barrier()
    monkeypatch.setattr(cupy.Event, "done", done)
    if ranks.rank == 0 and ranks.size > 1:
        with pytest.raises(WaitTimeout, match=r"waits for rank \d"):
            total.wait(0.05)
    ranks.Barrier()
    total.wait(30)
    total.free()
    sums.free()
    inner.free()


@pytest.mark.parametrize("make", [staged, direct])
def test_a_device_that_fails_is_told_and_not_waited_for(make, ranks):
    """On every rank here; of one alone the others find that it has ended."""
    from mpidml.runtime import device_sum

    def fails():
        raise cupy.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    inner = make_collective("ring", ranks)
    sums = make(device_sum, inner)
    total = sums.plan(sums.allocate(100, "f8"))
    with cupy.streams("lazy"):
        cupy.get_current_stream()._give(fails)
        with pytest.raises(cupy.CUDARuntimeError, match="illegal memory access"):
            total.start()
            total.wait(1)
    sums.free()
    inner.free()


@pytest.mark.parametrize("make", [staged, direct])
def test_buffers_that_differ_are_refused_on_every_rank(make, ranks):
    from mpidml.runtime import device_sum

    if ranks.size == 1:
        return  # there is nobody to differ from
    inner = make_collective("ring", ranks)
    with pytest.raises(UserError, match=f"rank 0 gives 5 x float32, rank {ranks.size - 1} gives 6 x float32"):
        make(device_sum, inner).plan(cupy.zeros(5 + (ranks.rank == ranks.size - 1), "f4"))
    inner.free()


def test_what_is_no_rounds_cannot_go_by_device_pointers(ranks):
    from mpidml.runtime.device_sum import DirectSums, in_rounds

    inner = make_collective("mpi", ranks)
    assert not in_rounds(inner)
    with pytest.raises(ValueError, match="Mpi is not written down as rounds"):
        DirectSums(inner, kernels())
    inner.free()
