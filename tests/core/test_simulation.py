"""A cost that is given by a flag wins over that of a file, be it the default of the flag; what is not given changes nothing."""

from __future__ import annotations

import pytest

from mpidml.core import simulation
from mpidml.core.cost import CostModel
from tests.changed import changed

KEPT = CostModel((0.3, 0.1), 0.9, 0.02, 1e9, 0.005, 1e-6, 16, "fitted")
DEFAULTS = {"latency": 5e-5, "bandwidth": 0.0, "apply": 0.0, "message": 0.0, "jitter": 0.0}
OF = {"bandwidth": "bytes_per_second"}
broken = changed(simulation, [("if name in given}", "if getattr(self, name) != getattr(Simulation(), name)}")])


def over(values, of=simulation):
    return of.Simulation().with_values(values, "test").over(KEPT, values)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_that_is_given_counts_as_given(name):
    field = OF.get(name, name)
    found = over({name: str(DEFAULTS[name])})
    assert getattr(found, field) == DEFAULTS[name]
    assert {k: v for k, v in found.mapping().items() if k != field} == {k: v for k, v in KEPT.mapping().items() if k != field}
    assert over({name: str(DEFAULTS[name])}, broken) == KEPT, "the broken variant: what equals a default is not seen"


def test_what_is_not_given_stays_as_it_was_measured():
    assert over({"workers": 9, "clocks": 3}) == KEPT
    assert over({"compute": 0.5}).compute == (0.5,)
