"""Events come in the order of their times and, at one time, in that of their rule, however few of them lie on the heap."""

import random

import pytest

from mpidml.core.role import PULL, After, Compute, Message, Passive, Record, Send, Stop
from mpidml.sim import virtual

N_ROLES, N_STEPS = 300, 12


class Busy(Passive):
    """Computes again and again, some of it for no time or for as long as others, sets timers, and writes to its neighbour."""

    def __init__(self, me):
        self.me, self.step = me, 0

    def start(self, now):
        return self._go()

    def done(self, now, result):
        said = (Record("done", (self.step,)), Send((self.me + 1) % N_ROLES, Message(PULL, self.step)))
        self.step += 1
        return [*said, *self._go()] if self.step < N_STEPS else [*said, Stop()]

    def handle(self, now, source, message):
        return (Record("message", (source, message.clock)),)

    def timer(self, now):
        return (Record("timer", ()),)

    def _go(self):
        return (After(0.5), Compute(lambda turn, report: None, None, self.step))


def events(latency, reports):
    draws = random.Random(5)
    seconds = [[draws.choice((0.0, 0.25, 0.5, 1.0, draws.expovariate(1))) for _ in range(N_STEPS)] for _ in range(N_ROLES)]
    return virtual.run([Busy(me) for me in range(N_ROLES)], lambda role, step, now: seconds[role][step], latency, reports=reports).records


@pytest.mark.parametrize("latency", [0.0, 0.25, lambda source, target, number: 0.25 * (source % 3)], ids=["none", "constant", "by pair"])
def test_what_waits_beyond_a_horizon_comes_in_the_order_of_one_heap_of_all(latency):
    found = events(latency, reports=False)
    assert found == events(latency, reports=True), "what reports is all on one heap"
    assert [at for at, *_ in found] == sorted(at for at, *_ in found) and len(found) > 2 * N_ROLES * N_STEPS


def leaves_those_of_the_same_time(far, heap):
    far.sort()
    n = len(far) // 3 + 1
    heap.extend(far[:n])
    del far[:n]
    return heap[-1][0]


def takes_what_comes(far, heap):
    n = len(far) // 3 + 1
    heap.extend(sorted(far[:n]))
    del far[:n]
    return heap[-1][0]


@pytest.mark.parametrize("broken", [leaves_those_of_the_same_time, takes_what_comes])
def test_the_check_catches_a_horizon_that_is_not_one(broken, monkeypatch):
    right = events(0.0, reports=True)
    monkeypatch.setattr(virtual, "_come_near", broken)
    assert events(0.0, reports=False) != right
