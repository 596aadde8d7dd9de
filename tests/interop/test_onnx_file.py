"""Hold an exported model to the model: onnxruntime computes the same outputs from rows as the data had them; tests of the extra `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpidml
from mpidml.core.errors import UserError
from mpidml.data.scaling import Scaler
from mpidml.nn.layers.dense import ACTIVATIONS
from mpidml.runtime.model import Model
from mpidml.runtime.saved import open_model
from tests.interop.test_pytorch import RANDOM, X, network
from tests.ranks import mpirun, python

pytestmark = pytest.mark.bench("torch", "onnx", "onnxruntime")
NET = """
[[layer]]
type = "embedding"
columns = [6, 3]
units = 2

[[layer]]
type = "dense"
units = 9
activation = "gelu"

[[layer]]
type = "layer_norm"

[[layer]]
type = "dropout"
rate = 0.2

[[layer]]
type = "dense"
"""


def computed(path: Path, rows: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["outputs"], {"x": rows})[0]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-7), ("float32", 3e-5)])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "linear"])
def test_every_layer_computes_the_same(tmp_path: Path, activation: str, dtype: str, tolerance: float) -> None:
    net, values = network(activation, dtype)  # the eps of a layer norm is a float32 in any ONNX file
    scaler = Scaler(RANDOM.standard_normal(7), RANDOM.uniform(0.5, 2, 7)).sparing((3, 6))
    model, rows = Model(net, values, scaler), X.astype(dtype)
    mpidml.to_onnx(model, tmp_path / "m.onnx")
    found = computed(tmp_path / "m.onnx", rows)
    np.testing.assert_allclose(found, model.outputs(rows), rtol=tolerance, atol=tolerance)
    assert found.dtype == dtype and [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    plain = model._replace(scaler=Scaler(np.zeros(7), np.ones(7)))
    assert not np.allclose(found, plain.outputs(rows), atol=1e-2), "the check does not see rows that are not scaled"


@pytest.mark.parametrize("task", ["classify", "regress"])
@pytest.mark.parametrize("model", ["mlp", "softmax", "net.toml"])
def test_the_folder_of_a_run_is_exported_also_where_it_has_been_moved(tmp_path: Path, model: str, task: str) -> None:
    y = X[:, 3].astype(int) if task == "classify" else X[:, :2] * 7 + 100.5
    if model == "net.toml":
        (tmp_path / model).write_text(NET)
    name = str(tmp_path / model) if model == "net.toml" else model
    kept: dict[str, Any] = {}
    x = X * [10, 1, 0.1, 1, 5, 5, 1] + [3, 3, 3, 0, 3, 3, 0]
    job = mpidml.Job(model=name, steps=9, batch=20, dtype="float64", out=str(tmp_path / "run"))
    mpidml.train(job, quiet=True, keep=kept, data=(x, y))
    (tmp_path / "net.toml").unlink(missing_ok=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    result = python(["-m", "mpidml", "export", str(tmp_path / "moved"), "--out", str(tmp_path / "m.onnx")])
    assert result.code == 0 and not result.err, result
    expected = kept["model"].outputs(x)
    assert open_model(str(tmp_path / "moved")).outputs(x).tobytes() == expected.tobytes()
    np.testing.assert_allclose(computed(tmp_path / "m.onnx", x), expected, rtol=1e-7, atol=1e-7)
    assert expected.shape[1] == (4 if task == "classify" else 2)


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    result = mpirun(2, ["-m", "mpidml", "export", tmp_path / "none", "--out", tmp_path / "m.onnx"])
    assert (result.code, len(result.err.splitlines())) == (2, 1) and "there is no such folder; give that of a run" in result.err
    net, values = network()
    model = Model(net, values, Scaler(np.zeros(7), np.ones(7)))
    for out, says in ((tmp_path, "is a folder"), (tmp_path / "no" / "m.onnx", "there is no folder")):
        with pytest.raises(UserError, match=says):
            mpidml.to_onnx(model, out)
    result = python(["-m", "mpidml", "export", "x"])
    assert result.code == 2 and "required: --out" in result.err and len(result.err.splitlines()) == 1


def test_without_onnx_one_line_names_the_extra() -> None:
    text = "import sys; sys.modules['onnx'] = None\nimport mpidml\ntry: mpidml.to_onnx('x', 'm.onnx')\nexcept Exception as e: print(type(e).__name__, e)"
    result = python(["-c", text])
    assert result.out.strip().startswith("UserError") and "pip install 'mpidml[onnx]'" in result.out and len(result.out.splitlines()) == 1, result
