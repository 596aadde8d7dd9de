"""Hold each link to its formula in float64, and the chain to its promises on every way to run it."""

import tracemalloc

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.flat import FlatParams
from mpidml.optim.base import make_chain, shortened

BACKENDS = [mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
N, RATE, N_STEPS = 37, 0.05, 5
TENSORS = FlatParams([("a.weight", (4, 5)), ("a.bias", (5,)), ("b.weight", (3, 4))])


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


def adagrad(w, gs, eps=1e-10):
    s = 0
    for g in gs:
        s = s + g**2
        w = w - RATE * g / (np.sqrt(s) + eps)
    return w


def adagrad_that_forgets(w, gs):
    s = 0
    for g in gs:
        s = 0.9 * s + g**2
        w = w - RATE * g / np.sqrt(s)
    return w


def rmsprop(w, gs, alpha=0.99, eps=1e-8):
    v = 0
    for g in gs:
        v = alpha * v + (1 - alpha) * g**2
        w = w - RATE * g / (np.sqrt(v) + eps)
    return w


def rmsprop_with_eps_below_the_root(w, gs):
    v = 0
    for g in gs:
        v = 0.5 * v + 0.5 * g**2
        w = w - RATE * g / np.sqrt(v + 0.1)
    return w


def adadelta(w, gs, rho=0.9, eps=1e-6):
    v = d = 0
    for g in gs:
        v = rho * v + (1 - rho) * g**2
        u = np.sqrt(d + eps) / np.sqrt(v + eps) * g
        d = rho * d + (1 - rho) * u**2
        w = w - RATE * u
    return w


def adadelta_that_looks_at_its_own_step(w, gs, rho=0.9, eps=1e-6):
    v = d = 0
    for g in gs:
        v = rho * v + (1 - rho) * g**2
        d = rho * d + (1 - rho) * g**2 * (d + eps) / (v + eps)
        w = w - RATE * np.sqrt(d + eps) / np.sqrt(v + eps) * g
    return w


def adamw(w, gs, decay=0.01):
    m = v = 0
    for t, g in enumerate(gs, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        w = w - RATE * decay * w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def adam_with_the_decay_in_its_gradient(w, gs, decay=0.01):
    m = v = 0
    for t, g in enumerate(gs, 1):
        g = g + decay * w
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        w = w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def lion(w, gs, beta1=0.9, beta2=0.99, decay=0.2):
    m = 0
    for g in gs:
        w = w - RATE * (np.sign(beta1 * m + (1 - beta1) * g) + decay * w)
        m = beta2 * m + (1 - beta2) * g
    return w


def lion_by_its_new_mean(w, gs):
    m = 0
    for g in gs:
        m = 0.99 * m + 0.01 * g
        w = w - RATE * (np.sign(m) + 0.2 * w)
    return w


def ftrl(w, gs, l1=0.01, l2=0.0, beta=1.0):
    """McMahan et al., KDD 2013, algorithm 1, whose weights begin at 0; others by the first sigma, 1 / rate."""
    z, n, first = np.zeros_like(w), np.zeros_like(w), True
    for g in gs:
        sigma = (np.sqrt(n + g**2) - np.sqrt(n) + first * beta) / RATE
        z = z + g - sigma * w
        n, first = n + g**2, False
        w = np.where(np.abs(z) <= l1, 0, -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / RATE + l2))
    return w


def ftrl_that_forgets_where_it_began(w, gs):
    z, n = 0, 0
    for g in gs:
        z = z + g - (np.sqrt(n + g**2) - np.sqrt(n)) / RATE * w
        n = n + g**2
        w = np.where(np.abs(z) <= 0.01, 0, -(z - np.sign(z) * 0.01) / ((1 + np.sqrt(n)) / RATE))
    return w


def l1(w, gs, rate=0.1):
    for g in gs:
        w = w - RATE * (g + rate * np.sign(w))
    return w


def decay(w, gs, rate=0.1):
    for g in gs:
        w = w - RATE * (g + rate * w)
    return w


def clip(w, gs, limit=1.0):
    return sgd(w, [g * min(1, limit / np.linalg.norm(g)) for g in gs])


def clamp(w, gs, limit=0.5):
    return sgd(w, [np.clip(g, -limit, limit) for g in gs])


def measured_pieces(w, gs, params, descend):
    """Let `descend(w, gs, is_measured)` go its way with each tensor alone."""
    pieces = [(slice(None), True)] if params is None else [(params.slices[name], len(shape) > 1) for name, shape in params.shapes.items()]
    out = w.copy()
    for where, is_measured in pieces:
        out[where] = descend(w[where], [g[where] for g in gs], is_measured)
    return out


def lars(w, gs, trust=0.001, decay=1e-4, beta=0.9, params=None):
    def descend(w, gs, is_measured):
        v = 0
        for g in gs:
            if is_measured:
                g = trust * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w)) * (g + decay * w)
            v = beta * v + g
            w = w - RATE * v
        return w

    return measured_pieces(w, gs, params, descend)


def lars_that_measures_its_momentum(w, gs, trust=0.001, decay=1e-4):
    v = 0
    for g in gs:
        v = 0.9 * v + g + decay * w
        w = w - RATE * trust * np.linalg.norm(w) / np.linalg.norm(v) * v
    return w


def lamb(w, gs, decay=0.01, params=None):
    def descend(w, gs, is_measured):
        m = v = 0
        for t, g in enumerate(gs, 1):
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g**2
            u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
            if is_measured:
                u = u + decay * w
                u = u * np.linalg.norm(w) / np.linalg.norm(u)
            w = w - RATE * u
        return w

    return measured_pieces(w, gs, params, descend)


FORMULAS = {
    "sgd": sgd, "momentum": momentum, "nesterov": nesterov, "adam": adam, "decay:0.1+sgd": decay, "clip+sgd": clip, "clamp:0.5+sgd": clamp,
    "adagrad": adagrad, "rmsprop": rmsprop, "adadelta": adadelta, "adamw": adamw, "lion:decay=0.2": lion, "ftrl": ftrl, "l1:0.1+sgd": l1,
    "lars": lars, "lars:0.1:0.5:0.8": lambda w, gs: lars(w, gs, 0.1, 0.5, 0.8), "lamb": lamb, "lamb:0.3": lambda w, gs: lamb(w, gs, 0.3),
    "rmsprop:0.5:0.1": lambda w, gs: rmsprop(w, gs, 0.5, 0.1), "adagrad:0.2": lambda w, gs: adagrad(w, gs, 0.2),
    "adadelta:0.5:0.1": lambda w, gs: adadelta(w, gs, 0.5, 0.1), "ftrl:6:2:3": lambda w, gs: ftrl(w, gs, 6.0, 2.0, 3.0),
}  # fmt: skip
BROKEN = {
    "adam": adam_without_bias_correction, "nesterov": nesterov_reading_the_old_sum, "momentum": sgd, "adagrad": adagrad_that_forgets,
    "rmsprop:0.5:0.1": rmsprop_with_eps_below_the_root, "adadelta": adadelta_that_looks_at_its_own_step,
    "adamw": adam_with_the_decay_in_its_gradient, "lion:decay=0.2": lion_by_its_new_mean, "ftrl": ftrl_that_forgets_where_it_began,
    "l1:0.1+sgd": decay, "lars": lars_that_measures_its_momentum, "lamb": adamw, "lamb:0.3": lamb,
}  # fmt: skip
ALL = [*FORMULAS, "clip:2+decay:0.1+clamp:0.4+adam:0.8:0.99", "decay+nesterov:0.5", "clip+l1:0.1+ftrl:1", "clip:2+lamb"]


def needs_whole(text):
    return any(name in text for name in ("clip", "lars", "lamb"))


def run(text, backend, w, gs, way, params=None, **more):
    """Run a chain one of three ways and return the weights after the last step."""
    chain = make_chain(text, RATE)
    if params is not None:
        chain.see(params)
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


@pytest.mark.parametrize("text, broken", BROKEN.items())
def test_the_formula_check_catches_a_wrong_link(text, broken):
    w = run(text, BACKENDS[0], weights(), gradients(), "in place")
    assert not np.allclose(w, broken(weights(), gradients()), rtol=1e-6)


@both
@pytest.mark.parametrize("way", ["in place", "delta"])
@pytest.mark.parametrize("name, formula", [("lars", lars), ("lamb", lamb)])
def test_each_tensor_is_measured_by_itself_and_vectors_are_not(name, formula, way, backend):
    w, gs = weights(), gradients()
    seen = run(name, backend, w, gs, way, TENSORS)
    np.testing.assert_allclose(seen, formula(w, gs, params=TENSORS), rtol=1e-12, atol=1e-13)
    assert not np.allclose(seen, formula(w, gs), rtol=1e-6), "the tensors make a difference"
    bias = TENSORS.slices["a.bias"]
    assert not np.allclose(run(f"{name}:vectors=true", backend, w, gs, way, TENSORS)[bias], seen[bias], rtol=1e-6)


@both
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_tensor_of_zeros_without_a_gradient_stays_and_one_with_it_leaves(name, backend):
    zeros, gs = np.zeros(N), gradients()
    assert not run(name, backend, zeros, [0 * g for g in gs], "in place", TENSORS).any()
    assert run(name, backend, zeros, gs, "in place", TENSORS).all()


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


@pytest.mark.parametrize("text", [text for text in ALL if not needs_whole(text)])
def test_two_halves_of_the_vector_equal_the_whole_for_elementwise_links(text):
    assert np.array_equal(in_halves(text, weights(), gradients()), run(text, BACKENDS[1], weights(), gradients(), "in place"))


@pytest.mark.parametrize("text", ["clip+sgd", "lars:0.1", "lamb"])
def test_two_halves_do_not_equal_the_whole_for_a_link_that_needs_it(text):
    assert not np.allclose(in_halves(text, weights(), gradients()), run(text, BACKENDS[1], weights(), gradients(), "in place"))


@pytest.mark.parametrize(("text", "per_byte"), [("sgd", 0), ("momentum:0.9", 1), ("clip:1+adam", 2)])
def test_state_is_counted_for_each_byte_and_a_split_keeps_all_of_it(text, per_byte):
    chain = make_chain(text, 0.1)
    before, after = chain.split()
    for dtype in (np.float32, np.float64):
        assert chain.state_per_byte(dtype) == per_byte == sum(part.state_per_byte(dtype) for part in (before, after) if part is not None)


@pytest.mark.parametrize("text", ALL)
def test_a_split_chain_on_shards_equals_the_whole_chain(text):
    backend, chain, w = BACKENDS[1], make_chain(text, RATE), weights()
    before, after = chain.split()
    assert all(link.scope == "elementwise" for link in after.links)
    assert (before is None) != needs_whole(text)
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


def test_the_cut_lies_after_the_last_link_that_needs_the_whole_and_names_stay():
    before, after = make_chain("decay+clip+clamp+momentum", RATE).split()
    assert [type(link).__name__ for link in before.links] == ["Decay", "Clip"]
    assert [type(link).__name__ for link in after.links] == ["Clamp", "Momentum"]
    assert list(after.init(3, np.float32)) == ["3.momentum.v"]
    assert make_chain("adam", RATE).split()[0] is None
    assert list(make_chain("adam", RATE).init(3, np.float32)) == ["0.adam.m", "0.adam.v"]
    before, after = make_chain("decay+lars", RATE).split()
    assert list(before.init(3, np.float32)) == ["1.lars.v"] and [type(link).__name__ for link in after.links] == ["Sgd"]


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


@pytest.mark.parametrize("way", ["in place", "out of place", "delta"])
def test_memory_shortens_both_means_of_lion_and_the_first_of_adamw(way):
    w, gs = weights(), gradients()
    np.testing.assert_allclose(run("lion:0.9:0.98:0.2", BACKENDS[1], w, gs, way, memory=2.0), lion(w, gs, 0.8, 0.96), rtol=1e-12)
    np.testing.assert_allclose(run("adamw:0", BACKENDS[1], w, gs, way, memory=2.0), adam(w, gs, 0.8), rtol=1e-12)
    np.testing.assert_allclose(run("lars:0.1", BACKENDS[1], w, gs, way, memory=2.0), lars(w, gs, 0.1, beta=0.8), rtol=1e-12)


@both
@pytest.mark.parametrize("way", ["in place", "out of place", "delta"])
def test_ftrl_without_its_regularisers_is_adagrad_at_any_sequence_of_rates(way, backend):
    """So also where the rate is softened for a stale update, and where it follows a schedule."""
    found = []
    for text in ("ftrl:0:0:0.3", "adagrad:0.3"):
        chain, w = make_chain(text, RATE), weights()
        state = chain.init(w.size, w.dtype)
        for step, (g, factor) in enumerate(zip(gradients(), (1.0, 0.1, 3.0, 1e-3, 1.0), strict=True), 1):
            if way == "delta":
                chain.delta(backend, g, state, w, step, factor)
                w = w + g
            else:
                out = w if way == "in place" else np.empty_like(w)
                chain.apply(backend, w, out, g, state, step, factor)
                w = out
        found.append(w)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert not np.allclose(found[1], adagrad(weights(), gradients(), 0.3)), "the rates do something"


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ftrl_holds_weights_at_exactly_zero_until_their_gradients_add_up(dtype, backend):
    for way in ("in place", "out of place", "delta"):
        zeros = [np.count_nonzero(run(f"ftrl:{l1}", backend, np.zeros(N, dtype), gradients(dtype=dtype), way) == 0) for l1 in (0, 3, 30)]
        assert zeros[0] == 0 and 5 < zeros[1] < N - 5 and zeros[2] == N, (way, zeros)
    assert not (run("l1:3+sgd", backend, weights(dtype=dtype), gradients(dtype=dtype), "in place") == 0).any()  # the plain pull makes none


@both
def test_ftrl_stands_still_at_a_rate_of_zero(backend):
    for way in ("in place", "out of place", "delta"):
        np.testing.assert_allclose(run("ftrl:0", backend, weights(), gradients(), way, rate_factor=0.0), weights(), rtol=1e-12)


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
        ("adadelta:eps=0", 0.1, "eps = 0 is not above 0"),
        ("ftrl:beta=0", 0.1, "beta = 0 is not above 0"),
        ("ftrl:-1", 0.1, "l1 = -1 is not"),
        ("l1:-1+sgd", 0.1, "rate = -1 is not"),
        ("lion:1", 0.1, "beta1 = 1 is not"),
        ("adamw:-0.1", 0.1, "decay = -0.1 is not"),
        ("rmsprop:1", 0.1, "alpha = 1 is not"),
        ("lars:-1", 0.1, "trust = -1 is not"),
        ("lamb:vectors=1", 0.1, "vectors = 1 is neither true nor false"),
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
