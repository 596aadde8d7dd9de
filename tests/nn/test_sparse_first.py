"""A network cut behind its first product gives the losses, outputs and gradients of the whole one."""

import numpy as np
import pytest
import scipy.sparse

from mpidml.core.csr import Csr
from mpidml.nn.layers.dense import ACTIVATIONS
from mpidml.nn.models import build
from mpidml.nn.sparse_first import Products, SparseFirst

M, N, K = 40, 23, 4
MATRIX = scipy.sparse.random(M, N, 0.15, format="csr", random_state=1)
X, Y = Csr.of(MATRIX, np.ones(N), np.float64), np.arange(M) % K
MODELS = [{"model": "softmax"}, *({"model": "mlp", "hidden": (7, 5), "activation": of} for of in ACTIVATIONS), {"model": "mlp", "hidden": (6,), "dropout": 0.3}]
each = pytest.mark.parametrize("model", MODELS, ids=str)
backends = pytest.mark.parametrize("backend", ["numpy", "numba"])


def made(model, backend):
    net = build(n_features=N, n_outputs=K, dtype="float64", backend=backend, **model)
    return net, SparseFirst(net), net.init(3)


@each
@backends
def test_scores_and_outputs_are_those_of_the_dense_rows(model, backend):
    net, first, w = made(model, backend)
    expected = net.scored(w, MATRIX.toarray(), Y, 16)
    products = Products(net.backend, X, w[: first.n_weight].reshape(N, -1))
    for found in (net.scored(w, X, Y, 16), first.rest.scored(w[first.n_weight :], products, Y, 16)):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(net.predict(w, X, 16), net.predict(w, MATRIX.toarray(), 16), rtol=1e-10, atol=1e-14)


@each
@backends
def test_a_row_is_scored_to_the_same_bits_in_whatever_part_it_lies(model, backend):
    net, _, w = made(model, backend)
    assert net.scored(w, X, Y, 8) == [*net.scored(w, X[:16], Y[:16], 8), *net.scored(w, X[16:], Y[16:], 8)]


def gradients(model, backend, delta=lambda d: d):
    net, first, w = made(model, backend)
    whole, apart = np.empty_like(w), np.zeros_like(w)
    step = net.bind(M, w, whole)
    step.x[...], step.y[:], step.salt[0], step.ids[:] = MATRIX.toarray(), Y, 9, np.arange(M)
    loss = step.run(0.25)
    step = first.rest.bind(M, w[first.n_weight :], apart[first.n_weight :])
    step.x[...], step.y[:], step.salt[0], step.ids[:] = Products(net.backend, X, w[: first.n_weight].reshape(N, -1))[:], Y, 9, np.arange(M)
    assert step.run(0.25) == pytest.approx(loss, rel=1e-12)
    net.backend.csr_matmul_backward(*X.arrays, delta(step.delta), apart[: first.n_weight].reshape(N, -1))
    return whole, apart


@each
@backends
def test_the_gradient_is_that_of_the_whole_network(model, backend):
    whole, apart = gradients(model, backend)
    np.testing.assert_allclose(apart, whole, rtol=1e-9, atol=1e-13)


@backends
def test_the_check_catches_a_gradient_before_the_activation_is_undone(backend):
    whole, apart = gradients(MODELS[2], backend, delta=np.ones_like)
    assert np.abs(apart - whole).max() > 0.01
