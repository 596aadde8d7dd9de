"""Give tests of cut layers a line of all ranks."""

import pytest


@pytest.fixture
def line(comm):
    from mpidml.collectives.base import make_collective
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.line import TensorLine

    ranks = CountedComm(comm)
    own_line = TensorLine(make_collective("ring", ranks), [*(1.0, 0.0, 2.5, 0.7, 3.0)[: ranks.size]])
    yield own_line
    own_line.free()
    ranks.free()
