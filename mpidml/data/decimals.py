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
_POINT, _MINUS, _PLUS, _BLANK = b".-+ "
_ZERO = np.uint8(ord("0"))


def parse(text: bytes, starts: Array, ends: Array) -> tuple[Array, Array]:
    """Return the numbers (n,) float64 of the words text[starts:ends], and which words are none (n,) bool; their number is NaN.

    `starts` ascend; a word that ends before it starts is no number, and neither is one with a blank or an underscore. "nan" and "inf" are numbers.
    """
    nbytes = np.frombuffer(text, np.uint8)
    if not len(text) or not len(starts):
        return np.full(len(starts), np.nan), np.ones(len(starts), bool)
    first = nbytes[np.minimum(starts, len(text) - 1)]
    at = starts + ((first == _MINUS) | (first == _PLUS))
    length, point = ends - at, np.full(len(starts), -1)
    points = np.flatnonzero(nbytes == _POINT)
    of = np.searchsorted(starts, points, "right") - 1
    inside = (of >= 0) & (points < ends[of]) & (points >= at[of])
    point[of[inside]] = (points - at[of])[inside]  # of two points in a word one stays, and the other is no digit
    values = np.empty(len(starts))
    # Words of one length with the point at one place have their digits at the same places.
    kind = np.where((length > MOST_DIGITS + (point >= 0)) | (length <= (point >= 0)), 0, length * 32 + point + 1).astype(np.uint16)
    odd = kind == 0
    for each in np.flatnonzero(np.bincount(kind, minlength=1)).tolist():
        n, place = each // 32, each % 32 - 1
        if not each:
            continue
        words = np.flatnonzero(kind == each)
        begin, digits, is_odd = at[words], np.zeros(len(words), np.int64), np.zeros(len(words), bool)
        for column in range(n):
            if column != place:
                digit = nbytes[begin + column] - _ZERO  # wraps around for all that is none
                is_odd |= digit > 9
                digits *= 10
                digits += digit
        values[words] = digits / _POWERS[n - 1 - place if place >= 0 else 0]
        odd[words] = is_odd
    np.negative(values, out=values, where=first == _MINUS)
    rest = np.flatnonzero(odd)
    lo, hi = starts[rest], ends[rest]
    blank = (hi <= lo) | (nbytes[np.minimum(lo, len(text) - 1)] <= _BLANK) | (nbytes[hi - 1] <= _BLANK)
    bad = np.zeros(len(starts), bool)
    values[rest], bad[rest] = _one_by_one([text[a:b] for a, b in zip(lo.tolist(), hi.tolist(), strict=True)], blank, b"_" in text)
    return values, bad


def _one_by_one(words: list[bytes], blank: Array, has_underscores: bool) -> tuple[Array, Array]:
    """Parse words by Python's `float`, which itself allows blanks around and underscores within."""
    try:
        if not has_underscores and not blank.any():
            return np.fromiter(map(float, words), np.float64, len(words)), blank
    except ValueError:
        pass
    values, bad = np.full(len(words), np.nan), blank.copy()
    for i in np.flatnonzero(~blank).tolist():
        try:
            values[i] = float(words[i].replace(b"_", b"?"))
        except ValueError:
            bad[i] = True
    return values, bad
