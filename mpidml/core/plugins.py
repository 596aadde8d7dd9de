"""Find plug-ins: in a plug-in folder the file's name is the plug-in's name; there is no list to edit.

A specification is `name`, `name:value`, `name:key=value` or several of these joined by `:`, as in `adam:0.9:beta2=0.99`.
The name may also be a path (`./mine.py:3`) or an installed entry point of the group `mpidml.<folder>`.
Each plug-in file holds one public class named like the file in CamelCase (`one_f_one_b.py`: `OneFOneB`); `-` and `_` are the same.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mpidml.core.errors import UserError, nearest


def names(package: str) -> list[str]:
    """List the plug-ins of `package` ("mpidml.sync"): its files, except `base`, and installed entry points."""
    return sorted({*_files(package), *_installed(package)})


@cache
def _files(package: str) -> list[str]:
    """List the plug-ins that are files; read once, since a plan makes thousands of plug-ins."""
    folder = importlib.import_module(package)
    return [m.name for m in pkgutil.iter_modules(folder.__path__) if m.name != "base" and not m.ispkg]


@cache
def _installed(package: str) -> dict[str, Any]:
    """Return the entry points of a plug-in folder by name; asked for last, and once, since that reads the metadata of all installed packages."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=package)}


def load(package: str, name: str) -> type[Any]:
    """Return the class of the plug-in `name`; UserError names the nearest when there is none."""
    if name.endswith(".py"):
        return _public_class(_module_from_path(Path(name)), Path(name).stem.replace("-", "_"))
    name = name.replace("-", "_")
    if name in _files(package):
        return _public_class(importlib.import_module(f"{package}.{name}"), name)
    if name not in _installed(package):
        raise UserError(f"{package.rpartition('.')[2]}: there is no '{name}'; {nearest(name, names(package))}")
    plugin: type[Any] = _installed(package)[name].load()
    return plugin


def make(package: str, text: str, **given: Any) -> Any:
    """Build the plug-in that `text` describes; `given` are further keyword arguments, taken only where its constructor has them."""
    name, *words = text.split(":")
    cls: Callable[..., Any] = load(package, name)
    parameters = _parameters(cls)
    free = [p for p in parameters if p not in given]
    values: dict[str, Any] = {k: v for k, v in given.items() if k in parameters}
    for position, word in enumerate(words):
        key, equals, value = word.partition("=")
        if not equals:
            if position >= len(free):
                raise UserError(
                    f"'{text}': '{name}' takes {len(free)} argument(s), {len(words)} were given; its arguments are: {', '.join(free) or 'none'}"
                )
            key, value = free[position], word
        key = key.replace("-", "_")
        if key not in free:
            raise UserError(f"'{text}': '{name}' has no argument '{key}'; {nearest(key, free) if free else 'it takes none'}")
        if key in values:
            raise UserError(f"'{text}': argument '{key}' is given twice; give it once")
        values[key] = _number(value)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"'{text}': {error}") from None


def name_of(plugin: object) -> str:
    """Return the name of a plug-in's file: RecursiveDoubling is recursive_doubling."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(plugin).__name__).lstrip("_")


@lru_cache(256)
def _parameters(cls: Callable[..., Any]) -> tuple[str, ...]:
    """Name what a constructor takes."""
    return tuple(p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD)


def _public_class(module: ModuleType, name: str) -> type[Any]:
    wanted = name.replace("_", "").lower()
    for key, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__ and key.lower() == wanted:
            return value
    raise UserError(f"{module.__name__}: holds no class named like the file; define class {name.title().replace('_', '')}")


def _module_from_path(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a plug-in file or the name of a shipped one")
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[str(path)] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does wrong
        raise UserError(f"{path}: cannot be loaded ({type(error).__name__}: {error}); correct the file") from None
    return module


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)
