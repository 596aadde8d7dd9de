"""Hold a PyTorch module that is trained through tables to PyTorch's own loop: a test of the extra `bench`, which brings it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidml.runtime.comm import CountedComm
from mpidml.runtime.tables import run_tables

pytestmark = pytest.mark.bench
N_STEPS, RATE, N_ROWS = 40, 0.05, 120
SAME = {"momentum": ("SGD", {"momentum": 0.9}), "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}), "adam": ("Adam", {})}


def problem(dtype: str) -> tuple[Any, Any, Any]:
    """Return a module, drawn by every rank for itself, and rows of which a step takes 20 after another."""
    import torch

    torch.manual_seed(7)
    x = torch.randn(N_ROWS, 5, dtype=getattr(torch, dtype))
    module = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2)).to(x.dtype)
    return module, x, torch.stack([x.sin().sum(1), x[:, 0] * x[:, 1]], 1)


def batch(step: int) -> Any:
    return np.arange(20 * step, 20 * step + 20) % N_ROWS


def torchs(optimizer: str, dtype: str) -> Any:
    """Train by PyTorch alone, on whole batches; return the parameters."""
    import torch

    module, x, y = problem(dtype)
    name, options = SAME[optimizer]
    descent = getattr(torch.optim, name)(module.parameters(), lr=RATE, **options)
    for step in range(N_STEPS):
        descent.zero_grad()
        torch.nn.functional.mse_loss(module(x[batch(step)]), y[batch(step)]).backward()
        descent.step()
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()


def ours(comm: CountedComm, optimizer: str, dtype: str, weighs: bool = True) -> Any:
    """Train as the README's example does, each worker on its rows of each batch; None where there is no worker."""
    import torch
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    module, x, y = problem(dtype)
    start = parameters_to_vector(module.parameters()).detach()

    def main(tables: Any) -> Any:
        w = tables["w"]
        for step in range(N_STEPS):
            vector_to_parameters(torch.from_numpy(w.pull().wait()).flatten(), module.parameters())
            rows = batch(step)[tables.worker :: tables.n_workers]
            loss = torch.nn.functional.mse_loss(module(x[rows]), y[rows])
            share = len(rows) / 20 if weighs else 1.0  # 20 rows are not the same number for each of three workers
            w.push(share * parameters_to_vector(torch.autograd.grad(loss, list(module.parameters()))))
            tables.clock()
        return w.pull(latest=True).wait().ravel()

    options = {"sync": "bsp", "optimizer": optimizer, "lr": RATE, "dtype": dtype, "comm": comm, "wait_limit": 30}
    return run_tables(main, {"w": (len(start), 1)}, initial={"w": start}, **options)


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", SAME)
def test_on_any_number_of_ranks_it_learns_what_pytorchs_own_loop_does(comm: Any, optimizer: str) -> None:
    counted = CountedComm(comm)
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-6 if comm.size == 1 else 1e-5)):
        if optimizer == "adam" and dtype == "float32":
            continue  # it divides by the gradient's size, and so makes much of its rounding
        expected = torchs(optimizer, dtype)
        assert np.abs(ours(counted, optimizer, dtype) - expected).max() < tolerance
        if comm.size > 1 and optimizer != "adam":  # whose steps do not change with the size of all gradients
            assert np.abs(ours(counted, optimizer, dtype, weighs=False) - expected).max() > 0.01, "the check does not see shares that are not weighed"
    counted.free()
