"""Hold stages on unlike numbers of ranks, whose replicas take turns, to one rank: weights, scores, bytes, saved runs, and what is refused."""

from itertools import accumulate

import numpy as np
import pytest

from mpidml.collectives.base import Sum
from mpidml.core import checking, turns
from mpidml.core.errors import UserError
from mpidml.runtime import staged, staged_training
from mpidml.runtime.channel import Channel
from mpidml.runtime.grid_updates import Updates
from mpidml.runtime.held import Held
from mpidml.runtime.monitor import N_COLUMNS
from mpidml.runtime.resume import resumed
from tests.changed import changed
from tests.strategies.test_identities import NET, SMALL, serial
from tests.strategies.test_pipeline import FLUSHED, SCHEDULES, whole_slots
from tests.training import trained

pytestmark = pytest.mark.shows_from(3)

JOB = SMALL.with_values({"strategy": "pipeline", "wait_limit": 20.0, "microbatches": 5, "hidden": (24, 16, 12)}, "test")
LAYOUTS = {1: ["1"], 2: ["2", "1,1"], 3: ["2,1", "1,2", "3"], 5: ["2,2,1", "3,1,1", "2,3"]}
NAMES = [name for name in FLUSHED if SCHEDULES[name].n_chunks == 1]


def layouts(comm):
    return LAYOUTS[comm.size]


def few(comm):
    return layouts(comm)[: 1 if comm.size == 5 else 2]


def run(comm, replicas, job=JOB, **changes):
    return trained(comm, job, replicas=replicas, **changes)


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("transport", ["auto", "mpi"])
def test_any_layout_gives_the_weights_of_one_rank(comm, transport):
    expected = serial(JOB)
    for replicas in layouts(comm):
        summary, values = run(comm, replicas, transport=transport)
        assert np.abs(values - expected).max() < 1e-12, replicas
        assert summary["samples"] == 400 and [len(stage["ranks"]) for stage in summary["stages"]] == [int(word) for word in replicas.split(",")]


@pytest.mark.mpi
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("microbatches", [3, 8])
def test_under_every_schedule_with_a_flush_and_any_number_of_microbatches(comm, name, microbatches):
    for replicas in few(comm):
        assert np.abs(run(comm, replicas, schedule=name, microbatches=microbatches)[1] - serial(JOB)).max() < 1e-12, replicas


WAYS = [
    {"optimizer": "adam", "lr": 0.01}, {"optimizer": "clip:0.1+momentum"}, {"optimizer": "lars:0.1"}, {"dropout": 0.3}, {"batch": 63, "epochs": 1, "steps": 0},
    {"recompute": True, "dropout": 0.3, "schedule": "gpipe"}, {"collective": "ring"}, {"epochs": 2, "steps": 0, "patience": 1, "validate": 0.1}, {"deterministic": True},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_train_gives_what_one_rank_finds(comm, way):
    part = comm.Split(comm.rank, 0)
    alone = comm.bcast(trained(part, JOB, **way) if comm.rank == 0 else None)
    part.Free()
    for replicas in few(comm):
        summary, values = run(comm, replicas, **way)
        assert np.abs(values - alone[1]).max() < 1e-9, replicas
        for name in ("test_accuracy", "best_val_loss", "final_loss"):
            assert name not in alone[0] or summary[name] == pytest.approx(alone[0][name], rel=1e-9), name


@pytest.mark.mpi
def test_a_regression_is_scored_by_the_outputs_of_all_turns(comm, tmp_path):
    path = comm.bcast(str(tmp_path / "rows.npz"))
    if comm.rank == 0:
        draws = np.random.default_rng(2)
        x = draws.normal(size=(900, 6))
        np.savez(path, x=x, y=x @ draws.normal(size=(6, 2)) + 0.1 * draws.normal(size=(900, 2)))
    comm.Barrier()
    part = comm.Split(comm.rank, 0)
    alone = comm.bcast(trained(part, JOB, data=path) if comm.rank == 0 else None)
    part.Free()
    for replicas in layouts(comm):
        summary, values = run(comm, replicas, data=path)
        assert np.abs(values - alone[1]).max() < 1e-10 and summary["test_rmse"] == pytest.approx(alone[0]["test_rmse"], rel=1e-9), replicas


@pytest.mark.mpi
def test_a_net_file_with_embeddings_and_stages_without_layers(comm, tmp_path):
    (tmp_path / "net.toml").write_text(NET)
    part = comm.Split(comm.rank, 0)
    changes = {"model": str(tmp_path / "net.toml"), "hidden": SMALL.__class__.hidden}
    alone = comm.bcast(trained(part, JOB, **changes)[1] if comm.rank == 0 else None)
    part.Free()
    for replicas in few(comm):
        assert np.abs(run(comm, replicas, **changes)[1] - alone).max() < 1e-10
    if comm.size == 3:
        assert np.abs(run(comm, "1,2", partition="4,0")[1] - serial(JOB)).max() < 1e-12


def sends(comm):
    """Fail unless outputs and gradients travel to the rank whose turn it is, and one sum a batch: a ring over r ranks sends 2 (r - 1) gradients a batch in all.

    Turns are of microbatches of 10 rows and of blocks of 64 scored ones.
    """
    for replicas in ("2,1", "3,1,1") if comm.size in (3, 5) else ():
        counts = [int(word) for word in replicas.split(",")]
        if sum(counts) != comm.size:
            continue
        cut = [2, 2] if len(counts) == 2 else [2, 1, 1]
        summary, _ = run(comm, replicas, transport="mpi", collective="ring", partition=",".join(map(str, cut)))
        widths, n_in = [24, 16, 12, 10], 240
        sizes = [(a + 1) * b for a, b in zip([n_in, *widths], widths, strict=False)]
        ends, edges = [0, *accumulate(cut)], [0, *accumulate(counts)]
        for s, r in enumerate(counts):
            ranks, n_params = range(edges[s], edges[s + 1]), sum(sizes[ends[s] : ends[s + 1]])
            sent = sum(summary["bytes_sent"][rank] for rank in ranks)
            ahead = 8 * widths[ends[s + 1] - 1] * (400 + 400) if s + 1 < len(counts) else 8 * N_COLUMNS * 9  # what is told of each clock goes to rank 0
            back = 8 * widths[ends[s] - 1] * 400 if s else 0
            assert sent == ahead + back + 8 * 2 * (r - 1) * n_params * 8, f"--replicas {replicas}: what stage {s} sends"
        turns_of = range(counts[0])
        rows = [8 * 10 * len(range(t, 5, counts[0])) + sum(min(64, 400 - b * 64) for b in range(t, 7, counts[0])) for t in turns_of]
        own = [summary["bytes_sent"][t] - 8 * widths[1] * rows[t] for t in turns_of]
        assert sum(own) == 8 * 2 * (counts[0] - 1) * sum(sizes[:2]) * 8 and min(own) > 0.9 * max(own), "beside what each turn has sent, the same sums"


@pytest.mark.mpi
def test_what_travels_is_outputs_and_gradients_to_the_rank_whose_turn_it_is_and_one_sum_a_batch(comm):
    sends(comm)


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("broken", ["no sum", "two sums", "slots travel whole"])
def test_the_count_catches(comm, monkeypatch, broken):
    """Nothing else but the bytes is looked at."""
    monkeypatch.setattr(staged.Staged, "check_alike", lambda self: None)
    if broken == "no sum":
        monkeypatch.setattr(Updates, "_prepare", lambda self, held, clock: None)
        monkeypatch.setattr(Updates, "start", lambda self, held: None)
    elif broken == "two sums":
        wait = Sum.wait
        monkeypatch.setattr(Sum, "wait", lambda self, *rest: (wait(self, *rest), self.start(), wait(self, *rest))[2])
    else:
        monkeypatch.setattr(Channel, "send", whole_slots)
    with pytest.raises(AssertionError, match="what stage 0 sends"):
        sends(comm)


BROKEN = {
    "gradients are not summed": (Updates, "start", lambda self, held: None),
    "the first of a replica is added to the last batch's": (Held, "is_first", lambda self, item: not item % self.every),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", BROKEN)
def test_the_check_catches_sums_that_are_wrong(comm, monkeypatch, name):
    if comm.size == 1:
        return  # one rank has all turns
    where, what, broken = BROKEN[name]
    monkeypatch.setattr(staged.Staged, "check_alike", lambda self: None)
    if what == "start":
        monkeypatch.setattr(Updates, "_prepare", lambda self, held, clock: None)
    monkeypatch.setattr(where, what, broken)
    assert not np.abs(run(comm, layouts(comm)[0])[1] - serial(JOB)).max() < 1e-3


@pytest.mark.mpi
def test_a_program_whose_turn_is_wrong_is_refused_before_it_runs(comm, monkeypatch):
    if comm.size == 1:
        return  # one rank has all turns
    wrong = changed(turns, [("route(action.item, r) == turn", "route(action.item + 1, r) == turn")])
    monkeypatch.setattr(checking, "lower_by_turns", wrong.lower_by_turns)
    with pytest.raises(UserError, match="is the turn of rank"):
        run(comm, layouts(comm)[0])


@pytest.mark.mpi
def test_scores_would_miss_the_blocks_of_other_turns(comm, monkeypatch):
    """Kept broken: each rank of the last stage scores its own blocks alone."""
    replicas = {2: "2", 3: "1,2", 5: "1,1,3"}.get(comm.size)
    if replicas is None:
        return  # one rank has all turns
    right = run(comm, replicas)[0]["test_loss"]
    wrong = changed(staged_training, [("all_held[-1].n_turns > 1", "all_held[-1].n_turns > 9")])
    monkeypatch.setattr(staged, "StageTraining", wrong.StageTraining)
    monkeypatch.setattr(staged.Staged, "stepper", wrong.GridStepper)
    assert run(comm, replicas)[0]["test_loss"] != pytest.approx(right, rel=1e-3)


@pytest.mark.mpi
def test_a_run_is_saved_by_layer_and_goes_on_at_another_layout(comm, tmp_path):
    folder = comm.bcast(str(tmp_path / "run"))
    first, *others = layouts(comm)
    run(comm, first, steps=4, checkpoint_every=4, write=True, out=folder)
    for changes in (*({"replicas": other} for other in others), {"replicas": ""}, {"strategy": "data_parallel"}, {"replicas": "", "strategy": "hybrid", "grid": "data=0"}):
        _, values = trained(comm, resumed(folder, {"steps": 8, **changes}))
        assert np.abs(values - serial(JOB)).max() < 1e-9, changes
    run(comm, "", steps=4, checkpoint_every=4, write=True, out=folder + "-plain")
    _, values = trained(comm, resumed(folder + "-plain", {"steps": 8, "replicas": first}))
    assert np.abs(values - serial(JOB)).max() < 1e-9


@pytest.mark.mpi
def test_rows_on_the_disk_come_to_every_rank_of_the_first_stage(comm, tmp_path):
    path = comm.bcast(str(tmp_path / "rows.npz"))
    if comm.rank == 0:
        draws = np.random.default_rng(2)
        np.savez(path, x=draws.normal(size=(60_000, 60)).astype(np.float32), y=draws.integers(3, size=60_000))
    comm.Barrier()
    found = [run(comm, layouts(comm)[0], data=path, memory=memory, batch=500, steps=4, deterministic=True)[1] for memory in ("", "14M")]
    assert np.array_equal(*found)


@pytest.mark.mpi
def test_the_planner_cuts_and_says_on_how_many_ranks_each_stage_is(comm, monkeypatch):
    """With parameters that are costly to sum but in the first layers, whose computes are most of all: two ranks, or all but one, take turns there."""
    from mpidml.core.balance import Profile
    from mpidml.runtime import stage_plan

    rows = [Profile(4.0 * (comm.size - 1), 8.0 * (comm.size - 1), 1.0, 1.0), *[Profile(1.0, 3.0, 1.0, 1e6)] * 3]
    monkeypatch.setattr(stage_plan, "of_all", lambda comm, net, m, *_: (rows, [1.0] * comm.size))
    monkeypatch.setattr(stage_plan, "pingpong", lambda mpi, partner: (0.0, 1e3))
    summary, values = run(comm, "auto", microbatches=8)
    assert np.abs(values - serial(JOB)).max() < 1e-12
    expected = [[0]] if comm.size == 1 else [list(range(comm.size - 1)), [comm.size - 1]]
    assert [stage["ranks"] for stage in summary["stages"]] == expected
    monkeypatch.undo()
    assert np.abs(run(comm, "auto")[1] - serial(JOB)).max() < 1e-12


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"replicas": "9,1"}, "--replicas 9,1: are 10 ranks, and "), ({"replicas": "2,x"}, "'x' is no number of ranks"),
        ({"grid": "pipe=0"}, "--grid pipe=0: does nothing"),
        ({"strategy": "hybrid", "grid": "data=0"}, "is for stages of --strategy pipeline"), ({"strategy": "tensor"}, "is for stages of --strategy pipeline"),
        ({"schedule": "interleaved"}, "takes schedules of one stage a rank"), ({"schedule": "pipedream", "microbatches": 0}, "weights under way"),
        ({"compress": "two_bit"}, "--compress two_bit: does nothing"), ({"replicas": "auto", "partition": "2,1"}, "--partition 2,1: does nothing"),
        ({"replicas": "auto", "deterministic": True}, "--replicas auto cannot repeat"), ({"strategy": "data_parallel", "microbatches": 0}, "--replicas"),
        ({"mix": "embedding=tensor"}, "--mix embedding=tensor: does nothing"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(comm, changes, told):
    with pytest.raises(UserError) as caught:
        trained(comm, JOB.with_values({"replicas": layouts(comm)[0], **changes}, "test"))
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.mpi
@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_planner_gives_no_stage_more_ranks_than_there_are_microbatches(comm, microbatches):
    if comm.size > 4 * microbatches:
        with pytest.raises(UserError, match=r"^--replicas auto: 4 layer\(s\) on at most 1 rank\(s\) each, .* do not take 5 ranks; give --microbatches 2 or more"):
            run(comm, "auto", microbatches=microbatches)
        return
    summary, values = run(comm, "auto", microbatches=microbatches)
    assert np.abs(values - serial(JOB)).max() < 1e-12
    assert max(len(stage["ranks"]) for stage in summary["stages"]) <= microbatches


@pytest.mark.mpi
def test_the_planner_takes_what_a_rank_may_hold(comm):
    """Less than the whole network takes, and enough for stages; with less still the line names the choice."""
    summary, _ = run(comm, "auto", hidden=(40, 120, 110, 100), memory_per_rank="1.5M" if comm.size > 1 else "1G")
    assert summary["samples"] == 400 and (comm.size == 1 or len(summary["stages"]) > 1)
    with pytest.raises(UserError, match=r"^--memory-per-rank 1K: rank \d+ \(pipe \d.*\), the fullest, needs "):
        run(comm, "auto", memory_per_rank="1K")


@pytest.mark.mpi
def test_fewer_microbatches_than_turns_are_refused(comm):
    if comm.size == 1:
        return  # one microbatch is enough for one rank
    with pytest.raises(UserError, match=r"take turns at 1 microbatch\(es\); give --microbatches"):
        run(comm, layouts(comm)[0], microbatches=1)
