"""Hold stages to the bits and the slots of their schedules: for any number of microbatches up to nine, also fewer than there are stages."""

import numpy as np
import pytest

from mpidml.core.job import Job
from mpidml.runtime import staged, staged_training
from mpidml.runtime.held import Held
from tests.changed import changed
from tests.contracts.test_schedules import PEAKS
from tests.strategies.test_pipeline import FLUSHED, JOB, SCHEDULES, alone, run
from tests.training import driven

pytestmark = pytest.mark.shows_from(3)

DEEP = JOB.with_values({"hidden": (24, 16, 12, 11), "steps": 3}, "test")
MOST = 9
"""Microbatches up to which the bits are looked at."""


@pytest.fixture(scope="module")
def of_one_rank():
    """Give the parameters that one rank finds with so many microbatches, each found once."""
    found = {}

    def of(comm, microbatches):
        if microbatches not in found:
            found[microbatches] = alone(comm, DEEP, microbatches=microbatches)[1]
        return found[microbatches]

    return of


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["gpipe", "one_f_one_b"])
@pytest.mark.parametrize("microbatches", range(1, MOST + 1))
def test_as_many_microbatches_have_the_same_bits_on_any_number_of_stages(comm, of_one_rank, name, microbatches):
    """On five ranks on four of them, too."""
    expected = of_one_rank(comm, microbatches)
    for n in (comm.size, 4) if comm.size > 4 else (comm.size,):
        part = comm.Split(0 if comm.rank < n else 1, comm.rank)
        values = run(part, DEEP, schedule=name, microbatches=microbatches)[1] if comm.rank < n else expected
        part.Free()
        assert np.array_equal(values, expected), n


@pytest.mark.mpi
@pytest.mark.parametrize("microbatches", [3, MOST])
def test_the_check_of_bits_catches_a_sum_in_another_order(comm, of_one_rank, monkeypatch, microbatches):
    """Kept broken: the last microbatch of a batch comes first. What is left tells nothing but the bits."""
    expected, cut = of_one_rank(comm, microbatches), staged_training._parts
    monkeypatch.setattr(staged_training, "_parts", lambda n, n_parts: reversed(list(cut(n, n_parts))))
    values = run(comm, DEEP, microbatches=microbatches)[1]
    assert not np.array_equal(values, expected) and np.abs(values - expected).max() < 1e-9


ONE_LAYER = {"model": "softmax", "hidden": Job.hidden}
ODD = [
    {**ONE_LAYER, "batch": 63}, {**ONE_LAYER, "batch": 533, "microbatches": 9}, {"batch": 533, "microbatches": 7},
    {"batch": 533, "microbatches": 4, "dropout": 0.3, "recompute": True, "schedule": "gpipe"},
]  # fmt: skip
"""A net of one layer, whose other stages are empty; 1600 rows whose last batch has 25 rows, or one, fewer than microbatches."""


@pytest.mark.mpi
@pytest.mark.parametrize("how", ODD, ids=str)
def test_one_layer_and_a_short_last_batch_have_the_bits_of_one_rank(comm, how):
    how = {"epochs": 1, "steps": 0, **how}
    (one, expected), (found, values) = alone(comm, DEEP, **how), run(comm, DEEP, **how)
    assert np.array_equal(values, expected) and found["samples"] == one["samples"] == 1600
    assert (found["test_loss"], found["test_accuracy"]) == (one["test_loss"], one["test_accuracy"])


LABELS = {
    "labels come in another order": ("step.load(task.data.y, rows)", "step.load(task.data.y, rows[::-1])"),
    "labels are those of the microbatch before": ("step.load(task.data.y, rows)", "step.load(task.data.y, shares[i][parts[item - 1]][: len(rows)].repeat(2)[: len(rows)])"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("broken", LABELS)
def test_the_check_catches_that(comm, monkeypatch, broken):
    how = {"epochs": 1, "steps": 0, **ODD[0]}
    expected, wrong = alone(comm, DEEP, **how)[1], changed(staged_training, [LABELS[broken]])
    monkeypatch.setattr(staged, "StageTraining", wrong.StageTraining)
    monkeypatch.setattr(staged.Staged, "stepper", wrong.GridStepper)
    assert np.abs(run(comm, DEEP, **how)[1] - expected).max() > 1e-3


def slots(comm, name, microbatches):
    """Return of how many microbatches this rank has activations at once, and what the schedule's formula says."""
    with driven(comm, DEEP, schedule=name, microbatches=microbatches) as run:
        (found,) = [len(held.memory) for held in run.strategy.held.values()]
    return found, PEAKS[name](comm.rank, comm.size, microbatches)


@pytest.mark.mpi
@pytest.mark.parametrize("microbatches", [1, 2, 5, MOST])
@pytest.mark.parametrize("name", [name for name in FLUSHED if SCHEDULES[name].n_chunks == 1 and name in PEAKS])
def test_a_stage_has_activations_of_as_many_microbatches_as_its_schedule_promises(comm, name, microbatches):
    found, promised = slots(comm, name, microbatches)
    assert found == promised


@pytest.mark.mpi
def test_the_check_of_slots_catches_a_stage_that_keeps_all(comm, monkeypatch):
    init = Held.__init__

    def keeps_all(self, stage, number, stores, gradient, every, n_slots, *rest):
        init(self, stage, number, stores, gradient, every, MOST, *rest)

    monkeypatch.setattr(Held, "__init__", keeps_all)
    found, promised = slots(comm, "one_f_one_b", MOST)
    assert found == MOST > promised


@pytest.mark.mpi(min_size=2)
def test_with_a_slot_less_a_microbatch_would_go_back_through_another_s_activations(comm, of_one_rank, monkeypatch):
    expected, init = of_one_rank(comm, MOST), Held.__init__

    def keeps_less(self, stage, number, stores, gradient, every, n_slots, *rest):
        init(self, stage, number, stores, gradient, every, max(1, n_slots - 1), *rest)

    monkeypatch.setattr(Held, "__init__", keeps_less)
    assert not np.abs(run(comm, DEEP, microbatches=MOST)[1] - expected).max() < 1e-6
