"""Parse many decimal numbers of a text at once, to the very bits of `float`.

    -12.50   ->   digits 1250, 2 of them behind the point   ->   -(1250 / 10**2)

Up to 15 digits are an exact float64, and so is 10**22: one division then rounds as the decimal number itself does (Clinger, PLDI 1990).
Other words (exponents, more digits) are parsed one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MOST_DIGITS = 15
_POWERS = 10.0 ** np.arange(MOST_DIGITS + 1)
_POINT, _MINUS, _PLUS, _ZERO, _BLANK = b".-+0 "


def parse(text: bytes, starts: Array, ends: Array) -> tuple[Array, Array]:
    """Return the numbers (n,) float64 of the words text[starts:ends], and which words are none (n,) bool; their number is NaN.

    Blanks around a word are not part of it, neither are underscores part of a number. "nan" and "inf" are numbers.
    """
    nbytes = np.frombuffer(text, np.uint8)
    first = nbytes[np.minimum(starts, max(len(text) - 1, 0))] if len(text) else np.zeros(len(starts), np.uint8)
    at = starts + ((first == _MINUS) | (first == _PLUS))
    digits, decimals, has_point = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int8), np.zeros(len(starts), bool)
    odd = (ends - at > MOST_DIGITS + 1) | (at >= ends)
    left = np.flatnonzero(~odd)  # words with bytes left to look at
    step = 0
    while left.size:
        here = nbytes[at[left] + step]
        digit = here - np.uint8(_ZERO)  # wraps around for all that is none
        is_digit, is_point = digit < 10, here == _POINT
        odd[left] |= ~is_digit & ~(is_point & ~has_point[left])
        of = left[is_digit]
        digits[of] = digits[of] * 10 + digit[is_digit]
        decimals[of] += has_point[of]
        has_point[left[is_point]] = True
        step += 1
        left = left[at[left] + step < ends[left]]
    odd |= has_point & (ends - at == 1)
    odd |= ~has_point & (ends - at > MOST_DIGITS)
    values = digits / _POWERS[decimals]
    np.negative(values, out=values, where=first == _MINUS)
    bad = np.zeros(len(starts), bool)
    rest = np.flatnonzero(odd)
    values[rest], bad[rest] = _one_by_one([text[lo:hi] for lo, hi in zip(starts[rest].tolist(), ends[rest].tolist(), strict=True)])
    return values, bad


def _one_by_one(words: list[bytes]) -> tuple[Array, Array]:
    """Parse words by Python; `float` itself allows blanks around and underscores within."""
    odd = [i for i, word in enumerate(words) if not word or word[0] <= _BLANK or word[-1] <= _BLANK or b"_" in word]
    try:
        if not odd:
            return np.fromiter(map(float, words), np.float64, len(words)), np.zeros(len(words), bool)
    except ValueError:
        pass
    values, bad = np.full(len(words), np.nan), np.ones(len(words), bool)
    for i in sorted(set(range(len(words))) - set(odd)):
        try:
            values[i], bad[i] = float(words[i]), False
        except ValueError:
            pass
    return values, bad
