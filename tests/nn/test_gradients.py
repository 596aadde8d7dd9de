"""Hold the backward pass to the forward pass: finite differences, dot tests, and sums over any split of the batch."""

import itertools

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.nn.layers.base import Pass
from mpidml.nn.layers.dense import ACTIVATIONS, Dense
from mpidml.nn.models import build

BACKENDS = [mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
losses = pytest.mark.parametrize("loss", plugins.names("mpidml.nn.losses"))
M = 7


def fill(step, rows=slice(None), n_rows=M, seed=0):
    """Give a step some rows of a fixed batch of `n_rows`."""
    random = np.random.default_rng(seed)
    step.x[...] = random.standard_normal((n_rows, step.x.shape[1]))[rows]
    step.y[...] = (random.integers(0, 1 << 30, n_rows) % 3)[rows]
    step.ids[...] = (np.arange(n_rows) * 13 + 5)[rows]
    step.salt[0] = 99
    step.load_labels()


def gradient(net, w, rows=slice(None), scale=0.25, n_rows=M):
    g = np.full(net.n_params, np.nan, net.dtype)
    step = net.bind(len(range(n_rows)[rows]), w, g)
    fill(step, rows, n_rows)
    return step.run(scale), g


def differences(net, w, scale=0.25, h=1e-6):
    """Return the gradient of scale times the loss by central differences."""
    result = np.empty_like(w)
    for i in range(w.size):
        up, down = w.copy(), w.copy()
        up[i] += h
        down[i] -= h
        result[i] = scale * (gradient(net, up)[0] - gradient(net, down)[0]) / (2 * h)
    return result


def small(activation="relu", loss="cross_entropy", backend=BACKENDS[1], dropout=0.4, dtype="float64"):
    net = build("mlp", 5, 3, (6, 4), activation, dropout, loss, dtype, backend)
    w = net.init(3)
    return net, w + np.random.default_rng(1).standard_normal(w.size).astype(dtype) * net.dtype.type(0.1)  # biases, too, leave 0


@both
@losses
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_equals_finite_differences_with_dropout_on(activation, loss, backend):
    net, w = small(activation, loss, backend)
    np.testing.assert_allclose(gradient(net, w)[1], differences(net, w), rtol=1e-6, atol=1e-8)


def test_finite_differences_catch_a_backward_pass_without_its_mask():
    net, w = small("tanh")
    step = net.bind(M, w, np.empty_like(w))
    fill(step)
    step._backward = tuple(thunk for thunk in step._backward if thunk[0] is not net.backend.dropout_in_place)
    step.run(0.25)
    assert not np.allclose(step.g, differences(net, w), rtol=1e-3)


@both
def test_dense_backward_is_the_transpose_of_dense_forward(backend):
    random = np.random.default_rng(0)
    layer = Dense(4)
    layer.connect(0, 6, None)
    x, d, weight = (random.standard_normal(shape) for shape in ((9, 6), (9, 4), (6, 4)))
    out, dx, dw, db = np.empty((9, 4)), np.empty((9, 6)), np.empty((6, 4)), np.empty(4)
    parameters, gradients = {"weight": weight, "bias": np.zeros(4)}, {"weight": dw, "bias": db}
    a = Pass(x, out, layer.kept(9, x.dtype), parameters, d, dx, gradients)
    thunks = layer.forward(backend, a)
    for group in layer.backward(backend, a):
        thunks += group.thunks
    for function, arguments in thunks:
        function(*arguments)
    assert np.vdot(out, d) == pytest.approx(np.vdot(x, dx)) == pytest.approx(np.vdot(weight, dw))
    np.testing.assert_allclose(db, d.sum(axis=0))


@losses
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numpy_and_numba_agree(activation, dtype, loss):
    results = []
    for backend in BACKENDS:
        net, w = small(activation, loss, backend, dtype=dtype)
        results.append(gradient(net, w))
    eps = float(np.finfo(dtype).eps)
    assert results[0][0] == pytest.approx(results[1][0], rel=50 * eps)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=200 * eps, atol=50 * eps)


@losses
@pytest.mark.parametrize("cuts", [(3,), (1, 2, 6), (1, 2, 3, 4, 5, 6)])
def test_gradients_of_any_row_groups_sum_to_the_gradient_of_the_batch(cuts, loss):
    net, w = small("tanh", loss)
    whole_loss, whole = gradient(net, w)
    edges = [0, *cuts, M]
    parts = [gradient(net, w, slice(lo, hi)) for lo, hi in itertools.pairwise(edges)]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole_loss, rel=1e-12)
    np.testing.assert_allclose(sum(g for _, g in parts), whole, rtol=1e-11, atol=1e-13)


def test_the_split_catches_a_mask_that_follows_the_place_in_the_batch():
    net, w = small("tanh")
    whole = gradient(net, w)[1]
    total = np.zeros_like(w)
    for rows in (slice(0, 3), slice(3, M)):
        step = net.bind(len(range(M)[rows]), w, np.empty_like(w))
        fill(step, rows)
        step.ids[...] = np.arange(len(step.ids))
        step.run(0.25)
        total += step.g
    assert not np.allclose(total, whole, rtol=1e-3)


def test_two_dropout_layers_of_one_width_have_masks_of_their_own():
    net = build("mlp", 8, 3, (200, 200), "linear", 0.5, backend=BACKENDS[1])
    w = net.init(0)
    step = net.bind(1, w, np.empty_like(w))
    fill(step, slice(0, 1))
    step.run(1.0)
    dropped = [group.thunks[-1][1][-1] == 0 for group in step.forward if group.thunks[-1][0] is net.backend.dropout]
    assert len(dropped) == 2 and 0.3 < (dropped[0] == dropped[1]).mean() < 0.7


def test_the_pass_decides_the_mask():
    net, w = small("tanh")
    first = gradient(net, w)[1].copy()
    step = net.bind(M, w, np.empty_like(w))
    fill(step)
    step.salt[0] += np.uint64(1)
    step.run(0.25)
    assert not np.allclose(first, step.g)
    np.testing.assert_array_equal(first, gradient(net, w)[1])


@both
def test_ten_steps_equal_a_plain_loop(backend):
    n_rows, rate, sizes = 20, 0.1, [5, 6, 4, 3]
    net = build("mlp", 5, 3, (6, 4), "relu", 0.0, "cross_entropy", "float64", backend)
    w = net.init(7)
    layers = [(net.params.view(w, f"layers.{i}.weight").copy(), net.params.view(w, f"layers.{i}.bias").copy()) for i in range(3)]
    assert [weight.shape for weight, _ in layers] == list(itertools.pairwise(sizes))
    g = np.empty_like(w)
    step = net.bind(n_rows, w, g)
    fill(step, n_rows=n_rows)
    x, y = step.x.copy(), step.y.copy()
    for _ in range(10):
        loss = step.run(1 / n_rows)
        w -= rate * g
        acts = [x]
        for i, (weight, bias) in enumerate(layers):
            z = acts[-1] @ weight + bias
            acts.append(np.maximum(z, 0) if i < 2 else z)
        p = np.exp(acts[-1] - acts[-1].max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        assert loss == pytest.approx(-np.log(p[np.arange(n_rows), y]).sum(), rel=1e-10)
        d = (p - np.eye(3)[y]) / n_rows
        for i in (2, 1, 0):
            weight, bias = layers[i]
            dw, db, d = acts[i].T @ d, d.sum(axis=0), (d @ weight.T) * (acts[i] > 0)
            layers[i] = weight - rate * dw, bias - rate * db
    np.testing.assert_allclose(w, np.concatenate([np.concatenate([weight.ravel(), bias]) for weight, bias in layers]), rtol=1e-9, atol=1e-12)
