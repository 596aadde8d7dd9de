"""Give both sides the same job: rows and labels from seeded draws, the first weights, and the order of rows of a run of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
RATE, DECAY = 0.05, 0.9
N_COMPARED = 20
"""Steps whose losses must agree before anything is timed."""
LOSS_TOLERANCE = 1e-3


def rows(sizes: list[int], n: int, seed: int = 0) -> tuple[Array, Array]:
    """Draw x (n, sizes[0]) float32 around a centre of each class, and labels y int64 (n,): a problem that is learnt, slowly."""
    random = np.random.default_rng(seed)
    y = random.integers(0, sizes[-1], n)
    centres = random.standard_normal((sizes[-1], sizes[0])).astype(np.float32) * 0.1
    return (random.standard_normal((n, sizes[0]), np.float32) + centres[y]).astype(np.float32), y


def write(path: Path, sizes: list[int], n: int, batch: int, steps: int) -> None:
    """Write what the peer needs: x, y, the first weights and biases (n_in, n_out), and the rows of each global batch."""
    from mpidml.data.sampler import Sampler
    from mpidml.nn.models import build

    x, y = rows(sizes, n)
    net = build("mlp", sizes[0], sizes[-1], tuple(sizes[1:-1]))
    views = net.params.views(net.init(0))
    sampler = Sampler(n, batch, 1, 0)
    order = np.stack([sampler.global_batch(k) for k in range(steps)])
    np.savez(path, x=x, y=y, order=order, **views)
