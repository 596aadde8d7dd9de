"""A flat vector of named tensors is compressed tensor by tensor, and its residuals belong to the tensors, however it is cut."""

import mpidml_kernels
import numpy as np
import pytest

from mpidml.compression.base import SMALL, Compressor, make_codec
from mpidml.compression.top_k import TopK
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.flat import FlatParams

BACKEND = mpidml_kernels.backend("numba")
PARAMS = FlatParams([("0.weight", (40, 30)), ("0.bias", (30,)), ("1.weight", (30, 50)), ("1.bias", (50,)), ("2.weight", (50, 11))])
CODECS = plugins.names("mpidml.compression")
CUTTABLE = [name for name in CODECS if not make_codec(name).whole]
CONSERVING = [name for name in CODECS if make_codec(name).has_residual]


def compressor(text, dtype=np.float64, **more):
    return Compressor(make_codec(text), PARAMS, dtype, BACKEND, **more)


def sent(c, x, lo, hi, step=0, receiver=None):
    """Send one range and return what arrives."""
    code, out = np.zeros(c.nbytes(lo, hi), np.uint8), np.full(hi - lo, np.nan, c.dtype)
    c.encode(x[lo:hi], lo, hi, code, step)
    (receiver or c).decode(code, lo, hi, out)
    return out


def ranges(*cuts):
    return list(zip((0, *cuts), (*cuts, PARAMS.size), strict=True))


def gradients(n, seed=0):
    random = np.random.default_rng(seed)
    drift = random.standard_normal(PARAMS.size)
    return [random.standard_normal(PARAMS.size) + 0.3 * drift for _ in range(n)]


def missing(c, steps, cuts_of):
    """Return what 'given - received - residual' has lost, at most, with the ranges of each step as `cuts_of(step)` says."""
    given, received = np.zeros(PARAMS.size), np.zeros(PARAMS.size)
    for step, x in enumerate(gradients(steps)):
        for lo, hi in ranges(*cuts_of(step)):
            received[lo:hi] += sent(c, x, lo, hi, step)
        given += x
    left = np.zeros(PARAMS.size)
    for name, view in PARAMS.views(left).items():
        view[...] = c.state()[f"{name}.residual"].reshape(view.shape)
    return np.abs(given - received - left).max() / np.abs(given).max()


@pytest.mark.parametrize("text", CONSERVING)
def test_every_tensor_conserves_over_a_thousand_steps(text):
    assert missing(compressor(text), 1000, lambda step: ()) < 1e-12


def recut(step):
    """Cut between tensors, within tensors, or nowhere, another way at every step."""
    return [(), (1200,), (700, 1900), (1, 1230, 3000)][step % 4]


@pytest.mark.parametrize("text", [name for name in CONSERVING if name in CUTTABLE])
def test_residuals_stay_with_their_tensors_when_ranges_are_cut_otherwise(text):
    assert missing(compressor(text), 40, recut) < 1e-12


def owed(c):
    """Return what is owed, at most, and what is lost, after one step by codes and one in pieces that are all small."""
    small = tuple(range(100, PARAMS.size, 100))
    lost = missing(c, 2, lambda step: small if step else ())
    return max(np.abs(array).max() for name, array in c.state().items() if name.endswith("residual")), lost


@pytest.mark.parametrize("text", [name for name in CONSERVING if name in CUTTABLE])
def test_pieces_that_became_small_send_what_codes_have_left_of_them(text):
    class AsItIs(Compressor):
        """The broken variant: what goes as it is goes without what is owed."""

        def pieces(self, lo, hi):
            return [piece._replace(state={}) if piece.as_it_is else piece for piece in super().pieces(lo, hi)]

    left, lost = owed(compressor(text))
    assert left == 0 and lost < 1e-12
    assert owed(AsItIs(make_codec(text), PARAMS, np.float64, BACKEND))[0] > 0


def test_a_residual_keyed_by_range_is_caught():
    class ByRange(Compressor):
        """The broken variant: each range has states of its own."""

        def _state_of(self, name, a, b):
            return self.codec.init((b - a,), self.dtype)

        def state(self):
            held = {f"{name}.residual": np.zeros(self.params.shapes[name]) for name in self.params.shapes}
            for (lo, _), pieces in self._ranges.items():
                for piece in pieces:
                    start = lo + piece.of_range.start - self.params.slices[piece.name].start
                    n = piece.of_range.stop - piece.of_range.start
                    held[f"{piece.name}.residual"].reshape(-1)[start : start + n] = piece.state["residual"]
            return held

    broken = ByRange(make_codec("two_bit"), PARAMS, np.float64, BACKEND)
    assert missing(broken, 40, lambda step: ()) < 1e-12, "as long as no range changes, nobody sees it"
    broken = ByRange(make_codec("two_bit"), PARAMS, np.float64, BACKEND)
    assert missing(broken, 40, recut) > 1e-2


@pytest.mark.parametrize("text", CODECS)
def test_a_range_is_its_tensors_codes_and_small_tensors_go_as_they_are(text):
    c, codec, x = compressor(text), make_codec(text), gradients(1)[0]
    out = sent(c, x, 0, PARAMS.size)
    for name, view in PARAMS.views(out).items():
        given = PARAMS.view(x, name)
        as_it_is = given.nbytes < SMALL
        assert np.array_equal(view, given) == (as_it_is and not codec.votes), name
    pieces = c.pieces(0, PARAMS.size)
    sizes = [codec.nbytes(p.shape, 8) if not p.as_it_is else 8 * int(np.prod(p.shape)) for p in pieces]
    assert [p.of_code.stop - p.of_code.start for p in pieces] == sizes and all(p.of_code.start % 8 == 0 for p in pieces)
    assert c.nbytes(0, PARAMS.size) == sum(-(-size // 8) * 8 for size in sizes)
    assert c.nbytes(5, 5) == 0 and c.nbytes(0, PARAMS.size) < 8 * PARAMS.size


def test_a_code_that_would_be_no_shorter_is_not_used():
    c, x = compressor("top_k:1.0"), gradients(1)[0]
    assert c.nbytes(0, PARAMS.size) == 8 * PARAMS.size and np.array_equal(sent(c, x, 0, PARAMS.size), x)


@pytest.mark.parametrize("text", CODECS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_receiver_without_states_decodes_and_adds(text, dtype):
    c, receiver = compressor(text, dtype), compressor(text, dtype, held=(0, 0))
    assert not receiver.state()
    x = gradients(1)[0].astype(dtype)
    code, added, alone = np.zeros(c.nbytes(0, PARAMS.size), np.uint8), np.ones(PARAMS.size, dtype), np.ones(PARAMS.size, dtype)
    c.encode(x, 0, PARAMS.size, code)
    code.flags.writeable = False
    receiver.decode_add(code, 0, PARAMS.size, added)
    receiver.decode(code, 0, PARAMS.size, alone)
    np.testing.assert_allclose(added, alone + 1, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="holds 0:0"):
        receiver.encode(x, 0, PARAMS.size, np.zeros(code.size, np.uint8))


@pytest.mark.parametrize("text", CODECS)
def test_a_loaded_state_goes_on_as_the_saved_one_would_have(text):
    a, b = compressor(text, seed=3), compressor(text, seed=3)
    steps = gradients(6)
    for step in range(3):
        sent(a, steps[step], 0, PARAMS.size, step)
    b.load({key: array.copy() for key, array in a.state().items()})
    for step in range(3, 6):
        assert np.array_equal(sent(a, steps[step], 0, PARAMS.size, step), sent(b, steps[step], 0, PARAMS.size, step))
    if make_codec(text).has_residual:
        fresh = compressor(text, seed=3)
        assert not np.array_equal(sent(fresh, steps[5], 0, PARAMS.size, 6), sent(a, steps[5], 0, PARAMS.size, 6)), "the state matters"


def test_a_state_of_another_codec_or_shape_is_refused():
    with pytest.raises(ValueError, match=r"differs in '0\.bias\.q'"):
        compressor("one_bit").load(compressor("low_rank").state())
    state = compressor("two_bit").state()
    state["1.bias.residual"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"differs in '1\.bias\.residual'"):
        compressor("two_bit").load(state)


def test_a_shard_holds_the_residual_of_its_part_alone():
    whole, left, right = compressor("one_bit:512"), compressor("one_bit:512", held=(0, 700)), compressor("one_bit:512", held=(700, PARAMS.size))
    for step, x in enumerate(gradients(3)):
        for lo, hi, part in ((0, 700, left), (700, PARAMS.size, right)):
            assert np.array_equal(sent(part, x, lo, hi, step), sent(whole, x, lo, hi, step))
    both = np.concatenate([left.state()["0.weight.residual"], right.state()["0.weight.residual"]])
    assert np.array_equal(both, whole.state()["0.weight.residual"]) and "2.weight.residual" not in left.state()


def test_a_codec_that_needs_whole_tensors_says_where_it_is_cut():
    c = compressor("low_rank")
    sent(c, gradients(1)[0], 0, 1230)
    with pytest.raises(UserError, match=r"LowRank needs tensors in full, and '0\.weight' is cut at 0:700 of 1200"):
        c.nbytes(0, 700)


@pytest.mark.parametrize("text", [*CODECS, "two_bit:0.1", "top_k:sampled=true", "random_k:unbiased=true", "bf16:residual=false"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_arrives_as_no_number_in_its_tensor(text, bad):
    c, x = compressor(text), gradients(1)[0]
    x[PARAMS.slices["1.weight"].start] = bad
    got = PARAMS.views(sent(c, x, 0, PARAMS.size))
    assert np.isfinite(got["1.weight"]).all() == c.codec.votes  # whose step is as long as ever
    assert all(np.isfinite(got[name]).all() for name in got if name != "1.weight")


def test_places_that_are_bytes_of_ones_lie_outside(monkeypatch):
    """The broken variant: a codec that sends places needs its own way to say NaN."""
    monkeypatch.delattr(TopK, "spoil")
    c, x = compressor("top_k"), gradients(1)[0]
    x[PARAMS.slices["1.weight"].start] = np.nan
    code = np.zeros(c.nbytes(0, PARAMS.size), np.uint8)
    c.encode(x, 0, PARAMS.size, code)
    (piece,) = (piece for piece in c.pieces(0, PARAMS.size) if piece.name == "1.weight")
    _, ids = c.codec._fields(code[piece.of_code], x[piece.of_range])
    assert ids.max() > x.size


def test_noise_differs_by_sender_step_and_tensor_and_random_k_alone_shares_it():
    x = np.ones(PARAMS.size)
    for text, shared in (("qsgd", False), ("ternary", False), ("random_k:0.1", True)):
        x[...] = np.tile([1.0, 0.4], PARAMS.size)[: PARAMS.size]
        one, other = compressor(text, sender=0), compressor(text, sender=1)
        first = sent(one, x, 0, PARAMS.size, 1)
        assert np.array_equal(first, sent(other, x, 0, PARAMS.size, 1)) == shared
        again = compressor(text)
        assert np.array_equal(first, sent(again, x, 0, PARAMS.size, 1)) and not np.array_equal(first, sent(compressor(text), x, 0, PARAMS.size, 2))
        assert not np.array_equal(first, sent(compressor(text, seed=1), x, 0, PARAMS.size, 1))
        a, b = (PARAMS.view(first, name).reshape(-1)[:1200] for name in ("0.weight", "1.weight"))
        assert not np.array_equal(a, b)


def test_a_majority_is_the_sign_of_the_summed_votes():
    senders, total = gradients(3), np.zeros(PARAMS.size)
    for i, x in enumerate(senders):
        total += sent(compressor("sign_majority", sender=i), x, 0, PARAMS.size)
    expected = np.sign(np.sign(senders).sum(axis=0))
    compressor("sign_majority").combine(total, 0, PARAMS.size)
    assert np.array_equal(total, expected)
    plain = sum(senders)
    kept = plain.copy()
    compressor("two_bit").combine(kept, 0, PARAMS.size)
    assert np.array_equal(kept, plain), "elsewhere the sum is the result"
