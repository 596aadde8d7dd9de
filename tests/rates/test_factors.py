"""Hold each factor to its formula, their product to a product, and what cannot be to one line."""

import math

import pytest

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.rates.base import make_rates

MAX = 300
FORMULAS = {
    "step": lambda it: 0.1 ** (it // 1000),
    "step:7:0.5": lambda it: 0.5 ** (it // 7),
    "inv": lambda it: (1 + 1e-4 * it) ** -0.75,
    "inv:0.01:2": lambda it: (1 + 0.01 * it) ** -2,
    "exponential": lambda it: 0.999**it,
    "exponential:0.5": lambda it: 0.5**it,
    "poly": lambda it: 1 - it / MAX,
    "poly:2": lambda it: (1 - it / MAX) ** 2,
    "poly:2:50": lambda it: max(1 - it / 50, 0) ** 2,
    "cosine": lambda it: (1 + math.cos(math.pi * it / MAX)) / 2,
    "cosine:0.1": lambda it: 0.1 + 0.9 * (1 + math.cos(math.pi * it / MAX)) / 2,
    "cosine:0:100": lambda it: (1 + math.cos(math.pi * min(it / 100, 1))) / 2,
    "warmup": lambda it: min((it + 1) / 100, 1),
    "warmup:5:0.2": lambda it: min(0.2 + 0.8 * (it + 1) / 5, 1),
    "warmup:10+step:50": lambda it: min((it + 1) / 10, 1) * 0.1 ** (it // 50),
    "warmup:100 + cosine": lambda it: min((it + 1) / 100, 1) * (1 + math.cos(math.pi * it / MAX)) / 2,
    "inv:1e+1:1+poly": lambda it: (1 - it / MAX) / (1 + 10 * it),
}


def made(text):
    rates = make_rates(text)
    rates.span(MAX)
    return rates


def follows(rates, formula):
    return all(rates(it) == pytest.approx(formula(it), rel=1e-12, abs=1e-15) for it in range(MAX))


@pytest.mark.parametrize("text", FORMULAS)
def test_each_follows_its_formula(text):
    assert follows(made(text), FORMULAS[text])


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("step:7:0.5", lambda it: 0.5 ** (it / 7)),
        ("inv:0.01:2", lambda it: (1 + 0.01 * it) ** 2),
        ("poly:2", lambda it: 1 - (it / MAX) ** 2),
        ("cosine", lambda it: math.cos(math.pi / 2 * it / MAX)),
        ("cosine:0.1", lambda it: max(0.1, (1 + math.cos(math.pi * it / MAX)) / 2)),
        ("warmup", lambda it: min(it / 100, 1)),
        ("warmup:100+cosine", lambda it: min((it + 1) / 100, (1 + math.cos(math.pi * it / MAX)) / 2)),
    ],
)
def test_the_formulas_catch_another_one(text, broken):
    assert not follows(made(text), broken)


def test_the_constant_is_no_schedule_at_all():
    assert make_rates("constant") is None
    assert plugins.make("mpidml.rates", "constant").at(10**9) == 1.0


def test_only_what_spans_the_run_needs_its_end_and_only_where_it_does_not_say_it():
    assert [text for text in FORMULAS if make_rates(text).needs_end] == [
        "poly", "poly:2", "cosine", "cosine:0.1", "warmup:100 + cosine", "inv:1e+1:1+poly",
    ]  # fmt: skip


def test_the_words_say_what_becomes_of_the_rate():
    assert made("warmup:100+cosine").words(0.1, MAX) == (
        "rising over the first 100 clocks, falling to 0 over 300 clocks as a cosine (0.001 at first, 0.05 half way, 2.74e-06 at last)"
    )
    assert made("step:7:0.5").words(0.1, 0) == "times 0.5 every 7 clocks (0.1 at first)"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cosin", "did you mean 'cosine'?"),
        ("", "a factor is missing; give names"),
        ("cosine+", "a factor is missing beside a +"),
        ("constant+cosine", "constant does nothing beside others; leave it out"),
        ("step:0", "size = 0 is not a whole number from 1 up"),
        ("step:2.5", "size = 2.5 is not a whole number from 1 up"),
        ("step:10:1.5", "gamma = 1.5 is not a number from 0 to 1"),
        ("exponential:-1", "gamma = -1 is not a number from 0 to 1"),
        ("inv:-1", "gamma = -1 is not a number from 0 to inf"),
        ("inv:inf", "gamma = inf is not a number"),
        ("poly:nan", "power = nan is not a number"),
        ("poly:1:-5", "clocks = -5 is not a whole number from 0 up"),
        ("cosine:2", "end = 2 is not a number from 0 to 1"),
        ("warmup:0", "clocks = 0 is not a whole number from 1 up"),
        ("warmup:10:2", "start = 2 is not a number from 0 to 1"),
    ],
)
def test_what_cannot_be_is_one_line(text, says):
    with pytest.raises(UserError) as error:
        make_rates(text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_holds_no_factor_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    with pytest.raises(UserError, match="Mine is not a factor; derive it from"):
        make_rates(str(tmp_path / "mine.py"))
