"""Real, trained models end to end: what runs in integers after ONNX Runtime's own optimization, and how accurately.

Slow: needs the folder of models and labelled data that benchmarks/README.md describes, in QCOMP_DATA.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import zoo
from real_data import DATA, with_data

import qcomp
from qcomp import graph, pipeline, qdq, runtime

pytestmark = [pytest.mark.slow, with_data]

CNNS = (
    "mobilenetv2",
    "squeezenet1.1",
    "cifar10_resnet20_bn",
    "mlperf_ic_resnet8",
    "mlperf_kws_dscnn",
    "mnist_cntk_opt",
)
TRANSFORMERS = ("kwt1", "minilm")
SAMPLES = 64
LOSS = 0.5
"""Points of top-1, or of Spearman's correlation, that -O1 may lose on the whole evaluation set; a gain is no failure.

Top-1 of 500 images moves by 0.2 points with each image, so a loss counts only beyond one standard error: of the
samples that only one of the two models gets right, the root may fall to either side by chance."""
SLOWER_IN_INTEGERS = "mnist_cntk_opt"
ALL_INTEGER = pipeline.preset(1).replace("choose-precision", "choose-precision{by=all}")
"""-O1 without the choice by cost: on tiny models some operators are rightly left in float."""


@functools.cache
def compiled(name: str, passes: str | None = None) -> qcomp.compiler.Compiled:
    assert DATA is not None
    model = zoo.MODELS[name]
    options = model.compile_options() | {"samples": SAMPLES}
    return qcomp.compile(model.path(DATA), model.calibration(DATA), passes=passes, **options)


@dataclass(frozen=True)
class Optimized:
    """The graph as ONNX Runtime runs it, with the type of every value as ONNX Runtime infers it."""

    graph: onnx.GraphProto
    types: dict[str, str]

    def computes_floats(self, node: onnx.NodeProto) -> bool:
        """Whether the node reads or makes a float tensor other than a constant (scales are constants)."""
        return any(self.types.get(name) == "tensor(float)" for name in (*node.input, *node.output))

    @property
    def float_nodes(self) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if self.computes_floats(node)]


def optimized(model: Any, folder: Path) -> Optimized:
    path = folder / "optimized.onnx"
    runtime.session(model, optimized_path=path)
    proto = onnx.load(path)
    names = dict.fromkeys(name for node in proto.graph.node for name in node.output if name)
    types = {value.name: f"tensor({_element(value)})" for value in proto.graph.input}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    runner = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Optimized(proto.graph, types | {value.name: value.type for value in runner.get_outputs()})


def _element(value: onnx.ValueInfoProto) -> str:
    return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()


def outcome(name: str) -> tuple[zoo.Outcome, zoo.Outcome]:
    """The float model and the compiled one on the evaluation samples."""
    assert DATA is not None
    model = zoo.MODELS[name]
    batches = model.evaluation(DATA, model)
    truth = model.truth(DATA) if model.truth else None
    runners = runtime.session(model.path(DATA)), runtime.session(compiled(name).model)
    first, second = (zoo.evaluate(model, runner, batches, truth) for runner in runners)
    return first, second


@pytest.mark.parametrize("name", CNNS)
def test_no_float_operator_is_left_between_the_ends(name: str, tmp_path: Path) -> None:
    """By default, but for a model so small that integers would be slower: it is asked for them."""
    model = (compiled(name, ALL_INTEGER) if name == SLOWER_IN_INTEGERS else compiled(name)).model
    found = optimized(model, tmp_path)
    ends = {str(v.name) for v in (*model.graph.inputs, *model.graph.outputs)}
    left = [node for node in found.float_nodes if not {*node.input, *node.output} & ends]
    assert not [(node.op_type, node.name) for node in left]
    first, *last = found.float_nodes
    assert first.op_type == "QuantizeLinear"
    assert [node.op_type for node in last] in (["DequantizeLinear"], ["QGemm"])


def test_integers_are_not_chosen_where_they_would_be_slower() -> None:
    report = compiled(SLOWER_IN_INTEGERS).report
    assert not report.quantized
    assert all(operator.reason for operator in report.in_float)


@pytest.mark.parametrize("name", [*CNNS, *TRANSFORMERS])
def test_accuracy_stays_within_half_a_point_of_float32(name: str) -> None:
    assert DATA is not None
    real, quantized = outcome(name)
    assert real.score > 70, "the data or its preprocessing is wrong"
    model = zoo.MODELS[name]
    truth = model.truth(DATA) if model.truth else None
    assert quantized.score >= real.score - LOSS - zoo.chance(model, truth, real, quantized)


def test_what_is_kept_in_float_is_not_quantized_by_onnx_runtime(tmp_path: Path) -> None:
    assert DATA is not None
    model = zoo.MODELS["mobilenetv2"]
    convs = [node for node in compiled("mobilenetv2", ALL_INTEGER).model.graph if node.op_type == "Conv"]
    depthwise = [str(node.name) for node in convs if graph.attribute(node, "group", 1) > 1]
    options = model.compile_options() | {"samples": 8}
    result = qcomp.compile(model.path(DATA), model.calibration(DATA), passes=ALL_INTEGER, keep=depthwise, **options)
    nodes = optimized(result.model, tmp_path).float_nodes
    assert len([node for node in nodes if node.op_type in ("Conv", "FusedConv")]) == len(depthwise)


def test_ultraface_keeps_only_its_detection_head_in_float(tmp_path: Path) -> None:
    report = compiled("ultraface").report
    impossible = {operator.kind for operator in report.in_float if "faster" not in operator.reason}
    assert impossible == {"Exp", "Div", "Sub"}, "the box decoding"
    assert report.macs_quantized > 0.85
    everything = compiled("ultraface", ALL_INTEGER)
    assert {operator.kind for operator in everything.report.in_float} == {"Sub"}, "of two activations"
    left = optimized(everything.model, tmp_path).float_nodes
    assert not [node.op_type for node in left if "Conv" in node.op_type or "Pool" in node.op_type]


def test_ultraface_finds_the_same_faces() -> None:
    real, quantized = outcome("ultraface")
    assert zoo.MODELS["ultraface"].agreement(real.answers, quantized.answers) > 90
    assert real.sqnr(quantized) > 35


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_matmul_by_a_constant_runs_in_integers(name: str, tmp_path: Path) -> None:
    model = compiled(name).model
    linear = [node for node in model.graph if node.op_type == "MatMul" and _is_constant(node.inputs[1])]
    assert linear
    assert not [graph.describe(node) for node in linear if qdq.read(node.inputs[1]) is None]
    found = optimized(model, tmp_path)
    constants = {tensor.name for tensor in found.graph.initializer}
    matmuls = [node for node in found.graph.node if node.op_type in ("MatMul", "FusedMatMul")]
    assert not [node.name for node in matmuls if node.input[1] in constants]


def _is_constant(value: Any) -> bool:
    return graph.constant_tensor(value) is not None or (qdq.read(value) is not None and _from_weight(value))


def _from_weight(value: Any) -> bool:
    found = qdq.read(value)
    return found is not None and graph.constant_tensor(found.source) is not None


def test_the_mask_of_minilm_stays_in_float_and_says_why() -> None:
    report = compiled("minilm").report
    masked = [operator for operator in report.in_float if operator.kind == "Add" and "mask" in operator.reason]
    assert len(masked) == 6, "one Add of the mask in each of the six layers"
    assert all(operator.kind in ("Add", "Softmax", "Mul") for operator in report.in_float if "mask" in operator.reason)


def test_the_report_counts_what_is_quantized() -> None:
    report = compiled("squeezenet1.1", ALL_INTEGER).report
    assert report.quantized["Conv"] == 26
    assert report.macs_quantized == 1.0
    assert 0.2 < report.bytes_after / report.bytes_before < 0.3
