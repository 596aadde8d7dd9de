"""Reach one verdict over ranks: bad input that one rank finds ends the job on all of them with one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mpidml.core.errors import UserError
from mpidml.runtime.comm import CountedComm

T = TypeVar("T")


def agree(comm: CountedComm, function: Callable[[], T]) -> T:
    """Return `function()`; where it raises UserError on any rank, every rank raises that of the lowest one (Collective on comm).

    Other exceptions pass: they end the job through the abort handler.
    """
    value: T | None = None
    error: str | None = None
    try:
        value = function()
    except UserError as found:
        error = str(found)
    errors = [e for e in comm.allgather(error) if e is not None]
    if errors:
        raise UserError(errors[0])
    return value  # type: ignore[return-value]
