"""Hold the parser of many numbers to Python's own, bit for bit."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpidml.data import decimals
from mpidml.data.decimals import parse

written = (
    st.floats().map(repr)
    | st.integers(-(10**18), 10**18).map(str)
    | st.from_regex(r"\A[+-]?[0-9]{0,17}\.?[0-9]{0,17}\Z")
    | st.from_regex(r"\A[+-]?[0-9]{1,5}\.[0-9]{1,9}([eE][+-]?[0-9]{1,3})?\Z")
    | st.text("0123456789.+-eE_naif x", max_size=8)
)


def python(word: str) -> float | None:
    try:
        return None if "_" in word or word != word.strip() else float(word)
    except ValueError:
        return None


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("d", value)


def differing(words: list[str]) -> list[str]:
    text = ",".join(words).encode()
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    values, bad = parse(text, ends - lengths, ends)
    pairs = zip(words, values.tolist(), bad.tolist(), strict=True)
    return [word for word, value, is_bad in pairs if is_bad != (python(word) is None) or not (is_bad or bits(float(word)) == bits(value))]


@settings(max_examples=500, deadline=None)
@given(words=st.lists(written, min_size=1, max_size=20))
@example(
    words=[
        "",
        ".",
        "-",
        "+",
        "-.",
        "-0",
        "0.",
        ".5",
        "-.5",
        "1..2",
        "1.2.3",
        "--1",
        "+-1",
        "1-",
        "00012",
        "9" * 15,
        "9" * 16,
        "." + "1" * 15,
        "1e5",
        "nan",
        "-inf",
        " 1",
        "1_0",
        "0_",
        "1:2",
        "12:",
        "/7",
        "1;5",
    ]
)
def test_every_word_is_the_number_that_python_reads_or_none(words: list[str]) -> None:
    assert not differing(words)


def test_a_longer_mantissa_would_be_rounded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"{10**16 + 1 + 2 * i}.{i % 9}" for i in range(2000)] + [f"0.{9007199254740993 + 2 * i}" for i in range(2000)]
    assert not differing(words)
    monkeypatch.setattr(decimals, "MOST_DIGITS", 18)
    monkeypatch.setattr(decimals, "_POWERS", 10.0 ** np.arange(19))
    assert differing(words), "the broken variant: digits that no float64 holds"
