"""Hold the trace of a run to that of its programs on virtual clocks: on every rank the same actions in the same order, by kind, stage, microbatch and version."""

import pytest

from mpidml.core import plugins
from mpidml.core.job import Job
from mpidml.core.lowering import lower
from mpidml.core.replay import replay
from mpidml.core.trace import KINDS
from mpidml.core.turns import lower_by_turns
from mpidml.runtime import stage_programs, staged_step, staged_training
from mpidml.runtime.grid_updates import Updates
from mpidml.runtime.scoring import BLOCK
from mpidml.runtime.staged import Staged
from mpidml.sim.program import traces
from tests.changed import changed
from tests.strategies.test_identities import SMALL
from tests.strategies.test_turns import NAMES, layouts
from tests.training import driven

pytestmark = pytest.mark.shows_from(3)

FOLDER = "mpidml.schedules"
EVERY = [name for name in plugins.names(FOLDER) if plugins.make(FOLDER, name).trains]
SCHEDULES = [*EVERY, "interleaved:3", "looped_bfs:3", "pipedream:true", "two_bw:7"]
STEPS, MICROBATCHES, ROWS_SCORED = 8, 5, 400
SPAN = 3
"""Clocks of a program without a flush."""
JOB = SMALL.with_values({"strategy": "pipeline", "wait_limit": 20.0, "hidden": (24, 16, 12, 11), "steps": STEPS, "trace": True}, "test")


def events(columns, scored=False):
    """List what a trace tells of actions: of programs, whose events have a clock, or of rows that are scored."""
    each = zip(*(columns[name].tolist() for name in ("clock", "kind", "stage", "item", "version")), strict=True)
    return [(clock, KINDS[kind], stage, item, version) for clock, kind, stage, item, version in each if stage >= 0 and (clock < 0) == scored]


def words(event):
    clock, kind, stage, item, version = event
    return f"clock {clock}: {kind} of stage {stage}, microbatch {item}, version {version}"


def difference(comm, found, expected):
    """Name the first rank and place at which a run did another thing than virtual clocks; "" where there is none. The same on all ranks."""
    ends = [(-2, "end", -1, -1, -1)]
    every = enumerate(zip([*found, *ends * (len(expected) - len(found))], [*expected, *ends * (len(found) - len(expected))], strict=True))
    odd = next((f"rank {comm.rank}, action {i}: the run has {words(a)}; virtual clocks have {words(b)}" for i, (a, b) in every if a != b), "")
    return next(filter(None, comm.allgather(odd)), "")


def virtual(comm, make, clocks):
    """Return what virtual clocks tell of this rank: a program from each of `clocks` to the next, of `make(clocks)`."""
    found = []
    for first, end in zip(clocks, [*clocks[1:], STEPS], strict=True):
        program = make(end - first)
        found += events(traces(program, replay(program), clock=first)[comm.rank])
    return found


def compared(comm, monkeypatch, **how):
    """Train under a schedule; name what the run did otherwise than virtual clocks, whose programs are made here, of the schedule and numbers alone."""
    made = plugins.make(FOLDER, how.get("schedule", Job.schedule))
    every = made.update_every(comm.size)
    monkeypatch.setattr(stage_programs, "MOST_ITEMS", SPAN * every)
    monkeypatch.setattr(stage_programs, "LEAST_CLOCKS", 1)
    with driven(comm, JOB, **how, **({} if every else {"microbatches": MICROBATCHES})) as run:
        found = run.trace.columns()
    n, clocks = every or MICROBATCHES, list(range(0, STEPS, SPAN if every else 1))
    replicas = [int(word) for word in how.get("replicas", "").split(",") if word]

    def make(n_clocks):
        return lower_by_turns(made, replicas, n * n_clocks) if replicas else lower(made, comm.size, n * n_clocks)

    assert sorted({event[0] for event in events(found)}) == clocks
    return difference(comm, events(found), virtual(comm, make, clocks))


@pytest.mark.mpi
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_does_what_virtual_clocks_do(comm, monkeypatch, name):
    """Over eight batches: without a flush three go by one program, and nothing drains between them."""
    assert not compared(comm, monkeypatch, schedule=name)


@pytest.mark.mpi
@pytest.mark.parametrize("name", NAMES)
def test_ranks_that_take_turns_do_what_virtual_clocks_do(comm, monkeypatch, name):
    for replicas in layouts(comm):
        assert not compared(comm, monkeypatch, schedule=name, replicas=replicas), replicas


@pytest.mark.mpi
def test_rows_are_scored_by_the_schedule_inference(comm):
    with driven(comm, JOB) as run:
        found = events(run.trace.columns(), scored=True)
    program = lower(plugins.make(FOLDER, "inference"), comm.size, -(-ROWS_SCORED // BLOCK))
    expected = [(-1, *event[1:]) for event in events(traces(program, replay(program))[comm.rank])]
    assert found and not len(found) % len(expected)
    assert not difference(comm, found, expected * (len(found) // len(expected)))


@pytest.mark.mpi
@pytest.mark.parametrize("other", ["gpipe", "zero_bubble", "three_step"])
def test_the_trace_of_a_run_is_that_of_no_other_schedule(comm, other):
    with driven(comm, JOB, schedule=other, microbatches=9) as run:
        found = events(run.trace.columns())
    assert difference(comm, found, virtual(comm, lambda n: lower(plugins.make(FOLDER, "one_f_one_b"), comm.size, 9 * n), list(range(STEPS))))


def swapped(self, n_clocks, checked=Staged.checked):
    """Return the program with two actions of rank 0 exchanged that stand side by side, and need nothing of each other."""
    program, run = checked(self, n_clocks)
    first, a, b, *rest = program.lists[0]
    return program._replace(lists=((first, b, a, *rest), *program.lists[1:])), run


@pytest.mark.mpi
def test_two_actions_in_another_order_are_named(comm, monkeypatch):
    monkeypatch.setattr(Staged, "checked", swapped)
    told = compared(comm, monkeypatch, schedule="gpipe")
    a, b = ("forward", 2), ("forward", 1)
    if comm.size > 1:
        a, b = ("forward", 1), ("send", 0)
    did, due = (f"clock 0: {kind} of stage 0, microbatch {item}, version -1" for kind, item in (a, b))
    assert told == f"rank 0, action 1: the run has {did}; virtual clocks have {due}"


@pytest.mark.mpi
def test_a_wrong_microbatch_is_named(comm, monkeypatch):
    """Kept broken: the executor says of the second microbatch that it is the third."""
    wrong = changed(staged_step, [("item=action.item, version=version", "item=action.item + (action.item == 1 and action.op == 'B'), version=version")])
    monkeypatch.setattr(staged_training, "Executor", wrong.Executor)
    told = compared(comm, monkeypatch, schedule="naive")
    assert "the run has clock 0: backward of stage 0, microbatch 2, version -1; virtual clocks have clock 0: backward of stage 0, microbatch 1, version -1" in told


@pytest.mark.mpi
@pytest.mark.parametrize("schedule", ["two_bw", "pipedream:true"])
def test_a_version_that_is_off_by_one_is_named(comm, monkeypatch, schedule):
    """Kept broken: microbatches read other weights than they are told to. One stage of PipeDream has one version, and no other."""
    version = Updates.version
    monkeypatch.setattr(Updates, "version", lambda self, held, action: version(self, held, action._replace(version=action.version - 1)))
    told = compared(comm, monkeypatch, schedule=schedule)
    if comm.size == 1 and schedule != "two_bw":
        assert not told
    else:
        assert "rank 0, action 0: the run has clock 0: forward of stage 0, microbatch 0, version " in told and told.endswith("microbatch 0, version 0")
