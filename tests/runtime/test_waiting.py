"""A rank that waits leaves its core to others, whatever it waits for: under a tenth of a core, by the CPU time that the system counts."""

import gc
import os
import resource
import time

import numpy as np
import pytest
from mpidml_kernels import backend

import mpidml
from mpidml.runtime import checkpoint
from mpidml.runtime.agree import agree
from mpidml.runtime.channel import Line, Waiting, open_channels
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.crew import Crew

SECONDS, SHARE = 2.0, 0.1
SHORT = 1.0
pytestmark = [pytest.mark.mpi(min_size=2), pytest.mark.openmpi]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def share_of_a_core(wait, seconds):
    """Return which part of a core this process took in `wait()`, which lasts for so long at least."""
    gc.disable()  # after a thousand tests one look through all that they left takes a tenth of a second
    cpu, began = cpu_seconds(), time.perf_counter()
    wait()
    lasted = time.perf_counter() - began
    gc.enable()
    assert lasted > 0.8 * seconds, "there was no wait"
    return (cpu_seconds() - cpu) / lasted


@pytest.fixture
def ranks(comm):
    own = CountedComm(comm)
    yield own
    own.free()


def collectives(ranks):
    return {
        "barrier": ranks.Barrier,
        "verdict": lambda: agree(ranks, lambda: None),
        "gather": lambda: ranks.gather(1),
        "bcast": lambda: ranks.bcast(1),
        "Bcast": lambda: ranks.Bcast(np.zeros(4)),
    }


@pytest.mark.parametrize("name", ["barrier", "verdict", "gather", "bcast", "Bcast"])
def test_in_a_collective_call(ranks, name):
    go = collectives(ranks)[name]
    go()
    if ranks.rank == 0:
        time.sleep(SHORT)
        go()
    else:
        assert share_of_a_core(go, SHORT) < SHARE


def test_the_check_sees_a_wait_that_spins(ranks):
    """The broken variant: a request that is tested over and over."""
    if ranks.rank == 0:
        time.sleep(SHORT)
        request = ranks.mpi.Ibarrier()
        request.Wait()
        return
    request = ranks.mpi.Ibarrier()
    began = time.perf_counter()

    def spin():
        while not request.Test() or time.perf_counter() - began < SHORT:
            pass

    used = share_of_a_core(spin, SHORT)
    assert used > SHARE or ranks.size > len(os.sched_getaffinity(0)), used  # of a core that many want, it may get little


def test_while_the_first_rank_reads_the_data(ranks):
    crew = Crew(ranks, None)

    def read():
        time.sleep(SECONDS)
        return 7

    if ranks.rank == 0:
        assert crew.run(read) == 7
    else:
        assert share_of_a_core(lambda: crew.run(read), SECONDS) < SHARE


def test_while_a_slow_disk_takes_another_ranks_part_of_a_checkpoint(ranks, tmp_path, monkeypatch):
    folder = ranks.bcast(tmp_path)
    pieces = [checkpoint.Piece("w", 4 * ranks.rank, 4 * ranks.size, np.ones(4, np.float32))]
    write = checkpoint._write_pieces
    monkeypatch.setattr(checkpoint, "_write_pieces", lambda *given: (time.sleep(SECONDS if ranks.rank == 0 else 0), write(*given))[1])
    save = lambda: checkpoint.write(ranks, folder, 1, pieces, {"n": 1}, 1)
    if ranks.rank == 0:
        save()
    else:
        assert share_of_a_core(save, SECONDS) < SHARE


def test_in_a_sum_over_ranks(ranks):
    with mpidml.Gradients({"w": (1000,)}, comm=ranks) as total:
        total.reduce(1)
        time.sleep(SECONDS if ranks.rank == 0 else 0)
        used = share_of_a_core(lambda: total.reduce(1), 0.0 if ranks.rank == 0 else SECONDS)
    assert ranks.rank == 0 or used < SHARE


def test_of_a_stage_for_the_one_before_it(ranks):
    lines = [Line(0, 1, 1, 4, 2, "activations")]
    waiting = Waiting(60)
    (channel,) = open_channels(ranks, lines, np.float32, ranks.one_host, waiting)
    used = 0.0
    if ranks.rank == 0:
        time.sleep(SECONDS)
        channel.claim(0)
        channel.send(0, 1)
    elif ranks.rank == 1:
        channel.expect(0)
        used = share_of_a_core(lambda: channel.take(0), SECONDS)
        channel.release(0)
    ranks.Barrier()
    if channel is not None:
        channel.free()
    else:
        waiting.close()
    assert used < SHARE


@pytest.mark.parametrize("sync", ["bsp", "ssp:1"])
def test_of_workers_for_a_worker_that_is_behind_and_of_a_server_for_all(ranks, sync):
    """One rank only serves: all that it takes from the first clock to the last is set against one clock that is slow."""
    backend("numba").fetch("f4")  # which takes half a second of a core, and no wait
    cpu, began = cpu_seconds(), time.perf_counter()

    def main(tables):
        used = 0.0
        for clock in range(4):
            if clock == 2:
                time.sleep(SECONDS if tables.worker == 0 else 0)
            at = cpu_seconds(), time.perf_counter()
            tables["w"].pull().wait()
            lasted = time.perf_counter() - at[1]
            if lasted > SECONDS / 2:
                used = max(used, (cpu_seconds() - at[0]) / lasted)
            tables["w"].push(np.ones((10, 4), np.float32))
            tables.clock()
        return used

    used = mpidml.run_tables(main, {"w": (10, 4)}, sync=sync, servers="1", comm=ranks)
    if used is None:
        used = (cpu_seconds() - cpu) / (time.perf_counter() - began)
    assert used < SHARE, used
