"""Hold the cutting of CSV text to the csv module, whatever the size of a block, the line ends and the quotes."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.core.errors import UserError
from mpidml.data import csv_rows
from mpidml.data.csv_rows import Rows, Span, batches, head

cells = st.sampled_from(["1", "-2.5", "0.1", "word", "", " 3 ", "\u00e9t\u00e9", "?", "nan", "12345678901234567890"])
quoted = st.sampled_from(['"a, b"', '"two\nlines"', '"say ""so"""', '""', '"7"', '"cr\r\nlf"'])
rows = st.lists(st.tuples(cells | quoted, cells, cells, st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n"])), min_size=1, max_size=9)
Found = list[tuple[int, list[str]]]


def is_finite(cell: str, strictly: bool) -> bool:
    """Tell whether a cell is a finite number; strictly: without blanks, which are looked at one by one."""
    try:
        return math.isfinite(float(cell)) and not (strictly and cell != cell.strip())
    except ValueError:
        return False


def plain(text: str, skip: int) -> Found:
    reader = csv.reader(io.StringIO(text, newline=""))
    return [(reader.line_num, row) for row in reader if row][skip:]


def cut(text: str, skip: int) -> tuple[Found, bool]:
    """Return the rows below `skip` of them and their lines, and whether any block was cut at once."""
    two, n_lines, blocks = head(io.BytesIO(text.encode()))
    assert two == [row for _, row in plain(text, 0)][:2]
    found, at_once = [], False
    for batch in batches("t.csv", blocks, 3, n_lines if skip else 0):
        at_once |= isinstance(batch, Span)
        columns = [list(batch.cells(j)) for j in range(3)]
        found += list(zip(batch.lines, map(list, zip(*columns, strict=True)), strict=True))
        numbers = batch.numbers([0, 2])
        assert set(numbers) == {j for j in (0, 2) if all(is_finite(cell, isinstance(batch, Span)) for cell in columns[j])}
        for j, values in numbers.items():
            assert np.array([float(cell) for cell in columns[j]]).tobytes() == values.tobytes()
    return found, at_once


@settings(max_examples=300, deadline=None)
@given(rows=rows, size=st.integers(1, 60), last=st.booleans(), skip=st.integers(0, 1))
def test_any_text_is_cut_as_by_the_csv_module(rows: Any, size: int, last: bool, skip: int) -> None:
    text = "".join(",".join(row[:3]) + row[3] for row in rows)
    text = text if last else text.rstrip("\r\n")
    before, csv_rows.BLOCK_NBYTES = csv_rows.BLOCK_NBYTES, size
    try:
        assert cut(text, skip)[0] == plain(text, skip)
    finally:
        csv_rows.BLOCK_NBYTES = before


def test_even_rows_without_quotes_are_cut_at_once_and_old_line_ends_are_understood() -> None:
    for end in ("\n", "\r\n"):
        assert cut(end.join(["1,2,3", "4,5,6"]), 0) == ([(1, ["1", "2", "3"]), (2, ["4", "5", "6"])], True)
    assert cut("a,b,c\r1,2,3\r4,5,6", 1) == ([(2, ["1", "2", "3"]), (3, ["4", "5", "6"])], False)


def test_a_quote_taken_for_a_letter_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '1,"2",3\n'
    assert cut(text, 0)[0] == plain(text, 0)
    span = csv_rows._span(text.encode(), 1, 3)
    assert span is not None and list(span.cells(1)) != plain(text, 0)[0][1][1:2]  # the broken variant


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("quote", ["", '"x",1,1\n'])
def test_an_uneven_row_is_named_by_row_and_line_wherever_blocks_end(size: int, quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_NBYTES", size)
    monkeypatch.setattr(csv_rows, "ROWS_AT_ONCE", 8)
    text = "a,b,c\n" + quote + "1,2,3\n" * 20 + "\n1,2\n"
    row = 20 + bool(quote)
    with pytest.raises(UserError, match=rf"t.csv: row {row} \(line {row + 3}\) has 2 cells, the first line has 3; give all rows"):
        cut(text, 1)


def test_a_batch_of_rows_that_were_cut_one_by_one_knows_its_numbers() -> None:
    batch = Rows([1, 2], [["1", "x"], ["2.5", "3"]])
    assert batch.numbers([0])[0].tolist() == [1, 2.5] and not batch.numbers([1])
