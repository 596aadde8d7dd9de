"""Read training data from the shipped digits or from files into one record, checked as it is read.

    source -> files (one, a glob, a folder) -> format, by the ending -> contents of each -> joined -> train and test coded alike -> RawData

What comes out of `read` is finite, rectangular and labelled 0..k-1, or has finite targets; everything else ended in a one-line UserError.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mpidml.core import plugins
from mpidml.core.errors import UserError, nearest
from mpidml.data.arrays import Arrays, as_matrix
from mpidml.data.formats.base import Contents, Format, Known, Label
from mpidml.data.learnt import picked
from mpidml.data.raw import RawData, Reading, as_rows, check, check_labels, decoded, integer_labels, is_amount, targets_of
from mpidml.data.streamed import Crew, StreamedTable, joined, lies_open
from mpidml.data.table import Table, check_names

__all__ = ["VIEWS", "RawData", "Reading", "as_rows", "check", "check_labels", "read", "read_pair"]

Array = np.ndarray[Any, Any]
VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")
"""The six descriptions of the shipped digits; `pix` is the 16 x 15 image with values 0..6."""
_DIGITS = Path(__file__).parent / "digits" / "digits.npz"
_FOLDER = "mpidml.data.formats"
MANY_CLASSES = 100
HEADS = "heads"
"""In place of a task: several heads learn columns of y, each its own."""


def read(source: str, view: str = "pix", label: Label = None, labels: str | None = None, crew: Crew | None = None, **how: Any) -> RawData:
    """Read and check one data set: "digits" (in one `view`), a file of a known format, a glob such as 'part-*.csv', or a folder of one format.

    `labels`: the file(s) of the labels, for formats that keep them apart; `label`: the column(s) of the labels, for tables. `how`: see `Reading`.
    x keeps its dtype (tables are float64), labels become int64; labels that are words are coded 0..k-1 in sorted order. With a `crew` x is `Stored`.
    """
    return _checked(source, None, labels, None, Reading(view, label, **how), crew)


def read_pair(
    source: str,
    test_source: str,
    view: str = "pix",
    label: Label = None,
    labels: str | None = None,
    test_labels: str | None = None,
    crew: Crew | None = None,
    **how: Any,
) -> RawData:
    """Read training data and its test data from two sources, with one coding of labels and words (that of the training data).

    The test rows are the test part of `test_source` where it has one, else its only part; they replace a test part of `source`.
    """
    return _checked(source, test_source, labels, test_labels, Reading(view, label, **how), crew)


def given(name: str, arrays: Sequence[Any], task: str, label: Label = None, n_classes: int = 0) -> RawData:
    """Check the arrays that a program hands in: x, y, or x, y, test_x, test_y, as `read` checks those of a file; x may be scipy.sparse CSR.

    `n_classes`: how many classes there are, where the rows may lack some.
    """
    if len(arrays) not in (2, 4):
        raise UserError(f"{name}: are {len(arrays)}; give x, y or x, y, test_x, test_y")
    x, y, test_x, test_y = (*arrays, None, None)[:4]
    x, test_x = (part if part is None or hasattr(part, "indptr") else as_matrix(np.asarray(part), f"{name}: x") for part in (x, test_x))
    y, note = answers(picked(np.asarray(y), label, f"{name}: y"), task, f"{name}, y")
    if test_x is not None:
        test_y, _ = answers(picked(np.asarray(test_y), label, f"{name}: test_y"), "regress" if y.dtype.kind == "f" else "classify", f"{name}, test_y")
    raw = RawData(name, x, y, test_x, test_y, note)
    check(raw, (name, "test_x", "test_y"), n_classes)
    return raw


def _checked(source: str, test_source: str | None, labels: str | None, test_labels: str | None, reading: Reading, crew: Crew | None) -> RawData:
    train: Any = load(source, reading, labels, crew=crew)
    task = _task(source, train, reading)
    coding: Any = train.coding(reading)
    x, y = train.rows(coding)
    label = reading.label if not isinstance(train, Table | StreamedTable) else None
    y, note = answers(picked(y, label, f"{source}: y"), task, f"{source}, y")
    notes = (*train.notes(coding), *note)
    name = source if source != "digits" or reading.view == "pix" else f"digits:{reading.view}"
    task = "regress" if y.dtype.kind == "f" else "classify"
    if test_source is not None:
        test: Any = load(test_source, reading, test_labels, crew=crew)
        alike = type(test) is type(train)
        if alike and isinstance(train, Table | StreamedTable):
            check_names(*(of.summary if isinstance(of, StreamedTable) else of for of in (test, train)))
        same_kind(train.classes, test.classes, source, test_source)
        if isinstance(test, Arrays) and test.test_x is not None and test.test_y is not None:
            test_x, test_y, at = test.test_x, test.test_y, test.test
        else:
            (test_x, test_y), at = test.rows(coding if alike else test.coding(reading)), (test_source, "x", "y")
    elif isinstance(train, Arrays) and train.test_x is not None and train.test_y is not None:
        test_x, test_y, at = train.test_x, train.test_y, train.test
    else:
        raw = RawData(name, x, y, None, None, notes, coding)
        check(raw)
        return raw
    assert at is not None
    test_y, _ = answers(picked(test_y, label, f"{at[0]}: {at[2]}"), task, f"{at[0]}, {at[2]}")
    raw = RawData(name, x, y, test_x, test_y, notes, coding)
    check(raw, at)
    return raw


def _task(source: str, train: Any, reading: Reading) -> str:
    """Return what the labels are to be taken as; UserError for words that are to be amounts. Several columns of a table are amounts."""
    if reading.task == HEADS:
        return HEADS
    several = isinstance(train, Table | StreamedTable) and len(train.at) > 1
    if several and reading.task == "classify":
        raise UserError(f"--task classify: {len(train.at)} label columns are the amounts of one regression; name one, or give a net file with a [[head]] for each")
    words = next(((i, of[0]) for i, of in enumerate(train.classes) if of is not None), None)
    if words is not None and several:
        remedy = "name columns of numbers, or give a net file with a [[head]] for each"
        raise UserError(f"--label {reading.label}: several columns are the amounts of one regression, and {train.labels[words[0]]} holds words ('{words[1]}'); {remedy}")
    if words is not None and reading.task == "regress":
        raise UserError(f"--task regress: the labels are words ('{words[1]}') in {source}; name a column of numbers by --label, or leave it out")
    return "regress" if several else reading.task


def answers(y: Array, task: str, where: str) -> tuple[Array, tuple[str, ...]]:
    """Return labels int64 (n,) or targets float64 (n, k), and what was decided: under "auto" only numbers that are not whole are targets.

    Of several heads all columns, float64 (n, k), whatever they are.
    """
    if task in ("regress", HEADS):
        return targets_of(y, where), ()
    if task == "auto" and is_amount(y):
        row, *column = np.argwhere(y != np.floor(y))[0].tolist()
        return targets_of(y, where), (f"a regression, since {y[row, *column]:g} in row {row} is no whole number (--task classify: refuse it)",)
    coded = integer_labels(y, where)
    notes, most = [], int(coded.max(initial=0))
    if task == "auto" and most >= MANY_CLASSES:
        notes.append(f"labels are whole numbers up to {most}, taken as {most + 1} classes (--task regress: amounts)")
    if most < len(coded) and len(empty := np.flatnonzero(np.bincount(coded) == 0)):  # more classes than rows are refused later
        some = ", ".join(map(str, empty[:3])) + f" and {len(empty) - 3} more" * (len(empty) > 3)
        notes.append(f"no row has label {some}, and labels up to {most} are {most + 1} classes (code them as 0..k-1 where that is not meant)")
    return coded, tuple(notes)


def same_kind(train: Sequence[list[str] | None], test: Sequence[list[str] | None], source: str, test_source: str) -> None:
    """Refuse labels that are words in one source and numbers in the other."""
    for ours, theirs in zip(train, test, strict=False):
        if (ours is None) != (theirs is None):
            here, there = ("numbers" if of is None else f"words ('{of[0]}')" for of in (theirs, ours))
            raise UserError(f"{test_source}: labels are {here}, those of {source} are {there}; label both alike")


def load(source: str, reading: Reading, labels: str | None, known: Known | None = None, crew: Crew | None = None) -> Contents:
    """Decode all files of one source, and join them. Where a run is `known`, its rows may have no labels, and digits are read in its view.

    With a `crew` rows are left on the disk: all of them if it has a scratch file, else those that lie there as they are.
    """
    if source == "digits":
        _idle(source, reading, labels, Format())
        return _digits(reading.view) if crew is None or crew.scratch is None else joined(source, [_digits(reading.view)], crew)
    paths, form = _files(source, formats())
    _idle(source, reading, labels, form)
    if reading.view != "pix":
        raise UserError(f"{source}: view '{reading.view}' was asked for, but only 'digits' has views; drop it")
    label_paths = _label_files(labels, len(paths)) if labels is not None else [None] * len(paths)
    for path in [*paths, *(of for of in label_paths if of is not None)]:
        if not path.is_file():
            raise UserError(f"{path}: {'is not a file' if path.exists() else 'there is no such file'}; give the path of a data file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes); give a data file")
    pairs = list(zip(paths, label_paths, strict=True))
    if crew is not None and (crew.scratch is not None or form.lies_open):
        streams = [decoded(str(path), partial(form.stream, path, reading.label, of, known)) for path, of in pairs]
        if crew.scratch is not None or all(map(lies_open, streams)):
            return joined(source, streams, crew)  # type: ignore[no-any-return]
    parts: list[Any] = [decoded(str(path), partial(form.read, path, reading.label, of, known)) for path, of in pairs]
    found: Contents = type(parts[0]).joined(source, parts)
    return found


def is_sparse(source: str) -> bool:
    """Tell whether the rows of a source are pairs of index and value."""
    return source != "digits" and _files(source, formats())[1].is_sparse


@cache
def formats() -> dict[str, Format]:
    """Return every format by the endings of its files."""
    made = [plugins.load(_FOLDER, name)() for name in plugins.names(_FOLDER)]
    return {ending: form for form in made for ending in form.endings}


def _format_of(path: str, known: dict[str, Format]) -> Format | None:
    """Return the format whose ending is the longest that fits."""
    fitting = [ending for ending in known if path.lower().endswith(ending)]
    return known[max(fitting, key=len)] if fitting else None


def _files(source: str, known: dict[str, Format]) -> tuple[list[Path], Format]:
    """Return the files that a source means, in the order of their names, and their format."""
    path = Path(source)
    if path.is_dir() or (glob.has_magic(source) and not path.exists()):
        found = sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(source)))
        by_format: dict[Format, list[Path]] = {}
        for each in found:
            form = _format_of(each.name, known)
            if form is not None and not each.name.startswith(".") and each.is_file():
                by_format.setdefault(form, []).append(each)
        if not by_format:
            what = "is not a file, and the folder holds no" if path.is_dir() else "matches no"
            raise UserError(f"{source}: {what} file of a known format; give the path of a data file, or of several ({_endings(known)})")
        if len(by_format) > 1:
            one, other = (files[0].name for files in list(by_format.values())[:2])
            raise UserError(f"{source}: holds files of several formats ({one}, {other}); name those of one, as '*.csv'")
        (form, files), *_ = by_format.items()
        return form.data_files(files) if path.is_dir() else files, form
    single = _format_of(source, known)
    if single is None:
        hint = nearest(source, ["digits"]).partition("; ")[2]
        problem = "is not of a known format" if path.exists() else "there is no such file or shipped data set"
        raise UserError(f"{source}: {problem}; known formats: {_endings(known)}, or the shipped set 'digits'" + (f"; {hint}" if hint else ""))
    return [path], single


def _endings(known: dict[str, Format]) -> str:
    """List the endings, those of IDX by one example."""
    return ", ".join([*sorted(ending for ending in known if ending.startswith(".")), "idx3-ubyte(.gz)"])


def _label_files(labels: str, n: int) -> list[Path | None]:
    found: list[Path | None] = [*map(Path, sorted(glob.glob(labels)))] if glob.has_magic(labels) and not Path(labels).exists() else [Path(labels)]
    if len(found) != n:
        raise UserError(f"--labels {labels}: {len(found)} file(s) of labels for {n} file(s) of rows; give as many")
    return found


def _idle(source: str, reading: Reading, labels: str | None, form: Format) -> None:
    """Refuse what was asked for and has no part in this format."""
    default = Reading()
    listed = reading.label if isinstance(reading.label, tuple) else (reading.label,)
    if named := [label for label in listed if isinstance(label, str) and not form.is_table]:
        remedy = "drop it" if reading.label is named[0] else "give the number of a column of y, as label = 0"
        raise UserError(f"{source}: column '{named[0]}' was named, but only tables (.csv, .csv.gz, .parquet) have named columns; {remedy}")
    if numbers := [label for label in listed if isinstance(label, int) and form.is_table]:
        raise UserError(f"{source}: label = {numbers[0]}: the columns of a table have names; give that of the label's column")
    if labels is not None and not form.takes_labels:
        raise UserError(f"--labels {labels}: does nothing, {source} holds its labels itself; leave it out")
    for name in ("categories", "unseen", "missing"):
        if getattr(reading, name) != getattr(default, name) and not form.is_table:
            raise UserError(f"--{name} {getattr(reading, name)}: does nothing, {source} is no table (.csv, .csv.gz, .parquet); leave it out")


def _digits(view: str) -> Arrays:
    if view not in VIEWS:
        raise UserError(f"digits: there is no view '{view}'; {nearest(view, VIEWS)}")
    with np.load(_DIGITS, allow_pickle=False) as file:
        return Arrays("digits", file[view], file["labels"].astype(np.int64))
