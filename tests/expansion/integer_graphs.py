"""Small integer graphs made by hand, with random parameters for which ONNX Runtime's own kernels are exact.

`tests/expansion/conftest.py` puts this folder on the path: ``import integer_graphs``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from protos import const, model_of

from qcomp import graph, runtime
from qcomp.calibration.observers import Statistics
from qcomp.expansion.emitter import Emitter
from qcomp.passes.expand_integer import ExpandInteger

UINT8, MICROSOFT = TensorProto.UINT8, "com.microsoft"
FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


class Builder:
    """Collects nodes; every parameter that is not given is random."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.inputs, self.tensors = [], [], []

    def input(self, name, shape, dtype=UINT8):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, array):
        self.tensors.append(const(f"c{len(self.tensors)}", array))
        return self.tensors[-1].name

    def op(self, kind, *inputs, name="", domain="", **attributes):
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", domain=domain, **attributes))
        return name

    def one(self):
        return self.constant(np.float32(1))

    def zero(self, value=None, *, even=False):
        """A random zero point: often 0."""
        value = self.rng.choice([0, 0, 2 * self.rng.integers(128), self.rng.integers(256)]) if value is None else value
        return self.constant(np.uint8(value - value % 2 if even else value))

    def factor(self, shape=(), most=1 << 17, shift=None):
        """Random dyadic numbers ``m / 2^c`` with ``m < most`` and c up to 16: as large as ``m``, or all ties."""
        shift = int(self.rng.integers(17)) if shift is None else shift
        m = 2 ** self.rng.uniform(0, np.log2(most), shape)
        m = np.round(m) if self.rng.integers(2) else 2 ** np.floor(np.log2(m))
        return self.constant((m / 2.0**shift).astype(np.float32))

    def weight(self, *shape):
        return self.constant(self.rng.integers(-128, 128, shape).astype(np.int8))

    def bias(self, channels, most=1 << 24):
        return self.constant(self.rng.integers(-most, most, channels).astype(np.int32))

    def scales(self, channels):
        """The shape of the factors of a weight: one, or one a channel, and their zero points."""
        shape = (channels,) if self.rng.integers(2) else ()
        return shape, self.constant(np.zeros(shape, np.int8))

    def conv(self, x, channels, width, kernel, *, bias=True, factor=None, **attributes):
        """QLinearConv; ``width``: input channels of a group."""
        shape, zeros = self.scales(channels)
        inputs = [x, self.one(), self.zero(), self.weight(channels, width, *kernel), factor or self.factor(shape)]
        inputs += [zeros if factor is None else self.constant(np.int8(0)), self.one(), self.zero()]
        return self.op("QLinearConv", *inputs, *([self.bias(channels)] if bias else []), **attributes)

    def gemm(self, x, width, channels, *, bias=True, transposed=0):
        shape, zeros = self.scales(channels)
        weight = self.weight(channels, width) if transposed else self.weight(width, channels)
        inputs = [x, self.one(), self.zero(), weight, self.factor(shape), zeros]
        inputs += [self.bias(channels) if bias else "", self.one(), self.zero()]
        return self.op("QGemm", *inputs, domain=MICROSOFT, transB=transposed, alpha=1.0)

    def matmul(self, a, b, channels=None):
        """QLinearMatMul of an activation and a weight of so many channels, or of two activations."""
        shape, zeros = self.scales(channels) if channels else ((), self.zero())
        return self.op(
            "QLinearMatMul", a, self.one(), self.zero(), b, self.factor(shape), zeros, self.one(), self.zero()
        )

    def add(self, a, b, **attributes):
        shift = int(self.rng.integers(12))
        factors = [self.factor(most=1 << 14, shift=shift) for _ in range(2)]
        inputs = [a, factors[0], self.zero(), b, factors[1], self.zero(), self.one(), self.zero(even=True)]
        return self.op("QLinearAdd", *inputs, domain=MICROSOFT, **attributes)

    def multiply(self, a, b):
        factor = self.factor(shift=int(self.rng.integers(16)), most=1 << 10)
        inputs = [a, factor, self.zero(), b, self.one(), self.zero(), self.one(), self.zero(even=True)]
        return self.op("QLinearMul", *inputs, domain=MICROSOFT)

    def average(self, x, count, shift=16):
        m = 2 * self.rng.integers(1 << 6) + 1
        factor = self.constant(np.float32(count * m / 2.0**shift))
        inputs = [x, factor, self.zero(), self.one(), self.zero(even=True)]
        return self.op("QLinearGlobalAveragePool", *inputs, domain=MICROSOFT, channels_last=0)

    def concat(self, *values, axis=1):
        inputs = [self.one(), self.zero(even=True)]
        for value in values:
            inputs += [value, self.factor(most=1 << 6, shift=int(self.rng.integers(1, 6))), self.zero()]
        return self.op("QLinearConcat", *inputs, domain=MICROSOFT, axis=axis)

    def model(self, *outputs, dtype=UINT8):
        infos = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
        return model_of(self.nodes, self.inputs, infos, self.tensors, domains=[MICROSOFT])

    def feeds(self, batch=2, size=7):
        """Random integers; a dynamic N is ``batch``, any other dynamic size is ``size``."""
        result = {}
        for value in self.inputs:
            dims = [d.dim_value or (batch if d.dim_param == "N" else size) for d in value.type.tensor_type.shape.dim]
            result[value.name] = self.rng.choice([0, 1, 127, 128, 254, 255, *range(256)], dims).astype(np.uint8)
        return result


def run(model, feeds, *, optimize=True):
    return runtime.session(model, optimize=optimize).run(None, feeds)


def expanded(proto):
    """What the pass makes of the model; it is valid, and a second run changes nothing."""
    model = ir.from_proto(proto)
    assert ExpandInteger().run(model, Statistics())
    graph.verify(model)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert {node.domain for node in result.graph.node} == {""}
    assert not ExpandInteger().run(model, Statistics())
    assert ir.to_proto(model).SerializeToString() == result.SerializeToString()
    return model


def check(builder: Builder, *outputs: str, dtype=UINT8, **sizes) -> ir.Model:
    """The integer graph and the expanded one give the same integers, whoever runs them."""
    proto, feeds = builder.model(*outputs, dtype=dtype), builder.feeds(**sizes)
    before = ir.from_proto(proto)
    model = expanded(proto)
    wanted = run(before, feeds, optimize=False)
    found = [run(before, feeds), run(model, feeds), run(model, feeds, optimize=False)]
    found.append(ReferenceEvaluator(ir.to_proto(model)).run(None, feeds))
    for results in found:
        for one, other in zip(wanted, results, strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
    return model


def kinds(model):
    return [node.op_type for node in model.graph]


def emitted(dtype: int, shape, build: Callable[[Emitter, ir.Value], ir.Value], out=UINT8) -> ir.Model:
    """``x -> y`` with what ``build`` emits between them."""
    proto = model_of(
        [helper.make_node("Identity", ["x"], ["same"])],
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("same", dtype, shape)],
    )
    model = ir.from_proto(proto)
    emitter = Emitter(model.graph)
    result = build(emitter, model.graph.inputs[0])
    emitter.place(None)
    result.name, result.type = "y", ir.TensorType(ir.DataType(out))
    model.graph.outputs[:] = [result]
    return model
