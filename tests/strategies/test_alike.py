"""After 100 steps the weights and the optimizer of all ranks are, bit by bit, those of a replica that each rank keeps beside them, whatever sums the gradients.

    each rank   gradient, rounded to multiples of 2^-30 --the collective--> sum -> what this rank owns -> weights that it reads
                         |                                                                    == ?
                         +--MPI_Allgather of all of them--> sum -> a whole optimizer of its own -> weights of its own

Sums of so rounded numbers are exact, so the order in which they are added does not matter. Under `shared` and `hierarchical` weights lie in one memory of a host, and none
of its ranks can have others; each part of an optimizer is owned by one rank, and nobody can have another one. So hashes of ranks alone would tell nothing there. What
can be wrong is what an owner makes of its part: that no rank's replica has. Where each rank holds all, the replica tells as well who has come apart.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.optim.base import make_chain
from mpidml.runtime.comm import CountedComm
from tests.strategies.test_data_parallel import SUMS, prepared

STEPS, AT = 100, 50
UNIT = 2.0**-30


class Replica:
    """What a rank keeps beside a strategy: each step's own gradient, and weights and optimizer that the sum of all ranks' changes."""

    def __init__(self, comm, strategy):
        net, job = strategy.net, strategy.job
        self.comm, self.strategy, self.net = comm, strategy, net
        self.chain = make_chain(job.optimizer, job.rate)
        self.weights = net.init(job.seed)
        self.state = self.chain.init(net.n_params, net.dtype)
        self.own, self.everyone = np.zeros(net.n_params), np.zeros((comm.size, net.n_params))

    def take(self, lo, hi):
        """Round this rank's gradient of a bucket, whose sum is about to begin, and keep it: of blocks, the sum of its rows."""
        rows = np.atleast_2d(self.strategy.gradient)[:, lo:hi]
        rows[...] = np.rint(rows / UNIT) * UNIT
        self.own[lo:hi] = rows.sum(axis=0)

    def step(self, number):
        """Change the replica by the sum over the ranks, which no collective of the project makes."""
        self.comm.Allgather(self.own, self.everyone)
        self.chain.apply(self.net.backend, self.weights, self.weights, self.everyone.sum(axis=0), self.state, number)

    def unlike(self):
        """Name what this rank has otherwise: tensors of the weights, and of its part of the optimizer."""
        pieces = [("weights", 0, self.strategy.weights, self.weights)]
        for number, store in self.strategy.stores.items():
            lo, hi = self.strategy.extent(number)
            pieces += [(key, lo, array, self.state[key][lo:hi]) for key, array in store.optimizer.items()]
        found = set()
        for what, start, own, right in pieces:
            for name, of in self.net.params.slices.items():
                part = slice(max(of.start - start, 0), max(of.stop - start, 0))
                if own[part].tobytes() != right[part].tobytes():
                    found.add(f"{what} of {name}")
        return found


def spoil_nothing(comm, replica, harmed):
    """Let all be."""


def unlike(comm, name, per_host=0, spoil=spoil_nothing):
    """Train 100 steps; return what any rank has otherwise than its replica, and which tensors `spoil` has harmed."""
    counted, harmed = CountedComm(comm, per_host), set()
    bucket = Job.bucket if name == "ordered" else 512
    strategy, whole = prepared(counted, collective=name, bucket=bucket, optimizer="adam", lr=0.01, steps=STEPS, batch=20, hold_out=0.0)
    strategy.settle = lambda: None  # the run's own comparison, which would end it
    replica, driver = Replica(comm, strategy), strategy.driver
    for each in driver.buckets:

        def begin(bucket=each, start=each.halves.reduce.start):
            replica.take(bucket.lo, bucket.hi)
            start()

        each.halves.reduce.start = begin
    update = driver._update

    def updated():
        update()
        replica.step(driver.clock + 1)

    driver._update = updated
    spoil(comm, replica, harmed)
    whole.drive()
    assert driver.clock == STEPS
    assert len(set(comm.allgather(hashlib.sha256(replica.weights.data).hexdigest()))) == 1
    found = set().union(*comm.allgather(replica.unlike()))
    whole.end(None)
    counted.free()
    return found, set().union(*comm.allgather(harmed))


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize(("name", "per_host"), [*((name, 0) for name in SUMS), ("hierarchical", 2), ("hierarchical:recursive_doubling", 2)])
def test_after_a_hundred_steps_all_ranks_have_the_bits_of_a_replica(comm, name, per_host):
    assert unlike(comm, name, per_host) == (set(), set())


def harms(comm, replica):
    """Tell whether this rank does the harm, the last one that changes weights, and give its first bucket of which it owns something."""
    own = [bucket for bucket in replica.strategy.driver.buckets if bucket.halves.lo < bucket.halves.hi]
    return comm.rank == max(rank for rank, owns in enumerate(comm.allgather(bool(own))) if owns), own[:1]


def after(driver, clock, harm):
    """Call `harm` once the step of a clock is over, and its replica's."""
    update = driver._update

    def updated():
        update()
        if driver.clock == clock:
            harm()

    driver._update = updated


def tensors(replica, lo, hi):
    return {name for name, of in replica.net.params.slices.items() if of.start < hi and lo < of.stop}


def flips(what, values):
    """Return a harm that flips a bit of the first of the `values` of a rank's own part."""

    def harms_it(comm, replica, harmed):
        does, buckets = harms(comm, replica)
        if not does:
            return
        bucket = buckets[0]
        at = bucket.lo + bucket.halves.lo

        def harm():
            values(replica, bucket, at)[:1].view(np.uint64)[:] ^= np.uint64(1 << 30)

        after(replica.strategy.driver, AT, harm)
        harmed.update(f"{what} of {name}" for name in tensors(replica, at, at + 1))

    return harms_it


flip_weight = flips("weights", lambda replica, bucket, at: replica.strategy.weights[at:])
flip_optimizer = flips("0.adam.v", lambda replica, bucket, at: bucket.store.optimizer["0.adam.v"])


def skip_a_sum(comm, replica, harmed):
    does, buckets = harms(comm, replica)
    if not does:
        return
    bucket, driver = buckets[0], replica.strategy.driver
    lo, hi = bucket.lo + bucket.halves.lo, bucket.lo + bucket.halves.hi
    step = bucket.store.step
    bucket.store.step = lambda total, *more: step(replica.own[lo:hi].copy() if driver.clock == AT else total, *more)
    harmed.update(f"{what} of {name}" for name in tensors(replica, lo, hi) for what in ("weights", "0.adam.m", "0.adam.v"))


@pytest.mark.mpi(min_size=2)
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("spoil", [flip_weight, flip_optimizer, skip_a_sum], ids=["a weight", "the optimizer", "a sum"])
@pytest.mark.parametrize(("name", "per_host"), [("shared", 0), ("ring", 0), ("mpi", 0), ("tree", 0), ("hierarchical", 2)])
def test_the_replica_catches_one_bit_and_one_sum_and_names_the_parameter(comm, name, per_host, spoil):
    found, harmed = unlike(comm, name, per_host, spoil)
    assert harmed and harmed <= found


@pytest.mark.mpi(min_size=2)
def test_the_runs_own_comparison_names_ranks_and_the_first_parameter(comm):
    counted, last = CountedComm(comm), comm.size - 1
    strategy, whole = prepared(counted, collective="mpi")
    bias = strategy.net.params.slices["layers.1.bias"]

    def harm():
        strategy.weights[bias][-1:].view(np.uint64)[:] ^= np.uint64(comm.rank == last)

    after(strategy.driver, 5, harm)
    with pytest.raises(RuntimeError, match=f"after clock 8 rank {last} has other weights or optimizer state than rank 0, first in layers.1.bias$"):
        whole.drive()
    counted.free()
