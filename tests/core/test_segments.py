"""Sums in shared memory are right however the ranks' calls interleave: played in one process, a call at a time, in drawn orders."""

import random

import numpy as np
import pytest

from mpidml.collectives.shared import SharedSum, SmallSum
from mpidml.core.segments import Segments

N_STEPS = 6


class Memory:
    """Stands for the communicator of one of several ranks that make the same calls: the same windows for all."""

    def __init__(self, rank, size, windows):
        self.rank, self.size, self.windows, self.n_calls = rank, size, windows, 0

    def shared(self, n, dtype):
        self.n_calls += 1
        return self.windows.setdefault(self.n_calls, np.zeros(n, dtype))

    def allgather(self, value):
        return [value] * self.size

    def fence(self):
        pass


def sums(sum_class, size, seed):
    """Play the sums of `size` ranks, of which any is next; return what each rank found of each, and what it should be."""
    windows, draws = {}, random.Random(seed)
    ranks, found = [], [[] for _ in range(size)]
    for rank in range(size):
        comm = Memory(rank, size, windows)
        segments = Segments(comm)
        buffer = segments.allocate(5, np.float32)
        ranks.append((buffer, sum_class(comm, segments, buffer)))
    given = np.random.default_rng(seed).standard_normal((N_STEPS, size, 5), dtype=np.float32)
    under_way = [False] * size
    for _ in range(200 * size * N_STEPS):
        if all(len(each) == N_STEPS for each in found):
            break
        rank = draws.choice([r for r in range(size) if len(found[r]) < N_STEPS])
        buffer, total = ranks[rank]
        if not under_way[rank]:
            buffer[:] = given[len(found[rank]), rank]
            total.start()
            under_way[rank] = True
        elif total.test():
            found[rank].append(buffer.copy())
            under_way[rank] = False
        else:
            assert total.late(), "who waits knows for whom"
    right = []
    for terms in given:
        total = terms[0].copy()
        for term in terms[1:]:
            total += term
        right.append(total)
    return found, right


def is_right(sum_class, size, seed):
    found, right = sums(sum_class, size, seed)
    return all(np.array_equal(each, right) for each in found)  # which it is not where one waits for ever


@pytest.mark.parametrize("sum_class", [SharedSum, SmallSum])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_rank_has_the_sum_in_the_order_of_the_ranks_however_calls_interleave(sum_class, size):
    assert all(is_right(sum_class, size, seed) for seed in range(150))


class OnePlace(SmallSum):
    """Lays down the next buffer where another may still read the last one."""

    def __init__(self, comm, segments, buffer):
        super().__init__(comm, segments, buffer)
        self.laid[1], self.own[1] = self.laid[0], self.own[0]


class TellsFirst(SmallSum):
    """Says that its buffer is there a call before it is."""

    def start(self):
        self.n_started += 1
        self.is_under_way = True
        self.counters.reach(0, self.n_started)

    def test(self):
        self.own[self.n_started & 1][:] = self.given
        return super().test()


class WaitsForNobody(SharedSum):
    def start(self):
        super().start()
        for line in self.counters.lines:
            line[0] = max(line[0], self.n_started)


class LeavesEarly(SharedSum):
    """Does not wait until the others have summed up."""

    def test(self):
        return super().test() or self.phase == 1


@pytest.mark.parametrize("broken", [OnePlace, TellsFirst, WaitsForNobody, LeavesEarly])
def test_the_play_catches(broken):
    def caught(seed):
        try:
            return not is_right(broken, 3, seed)
        except RuntimeError:
            return True

    assert any(caught(seed) for seed in range(150))


def test_many_small_sums_share_a_window_and_no_two_a_place():
    windows = {}
    ranks = [Memory(rank, 2, windows) for rank in range(2)]
    buffers = [[np.full(5 + k, 10.0 * k + rank, np.float32) for k in range(40)] for rank in range(2)]
    made = []
    for comm, own in zip(ranks, buffers, strict=True):
        segments = Segments(comm)
        made.append([SmallSum(comm, segments, buffer) for buffer in own])
    assert len(windows) == 2, "one of places, one of counters"
    for own in made:
        for total in own:
            total.start()
    assert all(total.test() for own in made for total in own)
    assert all((buffer == 20.0 * k + 1).all() for own in buffers for k, buffer in enumerate(own))
