"""What a codec does to training: logistic regression of 200 weights on four workers, 300 steps, gradients and changes of the weights both compressed."""

import mpidml_kernels
import numpy as np
import pytest

from mpidml.compression.base import make_codec

BACKEND = mpidml_kernels.backend("numba")
WORKERS, SAMPLES, WEIGHTS, STEPS, RATE = 4, 400, 200, 300, 80.0


def problem(seed):
    """Give each worker samples that a plane parts: the loss can be brought down as far as steps are right, and no further."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((WORKERS, SAMPLES, WEIGHTS))
    return x, np.sign(x @ random.standard_normal(WEIGHTS))


class Link:
    """One way of sending from one side: a codec, its state, and whether it keeps what was not sent."""

    def __init__(self, text, keeps=True):
        self.codec, self.keeps, self.step = make_codec(text), keeps, 0
        self.state = self.codec.init((WEIGHTS,), np.float64)
        self.code, self.out = np.zeros(self.codec.nbytes((WEIGHTS,), 8), np.uint8), np.zeros(WEIGHTS)

    def __call__(self, v):
        if not self.keeps:
            self.state["residual"][...] = 0
        self.step += 1
        self.codec.encode(BACKEND, v, self.state, self.code, self.step)
        self.codec.decode(BACKEND, self.code, self.out)
        return self.out


def final_loss(seed, up=None, down=None, keeps=True):
    """Return the loss after training; `up`: how workers send gradients, `down`: how the server sends changes of the weights."""
    x, y = problem(seed)
    to_server = [Link(up, keeps) if up else lambda v: v for _ in range(WORKERS)]
    to_workers = Link(down, keeps) if down else lambda v: v
    w = np.zeros(WEIGHTS)
    for _ in range(STEPS):
        total = np.zeros(WEIGHTS)
        for k in range(WORKERS):
            slope = -y[k] / (1 + np.exp(np.minimum(y[k] * (x[k] @ w), 700)))
            total += to_server[k](slope @ x[k] / (SAMPLES * WORKERS))
        w = w + to_workers(-RATE * total)
    return float(np.log1p(np.exp(-y * (x @ w))).mean())


@pytest.fixture(scope="module")
def plain():
    return {seed: final_loss(seed) for seed in (0, 1)}


@pytest.mark.parametrize("seed", [0, 1])
def test_two_bits_with_the_adaptive_threshold_lose_at_most_two_percent_both_ways(seed, plain):
    up, both = final_loss(seed, "two_bit"), final_loss(seed, "two_bit", "two_bit")
    assert up <= 1.02 * plain[seed] and both <= 1.02 * plain[seed], (up, both, plain[seed])


@pytest.mark.parametrize("seed", [0, 1])
def test_without_the_residual_two_bits_fail(seed, plain):
    up, both = final_loss(seed, "two_bit", keeps=False), final_loss(seed, "two_bit", "two_bit", keeps=False)
    assert up >= 2 * plain[seed] and both >= 2 * plain[seed], (up, both, plain[seed])


def test_sixteen_times_fewer_bits_move_in_each_direction():
    n = 1 << 20
    assert make_codec("two_bit").nbytes((n,), 4) * 16 == 4 * n + 16 * 4 * 32  # and a unit for each 32768 values


@pytest.mark.parametrize("text", ["fp16", "bf16", "int8", "one_bit", "top_k:0.1", "top_k:0.1:sampled=true"])
def test_other_codecs_with_a_residual_lose_little(text, plain):
    assert final_loss(0, text, text) <= 1.05 * plain[0]


def test_a_threshold_that_is_far_too_large_is_worse_than_the_adaptive_one(plain):
    assert final_loss(0, "two_bit:0.5") > 1.2 * plain[0]
