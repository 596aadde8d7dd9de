"""Step a network that is cut into stages: what a clock's program is given, and how rows are scored as they flow through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

from mpidml.collectives.base import Sum
from mpidml.core.role import Array
from mpidml.nn.on_device import OnDevice
from mpidml.nn.step import Step
from mpidml.runtime import scoring
from mpidml.runtime.grid_updates import Updates
from mpidml.runtime.held import Held
from mpidml.runtime.scoring import BLOCK
from mpidml.runtime.staged_step import Executor, outputs
from mpidml.runtime.stepping import Stepper, clock_now
from mpidml.runtime.training import Training


class StageTraining(Training):
    """This rank's part in a replica: the rows of its microbatches, and the scores of the replica's share of some rows, which the last stage finds."""

    def _feed(self) -> Any:
        """Return what reads rows ahead, on the ranks that take them in."""
        return super()._feed() if 0 in self.strategy.held else None

    def score(self, w: Array, of: str) -> scoring.Scores:
        """Score the replica's share (Collective on its ranks); ranks without the last stage find no rows. `w` is not read: each stage has its own."""
        flow = Flow(self.strategy, self.net)
        data = self.strategy.data
        x, y = data.rows(of)
        shares = [scoring.share(len(x), worker, self.strategy.n_workers) for worker in range(self.strategy.n_workers)]
        lo, hi = shares[self.worker]
        if self.strategy.cut_layers:
            flow.counts = list(zip_longest(*(_sizes(hi - lo, BLOCK) for lo, hi in shares), fillvalue=0))
        found = scoring.score(flow, w, x[lo:hi], y[lo:hi], data.targets, heads=data.heads)  # type: ignore[arg-type]
        if lo == hi:  # others may need this rank's parts
            flow.scored(w, x[lo:hi], y[lo:hi], BLOCK)
        nothing = scoring.Scores((), (), 0)
        return found if self.strategy.tells else nothing._replace(heads=(nothing,) * len(data.heads))


class Flow:
    """To `scoring.score` a network whose rows flow through the stages of a replica; where the last stage is not, nothing comes out.

    `counts`: of each block the rows of each rank, where parts of layers are for the rows of all: who has no rows any more takes part.
    """

    counts: Sequence[tuple[int, ...]] = ()

    def __init__(self, strategy: Any, net: Any) -> None:
        self.strategy, self.net = strategy, net
        self.loss, self.dtype, self.n_outputs = net.loss, net.dtype, net.n_outputs
        self.heads = net.heads

    def scored(self, w: Array, x: Any, y: Array, block: int, out: Array | None = None) -> list[list[tuple[float, int]]]:
        """Return what `Network.scored` does."""
        sizes = _sizes(len(x), block)
        sizes += [0] * (len(self.counts) - len(sizes))
        for held in self.strategy.held.values():
            held.counts = self.counts

        def fill(number: int, rows: Array) -> None:
            rows[...] = x[number * block : number * block + len(rows)]

        found, all_held = list[list[tuple[float, int]]](), list(self.strategy.held.values())
        blocks: Iterable[tuple[int, list[Array]]] = outputs(all_held, sizes, fill, self.strategy.trace)
        if all_held[-1].stage.is_last and all_held[-1].n_turns > 1:  # each has the outputs of its own turns
            every = self.strategy.replicas.allgather([(number, [each.copy() for each in outs]) for number, outs in blocks])
            blocks = sorted(chain.from_iterable(every), key=lambda block: block[0])
        for number, outs in blocks:
            if not sizes[number]:
                continue
            at = slice(number * block, number * block + sizes[number])
            if out is not None:
                for head, each in zip(self.heads, outs, strict=True):
                    head.cut(out)[at] = each
            found.append([head.judge(self.net.backend, each, head.answers(y[at])) for head, each in zip(self.heads, outs, strict=True)])
        return found


class GridStepper(Stepper):
    """Run the steps of one rank of a grid: a program a clock, or one for many clocks where nothing waits for the end of each."""

    make_updates: type[Any] = Updates

    def __init__(self, strategy: Any, task: StageTraining, *rest: Any) -> None:
        super().__init__(strategy, task, (), *rest)
        self.updates: Any = self.make_updates(strategy)
        self.executor = Executor(strategy.held, strategy.waiting, self.updates, strategy.trace, self._lost, strategy.slowness)
        self.read: list[int] = []
        self.losses: list[float] = []
        self.measured: tuple[float, ...] = ()
        self.score_seconds = self.run_seconds = 0.0
        self.left_at = -1.0

    def run(self) -> None:
        """Step, and score in the end; what was waited for then is no compute."""
        self.strategy.programs.go_on(self.clock, self.until)
        began, self.left_at = clock_now(), -1.0
        super().run()
        if self.left_at >= 0:
            self.compute_seconds -= self.strategy.waiting.away_seconds - self.left_at
        self.wait_seconds = self.strategy.waiting.seconds
        self.run_seconds += clock_now() - began

    def _open(self, first: int, n: int) -> None:
        """Do what a program of `n` clocks needs before it."""

    def _staleness(self, clock: int) -> int:
        """Return how many updates old the weights were that a clock of the program read."""
        return self.read[clock - self.clock]

    def _weight(self, clock: int) -> float:
        """Return by what the gradient of a clock is multiplied, besides."""
        return 1.0

    def _step(self) -> None:
        strategy, task, first = self.strategy, self.task, self.clock
        n = strategy.programs.spans.next(first, self.until)
        began = clock_now()
        epoch = first // strategy.sampler.clocks_per_epoch
        self._open(first, n)
        self.measured = task.not_scored
        if epoch > task.scored_epoch and not strategy.job.patience:
            away, looked_at = strategy.waiting.away_seconds, clock_now()
            self.measured, task.scored_epoch = task._look(strategy.weights, epoch), epoch
            self.score_seconds += clock_now() - looked_at - (strategy.waiting.away_seconds - away)
        shares = [strategy.sampler.indices(clock, task.worker) for clock in range(first, first + n)]
        parts = self._parts(first, n, task.worker)
        if strategy.cut_layers:
            counts = list(zip(*([part.stop - part.start for part in self._parts(first, n, worker)] for worker in range(strategy.n_workers)), strict=True))
            for held in strategy.held.values():
                held.counts = counts

        def fill(held: Held, item: int, step: Step | OnDevice, again: bool = False) -> None:
            i, part = item // strategy.n_items, parts[item]
            rows = shares[i][part]
            if held.stage.is_first and not again:  # the inputs of what is in flight stay
                if task.feed is None:
                    task.data.x.take(rows, 0, step.x, "clip")
                else:  # what it gives holds until it is asked for more, and forwards come in order
                    step.x[...] = task.feed.block((first + i) * strategy.n_workers + task.worker, shares[i])[part]
            if held.stage.random:
                step.ids[:] = rows
                step.salt[0] = task._salt(epoch)
            if held.stage.is_last:
                step.load(task.data.y, rows)

        program, self.read = strategy.programs.made[n]
        sizes = [part.stop - part.start for part in parts]
        self.updates.clock, self.losses, self.shares = first, [], shares
        scales = [self._weight(clock) / strategy.sampler.batch_size(clock) for clock in range(first, first + n)]
        self.step_began = began
        executor = self.executor
        executor.run(program, strategy.place, sizes, fill, lambda item: scales[item // strategy.n_items], first)
        if self.losses:  # the other turns have theirs
            self._told(0, sum(strategy.waiting.gather(strategy.replicas, sum(self.losses), "the loss of a batch")))
        self.compute_seconds, self.serve_seconds = sum(executor.compute_seconds.values()) + self.score_seconds, executor.update_seconds
        self.wait_seconds = strategy.waiting.seconds
        self.clock += n
        self.part.step = self.clock

    def _parts(self, first: int, n: int, worker: int) -> list[slice]:
        """Return the microbatches of a worker's shares in `n` clocks from `first` on."""
        strategy = self.strategy
        sizes = (len(strategy.sampler.indices(clock, worker)) for clock in range(first, first + n))
        return [part for size in sizes for part in _parts(size, strategy.n_items)]

    def _lost(self, item: int, loss: float) -> None:
        """Tell of a clock once all its microbatches are back: on the rank of the last stage, and on those that take turns, later."""
        self.losses.append(loss)
        if len(self.losses) == self.strategy.n_items:
            self._told(item // self.strategy.n_items, sum(self.losses))

    def _told(self, i: int, loss: float) -> None:
        """Tell of the clock number i of the program, whose losses add up to `loss`."""
        strategy, task = self.strategy, self.task
        self.losses = []
        if not strategy.tells:  # another part of the last stage does
            return
        now = clock_now()
        seconds = now - self.step_began
        staleness = self._staleness(self.clock + i)
        row = (self.clock + i, staleness, True, seconds, loss * task.loss_factor, len(self.shares[i]), *self.measured)
        self._tell(now, row)
        self.part.tally.staleness[staleness] += 1
        self.measured, self.step_began = task.not_scored, now

    def _tell(self, now: float, row: tuple[Any, ...]) -> None:
        """Report a clock."""
        self.record(self.strategy.worker_role, now, "clock", row)

    def wait(self, total: Sum) -> None:
        """Wait for a sum over all ranks."""
        self.strategy.waiting.seconds += total.wait(self.limit)[0]

    def _left(self) -> None:
        """Tell that this rank's worker computes no more, where it tells of one."""
        self.left_at = self.strategy.waiting.away_seconds
        if self.strategy.tells:
            super()._left()


def _sizes(n: int, block: int) -> list[int]:
    """Return the rows of each block of n rows."""
    return [min(block, n - lo) for lo in range(0, n, block)]


def _parts(n: int, n_parts: int) -> Iterator[slice]:
    """Cut n rows into parts that differ by one row at most."""
    for i in range(n_parts):
        yield slice(n * i // n_parts, n * (i + 1) // n_parts)
