"""Hold a run to room for all of its programs, each proven before it trains: also those of a schedule of one's own, and of the last clocks."""

import numpy as np
import pytest

from mpidml.core.errors import UserError, WaitTimeout
from mpidml.runtime import stage_programs
from mpidml.runtime.rank_memory import Stages, hosts_of
from mpidml.runtime.resume import resumed
from mpidml.runtime.stage_programs import Programs
from mpidml.runtime.staged_training import GridStepper
from mpidml.strategies.hybrid import Hybrid
from tests.held import held_nbytes
from tests.strategies.plain import Plain
from tests.strategies.test_identities import SMALL
from tests.training import driven, trained

pytestmark = [pytest.mark.mpi, pytest.mark.shows_from(3)]

JOB = SMALL.with_values({"strategy": "pipeline", "schedule": "", "wait_limit": 20.0, "optimizer": "sgd", "activation": "tanh", "deterministic": True}, "test")
MINE = """
from mpidml.core.action import Action
from mpidml.schedules.base import Schedule, pairs


class Mine(Schedule):
    def update_every(self, n_ranks):
        return 1

    def order(self, rank, n_ranks, n):
        every = [*(Action(rank, "F", i) for i in range(n)), *(Action(rank, "B", i) for i in range(n))]
        yield from {}
"""
EPOCH, LAST = 32, 6
"""Clocks of an epoch, and of the last program of a run that goes so far beyond one."""


def mine(folder, order="every"):
    """Write a schedule that changes weights under way; return its path."""
    path = folder / "mine.py"
    path.write_text(MINE.format(order))
    return str(path)


def at_the_first_weights(job):
    """Descend on one rank by gradients that are all those at the first weights."""
    plain = Plain(job)
    first = plain.net.init(job.seed)
    found = first.copy()
    for clock in range(job.steps):
        found -= job.lr * plain.gradient(clock, first)
    return found


def test_a_schedule_of_ones_own_has_room_for_all_that_it_keeps(comm, tmp_path):
    """All forwards of eight batches, then all backwards: each gradient is at the first weights, whose versions and activations all stay."""
    summary, values = trained(comm, JOB, schedule=mine(tmp_path))
    assert np.abs(values - at_the_first_weights(JOB)).max() < 1e-9
    assert summary["staleness_max"] == summary["staleness_bound"] == 7


def few(self, n, _with=Programs._with):
    """Make each program, and take for what it keeps that of three clocks."""
    _with(self, n)
    run = self.strategy.checked(min(n, 3))[1]
    return run.activations, run.versions, run.sent


def test_the_check_catches_room_for_the_first_programs_alone(comm, tmp_path, monkeypatch):
    monkeypatch.setattr(Programs, "_with", few)
    part = comm.Split(comm.rank, 0)  # on several ranks they would wait for each other
    if comm.rank == 0:
        assert np.abs(trained(part, JOB, schedule=mine(tmp_path))[1] - at_the_first_weights(JOB)).max() > 1e-3
    part.Free()


@pytest.mark.parametrize(("schedule", "lengths"), [("pipedream", {EPOCH, LAST}), ("two_bw:5", {12, EPOCH % 12, LAST}), ("two_bw:50", {4, 2})])
def test_what_is_kept_is_what_the_longest_program_of_the_run_keeps(comm, schedule, lengths):
    with driven(comm, JOB, schedule=schedule, steps=EPOCH + LAST) as run:
        programs = run.strategy.programs
        assert set(programs.made) == lengths
        assert programs.activations == [comm.size - k for k in range(comm.size)]
        for n in programs.made:
            kept = run.strategy.checked(n)[1]
            assert all(a >= b for a, b in zip(programs.activations + programs.versions, kept.activations + kept.versions, strict=True))
        assert [len(held.store.versions) for held in run.strategy.held.values()] == [programs.versions[comm.rank]]


LATE = """
from mpidml.core.action import Action
from mpidml.schedules.base import Schedule


class Late(Schedule):
    def order(self, rank, n_ranks, n):
        for word in ("F0 F1 F2 B0 F3 X0 B1 B2 B3", "F0 I0 F1 I1 X0 W0 F2 I2 W1 F3 I3 W2 W3")[rank].split():
            yield Action(rank, word[0], int(word[1:]))
"""


def late(comm, folder, **changes):
    """Return the first two ranks, none on others, and a job of one step that they do by it."""
    (folder / "late.py").write_text(LATE)
    job = JOB.with_values({"schedule": comm.bcast(str(folder / "late.py")), "microbatches": 4, "steps": 1, **changes}, "test")
    comm.Barrier()
    part = comm.Split(comm.rank < 2, comm.rank)
    return part if comm.rank < 2 else None, job


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("transport", ["auto", "mpi"])
def test_what_is_sent_has_room_where_gradients_of_weights_come_late(comm, tmp_path, transport):
    """Rank 0 goes forward for the fourth time before rank 1 is done with its first microbatch; both keep three at most."""
    (part, job), kept = late(comm, tmp_path, transport=transport), {}
    if part:
        with driven(part, job, kept) as run:
            strategy = run.strategy
            assert Stages(strategy, strategy.plan.stages, hosts_of(strategy.comm)).needs()[part.rank] == held_nbytes(strategy)
        assert np.abs(kept["values"] - at_the_first_weights(job)).max() < 1e-9


def trains(self):
    raise AssertionError("it trains before all is proven")


def test_a_program_that_cannot_be_is_refused_before_the_run_trains(comm, tmp_path, monkeypatch):
    """The last one, of six batches, comes short of a backward."""
    monkeypatch.setattr(GridStepper, "_step", trains)
    out = comm.bcast(str(tmp_path / "run"))
    with pytest.raises(UserError, match=f"0B{LAST - 1} is never done; correct the order"):
        trained(comm, JOB, write=True, out=out, steps=EPOCH + LAST, schedule=mine(tmp_path, f"every[: 2 * n - (n == {LAST})]"))
    assert not list(tmp_path.glob("run*"))


def test_the_check_catches_programs_that_are_proven_when_they_come(comm, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_programs.Spans, "every", lambda self, end: {self.next(0, end)})
    monkeypatch.setattr(GridStepper, "_step", trains)
    with pytest.raises(AssertionError, match="trains before"):
        trained(comm, JOB, steps=EPOCH + LAST, schedule=mine(tmp_path, f"every[: 2 * n - (n == {LAST})]"))


def test_a_run_that_goes_on_with_a_program_that_needs_more_is_refused(comm, tmp_path):
    """A program of five batches keeps all, others do one after the other; a run that begins has none of five, one that goes on after three has."""
    folder = comm.bcast(str(tmp_path / "run"))
    schedule = comm.bcast(mine(tmp_path, "every if n == 5 else pairs(rank, 0, n)"))
    comm.Barrier()
    if comm.size > 1:
        return  # it is the same on each rank
    trained(comm, JOB, schedule=schedule, steps=3, checkpoint_every=3, write=True, out=folder)
    with pytest.raises(UserError, match=r"mine.py: 5 clocks, with which this run goes on, keep more activations or weights .*; let it keep no more"):
        trained(comm, resumed(folder, {"steps": 8, "checkpoint_every": 8}))


def waves(comm, folder, sync, **changes):
    """Train replicas of one rank each that push the gradients of all their waves once all have gone forward."""
    return trained(comm, JOB, strategy="hybrid", grid=f"data={comm.size}", schedule=mine(folder), sync=sync, tune=False, deterministic=False, **changes)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("sync", ["ssp:7", "asp"])
def test_waves_of_a_schedule_of_ones_own_have_room_for_all_in_flight(comm, tmp_path, sync):
    summary, values = waves(comm, tmp_path, sync)
    assert np.isfinite(values).all() and summary["samples"] == 400
    assert sync == "asp" or np.abs(values - at_the_first_weights(JOB)).max() < 1e-9


@pytest.mark.mpi(min_size=2)
def test_waves_that_would_wait_for_their_own_are_refused_whichever_they_are(comm, tmp_path):
    """The first three could be."""
    with pytest.raises(UserError, match="a wave starts while 4 before it of its own replica are in flight; give --sync ssp:4 or more"):
        waves(comm, tmp_path, "ssp:3")


@pytest.mark.mpi(min_size=2)
def test_the_check_catches_waves_of_which_the_first_alone_are_looked_at(comm, tmp_path, monkeypatch):
    monkeypatch.setattr(Hybrid, "_check_waves", lambda self, program: None)
    with pytest.raises(WaitTimeout, match="waits for the start of wave 4"):
        waves(comm, tmp_path, "ssp:3", wait_limit=1.0)


def one_old(comm):
    """Tell whether under two_bw weights are one update old, but for the first clock of a program, whatever makes an update."""
    found = []
    for every in (16, 33, 50):
        summary, _ = trained(comm, JOB, schedule=f"two_bw:{every}")
        found.append(summary["staleness_histogram"] == {"0": 2, "1": 6} and summary["staleness_bound"] == 1)
    return all(found)


def test_weights_are_old_under_two_bw_also_where_many_microbatches_make_an_update(comm):
    assert one_old(comm)


def test_the_check_catches_a_pipeline_that_drains_after_each_update(comm, monkeypatch):
    monkeypatch.setattr(stage_programs, "LEAST_CLOCKS", 1)
    assert not one_old(comm)
