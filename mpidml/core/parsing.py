"""Bring what a flag or a TOML file gives to the type that is wanted."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from mpidml.core.errors import UserError


def _whole(value: Any) -> int:
    """Return `value` as an int; ValueError where that would change it."""
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise ValueError
    return int(value)


def parsed(value: Any, like: Any, where: str) -> Any:
    """Bring a TOML value or a flag's text to the type of `like`."""
    try:
        if isinstance(like, bool):
            if isinstance(value, bool):
                return value
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(like, int) and not isinstance(value, bool):
            return _whole(value)
        if isinstance(like, float) and not isinstance(value, bool):
            return float(value)
        if isinstance(like, tuple):
            parts = (value.split(",") if value.strip() else []) if isinstance(value, str) else list(value)
            return tuple(_whole(p) for p in parts)
        if isinstance(like, str) and isinstance(value, str | int | float | PurePath) and not isinstance(value, bool):
            return str(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    if isinstance(value, str) and "," in value and not isinstance(like, tuple):
        raise UserError(f"{where}: '{value}' is a list, and one value is taken here; `compare` takes lists")
    kind = {bool: "true or false", int: "a whole number", float: "a number", tuple: "whole numbers with commas between them", str: "text"}[type(like)]
    raise UserError(f"{where}: {value!r} is not {kind}; the default is {like!r}")
