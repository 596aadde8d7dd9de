"""Drive data-parallel training: gradients of a bucket of parameters are summed over the ranks while backward still computes the next.

    backward     | layer 3 | layer 2 | layer 1 |                          each rank, on its share of the global batch
    sums            bucket 0 ------> bucket 1 ----> bucket 2 ->           started in one order on every rank, as soon as they are final
    update                                               | own ranges |   of every bucket, and then
    gather                                                      ------->  the changed weights are brought to all

Nothing moves but between kernels (where the pass reports), in the wait at the end, and where a thread sees to it (`progress_thread`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.collectives.base import Collective, Halves, Sum
from mpidml.core.shares import EVERY
from mpidml.ps.store import Store
from mpidml.ps.task import Turn
from mpidml.ps.waits import Tally
from mpidml.runtime.progress_thread import ByHand
from mpidml.sync.base import Tuning

clock_now = time.perf_counter


class Bucket:
    """Elements [lo, hi) of the gradient, their sum in two halves, and the `store` of what this rank owns of their weights."""

    def __init__(self, lo: int, hi: int, halves: Halves, store: Store) -> None:
        self.lo, self.hi, self.halves, self.store = lo, hi, halves, store
        self.started_at = 0.0

    def free(self) -> None:
        """Let the requests of both halves go."""
        self.halves.reduce.free()
        self.halves.gather.free()


class Votes:
    """Let rank 0 end the run at one clock on every rank: what it wants travels with each step."""

    def __init__(self, collective: Collective, leads: bool, progress: ByHand) -> None:
        self.progress = progress
        self.buffer = collective.allocate(2, np.float64)
        self.sum = collective.plan_beside(self.buffer)
        self.leads, self.wants, self.pauses = leads, (0.0, 0.0), False

    def stop(self, pause: bool = False) -> None:
        """Ask for the end after the next step, or for a pause."""
        self.wants = (0.0, 1.0) if pause and not self.wants[0] else (1.0, self.wants[1])

    def start(self) -> None:
        """Send what rank 0 wants by now."""
        self.buffer[:] = self.wants if self.leads else (0.0, 0.0)
        self.progress.start(self.sum)

    @property
    def ends(self) -> bool:
        """Whether the run ends after this step; all ranks find the same."""
        self.pauses = bool(self.buffer[1] and not self.buffer[0])
        return bool(self.buffer.any())


class Part:
    """What the run wants to know of this rank's worker."""

    def __init__(self) -> None:
        self.tally, self.result, self.step = Tally(), None, 0


class Stepper:
    """Run the steps of one rank; to the run around it, what `driver.Driver` is: `run`, and what was counted.

    `task` computes this rank's share of a batch into the gradient that the buckets are slices of, `changes` is what needs the whole gradient first.
    """

    nbytes_window = n_messages = 0
    take_seconds = polls_seconds = 0.0

    def __init__(self, strategy: Any, task: Any, buckets: Sequence[Bucket], part: Part, record: Any, look: Callable[[float], None], look_seconds: float) -> None:
        self.strategy, self.task, self.buckets, self.part, self.record, self.look = strategy, task, list(buckets), part, record, look
        self.comm, self.trace, self.limit, self.look_seconds = strategy.comm, strategy.trace, strategy.job.wait_limit, look_seconds
        self.progress: ByHand = strategy.progress
        self.roles: dict[int, Any] = {}
        self.compute_seconds = self.wait_seconds = self.serve_seconds = self.longest_delay_seconds = 0.0
        self.clock = self.until = 0
        self.looked_at = self.away_seconds = 0.0
        self.n_begun, self.done = 0, (0, 0.0)

    def run(self) -> None:
        """Step to the end, and score the final weights, unless the run only pauses."""
        pauses = self._steps()
        self.strategy.land()
        if pauses:
            return
        self.strategy.settle()
        self._left()
        began = clock_now()
        self.part.result = self.task.finish(self._turn(), None)
        self.compute_seconds += clock_now() - began

    def _steps(self) -> bool:
        """Step until the clock `until`, or until the votes end it; return whether the run only pauses."""
        strategy, votes = self.strategy, self.strategy.coordinator
        ends = voting = False
        every = strategy.job.check_replicas
        if votes is not None:
            votes.pauses = False
        while self.clock < self.until and not ends:
            now = clock_now()
            if votes is not None and not self.clock % strategy.vote_every:
                if strategy.over is not None and votes.leads and strategy.over(now):
                    votes.stop()
                votes.start()
                voting = True
            self._step()
            if voting and (not self.clock % strategy.vote_every or self.clock == self.until):
                self.wait(votes.sum)
                ends, voting = votes.ends, False
            if every and not self.clock % every:
                strategy.check_alike()
            if (now := clock_now()) - self.looked_at > self.look_seconds:
                self.looked_at = now
                self.look(now)
        if votes is not None:
            votes.wants = (0.0, 0.0)
            votes.pauses |= not ends and self.clock < strategy.n_clocks
        return votes is not None and votes.pauses

    def _left(self) -> None:
        self.record(self.strategy.worker_role, clock_now(), "left", ())

    def _turn(self) -> Turn:
        return Turn(self.clock, self.clock, self.clock * self.strategy.n_workers + self.task.worker, self.strategy.weight, (0,))

    def _step(self) -> None:
        strategy, clock = self.strategy, self.clock
        self.n_begun, self.away_seconds, strategy.step.number = 0, 0.0, clock
        began = clock_now()
        try:
            _, measured = self.task.compute(self._turn(), self._report if self.comm.size > 1 else None)
            ended = clock_now()
            if not measured[1]:
                strategy.gradient.fill(0)  # no sample of this batch is for this rank
            self._begin(0)
        finally:
            self.progress.take_back()
        self.compute_seconds += ended - began - self.away_seconds
        if self.trace is not None:
            self.trace.add("compute", began, ended - began, clock)
        self._update()
        if strategy.loss is not None:
            measured = (strategy.loss() * self.task.loss_factor, *measured[1:])
        self.record(strategy.worker_role, clock_now(), "clock", (clock, 0, True, ended - began - self.away_seconds, *measured))
        self._share(int(measured[1]), ended - began - self.away_seconds - measured[5])
        self.part.tally.staleness[0] += 1
        self.clock += 1
        self.part.step = self.clock

    def _share(self, samples: int, seconds: float) -> None:
        """Learn the shares of the next clocks from what all ranks have computed in the last ones, in `seconds` without those of a look, which no share cuts."""
        shares = self.strategy.sampler.shares
        if shares is None:
            return
        self.done = self.done[0] + samples, self.done[1] + seconds
        if not (self.clock + 1) % EVERY:
            shares.learn(*zip(*self.comm.allgather(self.done), strict=True))
            self.done = (0, 0.0)

    def _report(self, lo: int, hi: int) -> None:
        """Between two kernels: start the sums of what is final from `lo` up, and let those under way go on."""
        began = clock_now()
        if lo < hi:
            self._begin(lo)
        for bucket in self.buckets[: self.n_begun]:
            if bucket.started_at and self.progress.test(bucket.halves.reduce):
                self._summed(bucket)
        self.away_seconds += clock_now() - began

    def _begin(self, final_from: int) -> None:
        while self.n_begun < len(self.buckets) and self.buckets[self.n_begun].lo >= final_from:
            bucket = self.buckets[self.n_begun]
            bucket.started_at = clock_now()
            self.progress.start(bucket.halves.reduce)
            self.n_begun += 1

    def _summed(self, bucket: Bucket) -> None:
        if self.trace is not None:
            self.trace.add("sum", bucket.started_at, clock_now() - bucket.started_at, self.clock, (bucket.hi - bucket.lo) * self.strategy.net.dtype.itemsize)
        bucket.started_at = 0.0

    def _update(self) -> None:
        """Wait for all sums, change the weights that this rank owns, and bring all of them together."""
        strategy = self.strategy
        for bucket in self.buckets:
            if bucket.started_at:
                self.wait(bucket.halves.reduce)
                self._summed(bucket)
        began, waited = clock_now(), self.wait_seconds
        tuning = Tuning() if strategy.rates is None else Tuning(strategy.rates(self.clock), 1.0)
        strategy.transform(self.clock + 1)
        for bucket in self.buckets:
            bucket.store.step(bucket.halves.total, tuning)
        ended = clock_now()
        self.serve_seconds += ended - began - (self.wait_seconds - waited)  # where a norm is summed over the ranks
        if self.trace is not None:
            self.trace.add("apply", began, ended - began, self.clock)
        for bucket in self.buckets:
            bucket.halves.gather.start()
        for bucket in self.buckets:
            self.wait(bucket.halves.gather)

    def wait(self, total: Sum) -> None:
        """Wait for a sum; the last rank to come is the one that was waited for."""
        since = clock_now()
        total.ranks = total.ranks or self.comm.ranks
        idle, last = total.wait(self.limit)
        self.wait_seconds += idle
        if last >= 0:
            self.part.tally.wait(self.strategy.worker_roles.start + last, self.clock, since, since + idle)
        if self.trace is not None and last >= 0:
            self.trace.add("wait", since, idle, self.clock)
