"""Hold each link to PyTorch's optimizer of the same name, where PyTorch has one: a test of the extra `bench`, which brings it."""

import mpidml_kernels
import numpy as np
import pytest

from mpidml.optim.base import make_chain

pytestmark = pytest.mark.bench
RATE, N, N_STEPS = 0.05, 101, 60
BACKENDS = [mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")]
SAME = {
    "sgd": ("SGD", {}),
    "decay:0.1+sgd": ("SGD", {"weight_decay": 0.1}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {}),
    "adagrad:0.1": ("Adagrad", {"eps": 0.1}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop:0.9:0.1": ("RMSprop", {"alpha": 0.9, "eps": 0.1}),
    "adadelta": ("Adadelta", {}),
    "adadelta:0.5:0.1": ("Adadelta", {"rho": 0.5, "eps": 0.1}),
    "adam": ("Adam", {}),
    "adam:0.5:0.9:0.1": ("Adam", {"betas": (0.5, 0.9), "eps": 0.1}),
    "decay:0.1+adam": ("Adam", {"weight_decay": 0.1}),
    "adamw": ("AdamW", {}),
    "adamw:0.3": ("AdamW", {"weight_decay": 0.3}),
}


def ours(text, backend, dtype, gradients, w):
    chain, w = make_chain(text, RATE), w.astype(dtype)
    state = chain.init(N, dtype)
    for step, g in enumerate(gradients, 1):
        chain.apply(backend, w, w, g.astype(dtype), state, step)
    return w


def torchs(name, options, dtype, gradients, w):
    import torch

    w = torch.from_numpy(w.astype(dtype)).requires_grad_()
    optimizer = getattr(torch.optim, name)([w], lr=RATE, **options)
    for g in gradients:
        w.grad = torch.from_numpy(g.astype(dtype))
        optimizer.step()
    return w.detach().numpy()


def problem():
    random = np.random.default_rng(1)
    return random.standard_normal((N_STEPS, N)) * 10.0 ** random.uniform(-3, 1, N), random.standard_normal(N)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("text", SAME)
def test_sixty_steps_are_those_of_pytorch(text, dtype, tolerance, backend):
    gradients, w = problem()
    got, expected = ours(text, backend, dtype, gradients, w), torchs(*SAME[text], dtype, gradients, w)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_the_comparison_tells_the_decay_of_adamw_from_that_of_adam():
    gradients, w = problem()
    assert not np.allclose(ours("decay:0.1+adam", BACKENDS[0], float, gradients, w), torchs("AdamW", {"weight_decay": 0.1}, float, gradients, w), rtol=1e-3)
