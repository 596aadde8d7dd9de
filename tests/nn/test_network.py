"""Hold a network to its contract: layout, steps and their buffers, progress, scores, and errors in one line."""

import itertools
import mmap
import tracemalloc

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.nn.layers.dense import ACTIVATIONS, RECTIFIERS
from mpidml.nn.models import build

BACKEND = mpidml_kernels.backend("numba")


def filled(net, m, w=None, g=None, slot=0):
    w = net.init(1) if w is None else w
    step = net.bind(m, w, np.full_like(w, np.nan) if g is None else g, slot)
    random = np.random.default_rng(0)
    step.x[...] = random.standard_normal(step.x.shape)
    step.y[...] = random.integers(0, net.n_outputs, m)
    step.load_labels()
    return step


# ---- layout


def test_parameters_lie_layer_by_layer_weight_before_bias():
    net = build("mlp", 5, 3, (6, 4), dropout=0.5, backend=BACKEND)
    assert list(net.params.shapes.items()) == [
        ("layers.0.weight", (5, 6)), ("layers.0.bias", (6,)), ("layers.1.weight", (6, 4)), ("layers.1.bias", (4,)),
        ("layers.2.weight", (4, 3)), ("layers.2.bias", (3,)),
    ]  # fmt: skip
    assert net.n_params == 5 * 6 + 6 + 6 * 4 + 4 + 4 * 3 + 3
    assert net.params.shapes == build("mlp", 5, 3, (6, 4), backend=BACKEND).params.shapes, "dropout changes the layout"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initial_weights_have_the_right_spread_and_depend_on_the_seed_alone(activation):
    net = build("mlp", 300, 10, (200,), activation, backend=BACKEND)
    w = net.init(5)
    views = net.params.views(w)
    variance = 2 / 300 if activation in RECTIFIERS else 2 / 500
    assert views["layers.0.weight"].var() == pytest.approx(variance, rel=0.05)
    assert views["layers.1.weight"].var() == pytest.approx(2 / 210, rel=0.15)
    assert not views["layers.0.bias"].any() and not views["layers.1.bias"].any()
    assert np.array_equal(w, net.init(5)) and not np.array_equal(w, net.init(6))
    double = build("mlp", 300, 10, (200,), activation, dtype="float64", backend=mpidml_kernels.backend("numpy")).init(5)
    assert double.dtype == np.float64 and np.array_equal(double.astype(np.float32), w)


def test_flops_count_three_products_per_layer_and_two_for_the_first():
    net = build("mlp", 784, 10, (512, 512), backend=BACKEND)
    products = 2 * 128 * (2 * 784 * 512 + 3 * 512 * 512 + 3 * 512 * 10)
    assert products < net.flops(128) < 1.01 * products
    assert net.flops(256) == 2 * net.flops(128)
    assert build("mlp", 8, 2, (8,), dropout=0.5, backend=BACKEND).flops(4) > build("mlp", 8, 2, (8,), backend=BACKEND).flops(4)


# ---- steps


def test_a_step_is_made_once_per_rows_weights_gradient_and_slot():
    net = build("mlp", 4, 2, (4,), backend=BACKEND)
    both = np.stack([net.init(1), net.init(2)])
    g = np.empty(net.n_params, np.float32)
    step = net.bind(3, both[0], g)
    assert net.bind(3, both[0], g) is step, "a new view of the same memory"
    assert net.bind(3, both[0], g, slot=1) is not step and net.bind(2, both[0], g) is not step
    assert net.bind(3, both[1], g) is not step


def test_alternating_weights_share_buffers_and_slots_do_not():
    net = build("mlp", 4, 2, (4,), backend=BACKEND)
    first, second, g = net.init(1), net.init(2), np.empty(net.n_params, np.float32)
    step = net.bind(3, first, g)
    assert net.bind(3, second, g).x is step.x
    assert net.bind(3, first, g, slot=1).x is not step.x


def test_a_forgotten_step_is_made_again_and_memory_stays_bounded():
    net = build("mlp", 4, 2, (4,), backend=BACKEND)
    w = net.init(1)
    pairs = [np.empty_like(w) for _ in range(200)]
    first = net.bind(3, w, pairs[0])
    for g in pairs[1:]:
        net.bind(3, w, g)
    assert len(net._steps) <= 64 and len(net._bound) <= 64
    assert net.bind(3, w, pairs[0]) is not first and net.bind(3, w, pairs[0]).x is first.x


def test_the_gradient_may_live_in_foreign_memory():
    net = build("mlp", 4, 2, (4,), backend=BACKEND)
    w = net.init(1)
    shared = np.frombuffer(mmap.mmap(-1, 4 * net.n_params), np.float32)
    here = filled(net, 3, w)
    here.run(1.0)
    filled(net, 3, w, shared).run(1.0)
    assert np.array_equal(shared, here.g)


def test_weights_may_be_read_only():
    net = build("mlp", 4, 2, (4,), backend=BACKEND)
    w = net.init(1)
    w.flags.writeable = False
    assert np.isfinite(filled(net, 3, w).run(1.0))


def test_a_rank_without_rows_contributes_zero():
    net = build("mlp", 4, 2, (4,), dropout=0.5, backend=BACKEND)
    step = filled(net, 0)
    assert step.run(1.0) == 0 and not step.g.any()


@pytest.mark.parametrize("bad", [np.empty(3, np.float32), np.empty(30, np.float64), np.empty(60, np.float32)[::2]])
def test_an_array_that_cannot_be_weights_is_refused(bad):
    net = build("mlp", 4, 2, (4,), backend=BACKEND)
    assert net.n_params == 30
    with pytest.raises(ValueError, match="is not a contiguous, aligned float32 array of 30"):
        net.bind(1, bad, np.empty(30, np.float32))
    with pytest.raises(ValueError, match="gradient"):
        net.bind(1, np.empty(30, np.float32), bad)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("progress", [None, lambda lo, hi: None], ids=["silent", "progress"])
def test_a_run_allocates_no_array(progress, activation, dropout):
    net = build("mlp", 200, 10, (300, 100), activation, dropout, backend=BACKEND)
    step = filled(net, 64)
    for _ in range(3):
        step.run(1 / 64, progress)
    tracemalloc.start()
    try:
        for _ in range(20):
            step.run(1 / 64, progress)
        assert tracemalloc.get_traced_memory()[1] < 4096
        wasted = np.empty(2000)  # what the check would see
        assert tracemalloc.get_traced_memory()[1] > wasted.nbytes
    finally:
        tracemalloc.stop()


# ---- progress


def assert_final_when_reported(net, step, run):
    """Run with a gradient of NaN and demand that each range is final when it is reported, in the promised order, without a gap."""
    step.g.fill(np.nan)
    reports, seen = [], []

    def progress(lo, hi):
        reports.append((lo, hi))
        seen.append(step.g[lo:hi].copy())

    run(1.0, progress)
    ranges = [r for r in reports if r != (0, 0)]
    assert ranges == net.parts()
    assert ranges[0][1] == net.n_params and ranges[-1][0] == 0
    assert all(later[1] == earlier[0] for earlier, later in itertools.pairwise(ranges))
    for (lo, hi), early in zip(reports, seen, strict=True):
        assert np.array_equal(early, step.g[lo:hi])
    return reports


NETS = {"small": (4, 2, (4, 4), 0.0), "split": (700, 10, (700, 400), 0.0), "dropout": (6, 3, (5, 5), 0.5), "softmax": (6, 3, (), 0.0)}


@pytest.mark.parametrize("sizes", NETS.values(), ids=NETS)
def test_ranges_tile_the_gradient_from_the_end_and_are_final_when_reported(sizes):
    n_features, n_outputs, hidden, dropout = sizes
    net = build("mlp", n_features, n_outputs, hidden, dropout=dropout, backend=BACKEND)
    net.split = True
    step = filled(net, 5)
    loss = step.run(1.0)
    silent = step.g.copy()
    reports = assert_final_when_reported(net, step, step.run)
    assert reports.count((0, 0)) >= len(net.layers), "the caller can poll during the forward pass, too"
    assert np.array_equal(silent, step.g) and step.run(1.0, lambda lo, hi: None) == loss


def test_the_layer_that_is_finished_last_leaves_a_quarter_of_its_rows_for_the_end():
    net = build("softmax", 700, 400, backend=BACKEND)
    assert net.parts() == [(0, 700 * 400 + 400)]
    net.split = True
    assert net.parts() == [(175 * 400, 700 * 400 + 400), (0, 175 * 400)]
    small, deep = build("softmax", 70, 40, backend=BACKEND), build("mlp", 700, 10, (700, 400), backend=BACKEND)
    small.split = deep.split = True
    assert small.parts() == [(0, 70 * 40 + 40)], "what is small is not worth a second product"
    assert len(deep.parts()) == 4, "what other layers finish travels while the first one computes"


@pytest.mark.parametrize("sizes", NETS.values(), ids=NETS)
def test_a_range_reported_one_group_too_early_is_caught(sizes):
    n_features, n_outputs, hidden, dropout = sizes
    net = build("mlp", n_features, n_outputs, hidden, dropout=dropout, backend=BACKEND)
    net.split = True
    step = filled(net, 5)

    def too_early(scale, progress):
        for group in step.forward:
            for function, arguments in group.thunks:
                function(*arguments)
        step.lose(scale)
        for group in step.backward:
            progress(group.lo, group.hi)
            for function, arguments in group.thunks:
                function(*arguments)

    with pytest.raises(AssertionError):
        assert_final_when_reported(net, step, too_early)


# ---- scores


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("block", [1, 7, 20, 512])
def test_a_score_equals_the_loss_of_a_run_without_dropout(block, loss):
    net = build("mlp", 6, 3, (5,), "tanh", 0.5, loss, "float64", BACKEND)
    plain = build("mlp", 6, 3, (5,), "tanh", 0.0, loss, "float64", BACKEND)
    w = net.init(2)
    step = filled(plain, 20, w)
    x, y = step.x.copy(), step.y.copy()
    total, n_correct = net.score(w, x, y, block)
    assert total == pytest.approx(step.run(1.0), rel=1e-12)
    outputs = net.predict(w, x, block)
    assert outputs.shape == (20, 3) and n_correct == (outputs.argmax(axis=1) == y).sum()
    np.testing.assert_allclose(outputs, np.tanh(x @ net.params.views(w)["layers.0.weight"]) @ net.params.views(w)["layers.1.weight"], rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scores_of_ragged_blocks_add_up(activation):
    net = build("mlp", 6, 3, (5,), activation, backend=BACKEND, dtype="float64")
    step = filled(net, 20)
    x, y = step.x.copy(), step.y.copy()
    assert net.score(step.w, x, y, 7)[0] == pytest.approx(step.run(1.0), rel=1e-12)


def test_scores_take_any_real_type_and_float_targets():
    net = build("softmax", 4, 1, loss="squared_error", dtype="float64", backend=BACKEND)
    w, x = net.init(0), np.arange(12, dtype=np.uint8).reshape(3, 4)
    target = np.array([1.0, 2.0, 4.0])
    outputs = net.predict(w, x)
    assert net.score(w, x, target) == (pytest.approx(0.5 * ((outputs[:, 0] - target) ** 2).sum()), 0)
    step = net.bind(3, w, np.empty_like(w))
    step.x[...], step.targets[...] = x, target[:, None]
    assert step.run(1.0) == pytest.approx(net.score(w, x, target[:, None])[0])
    assert net.score(w, x[:0], target[:0]) == (0.0, 0)


def test_labels_stored_as_floats_are_labels_to_the_cross_entropy():
    net = build("softmax", 4, 3, backend=BACKEND)
    step = filled(net, 9)
    assert net.score(step.w, step.x, step.y.astype(np.float32)) == net.score(step.w, step.x, step.y)


def test_a_score_holds_one_block_at_a_time():
    net = build("mlp", 50, 10, (50,), backend=BACKEND)
    w, x, y = net.init(0), np.zeros((20_000, 50), np.float32), np.zeros(20_000, np.int64)
    net.score(w, x, y, 100)
    tracemalloc.start()
    try:
        net.score(w, x, y, 100)
        assert tracemalloc.get_traced_memory()[1] < 2 * 100 * 4 * (50 + 50 + 10)
    finally:
        tracemalloc.stop()


def test_one_hot_targets_follow_the_labels():
    step = filled(build("softmax", 4, 3, loss="squared_error", backend=BACKEND), 5)
    assert np.array_equal(step.targets, np.eye(3)[step.y])


# ---- errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "mpl", "hidden": (3,)}, "did you mean 'mlp'?"),
        ({"model": "softmax", "hidden": (3,)}, "has no hidden layers, 1 were given"),
        ({"model": "softmax", "dropout": 0.1}, "dropout 0.1 needs a hidden layer"),
        ({"model": "mlp", "hidden": (3,), "dropout": 1.0}, "rate 1.0 is not in [0, 1)"),
        ({"model": "mlp", "hidden": (3,), "activation": "rely"}, "did you mean 'relu'?"),
        ({"model": "mlp", "hidden": (0,)}, "units = 0 is not a whole number from 1 up"),
        ({"model": "mlp", "loss": "crossentropy"}, "did you mean 'cross_entropy'?"),
        ({"model": "mlp", "dtype": "float16"}, "float32 or float64, not float16"),
        ({"model": "mlp", "backend": "nunba"}, "did you mean 'numba'?"),
    ],
)
def test_a_wrong_model_is_one_line_that_says_what_to_do(arguments, message):
    with pytest.raises(UserError) as error:
        build(n_features=4, n_outputs=2, **{"backend": BACKEND, **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_steps_of_fewer_rows_lie_in_the_memory_of_those_with_most():
    net = build("mlp", 6, 3, (4,), dtype="float64", backend="numpy")
    w, g = net.init(1), np.empty(net.n_params)
    small = net.bind(3, w, g)
    large = net.bind(7, w, g)
    again = net.bind(5, w, g)
    assert np.shares_memory(again.x, large.x)
    assert not np.shares_memory(small.x, large.x) and net.bind(3, w, g) is not small, "there was no room for more rows"
    assert again.x.shape == (5, 6) and again.y.shape == (5,) and net.bind(7, w, g) is large


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_the_first_rows_of_larger_buffers_give_the_bits_of_buffers_of_their_own(backend, loss):
    random = np.random.default_rng(2)
    x, y = random.standard_normal((9, 6)).astype(np.float32), random.integers(0, 3, 9)
    found = []
    for sizes in ([4], [9, 4], [9, 4, 9, 4]):
        net = build("mlp", 6, 3, (8, 5), dropout=0.3, backend=backend, loss=loss)
        w, g = net.init(1), np.empty(net.n_params, np.float32)
        for m in sizes:
            g[:] = np.nan
            step = net.bind(m, w, g)
            step.x[:], step.y[:], step.ids[:], step.salt[0] = x[:m], y[:m], np.arange(m), 5
            step.load_labels()
            value = step.run(0.25)
        found.append((value, g.tobytes()))
    assert found[0] == found[1] == found[2]
