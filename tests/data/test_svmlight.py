"""Hold the parser of svmlight text to a plain one, its choice of the first index to what the files say, and its refusals to the line."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.core.errors import UserError
from mpidml.data.formats import svmlight
from mpidml.data.formats.svmlight import Svmlight
from mpidml.data.readers import read, read_pair
from tests.data.written import text

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-99, 99)
features = st.dictionaries(st.integers(0, 40), numbers, max_size=6)
gaps = st.sampled_from([" ", "  ", "\t", " \t "])
ends = st.sampled_from(["\n", "\r\n", " \n", " # a: note 1:2\n", "\n\n", "\n# qid:3 in a comment\n"])


def plain(content: str) -> list[tuple[float, dict[int, float]]]:
    """Read svmlight text word by word."""
    rows = []
    for line in content.split("\n"):
        words = line.partition("#")[0].split()
        if words:
            rows.append((float(words[0]), {int(w.split(":")[0]): float(w.split(":")[1]) for w in words[1:]}))
    return rows


def parsed(path: Path) -> list[tuple[float, dict[int, float]]]:
    found: Any = Svmlight().read(path)
    spans = pairwise(found.indptr)
    return [
        (label, dict(zip(found.indices[lo:hi].tolist(), found.values[lo:hi].tolist(), strict=True)))
        for label, (lo, hi) in zip(found.labels.tolist(), spans, strict=True)
    ]


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(numbers, features, gaps, ends), min_size=1, max_size=8), size=st.integers(1, 200), last=st.booleans())
def test_any_text_reads_as_word_by_word_whatever_the_size_of_a_block(tmp_path_factory: Any, rows: Any, size: int, last: bool) -> None:
    lines = [gap.join([repr(label), *(f"{i}:{v!r}" for i, v in sorted(pairs.items()))]) + end for label, pairs, gap, end in rows]
    content = "".join(lines) if last else "".join(lines).rstrip("\r\n")
    path = tmp_path_factory.mktemp("svm") / "t.svm.gz"
    path.write_bytes(gzip.compress(content.encode()))
    before, svmlight.BLOCK_NBYTES = svmlight.BLOCK_NBYTES, size
    try:
        if not any(pairs for _, pairs, _, _ in rows):
            with pytest.raises(UserError, match="no row holds an index:value pair"):
                parsed(path)
        else:
            assert parsed(path) == plain(content)
    finally:
        svmlight.BLOCK_NBYTES = before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 3:1 2:5", "has index 2 after 3; sort each line by index"),
        ("1 2:1 2:5", "has index 2 after 2"),
        ("1 2:one", "holds '2:one', whose value is not a finite number"),
        ("1 2:nan", "holds '2:nan', whose value is not a finite number"),
        ("1 2:1e999", "holds '2:1e999', whose value is not a finite number"),
        ("1 two:1", "holds 'two:1', whose index is not a whole number"),
        ("1 -2:1", "holds '-2:1', whose index is not a whole number"),
        ("1 1.5:1", "holds '1.5:1', whose index is not a whole number"),
        ("1 99999999999:1", "holds '99999999999:1', whose index is not a whole number up to"),
        ("1 2:", "holds '2:', whose value"),
        ("1 :2", "holds ':2', whose index"),
        ("1 2:3:4 5", "holds '2:3:4', whose value"),
        ("1 2 3:4:5", "holds '2', which is no index:value"),
        ("1 2", "holds '2', which is no index:value"),
        ("1 2:5-3", "holds '2:5-3', whose value"),
        ("1 2: 3", "holds '2:', whose value"),
        ("1 qid:3 2:1", "holds 'qid:3', a query of a ranking"),
        ("spam 2:1", "has the label 'spam', not a finite number"),
        ("1,2 2:1", "has the label '1,2', not a finite number"),
        ("2:1 3:1", "has the label '2:1', not a finite number"),
        ("inf 2:1", "has the label 'inf', not a finite number"),
        ("1 2:3\u00e9", "holds '2:3"),
        ("1 2:3 x\u00e9", "holds 'x"),
    ],
)
def test_what_is_no_svmlight_is_refused_by_its_line(tmp_path: Path, line: str, expected: str) -> None:
    path = text(tmp_path / "t.svm", "1 1:1\n# note\n0 1:2\n" * 30 + line + "\n0 1:3\n")
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert f"{path}: line 91 {expected.split(' ')[0]}" in message and expected in message and ";" in message


def test_lines_are_counted_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svmlight, "BLOCK_NBYTES", 16)
    path = text(tmp_path / "t.svm", "1 1:1\n\n" * 20 + "1 4:1 3:1\n")
    with pytest.raises(UserError, match=r"line 41 has index 3 after 4"):
        read(path)
    test = text(tmp_path / "u.svm", "1 1:1\n\n" * 20 + "1 0:1\n")
    with pytest.raises(UserError, match=r"u.svm: line 41 has index 0, those of .* begin at 1"):
        read_pair(text(tmp_path / "v.svm", "1 1:1\n0 2:1\n"), test)


def test_the_training_data_decide_whether_indices_begin_at_0_or_1(tmp_path: Path) -> None:
    one, zero = text(tmp_path / "one.svm", "1 1:5 3:7\n0 2:1\n"), text(tmp_path / "zero.svm", "1 0:5 2:7\n0 1:1\n")
    assert read(one).x.toarray().tolist() == read(zero).x.toarray().tolist() == [[5, 0, 7], [0, 1, 0]]
    assert read(one).notes == ("indices begin at 1",) and read(zero).notes == ("indices begin at 0",)
    assert read_pair(zero, one[:-7] + "zero.svm").test_x.shape == (2, 3)
    with pytest.raises(UserError, match=r"line 1 has index 0, those of .*one.svm begin at 1; count from 1 in both"):
        read_pair(one, zero)
    with pytest.raises(UserError, match=r"one.svm: line 1 has index 3, the largest in .*zero.svm is 2; leave such features out, or name 3:0"):
        read_pair(zero, one)
    narrow = read_pair(one, text(tmp_path / "narrow.svm", "1 1:2\n"))
    assert narrow.test_x.toarray().tolist() == [[2, 0, 0]], "features that the test rows never have are zero there"
    (tmp_path / "parts").mkdir()
    text(tmp_path / "parts/a.svm", "1 1:5\n")
    text(tmp_path / "parts/b.svm", "0 0:5\n")
    assert read(str(tmp_path / "parts")).x.toarray().tolist() == [[0, 5], [5, 0]], "a 0 in any file decides for all"


def test_labels_of_minus_and_plus_one_are_two_classes(tmp_path: Path) -> None:
    train, test = text(tmp_path / "t.svm", "-1 1:1\n+1 1:2\n-1 1:3\n"), text(tmp_path / "u.svm", "+1 1:1\n1 1:2\n")
    raw = read_pair(train, test)
    assert raw.test_y is not None and raw.y.tolist() == [0, 1, 0] and raw.test_y.tolist() == [1, 1]
    assert "labels -1 and +1 are classes 0 and 1" in raw.notes[0]
    assert read(train, task="regress").y.tolist() == [[-1], [1], [-1]]
    with pytest.raises(UserError, match=r"label -1.0 in row 0 is negative"):
        read(text(tmp_path / "v.svm", "-1 1:1\n2 1:2\n"))
