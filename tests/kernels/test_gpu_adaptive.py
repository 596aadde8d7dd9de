"""Run CUDA's steps whose size each element sets by itself on the CPU, hold them to their references and to their laws; break each, and see that it is noticed."""

import functools

import numpy as np
import pytest
from mpidml_kernels import LAWS, adaptive

from tests.kernels.test_gpu import REFERENCE, SIZES, assert_noticed, orders, types
from tests.kernels.test_kernels import UPDATES, update_arguments
from tests.shim.backend import on_shim

on_device = functools.cache(lambda order: on_shim(order, adaptive))
names = pytest.mark.parametrize("name", adaptive.LAWS)


def step_arguments(name, n, dtype):
    """Return arguments of which eps and beta2 lie so far from what they are in use that their places show."""
    far = {"e": 0.1, "2": 0.6}
    return [far.get(letter, given) for letter, given in zip(UPDATES[name], update_arguments(name, n, dtype, "random"), strict=True)]


@orders
@types
@names
def test_steps_agree_with_their_references(name, dtype, order):
    eps = np.finfo(dtype).eps
    for n in SIZES:
        given = step_arguments(name, n, dtype)
        here, there = ([a.copy() if isinstance(a, np.ndarray) else a for a in given] for _ in range(2))
        getattr(REFERENCE, name)(*here)
        getattr(on_device(order), name)(*there)
        for a, b in zip(there, here, strict=True):
            np.testing.assert_allclose(a, b, rtol=30 * eps, atol=32 * eps)


@types
@names
def test_a_step_moves_the_bytes_of_its_law_once(name, dtype):
    n, device = 1000, on_device("forward")
    getattr(device, name)(*step_arguments(name, n, dtype))
    counted = device.kernels.gpu.functions["adaptive", np.dtype(dtype).str[1:], name]._kernel.statistics
    assert counted["nbytes_read"] + counted["nbytes_written"] == LAWS[name].nbytes(n, itemsize=np.dtype(dtype).itemsize)


def test_what_a_decay_leaves_is_computed_in_float64():
    g, zero = np.linspace(1, 2, 50, dtype=np.float32), np.zeros(50, np.float32)
    v, d = zero.copy(), zero.copy()
    on_device("forward").adam_transform(zero, zero.copy(), v, g.copy(), 0.9, 0.999, 1e-8, 0.1, 0.001, 0.0)
    on_device("forward").adadelta_transform(d, zero.copy(), g.copy(), 0.999, 1e-6)
    for mean in (v, d):
        np.testing.assert_allclose(mean, np.float32(1 - 0.999) * (g * g), rtol=3e-7)
        assert not np.allclose(mean, (np.float32(1) - np.float32(0.999)) * (g * g), rtol=1e-5, atol=0), "the broken variant: 1 - 0.999 in float32"


MUTANTS = [
    ("adagrad", "s += count * (g * g);", "s += count * g * count * g;", "differs"),
    ("adagrad_in_place", "(sqrt(s) + eps)", "sqrt(s + eps)", "differs"),
    ("adagrad_transform", "adagrad_direction(s[i], g[i], eps, count);\n}\n\n", "adagrad_direction(s[i], g[i], count, eps);\n}\n\n", "differs"),
    ("rmsprop", "w[i] - rate * rms", "w[i] + rate * rms", "differs"),
    ("rmsprop_in_place", "v = alpha * v + rest * (g * g);", "const real x = alpha * v + rest * (g * g);", "differs"),
    ("rmsprop_transform", "return g / (sqrt(v) + eps);", "return g / sqrt(v);", "differs"),
    ("adadelta", "d = rho * d + rest * (u * u);", "d = rho * d + rest * (g * g);", "differs"),
    ("adadelta_in_place", "sqrt(d + eps) / sqrt(v + eps)", "sqrt(v + eps) / sqrt(d + eps)", "differs"),
    ("adadelta_transform", "FOR_EACH(i, n) g[i] = adadelta", "FOR_EACH(i, n + 1) g[i] = adadelta", "out-of-bounds"),
    ("adam", "sqrt(v * grow2) + eps", "sqrt(v) + eps", "differs"),
    ("adam_in_place", "+ decay * w;\n}\nextern \"C\" __global__ void adam", ";\n}\nextern \"C\" __global__ void adam", "differs"),
    ("adam_transform", "adam_direction(w[i], m[i], v[i], g[i], ", "adam_direction(w[i], v[i], m[i], g[i], ", "differs"),
    ("lion", "const real u = sign(beta1 * m + rest1 * g) + decay * w;\n    m = beta2 * m + rest2 * g;",
     "m = beta2 * m + rest2 * g;\n    const real u = sign(beta1 * m + rest1 * g) + decay * w;", "differs"),
    ("lion_in_place", "sign(beta1 * m + rest1 * g)", "(beta1 * m + rest1 * g)", "differs"),
    ("lion_transform", "m = beta2 * m + rest2 * g;", "m = beta1 * m + rest1 * g;", "differs"),
    ("ftrl", "z += g - (now - q) * w;\n    q = now;", "q = now;\n    z += g - (now - q) * w;", "differs"),
    ("ftrl_in_place", "(l1 * sign(z) - z) / (now + l2)", "(l1 * sign(z) - z) / now", "differs"),
    ("ftrl_delta", "l1, l2, beta, count) - w[i];", "l1, l2, beta, count);", "differs"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "said"), MUTANTS, ids=[name for name, *_ in MUTANTS])
def test_a_broken_step_is_noticed(name, old, new, said, monkeypatch):
    assert_noticed(monkeypatch, [adaptive], step_arguments(name, 1000, np.float32), "adaptive", name, old, new, said)


def test_each_kernel_has_its_mutant():
    assert {name for name, *_ in MUTANTS} == set(adaptive.LAWS)
