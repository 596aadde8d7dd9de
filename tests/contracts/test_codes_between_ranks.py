"""Hold every file of mpidml/compression to the contract of a codec between ranks: what one has encoded, all decode to its bits, from as many bytes as its formula says.

Found by the folder alone, as in test_compression, which looks at what one process can see of a codec.
"""

import itertools

import numpy as np
import pytest

from mpidml.compression.base import Compressor, make_codec
from mpidml.core import rng
from mpidml.core.flat import FlatParams
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.compressed_sum import Compressed
from tests.contracts.test_compression import BACKEND, DTYPES, LOSSY, NAMES, UNBIASED, VARIANTS, block_of, tolerance

pytestmark = pytest.mark.everywhere

TAG, STEPS = 7, 4
SHAPES = [(0,), (1,), (7,), (513,), (3000,), (0, 5), (40, 30), (40, 30), (3, 341)]
"""Tensors with nothing in them, of odd lengths, of lengths that fill no block, and two of one shape: TWINS."""
TWINS = 6, 7
KEEPING = [text for text in VARIANTS if make_codec(text).has_residual]
each = pytest.mark.parametrize("text", VARIANTS + LOSSY)
types = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)


@pytest.fixture
def ranks(comm):
    own = CountedComm(comm)
    yield own
    own.free()


def given(rank, step, i, dtype):
    """Return what a rank encodes of tensor i in a step: of another scale in each element, and on each rank."""
    random = np.random.default_rng([rank, step, i])
    return (random.standard_normal(SHAPES[i]) * np.exp(random.standard_normal(SHAPES[i])) * (1 + rank)).astype(dtype)


def sent(ranks, code, goes=None):
    """Send a code, or what `goes` in place of it, to every other rank; return all ranks' codes, in their order. Bytes that nobody has sent are 0."""
    others = [r for r in range(ranks.size) if r != ranks.rank]
    came = [code if r == ranks.rank else np.zeros(code.size, np.uint8) for r in range(ranks.size)]
    for request in [ranks.Irecv(came[r], r, TAG) for r in others] + [ranks.Isend(code if goes is None else goes, r, TAG) for r in others]:
        request.Wait()
    return came


def breaches(ranks, text, dtype, wire=lambda code, itemsize: code, spoil=lambda step, states: None):
    """Send tensors that differ between ranks for some steps; return, alike on every rank, which words of the contract any of them has seen broken.

    `wire`: what goes of a code; `spoil`: what befalls this rank's states before a step.
    """
    codec, itemsize, found = make_codec(text), np.dtype(dtype).itemsize, set()
    states = [codec.init(shape, dtype) for shape in SHAPES]
    received, total, size = ([np.zeros(shape) for shape in SHAPES] for _ in range(3))
    seen = []
    for step in range(STEPS):
        spoil(step, states)
        for i, (shape, state) in enumerate(zip(SHAPES, states, strict=True)):
            x, code = given(ranks.rank, step, i, dtype), np.full(codec.nbytes(shape, itemsize), 0xCD, np.uint8)
            codec.encode(BACKEND, x, state, code, rng.key(0, "between ranks", step, i, ranks.rank))
            before = ranks.nbytes_sent
            came = sent(ranks, code, wire(code, itemsize))
            if ranks.nbytes_sent - before != (ranks.size - 1) * codec.nbytes(shape, itemsize):
                found.add("bytes")
            outs = [np.empty(shape, dtype) for _ in came]
            for one, out in zip(came, outs, strict=True):
                codec.decode(BACKEND, one, out)
            seen.append([out.tobytes() for out in outs])
            received[i] += outs[ranks.rank]
            total[i] += x
            size[i] += np.abs(x)
    for rank, its in enumerate(ranks.allgather(seen)):
        if any(own[rank] != theirs[rank] for own, theirs in zip(seen, its, strict=True)):
            found.add("bits")
    for of, came, state, shape, scale in zip(total, received, states, SHAPES, size, strict=True):
        if codec.has_residual and of.size and np.abs(of - came - state["residual"].reshape(shape)).max() > tolerance(dtype) * scale.max():
            found.add("residual")
    return set().union(*ranks.allgather(found))


@pytest.mark.mpi
@pytest.mark.openmpi
@each
@types
def test_all_decode_a_code_to_its_senders_bits_from_as_many_bytes_as_the_formula_and_nothing_is_lost(ranks, text, dtype):
    assert breaches(ranks, text, dtype) == set()


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("text", NAMES)
def test_the_contract_catches_a_wire_that_is_short_by_one_value(ranks, text):
    def short(code, itemsize):
        return code[: max(0, code.size - itemsize)]

    found = breaches(ranks, text, np.float32, wire=short)
    assert found == set() if ranks.size == 1 else "bytes" in found
    if text in ("bf16", "int8", "top_k"):
        assert ("bits" in found) == (ranks.size > 1), "what nobody has sent is decoded all the same"


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("text", KEEPING)
@pytest.mark.parametrize("broken", ["dropped on one rank", "one for two parameters"])
def test_the_contract_catches_a_residual_that_is_dropped_or_shared(ranks, text, broken):
    def dropped(step, states):
        if step == 2 and ranks.rank == ranks.size - 1:
            for state in states:
                state["residual"][...] = 0

    def shared(step, states):
        states[TWINS[1]] = states[TWINS[0]]

    assert breaches(ranks, text, np.float64, spoil=dropped if broken.startswith("dropped") else shared) == {"residual"}


PARAMS = FlatParams([("a", (40, 30)), ("bias", (7,)), ("odd", (3, 341)), ("twin", (40, 30))])


def values(rank, step):
    return np.random.default_rng([rank, step]).standard_normal(PARAMS.size)


def added_up(ranks, text, sender=None, steps=STEPS):
    """Let each rank encode a flat gradient and send it to all; return of each step the combined sum of what is decoded, and at the end this rank's coder."""
    coder = Compressor(make_codec(text), PARAMS, np.float64, BACKEND, seed=5, sender=ranks.rank if sender is None else sender)
    found = []
    for step in range(steps):
        code, total = np.zeros(coder.nbytes(0, PARAMS.size), np.uint8), np.zeros(PARAMS.size)
        coder.encode(values(ranks.rank, step), 0, PARAMS.size, code, step)
        for came in sent(ranks, code):
            coder.decode_add(came, 0, PARAMS.size, total)
        coder.combine(total, 0, PARAMS.size)
        found.append(total)
    return found, coder


def means_what_it_says(ranks, text):
    """Tell whether sums over ranks are what a codec promises: the majority's sign, or with what all ranks keep the sum of what they gave."""
    sums, coder = added_up(ranks, text)
    rows = [[values(rank, step) for rank in range(ranks.size)] for step in range(STEPS)]
    if coder.codec.votes:
        return all(np.array_equal(total, np.sign(np.sign(row).sum(axis=0))) for total, row in zip(sums, rows, strict=True))
    kept = np.zeros(PARAMS.size)
    for name, array in coder.state().items():
        if name.endswith(".residual"):
            PARAMS.view(kept, name.removesuffix(".residual")).reshape(-1)[:] = array
    return np.abs(sum(sums) + sum(ranks.allgather(kept)) - np.sum(rows, axis=(0, 1))).max() < 1e-9


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("text", [text for text in VARIANTS if text not in UNBIASED])
def test_a_sum_over_ranks_is_the_majoritys_sign_or_with_what_they_keep_the_sum_of_all(ranks, text):
    assert means_what_it_says(ranks, text)


@pytest.mark.mpi
@pytest.mark.parametrize("text", ["sign_majority", "two_bit"])
def test_the_meaning_of_a_sum_catches_a_rank_that_is_left_out(ranks, text, monkeypatch):
    everyone = sent
    monkeypatch.setattr(f"{__name__}.sent", lambda *arguments: everyone(*arguments)[:-1])
    assert not means_what_it_says(ranks, text)


def errors(ranks, text, sender, copies=1000, n_steps=5):
    """Let all ranks encode the same numbers many times over; return of each draw the error of the ranks' sum, and that of the first rank's code alone."""
    block = block_of(np.float64)
    x = np.tile(block, copies)
    coder = Compressor(make_codec(text), FlatParams([("x", x.shape)]), x.dtype, BACKEND, seed=5, sender=sender)
    of_all, of_one = [], []
    for step in range(n_steps):
        code, total, first = np.zeros(coder.nbytes(0, x.size), np.uint8), np.zeros(x.size), np.empty(x.size)
        coder.encode(x, 0, x.size, code, step)
        all_came = sent(ranks, code)
        for came in all_came:
            coder.decode_add(came, 0, x.size, total)
        coder.decode(all_came[0], 0, x.size, first)
        of_all.append(total - ranks.size * x)
        of_one.append(first - x)
    return [np.concatenate(found).reshape(-1, block.size) for found in (of_all, of_one)]


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("text", UNBIASED)
def test_the_mean_of_a_sum_over_ranks_is_the_sum_and_ranks_draw_for_themselves(ranks, text):
    of_all, of_one = errors(ranks, text, ranks.rank)
    z = of_all.mean(axis=0) / np.sqrt(np.maximum(of_all.var(axis=0), 1e-24) / len(of_all))
    assert np.abs(z).max() < 5.5 and abs(np.square(z).mean() - 1) < 0.35
    factor = ranks.size ** (2 if make_codec(text).same_noise else 1)
    assert of_all.var() == pytest.approx(factor * of_one.var(), rel=0.1)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("text", [text for text in UNBIASED if not make_codec(text).same_noise])
def test_the_variance_of_a_sum_catches_ranks_that_draw_the_same(ranks, text):
    of_all, of_one = errors(ranks, text, 0)
    assert of_all.var() > 1.5 * ranks.size * of_one.var()


@pytest.mark.mpi
@pytest.mark.openmpi
@each
def test_the_sum_that_training_makes_has_the_same_bits_on_all_ranks_in_two_codes_of_every_part(ranks, text):
    collective = Compressed(text, PARAMS, np.float64, BACKEND, seed=5)
    collective.open(ranks)
    gradient = collective.look_at(np.zeros(PARAMS.size))
    starts = [0, *(PARAMS.slices[name].stop for name in ("bias", "twin"))]
    sums = [collective.plan(gradient[lo:hi]) for lo, hi in itertools.pairwise(starts)]
    for step in range(STEPS):
        collective.step.number = step
        gradient[:] = values(ranks.rank, step)
        before = ranks.nbytes_sent
        for total in sums:
            total.start()
        for total in sums:
            total.wait(30)
        codes = sum(coder.nbytes(*part) for total in sums for part in total.parts for coder in (collective.up, total.down))
        assert sum(ranks.allgather(ranks.nbytes_sent - before)) == (ranks.size - 1) * codes
        assert len(set(ranks.allgather(gradient.tobytes()))) == 1
        if collective.up.codec.votes:
            votes = np.sign(sum(np.sign(values(rank, step)) for rank in range(ranks.size)))
            assert np.array_equal(gradient, votes), "an even vote gives 0"
    for total in sums:
        total.free()


def errors_of_training(ranks, text, copies=2000, n_steps=12):
    """Let the sum that training makes add up the same numbers many times over; return of each draw its error."""
    block = block_of(np.float64)
    x = np.tile(block, copies)
    collective = Compressed(text, FlatParams([("x", x.shape)]), x.dtype, BACKEND, seed=5)
    collective.open(ranks)
    gradient = collective.look_at(np.zeros(x.size))
    total, found = collective.plan(gradient), []
    for step in range(n_steps):
        collective.step.number = step
        gradient[:] = x * (1 + ranks.rank)
        total.start()
        total.wait(30)
        found.append(gradient - x * sum(range(1, ranks.size + 1)))
    total.free()
    return np.concatenate(found).reshape(-1, block.size)


def worst_mean(of_all):
    """Return the largest deviation of a mean, in standard errors."""
    return np.abs(of_all.mean(axis=0) / np.sqrt(np.maximum(of_all.var(axis=0), 1e-12) / len(of_all))).max()  # the largest of a block is always sent, but for rounding


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("text", UNBIASED)
def test_the_mean_of_the_sum_that_training_makes_is_the_sum(ranks, text):
    assert worst_mean(errors_of_training(ranks, text)) < 5.5


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("text", UNBIASED)
def test_the_mean_catches_an_owner_that_draws_again_what_it_drew_for_itself_or_takes_a_stretch_for_a_stretch_again(ranks, text, monkeypatch):
    monkeypatch.setattr(type(make_codec(text)), "of_results", lambda self: self)
    make = Compressed._coder
    monkeypatch.setattr(Compressed, "_coder", lambda self, codec, sender, held=None: make(self, codec, ranks.rank, held))
    assert worst_mean(errors_of_training(ranks, text)) > 8
