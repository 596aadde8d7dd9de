"""Carry arrays between two ranks that sleep while they wait: what is sent arrives, in order, whether a ring is heard or lost."""

import time

import numpy as np
import pytest

from mpidml.runtime.bell import Bell
from mpidml.runtime.channel import Line, Waiting, open_channels
from mpidml.runtime.comm import CountedComm

N_ITEMS, N_SLOTS, LATE_SECONDS = 12, 3, 2e-3


def carried(comm, memory, slow):
    """Send items from rank 0 to rank 1, one of which is `slow`; return on rank 1 what came, and on both how often a sleep ended by a ring (Collective)."""
    counted, waiting = CountedComm(comm), Waiting(20.0)
    rings = []
    wait = Bell.wait
    Bell.wait = lambda bell, seconds: rings.append(wait(bell, seconds)) or rings[-1]
    try:
        (channel,) = open_channels(counted, [Line(0, 1, 2, 5, N_SLOTS, "numbers")], np.dtype(np.float64), memory, waiting)
        found = []
        if counted.rank == 1:
            for item in range(N_SLOTS):
                channel.expect(item)
        counted.Barrier()
        for item in range(N_ITEMS if channel is not None else 0):
            if counted.rank == slow:
                time.sleep(LATE_SECONDS)
            if counted.rank == 0:
                channel.claim(item)
                channel.slots[item % N_SLOTS, :2] = item
                channel.send(item, 2)
            else:
                channel.take(item)
                found.append(channel.slots[item % N_SLOTS, :2].copy())
                channel.release(item)
                if item + N_SLOTS < N_ITEMS:
                    channel.expect(item + N_SLOTS)
        if channel is not None:
            channel.free()
        counted.Barrier()
        assert waiting.bell is None or channel is None, "who frees a channel lets go of the bell"
        waiting.close()
        counted.free()
    finally:
        Bell.wait = wait
    return found, sum(rings)


@pytest.mark.mpi(min_size=2)
@pytest.mark.openmpi
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("slow", [0, 1])
def test_items_arrive_in_order_and_who_sleeps_is_rung(comm, memory, slow):
    found, n_rings = carried(comm, memory, slow)
    if comm.rank == 1:
        assert np.array_equal(found, np.arange(N_ITEMS)[:, None, None] * np.ones((2, 5)))
    sleeps = comm.rank == 1 - slow
    assert n_rings > 0 if memory and sleeps else memory or n_rings == 0


@pytest.mark.mpi(min_size=2)
def test_a_ring_that_is_lost_costs_a_moment_and_nothing_else(comm, monkeypatch):
    monkeypatch.setattr(Waiting, "ring", lambda self, host_rank: None)
    found, n_rings = carried(comm, True, 0)
    assert n_rings == 0
    if comm.rank == 1:
        assert np.array_equal(found, np.arange(N_ITEMS)[:, None, None] * np.ones((2, 5)))
