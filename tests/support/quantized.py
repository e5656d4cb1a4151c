"""Quantizes small models for tests, and looks at what ONNX Runtime makes of them.

`tests/conftest.py` puts this folder on the path: ``import quantized``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import small_graphs as small

from qcomp import files, graph, pipeline, runtime, shapes
from qcomp.calibration.calibrator import Calibrator
from qcomp.calibration.observers import Distribution, Observation, Statistics
from qcomp.report import outputs

FLOAT_REWRITES = pipeline.PRESETS[0].partition(",choose-precision")[0]
WITHOUT_CHOICE = f"{FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq{{ranges=minmax}},round-weights"


class Batches:
    """Fixed batches in place of a calibration set."""

    def __init__(self, *batches: dict[str, np.ndarray]) -> None:
        self.all = list(batches)

    count = None

    def batches(self, size, limit=None):
        yield from self.all

    def few(self, count, batch):
        yield from self.all


def statistics(model: ir.Model, observations, *batches: dict[str, np.ndarray]) -> Statistics:
    return Calibrator(Batches(*batches)).collect(model, list(dict.fromkeys(observations)))


def apply(proto: onnx.ModelProto, line: str, *batches: dict[str, np.ndarray]) -> tuple[ir.Model, ir.Model]:
    """The loaded float model and what a line of passes makes of it; the result is a valid model."""
    model = files.load(proto)
    work = model.clone()
    given = batches or (small.feeds(model, 0, 16),)
    hooks = pipeline.Hooks(calibrate=lambda m, o: statistics(m, o, *given))
    pipeline.run(work, pipeline.parse(line), hooks)
    check(work)
    return model, work


def check(model: ir.Model) -> None:
    """The structure is sound and onnx's checker, with shapes and types inferred, agrees."""
    graph.verify(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def quantize(proto: onnx.ModelProto, *batches: dict[str, np.ndarray], line: str = WITHOUT_CHOICE) -> ir.Model:
    return apply(proto, line, *batches)[1]


def sqnr(before: ir.Model, after: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, float]:
    """dB of each output, every operator run as it stands in the file."""
    old, new = small.run(before, inputs), small.run(after, inputs)
    assert list(old) == list(new)
    assert all(old[name].shape == new[name].shape for name in old)
    return {name: outputs.sqnr(old[name], new[name]) for name in old}


def fused(model: ir.Model) -> list[str]:
    """The operators of the graph as ONNX Runtime optimizes it, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        runtime.session(model, optimized_path=path)
        return [node.op_type for node in onnx.load(path).graph.node]


def float_operators(model: ir.Model) -> list[str]:
    """The operators that compute floats in the optimized graph, but for those that convert."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        runtime.session(model, optimized_path=path)
        optimized = ir.load(path)
        shapes.infer_shapes(optimized)
        floats = {v.name for v in optimized.graph.inputs if v.dtype == ir.DataType.FLOAT}
        return [n.op_type for n in optimized.graph if _computes_floats(n, floats)]


def _computes_floats(node: ir.Node, floats: set) -> bool:
    """Marks what reads a float activation; ONNX Runtime's own operators carry no shapes, so types go by name."""
    reads = any(v is not None and v.name in floats and not v.is_initializer() for v in node.inputs)
    if node.op_type == "QuantizeLinear":
        return False
    if node.op_type in ("DequantizeLinear", "MatMulIntegerToFloat") or reads:
        floats.update(v.name for v in node.outputs)
    return reads


def run_optimized(model: ir.Model, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in order, as ONNX Runtime optimizes the model."""
    return runtime.session(model).run(None, inputs)


ratio = outputs.sqnr


def loaded(proto: onnx.ModelProto) -> ir.Model:
    return files.load(proto)


__all__ = ["Distribution", "Observation", "apply", "check", "files", "quantize", "statistics"]
