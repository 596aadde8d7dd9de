"""Costs are drawn by (seed, worker, step) alone, with the mean that was given, and read back as they were written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpidml.core import cost as cost_module
from mpidml.core.cost import MOST_BLOCKS, STEPS, WORKERS, CostModel
from mpidml.core.errors import UserError
from tests.changed import changed


def test_draws_are_a_function_of_seed_worker_and_step():
    cost = CostModel((1.0, 2.0, 5.0), jitter=0.5)
    forwards, backwards, more = cost.seconds(3, 8), cost.seconds(3, 8), cost.seconds(3, 1000)
    steps = list(range((MOST_BLOCKS + 2) * STEPS))
    drawn = [forwards.of(7, s) for s in steps]
    assert drawn == [backwards.of(7, s) for s in reversed(steps)][::-1] == [forwards.of(7, s) for s in steps] == [more.of(7, s) for s in steps]
    assert len({tuple(more.of(w, s) for s in range(20)) for w in (0, 7, 8, WORKERS + 7, 999)}) == 5
    assert len({tuple(drawn[lo : lo + STEPS]) for lo in range(0, len(drawn), STEPS)}) == MOST_BLOCKS + 2
    assert len(forwards.blocks[0]) == MOST_BLOCKS, "memory does not grow with the steps"


@pytest.mark.parametrize("cost", [CostModel((2.0,)), CostModel((2.0,), 1.0), CostModel((1.0, 3.0), 0.3)])
def test_the_mean_is_that_of_the_measured_seconds_and_jitter_spreads_them(cost):
    seconds = cost.seconds(0, 20)
    drawn = np.array([seconds.of(w, s) for w in range(20) for s in range(2 * STEPS)])
    assert cost.mean_seconds == 2.0
    assert drawn.mean() == pytest.approx(2.0, rel=0.06)
    if len(cost.compute) == 1:
        assert drawn.std() == pytest.approx(2.0 * cost.jitter, rel=0.1, abs=1e-12)


def test_a_model_reads_back_as_it_was_written():
    cost = CostModel((0.1, 0.25), 0.5, 1e-5, 1e9, 1e-3, 1e-6, 16, "fitted", (1.0, 3.0))
    written = json.loads(json.dumps(cost.mapping()))
    assert CostModel.from_mapping(written, "cost.json") == cost
    del written["slowness"]  # as it was written before there was one
    assert CostModel.from_mapping(written, "cost.json") == CostModel((0.1, 0.25), 0.5, 1e-5, 1e9, 1e-3, 1e-6, 16, "fitted")


def check_slowness(module):
    """Each worker has the draws of one that is alike, times the slowness of the measured worker that stands for it."""
    alike, slow = (module.CostModel((1.0, 2.0, 5.0), 0.5, slowness=slowness).seconds(3, 200) for slowness in ((), (1.0, 3.0, 0.5)))
    for worker in (0, 1, 2, 3, WORKERS - 1, WORKERS, WORKERS + 1, 199):
        assert slow.of(worker, STEPS + 1) == pytest.approx(alike.of(worker, STEPS + 1) * (1.0, 3.0, 0.5)[worker % 3])


def test_workers_beyond_the_measured_ones_are_as_slow_as_these_in_turn():
    check_slowness(cost_module)
    assert CostModel((2.0,), slowness=(1.0, 3.0)).mean_seconds == 4.0
    for old, new in (("range(group * WORKERS, (group + 1) * WORKERS)", "range(WORKERS)"), ("if cost.slowness:", "if False:")):
        with pytest.raises(AssertionError):
            check_slowness(changed(cost_module, [(old, new)]))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"compute": []}, "cost model: compute is not a positive number"),
        ({"compute": [0.0]}, "cost model: compute is not a positive number"),
        ({"compute": [1.0], "latency": -1}, "cost model: latency -1.0 is not a number from 0 up"),
        ({"compute": [1.0], "jitter": 2}, "cost model: jitter 2.0 is not a share"),
        ({"compute": "fast"}, "cost.json: a cost model holds numbers"),
        ({"compute": "123"}, "cost.json: a cost model holds numbers, and a list of them for compute, not '123'"),
        ({"compute": [1.0], "apply": "x"}, "cost.json: a cost model holds numbers, and a list of them for compute; apply is 'x'"),
        ({"compute": [1.0], "samples": -5}, "cost model: samples -5 is below 0"),
        ({"compute": [1.0], "slowness": [1.0, 0.0]}, "cost model: slowness is not a list of numbers above 0"),
        ({"compute": [1.0], "slowness": "13"}, "cost.json: a cost model holds numbers, and a list of them for slowness, not '13'"),
        ({}, "cost.json: there is no compute in this cost model"),
        ({"latncy": 1}, "cost.json: there is no 'latncy' in a cost model"),
    ],
)
def test_what_is_no_model_is_one_line(values, says):
    with pytest.raises(UserError) as error:
        CostModel.from_mapping(values, "cost.json")
    assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_a_model_without_its_checks_is_seen():
    broken = changed(cost_module, [('if "compute" not in values', "if False"), ("if self.samples < 0", "if False"), ("values.get(name, ()), list | tuple", "1, int")])
    assert broken.CostModel.from_mapping({}, "cost.json").compute == (0.01,), "a default that nobody has measured"
    assert broken.CostModel.from_mapping({"compute": "123", "samples": -5}, "cost.json").compute == (1.0, 2.0, 3.0)
