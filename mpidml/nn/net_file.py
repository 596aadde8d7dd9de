"""Read a network from text: a list of layers, each with its type and the arguments of that type, and heads where it learns several things.

    [[layer]]
    type = "dense"
    units = 128
    activation = "gelu"

    [[layer]]
    type = "dense"          # the last one has the data's number of outputs

    [[head]]                # with heads the layers above are a trunk that they share
    name = "price"
    label = "price"
    loss = "squared_error"
    weight = 0.3

    [[head.layer]]          # without any: one dense layer
    type = "dense"
"""

from __future__ import annotations

import inspect
import math
import re
import tomllib
from typing import Any, NamedTuple

from mpidml.core import plugins
from mpidml.core.errors import UserError, nearest
from mpidml.core.job import Job
from mpidml.nn.layers.base import Layer
from mpidml.nn.layers.dense import Dense

PACKAGE = "mpidml.nn.layers"


class HeadPlan(NamedTuple):
    """A head as it is described; `label`: the columns that it learns (none: all there are); the rest are as the flags of their names."""

    name: str
    layers: list[Layer]
    label: tuple[str | int, ...] = ()
    loss: str = Job.loss
    weight: float = 1.0
    class_weights: str = ""
    label_smoothing: float = 0.0


class Plan(NamedTuple):
    """Layers that are not yet connected; with heads those of the trunk."""

    layers: list[Layer]
    heads: tuple[HeadPlan, ...] = ()


def parse(text: str, where: str) -> Plan:
    """Return what `text` lists; UserError, opened by `where`, the layer's number and the key, for what cannot be."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: cannot be read as TOML ({error}); correct the file") from None
    for key in tables:
        if key not in ("layer", "head"):
            raise UserError(f"{where}: there is no key '{key}'; {nearest(key, ['layer', 'head'])}")
    layers = _layers(tables.get("layer", []), where, "[[layer]]")
    listed = tables.get("head", [])
    if not isinstance(listed, list) or not all(isinstance(table, dict) for table in listed):
        raise UserError(f"{where}: head is no list; open each head by a line [[head]]")
    heads = tuple(_head(table, f"{where}: head {i + 1}", len(listed)) for i, table in enumerate(listed))
    for i, head in enumerate(heads):
        if head.name in (names := [other.name for other in heads[:i]]):
            raise UserError(f"{where}: heads {names.index(head.name) + 1} and {i + 1} are both named '{head.name}'; give each a name of its own")
        for other in heads[:i]:
            if both := set(other.label) & set(head.label):
                raise UserError(f"{where}: heads '{other.name}' and '{head.name}' both learn {both.pop()!r}; give each labels of its own")
    if heads and not any(head.weight for head in heads):
        raise UserError(f"{where}: the weights of all heads are 0, and nothing would be learnt; give one of them a weight")
    return Plan(layers, heads)


def _head(table: dict[str, Any], where: str, n_heads: int) -> HeadPlan:
    """Return one head of `n_heads`."""
    options = dict(table)
    name = options.pop("name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][\w-]*", name):
        raise UserError(f"{where}: name is {'missing' if name is None else repr(name)}; give a word of letters, digits, - and _, as kind")
    where = f"{where} ('{name}')"
    layers: list[Layer] = _layers(options.pop("layer"), where, "[[head.layer]]") if "layer" in options else [Dense()]
    label = options.pop("label", [])
    label = tuple(label) if isinstance(label, list) else (label,)
    if not all(isinstance(of, str | int) and not isinstance(of, bool) for of in label) or len({*map(type, label)}) > 1 or len(set(label)) < len(label):
        raise UserError(f"{where}: label = {table['label']!r} is no column; give its name, of arrays its number in y from 0, or a list of either, each once")
    if n_heads > 1 and not label:
        raise UserError(f"{where}: label is missing; name the column(s) that this head learns, of arrays by their numbers from 0")
    weights = options.pop("class_weights", "")
    weights = ",".join(map(str, weights)) if isinstance(weights, list) else weights
    known: dict[str, Any] = {"loss": Job.loss, "weight": 1.0, "label_smoothing": 0.0}
    for key in options:
        if key not in known:
            raise UserError(f"{where}: there is no key '{key}'; {nearest(key, [*known, 'name', 'label', 'layer', 'class_weights'])}")
    values = known | options
    for key, what in (("weight", "a number from 0 up"), ("label_smoothing", "a share, as 0.1")):
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"{where}: {key} = {value!r} is not {what}; correct it")
    if not isinstance(values["loss"], str):
        raise UserError(f"{where}: loss = {values['loss']!r} is not the name of a loss, as huber:1.0; correct it")
    if not isinstance(weights, str):
        raise UserError(f"{where}: class_weights = {weights!r} is neither 'balanced' nor a list of numbers; correct it")
    if n_heads == 1 and values["weight"] != 1:
        raise UserError(f"{where}: weight = {values['weight']:g} does nothing but scale the one loss there is; leave it out, and choose --lr")
    return HeadPlan(name, layers, label, values["loss"], float(values["weight"]), weights, float(values["label_smoothing"]))


def _layers(listed: Any, where: str, opening: str) -> list[Layer]:
    if not isinstance(listed, list) or not listed or not all(isinstance(table, dict) for table in listed):
        raise UserError(f"{where}: lists no layers; open each by a line {opening}")
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
