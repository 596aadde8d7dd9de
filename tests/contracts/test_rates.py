"""Hold every file of mpidml/rates to the contract of a factor, found by the folder alone."""

import copy
import math
from itertools import pairwise

import pytest

from mpidml.core import plugins
from mpidml.rates.base import Factor, make_rates

NAMES = plugins.names("mpidml.rates")
each = pytest.mark.parametrize("name", NAMES)
RUN = 240


def made(name, clocks=RUN):
    """Make a factor without arguments, over a run of so many clocks."""
    factor = plugins.make("mpidml.rates", name)
    if factor.spans:
        assert not factor.clocks, "what spans the run takes its length unless it is told one"
        factor.clocks = clocks
    return factor


def check(factor):
    """Hold a factor to its laws over a run and long after it."""
    course = [factor.at(it) for it in [*range(RUN), RUN, 10 * RUN, 10**6]]
    assert all(type(f) is float and math.isfinite(f) and 0 <= f <= 1 for f in course), "a share of the learning rate"
    assert course[0] > 0, "the first step moves"
    rises, falls = (any(a < b for a, b in pairwise(course)) for course in (course, course[::-1]))
    assert not (rises and falls), "goes one way"
    before = copy.copy(vars(factor))
    assert [factor.at(it) for it in (7, 3, 7, 0)] == [course[7], course[3], course[7], course[0]], "asked twice it answers the same"
    assert vars(factor) == before, "remembers nothing"
    if factor.spans:
        assert course[0] == 1 and course[RUN - 1] < 0.02 and course[RUN] == course[-1] <= course[RUN - 1], "takes the run, and stays at its end"


def test_the_folder_holds_the_promised_policies():
    assert {"constant", "step", "inv", "poly", "cosine", "exponential", "warmup"} <= set(NAMES)


@each
def test_a_factor_works_without_arguments_and_keeps_its_laws(name):
    factor = made(name)
    assert isinstance(factor, Factor) and factor.__doc__ and isinstance(factor.spans, bool)
    check(factor)


@each
def test_what_spans_a_run_depends_on_the_share_of_it_that_is_over(name):
    short, long = made(name), made(name, 3 * RUN)
    if short.spans:
        assert [short.at(it) for it in range(RUN)] == pytest.approx([long.at(3 * it) for it in range(RUN)])


@each
def test_it_can_be_told_in_words(name):
    words = made(name).words()
    assert words and "\n" not in words
    if name != "constant":
        rates = make_rates(name)
        rates.span(RUN)
        assert words in rates.words(0.1, RUN)


class Broken(Factor):
    spans = True
    clocks = RUN

    def __init__(self, at):
        self.rule = at

    def at(self, it):
        return self.rule(it)


@pytest.mark.parametrize(
    "rule",
    [
        lambda it: 1.0 - it / RUN,
        lambda it: max(1.0 - it / (2 * RUN), 0.0),
        lambda it: (1.0 + it) / RUN if it < RUN else 1.0,
        lambda it: 1.0 if it == 0 else abs(math.cos(it)),
        lambda it: 2.0 * max(1.0 - it / RUN, 0.0),
    ],
    ids=["falls below 0", "is not done at the end", "begins low", "swings", "raises the rate"],
)
def test_the_contract_catches_a_factor_that(rule):
    with pytest.raises(AssertionError):
        check(Broken(rule))


MINE = """
from mpidml.rates.base import Factor

class Mine(Factor):
    def __init__(self, half=10):
        self.half = half

    def at(self, it):
        return 0.5 ** (it / self.half)

    def words(self):
        return f"halved every {self.half} clocks"
"""


def test_a_factor_given_by_path_works_like_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    check(plugins.make("mpidml.rates", "./mine.py"))
    rates = make_rates("warmup:4+./mine.py:5")
    assert rates(0) == 0.25 and rates(10) == 0.25
