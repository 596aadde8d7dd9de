"""Hold mixed tables to what they say: words are categories in sorted order, missing cells are refused or filled from the training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.data.readers import read, read_pair
from tests.data.written import text

HEAD = "age,work,size,pay\n"
ROWS = ("25,clerk,1.5,low", "30,farmer,2.5,high", "35,clerk,3.5,low", "40,actor,4.5,high")
ONE_HOT = [[25, 0, 1, 0, 1.5], [30, 0, 0, 1, 2.5], [35, 0, 1, 0, 3.5], [40, 1, 0, 0, 4.5]]


def table(path: Path, *rows: str, head: str = HEAD) -> str:
    return text(path, head + "".join(row + "\n" for row in rows))


def as_parquet(source: str) -> str:
    """Write a CSV of mixed columns as Parquet: text as text or as a dictionary, empty cells and ? as null."""
    import pyarrow
    import pyarrow.parquet

    head, *rows = [line.split(",") for line in Path(source).read_text().split()]
    columns: dict[str, Any] = {}
    for name, cells in zip(head, zip(*rows, strict=True), strict=True):
        known = [None if cell in ("", "?", "NA") else cell for cell in cells]
        try:
            columns[name] = pyarrow.array([None if cell is None else float(cell) for cell in known])
        except ValueError:
            columns[name] = pyarrow.array(known)
            if name == "work":
                columns[name] = columns[name].dictionary_encode()
    path = source.replace(".csv", ".parquet")
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def refusal(source: str, *test: str, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_pair(source, *test, **how) if test else read(source, **how)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    return str(caught.value)


def test_a_column_of_words_becomes_one_feature_for_each_in_sorted_order(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", *ROWS)
    for each in (source, as_parquet(source)):
        raw = read(each)
        assert raw.x.tolist() == ONE_HOT and raw.y.tolist() == [1, 0, 1, 0]
        assert raw.notes == ("1 column(s) of words became 3 features",)
        codes = read(each, categories="codes")
        assert codes.x.tolist() == [[25, 1, 1.5], [30, 2, 2.5], [35, 1, 3.5], [40, 0, 4.5]]


def test_categories_do_not_depend_on_the_order_of_rows_or_files(tmp_path: Path) -> None:
    table(tmp_path / "part-1.csv", *ROWS[:1])
    table(tmp_path / "part-2.csv", *ROWS[1:3])
    table(tmp_path / "part-3.csv", *ROWS[3:])
    raw = read(str(tmp_path / "part-*.csv"))
    assert raw.x.tolist() == ONE_HOT and raw.y.tolist() == [1, 0, 1, 0]
    backwards = read(table(tmp_path / "t.csv", *reversed(ROWS)))
    assert backwards.x[::-1].tolist() == ONE_HOT


def test_test_rows_are_coded_by_the_training_data(tmp_path: Path) -> None:
    train, test = table(tmp_path / "t.csv", *ROWS), table(tmp_path / "u.csv", "50,farmer,9,high", "60,actor,8,low")
    for sources in ((train, test), (as_parquet(train), as_parquet(test)), (train, as_parquet(test))):
        raw = read_pair(*sources)
        assert raw.test_x.tolist() == [[50, 0, 0, 1, 9], [60, 1, 0, 0, 8]] and raw.test_y is not None and raw.test_y.tolist() == [0, 1]
    assert read(test).x.tolist()[0] == [50, 0, 1, 9], "alone, the test rows would have been coded otherwise"


def test_a_word_that_training_never_saw_is_refused_by_its_place_or_is_zero(tmp_path: Path) -> None:
    train, test = table(tmp_path / "t.csv", *ROWS), table(tmp_path / "u.csv", "50,farmer,9,high", "60,miner,8,low")
    message = refusal(train, test)
    assert f"{test}: row 1 (line 3), column 1 ('work') holds 'miner', which {train} never has" in message and "--unseen ignore" in message
    assert f"row 1, column 1 ('work') holds 'miner', which {as_parquet(train)} never has" in refusal(as_parquet(train), as_parquet(test))
    assert "--unseen" not in refusal(train, test, categories="codes"), "there is no code for such a word"
    raw = read_pair(train, test, unseen="ignore")
    assert raw.test_x.tolist() == [[50, 0, 0, 1, 9], [60, 0, 0, 0, 8]]
    assert "label 'middle' in row 0 (line 2) is unknown" in refusal(train, table(tmp_path / "v.csv", "50,farmer,9,middle"), unseen="ignore")
    assert "holds '7', which" in refusal(train, table(tmp_path / "w.csv", "50,7,9,low"))
    assert "holds 'nine', not a finite number, as in" in refusal(train, table(tmp_path / "x.csv", "50,clerk,nine,low"))


@pytest.mark.parametrize("cell", ["", "?", "NA", "NaN", "nan", " ? "])
def test_a_missing_cell_is_refused_by_its_place(tmp_path: Path, cell: str) -> None:
    message = refusal(table(tmp_path / "t.csv", *ROWS, f"45,clerk,{cell},low"))
    assert f"row 4 (line 6), column 2 ('size') holds '{cell.strip()}'" in message and "--missing impute" in message
    assert "row 4 (line 6), column 1 ('work')" in refusal(table(tmp_path / "t.csv", *ROWS, f"45,{cell},1,low"))
    if cell in ("", "?", "NA"):
        for row in ("45,clerk,NA,low", "45,NA,1,low"):
            assert "row 4, column" in refusal(as_parquet(table(tmp_path / "v.csv", *ROWS, row)))
    test = table(tmp_path / "u.csv", *ROWS, f"45,{cell},1,low")
    assert "u.csv: row 4 (line 6), column 1 ('work')" in refusal(table(tmp_path / "t.csv", *ROWS), test)


def test_what_is_imputed_is_the_mean_or_the_commonest_word_of_the_training_rows(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", *ROWS, "?,clerk,,low", "90,?,NA,high")
    for each in (source, as_parquet(source)):
        raw = read(each, missing="impute")
        assert raw.x[:4].tolist() == ONE_HOT
        assert raw.x[4:].tolist() == [[44, 0, 1, 0, 3], [90, 0, 1, 0, 3]]
        assert raw.notes[-1] == "3 column(s) had missing values, which were imputed"
    fitted = read(source, missing="impute", train_rows=lambda n: np.array([1, 3, 4]))
    assert fitted.x[4:].tolist() == [[35, 0, 1, 0, 3.5], [90, 1, 0, 0, 3.5]], "of clerk, actor and farmer, once each, the first in order"
    test = table(tmp_path / "u.csv", "?,?,?,low")
    assert read_pair(table(tmp_path / "v.csv", *ROWS), test, missing="impute").test_x.tolist() == [[32.5, 0, 1, 0, 3]]
    assert "holds no value at all" in refusal(table(tmp_path / "w.csv", "1,?,2,low", "2,?,3,high"), missing="impute")


def test_held_out_rows_have_no_part_in_what_is_imputed(tmp_path: Path) -> None:
    """The values that --hold-out sets aside may be anything: training ends in the same bits."""
    import mpidml
    from mpidml.data.split import hold_out

    held = set(hold_out(40, 0.2, 0)[1].tolist())

    def model(value: float, power: int = 1) -> str:
        rows = [f"{'?' if i % 10 == 0 else value if i in held else i**power},{'ab'[i % 2]},{i % 3}" for i in range(40)]
        job = mpidml.Job(data=table(tmp_path / "t.csv", *rows, head="p,q,y\n"), missing="impute", hidden=(3,), steps=9, batch=8, backend="numpy")
        return str(mpidml.train(job, quiet=True, write=False)["model_sha256"])

    assert model(5.0) == model(-777.0) != model(5.0, power=2)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (("1,a,3,low", "2,4,5,low", "3,b,5,low"), "row 1 (line 3), column 1 ('work') holds '4', a number among words; give words only"),
        (("1,a,3,low", "2,b,five,low", "3,c,5,high"), "row 1 (line 3), column 2 ('size') holds 'five', not a finite number"),
        (("1,a,3,low", "2,b,inf,low"), "row 1 (line 3), column 2 ('size') holds 'inf', not a finite number"),
        (("1,a,3,low", "2,b,5,?"), "row 1 (line 3) has no label but '?' in column 3; give each row a label"),
    ],
)
def test_a_column_is_of_words_or_of_numbers(tmp_path: Path, rows: tuple[str, ...], expected: str) -> None:
    assert expected in refusal(table(tmp_path / "t.csv", *rows))


def test_quoted_cells_may_hold_commas_and_line_breaks_and_lines_are_still_counted(tmp_path: Path) -> None:
    source = text(tmp_path / "t.csv", 'a,b,y\n1,"x, or\ny",0\n\n2,z,1\n3,z,\n')
    assert "row 2 (line 6) has an empty label" in refusal(source)
    raw = read(text(tmp_path / "u.csv", 'a,b,y\n1,"x, or\ny",0\n\n2,z,1\n'))
    assert raw.x.tolist() == [[1, 1, 0], [2, 0, 1]]


def test_many_blocks_of_rows_are_one_table(tmp_path: Path) -> None:
    words = [f"w{i % 7}" for i in range(9000)]
    raw = read(text(tmp_path / "t.csv", "a,b,y\n" + "".join(f"{i},{w},{i % 2}\n" for i, w in enumerate(words))), categories="codes")
    assert raw.x[:, 0].tolist() == list(range(9000)) and raw.x[:, 1].tolist() == [i % 7 for i in range(9000)]
    late = text(tmp_path / "u.csv", "a,b,y\n" + "".join(f"{i},{'?' if i == 8500 else i},0\n" for i in range(9000)))
    assert "row 8500 (line 8502), column 1 ('b') holds '?'" in refusal(late)
    assert read(late, missing="impute").x[8500, 1] == pytest.approx((9000 * 8999 / 2 - 8500) / 8999)
    later = text(tmp_path / "v.csv", "a,b,y\n" + "".join(f"{i},{'?' if i == 8500 else words[i]},0\n" for i in range(9000)))
    assert "row 8500 (line 8502)" in refusal(later)
