"""Workers with a part of the gradient each go as far as one that has all of it, wherever a chain is run, and wherever it is cut."""

from __future__ import annotations

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core.flat import FlatParams
from mpidml.optim.base import make_chain
from mpidml.optim.lars import Lars

BACKEND = mpidml_kernels.backend("numpy")
SHARED = [
    "sgd", "momentum", "adam", "adamw", "adagrad", "rmsprop", "adadelta", "lion", "lars:0.1:0.5", "lamb:0.1",
    "ftrl:0.5:0.1", "decay:0.1+sgd", "l1:0.1+sgd", "clamp:0.5+sgd",
]  # fmt: skip


PARTS = FlatParams([("weight", (1, 2)), ("bias", (1,))])


def shared(text, way, n_workers=4, share=None):
    """Return the way gone where each of n workers gives its part of the one gradient, all to one state or each to its own, after 200 clocks of warm-up.

    `way`: servers or workers run the chain; "cut": workers what needs the whole gradient, a server the rest, on their sum.
    """
    w, g = np.full(3, 2.0), np.array([0.3, 0.5, -2.0])
    chains = [make_chain(text, 1e-3) for _ in range(1 if way == "servers" else n_workers)]
    for chain in chains:
        chain.see(PARTS)
        chain.each_sees(1 / n_workers if share is None else share)
    cut = [chain.split() for chain in chains]
    states = [(cut[k][0] if way == "cut" else chain).init(3, float) for k, chain in enumerate(chains)]
    if way == "cut":
        cut[0][1].each_sees(1.0)
        state = cut[0][1].init(3, float)
    for clock in range(600):
        if clock == 200:
            before = w.copy()
        parts = [g / n_workers for _ in range(n_workers)]
        for k, part in enumerate(parts):
            if way == "workers":
                chains[k].delta(BACKEND, part, states[k], w, clock + 1)
            elif way == "cut":
                cut[k][0].transform(BACKEND, part, states[k], w, clock + 1)
            else:
                chains[0].apply(BACKEND, w, w, part, states[0], clock * n_workers + k + 1)
        if way == "workers":  # all of them have read the same weights
            w = w + sum(parts)
        elif way == "cut":
            cut[0][1].apply(BACKEND, w, w, sum(parts), state, clock + 1)
    return w - before


def near(text, several, one):
    """Adadelta's steps grow with the number of updates, whatever their size; its share keeps them within a factor of 2."""
    return np.allclose(several / one, 1, atol=0.08) or (text == "adadelta" and (several / one > 1).all() and (several / one < 2).all())


@pytest.mark.parametrize("way", ["servers", "workers"])
@pytest.mark.parametrize("text", SHARED)
def test_n_workers_with_a_part_of_the_gradient_each_go_as_far_as_one_with_all_of_it(text, way):
    one, several = shared(text, way, 1), shared(text, way, 4)
    assert near(text, several, one), several / one


@pytest.mark.parametrize("way", ["servers", "workers"])
@pytest.mark.parametrize("text", [text for text in SHARED if text not in ("sgd", "momentum")])
def test_a_link_that_is_not_told_its_share_goes_too_far_or_not_far_enough(text, way):
    assert not near(text, shared(text, way, 4, share=1.0), shared(text, way, 1))


CUT = ["lars:0.1:0.5", "lamb:0.1", "decay:0.1+clip:0.5+momentum"]


@pytest.mark.parametrize("text", CUT)
def test_what_workers_do_before_the_cut_takes_n_of_them_as_far_as_one(text):
    one, several = shared(text, "cut", 1), shared(text, "cut", 4)
    assert near(text, several, one), several / one
    assert not near(text, shared(text, "cut", 4, share=1.0), one)


@pytest.mark.parametrize("way", ["servers", "workers", "cut"])
def test_a_vector_of_which_the_share_is_taken_twice_does_not_go_far_enough(monkeypatch, way):
    transform = Lars.transform

    def twice(self, backend, g, *arguments):
        for where, measured in self.tensors:
            if not measured:
                backend.scale(g[where], self.share)
        transform(self, backend, g, *arguments)

    one = shared("lars:0.1:0.5", way, 1)
    monkeypatch.setattr(Lars, "transform", twice)
    several = shared("lars:0.1:0.5", way, 4)
    assert near("lars", several[:2], one[:2]) and several[2] / one[2] == pytest.approx(1 / 4, rel=0.05)
