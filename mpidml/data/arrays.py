"""Hold rows that come as arrays: x and y, and a test part where the file has one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data.raw import Reading, check_part, is_amount, targets_of
from mpidml.data.stored import Stored

Array = np.ndarray[Any, Any]
NAMES = ("x", "y", "x_train", "y_train", "x_test", "y_test")


class Arrays(NamedTuple):
    """x (n, features) and y (n,) or (n, k) as the file has them (None: rows without labels, which no run learns from); `test`: the file of the test
    part and the names of its arrays, for messages."""

    file: str
    x: Any
    y: Any
    test_x: Any = None
    test_y: Array | None = None
    test: tuple[str, str, str] | None = None

    @property
    def classes(self) -> tuple[None, ...]:
        """Labels in arrays are numbers."""
        return (None,)

    @classmethod
    def joined(cls, name: str, parts: Sequence[Arrays]) -> Arrays:
        """Join the parts in their order; UserError names two files whose rows differ in width, or the file with a value that cannot be."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        if any(part.y is None for part in parts):
            return cls._without_labels(name, parts)
        for part in parts:
            if part.test_x is not None:
                raise UserError(f"{part.file}: has test rows of its own, and is one of {len(parts)} files; give the test rows by --test-data")
            if part.x.shape[1] != first.x.shape[1] or part.y.shape[1:] != first.y.shape[1:]:
                here, there = ((p.x.shape[1], *p.y.shape[1:]) for p in (part, first))
                raise UserError(f"{part.file}: its rows have {_widths(here)}, those of {first.file} have {_widths(there)}; give all files the same")
            y = targets_of(part.y, f"{part.file}, y") if is_amount(part.y) or part.y.ndim == 2 else part.y
            check_part(part.file, "x", part.x, "y", y)
        return Arrays(name, _stacked([part.x for part in parts]), np.concatenate([part.y for part in parts]))

    @classmethod
    def _without_labels(cls, name: str, parts: Sequence[Arrays]) -> Arrays:
        first = parts[0]
        for part in parts:
            if part.x.shape[1] != first.x.shape[1] or (part.y is None) != (first.y is None):
                here, there = (f"{p.x.shape[1]} features and {'no labels' if p.y is None else 'labels'}" for p in (part, first))
                raise UserError(f"{part.file}: has {here}, {first.file} has {there}; give all files the same")
        return cls(name, _stacked([part.x for part in parts]), None)

    def coding(self, reading: Reading) -> None:
        """Nothing is coded: arrays are numbers."""

    def rows(self, coding: None) -> tuple[Array, Array]:
        """Return x and y."""
        return self.x, self.y

    def notes(self, coding: None) -> tuple[str, ...]:
        """Nothing was decided."""
        return ()


def _stacked(parts: Sequence[Any]) -> Any:
    return Stored.joined(parts) if isinstance(parts[0], Stored) else np.concatenate(parts)


def _widths(of: tuple[int, ...]) -> str:
    return f"{of[0]} features" + (f" and {of[1]} targets" if len(of) > 1 else "")


def from_names(file: str, found: Collection[str], get: Callable[[str], Any], later: bool = False) -> Arrays:
    """Choose arrays by their names: x, y or x_train, y_train (and x_test, y_test); images are flattened to rows. `get` decodes one array.

    `later`: they are rows for a run that has learnt, the test part where there is one, and may have no labels.
    """
    pairs = (("x_test", "y_test"), ("x", "y"), ("x_train", "y_train"))
    if later and (pair := next((pair for pair in pairs if pair[0] in found), None)):
        return Arrays(file, as_matrix(get(pair[0]), f"{file}: {pair[0]}"), get(pair[1]) if pair[1] in found else None)
    if {"x", "y"} & set(found) and (both := sorted({"x_train", "y_train"} & set(found))):
        raise UserError(f"{file}: holds x or y and {', '.join(both)}, two sets of training rows; keep x, y or x_train, y_train")
    train = ("x", "y") if {"x", "y"} & set(found) else ("x_train", "y_train")
    test = ("x_test", "y_test") if {"x_test", "y_test"} & set(found) else ()
    missing = [name for name in (*train, *test) if name not in found]
    if missing:
        shown = ", ".join(sorted(found)) or "none"
        raise UserError(f"{file}: missing array(s) {', '.join(missing)}; found: {shown}; give x, y or x_train, y_train (and x_test, y_test)")
    x, y = as_matrix(get(train[0]), f"{file}: {train[0]}"), get(train[1])
    if not test:
        return Arrays(file, x, y)
    return Arrays(file, x, y, as_matrix(get(test[0]), f"{file}: {test[0]}"), get(test[1]), (file, test[0], test[1]))


def as_matrix(x: Any, where: str) -> Any:
    """Return rows (n, features), images flattened; UserError for fewer than two dimensions."""
    if x.ndim < 2:
        raise UserError(f"{where} has shape {x.shape}; give rows (n, features) or images (n, height, width)")
    return x.reshape(len(x), int(np.prod(x.shape[1:])))
