"""Hold every compiled kernel to its reference, on random and on hostile inputs, in both types."""

import functools
import inspect
import itertools
import os
import shutil
import tracemalloc
from importlib.resources import files

import mpidml_kernels
import numpy as np
import pytest
from mpidml_kernels import FAMILIES, LAWS, adaptive, dense, update

from tests.shim.backend import ORDERS, on_shim

REFERENCE, CPU = mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")
BACKENDS = [REFERENCE, CPU]
# Without a compiler for them CUDA's kernels alone are left out; test_gpu.py is skipped then, and says so.
ON_GPU = [family for family in FAMILIES if (files(family) / "gpu.cu").is_file() and (shutil.which("g++") or os.environ.get("CI") == "true")]
orders = itertools.cycle(ORDERS)
on_device = functools.cache(lambda order: on_shim(order, *ON_GPU))
DTYPES = [np.float32, np.float64]
EVERYWHERE = [*BACKENDS, *([on_device("shuffle")] if ON_GPU else [])]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
everywhere = pytest.mark.parametrize("backend", EVERYWHERE, ids=lambda b: b.name)
types = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)

SHAPES = [(0, 3), (1, 1), (1, 7), (5, 1), (3, 16), (33, 65)]
FILLS = ["random", "subnormal", "large", "zero", "nan"]


def array(shape, dtype, fill="random", seed=0):
    random = np.random.default_rng([seed, *np.atleast_1d(shape)])
    x = random.standard_normal(shape)
    tiny = {np.float32: 1e-40, np.float64: 1e-310}[dtype]
    x *= {"random": 1, "subnormal": tiny, "large": 1e4, "zero": 0, "nan": 1}[fill]
    if fill == "nan" and x.size:
        x.flat[x.size // 2] = np.nan
    return x.astype(dtype)


def assert_close(got, expected, dtype, scale=1.0):
    """Bound the relative error by 30 roundings, the absolute one by 8 roundings of `scale`."""
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=30 * eps, atol=8 * eps * scale)


def run(backend, name, arguments):
    """Call a kernel on copies and return (result, the arrays after it)."""
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    with np.errstate(all="ignore"):
        result = getattr(backend, name)(*copies)
    return result, [a for a in copies if isinstance(a, np.ndarray)]


def compare(name, arguments, dtype, n_terms=1, result_scale=0.0, at_least=0.0, backends=None):
    """Compare all backends; an array's absolute error is measured by its largest value (or `at_least`), times the terms in a sum."""
    expected, after_reference = run(REFERENCE, name, arguments)
    for backend in backends or candidates(name):
        got, after = run(backend, name, arguments)
        smallest = 0.0 if backend is CPU or dtype is np.float64 else 1e-30  # what is below the normal numbers is 0 there
        if expected is not None:
            assert_close(got, expected, dtype, max(result_scale, smallest))
        for a, b in zip(after, after_reference, strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, dtype, n_terms * np.nanmax(np.abs(b), initial=max(at_least, smallest)))
        if backend is CPU:
            found = got, after
    return found


def candidates(name):
    """Return what is held to the reference: Numba's kernel and, where there is one, CUDA's, each time with its threads in another order."""
    return [CPU, on_device(next(orders))] if any(name in family.LAWS for family in ON_GPU) else [CPU]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__.rpartition(".")[2])
def test_every_kernel_has_a_law_and_one_signature_in_both_backends(family):
    for name, law in family.LAWS.items():
        assert law.name == name
        if name == "matmul":
            continue
        reference, cpu = getattr(REFERENCE, name), getattr(CPU, name)
        if name != "matmul_add":
            assert len(cpu.signatures) + len(cpu.declared) == 2
            cpu = cpu.py_func
        assert list(inspect.signature(reference).parameters) == list(inspect.signature(cpu).parameters)
    assert set(family.LAWS) <= set(vars(CPU))


def test_laws_count_operations_and_bytes():
    assert LAWS["matmul"].flops(128, 784, 512) == 2 * 128 * 784 * 512
    assert LAWS["matmul"].nbytes(2, 3, 5) == 4 * (6 + 15 + 10)
    assert LAWS["momentum"].nbytes(1000, itemsize=8) == 5 * 8 * 1000
    assert all(law.nbytes(*(10,) * n, itemsize=8) == 2 * law.nbytes(*(10,) * n) for law in LAWS.values() for n in [arity(law)])


def arity(law):
    return len(inspect.signature(law.flops).parameters)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="there is no 'fortran'; choose one of: numpy, numba"):
        mpidml_kernels.backend("fortran")


@both
@types
def test_matmul_takes_transposed_views(backend, dtype):
    a, b = array((5, 7), dtype), array((7, 3), dtype, seed=1)
    for left, right in ((a, b), (np.ascontiguousarray(a.T).T, b), (a, np.ascontiguousarray(b.T).T)):
        out = np.full((5, 3), np.nan, dtype)
        backend.matmul(left, right, out)
        assert_close(out, a.astype(np.float64) @ b, dtype, 10)
    backend.matmul(np.ones((3, 0), dtype), np.ones((0, 2), dtype), out[:3, :2].copy())


@both
@types
@pytest.mark.parametrize(("m", "k", "n"), [(5, 7, 3), (1, 4, 1), (1, 1, 6), (6, 1, 1), (33, 65, 17), (300, 700, 200)])
def test_matmul_add_adds_to_what_is_there_in_place_whatever_is_transposed(backend, dtype, m, k, n):
    a, b, before = array((m, k), dtype), array((k, n), dtype, seed=1), array((m, n), dtype, seed=2)
    expected = before + a.astype(np.float64) @ b
    for left in (a, np.ascontiguousarray(a.T).T):
        for right in (b, np.ascontiguousarray(b.T).T):
            flat = np.full(m * n + 2, 9, dtype)
            out = flat[1:-1].reshape(m, n)
            out[...] = before
            backend.matmul_add(left, right, out)
            assert_close(out, expected, dtype, 10 + k)
            assert flat[0] == flat[-1] == 9
    out = before.copy()
    backend.matmul_add(np.ones((m, 0), dtype), np.ones((0, n), dtype), out)
    backend.matmul_add(a[:0], b, out[:0])
    assert np.array_equal(out, before)


def test_compiled_matmul_add_allocates_nothing():
    x, d, out = np.ones((64, 512), np.float32), np.ones((64, 256), np.float32), np.zeros((512, 256), np.float32)
    CPU.matmul_add(x.T, d, out)
    tracemalloc.start()
    try:
        CPU.matmul_add(x.T, d, out)
        assert tracemalloc.get_traced_memory()[1] < 4096
    finally:
        tracemalloc.stop()
    assert (out == 128).all()


@types
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", dense.ACTIVATIONS)
def test_activations_and_their_backward_agree_with_the_reference(activation, shape, fill, dtype):
    z, b = array(shape, dtype, fill), array(shape[1:], dtype, seed=1)
    kept = [np.empty(shape, dtype)] if activation in dense.FROM_INPUT else []
    _, (before, _, *after) = compare(f"bias_{activation}", (z, b, *kept), dtype, at_least=1.0)
    assert all(np.isnan(a).sum() == np.isnan(z).sum() for a in (before, *after))
    d = array(shape, dtype, fill, seed=2)
    compare(f"{activation}_backward", (d, before, np.full(shape[1], 7, dtype)), dtype, n_terms=1 + shape[0])


TORCH = {
    "linear": lambda f, z: z, "relu": lambda f, z: f.relu(z), "tanh": lambda f, z: f.tanh(z), "sigmoid": lambda f, z: f.sigmoid(z),
    "leaky_relu": lambda f, z: f.leaky_relu(z), "softplus": lambda f, z: f.softplus(z), "gelu": lambda f, z: f.gelu(z, approximate="tanh"),
}  # fmt: skip


def activated(backend, activation, z, b, d):
    """Return an activation's output and its slope times d, with the bias gradient."""
    before, out, d, gb = z.copy(), np.empty_like(z), d.copy(), np.empty_like(b)
    getattr(backend, f"bias_{activation}")(before, b, *([out] if activation in dense.FROM_INPUT else []))
    getattr(backend, f"{activation}_backward")(d, before, gb)
    return (out if activation in dense.FROM_INPUT else before), d, gb


def test_every_activation_has_its_counterpart_below():
    assert set(TORCH) == set(dense.ACTIVATIONS)


@pytest.mark.bench
@both
@types
@pytest.mark.parametrize("activation", dense.ACTIVATIONS)
def test_activations_and_their_slopes_equal_those_of_torch(activation, backend, dtype):
    import torch

    z, b, d = np.linspace(-12, 12, 4003, dtype=dtype)[:, None], np.array([0.25], dtype), array((4003, 1), dtype)
    out, slope, gb = activated(backend, activation, z, b, d)
    x = torch.tensor(z, requires_grad=True)
    expected = TORCH[activation](torch.nn.functional, x + torch.tensor(b))
    expected.backward(torch.tensor(d))
    assert_close(out, expected.detach().numpy(), dtype, 2)
    assert_close(slope, x.grad.numpy(), dtype, 12)
    assert_close(gb, x.grad.numpy().sum(axis=0), dtype, 400)


@both
@pytest.mark.parametrize("activation", dense.ACTIVATIONS)
def test_an_activation_is_undone_by_its_slope_and_a_slope_of_the_output_is_caught(activation, backend):
    z, b, d, h = array((6, 5), np.float64), np.zeros(5), np.ones((6, 5)), 1e-6
    up, down = (activated(backend, activation, z + step, b, d)[0] for step in (h, -h))
    slope = activated(backend, activation, z, b, d)[1]
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
    if activation in dense.FROM_INPUT:  # the broken variant: it is undone from its output
        wrong, out = d.copy(), activated(backend, activation, z, b, d)[0]
        getattr(backend, f"{activation}_backward")(wrong, out, np.empty(5))
        assert not np.allclose(wrong, slope, rtol=1e-3)


@both
@types
def test_gelu_is_the_input_or_nothing_where_it_is_large(backend, dtype):
    z = np.array([[-1e30, -50, 50, 1e30]], dtype)
    with np.errstate(over="raise", invalid="raise"):
        out, slope, _ = activated(backend, "gelu", z, np.zeros(4, dtype), np.ones((1, 4), dtype))
    np.testing.assert_allclose(out, [[0, 0, dtype(50), dtype(1e30)]], atol=1e-7)
    np.testing.assert_allclose(slope, [[0, 0, 1, 1]], atol=1e-30)


@both
def test_activations_saturate_without_overflow(backend):
    z = np.array([[-np.inf, -1e30, -100, 0, 100, 1e30, np.inf]], np.float32)
    for name, low, middle in (("bias_tanh", -1, 0), ("bias_sigmoid", 0, 0.5)):
        out = z.copy()
        with np.errstate(all="raise"):
            getattr(backend, name)(out, np.zeros(7, np.float32))
        np.testing.assert_allclose(out[0], [low, low, low, middle, 1, 1, 1], atol=3e-7)


def test_compiled_tanh_and_exp_are_accurate_over_their_range():
    x = np.linspace(-12, 12, 20_001, dtype=np.float32)[None, :]
    out = x.copy()
    CPU.bias_tanh(out, np.zeros(x.size, np.float32))
    exact = np.tanh(x.astype(np.float64))
    assert np.abs(out - exact).max() < 3e-7
    assert np.abs(out / np.where(x == 0, 1, exact) - (x != 0)).max() < 6e-7
    z = np.stack([np.linspace(-86, 0, 5001, dtype=np.float32), np.zeros(5001, np.float32)], axis=1)
    odds = np.exp(z[:, 0].astype(np.float64))
    CPU.softmax_xent(z, np.ones(5001, np.int64), 1.0)
    assert np.abs(z[:, 0] / (odds / (1 + odds)) - 1).max() < 6e-7


@types
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_dropout_masks_are_bit_equal(shape, rate, dtype):
    ids = np.arange(shape[0]) * 3_000_000_019 + 5
    key = np.array([0x9ABCDEF012345678], np.uint64)
    x = array(shape, dtype) + dtype(10)
    out = np.full(shape, np.nan, dtype)
    for name, arguments in (("dropout", (x, ids, key, rate, out)), ("dropout_in_place", (x, ids, key, rate))):
        reference, cpu = run(REFERENCE, name, arguments)[1], run(CPU, name, arguments)[1]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(reference, cpu, strict=True))


@both
def test_dropout_depends_on_sample_and_key_but_not_on_the_split_of_rows(backend):
    x, ids, key = np.ones((40, 50), np.float32), np.arange(100, 140), np.array([3], np.uint64)
    whole, parts, other_key, low_key = (np.empty_like(x) for _ in range(4))
    backend.dropout(x, ids, key, 0.3, whole)
    for lo, hi in ((0, 7), (7, 8), (8, 40)):
        backend.dropout(x[lo:hi], ids[lo:hi], key, 0.3, parts[lo:hi])
    assert np.array_equal(whole, parts)
    backend.dropout(x, ids, np.array([3 + (1 << 40)], np.uint64), 0.3, other_key)
    backend.dropout(x, ids + (1 << 40), key, 0.3, low_key)
    assert not np.array_equal(whole, other_key) and not np.array_equal(whole, low_key)
    by_place = np.empty_like(x)  # the broken variant: the mask follows the place in the batch
    for lo, hi in ((0, 7), (7, 40)):
        backend.dropout(x[lo:hi], np.arange(hi - lo), key, 0.3, by_place[lo:hi])
    whole_by_place = np.empty_like(x)
    backend.dropout(x, np.arange(40), key, 0.3, whole_by_place)
    assert not np.array_equal(by_place, whole_by_place)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_promised_share_in_rows_columns_and_neighbours(rate):
    n = 512
    out = np.empty((n, n))
    for key in range(3):
        CPU.dropout(np.ones((n, n)), np.arange(n), np.array([key], np.uint64), rate, out)
        kept = (out != 0).astype(float) - (1 - rate)
        sigma = np.sqrt(rate * (1 - rate))
        assert abs(kept.mean()) < 5 * sigma / n
        assert abs(kept.mean(axis=0)).max() < 5 * sigma / np.sqrt(n) and abs(kept.mean(axis=1)).max() < 5 * sigma / np.sqrt(n)
        assert abs((kept[1:] * kept[:-1]).mean()) < 5 * sigma**2 / n and abs((kept[:, 1:] * kept[:, :-1]).mean()) < 5 * sigma**2 / n


@types
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_scores_agree_with_the_reference(shape, fill, dtype):
    z, t, y = array(shape, dtype, fill), array(shape, dtype, seed=1), np.arange(shape[0]) % shape[1]
    largest = float(np.nanmax(np.abs(z), initial=1.0))
    compare("softmax_xent", (z, y, 0.25), dtype, result_scale=len(z) * largest)
    compare("squared_error", (z, t, 0.25), dtype)
    countable = [CPU] if fill == "subnormal" else None  # on a GPU all are 0, none above it, and the first the largest
    compare("count_largest", (z, y), dtype, backends=countable)
    compare("count_signs", (z, t), dtype, backends=countable)
    compare("huber", (z, t, 0.7, 0.25), dtype, result_scale=30 * z.size * largest)
    compare("binary_xent", (z, (t > 0).astype(dtype), 0.25), dtype, result_scale=30 * z.size * largest)
    weights = np.abs(array(shape[1:], dtype, seed=2))
    compare("hinge", (z, y, weights, 1.5, 0.25), dtype, n_terms=shape[1], result_scale=len(z) * largest)
    for smoothing in (0.0, 0.1):
        compare("weighted_xent", (z, y, weights, smoothing, 0.25), dtype, n_terms=2, result_scale=4 * z.size * largest)


@pytest.mark.bench
@both
@types
@pytest.mark.parametrize("name", ["weighted_xent", "weighted_xent smoothed", "huber", "hinge", "binary_xent", "squared_error", "softmax_xent"])
def test_losses_and_their_gradients_equal_those_of_torch(name, backend, dtype):
    import torch

    f = torch.nn.functional
    z, t, y, weights = array((33, 7), dtype) * dtype(2), array((33, 7), dtype, seed=1), np.arange(33) % 7, np.linspace(0.2, 3, 7).astype(dtype)
    bits = (t > 0).astype(dtype)
    x, labels, w = torch.tensor(z, requires_grad=True), torch.tensor(y), torch.tensor(weights)
    got = z.copy()
    total, expected = {
        "softmax_xent": lambda: (backend.softmax_xent(got, y, 0.5), f.cross_entropy(x, labels, reduction="sum")),
        "weighted_xent": lambda: (backend.weighted_xent(got, y, weights, 0.0, 0.5), f.cross_entropy(x, labels, w, reduction="sum")),
        "weighted_xent smoothed": lambda: (
            backend.weighted_xent(got, y, weights, 0.1, 0.5),
            f.cross_entropy(x, labels, w, reduction="sum", label_smoothing=0.1),
        ),
        "squared_error": lambda: (backend.squared_error(got, t, 0.5), 0.5 * f.mse_loss(x, torch.tensor(t), reduction="sum")),
        "huber": lambda: (backend.huber(got, t, 0.7, 0.5), f.huber_loss(x, torch.tensor(t), reduction="sum", delta=0.7)),
        "hinge": lambda: (
            backend.hinge(got, y, weights, 1.5, 0.5),
            f.multi_margin_loss(x, labels, margin=1.5, weight=w, reduction="sum"),
        ),
        "binary_xent": lambda: (
            backend.binary_xent(got, bits, 0.5),
            f.binary_cross_entropy_with_logits(x, torch.tensor(bits), reduction="sum"),
        ),
    }[name]()
    expected.backward()
    assert_close(total, expected.item(), dtype, 100)
    assert_close(got, 0.5 * x.grad.numpy(), dtype, 4)


@both
@types
def test_softmax_gradient_has_the_closed_form_and_sums_to_zero(backend, dtype):
    z, y = array((9, 6), dtype) * dtype(3), np.arange(9) % 6
    p = np.exp(z.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    d = z.copy()
    total = backend.softmax_xent(d, y, 2.0)
    assert_close(total, -np.log(p[np.arange(9), y]).sum(), dtype, 10)
    assert_close(d, 2 * (p - np.eye(6)[y]), dtype, 2)
    assert np.abs(d.sum(axis=1)).max() < 40 * np.finfo(dtype).eps


@both
def test_counts_take_the_first_of_equal_outputs_and_no_nan_and_leave_them_alone(backend):
    z = np.array([[1, 1, 0], [0, 2, 2], [0, 0, 0], [5, np.nan, 6]], np.float32)
    before = z.copy()
    assert backend.count_largest(z[:3], np.array([0, 1, 2])) == 2
    assert backend.count_largest(z, np.array([0, 2, 0, 1])) == 3
    bits = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]], np.float32)
    assert backend.count_signs(z, bits) == 2, "a row is right as a whole, and NaN never is"
    np.testing.assert_array_equal(z, before)


@both
def test_float32_losses_are_summed_in_float64(backend):
    z = np.zeros((50_000, 2), np.float32)
    z[0, 0] = -1e4
    total = backend.softmax_xent(z, np.zeros(len(z), np.int64), 1.0)
    assert total == pytest.approx(1e4 + (len(z) - 1) * np.log(2), rel=1e-7)


def test_the_comparison_catches_a_kernel_that_is_slightly_wrong(monkeypatch):
    compare("momentum", update_arguments("momentum", 100, np.float32, "random"), np.float32)
    monkeypatch.setattr(CPU, "momentum", lambda w, out, v, g, rate, mu: REFERENCE.momentum(w, out, v, g, rate * 1.0001, mu))
    with pytest.raises(AssertionError):
        compare("momentum", update_arguments("momentum", 100, np.float32, "random"), np.float32)


UPDATES = {
    "add": "ag", "add3": "agw", "scale": "as", "descend": "wogr", "descend_in_place": "wgr", "momentum": "wovgrs", "momentum_in_place": "wvgrs",
    "momentum_transform": "vgs", "nesterov": "wovgrs", "nesterov_in_place": "wvgrs", "nesterov_transform": "vgs", "decay_transform": "gwr",
    "l1_transform": "gwr", "clip_transform": "gs", "sum_of_squares": "g", "adagrad": "wovgres", "adagrad_in_place": "wvgres",
    "adagrad_transform": "vges", "rmsprop": "wovgr2e", "rmsprop_in_place": "wvgr2e", "rmsprop_transform": "vg2e", "adadelta": "wovdgr1e",
    "adadelta_in_place": "wvdgr1e", "adadelta_transform": "vdg1e", "adam": "womvgr12ebcp", "adam_in_place": "wmvgr12ebcp",
    "adam_transform": "wmvg12ebcp", "lion": "womgr12p", "lion_in_place": "wmgr12p", "lion_transform": "wmg12p", "ftrl": "womvqgrpp1s",
    "ftrl_in_place": "wmvqgrpp1s", "ftrl_delta": "wmvqgrpp1s",
}  # fmt: skip
STEPS = {"descend": "", "momentum": "transform", "nesterov": "transform", "adagrad": "transform", "rmsprop": "transform", "adadelta": "transform",
         "adam": "transform", "lion": "transform", "ftrl": "delta"}  # fmt: skip


def update_arguments(name, n, dtype, fill):
    arrays = {letter: array(n, dtype, "random", seed) for seed, letter in enumerate("aowm")}
    arrays["g"] = array(n, dtype, fill, 8)
    arrays |= {letter: np.abs(array(n, dtype, "random", seed)) for seed, letter in enumerate("vdq", 9)}
    scalars = {"r": 0.05, "s": 0.9, "1": 0.9, "2": 0.999, "e": 1e-8, "b": 1 - 0.9**3, "c": 1 - 0.999**3, "p": 0.3}
    return [arrays.get(letter, scalars.get(letter)) for letter in UPDATES[name]]


@types
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("n", [0, 1, 3, 1000])
@pytest.mark.parametrize("name", sorted(UPDATES))
def test_vector_kernels_agree_with_the_reference(name, n, fill, dtype):
    arguments = update_arguments(name, n, dtype, fill)
    # The change that FTRL makes is a difference of weights, and rounded as these are.
    compare(name, arguments, dtype, *((4, 0.0, np.abs(arguments[0]).max(initial=0)) if name == "ftrl_delta" else ()))


def test_no_vector_kernel_is_left_untested():
    assert set(UPDATES) == {*update.LAWS, *adaptive.LAWS}


@everywhere
@types
@pytest.mark.parametrize("name", STEPS)
def test_in_place_out_of_place_and_transform_are_one_step(backend, name, dtype):
    letters, arguments = UPDATES[name], update_arguments(name, 100, dtype, "random")
    _, (w, out, *state, g) = run(backend, name, arguments)
    assert np.array_equal(w, arguments[0]) and np.array_equal(g, arguments[letters.index("g")])
    _, (w_in_place, *state_in_place, _) = run(backend, f"{name}_in_place", [arguments[0], *arguments[2:]])
    assert np.array_equal(out, w_in_place) and all(np.array_equal(a, b) for a, b in zip(state, state_in_place, strict=True))
    if kind := STEPS[name]:
        given = dict(zip(letters, arguments, strict=True))
        _, after = run(backend, f"{name}_{kind}", [given[letter] for letter in UPDATES[f"{name}_{kind}"]])
        change = after[-1] if kind == "delta" else dtype(-given["r"]) * after[-1]
        assert_close(arguments[0] + change, out, dtype, 4)
        assert all(np.array_equal(a, b) for a, b in zip(state, after[-1 - len(state) : -1], strict=True))


@everywhere
@types
def test_nan_in_a_gradient_reaches_the_weights(backend, dtype):
    for name in STEPS:
        _, (w, *_) = run(backend, f"{name}_in_place", update_arguments(f"{name}_in_place", 64, dtype, "nan"))
        assert np.isnan(w).sum() == 1


@everywhere
@types
def test_what_l1_holds_at_zero_is_zero_to_the_bit(backend, dtype):
    arguments = update_arguments("ftrl", 200, dtype, "random")
    arguments[UPDATES["ftrl"].index("p")] = 8.0
    _, (w, out, *_) = run(backend, "ftrl", arguments)
    _, (*_, change) = run(backend, "ftrl_delta", [arguments[0], *arguments[2:]])
    assert 20 < np.count_nonzero(out == 0) < 180 and np.array_equal(w + change == 0, out == 0)


@everywhere
@types
def test_rows_are_gathered_and_repeated_rows_accumulate_in_order(backend, dtype):
    table, ids = array((6, 5), dtype), np.array([4, 0, 4, 4, 2])
    table.flags.writeable = False
    out = np.empty((5, 5), dtype)
    backend.take(table, ids, out)
    assert np.array_equal(out, table[ids])
    put = table.copy()
    backend.put_rows(put, np.array([5, 1]), out[:2])
    assert np.array_equal(put, table[[0, 0, 2, 3, 4, 4]])
    delta, expected, got = array((5, 5), dtype, "large", 3), table.copy(), table.copy()
    for i, row in enumerate(ids):
        expected[row] += delta[i]
    backend.add_rows(got, ids, delta)
    assert np.array_equal(got, expected)
    unbuffered = table.copy()
    unbuffered[ids] += delta  # the broken variant: only the last of equal indices counts
    assert not np.array_equal(unbuffered, expected)
    backend.add_rows(got, ids[:0], delta[:0])
    assert np.array_equal(got, expected)


@everywhere
@types
def test_embedded_columns_are_rows_of_the_table_and_their_gradient_adds_up(backend, dtype):
    x = np.array([[0.5, 2, 7, 0], [1.5, 0, 8, 1], [2.5, 2, 9, 0]], dtype)  # columns 1 and 3 hold codes of 3 and 2 categories
    passed, columns, starts = np.array([0, 2]), np.array([1, 3]), np.array([0, 3])
    table, out = array((5, 4), dtype), np.full((3, 10), np.nan, dtype)
    backend.embed(x, passed, columns, starts, table, out)
    assert np.array_equal(out[:, :2], x[:, [0, 2]])
    assert np.array_equal(out[:, 2:6], table[[2, 0, 2]]) and np.array_equal(out[:, 6:], table[[3, 4, 3]])
    d, g = array((3, 10), dtype, seed=1), np.full((5, 4), np.nan, dtype)
    backend.embed_backward(d, x, passed, columns, starts, g)
    assert np.vdot(out[:, 2:], d[:, 2:]) == pytest.approx(np.vdot(table, g), rel=1e-4), "the transpose of embed"
    assert_close(g[2], d[0, 2:6] + d[2, 2:6], dtype, 2)
    assert not g[1].any(), "a row that was not read has no gradient"


def sparse_rows(m, n, dtype, fill, seed=0):
    """Return starts, columns and values of m rows of n columns, some empty, and the rows as a matrix."""
    random = np.random.default_rng([m, n, seed])
    mask = random.random((m, n)) < 0.3
    mask[1::5] = False
    values = array((m, n), dtype, fill, seed)
    starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    return (starts, np.nonzero(mask)[1].astype(np.int32), values[mask]), np.where(mask, values, 0)


@types
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_sparse_rows_agree_with_the_reference(shape, fill, dtype):
    (m, width), n = shape, 13
    csr, x = sparse_rows(m, n, dtype, fill)
    table, d = array((n, width), dtype, seed=1), array((m, width), dtype, seed=2)
    _, (*_, out) = compare("csr_matmul", (*csr, table, np.full(shape, np.nan, dtype)), dtype, n_terms=n)
    start = array((n, width), dtype, seed=3)
    _, (*_, g) = compare("csr_matmul_backward", (*csr, d, start), dtype, n_terms=m + 1)
    if fill != "nan":
        assert_close(out, x @ table, dtype, n * np.abs(x).max(initial=1))
        assert_close(g, start + x.T @ d, dtype, (m + 1) * np.abs(x).max(initial=1))


@everywhere
def test_the_gradient_of_a_sparse_product_is_its_transpose_and_adds_up(backend):
    csr, _ = sparse_rows(20, 13, np.float64, "random")
    table, d, out, g = array((13, 4), np.float64), array((20, 4), np.float64, seed=1), np.empty((20, 4)), np.zeros((13, 4))
    backend.csr_matmul(*csr, table, out)
    backend.csr_matmul_backward(*csr, d, g)
    assert np.vdot(out, d) == pytest.approx(np.vdot(table, g), rel=1e-12)
    unbuffered = np.zeros_like(g)  # the broken variant: of equal columns in different rows only the last counts
    unbuffered[csr[1]] = csr[2][:, None] * np.repeat(d, np.diff(csr[0]), axis=0)
    assert not np.allclose(unbuffered, g)


@everywhere
@types
@pytest.mark.parametrize("listed", [[], [3], [1, 1], [5, 0, 17, 5, 11]], ids=str)
def test_rows_are_taken_with_their_columns_numbered_as_they_come(backend, dtype, listed):
    (starts, columns, values), x = sparse_rows(20, 13, dtype, "random")
    rows, number = np.array(listed, np.int64), np.full(13, -1, np.int32)
    rows.flags.writeable = False
    n = int((starts[rows + 1] - starts[rows]).sum())
    ids, taken = np.full(13, -7), (np.full(rows.size + 1, -7), np.full(n, -7, np.int32), np.empty(n, dtype))
    k = backend.csr_take(starts, columns, values, rows, number, ids, *taken)
    seen = np.concatenate([columns[starts[r] : starts[r + 1]] for r in listed] or [np.empty(0, np.int32)])
    assert ids[:k].tolist() == list(dict.fromkeys(seen.tolist())), "each column once"
    assert (number == -1).all() and (ids[k:] == -7).all()
    assert np.array_equal(ids[taken[1]], seen)
    back = np.zeros((rows.size, 13), dtype)
    for i, row in enumerate(back):
        at = slice(taken[0][i], taken[0][i + 1])
        row[ids[taken[1][at]]] = taken[2][at]
    assert np.array_equal(back, x[rows])


@types
@pytest.mark.parametrize("fill", ["random", "large", "zero", "nan"])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_agrees_with_the_reference(shape, fill, dtype):
    x, gain, bias = array(shape, dtype, fill), array(shape[1:], dtype, seed=1), array(shape[1:], dtype, seed=2)
    stats = np.empty((shape[0], 2), dtype)
    _, (_, _, _, stats, out) = compare("layer_norm", (x, gain, bias, 1e-5, stats, np.empty_like(x)), dtype, n_terms=4, at_least=1.0)
    assert np.isnan(out).sum() == np.isnan(x).sum() * shape[1], "a NaN spoils its own row alone"
    d = array(shape, dtype, seed=3)
    sums = np.empty(shape[1], dtype), np.empty(shape[1], dtype)
    eps = float(np.finfo(dtype).eps)
    expected, *found = (
        run(backend, "layer_norm_backward", (d, x, stats, gain, *sums))[1] for backend in (REFERENCE, *candidates("layer_norm_backward"))
    )
    for a, b in (
        (a, b) for got in found for a, b in zip(got, expected, strict=True)
    ):  # an inverse deviation may be large, so errors are measured by it
        np.testing.assert_allclose(a, b, rtol=100 * eps, atol=50 * eps * (1 + np.nanmax(np.abs(stats[:, 1]), initial=0)) * (1 + shape[0]))


@pytest.mark.bench
@everywhere
@types
def test_layer_norm_and_its_gradients_equal_those_of_torch(backend, dtype):
    import torch

    x, gain, bias, d = array((33, 17), dtype) * 3 + 5, array(17, dtype, seed=1), array(17, dtype, seed=2), array((33, 17), dtype, seed=3)
    x = x.astype(dtype)
    stats, out, dgain, dbias, dx = np.empty((33, 2), dtype), np.empty_like(x), np.empty_like(gain), np.empty_like(bias), d.copy()
    backend.layer_norm(x, gain, bias, 1e-5, stats, out)
    backend.layer_norm_backward(dx, x, stats, gain, dgain, dbias)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias)]
    expected = torch.nn.functional.layer_norm(theirs[0], (17,), theirs[1], theirs[2], 1e-5)
    expected.backward(torch.tensor(d))
    assert_close(out, expected.detach().numpy(), dtype, 8)
    for got, tensor in zip((dx, dgain, dbias), theirs, strict=True):
        assert_close(got, tensor.grad.numpy(), dtype, 40)
