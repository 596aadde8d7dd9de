"""Several heads go elsewhere as several outputs, each with the values and the unit that it has here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpidml
from mpidml.strategies.base import train
from tests.strategies.test_heads import NET, job_in

pytestmark = pytest.mark.bench("torch", "onnx")
X = np.random.default_rng(4).standard_normal((11, 4)) * 3 + 1


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Train a net whose heads are named as attributes that modules have."""
    folder, kept = tmp_path_factory.mktemp("heads"), {}
    net = NET.replace('name = "kind"', 'name = "type"').replace('name = "amounts"', 'name = "values"')
    train(job_in(folder, net, out=str(folder / "run")), quiet=True, keep=kept)
    return folder, kept["model"]


def expected(model: Any) -> dict[str, Any]:
    outputs = model.outputs(X)
    return {head.name: head.cut(outputs) for head in model.network.heads}


def test_a_module_gives_each_head_and_brings_its_weights_back(learnt: tuple[Path, Any]) -> None:
    import torch

    _, model = learnt
    module = mpidml.to_torch(model).eval()
    found = module(torch.from_numpy(X))
    for name, of in expected(model).items():
        np.testing.assert_allclose(found[name].detach().numpy(), of, rtol=1e-9)
    assert np.ptp(expected(model)["values"][:, 1]) > 50, "targets are in their own unit"
    net = mpidml.to_torch(model.network, model.values)
    assert np.array_equal(mpidml.from_torch(net, model.network), model.values)
    assert next(iter(net.state_dict())) == "trunk.0.weight" and "heads.1.2.bias" in net.state_dict()


def test_an_onnx_file_has_an_output_a_head(learnt: tuple[Path, Any], tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    folder, model = learnt
    mpidml.to_onnx(folder / "run", tmp_path / "m.onnx")
    session = ReferenceEvaluator(str(tmp_path / "m.onnx"))
    assert session.output_names == ["type", "values"]
    for found, of in zip(session.run(None, {"x": X}), expected(model).values(), strict=True):
        np.testing.assert_allclose(found, of, rtol=1e-9)
