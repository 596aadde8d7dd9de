"""Hold a network in PyTorch to the network here: the same outputs within rounding, and back with the same bits; tests of the extra `bench`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import mpidml
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.nn.layers.base import Layer
from mpidml.nn.layers.dense import ACTIVATIONS, Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.network import Network
from tests.ranks import python

pytestmark = pytest.mark.bench
RANDOM = np.random.default_rng(5)
X = np.concatenate([RANDOM.standard_normal((40, 3)), RANDOM.integers(0, 4, (40, 1)), RANDOM.standard_normal((40, 2)), RANDOM.integers(0, 3, (40, 1))], axis=1)


def layers(activation: str) -> list[Layer]:
    """List every kind of layer; two of the dense ones are square, so that only their values tell a transpose."""
    embedding = Embedding([6, 3], units=2)
    embedding.see(X)
    return [embedding, Dense(9, activation), LayerNorm(1e-3), Dropout(0.3), Dense(9, activation), Dense(4)]


def network(activation: str = "tanh", dtype: str = "float64") -> tuple[Network, Any]:
    net = Network(layers(activation), 7, 4, make_loss("cross_entropy"), dtype, mpidml_backend())
    return net, RANDOM.standard_normal(net.n_params).astype(dtype) / 2


def mpidml_backend() -> Any:
    from mpidml_kernels import backend

    return backend("numpy")


def test_every_layer_has_its_counterpart() -> None:
    here = {type(layer).__module__.rpartition(".")[2] for layer in layers("relu")}
    assert here == set(plugins.names("mpidml.nn.layers"))


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-8), ("float32", 2e-5)])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "linear"])
def test_outputs_are_the_same_and_values_come_back(activation: str, dtype: str, tolerance: float) -> None:
    import torch

    net, values = network(activation, dtype)
    module = mpidml.to_torch(net, values).eval()
    rows = X.astype(dtype)
    with torch.no_grad():
        found = module(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, net.predict(values, rows), rtol=tolerance, atol=tolerance)
    again = mpidml.from_torch(module.state_dict(), net)
    assert again.dtype == values.dtype and again.tobytes() == values.tobytes() == mpidml.from_torch(module, net).tobytes()
    # the broken variant: square weights that are not transposed
    turned = {name: tensor.T if tensor.shape == (9, 9) else tensor for name, tensor in module.state_dict().items()}
    assert not np.allclose(net.predict(mpidml.from_torch(turned, net), rows), found, atol=1e-2)


def test_names_are_those_of_a_sequential_and_a_module_of_ones_own_takes_them() -> None:
    import torch

    net, values = network("relu")
    state = mpidml.to_torch(net, values).state_dict()
    assert list(state) == ["0.table.weight", "1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias", "7.weight", "7.bias"]
    assert state["1.weight"].shape == (9, 9) and state["7.weight"].shape == (4, 9)

    class Own(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(7, 5), torch.nn.Linear(5, 4)

    plain = Network([Dense(5, "relu"), Dense()], 7, 4, make_loss("cross_entropy"), "float32", mpidml_backend())
    own, x = Own(), X.astype(np.float32)
    with torch.no_grad():
        expected = own.second(torch.relu(own.first(torch.from_numpy(x)))).numpy()
    np.testing.assert_allclose(plain.predict(mpidml.from_torch(own, plain), x), expected, atol=1e-5)


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_a_model_takes_rows_as_the_data_had_them_and_can_be_saved(task: str) -> None:
    import torch

    kept: dict[str, Any] = {}
    x, y = X * [10.0, 1, 0.1, 1, 5, 5, 1] + 3, X[:, 3].astype(int) if task == "classify" else X[:, :2] * 7 + 100
    mpidml.train(mpidml.Job(hidden=(6,), steps=30, batch=20, dtype="float64"), quiet=True, write=False, keep=kept, data=(x, y))
    module = mpidml.to_torch(kept["model"]).eval()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.no_grad():
        found = torch.load(file, weights_only=False)(torch.from_numpy(x)).numpy()
        unscaled = module.network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, kept["model"].outputs(x), rtol=1e-9, atol=1e-9)
    assert not np.allclose(unscaled, found, rtol=0.1)
    assert mpidml.from_torch(module.network, kept["network"]).tobytes() == kept["values"].tobytes()


def test_what_does_not_fit_is_refused() -> None:
    net, values = network()
    state = mpidml.to_torch(net, values).state_dict()
    with pytest.raises(UserError, match=r"from_torch: 1.weight has shape \(4, 9\), layers.1.weight takes \(9, 9\)"):
        mpidml.from_torch({**state, "1.weight": state["7.weight"]}, net)
    with pytest.raises(UserError, match=r"the state has 8 tensors .*, the network 9"):
        mpidml.from_torch({name: tensor for name, tensor in state.items() if name != "7.bias"}, net)
    for wrong, says in ((None, "none are given"), (values[1:], "they have shape")):
        with pytest.raises(UserError, match=rf"to_torch: the network has {net.n_params} values, {says}"):
            mpidml.to_torch(net, wrong)


@pytest.mark.parametrize(
    ("activation", "make", "says"),
    [
        ("gelu", "GELU()", "1 is a GELU with approximate = 'none', the network's has 'tanh'"),
        ("leaky_relu", "LeakyReLU(0.2)", "1 is a LeakyReLU with negative_slope = 0.2, the network's has 0.01"),
        ("gelu", "GELU('tanh')", ""),
        ("leaky_relu", "LeakyReLU(0.01, inplace=True)", ""),
    ],
)
def test_a_module_that_computes_otherwise_with_the_same_weights_is_refused(activation: str, make: str, says: str) -> None:
    import torch

    plain = Network([Dense(5, activation), Dense()], 7, 4, make_loss("cross_entropy"), "float32", mpidml_backend())
    theirs, x = torch.nn.Sequential(torch.nn.Linear(7, 5), eval(f"torch.nn.{make}"), torch.nn.Linear(5, 4)), X.astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.copy())).numpy()
    if says:
        assert not np.allclose(plain.predict(mpidml.from_torch(theirs.state_dict(), plain), x), expected, atol=1e-5)
        with pytest.raises(UserError, match=says):
            mpidml.from_torch(theirs, plain)
    else:
        np.testing.assert_allclose(plain.predict(mpidml.from_torch(theirs, plain), x), expected, atol=1e-5)


def test_without_pytorch_one_line_names_the_extra() -> None:
    text = "import sys; sys.modules['torch'] = None\nimport mpidml\ntry: mpidml.to_torch\nexcept Exception as e: print(type(e).__name__, e)"
    result = python(["-c", text])
    assert result.out.strip().startswith("UserError") and "pip install 'mpidml[torch]'" in result.out and len(result.out.splitlines()) == 1, result
