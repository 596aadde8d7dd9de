"""Hold each link to its formula in float64, and the chain to its promises on every way to run it."""

import tracemalloc

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.optim.base import make_chain, shortened

BACKENDS = [mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
N, RATE, N_STEPS = 37, 0.05, 5


def gradients(n=N, dtype=np.float64):
    return [g.astype(dtype) for g in np.random.default_rng(3).standard_normal((N_STEPS, n)) * 3]


def weights(n=N, dtype=np.float64):
    return np.random.default_rng(4).standard_normal(n).astype(dtype)


def sgd(w, gs):
    for g in gs:
        w = w - RATE * g
    return w


def momentum(w, gs, beta=0.9):
    v = 0
    for g in gs:
        v = beta * v + g
        w = w - RATE * v
    return w


def nesterov(w, gs, beta=0.9):
    v = 0
    for g in gs:
        v = beta * v + g
        w = w - RATE * (g + beta * v)
    return w


def adam(w, gs, beta1=0.9, beta2=0.999, eps=1e-8):
    m = v = 0
    for t, g in enumerate(gs, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - RATE * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


def adam_without_bias_correction(w, gs):
    m = v = 0
    for g in gs:
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        w = w - RATE * m / (np.sqrt(v) + 1e-8)
    return w


def nesterov_reading_the_old_sum(w, gs):
    v = 0
    for g in gs:
        w = w - RATE * (g + 0.9 * v)
        v = 0.9 * v + g
    return w


def decay(w, gs, rate=0.1):
    for g in gs:
        w = w - RATE * (g + rate * w)
    return w


def clip(w, gs, limit=1.0):
    return sgd(w, [g * min(1, limit / np.linalg.norm(g)) for g in gs])


def clamp(w, gs, limit=0.5):
    return sgd(w, [np.clip(g, -limit, limit) for g in gs])


FORMULAS = {"sgd": sgd, "momentum": momentum, "nesterov": nesterov, "adam": adam, "decay:0.1+sgd": decay, "clip+sgd": clip, "clamp:0.5+sgd": clamp}
ALL = [*FORMULAS, "clip:2+decay:0.1+clamp:0.4+adam:0.8:0.99", "decay+nesterov:0.5"]


def run(text, backend, w, gs, way, **more):
    """Run a chain one of three ways and return the weights after the last step."""
    chain = make_chain(text, RATE)
    w, state = w.copy(), chain.init(w.size, w.dtype)
    for step, g in enumerate(gs, 1):
        g = g.copy()
        if way == "in place":
            chain.apply(backend, w, w, g, state, step, **more)
        elif way == "out of place":
            before, out = w.copy(), np.full_like(w, np.nan)
            chain.apply(backend, w, out, g, state, step, **more)
            assert np.array_equal(w, before)
            w = out
        else:
            before = w.copy()
            chain.delta(backend, g, state, w, step, **more)
            assert np.array_equal(w, before)
            w = w + g
    return w


@both
@pytest.mark.parametrize("way", ["in place", "out of place", "delta"])
@pytest.mark.parametrize("text", FORMULAS)
def test_five_steps_follow_the_formula(text, way, backend):
    np.testing.assert_allclose(run(text, backend, weights(), gradients(), way), FORMULAS[text](weights(), gradients()), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("text, broken", [("adam", adam_without_bias_correction), ("nesterov", nesterov_reading_the_old_sum), ("momentum", sgd)])
def test_the_formula_check_catches_a_wrong_link(text, broken):
    w = run(text, BACKENDS[0], weights(), gradients(), "in place")
    assert not np.allclose(w, broken(weights(), gradients()), rtol=1e-6)


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", ALL)
def test_in_place_equals_out_of_place_to_the_bit_and_delta_within_rounding(text, dtype, backend):
    w, gs = weights(dtype=dtype), gradients(dtype=dtype)
    in_place = run(text, backend, w, gs, "in place")
    assert in_place.dtype == dtype
    assert np.array_equal(in_place, run(text, backend, w, gs, "out of place"))
    np.testing.assert_allclose(run(text, backend, w, gs, "delta"), in_place, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


def in_halves(text, w, gs, cut=13):
    halves = [run(text, BACKENDS[1], w[part], [g[part] for g in gs], "in place") for part in (slice(0, cut), slice(cut, None))]
    return np.concatenate(halves)


@pytest.mark.parametrize("text", [text for text in ALL if "clip" not in text])
def test_two_halves_of_the_vector_equal_the_whole_for_elementwise_links(text):
    assert np.array_equal(in_halves(text, weights(), gradients()), run(text, BACKENDS[1], weights(), gradients(), "in place"))


def test_two_halves_do_not_equal_the_whole_for_the_global_link():
    assert not np.allclose(in_halves("clip+sgd", weights(), gradients()), run("clip+sgd", BACKENDS[1], weights(), gradients(), "in place"))


@pytest.mark.parametrize("text", ALL)
def test_a_split_chain_on_shards_equals_the_whole_chain(text):
    backend, chain, w = BACKENDS[1], make_chain(text, RATE), weights()
    before, after = chain.split()
    assert all(link.scope == "elementwise" for link in after.links)
    assert (before is None) == ("clip" not in text)
    shards = [slice(0, 20), slice(20, N)]
    states = [after.init(w[s].size, w.dtype) for s in shards]
    early = before.init(w.size, w.dtype) if before else {}
    assert set(early) | set(states[0]) == set(chain.init(1, w.dtype))
    for step, g in enumerate(gradients(), 1):
        g = g.copy()
        if before:
            before.transform(backend, g, early, w, step)
        for s, state in zip(shards, states, strict=True):
            after.apply(backend, w[s], w[s], g[s], state, step)
    np.testing.assert_allclose(w, run(text, backend, weights(), gradients(), "in place"), rtol=1e-14, atol=1e-15)


def test_the_cut_lies_after_the_last_global_link_and_names_stay():
    before, after = make_chain("decay+clip+clamp+momentum", RATE).split()
    assert [type(link).__name__ for link in before.links] == ["Decay", "Clip"]
    assert [type(link).__name__ for link in after.links] == ["Clamp", "Momentum"]
    assert list(after.init(3, np.float32)) == ["3.momentum.v"]
    assert make_chain("adam", RATE).split()[0] is None
    assert list(make_chain("adam", RATE).init(3, np.float32)) == ["0.adam.m", "0.adam.v"]


@both
def test_rate_factor_scales_the_step_and_memory_shortens_the_momentum(backend):
    w, gs = weights(), gradients()
    scaled = run("sgd", backend, w, gs, "in place", rate_factor=0.5)
    np.testing.assert_allclose(scaled - w, 0.5 * (run("sgd", backend, w, gs, "in place") - w), rtol=1e-12)
    for way in ("in place", "out of place", "delta"):
        np.testing.assert_allclose(run("momentum:0.9", backend, w, gs, way, memory=2.0), momentum(w, gs, 0.8), rtol=1e-12)
        np.testing.assert_allclose(run("momentum:0.9", backend, w, gs, way, memory=50.0), sgd(w, gs), rtol=1e-12)
        np.testing.assert_allclose(run("nesterov:0.9", backend, w, gs, way, memory=2.0), nesterov(w, gs, 0.8), rtol=1e-12)
        np.testing.assert_allclose(run("adam:0.9", backend, w, gs, way, memory=2.0), adam(w, gs, 0.8), rtol=1e-12)


def test_memory_divides_the_length_of_the_memory():
    assert shortened(0.9, 1.0) == pytest.approx(0.9)
    assert 1 / (1 - shortened(0.99, 5.0)) == pytest.approx(100 / 5)
    assert shortened(0.9, 10.0) == pytest.approx(0) and shortened(0.9, 1e9) == 0 == shortened(0.0, 1.0)


def test_clip_shortens_only_a_long_gradient_and_lets_nan_pass():
    for g, expected in (([0.3, 0.4], [0.3, 0.4]), ([3.0, 4.0], [0.6, 0.8]), ([np.nan, 4.0], [np.nan, 4.0])):
        w = np.zeros(2)
        make_chain("clip:1+sgd", 1.0).apply(BACKENDS[1], w, w, np.array(g), {}, 1)
        np.testing.assert_allclose(-w, expected)


def test_steps_allocate_no_array():
    backend, n = BACKENDS[1], 100_000
    for text in ALL:
        chain, w, g = make_chain(text, RATE), weights(n), weights(n)
        out, state = w.copy(), chain.init(n, w.dtype)
        chain.apply(backend, w, out, g, state, 1)
        chain.delta(backend, g, state, w, 1)
        tracemalloc.start()
        try:
            for step in range(1, 6):
                chain.apply(backend, w, out, g, state, step)
                chain.apply(backend, w, w, g, state, step)
                chain.delta(backend, g, state, w, step)
            assert tracemalloc.get_traced_memory()[1] < n  # one array would be 8 n
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "text, rate, message",
    [
        ("momentum:1.0", 0.1, "beta = 1.0 is not a number in [0, 1)"),
        ("momentum:fast", 0.1, "beta = fast is not a number"),
        ("adam:0.9:-1", 0.1, "beta2 = -1 is not"),
        ("adam:eps=-1", 0.1, "eps = -1 is not"),
        ("clip:0+sgd", 0.1, "limit = 0 is not"),
        ("clip:nan+sgd", 0.1, "limit = nan is not"),
        ("clamp:-2+sgd", 0.1, "limit = -2 is not"),
        ("decay:-1+sgd", 0.1, "rate = -1 is not"),
        ("momentun", 0.1, "did you mean 'momentum'?"),
        ("sgd+momentum", 0.1, "both 'sgd' and 'momentum' descend"),
        ("sgd+clip", 0.1, "'sgd' descends but is not the last link"),
        ("clip:1.0", 0.1, "the last link 'clip:1.0' does not descend"),
        ("", 0.1, "there is no ''"),
        ("sgd", 0, "0 is not a finite number > 0"),
        ("sgd", -0.1, "-0.1 is not a finite number > 0"),
        ("sgd", float("inf"), "inf is not a finite number > 0"),
        ("sgd", float("nan"), "nan is not a finite number > 0"),
        ("sgd", "fast", "fast is not a finite number > 0"),
    ],
)
def test_a_wrong_optimizer_is_one_line_that_says_what_to_do(text, rate, message):
    with pytest.raises(UserError) as error:
        make_chain(text, rate)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_exponent_is_not_a_joint():
    chain = make_chain("decay:1e-4 + clip:1e+2 + momentum:0.5", 0.1)
    assert [chain.links[0].rate, chain.links[1].limit, chain.links[2].beta] == [1e-4, 100.0, 0.5]
