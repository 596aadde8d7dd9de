"""Hold every file of mpidml/nn/layers to the contract of a layer, found by the folder alone."""

import tracemalloc

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.nn.layers.base import Layer, Pass
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.stage import Stage, n_cuts
from mpidml.nn.step import Edges, Memory, Step

NAMES = plugins.names("mpidml.nn.layers")
BACKENDS = [mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")]
each = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
REQUIRED = {"embedding": {"columns": (0,), "rows": 3}}
M = 7


def make(name):
    return plugins.load("mpidml.nn.layers", name)(**REQUIRED.get(name, {}))


def dense(units=None, activation="linear"):
    return plugins.load("mpidml.nn.layers", "dense")(units, activation)


def net_of(name, backend, dtype="float64"):
    """Put the layer between two others, or first or last where it must be."""
    layer = make(name)
    last = layer.ends
    layers = [dense(5, "tanh"), layer] if last else [layer, dense(5, "tanh"), dense()] if name == "embedding" else [dense(6, "tanh"), layer, dense()]
    return connect(layers, "test", 4, 3, make_loss("cross_entropy"), dtype, backend)


def filled(net, w, m=M):
    random = np.random.default_rng(0)
    step = net.bind(m, w, np.full_like(w, np.nan))
    step.x[...] = random.standard_normal(step.x.shape)
    step.x[:, 0] = random.integers(0, 3, m)  # codes for a layer that takes them, numbers to the others
    step.y[...] = random.integers(0, 3, m)
    step.salt[0] = 5
    return step


def weights(net):
    w = net.init(3)
    return w + np.random.default_rng(1).standard_normal(w.size).astype(w.dtype) * w.dtype.type(0.1)


def test_the_folder_holds_the_promised_layers():
    assert {"dense", "dropout", "layer_norm", "embedding"} <= set(NAMES)


@each
def test_a_layer_declares_itself_and_its_ranges_tile_its_gradient(name):
    layer = make(name)
    assert isinstance(layer, Layer)
    n_out = layer.connect(0, 6, 4 if layer.ends else None)
    assert n_out == layer.n_out and layer.n_in == 6
    size = sum(int(np.prod(shape)) for _, shape in layer.tensors)
    for split in (False, True):
        parts = layer.parts(4, split)
        assert sorted(i for lo, hi in parts for i in range(lo, hi)) == list(range(size))
    assert layer.flops(8, True) == 2 * layer.flops(4, True) and layer.flops(4, True) >= layer.flops(4, False)
    assert all(len(buffer) == 9 for buffer in layer.kept(9, np.float32)) or layer.training_only


def families(name):
    """Return the families whose kernels the passes of a network with this layer call on demand, and those that its layers declare."""
    backend = BACKENDS[0]
    net = net_of(name, backend)
    step = filled(net, weights(net))
    called = {id(function) for group in (*step.forward, *step.backward) for function, _ in group.thunks}
    used = {family for family in mpidml_kernels.ON_DEMAND if any(id(getattr(backend, law)) in called for law in family.LAWS)}
    return used, {family for layer in net.layers for family in layer.families}


@each
def test_it_declares_the_kernels_that_are_loaded_for_it(name):
    used, declared = families(name)
    assert used == declared


def test_the_check_sees_a_layer_that_declares_nothing(monkeypatch):
    used, declared = families("layer_norm")
    assert used and used == declared
    monkeypatch.setattr(plugins.load("mpidml.nn.layers", "layer_norm"), "families", ())
    used, declared = families("layer_norm")
    assert used != declared


@each
@both
def test_its_gradient_equals_finite_differences(name, backend):
    net = net_of(name, backend)
    w, h = weights(net), 1e-6
    step = filled(net, w)
    step.run(0.25)
    expected = np.empty_like(w)
    for i in range(w.size):
        up, down = w.copy(), w.copy()
        up[i] += h
        down[i] -= h
        expected[i] = 0.25 * (filled(net, up).run(0.25) - filled(net, down).run(0.25)) / (2 * h)
    np.testing.assert_allclose(step.g, expected, rtol=1e-6, atol=1e-8)


def test_finite_differences_catch_a_layer_that_passes_its_gradient_on_unchanged():
    net = net_of("layer_norm", BACKENDS[0])
    step = filled(net, weights(net))
    step.run(0.25)
    right = step.g.copy()
    step._backward = tuple(thunk for thunk in step._backward if thunk[0] is not net.backend.layer_norm_backward)
    step.run(0.25)
    assert not np.allclose(step.g, right, rtol=1e-3)


@each
@both
def test_its_input_gradient_equals_finite_differences(name, backend):
    layer, m, h = make(name), 4, 1e-6
    if name == "embedding":
        return  # nobody wants the gradient of the data
    n_out = layer.connect(1, 5, 5 if layer.ends else None)
    random = np.random.default_rng(2)
    shapes = dict(layer.tensors)
    parameters = {key: random.standard_normal(shape) for key, shape in shapes.items()}
    x, d, out = random.standard_normal((m, 5)), random.standard_normal((m, n_out)), np.empty((m, n_out))
    delta = d.copy()
    dx = delta if layer.in_place else np.empty_like(x)
    ids, salt, kept = np.arange(m), np.array([7], np.uint64), layer.kept(m, float)
    a = Pass(x, out, kept, parameters, delta, dx, {key: np.empty(shape) for key, shape in shapes.items()}, ids, salt)
    forward = layer.forward(backend, a)

    def value():
        for function, arguments in forward:
            function(*arguments)
        return float(np.vdot(out, d))

    expected = np.empty_like(x)
    for at in np.ndindex(x.shape):
        x[at] += h
        up = value()
        x[at] -= 2 * h
        expected[at] = (up - value()) / (2 * h)
        x[at] += h
    value()
    for group in layer.backward(backend, a):
        for function, arguments in group.thunks:
            function(*arguments)
    np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-8)


@each
def test_both_backends_agree_and_so_do_all_splits_of_the_rows(name):
    found = []
    for backend in BACKENDS:
        net = net_of(name, backend)
        step = filled(net, weights(net))
        found.append((step.run(0.25), step.g.copy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-10, atol=1e-12)
    total, whole = np.zeros_like(step.g), step
    for rows in (slice(0, 3), slice(3, M)):
        part = net.bind(rows.stop - rows.start, whole.w, np.empty_like(whole.g), slot=rows.start)
        part.x[...], part.y[...], part.ids[...], part.salt[...] = whole.x[rows], whole.y[rows], whole.ids[rows], whole.salt
        part.run(0.25)
        total += part.g
    np.testing.assert_allclose(total, whole.g, rtol=1e-10, atol=1e-12)


def sums_of_two(net, add=True):
    """Return the gradient of the same rows twice, the second added to that of the first as a stage of a pipeline does it."""
    stage, w = Stage(net, 0, n_cuts(net), True, True), weights(net)
    total, rest = np.full_like(w, np.nan), np.full_like(w, np.nan)
    for g, to in ((total, None), (rest, total if add else None)):
        step, given = stage.bind(M, w, g, Memory(M, net.backend), Edges(), to), filled(net, w)
        step.x[...], step.y[...], step.salt[...] = given.x, given.y, given.salt
        step.run(0.25)
    for part in (part for parts in stage.gradient_parts(adding=True) for part in parts):
        total[part] += rest[part]
    return total


@each
@both
def test_gradients_that_it_adds_are_those_that_are_added_to_it(name, backend):
    """What a layer `adds` is left out of what is summed afterwards, so it has to be there already."""
    net = net_of(name, backend)
    step = filled(net, weights(net))
    step.run(0.25)
    np.testing.assert_allclose(sums_of_two(net), 2 * step.g, rtol=1e-10, atol=1e-13)
    assert isinstance(step, Step) and not np.allclose(sums_of_two(net, add=False), 2 * step.g, rtol=1e-3), "a layer that adds nothing is caught"


@each
def test_a_run_allocates_no_array_and_no_rows_give_no_gradient(name):
    net = net_of(name, BACKENDS[1], "float32")
    step = filled(net, weights(net), 256)
    for _ in range(3):
        step.run(1 / 256)
    tracemalloc.start()
    try:
        for _ in range(20):
            step.run(1 / 256)
        assert tracemalloc.get_traced_memory()[1] < 4096
    finally:
        tracemalloc.stop()
    empty = filled(net, weights(net), 0)
    assert empty.run(1.0) == 0 and not empty.g.any()


@each
@pytest.mark.parametrize("block", [1, 3, 512])
def test_a_score_is_the_loss_of_a_run_unless_the_layer_acts_in_training_alone(name, block):
    net = net_of(name, BACKENDS[1])
    step = filled(net, weights(net))
    x, y, loss = step.x.copy(), step.y.copy(), step.run(1.0)
    score, n_correct = net.score(step.w, x, y, block)
    assert n_correct == (net.predict(step.w, x, block).argmax(axis=1) == y).sum()
    assert make(name).training_only or score == pytest.approx(loss, rel=1e-12)
