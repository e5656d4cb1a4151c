"""What integers of standard operators cost in ONNX Runtime beside float32, for each kind of layer, on one thread.

A layer's time is the slope between chains of one and of several copies, so that the ends drop out. The integer graph
(QLinearConv and its like, with dyadic scales) is expanded by the pass expand-integer, twice: with multipliers that
leave no ties to set right, and with any.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import measure
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from qcomp import runtime
from qcomp.calibration.observers import Statistics
from qcomp.passes.expand_integer import ExpandInteger

FEW, MANY = 1, 5
KINDS = ("float32", "QLinear", "expanded", "expanded, ties")
COLUMNS = ("layer", "float32 us", *(f"{kind} / float32" for kind in KINDS[1:]))
ODD = (1 << 11) - 1
"""A multiplier of which ``ODD / 2^16`` has no ties within uint8."""
TIED = 96
MICROSOFT = "com.microsoft"


@dataclass
class Chain:
    """Several copies of a layer under construction; ``multiplier`` is None in float."""

    multiplier: int | None
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, array: Any) -> str:
        """An initializer."""
        self.tensors.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.tensors)}"))
        return str(self.tensors[-1].name)

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", domain=domain, **attributes))
        return name

    def scales(self, multiplier: int) -> tuple[str, str, str]:
        """The factor ``multiplier / 2^16``, one, and the zero point 0."""
        return self.constant(np.float32(multiplier / 2**16)), self.constant(np.float32(1)), self.constant(np.uint8(0))

    def conv(self, x: str, channels: int, kernel: int, group: int = 1, stride: int = 1) -> str:
        """Conv and Relu, or QLinearConv."""
        shape, pads = (channels, channels // group, kernel, kernel), [kernel // 2] * 4
        attributes: dict[str, Any] = {"group": group, "pads": pads, "strides": [stride, stride]}
        if self.multiplier is None:
            weight = self.constant(self.rng.normal(size=shape).astype("f4") / kernel)
            return self.node("Relu", self.node("Conv", x, weight, **attributes))
        factor, one, zero = self.scales(self.multiplier)
        weight, none = self.constant(self.rng.integers(-60, 61, shape).astype(np.int8)), self.constant(np.int8(0))
        return self.node("QLinearConv", x, one, zero, weight, factor, none, one, zero, **attributes)

    def add(self, x: str) -> str:
        """A value and itself."""
        if self.multiplier is None:
            return self.node("Add", x, x)
        factor, one, zero = self.scales(1 << 15 if self.multiplier == ODD else 24571)
        return self.node("QLinearAdd", x, factor, zero, x, factor, zero, one, zero, domain=MICROSOFT)

    def max_pool(self, x: str) -> str:
        """3 x 3, of the same size."""
        return self.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)

    def gemm(self, x: str, width: int) -> str:
        """Gemm, or QGemm."""
        if self.multiplier is None:
            return self.node("Gemm", x, self.constant(self.rng.normal(size=(width, width)).astype("f4") / width**0.5))
        factor, one, zero = self.scales(self.multiplier)
        weight = self.constant(self.rng.integers(-60, 61, (width, width)).astype(np.int8))
        inputs = [x, one, zero, weight, factor, self.constant(np.int8(0)), "", one, zero]
        return self.node("QGemm", *inputs, domain=MICROSOFT, alpha=1.0)


Layer = Callable[[Chain, str], str]


def layers() -> Iterator[tuple[str, Sequence[int], Layer, Layer | None]]:
    """Name, shape of the input, the layer, and what stands once in front of all copies."""
    for size, channels in ((56, 64), (28, 128), (14, 384), (7, 960)):
        yield f"Conv 1x1, {channels} x {size}", (1, channels, size, size), _conv(channels, 1), None
    for size, channels in ((55, 16), (32, 16), (28, 32), (14, 64), (8, 64)):
        yield f"Conv 3x3, {channels} x {size}", (1, channels, size, size), _conv(channels, 3), None
    for size, channels in ((112, 32), (56, 144), (28, 192), (14, 384), (7, 960)):
        front = _conv(channels, 1)
        yield f"depthwise 3x3, {channels} x {size}", (1, channels, size, size), _conv(channels, 3, channels), front
    yield "Add, 32 x 28", (1, 32, 28, 28), Chain.add, _conv(32, 1)
    yield "MaxPool 3x3, 64 x 55", (1, 64, 55, 55), Chain.max_pool, _conv(64, 1)
    yield "Gemm, 16 x 512", (16, 512), lambda chain, x: chain.gemm(x, 512), None


def _conv(channels: int, kernel: int, group: int = 1) -> Layer:
    return lambda chain, x: chain.conv(x, channels, kernel, group)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--blocks", type=int, default=15)
    options = parser.parse_args()
    rows = [_row(*layer, options.blocks) for layer in layers() if options.only in layer[0]]
    print(measure.table(COLUMNS, rows))


def _row(name: str, shape: Sequence[int], layer: Layer, front: Layer | None, blocks: int) -> list[str]:
    calls = {f"{kind} {n}": _call(kind, shape, layer, front, n) for kind in KINDS for n in (FEW, MANY)}
    timing = measure.interleaved(calls, blocks=blocks, block_seconds=0.004)
    least = {key: min(seconds) for key, seconds in timing.blocks.items()}
    slopes = [(least[f"{kind} {MANY}"] - least[f"{kind} {FEW}"]) / (MANY - FEW) for kind in KINDS]
    return [name, f"{1e6 * slopes[0]:.1f}", *(f"{slope / slopes[0]:.2f}" for slope in slopes[1:])]


def _call(kind: str, shape: Sequence[int], layer: Layer, front: Layer | None, copies: int) -> Callable[[], object]:
    """One run of a chain of copies."""
    multiplier = {"float32": None, "expanded, ties": TIED}.get(kind, ODD)
    chain, value = Chain(multiplier, np.random.default_rng(0)), "x"
    for step in ([front] if front else []) + [layer] * copies:
        value = step(chain, value)
    model = ir.from_proto(_model(chain, shape, value))
    if kind.startswith("expanded"):
        ExpandInteger().run(model, Statistics())
    session = runtime.session(model)
    dtype = np.float32 if multiplier is None else np.uint8
    feeds = {"x": np.random.default_rng(1).integers(0, 256, shape).astype(dtype)}
    return lambda: session.run(None, feeds)


def _model(chain: Chain, shape: Sequence[int], output: str) -> onnx.ModelProto:
    kind = TensorProto.FLOAT if chain.multiplier is None else TensorProto.UINT8
    ends = [helper.make_tensor_value_info(name, kind, dims) for name, dims in (("x", shape), (output, None))]
    body = helper.make_graph(chain.nodes, "layers", ends[:1], ends[1:], chain.tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(body, opset_imports=imports, ir_version=10)


if __name__ == "__main__":
    main()
