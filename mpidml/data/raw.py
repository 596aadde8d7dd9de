"""Hold a data set as it was read, and refuse one that cannot be trained on before any work is done.

Rows, columns and labels are counted from 0, as in the arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError

Array = np.ndarray[Any, Any]
_ROWS_AT_ONCE = 4096


class RawData(NamedTuple):
    """Rows and labels of a data set: x (n, features) in the dtype of the file, y (n,) int64; the test parts are None where the file has none."""

    name: str
    x: Array
    y: Array
    test_x: Array | None
    test_y: Array | None


def as_rows(x: Array, dtype: Any) -> Array:
    """Return x as a contiguous (n, features) array of `dtype`; copies only where the layout or the dtype differs."""
    return np.ascontiguousarray(x.reshape(len(x), -1), dtype=dtype)


def check(raw: RawData, test: tuple[str, str, str] | None = None) -> None:
    """Refuse data that cannot be trained on: no rows, unequal lengths, NaN or infinity, labels outside 0..k-1; one pass over the data.

    `test`: the file that the test rows come from and the names of their arrays there, if not x_test and y_test of the same file.
    """
    test_name, x_name, y_name = test or (raw.name, "x_test", "y_test")
    check_part(raw.name, "x", raw.x, "y", raw.y)
    n, largest = len(raw.y), int(raw.y.max())
    if largest >= n:
        row = int(raw.y.argmax())
        raise UserError(f"{raw.name}: label {largest} in row {row} of y means more classes than the {n} rows; code the labels as 0..k-1")
    if raw.test_x is None or raw.test_y is None:
        return
    check_part(test_name, x_name, raw.test_x, y_name, raw.test_y)
    if raw.x.shape[1] != raw.test_x.shape[1]:
        raise UserError(f"{test_name}: train rows have {raw.x.shape[1]} features, test rows have {raw.test_x.shape[1]}; give both the same features")
    check_labels(raw.test_y, largest + 1, f"{test_name}, {y_name}")


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


def check_part(name: str, x_name: str, x: Array, y_name: str, y: Array) -> None:
    """Refuse rows and labels that do not fit each other or are not finite numbers, naming the first bad place."""
    if x.dtype.kind not in "biuf":
        raise UserError(f"{name}: {x_name} is {x.dtype}, not numbers; give real numbers")
    if x.ndim != 2:
        raise UserError(f"{name}: {x_name} has shape {x.shape}; give rows, shape (n, features)")
    if len(x) != len(y):
        raise UserError(f"{name}: {x_name} has {len(x)} rows, {y_name} has {len(y)} labels; give one label a row")
    if x.size == 0:
        raise UserError(f"{name}: {x_name} is empty, shape {x.shape}; give at least one row and one feature")
    if x.dtype.kind == "f":
        for start in range(0, len(x), _ROWS_AT_ONCE):
            finite = np.isfinite(x[start : start + _ROWS_AT_ONCE])
            if not finite.all():
                row, column = (int(i) for i in np.argwhere(~finite)[0])
                value = x[start + row, column]
                raise UserError(f"{name}: {x_name} holds {value} in row {start + row}, column {column}; remove or replace such values")
    integer_labels(y, f"{name}, {y_name}")
