"""Write a model as an ONNX file that other runtimes compute with: the scaling of the rows, the layers, and the unit of the targets.

    x -> (x - offset) * factor -> Gemm, Relu, ... -> outputs        as `Model.outputs`: sums before any softmax, or targets in their own unit

Several heads are outputs of their names.

x has the network's dtype; the scaling is computed in float64, as it is here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpidml.core.errors import UserError, nearest
from mpidml.core.plugins import name_of
from mpidml.core.role import Array
from mpidml.runtime.model import Model

OPSET, IR_VERSION = 20, 10


def to_onnx(model: Model | str | Path, path: str | Path) -> None:
    """Write a model (what `train` keeps, `model_` of an estimator), or that of a run's folder, to `path`; UserError where it cannot be."""
    try:
        import onnx
    except ImportError:
        raise UserError("mpidml.to_onnx: needs onnx, which is not installed; pip install 'mpidml[onnx]'") from None
    path = Path(path)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}; give the path of a file, as model.onnx")
    if not isinstance(model, Model):
        from mpidml.runtime.saved import open_model

        model = open_model(str(model))
    made = _Graph(model).proto()
    onnx.checker.check_model(made, full_check=True)
    part = path.with_name(f".{path.name}.part")
    try:
        onnx.save(made, part)
        part.replace(path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); choose another") from None
    finally:
        part.unlink(missing_ok=True)


class _Graph:
    """The nodes and constants of one model, each node's output the input of the next."""

    def __init__(self, model: Model) -> None:
        self.model, self.dtype = model, model.network.dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def proto(self) -> Any:
        """Return the whole file."""
        from onnx import TensorProto, helper

        net, model = self.model.network, self.model
        kinds = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
        after = {-1: self.cast(self.affine("x", model.scaler.offset, model.scaler.factor), str(self.dtype))}
        for i, (layer, source) in enumerate(zip(net.layers, net.sources, strict=True)):
            after[i] = after[source] if layer.training_only else self.layer(layer, net.layer_views(i, model.values), after[source])
        outputs = []
        for head, end, targets in zip(net.heads, net.ends, [of.targets for of in model.heads] or [model.targets], strict=True):
            if head.name == "x":
                raise UserError("to_onnx: a head is named 'x', as what goes in is; give it another name")
            at, kind, name = after[end], kinds[str(self.dtype)], head.name or "outputs"
            if targets is not None:
                scaled = self.node("Mul", self.cast(at, "float64"), self.constant(np.float64(targets.scale)))
                at, kind = self.node("Add", scaled, self.constant(targets.offset.astype(np.float64))), TensorProto.DOUBLE
            self.nodes.append(helper.make_node("Identity", [at], [name]))
            outputs.append(helper.make_tensor_value_info(name, kind, ["rows", head.n_outputs]))
        x = helper.make_tensor_value_info("x", kinds[str(self.dtype)], ["rows", net.n_features])
        graph = helper.make_graph(self.nodes, "mpidml", [x], outputs, self.constants)
        return helper.make_model(graph, producer_name="mpidml", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        from onnx import helper

        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value) if np.ndim(value) else np.array(value), name))
        return name

    def number(self, value: float) -> str:
        """Add a number of the network's dtype."""
        return self.constant(np.array(value, self.dtype))

    def cast(self, at: str, dtype: str) -> str:
        """Change the type of an element."""
        from onnx import TensorProto

        return self.node("Cast", at, to={"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64}[dtype])

    def affine(self, at: str, offset: Array, factor: Array) -> str:
        """Scale rows in float64."""
        return self.node("Mul", self.node("Sub", self.cast(at, "float64"), self.constant(offset)), self.constant(factor))

    def layer(self, layer: Any, parameters: dict[str, Array], at: str) -> str:
        """Add what a layer computes on `at`."""
        kind = name_of(layer)
        if kind == "dense":
            sums = self.node("Gemm", at, self.constant(parameters["weight"]), self.constant(parameters["bias"]))
            return self.activation(layer.activation, sums)
        if kind == "layer_norm":
            return self.node("LayerNormalization", at, self.constant(parameters["gain"]), self.constant(parameters["bias"]), axis=-1, epsilon=layer.eps)
        if kind == "embedding":
            codes = self.node("Gather", at, self.constant(np.array(layer.columns, np.int64)), axis=1)
            rows = self.node("Gather", self.constant(parameters["table"]), self.node("Add", self.cast(codes, "int64"), self.constant(layer.starts)))
            passed = self.node("Gather", at, self.constant(layer.passed), axis=1)
            return self.node("Concat", passed, self.node("Flatten", rows, axis=1), axis=1)
        raise UserError(f"to_onnx: layer {layer.place + 1} ({kind}) cannot be written; {nearest(kind, ['dense', 'dropout', 'layer_norm', 'embedding'])}")

    def activation(self, name: str, z: str) -> str:
        """Add an activation, of operators that take both dtypes."""
        if name == "leaky_relu":
            return self.node("Max", z, self.node("Mul", z, self.number(0.01)))
        if name == "gelu":  # z sigmoid(2 sqrt(2 / pi) (z + 0.044715 z^3))
            cubic = self.node("Mul", self.node("Mul", z, z), self.number(2 * (2 / np.pi) ** 0.5 * 0.044715))
            slope = self.node("Add", cubic, self.number(2 * (2 / np.pi) ** 0.5))
            return self.node("Mul", z, self.node("Sigmoid", self.node("Mul", z, slope)))
        if name == "softplus":  # max(z, 0) + log(1 + exp(-|z|)), in the form that cannot overflow
            tail = self.node("Log", self.node("Add", self.node("Exp", self.node("Neg", self.node("Abs", z))), self.number(1)))
            return self.node("Add", self.node("Relu", z), tail)
        kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
        return z if name == "linear" else self.node(kinds[name], z)
