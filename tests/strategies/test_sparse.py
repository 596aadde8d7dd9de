"""Hold training on sparse rows to training on the same rows as dense ones, and what travels to the features that occur."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import PULL, PUSH, ROWS, Send
from mpidml.data.sampler import Sampler
from mpidml.data.split import hold_out
from mpidml.runtime import scoring
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.driver import Driver
from mpidml.runtime.resume import resumed
from mpidml.runtime.sparse_training import SparseTraining
from mpidml.strategies.base import train

N, N_FEATURES, N_CLASSES = 240, 60, 3
SMALL = Job(
    model="softmax", scale="none", optimizer="sgd", lr=0.5, steps=13, batch=40, dtype="float64", backend="numpy", seed=3, hold_out=0.25, wait_limit=20.0
)
PLACES = {"beside the workers": {}, "apart": {"servers": "1"}, "by MPI": {"transport": "mpi"}}


def rows(n=N, n_features=N_FEATURES, stretch=1):
    """Return rows of few features, the first ones often, and labels that depend on them; `stretch` k: each feature is the k-th of k columns."""
    random = np.random.default_rng(0)
    columns = (n_features * random.random((n, 6)) ** 2).astype(int)
    values = random.uniform(0.5, 2, n * 6) * random.choice([-1, 1], n * 6)
    values[7 * 6 : 8 * 6] = 0  # a row without any feature
    matrix, stretched = (scipy.sparse.csr_matrix((values, columns.ravel() * k, np.arange(n + 1) * 6), shape=(n, n_features * k)) for k in (1, stretch))
    return stretched, (matrix @ random.standard_normal((n_features, N_CLASSES))).argmax(axis=1)


def run(comm, sparse=True, data=None, write=False, job=SMALL, **changes):
    """Train on all ranks; return (summary, final parameters, metrics)."""
    x, y = rows() if data is None else data
    part = comm.Dup() if comm is not None else None
    counted, kept = CountedComm(part) if part is not None else None, {}
    summary = train(job.with_values(changes, "test"), counted, quiet=True, write=write, keep=kept, data=(x if sparse else x.toarray(), y))
    if counted is not None:
        counted.free()
        part.Free()
    return summary, kept["values"], kept["metrics"]


def assert_same(found, expected, rtol=1e-9):
    np.testing.assert_allclose(found[1], expected[1], rtol=rtol, atol=1e-12)
    for name in ("final_loss", "test_loss", "test_accuracy", "samples"):
        assert found[0][name] == pytest.approx(expected[0][name], rel=rtol), name
    if found[2] is not None:
        losses, same = ([(row["clock"], row["loss"]) for row in of[2]] for of in (found, expected))
        np.testing.assert_allclose(losses, same, rtol=rtol)


MODELS = {
    "softmax": {},
    "mlp": {"model": "mlp", "hidden": (9, 7)},
    "activation undone from its sums": {"model": "mlp", "hidden": (9,), "activation": "gelu", "dropout": 0.3, "epochs": 4, "steps": 0},
    "in parts": {"model": "mlp", "hidden": (9,), "accumulate": 3},
    "scaled": {"scale": "maxabs"},
    "validated": {"validate": 0.2, "epochs": 3, "steps": 0},
}
OPTIMIZERS = ["adagrad", "clamp:0.001+sgd", "ftrl:0", "clip:0.05+sgd", "clip:0.05+adagrad"]


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize(("model", "place"), [*((model, "beside the workers") for model in MODELS), ("mlp", "apart"), ("mlp", "by MPI")])
def test_sparse_rows_teach_what_dense_ones_do(comm, model, place):
    if comm.size == 1 and place == "apart":
        return
    changes = MODELS[model] | PLACES[place]
    assert_same(run(comm, **changes), run(comm, sparse=False, **changes))


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_that_rests_without_a_gradient_is_that_of_the_dense_run(comm, optimizer):
    changes = {"optimizer": optimizer, "lr": 0.1, "model": "mlp", "hidden": (9,), "lr_policy": "step:3:0.5"}
    assert_same(run(comm, **changes), run(comm, sparse=False, **changes))


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["momentum", "adam", "decay:0.1+sgd", "l1:0.1+sgd", "rmsprop"])
def test_one_with_a_memory_acts_on_the_features_of_a_clock_alone_at_any_number_of_ranks(comm, optimizer):
    changes = {"optimizer": optimizer, "lr": 0.05}
    everyone, dense = run(comm, **changes), run(comm, sparse=False, **changes)
    one = comm.Split(comm.rank, 0)
    alone = run(one, **changes)
    one.Free()
    np.testing.assert_allclose(everyone[1], alone[1], rtol=1e-7, atol=1e-10)
    assert np.abs(everyone[1] - dense[1]).max() > 1e-5, "no feature was left out at any clock: the data show nothing"


@pytest.mark.mpi
def test_the_identity_catches_a_gradient_of_which_a_part_is_lost(comm, monkeypatch):
    use = SparseTraining._use
    monkeypatch.setattr(SparseTraining, "_use", lambda self, step, own, at: use(self, step, own, at) if at else None)
    with pytest.raises(AssertionError):
        assert_same(run(comm), run(comm, sparse=False))


@pytest.mark.mpi
@pytest.mark.parametrize("task", ["labels", "amounts"])
def test_a_test_part_and_targets_of_their_own(comm, task):
    x, y = rows()
    y = y if task == "labels" else np.stack([y * 2.5 + 1, x.toarray()[:, 0]], axis=1)
    found = []
    for of in (lambda part: part, lambda part: part.toarray()):
        part, kept = comm.Dup(), {}
        counted = CountedComm(part)
        job = SMALL.with_values({"hold_out": Job.hold_out, "task": "auto", "lr": 0.05, "model": "mlp", "hidden": (5,)}, "test")
        found.append((train(job, counted, quiet=True, write=False, keep=kept, data=(of(x[:150]), y[:150], x[150:].toarray(), y[150:])), kept["values"]))
        counted.free()
        part.Free()
    (sparse, values), (dense, expected) = found
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    assert sparse["test_loss"] == pytest.approx(dense["test_loss"], rel=1e-9)


WAYS = [
    *((sync, {}) for sync in ("bsp", "ssp:2", "asp", "dssp:1:4", "warmup:4:2")), *((sync, {"budget": 2e5}) for sync in ("bsp", "asp")),
    *((sync, {"target": "loss:1e-9"}) for sync in ("bsp", "ssp:2")), *((sync, {"checkpoint_every": 5}) for sync in ("asp", "warmup:4:2")),
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize(("sync", "how"), WAYS, ids=str)
def test_under_every_policy_that_starts_its_own_clocks_all_samples_are_learnt_from_and_scored(comm, mpi_tmp_path, sync, how):
    summary, values, _ = run(comm, write="checkpoint_every" in how, sync=sync, out=str(mpi_tmp_path / "run"), epochs=3, steps=0, tune=False, **how)
    assert summary["samples"] == 3 * 180 and np.isfinite(values).all()
    assert summary["test_loss"] < 0.9, "worse than chance"
    if comm.size == 1 and not ("budget" in how and sync == "asp"):  # where nobody waits for what a budget holds back, timing decides when it counts
        assert_same((summary, values, None), run(comm, sparse=False, epochs=3, steps=0))


@pytest.mark.mpi
@pytest.mark.parametrize(("sync", "servers"), [("bsp", "colocated"), ("ssp:2", "1")])
def test_repeat_mode_repeats_also_where_a_run_was_saved_and_goes_on(comm, mpi_tmp_path, sync, servers):
    changes = {"sync": sync, "servers": servers if comm.size > 1 else "colocated", "deterministic": True, "optimizer": "adam", "lr": 0.05}
    first, second = run(comm, **changes), run(comm, **changes)
    saved = {"write": True, "checkpoint_every": 4, "out": str(mpi_tmp_path / "run")}
    run(comm, **{**saved, "steps": 8}, **changes)
    comm.Barrier()
    job = resumed(mpi_tmp_path / "run", {"steps": SMALL.steps})
    comm.Barrier()
    went_on = run(comm, write=True, job=job)
    assert first[0]["model_sha256"] == second[0]["model_sha256"] == went_on[0]["model_sha256"]
    assert went_on[0]["samples"] == first[0]["samples"] and went_on[0]["clocks"] == SMALL.steps


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize(("before", "after"), [((3, "colocated"), (2, "1")), ((3, "2"), (1, "colocated")), ((1, "colocated"), (3, "2"))], ids=str)
def test_a_run_goes_on_at_any_number_of_workers_and_servers(comm, mpi_tmp_path, before, after):
    def on(n_ranks, **changes):
        part = comm.Split(0 if comm.rank < n_ranks else 1, comm.rank)
        found = run(part, optimizer="adam", lr=0.05, **changes) if comm.rank < n_ranks else None
        part.Free()
        comm.Barrier()
        return found

    on(before[0], servers=before[1], steps=9, write=True, checkpoint_every=4, out=str(mpi_tmp_path / "run"))
    job = resumed(mpi_tmp_path / "run", {"steps": SMALL.steps, "servers": after[1]})
    comm.Barrier()
    found, expected = on(after[0], job=job, write=True), on(1)
    if found is not None and expected is not None:
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("change", ["values", "columns", "nothing"])
def test_a_run_goes_on_with_the_rows_that_it_learnt_from_alone(tmp_path, change):
    run(None, write=True, steps=4, checkpoint_every=2, out=str(tmp_path / "run"))
    x, y = rows()
    x.data += (change == "values") * 1e-9
    x.indices = (x.indices + 3 * (change == "columns")) % N_FEATURES
    job = resumed(tmp_path / "run", {"steps": 6})
    if change == "nothing":
        assert run(None, job=job, data=(x, y), write=True)[0]["clocks"] == 6
        return
    with pytest.raises(UserError, match="is not what the run learnt from, it has changed since"):
        run(None, job=job, data=(x, y), write=True)


@pytest.mark.mpi
def test_patience_keeps_the_best_parameters_and_they_are_scored_whole(comm):
    changes = {"validate": 0.2, "patience": 2, "epochs": 8, "steps": 0, "lr": 2.0, "deterministic": True}
    found, dense = run(comm, **changes), run(comm, sparse=False, **changes)
    assert_same(found, dense)
    assert found[0]["best_val_loss"] == pytest.approx(dense[0]["best_val_loss"], rel=1e-9) and found[0]["best_epoch"] == dense[0]["best_epoch"]


def counted(comm, monkeypatch, **how):
    """Train, and return the bytes of rows' numbers and values, by kind, that all ranks handed over."""
    moved, perform = Counter[int](), Driver.perform

    def count(self, me, effects):
        effects = list(effects)
        for effect in effects:
            if type(effect) is Send and effect.message.rows is not None:
                data = effect.message.data
                moved[effect.message.kind] += effect.message.rows.nbytes + (0 if data is None else data.array.nbytes)
        perform(self, me, effects)

    with monkeypatch.context() as patch:
        patch.setattr(Driver, "perform", count)
        run(comm, **how)
    return sum((Counter(of) for of in comm.allgather(dict(moved))), Counter())


def touched(n_workers, listed=None, steps=SMALL.steps):
    """Return how many features occur in the shares of all workers at all clocks, each counted once a share; `listed`: the training rows."""
    x, _ = rows()
    x.eliminate_zeros()
    x = x if listed is None else x[listed]
    sampler = Sampler(x.shape[0], SMALL.batch, n_workers, SMALL.seed)
    return sum(np.unique(x[sampler.indices(clock, w)].indices).size for clock in range(steps) for w in range(n_workers))


def check_bytes(comm, monkeypatch, width, **how):
    k, values = touched(comm.size), 8 * width
    found = counted(comm, monkeypatch, hold_out=0.0, **how)
    # A question names the rows, an answer and a write hold the numbers and the values of each.
    assert dict(found) == {PULL: 8 * k, ROWS: (8 + values) * k, PUSH: (8 + values) * k}


@pytest.mark.mpi
@pytest.mark.parametrize("stretch", [1, 2, 50])
@pytest.mark.parametrize(("model", "width"), [({}, N_CLASSES), ({"model": "mlp", "hidden": (9, 4)}, 9)], ids=["softmax", "mlp"])
def test_what_travels_is_a_row_for_each_feature_that_occurs_however_many_features_there_are(comm, monkeypatch, model, width, stretch):
    check_bytes(comm, monkeypatch, width, data=rows(stretch=stretch), **model)


@pytest.mark.mpi
def test_the_count_catches_a_worker_that_reads_every_row(comm, monkeypatch):
    numbered = SparseTraining._numbered

    def greedy(self, x, listed):
        found = numbered(self, x, listed)
        return found._replace(features=np.concatenate([found.features, np.setdiff1d(np.arange(x.n_features), found.features)]))

    monkeypatch.setattr(SparseTraining, "_numbered", greedy)
    with pytest.raises(AssertionError):
        check_bytes(comm, monkeypatch, N_CLASSES)


@pytest.mark.mpi
@pytest.mark.parametrize("epochs", [1, 3])
def test_scoring_after_an_epoch_and_at_the_end_reads_the_features_of_the_scored_rows(comm, monkeypatch, epochs):
    kept, held = hold_out(N, SMALL.hold_out, SMALL.seed)
    x, _ = rows()
    x.eliminate_zeros()
    shares = [held[slice(*scoring.share(len(held), w, comm.size))] for w in range(comm.size)]
    scored = sum(np.unique(x[share].indices).size for share in shares)
    found = counted(comm, monkeypatch, epochs=epochs, steps=0)
    assert found[PULL] == 8 * (touched(comm.size, kept, epochs * -(-len(kept) // SMALL.batch)) + epochs * scored)


def test_a_million_features_take_memory_for_their_weights_and_the_stored_values():
    n, n_features = 3000, 1_000_000
    random = np.random.default_rng(1)
    columns = np.sort(random.integers(0, n_features, (n, 20)), axis=1)
    x = scipy.sparse.csr_matrix((np.ones(n * 20, np.float32), columns.ravel(), np.arange(n + 1) * 20), shape=(n, n_features))
    y = (columns < n_features // 2).sum(axis=1) > 10
    job = SMALL.with_values({"dtype": "float32", "optimizer": "adagrad", "batch": 100, "backend": "numba", "steps": 0, "epochs": 2}, "test")
    tracemalloc.start()
    summary = train(job, None, quiet=True, write=False, data=(x, y.astype(int)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15 * 8 * n_features, "some copies of two weights a feature, not 3000 rows of them (12 GB)"
    assert summary["samples"] == 2 * 2250 and summary["final_loss"] < 0.7


def test_a_model_takes_sparse_rows_and_dense_ones_alike():
    x, y = rows()
    kept: dict[str, Any] = {}
    train(SMALL.with_values({"scale": "maxabs"}, "test"), None, quiet=True, write=False, keep=kept, data=(x, y))
    np.testing.assert_allclose(kept["model"].outputs(x), kept["model"].outputs(x.toarray()), rtol=1e-12)


NET = '[[layer]]\ntype = "embedding"\ncolumns = [0]\nunits = 2\n[[layer]]\ntype = "dense"\n'


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sync": "quorum:1"}, "--sync quorum:1: the rows of arrays are sparse and stay so under --scale none; a policy that grants clocks"),
        ({"sync": "adaptive"}, "--sync adaptive: the rows of arrays are sparse"),
        ({"assign": "dynamic"}, "--assign dynamic: the rows of arrays are sparse"),
        ({"optimize": "workers"}, "--optimize workers: the rows of arrays are sparse"),
        ({"reads": "eager"}, "--reads eager: the rows of arrays are sparse"),
        ({"group": 2}, "--group 2: the rows of arrays are sparse"),
        ({"optimizer": "l1+clip+sgd"}, None),
        ({"model": "net.toml"}, "rows that are sparse, as under --scale none, need a dense first layer; begin with one, or make them dense by --scale standard"),
        ({"dtype": "float32"}, "arrays: values reach 1e+300, more than float32 holds after --scale; use --scale maxabs or --dtype float64"),
    ],
)
def test_what_sparse_rows_do_not_go_with_is_one_line(tmp_path, changes, says):
    (tmp_path / "net.toml").write_text(NET)
    if "model" in changes:
        changes = {"model": str(tmp_path / "net.toml")}
    x, y = rows()
    if "dtype" in changes:
        x.data[0] = 1e300
    if says is None:
        run(None, **changes)
        return
    with pytest.raises(UserError) as error:
        run(None, data=(x, y), write=True, out=str(tmp_path / "run"), **changes)
    assert says in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "run").exists()
