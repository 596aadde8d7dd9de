"""Name the two ways a job can end badly: the user can mend it (exit code 2), or the run failed (exit code 1).

The text of an error is `<where>: <what is wrong, with both values>; <what to do>`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, found before any work: shown as one line on rank 0, exit code 2, no traceback."""


class WaitTimeout(RuntimeError):
    """A wait passed its limit; the text says who waits for whom, for what and since when. Exit code 1."""


class DeviceFailed(RuntimeError):
    """A GPU has failed while it computed; the text says which, in CUDA's words, and how to go on. Shown as one line of its rank, exit code 1, no traceback."""


class Mismatch(RuntimeError):
    """Ranks are about to make different calls where all have to make the same; the text names both, with their places. Exit code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which names are known and which one was probably meant: `known: a, b; did you mean 'a'?`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"known: {', '.join(names)}" + (f"; did you mean '{close[0]}'?" if close else "")
