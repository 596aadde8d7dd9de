"""Who waits for a sum in memory calls MPI meanwhile: another rank may be waiting for a message of this one, and come to the sum only then."""

from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.collectives.base import Sum
from mpidml.collectives.hierarchical import _HostsSum
from mpidml.collectives.shared import SharedSum, SmallSum, _Everyone
from mpidml.core.errors import WaitTimeout
from mpidml.core.segments import Counters


def met(make=_Everyone):
    """Meet a rank that comes once this one has called MPI three times; return whether they have met."""
    memory, calls = np.zeros((2, 8), np.int64), []

    def goes_on():
        calls.append(1)
        memory[1, 0] = len(calls) >= 3

    comm = SimpleNamespace(rank=0, fence=lambda: None, mpi=SimpleNamespace(Iprobe=goes_on))
    total = make(SimpleNamespace(counters=lambda: Counters(comm, [memoryview(line) for line in memory])))
    total.start()
    try:
        total.wait(0.5)
    except WaitTimeout:
        return False
    return True


class CallsNobody(_Everyone):
    """Broken: looks at memory alone."""

    def go_on(self):
        pass


def test_who_waits_in_memory_lets_messages_go_on():
    assert met()
    assert not met(CallsNobody)


@pytest.mark.parametrize("of", [SharedSum, SmallSum, _Everyone, _HostsSum])
def test_each_sum_in_memory_does(of):
    assert of.go_on is not Sum.go_on
