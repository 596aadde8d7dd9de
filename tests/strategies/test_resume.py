"""A run that is saved and goes on, in the same layout or in another, ends as one that was never interrupted."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from mpidml.core.clocks import TimedClocks
from mpidml.core.errors import UserError
from mpidml.ps.store import Store
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.resume import resumed
from mpidml.runtime.stepping import Stepper
from mpidml.strategies.base import train
from mpidml.sync.adaptive import Epochs
from tests.strategies.test_hybrid import HEAVY
from tests.strategies.test_identities import SMALL, serial

STEPS = 20
SUMS, GRID = {"strategy": "data_parallel"}, {"strategy": "hybrid", "grid": "data=0,pipe=1", "microbatches": 2}


def run(comm, job, n_ranks=None):
    """Train on the first n_ranks ranks; return (summary, final parameters) on those, None on the others."""
    part = comm.Split(0 if comm.rank < (n_ranks or comm.size) else 1, comm.rank)
    try:
        if comm.rank >= (n_ranks or comm.size):
            return None
        counted, kept = CountedComm(part), {}
        summary = train(job, counted, quiet=True, keep=kept)
        counted.free()
        return summary, kept["values"]
    finally:
        part.Free()


def start(comm, path, steps, n_ranks=None, **changes):
    job = SMALL.with_values({"steps": steps, "out": str(path), "checkpoint_every": 7, "wait_limit": 20.0, **changes}, "test")
    return run(comm, job, n_ranks)


def go_on(comm, path, n_ranks=None, **changes):
    comm.Barrier()
    job = resumed(path, {"steps": STEPS, **changes})
    comm.Barrier()  # nobody writes the config anew before all have read it
    return run(comm, job, n_ranks)


def clocks(path):
    return [json.loads(line)["clock"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("servers", ["colocated", "1"])
@pytest.mark.parametrize("sync", ["bsp", "ssp:1", "ssp:3", "warmup:5:2"])
def test_in_repeat_mode_a_resumed_run_has_the_bits_of_one_without_checkpoints(comm, mpi_tmp_path, sync, servers):
    if servers == "1" and comm.size == 1:
        servers = "colocated"
    options = {"sync": sync, "servers": servers, "deterministic": True, "optimizer": "adam", "lr": 0.01}
    whole = start(comm, mpi_tmp_path / "whole", STEPS, checkpoint_every=0, **options)
    paused = start(comm, mpi_tmp_path / "paused", STEPS, **options)
    start(comm, mpi_tmp_path / "cut", 14, **options)
    cut = go_on(comm, mpi_tmp_path / "cut")
    assert whole[0]["model_sha256"] == paused[0]["model_sha256"] == cut[0]["model_sha256"]
    assert cut[0]["samples"] == whole[0]["samples"] and cut[0]["clocks"] == STEPS
    if comm.rank == 0:
        assert clocks(mpi_tmp_path / "cut") == clocks(mpi_tmp_path / "whole") == list(range(STEPS))


@pytest.mark.mpi
def test_what_a_resumed_run_shows_is_of_the_whole_run(comm, mpi_tmp_path):
    """Reads, seconds and bytes of both parts, and of a third at another number of ranks the reads; the end of each part has read the final values, too."""
    options = {"sync": "ssp:2", "deterministic": True}
    whole = start(comm, mpi_tmp_path / "whole", STEPS, checkpoint_every=0, **options)[0]
    parts = [start(comm, mpi_tmp_path / "cut", 7, **options)[0], go_on(comm, mpi_tmp_path / "cut", steps=14)[0]]
    cut = go_on(comm, mpi_tmp_path / "cut")[0]
    more = Counter(cut["staleness_histogram"])
    more.subtract(whole["staleness_histogram"])
    assert dict(+more) == {"0": 2 * comm.size} and min(more.values()) >= 0
    for key in ("rank_seconds", "compute_seconds", "bytes_sent", "messages", "bytes_window"):
        assert all(a <= b <= c for a, b, c in zip(parts[0][key], parts[1][key], cut[key], strict=True)), key
    assert all(seconds > before for seconds, before in zip(cut["rank_seconds"], parts[1]["rank_seconds"], strict=True))
    alone = go_on(comm, mpi_tmp_path / "cut", 1, steps=STEPS + 5)
    if alone is not None:
        assert sum(alone[0]["staleness_histogram"].values()) == sum(cut["staleness_histogram"].values()) + 5 + 1
        assert (len(alone[0]["rank_seconds"]) == 1) and (comm.size == 1 or alone[0]["rank_seconds"] < cut["rank_seconds"][:1])


@pytest.mark.mpi
def test_the_bits_catch_older_versions_that_are_not_saved(comm, mpi_tmp_path, monkeypatch):
    if comm.size < 2:
        return
    options = {"sync": "ssp:3", "deterministic": True}
    whole = start(comm, mpi_tmp_path / "whole", STEPS, checkpoint_every=0, **options)
    state = Store.state
    monkeypatch.setattr(Store, "state", lambda self, back: state(self, 0))
    start(comm, mpi_tmp_path / "cut", 14, **options)
    assert whole[0]["model_sha256"] != go_on(comm, mpi_tmp_path / "cut")[0]["model_sha256"]


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize(("before", "after"), [((3, "colocated"), (2, "1")), ((3, "2"), (1, "colocated")), ((1, "colocated"), (3, "1"))], ids=str)
def test_bsp_goes_on_at_any_number_of_workers_and_servers_as_a_serial_loop(comm, mpi_tmp_path, before, after):
    start(comm, mpi_tmp_path / "run", 14, before[0], servers=before[1])
    found = go_on(comm, mpi_tmp_path / "run", after[0], servers=after[1])
    if found is not None:
        assert np.abs(found[1] - serial(SMALL.with_values({"steps": STEPS}, "test"))).max() < 1e-9
        assert found[0]["samples"] == STEPS * SMALL.batch


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["asp", "ssp:2", "dssp", "quorum", "adaptive"])
@pytest.mark.parametrize("assign", ["static", "dynamic"])
def test_every_policy_pauses_saves_and_goes_on(comm, mpi_tmp_path, sync, assign):
    start(comm, mpi_tmp_path / "run", 14, sync=sync, assign=assign)
    summary, values = go_on(comm, mpi_tmp_path / "run")
    assert np.isfinite(values).all()
    if (sync, assign) != ("quorum", "static"):  # there a worker that was late computes fewer clocks
        dropped = summary["dropped_samples"] * (sync == "quorum")
        assert (summary["clocks"], summary["samples"] + dropped) == (STEPS, STEPS * SMALL.batch)
    if comm.rank == 0:
        folders = sorted(p.name for p in (mpi_tmp_path / "run" / "checkpoints").iterdir())
        assert len(folders) == 2 and not any(name.startswith(".") for name in folders)


@pytest.mark.mpi
def test_a_line_for_all_comes_to_its_end_as_a_whole_and_goes_on_as_shares(comm, mpi_tmp_path):
    """However few of the blocks a slow worker was given, and however many more than there are clocks a fast one."""
    start(comm, mpi_tmp_path / "run", 14, sync="asp", assign="dynamic", slowdown="permanent:200", servers="1")
    with pytest.raises(UserError, match="the run has done 14 of 14 clocks; give more"):
        go_on(comm, mpi_tmp_path / "run", steps=14)
    found = go_on(comm, mpi_tmp_path / "run", assign="static", slowdown="")[0]
    assert (found["clocks"], found["samples"]) == (STEPS, STEPS * SMALL.batch)


@pytest.mark.mpi
@pytest.mark.parametrize(("sync", "learns", "name"), [("adaptive", Epochs, "free_seconds"), ("dssp", TimedClocks, "interval")])
def test_what_a_policy_has_learnt_of_speeds_outlives_pauses_and_the_run(comm, mpi_tmp_path, monkeypatch, sync, learns, name):
    known, know = [], learns.know

    def told(self, learnt):
        known.append(learnt.get(name))
        know(self, learnt)

    monkeypatch.setattr(learns, "know", told)
    start(comm, mpi_tmp_path / "run", 14, sync=sync)
    found = [value for of in comm.allgather(known) for value in of]
    assert found.count(None) * 2 == len(found), "at the start nothing is known, after the pause at 7 it is"
    assert all(len(value) == comm.size and min(value) > 0 for value in found if value is not None)
    known.clear()
    go_on(comm, mpi_tmp_path / "run")
    assert all(value is not None and min(value) > 0 for of in comm.allgather(known) for value in of)
    known.clear()
    if comm.size > 1:
        go_on(comm, mpi_tmp_path / "run", comm.size - 1, steps=STEPS + 2)
        assert all(value is None for of in comm.allgather(known) for value in of[:1]), "of others nothing is known"


@pytest.mark.mpi
def test_measured_shares_outlive_the_run_for_as_many_ranks(comm, mpi_tmp_path, monkeypatch):
    share, found = Stepper._share, []

    def told(self, samples, seconds):
        found.append(list(self.strategy.sampler.shares.parts))
        share(self, samples, samples / (1.0 + 2.0 * (comm.rank == 0)))

    monkeypatch.setattr(Stepper, "_share", told)
    start(comm, mpi_tmp_path / "run", 14, shares="measured", **SUMS)
    learnt = found[-1]
    assert comm.size == 1 or learnt[0] > 1.2 * learnt[1]
    found.clear()
    go_on(comm, mpi_tmp_path / "run")
    assert found[0] == learnt
    if comm.size > 1:
        found.clear()
        go_on(comm, mpi_tmp_path / "run", comm.size - 1, steps=STEPS + 2)
        assert found[:1] in ([], [[1 / (comm.size - 1)] * (comm.size - 1)]), "of others nothing is known"


@pytest.mark.mpi
def test_the_state_of_optimizers_on_the_workers_is_saved(comm, mpi_tmp_path):
    options = {"optimize": "workers", "optimizer": "adam", "lr": 0.01, "deterministic": True}
    whole = start(comm, mpi_tmp_path / "whole", STEPS, checkpoint_every=0, **options)
    start(comm, mpi_tmp_path / "cut", 14, **options)
    assert go_on(comm, mpi_tmp_path / "cut")[0]["model_sha256"] == whole[0]["model_sha256"]


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["lars:0.1", "clip:0.1+lamb"])
def test_what_one_worker_has_measured_all_ranks_go_on_with_and_back(comm, mpi_tmp_path, optimizer):
    whole = comm.bcast(start(comm, mpi_tmp_path / "whole", STEPS, 1, checkpoint_every=0, optimizer=optimizer))[1]
    start(comm, mpi_tmp_path / "one", 14, 1, optimizer=optimizer)
    start(comm, mpi_tmp_path / "all", 14, optimizer=optimizer, **SUMS)
    found = [go_on(comm, mpi_tmp_path / "one", out=str(mpi_tmp_path / how["strategy"]), **how) for how in (SUMS, GRID)]
    found.append(go_on(comm, mpi_tmp_path / "all", 1, strategy="parameter_server"))
    assert max(np.abs(each[1] - whole).max() for each in found if each is not None) < 1e-12


@pytest.mark.mpi
def test_of_what_each_worker_has_had_for_itself_all_ranks_go_on_with_the_mean(comm, mpi_tmp_path):
    """Also as many as the workers were: each with what its worker had, they would part."""
    if comm.rank == 0:
        (mpi_tmp_path / "heavy.py").write_text(HEAVY)
    comm.Barrier()
    start(comm, mpi_tmp_path / "run", 14, optimizer=f"{mpi_tmp_path}/heavy.py+clip:0.1+sgd")
    expected = comm.bcast(go_on(comm, mpi_tmp_path / "run", 1, out=str(mpi_tmp_path / "one"), **SUMS))[1]
    for how in (SUMS, GRID):
        assert np.abs(go_on(comm, mpi_tmp_path / "run", out=str(mpi_tmp_path / how["strategy"]), **how)[1] - expected).max() < 1e-12


@pytest.mark.mpi
def test_a_run_that_has_diverged_goes_on_and_says_since_when(comm, mpi_tmp_path):
    """A loss that is no number is null in metrics.jsonl, and none again in what has read it."""
    start(comm, mpi_tmp_path / "run", 14, lr=1e200, hidden=(8,))
    found = go_on(comm, mpi_tmp_path / "run", target="loss:0.1")[0]
    assert found["diverged_at_clock"] < 14 and found["clocks"] == STEPS and np.isnan(found["final_loss"])
    assert comm.rank or len(clocks(mpi_tmp_path / "run")) == STEPS


@pytest.mark.mpi
def test_a_run_goes_on_in_another_folder_and_leaves_the_first_as_it_is(comm, mpi_tmp_path):
    start(comm, mpi_tmp_path / "a", 14)
    before = sorted(mpi_tmp_path.joinpath("a").rglob("*"))
    found = go_on(comm, mpi_tmp_path / "a", out=str(mpi_tmp_path / "b"))
    assert np.abs(found[1] - serial(SMALL.with_values({"steps": STEPS}, "test"))).max() < 1e-9
    if comm.rank == 0:
        assert clocks(mpi_tmp_path / "b") == list(range(STEPS)) and clocks(mpi_tmp_path / "a") == list(range(14))
        assert sorted(mpi_tmp_path.joinpath("a").rglob("*")) == before


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden": (8,)}, "--hidden: the run in .* has '24,16'"),
        ({"batch": 25}, "--batch: the run in .* has 50"),
        ({"steps": 14}, "the run has done 14 of 14 clocks; give more --epochs or --steps"),
        ({"sync": "ssp"}, None),
    ],
)
def test_what_cannot_change_is_one_line(comm, mpi_tmp_path, changes, says):
    start(comm, mpi_tmp_path / "run", 14)
    if says is None:
        assert go_on(comm, mpi_tmp_path / "run", **changes)[0]["clocks"] == STEPS
        return
    with pytest.raises(UserError, match=says):
        go_on(comm, mpi_tmp_path / "run", **changes)


@pytest.mark.mpi
def test_steps_that_rows_have_made_apart_are_saved(comm, mpi_tmp_path):
    """Pieces of updates within a budget count by the row; a run that starts anew from zero would correct adam's bias once more."""
    options = {"optimizer": "adam", "lr": 0.01, "budget": 1e6, "sync": "ssp:1"}
    start(comm, mpi_tmp_path / "run", 14, 1, **options)  # one shard, so that a piece is never all of it
    found = {}
    restore = Store.count

    def count(store, whole, fill):
        restore(store, whole, fill)
        found[store.lo] = (store.n_whole, store.most_besides)

    Store.count = count
    try:
        go_on(comm, mpi_tmp_path / "run", 1)
    finally:
        Store.count = restore
    assert comm.rank or any(besides for _, besides in found.values()), "pieces were sent, so rows have steps of their own"


@pytest.mark.mpi
def test_another_target_is_judged_anew_and_a_run_that_has_come_to_its_end_is_refused(comm, mpi_tmp_path):
    done = start(comm, mpi_tmp_path / "run", 40_000, target="loss:1.5", checkpoint_every=10_000)[0]["clocks"]
    with pytest.raises(UserError, match=r"the run has reached its target loss:1\.5; give another"):
        go_on(comm, mpi_tmp_path / "run", steps=40_000)
    found = go_on(comm, mpi_tmp_path / "run", steps=done + 20, target="loss:0.0000001")[0]
    assert found["target_seconds"] is None and found["clocks"] == done + 20 < 40_000
    start(comm, mpi_tmp_path / "timed", 0, seconds=0.3, checkpoint_every=10_000)
    with pytest.raises(UserError, match=r"the run has had its 0\.3 s, which count from its first start"):
        go_on(comm, mpi_tmp_path / "timed", steps=0)


@pytest.mark.mpi
@pytest.mark.parametrize("change", ["values", "order", "place"])
def test_data_that_have_changed_are_refused_and_the_same_in_another_place_are_not(comm, mpi_tmp_path, change):
    x = np.random.default_rng(0).standard_normal((200, 6))
    y = (x[:, 0] > 0).astype(int)
    if comm.rank == 0:
        np.savez(mpi_tmp_path / "a.npz", x=x, y=y)
        np.savez(mpi_tmp_path / "b.npz", x=x, y=y)
    comm.Barrier()
    start(comm, mpi_tmp_path / "run", 14, data=str(mpi_tmp_path / "a.npz"))
    if change == "place":
        assert go_on(comm, mpi_tmp_path / "run", data=str(mpi_tmp_path / "b.npz"))[0]["clocks"] == STEPS
        return
    if comm.rank == 0:
        np.savez(mpi_tmp_path / "a.npz", **({"x": x + 0.01 * (np.arange(200) == 7)[:, None], "y": y} if change == "values" else {"x": x[::-1], "y": y[::-1]}))
    comm.Barrier()
    with pytest.raises(UserError, match="is not what the run learnt from, it has changed since"):
        go_on(comm, mpi_tmp_path / "run")


@pytest.mark.mpi
@pytest.mark.parametrize(("changes", "says"), [({"hidden": (9,)}, "--hidden: the run in"), ({"optimizer": "adam"}, "--optimizer: the run in"), ({"batch": 32}, "--batch")])
def test_a_job_of_a_program_s_own_is_held_to_what_the_run_saved_too(comm, mpi_tmp_path, changes, says):
    """Not only flags, which are those of the run but for what is given."""
    start(comm, mpi_tmp_path, 9)
    job = resumed(mpi_tmp_path, {"steps": STEPS}).with_values(changes, "test")
    with pytest.raises(UserError, match=says) as error:
        run(comm, job)
    assert "and what it saved fits that alone; give the same, or start a new run" in str(error.value)
