"""Hold what a run has learnt: its network with the weights, and what scales rows and targets as the training rows were."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mpidml.core.csr import Csr
from mpidml.core.role import Array
from mpidml.data.learnt import Learnt
from mpidml.data.scaling import Scaler
from mpidml.data.targets import Targets
from mpidml.nn.layers.dense import Dense
from mpidml.nn.network import Network


class Model(NamedTuple):
    """`values`: the flat weights, in the network's dtype; `targets` is None unless they are numbers that the network learnt scaled. It can be pickled.

    `heads`: what each of several heads learnt, and how its targets were scaled.
    """

    network: Network
    values: Array
    scaler: Scaler
    targets: Targets | None = None
    heads: tuple[Learnt, ...] = ()

    def outputs(self, x: Any) -> Array:
        """Return for rows x (n, features), as the training data had them, the outputs (n, n_outputs): targets in their own unit, else sums before any softmax.

        Those of several heads lie side by side, in float64. x may be scipy.sparse CSR where the scaling keeps zeros and the first layer is dense.
        """
        if hasattr(x, "indptr") and not self.scaler.offset.any() and isinstance(self.network.layers[0], Dense):
            scaled: Any = Csr.of(x, self.scaler.factor, self.network.dtype)
        else:
            scaled = np.empty(x.shape, self.network.dtype)
            self.scaler.apply(x, scaled)
        found = self.network.predict(self.values, scaled)
        if self.heads:
            found = found.astype(np.float64)
            for head, of in zip(self.network.heads, self.heads, strict=True):
                if of.targets is not None:
                    head.cut(found)[...] = of.targets.unscaled(head.cut(found))
        return found if self.targets is None else found * self.targets.scale + self.targets.offset
