"""Build a network from the name of a model or the text of a net file, for the sizes of the data.

    mlp         dense layers with an activation, each followed by dropout, and one without: --hidden, --activation, --dropout
    softmax     one dense layer
    net.toml    the layers that the file lists
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpidml_kernels import BACKENDS
from mpidml_kernels import backend as kernels

from mpidml.core.csr import Csr
from mpidml.core.errors import UserError, nearest
from mpidml.core.flat import Array
from mpidml.core.job import Job
from mpidml.nn.layers.base import Layer
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.losses.base import Loss, make_loss, parse_weights
from mpidml.nn.net_file import parse
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


def layers_of(job: Job, net: str) -> list[Layer]:
    """Return the layers of a job's model, not yet connected; `net`: the text of its net file, "" for a short form."""
    return parse(net, job.model) if net else short_form(job.model, job.widths, job.activation, job.dropout)


def categories(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Return which columns of the data are codes, which no scaling may touch."""
    return layers[0].categories()


def for_data(job: Job, layers: Sequence[Layer], data: Any, backend: Any) -> Network:
    """Return a job's network for its data: x, test_x and val_x (n, features), y labels int64 (n,) or float targets, n_outputs (of labels: classes).

    UserError for a loss, weights of classes, or a layer that does not fit the data.
    """
    is_labels = data.y.ndim == 1 and data.y.dtype.kind in "iu"
    if not is_labels and job.class_weights:
        raise UserError(f"--class-weights {job.class_weights}: the data have no classes, their targets are numbers; leave it out")
    weights = parse_weights(job.class_weights, data.y, data.n_outputs) if is_labels else None
    name = _loss_name(job, is_labels)
    loss = make_loss(name, weights, job.label_smoothing)
    try:
        if is_labels:
            n_outputs = loss.n_outputs(data.n_outputs)
        else:
            n_outputs = 1 if data.y.ndim == 1 else data.y.shape[1]
            for y in (data.y, data.test_y, data.val_y):
                loss.check_targets(y.reshape(-1, n_outputs))
    except ValueError as error:
        raise UserError(f"--loss {name}: {error}") from None
    where = f"--model {job.model}"
    if isinstance(data.x, Csr) and not isinstance(layers[0], Dense):
        raise UserError(f"{where}: rows that are sparse, as under --scale {job.scale}, need a dense first layer; begin with one, or make them dense by --scale standard")
    try:
        with naming(0, layers[0]):
            layers[0].see(data.x, data.test_x, data.val_x)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return connect(layers, where, data.x.shape[1], n_outputs, loss, job.dtype, backend)


def rebuilt(job: Job, layers: Sequence[Layer], sizes: tuple[int, int], is_labels: bool, class_weights: Any, codes: Array, backend: Any) -> Network:
    """Return the network of a job that has run, without its data: sizes (features, classes or targets), what its weights of classes were, and
    codes (1, features), a row that holds the largest code of each column of codes."""
    loss = make_loss(_loss_name(job, is_labels), class_weights, job.label_smoothing)
    layers[0].see(codes)
    return connect(layers, f"--model {job.model}", sizes[0], loss.n_outputs(sizes[1]) if is_labels else sizes[1], loss, job.dtype, backend)


def _loss_name(job: Job, is_labels: bool) -> str:
    """Return the loss's name: what nobody chose goes by the data."""
    return job.loss if is_labels or job.loss != Job.loss else "squared_error"


def connect(layers: Sequence[Layer], where: str, n_features: int, n_outputs: int, loss: Loss, dtype: Any, backend: Any) -> Network:
    """Return the network of these layers; UserError, opened by `where`, where one does not fit."""
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise UserError(f"backend: there is no '{backend}'; {nearest(backend, BACKENDS)}")
        backend = kernels(backend)
    try:
        return Network(layers, n_features, n_outputs, loss, np.dtype(dtype), backend)
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
