"""Hold what a run has learnt: its network with the weights, and what scales rows and targets as the training rows were."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.data.scaling import Scaler
from mpidml.data.targets import Targets
from mpidml.nn import models
from mpidml.nn.losses.base import make_loss
from mpidml.nn.network import Network
from mpidml.runtime.net import NET_FILE, net_text

CODES = "codes.rows"
"""The tensor of a run's model that says how many rows of an embedding each of its columns has."""


class Model(NamedTuple):
    """`values`: the flat weights, in the network's dtype; `targets` is None unless they are numbers that the network learnt scaled. It can be pickled."""

    network: Network
    values: Array
    scaler: Scaler
    targets: Targets | None = None

    def outputs(self, x: Array) -> Array:
        """Return for rows x (n, features), as the training data had them, the outputs (n, n_outputs): targets in their own unit, else sums before any softmax."""
        scaled = np.empty(x.shape, self.network.dtype)
        self.scaler.apply(x, scaled)
        found = self.network.predict(self.values, scaled)
        return found if self.targets is None else found * self.targets.scale + self.targets.offset


def open_model(path: Path) -> Model:
    """Return the model in the folder of a run that has ended; UserError where there is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        values = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        tensors = load_file(path / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{path}: holds no {Path(error.filename or 'model.safetensors').name}; give the folder of a run that has ended") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the folder of a run") from None
    if (path / NET_FILE).exists():  # also where the folder has been moved
        values["model"] = str(path / NET_FILE)
    job = Job().with_values(values, f"{path}/config.toml")
    scaler = Scaler.from_state({"offset": tensors["scaler.offset"], "factor": tensors["scaler.factor"]})
    layers = models.layers_of(job, net_text(job))
    if layers[0].categories():
        largest = np.zeros((1, len(scaler.offset)))
        largest[0, list(layers[0].categories())] = tensors[CODES] - 1
        layers[0].see(largest)
    n_outputs = max(tensors.items(), key=_place)[1].shape[-1]
    network = models.connect(layers, f"{path}", len(scaler.offset), n_outputs, make_loss(job.loss), job.dtype, job.backend)
    flat = np.empty(network.n_params, network.dtype)
    for name, view in network.params.views(flat).items():
        if name not in tensors or tensors[name].shape != view.shape:
            raise UserError(f"{path}: model.safetensors does not fit config.toml at {name}; restore the folder, or train anew")
        view[...] = tensors[name]
    targets = Targets(tensors["targets.offset"], float(tensors["targets.scale"][0]), 0.0) if "targets.scale" in tensors else None
    return Model(network, flat, scaler, targets)


def _place(item: tuple[str, Array]) -> int:
    words = item[0].split(".")
    return int(words[1]) if words[0] == "layers" else -1
