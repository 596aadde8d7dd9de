"""The program of a worker that trains a network: the gradient of a block of samples, and at the start of an epoch the score of some rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpidml.core import rng
from mpidml.core.buffers import Buffer
from mpidml.core.errors import WaitTimeout
from mpidml.core.role import Array, Lease
from mpidml.optim.base import State
from mpidml.ps.task import Push, Read, Turn
from mpidml.runtime import scoring

BUFFER_WAIT_SECONDS = 50e-6
N_MEASURED = 7


class Training:
    """One worker's part: the gradient of its share of each global batch, and at the start of an epoch the score of its share of some rows.

    Those are the validation rows, or the test rows where there are none; a run with patience pauses instead (`looks`). A clock's measurements:
    loss sum, samples, then of the rows looked at the loss sum, score, number, seconds, and what rounding has left of the two sums. The score of rows is
    how many are right, or in a regression the sum of their squared errors; squared errors are in the unit of the targets, other losses of scaled ones.
    Of several heads their losses and scores follow, all losses as they are trained, then what rounding has left of these.
    """

    fed: Array | None = None
    """The rows of the step's share, where they were read ahead."""

    def __init__(self, strategy: Any, worker: int, net: Any = None) -> None:
        """Allocate; `net`: what table 0 holds the parameters of, where that is not the whole network."""
        self.strategy, self.worker = strategy, worker
        self.net = net = strategy.net if net is None else net
        self.job, self.data, self.sampler = strategy.job, strategy.data, strategy.sampler
        self.flats = [] if strategy.in_place else self._flats()
        self.gradients: list[tuple[Buffer, Array, Lease]] = []
        for _ in range(strategy.n_gradients):
            self._add_gradient()
        self.running: Lease | None = None
        self.stay(net.backend)
        self.state = self._state()
        self.slowdown = strategy.slowdown
        self.loss_factor = scoring.loss_factor(net, self.data.targets)
        self.not_scored = (0.0,) * (N_MEASURED + scoring.n_of_heads(net))
        self.feed = self._feed() if hasattr(self.data.x, "feed") else None
        self.step_seconds = 0.0
        self.final: Array | None = None
        self.shown: Array | None = None  # what is scored, where that is not what this worker computes with
        self.salt_epoch, self.scored_epoch = -1, 0
        self.salt = np.uint64(0)

    def _flats(self) -> list[Array]:
        """Return two arrays into which parameters are read."""
        return [np.zeros(self.net.n_params, self.net.dtype) for _ in range(2)]

    def _state(self) -> State | None:
        """Return the arrays of this worker's links or optimizer; None where it has none."""
        chain = self.strategy.worker_chain or self.strategy.before
        return chain.init(self.net.n_params, self.net.dtype) if chain is not None else None

    def stay(self, kernels: Any) -> Training:
        """Let the gradients of the parts of a block add up where `kernels` compute; return this."""
        self.kernels = kernels
        with kernels.naming("the gradient of a part"):
            self.summand = kernels.zeros(self.net.n_params if self.job.accumulate > 1 else 0, self.net.dtype)
        return self

    def kept(self) -> State:
        """Return what links or optimizer have come to, the host's arrays: to be saved. Who changes these says so by `refresh`."""
        return self.state or {}

    def refresh(self) -> None:
        """Take what was changed in `kept`."""

    def reads(self, step: int) -> Sequence[Read]:
        """Read all parameters, in place or into one of two buffers in turn."""
        return [Read(0, self.flats[step % 2] if self.flats else None)]

    def last_reads(self, step: int) -> Sequence[Read]:
        """Read all parameters."""
        return self.reads(step)

    def compute(self, turn: Turn, report: Callable[[int, int], None] | None) -> tuple[Sequence[Push], tuple[float, ...]]:
        """Push the gradient of a block of samples over the size of the global batch, or the change that the own optimizer makes of it."""
        strategy = self.strategy
        w = self._parameters(turn)
        batch = turn.block // strategy.n_workers
        epoch = batch // self.sampler.clocks_per_epoch
        measured = self.not_scored
        if epoch > self.scored_epoch and not self.job.patience:
            measured, self.scored_epoch = self._look(w if self.shown is None else self.shown, epoch), epoch
        rows = self._rows(turn.block)
        n = rows.size
        if not n:
            self.running = None
            return (), (0.0, 0.0, *measured)
        if self.slowdown is not None:
            self._be_slow(self.step_seconds * self.slowdown.extra(self.worker, turn.step), report)
            started = time.perf_counter()
        if self.feed is not None:
            self.fed = self.feed.block(turn.block, rows)
        g, lease = self._gradient(report)
        self.running = lease if strategy.early else None
        loss = self._sum_up(rows, batch, w, g, turn.weight / self.sampler.batch_size(batch), report) * self.loss_factor
        if self.slowdown is not None:
            self.step_seconds = time.perf_counter() - started
        if strategy.early:
            return (), (loss, n, *measured)
        if self.state is not None:
            self._optimize(g, w, turn)
        return self._pushes(lease), (loss, n, *measured)

    def _pushes(self, lease: Lease) -> Sequence[Push]:
        return (Push(0, lease),)

    def early(self) -> Lease | None:
        """Name the gradient that is pushed part by part."""
        return self.running

    def finish(self, turn: Turn, report: Callable[[int, int], None] | None) -> dict[str, scoring.Scores]:
        """Score the final parameters on this worker's share of the test and the validation rows; with patience the best ones are scored later."""
        self.final = self._parameters(turn) if self.shown is None else self.shown
        return {} if self.job.patience else {of: self.score(self.final, of) for of in dict.fromkeys(("test", self.job.looks_at))}

    def score(self, w: Array, of: str) -> scoring.Scores:
        """Score this worker's share of the "test" or the "val" rows, block by block."""
        started = time.perf_counter()
        x, y = self.data.rows(of)
        lo, hi = self._scored(len(x))
        found = self._score(w, of, x[lo:hi], y[lo:hi])
        if self.strategy.trace is not None:
            self.strategy.trace.add("evaluate", started, time.perf_counter() - started)
        return found

    def _scored(self, n: int) -> tuple[int, int]:
        """Return which of n rows this worker scores."""
        return scoring.share(n, self.worker, self.strategy.n_workers)

    def _rows(self, block: int) -> Array:
        """Return the rows of a block that are computed here."""
        return self.sampler.indices(*divmod(block, self.strategy.n_workers))  # type: ignore[no-any-return]

    def _score(self, w: Array, of: str, x: Any, y: Array) -> scoring.Scores:
        return scoring.score(self.net, w, x, y, self.data.targets, heads=self.data.heads)

    def _feed(self) -> Any:
        """Return what reads the rows of this worker's blocks ahead; which block a free worker is given next can only be guessed."""
        n, last = self.strategy.n_workers, self.strategy.n_clocks * self.strategy.n_workers
        sure = self.job.assign == "static" or n == 1
        return self.data.x.feed(self._rows, lambda block: block + n if block + n < last else None, max(1, self.sampler.edges(0, self.worker)[-1]), sure)

    def _sum_up(self, rows: Array, batch: int, w: Array, g: Array, scale: float, report: Callable[[int, int], None] | None) -> float:
        """Leave the gradient of `rows` in `g`, summed over the parts in which they are computed; return the sum of the losses.

        A part has 1 / accumulate of the rows, rounded up or down, and the activations have room for the larger.
        Only while the last part is computed anything becomes final.
        """
        loss, n_parts = 0.0, min(self.job.accumulate, rows.size)
        for part in range(n_parts):
            at = rows.size * part // n_parts
            own = rows[at : rows.size * (part + 1) // n_parts]
            whole = n_parts == 1 or report is None
            progress = report if whole else self._adding(g, part, part == n_parts - 1, report)
            loss += self._run(own, at, batch, w, self.summand if part else g, scale, progress)
            if part and whole:
                self.kernels.add(g, self.summand)
        return loss

    def _run(self, rows: Array, at: int, batch: int, w: Array, g: Array, scale: float, report: Callable[[int, int], None] | None) -> float:
        """Leave the gradient of `rows`, which begin at number `at` of the share, in `g`; return the sum of the losses."""
        step = self.net.bind(rows.size, w, g)
        self._fill(step, rows, at)
        step.load(self.data.y, rows)
        if self.net.random:
            step.ids[:] = rows
            step.salt[0] = self._salt(batch // self.sampler.clocks_per_epoch)
        loss: float = step.run(scale, report)
        self._use(step, rows, at)
        return loss

    def _fill(self, step: Any, own: Array, at: int) -> None:
        """Give a step its rows, which begin at number `at` of the share."""
        if self.fed is None:
            self.data.x.take(own, 0, step.x, "clip")
        else:
            step.x[...] = self.fed[at : at + own.size]

    def _use(self, step: Any, own: Array, at: int) -> None:
        """Use what a step has left besides its gradient."""

    def _adding(self, g: Array, part: int, is_last: bool, report: Any) -> Callable[[int, int], None]:
        """Return what a part reports to: it adds what is final of the part to `g`, and what is then final of `g` is told."""

        def progress(lo: int, hi: int) -> None:
            if part and lo < hi:
                self.kernels.add(g[lo:hi], self.summand[lo:hi])
            report(*(lo, hi) if is_last else (0, 0))

        return progress

    def _parameters(self, turn: Turn) -> Array:
        return self.flats[turn.step % 2] if self.flats else self.strategy.views[turn.versions[0] % self.strategy.copies]

    def _gradient(self, report: Callable[[int, int], None] | None) -> tuple[Array, Lease]:
        """Return a gradient buffer that no server reads any more; wait for one if servers are that far behind."""
        limit = time.perf_counter() + self.job.wait_limit
        while True:
            for buffer, g, lease in self.gradients:
                if not buffer.busy():
                    return g, lease
            if time.perf_counter() > limit:
                raise WaitTimeout(
                    f"worker {self.worker}: no server has applied any of its last {len(self.gradients)} gradients for {self.job.wait_limit:g} s (--wait-limit)"
                )
            if report is None:
                self._add_gradient()  # nobody else runs meanwhile, so waiting would free none
                continue
            report(0, 0)
            time.sleep(BUFFER_WAIT_SECONDS)

    def _add_gradient(self) -> None:
        net, buffers = self.net, self.strategy.buffers
        buffer = buffers.allocate(net.n_params * net.dtype.itemsize, keep=True)
        g = buffer.array(net.dtype, net.n_params)
        self.gradients.append((buffer, g, buffer.lease(g)))

    def _optimize(self, g: Array, w: Array, turn: Turn) -> None:
        """Run the worker's part of the optimizer on its gradient."""
        assert self.state is not None
        self._change(g, self.state, w, turn)

    def _change(self, g: Any, state: State, w: Any, turn: Turn) -> None:
        """Let links or optimizer, whose arrays are `state`, change the gradient of the weights `w`."""
        if self.strategy.before is not None:
            self.strategy.before.transform(self.kernels, g, state, w, turn.step + 1)
        elif self.strategy.worker_chain is not None:
            tuning = self.strategy.policy.tuning(turn.staleness if self.job.tune else 0)
            rates = self.strategy.rates
            rate = tuning.rate * (rates(turn.block // self.strategy.n_workers) if rates is not None else 1.0)
            self.strategy.worker_chain.delta(self.kernels, g, state, w, turn.step + 1, rate, tuning.memory)

    def _look(self, w: Array, epoch: int) -> tuple[float, ...]:
        """Score what is looked at once an epoch; return loss sum, score, rows, seconds, epoch, what rounding has left, and what several heads have."""
        started = time.perf_counter()
        found = self.score(w, self.job.looks_at)
        sums, rests = scoring.sums(found), scoring.rests(found)
        return *sums[:2], found.n_rows, time.perf_counter() - started, epoch, *rests[:2], *sums[2:], *rests[2:]

    def _salt(self, epoch: int) -> np.uint64:
        if epoch != self.salt_epoch:
            self.salt_epoch, self.salt = epoch, np.uint64(rng.key(self.job.seed, "dropout", epoch))
        return self.salt

    def _be_slow(self, seconds: float, report: Callable[[int, int], None] | None) -> None:
        """Sleep, serving the other roles of this rank meanwhile."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            time.sleep(min(left, 5e-4))
            if report is not None:
                report(0, 0)
