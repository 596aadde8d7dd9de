"""How stale a read in place is: by what the tables show when the compute begins, not by what they showed when it was allowed."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.ps.task import Turn
from mpidml.ps.worker import Worker
from mpidml.sim import virtual
from mpidml.sync.asp import Asp
from mpidml.sync.ssp import Ssp
from tests.scenarios import still_roles


class AsAllowed(Worker):
    """Counts what the tables showed when its read was allowed: the broken variant."""

    __slots__ = ()

    def _compute(self, turn, report):
        self.turn = Turn(*turn)
        return self.task.compute(self.turn, report)


def counted(policy, worker_class=Worker, n=4, n_clocks=60, latency=0.02):
    """Return for each compute (staleness that is counted, clocks that the slowest worker lacks in the table when it begins)."""
    shown, truth, told = np.zeros(1, np.int64), [], []
    roles = still_roles(policy, n, n_clocks)
    server, workers = roles[0], roles[1:]
    server.shown = shown
    for worker in workers:
        worker.__class__ = worker_class
        worker.seen = lambda: int(shown.min())

        def compute(turn, report, run=worker.task.compute):
            truth.append((turn.clock, turn.block % n, max(turn.clock - min(server.clocks.completed[1:]), 0)))
            return run(turn, report)

        worker.index = workers.index(worker)
        worker.n_workers = n
        worker.task.compute = compute
    seconds = np.random.default_rng(3).exponential(1.0, (n, n_clocks + 1))
    result = virtual.run(roles, lambda role, clock, now: seconds[role - 1, clock], latency)
    for _, role, name, value in result.records:
        if name == "clock":
            told.append((int(value[0]), role - 1, int(value[1])))
    assert sum(sum(w.tally.staleness.values()) for w in workers) == n * (n_clocks + 1)
    return sorted(told), sorted(truth)


@pytest.mark.parametrize("policy", [Ssp(1), Ssp(3), Asp()], ids=["ssp:1", "ssp:3", "asp"])
def test_staleness_in_place_is_that_of_the_values_at_the_beginning(policy):
    told, truth = counted(policy)
    assert told == truth and max(s for *_, s in told) >= 1


def test_what_was_allowed_earlier_is_counted_as_too_stale():
    told, truth = counted(Ssp(3), AsAllowed)
    assert sum(s for *_, s in told) > sum(s for *_, s in truth)
