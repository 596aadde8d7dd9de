"""Hold the estimators to scikit-learn's conventions, and to the run that the command line makes: tests of the extra `bench`, which brings it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpidml
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.readers import read
from tests.ranks import mpirun, python

pytestmark = pytest.mark.bench("sklearn")
KAR = read("digits", "kar")
X, Y = KAR.x[::4], np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])[KAR.y[::4]]
AMOUNTS = read("digits", "mor").x[::4, 1] * 100 - 7.5
NAMES = ["MLPClassifier", "MLPRegressor"]


@pytest.mark.parametrize("name", NAMES)
def test_every_check_of_scikit_learn_holds(name: str) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(getattr(mpidml, name)(), on_skip=None, on_fail=None)
    assert {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")} == {}
    assert sum(r["status"] == "passed" for r in results) > 40


def test_the_checks_see_a_parameter_that_fit_changes() -> None:
    from sklearn.utils.estimator_checks import check_estimators_overwrite_params

    class Changing(mpidml.MLPClassifier):  # type: ignore[name-defined,misc]
        def fit(self, X: Any, y: Any) -> Any:
            self.lr = self.lr / 2
            return super().fit(X, y)

    check_estimators_overwrite_params("MLPClassifier", mpidml.MLPClassifier())
    with pytest.raises(AssertionError, match="should not change"):
        check_estimators_overwrite_params("Changing", Changing())


def test_a_parameter_means_what_the_flag_of_its_name_does() -> None:
    """Every parameter but the seed is a field of Job with its default, or one of its type; a run with them is that of the command line."""
    given = {"hidden": (20,), "activation": "tanh", "optimizer": "adam", "lr": 0.01, "epochs": 3, "batch": 32, "class_weights": "balanced", "scale": "minmax"}
    estimator = mpidml.MLPClassifier(**given, random_state=5).fit(X.astype(np.float64), Y)
    kept: dict[str, Any] = {}
    codes = np.unique(Y, return_inverse=True)[1]
    job = Job(**given, seed=5, hold_out=0.0, dtype="float64")
    mpidml.train(job, quiet=True, write=False, keep=kept, data=(X.astype(np.float64), codes))
    assert estimator.model_.values.tobytes() == kept["values"].tobytes()
    assert (estimator.n_iter_, estimator.n_features_in_, list(estimator.classes_)) == (3, 64, sorted(set(Y)))
    for name, default in mpidml.MLPClassifier().get_params().items():
        assert name in ("random_state", "dtype") or default == getattr(Job, name), name


def test_words_are_learnt_and_probabilities_are_those_of_the_classes() -> None:
    for loss in ("cross_entropy", "binary_cross_entropy"):
        few = np.isin(Y, ["one", "two"]) if loss == "binary_cross_entropy" else np.ones(len(Y), bool)
        estimator = mpidml.MLPClassifier(loss=loss).fit(X[few], Y[few])
        shares = estimator.predict_proba(X[few])
        assert shares.shape == (few.sum(), len(set(Y[few]))) and np.allclose(shares.sum(axis=1), 1)
        assert (estimator.classes_[shares.argmax(axis=1)] == estimator.predict(X[few])).all()
        assert estimator.score(X[few], Y[few]) > 0.98
        from sklearn.metrics import log_loss

        assert log_loss(Y[few], shares) < 0.1 < log_loss(Y[few], shares[:, ::-1])
    margins = mpidml.MLPClassifier(loss="hinge").fit(X, Y)
    assert margins.score(X, Y) > 0.98 and not hasattr(margins, "predict_proba")


@pytest.mark.parametrize("y", [AMOUNTS, np.stack([AMOUNTS, 1 - AMOUNTS / 2], axis=1)], ids=["one target", "two targets"])
def test_amounts_are_predicted_in_their_own_unit_and_shape(y: Any) -> None:
    estimator = mpidml.MLPRegressor(lr=0.02).fit(X, y)
    assert estimator.predict(X).shape == y.shape and estimator.score(X, y) > 0.95
    wrong = estimator.predict(X) - y
    assert estimator.loss_ < 2 * 0.5 * (wrong**2).reshape(len(y), -1).sum(axis=1).mean()


def test_they_work_where_scikit_learn_takes_estimators() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    search = GridSearchCV(mpidml.MLPClassifier(hidden=(20,)), {"lr": [1e-6, 0.05], "sync": ["bsp", "ssp:1"]}, cv=2).fit(X, Y)
    assert search.best_params_["lr"] == 0.05 and search.best_score_ > 0.85
    whole = make_pipeline(StandardScaler(), mpidml.MLPClassifier(hidden=(20,), scale="none"))
    whole.set_params(mlpclassifier__epochs=4).fit(X, Y)
    assert whole[-1].n_iter_ == 4 and clone(whole)[-1].get_params() == whole[-1].get_params()
    again = pickle.loads(pickle.dumps(whole))
    assert (again.predict(X) == whole.predict(X)).all()


def test_rows_in_single_precision_are_learnt_in_it() -> None:
    assert mpidml.MLPClassifier(epochs=1).fit(X.astype(np.float32), Y).model_.values.dtype == np.float32
    assert mpidml.MLPClassifier(epochs=1).fit(X.astype(np.int64), Y).model_.values.dtype == np.float64
    assert mpidml.MLPClassifier(epochs=1, dtype="float32").fit(X.astype(np.float64), Y).model_.values.dtype == np.float32


def test_a_seed_that_is_drawn_differs_from_fit_to_fit_and_a_generators_does_not() -> None:
    drawn = [mpidml.MLPClassifier(hidden=(5,), epochs=1, random_state=None).fit(X, Y).model_.values for _ in range(2)]
    assert not np.array_equal(*drawn)
    drawn = [mpidml.MLPClassifier(hidden=(5,), epochs=1, random_state=np.random.RandomState(3)).fit(X, Y).model_.values for _ in range(2)]
    assert np.array_equal(*drawn)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sync": "spp:1"}, "did you mean 'ssp'"),
        ({"lr": -1.0}, "--lr -1.0: is not a positive number"),
        ({"batch": 2.5}, "MLPClassifier: batch: 2.5 is not a whole number"),
        ({"lr": 1e30}, "MLPClassifier: the loss is no number since clock"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_value_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        mpidml.MLPClassifier(**options).fit(X, Y)
    assert isinstance(error.value, ValueError) and says in str(error.value) and "\n" not in str(error.value)


def test_a_fit_that_fails_alone_leaves_no_communicator_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An MPI has some thousand of them, a search may fail as often."""
    from mpidml.runtime import ranks

    freed = []

    class Counted(ranks.CountedComm):
        def free(self) -> None:
            freed.append(self.rank)
            super().free()

    monkeypatch.setattr(ranks, "CountedComm", Counted)
    for loss in ("binary_cross_entropy", "cross_entropy"):
        try:
            mpidml.MLPClassifier(loss=loss, hidden=(2,), epochs=1).fit(X, Y)
        except UserError as error:
            assert "takes labels 0 and 1" in str(error)
    assert freed == [0, 0]


SCRIPT = """
import sys, numpy as np, mpidml, mpidml.ml.base as base
seeds, train = [], base.train
base.train = lambda job, *arguments, **options: seeds.append(job.seed) or train(job, *arguments, **options)
x, y = np.load(sys.argv[1])["x"], np.load(sys.argv[1])["y"]
for sync, random_state in (("bsp", 0), ("bsp", None), ("ssp:1", 0)):
    estimator = mpidml.MLPClassifier(hidden=(20,), epochs=8, sync=sync, random_state=random_state).fit(x, y)
    values = estimator.model_.values
    print(f"{sync} {random_state} {estimator.summary_['ranks']} {estimator.score(x, y):.3f} {float(np.abs(values).sum())!r} {seeds}\\n", end="", flush=True)
"""


def test_under_mpirun_every_rank_gets_the_one_result_and_nothing_is_written(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=X.astype(np.float64), y=Y)
    (tmp_path / "s.py").write_text(SCRIPT)
    found = {}
    before = set(os.listdir())
    for n in (1, 3):
        arguments = [tmp_path / "s.py", tmp_path / "t.npz"]
        result = python(list(map(str, arguments)), 90) if n == 1 else mpirun(n, arguments, 90)
        assert result.code == 0, result
        lines = result.out.splitlines()
        assert len(lines) == 3 * n and len(set(lines)) == 3, result.out
        assert all(float(line.split()[3]) > 0.9 and line.split()[2] == str(n) for line in lines), result.out
        found[n] = {tuple(line.split()[:2]): float(line.split()[4]) for line in lines}
    assert found[1]["bsp", "0"] == pytest.approx(found[3]["bsp", "0"], rel=1e-9)
    assert found[1]["bsp", "None"] != pytest.approx(found[1]["bsp", "0"], rel=1e-9)
    assert set(os.listdir()) == before


def test_without_scikit_learn_one_line_names_the_extra() -> None:
    text = "import sys; sys.modules['sklearn'] = None\nfrom mpidml import *\nimport mpidml\ntry: mpidml.MLPClassifier\nexcept Exception as e: print(type(e).__name__, e)"
    result = python(["-c", text])
    assert result.out.strip().startswith("UserError") and "pip install 'mpidml[ml]'" in result.out and len(result.out.splitlines()) == 1, result


def estimator_of(name: str, **given: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return an estimator, what it learns, and what the first `partial_fit` is told."""
    if name == "MLPRegressor":
        return mpidml.MLPRegressor(**{"hidden": (8,), "lr": 0.02, **given}), AMOUNTS, {}
    return mpidml.MLPClassifier(**{"hidden": (8,), **given}), Y, {"classes": sorted(set(Y))}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", [{}, {"optimizer": "adam", "lr": 0.003}, {"sync": "ssp:1", "backend": "numpy"}, {"dropout": 0.3}], ids=str)
def test_partial_fits_are_epochs_of_one_fit_to_the_last_bit(name: str, given: dict[str, Any]) -> None:
    """Order of samples, noise, the optimizer's state and its count of steps go on, after `fit` and from the beginning."""
    whole, y, first = estimator_of(name, epochs=3, **given)
    whole.fit(X, y)
    parts = estimator_of(name, epochs=1, **given)[0].fit(X, y).partial_fit(X, y).partial_fit(X, y)
    alone = estimator_of(name, epochs=9, **given)[0].partial_fit(X, y, **first)
    alone = pickle.loads(pickle.dumps(alone)).partial_fit(X, y).partial_fit(X, y)
    assert whole.model_.values.tobytes() == parts.model_.values.tobytes() == alone.model_.values.tobytes()
    assert whole.n_iter_ == parts.n_iter_ == alone.n_iter_ == 3
    afresh = estimator_of(name, epochs=1, **given)[0].fit(X, y)
    again = afresh.model_.values.copy()
    assert not np.array_equal(afresh.partial_fit(X, y).model_.values, again), "the broken variant: a call that begins anew"
    assert np.array_equal(afresh.fit(X, y).model_.values, again), "`fit` begins anew"


def test_partial_fit_takes_rows_that_lack_classes_and_keeps_the_scaling() -> None:
    model, y, first = estimator_of("MLPClassifier")
    model.partial_fit(X[:60], y[:60], **first)
    scaling = model.model_.scaler.offset.copy()
    few = np.flatnonzero(y == "zero")[:3]
    model.partial_fit(X[few] + 100, y[few])
    assert model.model_.network.n_outputs == 10 and np.array_equal(model.model_.scaler.offset, scaling)
    assert mpidml.MLPClassifier(hidden=(8,)).partial_fit(X[few], y[few], **first).predict_proba(X[:2]).shape == (2, 10)
    amounts = mpidml.MLPRegressor(hidden=(8,)).partial_fit(X, AMOUNTS)
    targets = amounts.model_.targets
    assert amounts.partial_fit(X, 3 * AMOUNTS + 1).model_.targets.scale == targets.scale


def test_what_partial_fit_cannot_do_is_one_line() -> None:
    model, y, first = estimator_of("MLPClassifier")
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match=r"`y` has labels \[.*'eight'.*\] that are not in `classes`"):
        model.partial_fit(X, y, classes=["one", "two"])
    model.partial_fit(X, y, **first)
    with pytest.raises(ValueError, match="is not the same as on last call"):
        model.partial_fit(X, y, classes=["one", "two"])
    for given, says in (({"patience": 2, "validate": 0.1}, "partial_fit: validate = 0.1 is for a whole run"), ({"lr_policy": "cosine"}, "lr_policy cosine takes")):
        with pytest.raises(ValueError, match=says):
            estimator_of("MLPClassifier", **given)[0].partial_fit(X, y, **first)
    with pytest.raises(ValueError, match="has 2 target"):
        mpidml.MLPRegressor(hidden=(8,), epochs=1).fit(X, AMOUNTS).partial_fit(X, np.stack([AMOUNTS, AMOUNTS], axis=1))


def test_weights_of_rows_are_refused_by_a_line_and_seen_as_missing() -> None:
    from sklearn.utils.validation import has_fit_parameter

    for name in NAMES:
        model, y, _ = estimator_of(name, epochs=1)
        assert not has_fit_parameter(model, "sample_weight")
        with pytest.raises(UserError, match="sample_weight: rows have no weights of their own here; leave it out"):
            model.fit(X, y, sample_weight=np.ones(len(X)))
        with pytest.raises(TypeError, match="unexpected keyword argument 'weights'"):
            model.fit(X, y, weights=1)


def test_patience_ends_a_fit_and_keeps_the_best_parameters() -> None:
    model, y, _ = estimator_of("MLPClassifier", validate=0.2, patience=2, epochs=60, lr=0.3)
    model.fit(X, y)
    summary = model.summary_
    assert model.n_iter_ < 60 and summary["best_epoch"] == model.n_iter_ - 2 and summary["val_loss"] == pytest.approx(summary["best_val_loss"])
    with pytest.raises(ValueError, match=r"--patience 2: needs rows to judge by"):
        estimator_of("MLPClassifier", patience=2)[0].fit(X, y)


def test_a_net_with_several_heads_is_refused(tmp_path: Path) -> None:
    net = tmp_path / "net.toml"
    net.write_text('[[layer]]\ntype = "dense"\nunits = 4\n[[head]]\nname = "a"\nlabel = 0\n[[head]]\nname = "b"\nlabel = 1\n')
    with pytest.raises(ValueError, match="has several heads, and an estimator learns one thing"):
        mpidml.MLPRegressor(model=str(net)).fit(X, np.stack([AMOUNTS, AMOUNTS], axis=1))
