"""A run with patience saves the parameters of its best look, whoever computed them: the score of what is saved is the least that was seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mpidml.core import rng
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.split import hold_out
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.looks import Looks
from mpidml.runtime.resume import resumed
from mpidml.simulate import simulate
from mpidml.strategies.base import train

N, N_FEATURES, N_CLASSES = 300, 20, 3
JOB = Job(hidden=(24,), epochs=12, batch=30, dtype="float64", backend="numpy", seed=3, lr=0.1, validate=0.25, patience=4, wait_limit=20.0, report=False)
"""Six clocks an epoch; half of the labels are drawn by chance, so that the validation loss soon rises while the training loss falls."""


def rows(regress=False):
    random = np.random.default_rng(5)
    x = random.standard_normal((N, N_FEATURES))
    y = np.where(random.random(N) < 0.5, x[:, :N_CLASSES].argmax(1), random.integers(0, N_CLASSES, N))
    return x, 100 * (x[:, :2] + 2 * random.standard_normal((N, 2))) - 40 if regress else y


def parts():
    """Return the training, validation and test rows."""
    kept, test = hold_out(N, JOB.hold_out, JOB.seed)
    order = rng.stream(JOB.seed, "validate").permutation(len(kept))
    n = round(JOB.validate * len(kept))
    return np.sort(kept[order[n:]]), np.sort(kept[order[:n]]), test


def job(path, regress=False, **changes):
    """Return the job of a run in the folder `path`, beside its data."""
    data = path.with_suffix(".npz")
    if not data.exists():
        x, y = rows(regress)
        np.savez(data, x=x, y=y)
    return JOB.with_values({"data": str(data), "out": str(path), **changes}, "test")


def run(comm, given, n_ranks=None, ranks_per_host=0):
    """Train on the first n_ranks ranks; return the summary on all of them, None on the others."""
    part = comm.Split(0 if comm.rank < (n_ranks or comm.size) else 1, comm.rank)
    try:
        if comm.rank >= (n_ranks or comm.size):
            return None
        counted = CountedComm(part, ranks_per_host)
        summary = train(given, counted, quiet=True)
        counted.free()
        return summary
    finally:
        part.Free()


def prepared(comm, path, regress=False, **changes):
    if comm.rank == 0:
        job(path, regress)
    comm.Barrier()
    return job(path, regress, **changes)


def start(comm, path, n_ranks=None, ranks_per_host=0, regress=False, **changes):
    return run(comm, prepared(comm, path, regress, **changes), n_ranks, ranks_per_host)


def go_on(comm, path, n_ranks=None, **changes):
    comm.Barrier()
    found = resumed(path, changes)
    comm.Barrier()
    return run(comm, found, n_ranks)


def looks(path):
    """Return epoch and validation loss of each row of metrics.jsonl that has one."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(row["epoch"], row["val_loss"]) for row in found if "val_loss" in row]


def recomputed(path, of, regress=False):
    """Return loss and accuracy, or RMSE, of model.safetensors on some rows, by NumPy alone."""
    saved, (x, y) = load_file(path / "model.safetensors"), rows(regress)
    z = (x[of] - saved["scaler.offset"]) * saved["scaler.factor"]
    z = np.maximum(z @ saved["layers.0.weight"] + saved["layers.0.bias"], 0) @ saved["layers.1.weight"] + saved["layers.1.bias"]
    if regress:
        errors = z * saved["targets.scale"] + saved["targets.offset"] - y[of]
        return float(np.square(errors).sum(1).mean() / 2), float(np.sqrt(np.square(errors).mean()))
    z -= z.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), y[of]]).mean()), float((z.argmax(1) == y[of]).mean())


def check(path, summary, regress=False):
    """Hold a run to the law: what is saved is the best that was looked at, and all numbers are its own."""
    seen, (_, val, test), second = looks(path), parts(), "rmse" if regress else "accuracy"
    loss, quality = recomputed(path, val, regress)
    assert loss == pytest.approx(min(loss for _, loss in seen), rel=1e-9)
    assert (loss, quality) == pytest.approx((summary["val_loss"], summary[f"val_{second}"]), rel=1e-9)
    assert recomputed(path, test, regress) == pytest.approx((summary["test_loss"], summary[f"test_{second}"]), rel=1e-9)
    epoch, least = min(seen, key=lambda look: look[1])
    assert summary["best_val_loss"] == least
    if summary["sync"] != "quorum":  # there some of the computes that were granted are never made, so the rows are somewhat behind
        assert summary["best_epoch"] == epoch
        assert [epoch for epoch, _ in seen] == list(range(1, len(seen) + 1))


WAYS = [
    {}, {"servers": "1"}, {"servers": "1", "transport": "mpi"}, {"sync": "ssp:2"}, {"sync": "asp"}, {"sync": "asp", "servers": "1"},
    {"sync": "dssp:1:4", "reads": "cached"}, {"sync": "adaptive:1:4"}, {"sync": "quorum"}, {"sync": "asp", "assign": "dynamic"}, {"assign": "dynamic"},
    {"sync": "warmup:10:2", "reads": "eager"}, {"optimize": "workers", "sync": "ssp:1"}, {"budget": 4e6, "sync": "ssp:1"}, {"optimizer": "adam", "lr": 0.01},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.shows_from(3)  # a server, and two workers
@pytest.mark.parametrize("regress", [False, True], ids=["classes", "regression"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_saved_model_has_the_least_validation_loss_that_was_seen(comm, mpi_tmp_path, way, regress):
    if "servers" in way and comm.size == 1:
        return
    way = {**way, **({"lr": 0.02} if regress and "lr" not in way else {})}
    summary = start(comm, mpi_tmp_path / "run", regress=regress, **way)
    if comm.rank == 0:
        check(mpi_tmp_path / "run", summary, regress)
        assert len(looks(mpi_tmp_path / "run")) in (12, int(summary["best_epoch"]) + JOB.patience)


@pytest.mark.mpi
def test_the_law_catches_a_run_that_saves_what_came_last(comm, mpi_tmp_path, monkeypatch):
    end = Looks.end
    monkeypatch.setattr(Looks, "end", lambda self, position: (self.best.clear(), end(self, position))[1])
    summary = start(comm, mpi_tmp_path / "run")
    if comm.rank == 0:
        with pytest.raises(AssertionError):
            check(mpi_tmp_path / "run", summary)


@pytest.mark.mpi
def test_bsp_on_any_number_of_ranks_ends_as_one_rank(comm, mpi_tmp_path):
    alone, all_of_them = start(comm, mpi_tmp_path / "one", 1), start(comm, mpi_tmp_path / "all")
    if comm.rank == 0:
        one, many = (looks(mpi_tmp_path / name) for name in ("one", "all"))
        assert len(one) == alone["best_epoch"] + JOB.patience < JOB.epochs
        np.testing.assert_allclose(many, one, rtol=1e-9)
        assert alone["best_epoch"] == all_of_them["best_epoch"]
        for name, array in load_file(mpi_tmp_path / "one" / "model.safetensors").items():
            np.testing.assert_allclose(load_file(mpi_tmp_path / "all" / "model.safetensors")[name], array, rtol=1e-9, atol=1e-12)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("servers", ["colocated", "1"])
def test_between_hosts_the_parameters_are_brought_to_every_rank(comm, mpi_tmp_path, servers):
    for ranks_per_host in (0, 1):
        path = mpi_tmp_path / f"hosts{ranks_per_host}"
        summary = start(comm, path, ranks_per_host=ranks_per_host, servers=servers, deterministic=True)
        if comm.rank == 0:
            check(path, summary)
    if comm.rank == 0:
        assert looks(mpi_tmp_path / "hosts0") == looks(mpi_tmp_path / "hosts1")


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "warmup:10:2"])
def test_in_repeat_mode_what_is_saved_has_the_bits_of_a_run_that_ends_there(comm, mpi_tmp_path, sync):
    """So looking changes nothing, and no timing decides: jitter does not matter either."""
    same = {"sync": sync, "deterministic": True, "target": "loss:1e-9"}
    patient = start(comm, mpi_tmp_path / "patient", **same)
    assert patient["best_epoch"] < patient["epochs"]
    jittered = start(comm, mpi_tmp_path / "jittered", slowdown="exponential:1", **same)
    short = start(comm, mpi_tmp_path / "short", sync=sync, deterministic=True, patience=0, epochs=int(patient["best_epoch"]))
    assert patient["model_sha256"] == jittered["model_sha256"] == short["model_sha256"]
    assert patient["test_loss"] == short["test_loss"] and patient["val_loss"] == short["val_loss"]


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2"])
def test_a_resumed_run_knows_the_best_so_far(comm, mpi_tmp_path, sync):
    """The checkpoints lie beside the epochs; the best look is before the one with which the run goes on."""
    options = {"sync": sync, "deterministic": True, "checkpoint_every": 4}
    whole = start(comm, mpi_tmp_path / "whole", checkpoint_every=0, **{k: v for k, v in options.items() if k != "checkpoint_every"})
    cut = int(whole["best_epoch"]) * 6 + 10
    start(comm, mpi_tmp_path / "cut", steps=cut, epochs=0, **options)
    found = go_on(comm, mpi_tmp_path / "cut", steps=0, epochs=JOB.epochs)
    for key in ("best_epoch", "best_val_loss", "model_sha256", "test_loss", "epochs"):
        assert found[key] == whole[key], key
    if comm.rank == 0:
        ended = cut / 6  # the end of the first part was a look, too
        assert [look for look in looks(mpi_tmp_path / "cut") if look[0] != ended] == looks(mpi_tmp_path / "whole")


@pytest.mark.mpi
def test_the_resumed_run_catches_a_best_that_is_not_saved(comm, mpi_tmp_path, monkeypatch):
    whole = start(comm, mpi_tmp_path / "whole", deterministic=True)
    monkeypatch.setattr(Looks, "pieces", lambda self: [])
    start(comm, mpi_tmp_path / "cut", steps=int(whole["best_epoch"]) * 6 + 10, epochs=0, deterministic=True, checkpoint_every=4)
    found = go_on(comm, mpi_tmp_path / "cut", steps=0, epochs=JOB.epochs)
    assert found["model_sha256"] != whole["model_sha256"]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("before", "after"), [((None, "colocated"), (1, "colocated")), ((1, "colocated"), (None, "1"))], ids=str)
def test_the_best_goes_with_the_run_to_another_layout(comm, mpi_tmp_path, before, after):
    whole = start(comm, mpi_tmp_path / "whole")
    start(comm, mpi_tmp_path / "cut", before[0], servers=before[1], checkpoint_every=4, steps=int(whole["best_epoch"]) * 6 + 10, epochs=0)
    found = go_on(comm, mpi_tmp_path / "cut", after[0], servers=after[1], steps=0, epochs=JOB.epochs)
    if comm.rank == 0:
        assert (found["best_epoch"], found["best_val_loss"]) == pytest.approx((whole["best_epoch"], whole["best_val_loss"]), rel=1e-9)
        loss, _ = recomputed(mpi_tmp_path / "cut", parts()[1])
        assert loss == pytest.approx(whole["best_val_loss"], rel=1e-9)


@pytest.mark.mpi
def test_without_patience_the_look_is_at_the_validation_rows_and_the_test_rows_are_scored_at_the_end(comm, mpi_tmp_path):
    summary = start(comm, mpi_tmp_path / "run", patience=0, epochs=4)
    if comm.rank == 0:
        (_, val, test), path = parts(), mpi_tmp_path / "run"
        rows_of = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert sum("val_accuracy" in row for row in rows_of) == 3 and not any("test_loss" in row for row in rows_of)
        assert recomputed(path, val) == pytest.approx((summary["val_loss"], summary["val_accuracy"]), rel=1e-9)
        assert recomputed(path, test) == pytest.approx((summary["test_loss"], summary["test_accuracy"]), rel=1e-9)
        assert "best_epoch" not in summary


@pytest.mark.mpi
@pytest.mark.parametrize("patience", [0, 500])
@pytest.mark.parametrize("sync", ["bsp", "asp"])
def test_a_target_is_judged_on_the_validation_rows(comm, mpi_tmp_path, sync, patience):
    """The limit is far away: only the target can end the run."""
    given = prepared(comm, mpi_tmp_path / "run", sync=sync, patience=patience, epochs=4000, target="0.45", lr=0.02)
    summary = run(comm, given)
    assert summary["target_seconds"] is not None and summary["epochs"] < 4000
    if comm.rank == 0:
        found = [json.loads(line) for line in (mpi_tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        met = [row["val_accuracy"] >= 0.45 for row in found if "val_accuracy" in row]
        assert not patience or (met[-1] and not any(met[:-1]))
        assert summary["target_samples"] in [row["samples"] for row in found if row.get("val_accuracy", 0) >= 0.45]


@pytest.mark.mpi
def test_a_run_that_diverges_ends_by_its_patience_with_what_it_has(comm, mpi_tmp_path):
    summary = start(comm, mpi_tmp_path / "run", lr=1e150, epochs=12, patience=3)
    assert summary["epochs"] == 3 and summary["best_epoch"] is None and summary["diverged_at_clock"] is not None


@pytest.mark.mpi
def test_no_row_is_written_twice_or_left_out(comm, mpi_tmp_path):
    start(comm, mpi_tmp_path / "run", sync="asp", checkpoint_every=4, epochs=5, patience=9)
    go_on(comm, mpi_tmp_path / "run", epochs=7)
    if comm.rank == 0:
        found = [json.loads(line)["clock"] for line in (mpi_tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert found == list(range(42))


@pytest.mark.mpi
def test_what_cannot_be_is_one_line(comm, mpi_tmp_path):
    with pytest.raises(UserError, match=r"--patience 4: needs rows to judge by that are not the test rows.*--validate 0.1"):
        start(comm, mpi_tmp_path / "run", validate=0.0)
    with pytest.raises(UserError, match="--deterministic: --target cannot repeat"):
        start(comm, mpi_tmp_path / "run", patience=0, target="0.9", deterministic=True)
    with pytest.raises(UserError, match="simulate: patience: a simulation does not pause to look; leave it out"):
        simulate({"patience": 3, "validate": 0.1, "learn": True}, CountedComm(comm), quiet=True, write=False)
    start(comm, mpi_tmp_path / "run", epochs=1, checkpoint_every=4)
    with pytest.raises(UserError, match=r"--validate: the run in .* has 0.25"):
        go_on(comm, mpi_tmp_path / "run", validate=0.5, epochs=2)
