"""Give a broken variant of a module: its source with pieces replaced, so that a test can show that it sees the difference."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from pathlib import Path


def changed(module: types.ModuleType, changes: Iterable[tuple[str, str]] = ()) -> types.ModuleType:
    """Return a module of its own made of the source of `module` with each `old` replaced by `new`; every `old` stands there once."""
    source = Path(str(module.__file__)).read_text()
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    made = types.ModuleType(f"{module.__name__.rpartition('.')[2]}_changed")
    sys.modules[made.__name__] = made  # where a dataclass looks for the names of its annotations
    exec(compile(source, str(module.__file__), "exec"), vars(made))
    return made
