"""Build a network by the name of its model and the sizes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpidml_kernels import BACKENDS
from mpidml_kernels import backend as kernels

from mpidml.core.errors import UserError, nearest
from mpidml.nn.layers import Dense, Dropout
from mpidml.nn.network import Network

MODELS = ("mlp", "softmax")


def build(
    model: str,
    n_features: int,
    n_outputs: int,
    hidden: Sequence[int] = (),
    activation: str = "relu",
    dropout: float = 0.0,
    loss: str = "cross_entropy",
    dtype: str = "float32",
    backend: Any = "numba",
) -> Network:
    """Return a network: "mlp" has `hidden` layers with `activation`, each followed by `dropout`; "softmax" is one linear layer.

    `backend`: a namespace of kernels, or its name.
    """
    if model not in MODELS:
        raise UserError(f"model: there is no '{model}'; {nearest(model, MODELS)}")
    if model == "softmax" and hidden:
        raise UserError(f"model 'softmax': has no hidden layers, {len(hidden)} were given; leave them out or choose 'mlp'")
    if dropout and not hidden:
        raise UserError(f"model '{model}': dropout {dropout} needs a hidden layer to act on, there is none; give hidden layers or no dropout")
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise UserError(f"backend: there is no '{backend}'; {nearest(backend, BACKENDS)}")
        backend = kernels(backend)
    layers: list[Dense | Dropout] = []
    n_in = n_features
    for n_out in hidden:
        layers.append(Dense(n_in, n_out, activation))
        if dropout:
            layers.append(Dropout(dropout))
        n_in = n_out
    return Network([*layers, Dense(n_in, n_outputs, "linear")], n_features, loss, dtype, backend)
