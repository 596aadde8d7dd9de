"""Hold a data set as it was read, and refuse one that cannot be trained on before any work is done.

Rows, columns and labels are counted from 0, as in the arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mpidml.core.errors import UserError

Array = np.ndarray[Any, Any]
T = TypeVar("T")
Label = str | tuple[str | int, ...] | None
"""The column(s) of the labels: of a table a name, or several with commas; one by one the names, or the numbers of the columns of y."""
_ROWS_AT_ONCE = 4096


class RawData(NamedTuple):
    """Rows of a data set: x (n, features) in the dtype of the file, or scipy.sparse CSR; the test parts are None where there are none.

    y: labels int64 (n,), or the targets of a regression, float64 (n, k). `notes`: what the reading decided, in words for the user;
    `coding`: how rows that come later are coded alike (None: arrays, which are numbers).
    """

    name: str
    x: Any
    y: Array
    test_x: Any
    test_y: Array | None
    notes: tuple[str, ...] = ()
    coding: Any = None


class Reading(NamedTuple):
    """How a data set is to be read; the fields are the flags of their names.

    `train_rows(n)` returns those of n rows that are trained on, to which imputed values are fitted (None: all).
    """

    view: str = "pix"
    label: Label = None
    task: str = "classify"
    categories: str = "onehot"
    unseen: str = "refuse"
    missing: str = "refuse"
    train_rows: Callable[[int], Array] | None = None


def as_rows(x: Array, dtype: Any) -> Array:
    """Return x as a contiguous (n, features) array of `dtype`; copies only where the layout or the dtype differs."""
    return np.ascontiguousarray(x.reshape(len(x), -1), dtype=dtype)


def check(raw: RawData, test: tuple[str, str, str] | None = None, n_classes: int = 0) -> None:
    """Refuse data that cannot be trained on: no rows, unequal lengths, NaN or infinity, labels outside 0..k-1; one pass over the data.

    `test`: the file that the test rows come from and the names of their arrays there, if not x_test and y_test of the same file. `n_classes` are known to be.
    """
    test_name, x_name, y_name = test or (raw.name, "x_test", "y_test")
    check_part(raw.name, "x", raw.x, "y", raw.y)
    is_regression = raw.y.dtype.kind == "f"
    n, largest = len(raw.y), 0 if is_regression else int(raw.y.max())
    if largest >= max(n, n_classes):
        row = int(raw.y.argmax())
        raise UserError(f"{raw.name}: label {largest} in row {row} of y means more classes than the {n} rows; code the labels as 0..k-1")
    if raw.test_x is None or raw.test_y is None:
        return
    check_part(test_name, x_name, raw.test_x, y_name, raw.test_y)
    if raw.x.shape[1] != raw.test_x.shape[1]:
        raise UserError(f"{test_name}: train rows have {raw.x.shape[1]} features, test rows have {raw.test_x.shape[1]}; give both the same features")
    if not is_regression:
        check_labels(raw.test_y, largest + 1, f"{test_name}, {y_name}")
    elif raw.y.shape[1] != raw.test_y.shape[1]:
        raise UserError(f"{test_name}: train rows have {raw.y.shape[1]} targets, test rows have {raw.test_y.shape[1]}; give both the same targets")


def check_labels(y: Array, n_classes: int, where: str) -> None:
    """Refuse labels that are not integers in 0..n_classes-1, naming the first bad row; `where` opens the message."""
    y = integer_labels(y, where)
    bad = y >= n_classes
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{where}: label {y[row]} in row {row} is out of range 0..{n_classes - 1} ({n_classes} classes); correct the labels")


def integer_labels(y: Array, where: str) -> Array:
    """Return labels as int64 (n,); UserError for anything that is not a non-negative integer, naming the first bad row."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise UserError(f"{where}: labels have shape {y.shape}; give one integer a row, shape (n,)")
    if y.dtype.kind not in "biuf":
        raise UserError(f"{where}: labels are {y.dtype}, not integers; code the labels as 0..k-1")
    if y.dtype.kind == "f":
        _refuse(y != np.floor(y), y, where, "is not an integer")  # NaN differs from itself
    _refuse(y < 0, y, where, "is negative")
    _refuse(y >= 2.0**62, y, where, "is too large")
    return y.astype(np.int64)


def _refuse(bad: Array, y: Array, where: str, what: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{where}: label {y[row]} in row {row} {what}; code the labels as 0..k-1")


def targets_of(y: Array, where: str) -> Array:
    """Return the targets of a regression as float64 (n, k); UserError for anything that is not a finite number, naming the first bad row."""
    if y.ndim not in (1, 2) or y.dtype.kind not in "biuf":
        raise UserError(f"{where}: targets are {y.dtype} of shape {y.shape}; give numbers, shape (n,) or (n, k)")
    y = y.reshape(len(y), -1).astype(np.float64)
    bad = ~np.isfinite(y).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{where}: the target of row {row} is {', '.join(map(str, y[row]))}; give finite numbers")
    return y


def is_amount(y: Array) -> bool:
    """Tell whether y holds a number that is not whole: such targets are amounts to regress on, never the names of classes."""
    return y.dtype.kind == "f" and bool((np.isfinite(y) & (y != np.floor(y))).any())


def undecodable(source: str, error: Exception) -> UserError:
    """Return what is told of a file in which a decoder has failed."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{source}: the file cannot be decoded ({reason}); it is truncated, corrupt or of another format: write it again")


def decoded(source: str, decode: Callable[[], T]) -> T:
    """Return what `decode()` does; whatever a damaged file raises there (zip, zlib, npy header, unicode, csv) is a UserError that names `source`."""
    try:
        return decode()
    except UserError:
        raise
    except Exception as error:
        raise undecodable(source, error) from None


def check_part(name: str, x_name: str, x: Any, y_name: str, y: Array) -> None:
    """Refuse rows and labels (targets, where they are floats (n, k)) that do not fit each other or are not finite, naming the first bad place."""
    if x.dtype.kind not in "biuf":
        raise UserError(f"{name}: {x_name} is {x.dtype}, not numbers; give real numbers")
    if x.ndim != 2:
        raise UserError(f"{name}: {x_name} has shape {x.shape}; give rows, shape (n, features)")
    if x.shape[0] != len(y):
        raise UserError(f"{name}: {x_name} has {x.shape[0]} rows, {y_name} has {len(y)} labels; give one label a row")
    if 0 in x.shape:
        raise UserError(f"{name}: {x_name} is empty, shape {x.shape}; give at least one row and one feature")
    if x.dtype.kind == "f":
        place = x.fault if hasattr(x, "fault") else _sparse_fault(x) if hasattr(x, "indptr") else _fault(x)
        if place is not None:
            raise UserError(f"{name}: {x_name} holds {x[place]} in row {place[0]}, column {place[1]}; remove or replace such values")
    if y.ndim == 2 and y.dtype.kind == "f":
        targets_of(y, f"{name}, {y_name}")
    else:
        integer_labels(y, f"{name}, {y_name}")


def _fault(x: Array) -> tuple[int, int] | None:
    """Find the first value that is not finite."""
    for start in range(0, len(x), _ROWS_AT_ONCE):
        finite = np.isfinite(x[start : start + _ROWS_AT_ONCE])
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            return start + row, column
    return None


def _sparse_fault(x: Any) -> tuple[int, int] | None:
    bad = np.flatnonzero(~np.isfinite(x.data))
    return (int(np.searchsorted(x.indptr, bad[0], "right")) - 1, int(x.indices[bad[0]])) if bad.size else None
