"""Losses and class weights meet data: what is read from a job, how many outputs there are, what counts as right, and errors in one line."""

from typing import NamedTuple

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.nn.losses.base import make_loss, parse_weights
from mpidml.nn.models import build, for_data, layers_of

BACKEND = mpidml_kernels.backend("numba")
X = np.random.default_rng(0).standard_normal((12, 4))


class Data(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    n_outputs: int
    val_x: np.ndarray = X[:0]
    val_y: np.ndarray = np.zeros(0)


def data(y, n_outputs=0):
    return Data(X, y, X[:2], y[:2], n_outputs)


THREE = data(np.arange(12) % 3, 3)
TWO = data(np.arange(12) % 2, 2)
BITS = data((np.random.default_rng(1).random((12, 5)) > 0.5).astype(np.float32))
NUMBERS = data(np.linspace(-1, 1, 12))


def net_for(given, **changes):
    job = Job(**{"hidden": (6,), "dtype": "float64", **changes})
    return for_data(job, layers_of(job, ""), given, BACKEND)


@pytest.mark.parametrize(
    ("given", "loss", "n_outputs"),
    [
        (THREE, "cross_entropy", 3),
        (THREE, "hinge", 3),
        (THREE, "huber", 3),
        (TWO, "cross_entropy", 2),
        (TWO, "binary_cross_entropy", 1),
        (BITS, "binary_cross_entropy", 5),
        (BITS, "squared_error", 5),
        (NUMBERS, "huber:0.5", 1),
    ],
)
def test_the_loss_and_the_data_decide_the_number_of_outputs(given, loss, n_outputs):
    net = net_for(given, loss=loss)
    assert net.n_outputs == n_outputs
    score, n_correct = net.score(net.init(0), given.x, given.y)
    assert score > 0 and 0 <= n_correct <= 12


def test_one_output_is_right_on_the_right_side_of_zero_and_several_when_all_are():
    net = net_for(TWO, loss="binary_cross_entropy")
    w = net.init(3)
    out = net.predict(w, X)[:, 0]
    assert net.score(w, X, TWO.y)[1] == ((out > 0) == TWO.y).sum() not in (0, 12)
    total = np.maximum(out, 0) - out * TWO.y + np.log1p(np.exp(-np.abs(out)))
    assert net.score(w, X, TWO.y)[0] == pytest.approx(total.sum())
    several = net_for(BITS, loss="binary_cross_entropy")
    w = several.init(3)
    truth = (several.predict(w, X) > 0).astype(np.float32)
    truth[0, 0] = 1 - truth[0, 0]
    assert several.score(w, X, truth)[1] == 11


def test_a_step_on_the_labels_of_two_classes_is_that_of_their_values():
    net = net_for(TWO, loss="binary_cross_entropy")
    w = net.init(3)
    step = net.bind(12, w, np.empty_like(w))
    step.x[...], step.y[...] = X, TWO.y
    step.load_labels()
    assert np.array_equal(step.targets[:, 0], TWO.y)
    assert step.run(1.0) == pytest.approx(net.score(w, X, TWO.y)[0])


def test_balanced_weights_give_every_class_the_same_say_and_a_mean_of_one():
    y = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    weights = parse_weights("balanced", y, 3)
    assert weights == pytest.approx([9 / (3 * 6), 9 / (3 * 2), 9 / 3])
    assert weights[y].mean() == pytest.approx(1) and len({round(weights[y][y == c].sum(), 12) for c in range(3)}) == 1
    assert parse_weights("", y, 3) is None and list(parse_weights("1, 2.5,3", y, 3)) == [1, 2.5, 3]


@pytest.mark.parametrize(
    "changes", [{}, {"label_smoothing": 0.1}, {"class_weights": "1,2,0.5"}, {"label_smoothing": 0.1, "class_weights": "1,2,0.5"}]
)
def test_the_cross_entropy_is_its_formula(changes):
    net = net_for(THREE, **changes)
    w = net.init(0)
    z = net.predict(w, X)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    s, weights = changes.get("label_smoothing", 0.0), np.array([1, 2, 0.5]) if "class_weights" in changes else np.ones(3)
    t = weights * ((1 - s) * np.eye(3)[THREE.y] + s / 3)
    assert net.score(w, X, THREE.y)[0] == pytest.approx(-(t * log_p).sum(), rel=1e-12)


def test_equal_weights_and_no_smoothing_are_the_plain_loss():
    plain, weighted = net_for(THREE), net_for(THREE, class_weights="balanced")
    w = plain.init(0)
    assert weighted.loss.kernel == "weighted_xent" and plain.loss.kernel == "softmax_xent"
    assert weighted.score(w, X, THREE.y) == (pytest.approx(plain.score(w, X, THREE.y)[0]), plain.score(w, X, THREE.y)[1])
    doubled = net_for(THREE, class_weights="2,2,2")
    assert doubled.score(w, X, THREE.y)[0] == pytest.approx(2 * plain.score(w, X, THREE.y)[0])


@pytest.mark.parametrize(
    ("given", "changes", "says"),
    [
        (NUMBERS, {"loss": "hinge"}, "--loss hinge: takes class labels, the targets are numbers (float64); use squared_error or huber"),
        (NUMBERS, {"loss": "huber", "class_weights": "balanced"}, "--class-weights balanced: the data have no classes"),
        (NUMBERS, {"loss": "binary_cross_entropy"}, "--loss binary_cross_entropy: takes targets of 0 and 1, row 0 holds -1"),
        (THREE, {"loss": "binary_cross_entropy"}, "takes labels 0 and 1, the data have 3 classes; use cross_entropy"),
        (THREE, {"class_weights": "1,2"}, "--class-weights 1,2: are 2 weight(s), the data have 3 classes"),
        (THREE, {"class_weights": "1,2,x"}, "--class-weights 1,2,x: 'x' is not a positive number"),
        (THREE, {"class_weights": "1,2,0"}, "'0' is not a positive number"),
        (THREE, {"class_weights": "balance"}, "'balance' is not a positive number; give 'balanced'"),
        (data(np.zeros(12, int), 2), {"class_weights": "balanced"}, "--class-weights balanced: class 1 has no training rows"),
        (THREE, {"loss": "huber", "class_weights": "balanced"}, "--class-weights: does nothing in --loss huber"),
        (THREE, {"loss": "hinge", "label_smoothing": 0.1}, "--label-smoothing: does nothing in --loss hinge"),
    ],
)
def test_a_loss_that_does_not_fit_the_data_is_one_line(given, changes, says):
    with pytest.raises(UserError) as error:
        net_for(given, **changes)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_loss_by_name_or_by_object_is_the_same_net():
    w = build("softmax", 4, 3, loss="huber:0.5").init(0)
    by_name, by_object = (build("softmax", 4, 3, loss=loss) for loss in ("huber:0.5", make_loss("huber", None)))
    assert by_name.score(w, X, THREE.y)[0] < by_object.score(w, X, THREE.y)[0], "a narrower quadratic part loses less far away"


@pytest.mark.bench
def test_a_network_in_float32_learns_as_torch_does():
    import torch

    layers = (
        'type="layer_norm"',
        'type="dense"\nunits=6\nactivation="gelu"',
        'type="dense"\nunits=5\nactivation="softplus"',
        'type="layer_norm"',
        'type="dense"',
    )
    text = "\n".join(f"[[layer]]\n{layer}" for layer in layers)
    job = Job(model="net.toml", label_smoothing=0.1, class_weights="1,2,0.5")
    net = for_data(job, layers_of(job, text), THREE, BACKEND)
    w = net.init(0)
    t = torch.nn
    theirs = t.Sequential(
        t.LayerNorm(4), t.Linear(4, 6), t.GELU(approximate="tanh"), t.Linear(6, 5), t.Softplus(), t.LayerNorm(5), t.Linear(5, 3)
    )  # fmt: skip
    with torch.no_grad():
        tensors = list(theirs.parameters())
        for tensor, view in zip(tensors, net.params.views(w).values(), strict=True):
            tensor.copy_(torch.tensor(view.T if view.ndim == 2 else view))
    loss = t.CrossEntropyLoss(torch.tensor([1, 2, 0.5]), label_smoothing=0.1, reduction="sum")
    step = net.bind(12, w, np.empty_like(w))
    step.x[...], step.y[...] = X, THREE.y
    for _ in range(20):
        theirs.zero_grad()
        expected = loss(theirs(torch.tensor(X, dtype=torch.float32)), torch.tensor(THREE.y))
        expected.backward()
        assert step.run(1 / 12) == pytest.approx(expected.item(), rel=2e-5)
        w -= np.float32(0.1) * step.g
        with torch.no_grad():
            for tensor in tensors:
                tensor -= 0.1 / 12 * tensor.grad
    for tensor, view in zip(tensors, net.params.views(w).values(), strict=True):
        np.testing.assert_allclose(view.T if view.ndim == 2 else view, tensor.detach().numpy(), atol=2e-5)
