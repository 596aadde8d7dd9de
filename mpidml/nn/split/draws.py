"""Draw a part of a weight: walk through the stream of the whole in blocks and keep what is ours, so that no rank ever holds the whole."""

from __future__ import annotations

from collections.abc import Callable

from mpidml.core.flat import Array
from mpidml.nn.split.part import Index

AT_ONCE = 1 << 16
"""So many values are drawn at a time: 0.5 MB."""


def draw_part(draw: Callable[[tuple[int, int]], Array], shape: tuple[int, int], index: Index, out: Array) -> None:
    """Fill `out` with the rows and columns `index` of a weight of `shape`, the bits of `draw(shape)[index]`.

    `draw(shape)`: the next values of a stream, row by row, which NumPy's generators give in blocks as at once. It takes the time of drawing the whole
    weight up to the last row of ours, and the memory of one block.
    """
    (rows, columns), (n, width) = index, shape
    if not out.size:
        return
    at_once = max(1, AT_ONCE // width)
    for top in range(0, rows.stop, at_once):
        bottom = min(top + at_once, n)
        for left in range(0, width, AT_ONCE):  # more than once only where a row is longer
            right = min(left + AT_ONCE, width)
            values = draw((bottom - top, right - left))
            (lo, hi), (first, last) = (max(top, rows.start), min(bottom, rows.stop)), (max(left, columns.start), min(right, columns.stop))
            if lo < hi and first < last:
                target = out[lo - rows.start : hi - rows.start, first - columns.start : last - columns.start]
                target[...] = values[lo - top : hi - top, first - left : last - left]
