"""Read a network from text: a list of layers, each with its type and the arguments of that type.

    [[layer]]
    type = "dense"
    units = 128
    activation = "gelu"

    [[layer]]
    type = "dense"          # the last one has the data's number of outputs
"""

from __future__ import annotations

import inspect
import tomllib
from typing import Any

from mpidml.core import plugins
from mpidml.core.errors import UserError, nearest
from mpidml.nn.layers.base import Layer

PACKAGE = "mpidml.nn.layers"


def parse(text: str, where: str) -> list[Layer]:
    """Return the layers that `text` lists, not yet connected; UserError, opened by `where`, the layer's number and the key, for what cannot be."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: cannot be read as TOML ({error}); correct the file") from None
    for key in tables:
        if key != "layer":
            raise UserError(f"{where}: there is no key '{key}'; {nearest(key, ['layer'])}")
    listed = tables.get("layer", [])
    if not isinstance(listed, list) or not listed or not all(isinstance(table, dict) for table in listed):
        raise UserError(f"{where}: lists no layers; open each by a line [[layer]]")
    return [_layer(table, f"{where}: layer {i + 1}") for i, table in enumerate(listed)]


def _layer(table: dict[str, Any], where: str) -> Layer:
    options = dict(table)
    name = options.pop("type", None)
    known = plugins.names(PACKAGE)
    if not isinstance(name, str):
        raise UserError(f"{where}: type is {'missing' if name is None else repr(name)}; {nearest('', known)}")
    if not name.endswith(".py") and name.replace("-", "_") not in known:
        raise UserError(f"{where}: there is no type '{name}'; {nearest(name, known)}")
    cls = plugins.load(PACKAGE, name)
    where = f"{where} ({name})"
    if not (inspect.isclass(cls) and issubclass(cls, Layer)):
        raise UserError(f"{where}: {cls.__name__} is not a layer; derive it from {PACKAGE}.base.Layer")
    arguments = inspect.signature(cls).parameters
    for key in options:
        if key not in arguments:
            raise UserError(f"{where}: there is no key '{key}'; {nearest(key, arguments) if arguments else 'it takes none'}")
    for key, argument in arguments.items():
        if argument.default is argument.empty and key not in options:
            raise UserError(f"{where}: key '{key}' is missing; give it a value")
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
