"""What a target is, and which rows show it."""

from __future__ import annotations

import math

import pytest

from mpidml.core.errors import UserError
from mpidml.core.target import Target, parse_target


def test_a_number_is_a_test_accuracy():
    assert parse_target("0.97") == parse_target("accuracy:0.97") == Target("accuracy", 0.97)
    assert parse_target("loss:0.1") == Target("loss", 0.1) and parse_target("") is None


@pytest.mark.parametrize("text", ["97", "0", "-0.1", "loss:0", "loss:-1", "error:0.1", "accuracy", "accuracy:", ":0.9", "nan", "loss:inf", "0.9:0.8"])
def test_what_is_no_target_is_one_line(text):
    with pytest.raises(UserError) as error:
        parse_target(text)
    assert str(error.value).startswith(f"--target {text}: ") and "\n" not in str(error.value)


def test_a_row_without_a_measurement_shows_nothing():
    accuracy, loss = Target("accuracy", 0.9), Target("loss", 0.5)
    for row in ({}, {"test_accuracy": None, "test_loss": None}, {"test_accuracy": math.nan, "test_loss": math.nan}):
        assert not accuracy.reached(row) and not loss.reached(row)
    assert accuracy.reached({"test_accuracy": 0.9}) and not accuracy.reached({"test_accuracy": 0.899})
    assert loss.reached({"test_loss": 0.5}) and not loss.reached({"test_loss": 0.51})
    assert accuracy.reached({"test_accuracy": 0.1, "final_test_accuracy": 0.95})
