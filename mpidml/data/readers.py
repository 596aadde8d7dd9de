"""Read training data from the shipped digits, `.npz`, `.csv` or `.csv.gz` into one record, checked as it is read.

What comes out of `read` is finite, rectangular and labelled 0..k-1; everything else ended in a one-line UserError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mpidml.core.errors import UserError, nearest
from mpidml.data.csv_table import CsvTable, classes_of, code_labels, read_csv
from mpidml.data.raw import RawData, as_rows, check, check_labels, integer_labels

__all__ = ["VIEWS", "RawData", "as_rows", "check", "check_labels", "read", "read_pair"]

Array = np.ndarray[Any, Any]
T = TypeVar("T")
VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")
"""The six descriptions of the shipped digits; `pix` is the 16 x 15 image with values 0..6."""
_DIGITS = Path(__file__).parent / "digits" / "digits.npz"
_FORMATS = "known formats: .npz, .csv, .csv.gz, or the shipped set 'digits'"


def read(source: str, view: str = "pix", label: str | None = None) -> RawData:
    """Read and check one data set: "digits" (in one `view`), `.npz`, `.csv` or `.csv.gz` (labels in column `label`, else in the last).

    An `.npz` has x, y or x_train, y_train (and x_test, y_test); images are flattened to rows. x keeps its dtype, labels become int64.
    Labels of a CSV that are words are coded 0..k-1 in sorted order.
    """
    raw = _load(source, view, label)
    if isinstance(raw, CsvTable):
        raw = RawData(source, raw.x, code_labels(raw.labels, classes_of(raw.labels), f"{source}, y"), None, None)
    check(raw)
    return raw


def read_pair(source: str, test_source: str, view: str = "pix", label: str | None = None) -> RawData:
    """Read training data and its test data from two sources, with one coding of the labels (that of the training data).

    The test rows are the test part of `test_source` where it has one, else its only part; they replace a test part of `source`.
    """
    train, test = _load(source, view, label), _load(test_source, view, label)
    if isinstance(train, CsvTable) and isinstance(test, CsvTable) and train.names and test.names and train.names != test.names:
        i = next((i for i, (a, b) in enumerate(zip(train.names, test.names, strict=False)) if a != b), min(len(train.names), len(test.names)))
        here, there = (repr(names[i]) if i < len(names) else "nothing" for names in (train.names, test.names))
        raise UserError(f"{test_source}: feature {i} is {there}, in {source} it is {here}; give both the same columns in the same order")
    classes = classes_of(train.labels) if isinstance(train, CsvTable) else None
    if isinstance(train, CsvTable):
        train = RawData(source, train.x, code_labels(train.labels, classes, f"{source}, y"), None, None)
    if isinstance(test, CsvTable):
        words = classes if classes is not None else classes_of(test.labels)
        if words is not None and classes is None:
            raise UserError(f"{test_source}: labels are words ('{words[0]}'), those of {source} are numbers; label both alike")
        test = RawData(test_source, test.x, code_labels(test.labels, words, f"{test_source}, y"), None, None)
    elif classes is not None:
        raise UserError(f"{test_source}: labels are numbers, those of {source} are words ('{classes[0]}'); label both alike")
    test_x, test_y, names = (test.x, test.y, ("x", "y")) if test.test_x is None else (test.test_x, test.test_y, ("x_test", "y_test"))
    raw = RawData(source, train.x, train.y, test_x, test_y)
    check(raw, (test_source, *names))
    return raw


def _load(source: str, view: str, label: str | None) -> RawData | CsvTable:
    """Decode one source; labels of a table are left as words."""
    is_table = source.lower().endswith((".csv", ".csv.gz"))
    if label is not None and not is_table:
        raise UserError(f"{source}: column '{label}' was named, but only tables (.csv, .csv.gz) have named columns; drop it")
    if source == "digits":
        return _digits(view)
    if view != "pix":
        raise UserError(f"{source}: view '{view}' was asked for, but only 'digits' has views; drop it")
    path = Path(source)
    if not is_table and path.suffix.lower() != ".npz":
        hint = nearest(source, ["digits"]).partition("; ")[2]
        problem = "is not of a known format" if path.exists() else "there is no such file or shipped data set"
        raise UserError(f"{source}: {problem}; {_FORMATS}" + (f"; {hint}" if hint else ""))
    if not path.is_file():
        raise UserError(f"{source}: {'is not a file' if path.exists() else 'there is no such file'}; give the path of a data file")
    if path.stat().st_size == 0:
        raise UserError(f"{source}: the file is empty (0 bytes); give a data file")
    if is_table:
        return _decode(source, lambda: read_csv(path, label))
    return _npz(source, path)


def _digits(view: str) -> RawData:
    if view not in VIEWS:
        raise UserError(f"digits: there is no view '{view}'; {nearest(view, VIEWS)}")
    with np.load(_DIGITS, allow_pickle=False) as file:
        return RawData("digits" if view == "pix" else f"digits:{view}", file[view], file["labels"].astype(np.int64), None, None)


def _npz(source: str, path: Path) -> RawData:
    arrays = _decode(source, lambda: _arrays(path))
    if arrays.keys() & {"x", "y"} and (both := sorted(arrays.keys() & {"x_train", "y_train"})):
        raise UserError(f"{source}: holds x or y and {', '.join(both)}, two sets of training rows; keep x, y or x_train, y_train")
    train = ("x", "y") if arrays.keys() & {"x", "y"} else ("x_train", "y_train")
    test = ("x_test", "y_test") if arrays.keys() & {"x_test", "y_test"} else ()
    missing = [key for key in (*train, *test) if key not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "none"
        raise UserError(f"{source}: missing array(s) {', '.join(missing)}; found: {found}; give x, y or x_train, y_train (and x_test, y_test)")
    x, y = _part(source, arrays, *train)
    test_x, test_y = _part(source, arrays, *test) if test else (None, None)
    return RawData(source, x, y, test_x, test_y)


def _part(source: str, arrays: dict[str, Array], x_name: str, y_name: str) -> tuple[Array, Array]:
    x, y = arrays[x_name], arrays[y_name]
    if x.ndim < 2:
        raise UserError(f"{source}: {x_name} has shape {x.shape}; give rows (n, features) or images (n, height, width)")
    return x.reshape(len(x), int(np.prod(x.shape[1:]))), integer_labels(y, f"{source}, {y_name}")


def _arrays(path: Path) -> dict[str, Array]:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it holds one bare array, not named arrays")
    with loaded as file:
        wanted = {"x", "y", "x_train", "y_train", "x_test", "y_test"}
        # arrays of other names are listed if something is missing, never decoded
        return {key: file[key] if key in wanted else np.empty(0) for key in file.files}


def _decode(source: str, decode: Callable[[], T]) -> T:
    try:
        return decode()
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any layer: zip, zlib, npy header, unicode, csv
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: the file cannot be decoded ({reason}); it is truncated, corrupt or of another format: write it again") from None
