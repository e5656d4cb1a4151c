"""Small float models for tests, and how to run and compare them.

`tests/conftest.py` puts this folder on the path: ``import small_graphs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from qcomp import runtime

OPSET = 21


class Builder:
    """Collects nodes and random constants; every method returns the name of what it adds."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, array, name: str = "") -> str:
        name = name or f"c{len(self.tensors)}"
        array = np.asarray(array)
        self.tensors.append(numpy_helper.from_array(array.astype("f4") if array.dtype == "f8" else array, name))
        return name

    def random(self, *shape: int, name: str = "", positive: bool = False) -> str:
        array = self.rng.normal(size=shape) / max(np.prod(shape[1:]), 1) ** 0.5
        return self.constant(np.abs(array) + 0.5 if positive else array, name)

    def op(self, kind: str, *inputs: str, name: str = "", **attributes) -> str:
        return self.ops(kind, *inputs, names=(name or f"{kind.lower()}{len(self.nodes)}",), **attributes)[0]

    def ops(self, kind: str, *inputs: str, names: Sequence[str], **attributes) -> Sequence[str]:
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"node_{names[0]}", **attributes))
        return names

    def conv(self, x: str, cin: int, cout: int, kernel: int = 3, bias: bool = True, **attributes) -> str:
        weight = self.random(cout, cin // attributes.get("group", 1), kernel, kernel)
        return self.op("Conv", x, weight, *([self.random(cout)] if bias else []), **attributes)

    def batch_norm(self, x: str, channels: int, name: str = "", **attributes) -> str:
        scale, bias, mean = (self.random(channels) for _ in range(3))
        return self.op(
            "BatchNormalization", x, scale, bias, mean, self.random(channels, positive=True), name=name, **attributes
        )

    def graph(self, outputs: Sequence[str | onnx.ValueInfoProto], name: str = "graph") -> onnx.GraphProto:
        infos = [
            helper.make_tensor_value_info(o, TensorProto.FLOAT, None) if isinstance(o, str) else o for o in outputs
        ]
        return helper.make_graph(self.nodes, name, self.inputs, infos, self.tensors)

    def model(self, *outputs: str | onnx.ValueInfoProto, opset: int = OPSET) -> onnx.ModelProto:
        model = helper.make_model(
            self.graph(outputs), opset_imports=[helper.make_opsetid("", opset)], ir_version=10, producer_name="test"
        )
        inferred = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(inferred)
        return inferred


def cnn(seed: int) -> onnx.ModelProto:
    """Residual CNN: Conv, BatchNormalization, Relu, Add, Pad, pools, Flatten, Gemm."""
    b = Builder(seed)
    x = b.op("Relu", b.batch_norm(b.conv(b.input("x", ["N", 3, 8, 8]), 3, 8, bias=False, pads=[1] * 4), 8))
    y = b.batch_norm(b.conv(x, 8, 8, group=8, pads=[1] * 4), 8)
    x = b.op("Relu", b.op("Add", x, y))
    x = b.op("Pad", x, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    x = b.op("MaxPool", b.conv(x, 8, 16), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Concat", x, b.op("Mul", b.conv(x, 16, 4, 1), b.constant(2.0)), axis=1)
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    b.op("Gemm", x, b.random(5, 20), b.random(5), transB=1, name="y")
    return b.model("y")


def mlp(seed: int) -> onnx.ModelProto:
    """MatMul, Add, Gemm, BatchNormalization of rows, and a shape computed for a Reshape."""
    b = Builder(seed)
    x = b.input("x", ["N", 4, 6])
    batch = b.op("Gather", b.op("Shape", x), b.constant(np.array(0)), axis=0)
    shape = b.op("Unsqueeze", batch, b.constant(np.array([0])))
    x = b.op("Reshape", x, b.op("Concat", shape, b.constant(np.array([24])), axis=0))
    x = b.op("Add", b.op("MatMul", x, b.random(24, 10)), b.random(10))
    x = b.op("Relu", b.batch_norm(x, 10))
    x = b.op("Gemm", b.batch_norm(x, 10), b.random(10, 7), b.random(1, 7), alpha=0.5, beta=2.0)
    b.op("Div", x, b.constant(4.0), name="y")
    return b.model("y")


def attention(seed: int) -> onnx.ModelProto:
    """One head: batched MatMuls with Add, LayerNormalization, Transpose, Softmax, Erf Gelu."""
    b = Builder(seed)
    x = b.op("LayerNormalization", b.input("x", ["N", 5, 8]), b.random(8), b.random(8))
    q, k, v = (b.op("Add", b.op("MatMul", x, b.random(8, 8)), b.random(8)) for _ in range(3))
    q = b.op("Mul", q, b.constant(0.35))
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    x = b.op("Add", x, b.op("MatMul", b.op("MatMul", scores, v), b.random(8, 8)))
    erf = b.op("Add", b.op("Erf", b.op("Div", x, b.constant(2**0.5))), b.constant(1.0))
    gelu = b.op("Mul", b.op("Mul", x, erf), b.constant(0.5))
    b.op("MatMul", gelu, b.random(8, 3), name="y")
    return b.model("y")


def shared(seed: int) -> onnx.ModelProto:
    """Two convolutions with the same weights and bias, each with its own BatchNormalization."""
    b = Builder(seed)
    x, weight, bias = b.input("x", ["N", 4, 6, 6]), b.random(4, 4, 3, 3), b.random(4)
    first = b.batch_norm(b.op("Conv", x, weight, bias, pads=[1] * 4), 4)
    second = b.batch_norm(b.op("Conv", b.op("Relu", first), weight, bias), 4)
    b.op("Mul", second, b.constant(np.array([[[2.0]]])), name="y")
    return b.model("y")


def middle_output(seed: int) -> onnx.ModelProto:
    """The value between Conv and BatchNormalization is an output too, and so is an Identity of the result."""
    b = Builder(seed)
    conv = b.conv(b.input("x", ["N", 3, 6, 6]), 3, 5, auto_pad="SAME_UPPER", strides=[2, 2])
    x = b.op("Dropout", b.batch_norm(conv, 5))
    b.op("Relu", x, name="y")
    b.op("Identity", "y", name="again")
    return b.model(conv, "y", "again")


def branches(seed: int) -> onnx.ModelProto:
    """An If whose branches hold nodes, read values from outside and yield one as it is."""
    b = Builder(seed)
    x = b.op("Relu", b.batch_norm(b.conv(b.input("x", ["N", 3, 5, 5]), 3, 4, 1), 4))
    then, other = Builder(seed + 1), Builder(seed + 2)
    then.op("Mul", then.op("Identity", x), then.constant(3.0, "three"), name="then_y")
    other.op("Identity", x, name="else_y")
    total = b.op("ReduceSum", x, keepdims=0)
    cond = b.op("Greater", total, b.constant(0.0))
    y = b.op("If", cond, then_branch=then.graph(["then_y"], "then"), else_branch=other.graph(["else_y"], "else"))
    b.op("Add", y, b.random(4, 1, 1), name="y")
    return b.model("y")


def decoder(seed: int) -> onnx.ModelProto:
    """Conv, ConvTranspose that doubles the size, Relu, Conv."""
    b = Builder(seed)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4, pads=[1, 1, 1, 1])
    up = b.op("ConvTranspose", x, b.random(4, 4, 4, 4), b.random(4), strides=[2, 2], pads=[1, 1, 1, 1])
    b.op("Identity", b.conv(b.op("Relu", up), 4, 3), name="y")
    return b.model("y")


SMALL: dict[str, Callable[[int], onnx.ModelProto]] = {
    f.__name__: f for f in (cnn, mlp, attention, shared, middle_output, branches, decoder)
}


def chain(blocks: int) -> onnx.ModelProto:
    """A chain of ``blocks`` blocks of nine operators, for measuring cost."""
    b = Builder(0)
    x = b.input("x", ["N", 4, 8, 8])
    for _ in range(blocks):
        y = b.op("Mul", b.op("Relu", b.batch_norm(b.conv(x, 4, 4, pads=[1] * 4), 4)), b.constant(0.5))
        y = b.op("Pad", b.op("Identity", y), b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
        x = b.op("Relu", b.op("Add", x, b.conv(y, 4, 4)))
    b.op("GlobalAveragePool", x, name="y")
    return b.model("y")


def feeds(model: ir.Model, seed: int, batch: int = 3) -> dict[str, np.ndarray]:
    """Normal random inputs; dynamic dimensions are ``batch``."""
    rng = np.random.default_rng(seed)
    shapes = {str(v.name): [d if isinstance(d, int) else batch for d in v.shape or ()] for v in model.graph.inputs}
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs in ONNX Runtime, every operator as it stands in the file."""
    session = runtime.session(model, optimize=False)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    """The largest difference of an output, relative to its largest magnitude; the names must be the same."""
    assert list(before) == list(after)
    worst = 0.0
    for name, old in before.items():
        assert old.shape == after[name].shape
        scale = max(float(np.abs(old).max(initial=0.0)), 1e-30)
        worst = max(worst, float(np.abs(old - after[name]).max(initial=0.0)) / scale)
    return worst


def kinds(model: ir.Model) -> list[str]:
    """The operator types, in order."""
    return [node.op_type for node in model.graph]


def serialized(model: ir.Model) -> bytes:
    """The model as a file holds it."""
    return ir.to_proto(model).SerializeToString(deterministic=True)
