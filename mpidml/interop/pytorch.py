"""Bring a network with its weights to PyTorch and back.

    layers.<i>.weight (n_in, units), bias   <->   <place>.weight (units, n_in), bias      Linear, and a module for its activation after it
    layers.<i>.gain, bias                   <->   <place>.weight, bias                    LayerNorm
    layers.<i>.table                        <->   <place>.table.weight                    Columns

Of several heads: trunk.<place>..., heads.<number>.<place>..., and what comes out is a dict of their outputs by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mpidml.core.errors import UserError, nearest
from mpidml.core.plugins import name_of
from mpidml.core.role import Array
from mpidml.nn.layers.dense import Dense
from mpidml.nn.network import Network
from mpidml.runtime.model import Model

try:
    import torch
except ImportError:
    raise UserError("mpidml.to_torch, mpidml.from_torch: need PyTorch, which is not installed; pip install 'mpidml[torch]'") from None

ACTIVATIONS = {
    "relu": lambda: torch.nn.ReLU(),
    "leaky_relu": lambda: torch.nn.LeakyReLU(0.01),
    "gelu": lambda: torch.nn.GELU("tanh"),
    "softplus": lambda: torch.nn.Softplus(),
    "sigmoid": lambda: torch.nn.Sigmoid(),
    "tanh": lambda: torch.nn.Tanh(),
}
OPTIONS = {torch.nn.GELU: "approximate", torch.nn.LeakyReLU: "negative_slope", torch.nn.Softplus: "beta", torch.nn.LayerNorm: "eps"}
"""What a module computes by beside its tensors, so that one of the same kind and shape may compute something else."""


class Affine(torch.nn.Module):  # type: ignore[misc]
    """Give (x - offset) * factor + base, computed in float64, as `dtype`: the scaling of rows, or its reverse for targets."""

    def __init__(self, offset: Any, factor: Any, base: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        for name, value in (("offset", offset), ("factor", factor), ("base", base)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows, scaled."""
        return ((x.double() - self.offset) * self.factor + self.base).to(self.dtype)


class Columns(torch.nn.Module):  # type: ignore[misc]
    """Put rows of a table that is learnt in the place of columns of codes, behind the columns that pass through."""

    def __init__(self, passed: Array, columns: Array, starts: Array, shape: tuple[int, int]) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(*shape)
        for name, numbers in (("passed", passed), ("columns", columns), ("starts", starts)):
            self.register_buffer(name, torch.as_tensor(numbers, dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the columns that pass through and the rows of the others."""
        return torch.cat([x[:, self.passed], self.table(x[:, self.columns].long() + self.starts).flatten(1)], dim=1)


class Heads(torch.nn.Module):  # type: ignore[misc]
    """Give of rows what each head makes of the trunk's output, by the heads' names; `unscale` brings targets to their own unit."""

    def __init__(self, trunk: torch.nn.Module, names: list[str], heads: list[torch.nn.Module]) -> None:
        super().__init__()
        self.names, self.trunk, self.heads = names, trunk, torch.nn.ModuleList(heads)
        self.unscale = torch.nn.ModuleList(torch.nn.Identity() for _ in heads)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of each head."""
        shared = self.trunk(x)
        return {name: unscale(head(shared)) for name, head, unscale in zip(self.names, self.heads, self.unscale, strict=True)}


def to_torch(network: Network | Model, values: Array | None = None) -> Any:
    """Return a `torch.nn.Sequential` with the same outputs (before any softmax), its weights copies; its `state_dict()` has the names above.

    Of a network and its flat `values`: the layers, on rows that are scaled. Of a model (what `train` keeps, `model_` of an estimator): `scale`, `network`
    and, in a regression, `unscale`, on rows as the training data had them, with targets in their own unit. Of several heads outputs are a dict by name.
    """
    if isinstance(network, Model):
        model = network
        dtype = getattr(torch, str(model.network.dtype))
        parts = [("scale", Affine(model.scaler.offset, model.scaler.factor, 0.0, dtype)), ("network", to_torch(model.network, model.values))]
        for i, of in enumerate(model.heads):
            if of.targets is not None:
                parts[1][1].unscale[i] = Affine(0.0, of.targets.scale, of.targets.offset, torch.float64)
        if model.targets is not None:
            parts.append(("unscale", Affine(0.0, model.targets.scale, model.targets.offset, torch.float64)))
        return torch.nn.Sequential(OrderedDict(parts))
    if values is None or np.shape(values) != (network.n_params,):
        has = "none are given" if values is None else f"they have shape {np.shape(values)}"
        raise UserError(f"to_torch: the network has {network.n_params} values, {has}; give all of them, flat, or a model")
    chains = [network.trunk, *(head.layers for head in network.heads)]
    trunk, *heads = (torch.nn.Sequential(*(part for layer in layers for part in _modules(layer))) for layers in chains)
    module = Heads(trunk, [head.name for head in network.heads], heads) if network.trunk else heads[0]
    module = module.to(getattr(torch, str(network.dtype)))
    with torch.no_grad():
        for parameter, (name, turned) in zip(module.parameters(), _places(network), strict=True):
            view = network.params.view(values, name)
            parameter.copy_(torch.tensor(view.T if turned else view))
    return module


def from_torch(state: Any, network: Network) -> Array:
    """Return the flat values of `network` that a module, or its state dict, has: tensors in their order, whatever their names are.

    UserError where they are not as many, or one has another shape; of a module also where a GELU, slope, beta or eps is not the network's.
    """
    _refuse_options(state, network)
    state = state if isinstance(state, Mapping) else state.state_dict()
    places = list(_places(network))
    if len(state) != len(places):
        raise UserError(f"from_torch: the state has {len(state)} tensors ({', '.join(state)}), the network {len(places)}; give that of the same layers")
    values = np.empty(network.n_params, network.dtype)
    for (theirs, tensor), (name, turned) in zip(state.items(), places, strict=True):
        found = tensor.detach().cpu().numpy()
        view = network.params.view(values, name)
        if found.shape != view.shape[:: -1 if turned else 1]:
            raise UserError(f"from_torch: {theirs} has shape {found.shape}, {name} takes {view.shape[:: -1 if turned else 1]}; give the state of the same layers")
        view[...] = found.T if turned else found
    return values


def _refuse_options(state: Any, network: Network) -> None:
    """Refuse a module with an option that the network does not have: its weights would fit, its outputs would not be the same."""
    if isinstance(state, Mapping):
        return
    ours = [module for layer in network.layers for module in _modules(layer)]
    for name, module in state.named_modules():
        option = OPTIONS.get(type(module))
        here = {getattr(own, option) for own in ours if option and type(own) is type(module)}
        if option and here and getattr(module, option) not in here:
            what = f"{type(module).__name__} with {option} = {getattr(module, option)!r}, the network's has {' or '.join(map(repr, sorted(here)))}"
            raise UserError(f"from_torch: {name} is a {what}; make it so, or give its state_dict() where that is meant")


def _places(network: Network) -> Iterator[tuple[str, bool]]:
    """Name each tensor in order, and say whether it lies transposed in PyTorch."""
    names = iter(network.params.shapes)
    for layer in network.layers:
        for own, _ in layer.tensors:
            yield next(names), isinstance(layer, Dense) and own == "weight"


def _modules(layer: Any) -> list[torch.nn.Module]:
    """Return what a layer is in PyTorch."""
    kind = name_of(layer)
    if kind == "dense":
        activate = [ACTIVATIONS[layer.activation]()] if layer.activation != "linear" else []
        return [torch.nn.Linear(layer.n_in, layer.n_out), *activate]
    if kind == "dropout":
        return [torch.nn.Dropout(layer.rate)]
    if kind == "layer_norm":
        return [torch.nn.LayerNorm(layer.n_out, layer.eps)]
    if kind == "embedding":
        return [Columns(layer.passed, np.array(layer.columns), layer.starts, layer.tensors[0][1])]
    raise UserError(f"to_torch: layer {layer.place + 1} ({kind}) has no counterpart there; {nearest(kind, ['dense', 'dropout', 'layer_norm', 'embedding'])}")
