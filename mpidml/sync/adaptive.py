"""Adaptive synchronous parallel: between two synchronisations a fast worker executes more often, the more so the busier its slowest peer's CPU.

This is a reconstruction of the strategy of Zhang, Tu, Wang and others (IEEE Access 6, 2018), whose text gives its ingredients, a threshold that
follows the CPU occupancy of each node and a minimum number of executions for the slowest, but not its formulas. Its authors call it ASP, too.

worker 0 (others use its CPU)   |==========================|        epoch: until everyone has executed `minimum` times and none computes;
worker 1                        |=====|=====|=====|=====|           then all see all updates, and quotas are set anew
quota of worker w               round(minimum * slowest / own expected seconds), from `minimum` to `cap`
expected seconds                last ones * (1 - load then) / (1 - load now): the load tells at once what a slower clock would tell later

Inside an epoch a worker starts another execution while it has not used its quota and somebody still owes his minimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpidml.core.clocks import Clocks
from mpidml.sync.base import Start, SyncPolicy, whole

SMOOTHING = 0.5
LOAD_STEP = 0.1
MOST_LOAD = 0.95
LEAST_WEIGHT = 0.5
"""Of an even share of an epoch's weight: what a gradient weighs at least where the epoch's has been given already, since a quota has risen within it.

Below 1, so that with each epoch some of what was given beyond it is taken back."""
AHEAD = 3
"""Executions granted at once: the one that is computed, the next, whose read flies meanwhile, and one whose grant has come when that begins.

Beside a hog each answer of a rank takes as long as a fast worker's execution, and grant and read are two."""


class Adaptive(SyncPolicy):
    """Give each worker a quota of executions by its speed and by the load that other processes put on its CPU.

    `minimum`: executions of the slowest in an epoch; `cap`: of anyone. `fair`: weigh gradients so that each worker's samples count alike
    (it matters where each has samples of its own; with `--assign dynamic` all samples count alike anyway). `timing` false: loads alone.
    The staleness of a read is counted in executions within the epoch; at its begin it is 0.
    """

    gate_at = "start"
    watches_seconds = 0.1

    def __init__(self, minimum: int = 1, cap: int = 8, fair: bool = True, timing: bool = True) -> None:
        self.minimum = whole("minimum of executions", minimum, 1, "adaptive:1:8")
        self.cap = whole("cap of executions", cap, minimum, "adaptive:1:8")
        for name, value in (("fair", fair), ("timing", timing)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value}; give {name}=true or {name}=false")
        self.fair, self.timing = fair, timing
        self.bound = self.cap - 1

    def oldest_readable(self, clock: int, worker: int = -1, view: Clocks | None = None) -> int:
        """Return `clock`: a clock of the tables is an epoch, and a new one begins with all updates of the last."""
        return clock

    def gate(self, n_workers: int, fixed_shares: bool) -> Epochs:
        """Return the gate that counts executions."""
        return Epochs(n_workers, self.minimum, self.cap, self.fair and fixed_shares, self.timing)


class Epochs:
    """Let workers execute up to their quotas; a barrier opens when all have executed `minimum` times and none computes.

    A worker is granted AHEAD executions at most, so that it need wait neither for a grant nor for a read. With `fair` each worker's gradients of all
    epochs so far weigh `minimum` an epoch together: what a cut quota left over is made up for in the next one, what a risen one gave beyond is taken back.
    """

    def __init__(self, n_workers: int, minimum: int, cap: int, fair: bool, timing: bool) -> None:
        self.minimum, self.cap, self.fair, self.timing = minimum, cap, fair, timing
        self.active, self.silent = set(range(n_workers)), set(range(n_workers))  # `silent`: has not asked yet
        self.look_at: dict[int, None] = {}  # those who may be granted something
        self.owing = set(range(n_workers))  # those who have not executed `minimum` times yet
        self.executed, self.granted, self.turns = [0] * n_workers, [0] * n_workers, [0] * n_workers
        self.n_granted = 0
        self.at_count, self.fewest = {0: n_workers}, 0  # how many have executed so often; the least of these
        self.quota = [minimum] * n_workers
        self.began, self.free_seconds = [0.0] * n_workers, [0.0] * n_workers  # seconds of an execution if nobody else used the CPU
        self.load, self.load_used = [0.0] * n_workers, [0.0] * n_workers
        self.load_since, self.load_seconds = [0.0] * n_workers, [0.0] * n_workers  # the load of the running execution, summed up over its time
        self.credit = [0.0] * n_workers  # weight that is still to be given; below 0: has been given too early
        self.epoch, self.opener = -1, -1
        self.notes: list[tuple[float, ...]] = []

    def ready(self, now: float, worker: int, clock: int, load: float) -> None:
        """Count an execution, its seconds and the load under which it ran."""
        self._sum_load(now, worker)
        self.silent.discard(worker)
        if self.granted[worker]:
            self.granted[worker] -= 1
            self.n_granted -= 1
            self.executed[worker] += 1
            self._count(self.executed[worker] - 1, self.executed[worker])
            if self.executed[worker] >= self.minimum:
                self.owing.discard(worker)
            if self.timing:
                free, old = now - self.began[worker] - self.load_seconds[worker], self.free_seconds[worker]
                self.free_seconds[worker] = free if not old else (1 - SMOOTHING) * old + SMOOTHING * free
            self._begins(now, worker)  # the one granted ahead, if there is one
        self.look_at[worker] = None
        self.loaded(now, worker, load)
        self.opener = worker

    def loaded(self, now: float, worker: int, load: float) -> None:
        """Take a worker's load; set the quotas anew within the epoch if it has changed by more than LOAD_STEP."""
        self._sum_load(now, worker)
        self.load[worker] = min(max(load, 0.0), MOST_LOAD)
        if abs(self.load[worker] - self.load_used[worker]) > LOAD_STEP:
            self._set_quotas()

    def leave(self, worker: int) -> None:
        """Count without this worker from now on; others see what it computes still, since the tables wait for it."""
        was_active = worker in self.active
        for each in (self.active, self.owing, self.silent):
            each.discard(worker)
        if was_active:
            self._count(self.executed[worker], -1)
            self.n_granted -= self.granted[worker]
        self.look_at.pop(worker, None)

    def starts(self, now: float) -> Iterable[Start]:
        """Open the barrier if it is due; name those that may execute."""
        opened = not self.silent and not self.n_granted and (self.epoch < 0 or not self.owing)
        if opened:
            self.epoch += 1
            for worker in self.active:
                self.executed[worker] = 0
                self.credit[worker] += self.minimum
            self.owing, self.at_count, self.fewest = set(self.active), {0: len(self.active)}, 0
            self._set_quotas()
            self.look_at = dict.fromkeys(self.active)
        if self.epoch < 0 or not self.owing:
            return
        look_at, self.look_at = self.look_at, {}
        for worker in look_at:
            while self.granted[worker] < AHEAD and (index := self.executed[worker] + self.granted[worker]) < self.quota[worker]:
                if not self.granted[worker]:
                    self._begins(now, worker)
                self.granted[worker] += 1
                self.n_granted += 1
                weight = 1.0
                if self.fair:
                    quota = self.quota[worker]
                    weight = max(self.credit[worker] / (quota - index), LEAST_WEIGHT * self.minimum / quota)
                    self.credit[worker] -= weight
                yield Start(worker, self.epoch, self.turns[worker], index - self.fewest, weight, True, self.opener if opened and not index else -1)
                self.turns[worker] += 1

    def waiting(self) -> str:
        """Say who owes executions, or who still computes."""
        late = sorted(self.owing or (w for w in self.active if self.granted[w]))
        return f"epoch {self.epoch} waits for worker(s) {', '.join(map(str, late[:5]))}"

    def learnt(self) -> dict[str, list[float]]:
        """Return each worker's seconds, from which the first quotas follow, and the weight that it is still to be given."""
        return {"free_seconds": list(self.free_seconds), "credit": list(self.credit)}

    def know(self, learnt: Mapping[str, list[float]]) -> None:
        """Begin with the seconds and the weights of the gate before."""
        self.free_seconds = list(learnt.get("free_seconds", self.free_seconds))
        self.credit = list(learnt.get("credit", self.credit))

    def _begins(self, now: float, worker: int) -> None:
        self.began[worker], self.load_seconds[worker], self.load_since[worker] = now, 0.0, now

    def _count(self, old: int, new: int) -> None:
        """Move a worker from one count of executions to another (-1: to none); O(1), since the least only grows within an epoch."""
        self.at_count[old] -= 1
        if new >= 0:
            self.at_count[new] = self.at_count.get(new, 0) + 1
        while self.active and not self.at_count.get(self.fewest):
            self.fewest += 1

    def _sum_load(self, now: float, worker: int) -> None:
        self.load_seconds[worker] += self.load[worker] * (now - self.load_since[worker])
        self.load_since[worker] = now

    def _set_quotas(self) -> None:
        """Set every quota by the expected seconds of an execution."""
        self.load_used = list(self.load)
        expected = {w: (self.free_seconds[w] if self.timing else 1.0) / (1 - self.load[w]) for w in sorted(self.active)}
        self.look_at |= dict.fromkeys(self.active)  # who has used his quota may have a larger one now
        if min(expected.values(), default=0.0) <= 0:
            return  # nobody is left, or somebody has not executed yet
        slowest = max(expected.values())
        for worker, seconds in expected.items():
            quota = min(max(round(self.minimum * slowest / seconds), self.minimum), self.cap)
            if quota != self.quota[worker]:
                self.quota[worker] = quota
                self.notes.append((worker, quota, self.load[worker]))
