"""Hold every file of mpidml/nn/losses to the contract of a loss, found by the folder alone."""

from itertools import pairwise

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.nn.losses.base import Loss, make_loss
from mpidml.nn.models import build

NAMES = plugins.names("mpidml.nn.losses")
BACKEND = mpidml_kernels.backend("numba")
each = pytest.mark.parametrize("name", NAMES)
WEIGHTS = np.array([0.5, 2.0, 1.25])


def variants():
    """Give every loss without arguments, and with each option that it has."""
    for name in NAMES:
        yield make_loss(name)
        for option in ({"class_weights": WEIGHTS}, {"label_smoothing": 0.1}, {"class_weights": WEIGHTS, "label_smoothing": 0.1}):
            if all(hasattr(make_loss(name), key) for key in option):
                yield make_loss(name, **option)


def net_of(loss, n_outputs=3):
    return build("mlp", 5, n_outputs, (6,), "tanh", 0.0, loss, "float64", BACKEND)


def ran(net, w, x, y, scale=0.25):
    step = net.bind(len(x), w, np.full_like(w, np.nan), slot=len(x))
    step.x[...], step.y[...] = x, y
    step.load_labels()
    return step.run(scale), step.g.copy()


X = np.random.default_rng(0).standard_normal((11, 5))
Y = np.arange(11) % 3


def test_the_folder_holds_the_promised_losses():
    assert {"cross_entropy", "squared_error", "huber", "hinge", "binary_cross_entropy"} <= set(NAMES)
    assert Job().loss == "auto" and "auto" not in NAMES, "what nobody chose goes by the data"


@each
def test_a_loss_works_without_arguments_and_its_kernel_exists(name):
    loss = make_loss(name)
    assert isinstance(loss, Loss) and callable(getattr(BACKEND, loss.kernel))
    assert loss.n_outputs(2) in (1, 2) and loss.flops(8, 3) == 2 * loss.flops(4, 3) > 0


@pytest.mark.parametrize("loss", list(variants()), ids=lambda loss: f"{loss.kernel}{'+' * bool(loss.constants(3, float))}")
def test_the_sum_and_its_gradient_do_not_depend_on_how_the_rows_are_shared(loss):
    net = net_of(loss)
    w = net.init(1)
    whole, gradient = ran(net, w, X, Y)
    for cuts in ((0, 4, 11), (0, 1, 6, 11)):
        parts = [ran(net, w, X[lo:hi], Y[lo:hi]) for lo, hi in pairwise(cuts)]
        assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-12)
        np.testing.assert_allclose(sum(g for _, g in parts), gradient, rtol=1e-11, atol=1e-14)


def test_the_shares_catch_a_mean_over_the_weights_of_the_rows_at_hand():
    net = net_of(make_loss("cross_entropy", WEIGHTS))
    w = net.init(1)
    mean = lambda rows: ran(net, w, X[rows], Y[rows])[1] * 0.25 / WEIGHTS[Y[rows]].sum()
    shares = mean(slice(0, 4)) * 4 / 11 + mean(slice(4, 11)) * 7 / 11
    assert not np.allclose(shares, mean(slice(None)), rtol=1e-3)


@pytest.mark.parametrize("loss", list(variants()), ids=lambda loss: f"{loss.kernel}{'+' * bool(loss.constants(3, float))}")
def test_the_gradient_equals_finite_differences_and_a_score_the_loss(loss):
    net = net_of(loss)
    w, h = net.init(1), 1e-6
    total, g = ran(net, w, X, Y)
    expected = np.empty_like(w)
    for i in range(w.size):
        up, down = w.copy(), w.copy()
        up[i] += h
        down[i] -= h
        expected[i] = 0.25 * (ran(net, up, X, Y)[0] - ran(net, down, X, Y)[0]) / (2 * h)
    np.testing.assert_allclose(g, expected, rtol=1e-6, atol=1e-8)
    for block in (1, 4, 512):
        assert net.score(w, X, Y, block)[0] == pytest.approx(total, rel=1e-12)


def outputs_of(loss, rows=400):
    """Return outputs as large as they get, some equal, and labels."""
    random = np.random.default_rng(3)
    k = loss.n_outputs(2) if loss.n_outputs(2) == 1 else 3
    return np.round(random.standard_normal((rows, k)) * 10.0 ** random.uniform(-1, 2, (rows, 1)), 1), random.integers(0, max(k, 2), rows)


@each
def test_the_class_that_is_told_is_the_one_that_is_counted_as_right(name):
    loss = make_loss(name)
    z, y = outputs_of(loss)
    targets = np.empty_like(z)
    if loss.from_values:
        loss.fill(y, targets)
    assert loss.n_correct(BACKEND, z, y, targets) == (loss.decide(z) == y).sum() > 0


@each
def test_probabilities_sum_to_one_and_margins_put_rows_in_their_order(name):
    loss = make_loss(name)
    z, _ = outputs_of(loss)
    p, margins = loss.probabilities(z), loss.margins(z)
    assert margins.shape == (len(z), max(z.shape[1], 2)) and np.isfinite(margins).all()
    leads = margins.max(axis=1) > 0  # else two classes share the lead, and the first is told
    assert leads.mean() > 0.5 and (margins.argmax(axis=1) == loss.decide(z))[leads].all()
    if p is None:
        return
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    inner = (p > 1e-9) & (p < 1 - 1e-9)
    np.testing.assert_allclose(margins[inner], np.log(p[inner]) - np.log1p(-p[inner]), rtol=1e-5, atol=1e-6)
    sure = p[:, 0] == 1
    assert sure.sum() > 5 and len(np.unique(margins[sure, 0])) > 3, "probabilities that are all 1 are still told apart"


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("hubre", {}, "did you mean 'huber'?"),
        ("huber:0", {}, "'huber:0': delta = 0 is not a positive number"),
        ("huber:delta=x", {}, "delta = x is not a positive number"),
        ("hinge:-1", {}, "'hinge:-1': margin = -1 is not a positive number"),
        ("huber:1:2", {}, "takes 1 argument(s), 2 were given"),
        ("huber", {"class_weights": WEIGHTS}, "--class-weights: does nothing in --loss huber"),
        ("hinge", {"label_smoothing": 0.1}, "--label-smoothing: does nothing in --loss hinge"),
        ("cross_entropy", {"label_smoothing": 1.0}, "label smoothing 1.0 is not in [0, 1)"),
    ],
)
def test_a_loss_that_cannot_be_is_one_line(text, options, says):
    with pytest.raises(UserError) as error:
        make_loss(text, **options)
    assert says in str(error.value) and "\n" not in str(error.value)
