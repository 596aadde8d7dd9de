"""Build a network from the name of a model or the text of a net file, for the sizes of the data.

    mlp         dense layers with an activation, each followed by dropout, and one without: --hidden, --activation, --dropout
    softmax     one dense layer
    net.toml    the layers, and heads, that the file lists
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mpidml_kernels import BACKENDS
from mpidml_kernels import backend as kernels

from mpidml.core.csr import Csr
from mpidml.core.errors import UserError, nearest
from mpidml.core.flat import Array
from mpidml.core.job import Job
from mpidml.nn.heads import Head
from mpidml.nn.layers.base import Layer
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.losses.base import Loss, make_loss, parse_weights
from mpidml.nn.net_file import HeadPlan, Plan, parse
from mpidml.nn.network import Network, naming

MODELS = ("mlp", "softmax")


def build(
    model: str,
    n_features: int,
    n_outputs: int,
    hidden: Sequence[int] = (),
    activation: str = "relu",
    dropout: float = 0.0,
    loss: str | Loss = "cross_entropy",
    dtype: str = "float32",
    backend: Any = "numba",
) -> Network:
    """Return a network: "mlp" has `hidden` layers with `activation`, each followed by `dropout`; "softmax" is one linear layer.

    `backend`: a namespace of kernels, or its name.
    """
    layers = short_form(model, hidden, activation, dropout)
    return connect(layers, f"model '{model}'", n_features, n_outputs, make_loss(loss) if isinstance(loss, str) else loss, dtype, backend)


def layers_of(job: Job, net: str) -> Plan:
    """Return the layers, and heads, of a job's model, not yet connected; `net`: the text of its net file, "" for a short form."""
    return parse(net, job.model) if net else Plan(short_form(job.model, job.widths, job.activation, job.dropout))


def categories(plan: Plan) -> tuple[int, ...]:
    """Return which columns of the data are codes, which no scaling may touch."""
    return plan.layers[0].categories()


def check(job: Job, plan: Plan) -> None:
    """Refuse flags that the heads of a net file say themselves."""
    several = len(plan.heads) > 1
    for name in (*("loss", "class_weights", "label_smoothing") * bool(plan.heads), *("label", "task") * several, *["label"] * any(h.label for h in plan.heads)):
        if getattr(job, name) != getattr(Job, name):
            each = "each head says" if several else "its head says"
            raise UserError(f"--{name.replace('_', '-')} {getattr(job, name)}: does nothing beside --model {job.model}, where {each} what it learns and how; leave it out")


def alone(job: Job, plan: Plan) -> tuple[Job, list[Layer]]:
    """Return the job and the chain of layers of a network that learns one thing: a single head is the end of the chain."""
    if not plan.heads:
        return job, plan.layers
    head = plan.heads[0]
    return replace(job, loss=head.loss, class_weights=head.class_weights, label_smoothing=head.label_smoothing), [*plan.layers, *head.layers]


def for_data(job: Job, plan: Plan, data: Any, backend: Any) -> Network:
    """Return a job's network for its data: x, test_x and val_x (n, features), y labels int64 (n,) or float targets, n_outputs (of labels: classes).

    For several heads y are columns, and `data.heads` says of each head which ones. UserError for a loss, weights of classes, or a layer that does
    not fit the data.
    """
    check(job, plan)
    where = f"--model {job.model}"
    if isinstance(data.x, Csr) and not (plan.layers and isinstance(plan.layers[0], Dense)):
        raise UserError(f"{where}: rows that are sparse, as under --scale {job.scale}, need a dense first layer; begin with one, or make them dense by --scale standard")
    try:
        with naming(0, plan.layers[0]):
            plan.layers[0].see(data.x, data.test_x, data.val_x)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if len(plan.heads) > 1:
        weights = [_weights(head, of, data.y) for head, of in zip(plan.heads, data.heads, strict=True)]
        return _with_heads(job, plan, where, data.x.shape[1], data.heads, weights, backend)
    job, layers = alone(job, plan)
    is_labels = data.y.ndim == 1 and data.y.dtype.kind in "iu"
    if not is_labels and job.class_weights:
        raise UserError(f"--class-weights {job.class_weights}: the data have no classes, their targets are numbers; leave it out")
    loss = make_loss(_loss_name(job.loss, is_labels), parse_weights(job.class_weights, data.y, data.n_outputs) if is_labels else None, job.label_smoothing)
    try:
        if is_labels:
            n_outputs = loss.n_outputs(data.n_outputs)
        else:
            n_outputs = 1 if data.y.ndim == 1 else data.y.shape[1]
            for y in (data.y, data.test_y, data.val_y):
                loss.check_targets(y.reshape(-1, n_outputs))
    except ValueError as error:
        raise UserError(f"--loss {_loss_name(job.loss, is_labels)}: {error}") from None
    return connect(layers, where, data.x.shape[1], n_outputs, loss, job.dtype, backend)


def rebuilt(job: Job, plan: Plan, known: Any, codes: Array, backend: Any) -> Network:
    """Return the network of a job that has run, without its data: of what is `known` of them n_features, n_outputs, task, heads, class_weights, and
    codes (1, features), a row that holds the largest code of each column of codes."""
    plan.layers[0].see(codes)
    where = f"--model {job.model}"
    if len(plan.heads) > 1:
        return _with_heads(job, plan, where, known.n_features, known.heads, [of.class_weights for of in known.heads], backend)
    job, layers = alone(job, plan)
    is_labels = known.task == "classify"
    loss = make_loss(_loss_name(job.loss, is_labels), known.class_weights, job.label_smoothing)
    return connect(layers, where, known.n_features, loss.n_outputs(known.n_outputs) if is_labels else known.n_outputs, loss, job.dtype, backend)


def _with_heads(job: Job, plan: Plan, where: str, n_features: int, learnt: Sequence[Any], weights: Sequence[Any], backend: Any) -> Network:
    """Return a network with heads, of which `learnt` says columns, n_outputs and is_labels."""
    heads: list[Head] = []
    for head, of, factors in zip(plan.heads, learnt, weights, strict=True):
        name = _loss_name(head.loss, of.is_labels)
        try:
            loss = make_loss(name, factors, head.label_smoothing)
            if not of.is_labels and not loss.any_amount:
                raise ValueError("takes class labels, the targets are amounts; use squared_error or huber")
            n = loss.n_outputs(of.n_outputs) if of.is_labels else of.n_outputs
        except (ValueError, UserError) as error:
            raise UserError(f"{where}: head '{head.name}', loss = '{name}': {error}") from None
        heads.append(Head(head.name, tuple(head.layers), n, loss, head.weight, of.columns, of.is_labels, heads[-1].lo + heads[-1].n_outputs if heads else 0))
    return connect(plan.layers, where, n_features, heads[-1].lo + heads[-1].n_outputs, heads[0].loss, job.dtype, backend, heads)


def _weights(head: HeadPlan, of: Any, y: Array) -> Array | None:
    """Return the weights of a head's classes."""
    if head.class_weights and not of.is_labels:
        raise UserError(f"head '{head.name}': class_weights = {head.class_weights}, and its targets are numbers; leave it out")
    return parse_weights(head.class_weights, y[:, of.columns[0]].astype(np.int64), of.n_outputs) if of.is_labels else None


def learns_amounts(loss: str) -> bool | None:
    """Tell whether what nobody else says is amounts to a loss, or classes; None where the loss goes by the data."""
    return None if loss == Job.loss else make_loss(loss).any_amount


def _loss_name(loss: str, is_labels: bool) -> str:
    """Return the loss's name: what nobody chose goes by the data."""
    return loss if loss != Job.loss else "cross_entropy" if is_labels else "squared_error"


def connect(
    layers: Sequence[Layer], where: str, n_features: int, n_outputs: int, loss: Loss, dtype: Any, backend: Any, heads: Sequence[Head] = ()
) -> Network:
    """Return the network of these layers; UserError, opened by `where`, where one does not fit."""
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise UserError(f"backend: there is no '{backend}'; {nearest(backend, BACKENDS)}")
        backend = kernels(backend)
        backend.fetch(np.dtype(dtype).str[1:])  # so that whoever times steps times no loading
    try:
        return Network(layers, n_features, n_outputs, loss, np.dtype(dtype), backend, heads)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def short_form(model: str, hidden: Sequence[int], activation: str, dropout: float) -> list[Layer]:
    """Return the layers of "mlp" or "softmax"."""
    if model not in MODELS:
        raise UserError(f"model: there is no '{model}'; {nearest(model, MODELS)}, or give the path of a net file, as net.toml")
    if model == "softmax" and hidden:
        raise UserError(f"model 'softmax': has no hidden layers, {len(hidden)} were given; leave them out or choose 'mlp'")
    if dropout and not hidden:
        raise UserError(f"model '{model}': dropout {dropout} needs a hidden layer to act on, there is none; give hidden layers or no dropout")
    layers: list[Layer] = []
    try:
        for width in hidden:
            layers += [Dense(width, activation), *([Dropout(dropout)] if dropout else [])]
    except ValueError as error:
        raise UserError(f"model '{model}': {error}") from None
    return [*layers, Dense()]
