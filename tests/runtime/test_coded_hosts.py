"""Sums in codes over hosts of several ranks, on devices: what the hosts' memory leaves, to the bit; codes alone cross beside the gradient's way to the first rank."""

import contextlib

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.collectives.hierarchical import Hierarchical
from mpidml.runtime import coded_hosts, summed_there
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.compressed_sum import Compressed
from mpidml.runtime.resume import resumed
from mpidml.strategies import data_parallel
from mpidml.strategies.data_parallel import DataParallel
from tests.changed import changed
from tests.nn.test_on_device import TOLERANCE
from tests.runtime.test_compressed_sum import JOB, PARAMS, given
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, over_the_double, placed
from tests.strategies.test_on_device import SAME, on_device
from tests.training import trained

pytestmark = [pytest.mark.mpi, pytest.mark.shows_from(3)]
HOST = backend("numpy")
CUTS = [(2707, 3007), (1207, 2707), (0, 1207)]
EXACT = ["bf16", "int8", "two_bit:0.1", "top_k:0.1", "sign_majority"]
NEAR = ["two_bit", "low_rank", "one_bit"]
"""A unit, or a product, of theirs is a sum, which a device makes in another order."""
STEPS = 4
BY_HOSTS = {"transport": "auto", "compress": "int8", "bucket": 4096}


@pytest.fixture(params=[2, 3])
def hosts(comm, request):
    """Return ranks that share memory by twos or threes."""
    own = CountedComm(comm, request.param)
    yield own
    own.free()


@pytest.fixture
def twos(comm):
    own = CountedComm(comm, 2)
    yield own
    own.free()


class Opened:
    """Sums of three ranges of a gradient over hosts: in their memory, or with `kernels` on their devices."""

    def __init__(self, comm, codec, kernels=None, module=coded_hosts):
        self.comm, self.kernels = comm, kernels or HOST
        self.codes = Compressed(codec, PARAMS, "f8", self.kernels, seed=5)
        self.hosts = Hierarchical() if kernels is None else module.CodedHosts(JOB, kernels, PARAMS.size * 8)
        self.hosts.open(comm, self.codes)
        self.leads = self.hosts.outer is not None
        self.gradient = self.codes.look_at((self.kernels.zeros if kernels else self.hosts.allocate)(PARAMS.size, "f8"))
        self.sums = [self.hosts.plan(self.gradient[lo:hi]) for lo, hi in CUTS]

    def sum(self, step):
        """Sum what ranks give in a step; return what comes of it."""
        self.codes.step.number = step
        self.kernels.put(self.gradient, given(self.comm.rank, step))
        for each in self.sums:
            each.start()
        for each in self.sums:
            each.wait(20)
        return np.array(self.kernels.host(self.gradient))

    def all(self):
        """Return the results of some steps, what is kept at the end, and how many bytes all sent."""
        before = self.comm.nbytes_sent
        found = [self.sum(step) for step in range(STEPS)]
        sent = self.comm.nbytes_sent - before
        assert sent == STEPS * sum(each.nbytes for each in self.sums)
        kept = {f"{name} {first}": np.array(array) for name, first, _, array in self.codes.kept()} if self.leads else {}
        self.free()
        return found, kept, sent

    def free(self):
        for each in self.sums:
            each.free()
        self.hosts.free()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("codec", [*EXACT, *NEAR])
def test_sums_and_what_is_kept_are_those_of_the_hosts_memory(hosts, codec, place):
    with placed(place):
        found, kept, sent = Opened(hosts, codec, device().kernels).all()
    expected, owed, plain = Opened(hosts, codec).all()
    assert sent == plain and kept.keys() == owed.keys()
    for a, b in zip([*found, *kept.values()], [*expected, *owed.values()], strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 0, "atol": 0} if codec in EXACT else {"rtol": 1e-9, "atol": 1e-9}))
    for each in found:
        assert len(set(hosts.allgather(each.tobytes()))) == 1


def test_where_mpi_takes_device_pointers_the_gradient_stays_there(twos, monkeypatch):
    monkeypatch.setattr(summed_there, "takes_device_pointers", lambda comm, index: (True, "for the test"))
    with placed("lazy"):
        found, _, _ = Opened(twos, "int8", device().kernels).all()
    expected, _, _ = Opened(twos, "int8").all()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)  # of two ranks there is one order


@pytest.mark.parametrize("codec", ["bf16", "top_k:0.1"])
def test_a_gradient_goes_down_once_and_up_to_the_first_rank_alone_and_else_codes_cross(hosts, codec, monkeypatch):
    with placed("lazy"):
        opened = Opened(hosts, codec, device().kernels)
        opened.sum(0)
        opened.kernels.put(opened.gradient, given(hosts.rank, 1))
        opened.codes.step.number = 1
        with monkeypatch.context() as patched:
            moved = over_the_double(patched, 8)  # kernels tell whether all was finite
            for each in opened.sums:
                each.start()
            for each in opened.sums:
                each.wait(20)
        n, down, up = PARAMS.size * 8 * (hosts.host.size > 1), 0, 0
        for each in opened.sums:
            if opened.leads:
                of, own = each.second.between, opened.codes.comm.rank
                down += sum(of.given[r].here.size for r in of.others) + of.sums[own].here.size
                up += sum(of.taken[r].here.size + of.sums[r].here.size for r in of.others)
            else:
                up += sum(code.here.size for code in each.second.codes)
        assert up < PARAMS.size * 8
        assert moved == {"get": n + down, "set": up + n * opened.leads}
        opened.free()


def test_a_device_without_room_is_told_of_with_what_for(twos):
    with placed("lazy"):
        kernels = device().kernels
        codes, hosts = Compressed("sign_majority", PARAMS, "f8", kernels, seed=5), coded_hosts.CodedHosts(JOB, kernels, PARAMS.size * 8)
        hosts.open(twos, codes)
        gradient = codes.look_at(kernels.zeros(PARAMS.size, "f8"))
        with contextlib.ExitStack() as around:
            if hosts.outer is None:  # who reads; the first rank's are those of every sum in codes
                around.enter_context(pytest.raises(MemoryError, match=r"^GPU 0: codes of gradients, an array"))
                around.enter_context(cupy_double.room(100))
            hosts.plan(gradient)
        hosts.free()


MUTANTS = {
    "that the first rank has the sum": ("lands=leads", "lands=False"),
    "codes that are laid down": ("            laid[:] = code.here\n", "            pass\n"),
    "codes that came": ("        self.of.codes.from_host(self.codes)\n", ""),
    "what they say": ("            self.reader.decode(code.there, lo, hi, values)\n", "            pass\n"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_left_out_is_seen(twos, name):
    if twos.size == 1:
        return  # nothing is summed, and nobody reads
    with placed("lazy"), np.errstate(all="ignore"):
        found, _, _ = Opened(twos, "int8", device().kernels, changed(coded_hosts, [MUTANTS[name]])).all()
    expected, _, _ = Opened(twos, "int8").all()
    assert any(twos.allgather(not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("codec", ["int8", "two_bit", "low_rank", "sign_majority"])
def test_training_over_hosts_of_several_ranks_is_that_on_the_cpu(comm, monkeypatch, codec, place):
    changes = {**BY_HOSTS, "compress": codec, "optimizer": "clip:0.5+momentum:0.9", "dropout": 0.2}
    plain, v = trained(comm, JOB, 2, **changes)
    said, free = [], DataParallel.free
    monkeypatch.setattr(DataParallel, "free", lambda self: (said.append(self.words()), free(self)))
    on_device(monkeypatch)
    with placed(place):
        summary, w = trained(comm, JOB, 2, **changes)
    same = SAME if comm.size > 2 else [name for name in SAME if name not in ("bytes_sent", "messages")]  # on one host codes are off
    assert [summary.get(name) for name in same] == [plain.get(name) for name in same]
    assert np.abs(w - v).max() <= TOLERANCE["float64"] * 100
    assert ("inside hosts gradients go through the host, between them gradients are encoded there" in said[0]) == (comm.size > 2)


def test_a_run_over_hosts_goes_on_from_there_here_and_from_here_there(comm, monkeypatch, mpi_tmp_path):
    if comm.size < 3:
        return  # one host sends nothing
    _, expected = trained(comm, JOB, 2, steps=6, **BY_HOSTS)
    for k, starts_there in enumerate((True, False)):
        folder = str(mpi_tmp_path / f"{k}")
        for there in (starts_there, not starts_there):
            begins = there is starts_there
            how = JOB.with_values({"steps": 4, "checkpoint_every": 2, "out": folder, **BY_HOSTS}, "test") if begins else resumed(folder, {"steps": 6})
            with monkeypatch.context() as patched, placed("lazy"):
                if there:
                    on_device(patched)
                _, values = trained(comm, how, 2, write=begins)
            comm.Barrier()
        assert np.abs(values - expected).max() <= TOLERANCE["float64"] * 100


def test_a_gradient_that_its_host_does_not_sum_is_seen(comm, monkeypatch):
    if comm.size < 3:
        return  # one host sends nothing
    _, expected = trained(comm, JOB, 2, **BY_HOSTS)
    monkeypatch.setattr(data_parallel, "CodedHosts", changed(coded_hosts, [MUTANTS["that the first rank has the sum"]]).CodedHosts)
    on_device(monkeypatch)
    with placed("lazy"):
        _, values = trained(comm, JOB, 2, **BY_HOSTS)
    assert not np.abs(values - expected).max() <= 1e-6
