"""Hold every file of `collectives/` to its contract: the sum on every rank to the same bits, in as many rounds and bytes as its source says."""

import threading
import time
import types

import numpy as np
import pytest

from mpidml.collectives import auto, base, mpi
from mpidml.collectives.base import Collective, make_collective
from mpidml.collectives.gossip import GRAPHS, Gossip
from mpidml.collectives.hierarchical import Hierarchical
from mpidml.core import carry, plugins
from mpidml.core.errors import UserError, WaitTimeout
from tests.changed import changed
from tests.contracts.test_rounds import BY_ROUNDS, FORMULAS

pytestmark = pytest.mark.everywhere

ALL = plugins.names(base.FOLDER)
MEANS = [name for name in ALL if not plugins.load(base.FOLDER, name).exact]
SUMS = [name for name in ALL if name not in MEANS]
DTYPES = ["f4", "f8", "i4", "i8"]


def test_what_cannot_be_chosen_is_named():
    with pytest.raises(UserError, match="did you mean 'ring'"):
        plugins.make(base.FOLDER, "rign")
    with pytest.raises(UserError, match="did you mean 'torus'"):
        plugins.make(base.FOLDER, "gossip:toros")
    with pytest.raises(UserError, match="cannot go between hosts"):
        plugins.make(base.FOLDER, "hierarchical:between=shared")
    with pytest.raises(UserError, match="did you mean 'ring'"):
        plugins.make(base.FOLDER, "hierarchical:rign")
    with pytest.raises(UserError, match="there is no graph '5'"):
        plugins.make(base.FOLDER, "gossip:5")


@pytest.fixture(params=[0, 2], ids=["one host", "hosts of 2"])
def ranks(request, comm):
    from mpidml.runtime.comm import CountedComm

    own = CountedComm(comm, ranks_per_host=request.param)
    yield own
    own.free()


def opened(name, ranks):
    if name == "shared" and not ranks.one_host:
        with pytest.raises(UserError, match="hierarchical"):
            make_collective(name, ranks)
        return None
    return make_collective(name, ranks)


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("name", SUMS)
def test_every_rank_gets_the_sum_to_the_same_bits(name, ranks, monkeypatch):
    monkeypatch.setattr(carry, "PIECE_NBYTES", 512)  # so that moves are cut
    monkeypatch.setattr(mpi, "MOST_ELEMENTS", 300)
    monkeypatch.setattr(auto, "SIZES_NBYTES", (1 << 8, 1 << 12))  # of which `auto` measures sums in such moves
    collective = opened(name, ranks)
    if collective is None:
        return
    for n, dtype in [(0, "f4"), (1, "f8"), (3, "i8"), (701, "f4"), (700, "i4")]:
        whole = collective.allocate(n + 9, dtype)
        total = collective.plan(whole[4 : 4 + n])
        private = np.zeros(n, dtype)
        copied = collective.plan(private)
        for k in range(3):
            given = [np.random.default_rng([r, k, n]).standard_normal(n) * 100 for r in range(ranks.size)]
            whole[:] = 7
            whole[4 : 4 + n] = private[:] = given[ranks.rank].astype(dtype)
            for each in (total, copied):  # both under way at once
                each.start()
            for each in (copied, total):
                each.wait(30)
            exact = sum(values.astype(dtype).astype("f8") for values in given)
            np.testing.assert_allclose(whole[4 : 4 + n], exact, rtol=1e-5, atol=1e-3)
            assert (whole[:4] == 7).all() and (whole[4 + n :] == 7).all()
            assert len(set(ranks.allgather((whole[4 : 4 + n].tobytes(), private.tobytes())))) == 1
        total.free()
        copied.free()
    collective.free()


def halved(ranks, collective, n, dtype, second=lambda half: half.gather):
    """Sum in halves, three times: each rank makes its part of the weights the sum that it owns. Return of each time whether all then have it, and the halves."""
    gradient, weights = collective.allocate(n + 9, dtype)[4 : 4 + n], collective.weights(n, dtype)
    half, found = collective.halves(gradient, weights), []
    for k in range(3):
        given = [(np.random.default_rng([r, k, n]).standard_normal(n) * 100).astype(dtype) for r in range(ranks.size)]
        gradient[:] = given[ranks.rank]
        half.reduce.start()
        half.reduce.wait(30)
        weights[half.lo : half.hi] = half.total
        gather = second(half)
        gather.start()
        gather.wait(30)
        right = np.allclose(weights, sum(values.astype("f8") for values in given), rtol=1e-5, atol=1e-3)
        found.append(all(ranks.allgather(right)) and len(set(ranks.allgather(weights.tobytes()))) == 1)
    half.reduce.free()
    half.gather.free()
    return found, half


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("name", [*SUMS, "hierarchical:ring", "hierarchical:tree", "hierarchical:mpi"])
@pytest.mark.parametrize(("n", "dtype"), [(0, "f4"), (3, "f8"), (701, "f4")])
def test_in_halves_each_element_has_one_owner_and_all_get_what_owners_make_of_it(name, n, dtype, ranks, monkeypatch):
    monkeypatch.setattr(auto, "SIZES_NBYTES", (1 << 8, 1 << 12))
    collective = opened(name, ranks)
    if collective is None:
        return
    found, half = halved(ranks, collective, n, dtype)
    assert found == [True] * 3
    owners = np.zeros(n, int)
    for lo, hi in ranks.allgather((half.lo, half.hi)):
        owners[lo:hi] += 1
    assert (owners == (1 if half.shares else ranks.size)).all() and half.total.size == half.hi - half.lo
    whole = ("mpi", "auto", "ordered", "recursive_doubling", *(() if ranks.one_host else ("hierarchical:mpi",)))
    assert half.shares == (name not in whole and ranks.size > 1)
    collective.free()


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("name", ["ring", "hierarchical"])
def test_the_check_of_halves_catches_weights_that_are_not_brought_together(name, comm):
    from mpidml.runtime.comm import CountedComm

    ranks = CountedComm(comm, ranks_per_host=2)
    collective = make_collective(name, ranks)
    assert halved(ranks, collective, 60, "f8", second=lambda half: base.Done())[0] == [False] * 3
    collective.free()
    ranks.free()


@pytest.mark.mpi
@pytest.mark.parametrize("name", [*ALL, "hierarchical:mpi"])
def test_what_has_no_sum_or_mean_is_refused_in_one_line(name, ranks):
    collective = opened(name, ranks)
    if collective is None:
        return
    no_numbers, no_mean = ["O", "S3", "M8[s]"], ["i1", "i4", "i8", "u8", "?"]
    for dtype in [*no_numbers, *(no_mean if name in MEANS else ())]:
        with pytest.raises(UserError, match=r"is no type (of numbers|to take a mean in); give"):
            collective.plan(np.zeros(5, dtype))
    for dtype in ["f2", "?", ">f4"] if name in ("mpi", "hierarchical:mpi") else []:
        with pytest.raises(UserError, match=r"collective mpi: MPI has no sum of (float16|bool|>f4); use ring, or float32"):
            collective.plan(np.zeros(5, dtype))
    collective.free()


class Meeting:
    """As many threads as ranks, for which a call that not all have made is an error in place of a wait for ever."""

    def __init__(self, size):
        self.size, self.barrier, self.given = size, threading.Barrier(size), [None] * size

    def of(self, rank):
        def allgather(own):
            self.given[rank] = own
            self.barrier.wait(2)
            return list(self.given)

        return types.SimpleNamespace(rank=rank, size=self.size, allgather=allgather)


def outcomes(check, buffers):
    """Return what `check(comm, buffer)` of each rank comes to: the text of a UserError, None, or the name of what else was raised."""
    meeting, found = Meeting(len(buffers)), [""] * len(buffers)

    def one(rank):
        try:
            found[rank] = check(meeting.of(rank), buffers[rank])
        except UserError as error:
            found[rank] = str(error)
        except Exception as error:
            found[rank] = type(error).__name__

    ranks = [threading.Thread(target=one, args=(rank,)) for rank in range(len(buffers))]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    return found


def checked(name):
    def check(comm, buffer):
        collective = plugins.make(base.FOLDER, name)
        collective.comm = comm
        return collective.check(buffer)

    return check


ODD = ["i4", "O", "S3", "?", ">f4", "V8"]


@pytest.mark.parametrize("name", [*ALL, "hierarchical:mpi"])
@pytest.mark.parametrize("dtype", ODD)
@pytest.mark.parametrize("odd", [0, 1])
def test_all_ranks_meet_before_any_refuses_a_type_and_say_the_same(name, dtype, odd):
    given = [np.zeros(5, dtype if rank == odd else "<f4") for rank in range(3)]
    texts = outcomes(checked(name), given)
    named = {0: f"rank 0 gives 5 x {np.dtype(dtype)}, rank 1 gives 5 x float32", 1: f"rank 0 gives 5 x float32, rank 1 gives 5 x {np.dtype(dtype)}"}[odd]
    assert len(set(texts)) == 1 and named in texts[0]


def test_the_check_catches_who_refuses_before_the_others_have_come_and_bytes_in_another_order():
    alone, swapped = np.zeros(5, "O"), np.zeros(5, ">f4")
    hasty = changed(base, [("    own = buffer.size,", "    if buffer.dtype.kind not in NUMBERS:\n        raise UserError('no')\n    own = buffer.size,")])
    assert outcomes(hasty.check_alike, [np.zeros(5, "f4"), alone])[0] == "BrokenBarrierError"
    by_name = changed(base, [("own = buffer.size, buffer.dtype.str,", "own = buffer.size, buffer.dtype.name,")])
    assert outcomes(by_name.check_alike, [np.zeros(5, "<f4"), swapped]) == [None, None]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", [*ALL, "hierarchical:mpi"])
def test_a_type_that_one_rank_alone_gives_is_refused_on_every_rank(name, ranks):
    collective = opened(name, ranks)
    if collective is None:
        return
    last = ranks.rank == ranks.size - 1
    for dtype in ODD:
        with pytest.raises(UserError, match="rank 0 gives 5 x float32, rank") as told:
            collective.plan(np.zeros(5, dtype if last else "<f4"))
        assert len(set(ranks.allgather(str(told.value)))) == 1
    collective.free()


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ["f2", "?", ">f4"])
def test_what_cannot_go_between_hosts_is_refused_on_every_rank_of_them(dtype, ranks, monkeypatch):
    def refused():
        try:
            collective.plan(np.zeros(5, dtype))
        except (UserError, BufferError) as error:
            return str(error)
        return ""

    collective = make_collective("hierarchical:mpi", ranks)
    texts = ranks.allgather(refused())
    assert set(texts) == {f"collective mpi: MPI has no sum of {np.dtype(dtype)}; use ring, or float32"}
    monkeypatch.setattr(Hierarchical, "refuse", Collective.refuse)  # broken: the first ranks of hosts alone are told
    assert [bool(text) for text in ranks.allgather(refused())] == ranks.allgather(ranks.rank == ranks.leader)
    collective.free()


@pytest.mark.mpi
@pytest.mark.parametrize("name", [name for name in SUMS if name != "mpi"])
def test_numbers_in_another_order_of_bytes_are_summed_where_all_ranks_give_them(name, ranks):
    collective = opened(name, ranks)
    if collective is None:
        return
    buffer = np.arange(5).astype(">f4")
    total = collective.plan(buffer)
    total.start()
    total.wait(30)
    np.testing.assert_array_equal(buffer, np.arange(5) * ranks.size)
    collective.free()


@pytest.mark.mpi
@pytest.mark.parametrize("name", SUMS)
def test_ranks_may_give_other_places_of_what_they_allocated(name, ranks):
    collective = opened(name, ranks)
    if collective is None:
        return
    whole = collective.allocate(2 * ranks.size + 3, "f8")
    whole[:] = np.arange(whole.size)
    at = 2 * ranks.rank
    total = collective.plan(whole[at : at + 3])
    total.start()
    total.wait(30)
    np.testing.assert_array_equal(whole[at : at + 3], sum(np.arange(2 * r, 2 * r + 3) for r in range(ranks.size)))
    collective.free()


def counted(ranks, total, times=1):
    """Return the bytes and the messages that a sum on this rank gives to the transport."""
    before = ranks.nbytes_sent, ranks.n_sent
    for _ in range(times):
        total.start()
        total.wait(30)
    return ranks.nbytes_sent - before[0], ranks.n_sent - before[1]


@pytest.mark.mpi
def test_the_check_catches_what_is_sent_twice(ranks):
    if ranks.size == 1:
        return  # nobody to send to
    collective = opened("ring", ranks)
    total = collective.plan(collective.allocate(1200, "f4"))
    sent, n_messages = counted(ranks, total, times=2)
    assert sent != total.nbytes and n_messages != FORMULAS["ring"][1](ranks.size, 0, 0)
    collective.free()


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("name", [*BY_ROUNDS, "hierarchical", "shared"])
def test_the_transport_counts_what_the_formula_says(name, ranks):
    collective = opened(name, ranks)
    if collective is None:
        return
    n = 1200
    total = collective.plan(collective.allocate(n, "f4"))
    sent, n_messages = counted(ranks, total)
    assert sent == total.nbytes
    if name in BY_ROUNDS:
        part = collective.rounds(ranks.rank, ranks.size, n)
        of_each = [len(each.sends) for each in (*part.reduce, *part.gather)]
        assert n_messages == sum(of_each) and (name != "ring" or of_each == [1] * round(FORMULAS["ring"][1](ranks.size, 0, 0)))
    hosts = len(set(ranks.allgather(ranks.leader)))
    size = {"hierarchical": hosts, "shared": 1}.get(name, ranks.size)
    power = 1 << (size.bit_length() - 1)
    formula = FORMULAS["rabenseifner" if name in ("hierarchical", "shared") else name][0]
    assert sum(ranks.allgather(sent)) == 4 * n * round(formula(size, power, size - power))
    collective.free()


@pytest.mark.mpi
@pytest.mark.parametrize("graph", GRAPHS)
def test_gossip_does_on_mpi_what_its_matrix_says(graph, ranks):
    collective = make_collective(f"gossip:{graph}", ranks)
    buffer = collective.allocate(50, "f8")
    buffer[:] = np.random.default_rng([1, ranks.rank]).standard_normal(50)
    before = np.array(ranks.allgather(buffer.copy()))
    total = collective.plan(buffer)
    total.start()
    total.wait(30)
    np.testing.assert_allclose(buffer, (Gossip(graph).matrix(ranks.size) @ before)[ranks.rank], atol=1e-14)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", SUMS)
def test_buffers_that_differ_are_refused_on_every_rank_with_both_sizes(name, ranks):
    collective = opened(name, ranks)
    if collective is None:
        return
    last = ranks.rank == ranks.size - 1
    with pytest.raises(UserError, match=f"rank 0 gives 5 x float32, rank {ranks.size - 1} gives 6 x float32"):
        collective.plan(np.zeros(6 if last else 5, "f4"))
    with pytest.raises(UserError, match=f"rank 0 gives 5 x float32, rank {ranks.size - 1} gives 5 x float64"):
        collective.plan(np.zeros(5, "f8" if last else "f4"))
    with pytest.raises(UserError, match=f"the buffer of rank {ranks.size - 1} is not one flat"):
        collective.plan(np.zeros(10, "f4")[::2] if last else np.zeros(5, "f4"))
    collective.free()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", [name for name in SUMS if name not in ("mpi", "auto")])
def test_a_wait_ends_at_its_limit_and_says_for_whom(name, ranks):
    collective = opened(name, ranks)
    if collective is None:
        return
    total = collective.plan(collective.allocate(4, "f4"))
    ranks.Barrier()
    if ranks.rank == 0:
        total.start()
        with pytest.raises(WaitTimeout, match=r"waits for .* the limit is 0.05 s"):
            total.wait(0.05)
        total.ranks = range(100, 100 + ranks.size)  # as the job numbers them
        with pytest.raises(WaitTimeout, match=r"waits for rank 10[1-9]"):
            total.wait(0.05)
        with pytest.raises(RuntimeError, match="started again"):
            total.start()
    ranks.Barrier()
    if ranks.rank:
        total.start()
    total.wait(30)
    collective.free()


@pytest.mark.mpi
def test_auto_takes_what_was_fastest_at_the_nearest_size(ranks):
    collective = make_collective("auto", ranks)
    assert len(set(ranks.allgather(tuple(sorted(collective.seconds.items()))))) == 1
    for name in collective.known:
        collective.seconds = {(each, nbytes): float(each != name) for each, nbytes in collective.seconds}
        assert collective.plan(collective.allocate(10, "f4")).picked == name
    collective.seconds = {key: float(key[0] != "mpi") for key in collective.seconds}
    if not ranks.one_host or ranks.size > 1:
        assert collective.plan(collective.allocate(10, "f2")).picked != "mpi"  # which cannot sum it
    collective.free()


def test_a_sum_moves_only_when_it_is_asked():
    total = base.Sum()
    total.test = lambda: time.perf_counter() > end
    end = time.perf_counter() + 0.01
    total.wait(5)
    assert time.perf_counter() >= end


def test_ranks_that_outnumber_the_cores_leave_them_to_each_other_at_once():
    assert base.spin_seconds(1, 2) == base.spin_seconds(2, 2) > 0
    assert base.spin_seconds(3, 2) == base.spin_seconds(5, 4) == 0
