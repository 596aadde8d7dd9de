"""Hold every file of mpidml/optim to the contract of a link, found by the folder alone."""

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.optim.base import Chain, Link
from mpidml.optim.sgd import Sgd

NAMES = plugins.names("mpidml.optim")
BACKEND = mpidml_kernels.backend("numba")
each = pytest.mark.parametrize("name", NAMES)


def chain_of(link, rate=0.05):
    return Chain([link] if link.descends else [link, Sgd()], rate)


def change(link, g, state, w):
    """Let the link change `g` as it does on a worker: a descent makes the change of the weights of it."""
    if link.descends:
        link.delta(BACKEND, g, state, w, 0.05, 1)
    else:
        link.transform(BACKEND, g, state, w, 1)


def distance_left(link, n_steps=600, rate=0.05):
    """Run down the parabola |w - 1|^2 / 2 from within [0, 2] and return the largest distance left."""
    chain, w = chain_of(link, rate), np.linspace(0, 2, 9)
    state = chain.init(w.size, w.dtype)
    for step in range(1, n_steps + 1):
        chain.apply(BACKEND, w, w, w - 1, state, step)
    return np.abs(w - 1).max()


def test_the_folder_holds_the_promised_links():
    assert {"sgd", "momentum", "nesterov", "adam", "decay", "clip", "clamp", "adagrad", "rmsprop", "adadelta", "adamw", "lion", "ftrl", "l1", "lars", "lamb"} <= set(NAMES)


@each
def test_a_link_works_without_arguments_and_declares_itself(name):
    link = plugins.make("mpidml.optim", name)
    assert isinstance(link, Link)
    assert link.scope in ("elementwise", "tensor", "global") and isinstance(link.descends, bool) and isinstance(link.normalised, bool)
    assert not (link.descends and link.scope == "global"), "its step could not be cut off from what needs the whole gradient"


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_state_is_named_arrays_of_the_given_length_and_type_whose_names_stay(name, dtype):
    link = plugins.make("mpidml.optim", name)
    state = link.init(11, dtype)
    assert all(array.shape == (11,) and array.dtype == dtype for array in state.values())
    assert list(state) == list(link.init(3, np.float64)) == list(plugins.make("mpidml.optim", name).init(0, dtype))
    g, w = np.ones(11, dtype), np.ones(11, dtype)
    identities = {key: id(array) for key, array in state.items()}
    change(link, g, state, w)
    assert g.dtype == dtype and np.array_equal(w, np.ones(11)) and {key: id(array) for key, array in state.items()} == identities


RATES = (1.0, 0.05, 0.01)


@each
def test_a_chain_with_the_link_runs_down_a_parabola_at_one_of_three_rates(name):
    assert min(distance_left(plugins.make("mpidml.optim", name), rate=rate) for rate in RATES) < 0.05


def test_the_parabola_catches_a_link_that_climbs():
    class Climb(Link):
        def transform(self, backend, g, state, w, step, memory=1.0):
            backend.scale(g, -1.0)

    assert min(distance_left(Climb(), rate=rate) for rate in RATES) > 0.05


@each
def test_an_elementwise_link_does_not_mind_the_cut_of_the_vector(name):
    link = plugins.make("mpidml.optim", name)
    whole, parts = np.linspace(-3, 3, 10), np.linspace(-3, 3, 10)
    w = np.ones(10)
    change(link, whole, link.init(10, float), w)
    for part in (slice(0, 4), slice(4, 10)):
        change(link, parts[part], link.init(w[part].size, float), w[part])
    assert np.array_equal(whole, parts) == (link.scope == "elementwise")


def rests(make):
    """Tell whether steps with a gradient of 0 make no difference, before all others and between them."""
    ends = []
    for gradients in ((0.3, -0.7, 0.2), (0, 0.3, 0, -0.7, 0, 0.2, 0)):
        chain, w = chain_of(make()), np.linspace(-2, 2, 8)
        state = chain.init(w.size, w.dtype)
        for step, g in enumerate(gradients, 1):
            chain.apply(BACKEND, w, w, np.full_like(w, g), state, step)
        ends.append(w)
    return np.allclose(*ends, rtol=1e-12, atol=1e-15)


@each
def test_a_link_says_whether_it_rests_where_the_gradient_is_zero(name):
    assert rests(lambda: plugins.make("mpidml.optim", name)) == plugins.make("mpidml.optim", name).rests


@pytest.mark.parametrize("spec", ["ftrl:0", "ftrl:0:0.1", "ftrl:0.1"])
def test_arguments_may_decide_whether_a_link_rests(spec):
    assert rests(lambda: plugins.make("mpidml.optim", spec)) == plugins.make("mpidml.optim", spec).rests == (spec == "ftrl:0")


@each
def test_the_same_calls_give_the_same_bits(name):
    assert distance_left(plugins.make("mpidml.optim", name), 20) == distance_left(plugins.make("mpidml.optim", name), 20)
