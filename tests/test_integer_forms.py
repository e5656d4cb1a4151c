"""Every integer form of a network computes the same integers, bit for bit: random graphs, and corners found by them.

The judge is `integer_oracle`, which knows the definitions and neither ONNX Runtime's kernels nor the expansion.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import integer_oracle as oracle
import numpy as np
import onnx_ir as ir
import pytest
import quantized
import random_integer_graphs as graphs
import small_graphs as small
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from qcomp import graph, integer_only, pipeline, runtime
from qcomp.rescale.linear import ACCUMULATOR

SEEDS, BLOCK = 500, 20
OPERATOR_SEEDS = 40


@dataclass(frozen=True)
class Forms:
    """One network in three forms, with samples and what the oracle makes of them."""

    name: str
    qdq: ir.Model
    integer: ir.Model
    expanded: ir.Model
    feeds: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    @property
    def outputs(self) -> list[str]:
        return [str(v.name) for v in self.integer.graph.outputs]

    def check(self, names, found, by: str) -> None:
        """Each of the values found is the oracle's."""
        for name, got in zip(names, found, strict=True):
            wanted = self.values[name]
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), f"{self.name}: {name} by {by}"
            differing = np.count_nonzero(got != wanted)
            assert not differing, f"{self.name}: {differing} of {got.size} integers of {name} differ by {by}"


def forms(case: graphs.Case, name: str) -> Forms:
    qdq = quantized.quantize(case.model, case.calibration, line=case.line)
    integer = lowered(qdq, "dyadic-rescale")
    expanded = lowered(integer, "expand-integer")
    return Forms(name, qdq, integer, expanded, case.feeds, oracle.compute(integer, case.feeds))


def lowered(model: ir.Model, line: str) -> ir.Model:
    result = model.clone()
    pipeline.run(result, pipeline.parse(line), pipeline.Hooks())
    quantized.check(result)
    return result


def the_integer_graph_in_onnx_runtime(f: Forms) -> None:
    """Every value where nothing is optimized, the outputs where all is."""
    names = [str(v.name) for node in f.integer.graph for v in node.outputs]
    plain = runtime.session(runtime.with_outputs(f.integer, names), optimize=False)
    f.check(names, plain.run(names, f.feeds), "ONNX Runtime")
    f.check(f.outputs, runtime.session(f.integer).run(f.outputs, f.feeds), "ONNX Runtime, optimized")


def the_expanded_graph_in_onnx_runtime(f: Forms) -> None:
    for optimize in (False, True):
        found = runtime.session(f.expanded, optimize=optimize).run(f.outputs, f.feeds)
        f.check(f.outputs, found, f"ONNX Runtime of the expanded graph, optimize={optimize}")


class GatherElements(OpRun):
    """onnx's own knows at most 64 elements."""

    def _run(self, data, indices, axis=0):
        return (np.take_along_axis(data, indices, axis),)


def the_expanded_graph_in_the_reference(f: Forms) -> None:
    flat = ir.to_proto(integer_only.inlined(f.expanded))
    f.check(f.outputs, ReferenceEvaluator(flat, new_ops=[GatherElements]).run(f.outputs, f.feeds), "onnx.reference")


def only_the_ends_are_floats(f: Forms) -> None:
    made = [v for node in f.integer.graph for v in node.outputs]
    floats = [v for v in made if v.dtype is None or v.dtype.is_floating_point()]
    assert all(graph.is_op(v.producer(), "DequantizeLinear") and v.is_graph_output() for v in floats), f.name
    assert integer_only.why_not(f.expanded) is None, f.name


def each_operator_means_what_the_qdq_graph_says(f: Forms) -> None:
    """From the same integers, each float operator of the Q/DQ graph gives the same within one step."""
    found = beside_the_qdq_graph(f)
    for name, got in found.items():
        if name in f.outputs:
            f.check([name], [got], "the Q/DQ graph from the same integers")
        else:
            steps = np.abs(got.astype(int) - f.values[name]).max(initial=0)
            assert steps <= 1, f"{f.name}: {name} is {steps} steps off"


def beside_the_qdq_graph(f: Forms) -> dict[str, np.ndarray]:
    """What each operator of the Q/DQ graph makes of the integers of the oracle, by the name of the quantized value."""
    opened, names = cut_at_every_quantize(f.qdq)
    names = [*names, *f.outputs]
    given = {str(v.name) for v in opened.graph.inputs} - set(f.feeds)
    feeds = f.feeds | {name: f.values[name.removesuffix("_given")] for name in given}
    return dict(zip(names, runtime.session(opened, optimize=False).run(names, feeds), strict=True))


def cut_at_every_quantize(qdq: ir.Model) -> tuple[ir.Model, list[str]]:
    """Each quantized value (behind its Clip) is an output; who read it reads a new input, ``<name>_given``."""
    opened, names = qdq.clone(), []
    for node in tuple(opened.graph):
        if graph.is_op(node, "QuantizeLinear"):
            clip = graph.only_user(node.outputs[0])
            out = (clip if graph.is_op(clip, "Clip") else node).outputs[0]
            given = ir.Value(name=f"{out.name}_given", shape=out.shape, type=out.type)
            opened.graph.inputs.append(given)
            graph.redirect(out, given)
            opened.graph.outputs.append(out)
            names.append(str(out.name))
    return opened, names


CHECKS = (
    the_integer_graph_in_onnx_runtime,
    the_expanded_graph_in_onnx_runtime,
    the_expanded_graph_in_the_reference,
    only_the_ends_are_floats,
    each_operator_means_what_the_qdq_graph_says,
)
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)


@pytest.fixture(scope="module", params=range(0, SEEDS, BLOCK))
def block(request) -> list[Forms]:
    return [of_seed(seed) for seed in range(request.param, request.param + BLOCK)]


def of_seed(seed: int) -> Forms:
    try:
        return forms(graphs.case(seed), f"seed {seed}")
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise


@every_check
def test_random_graphs(check, block):
    for found in block:
        check(found)


def test_nearly_all_integers_are_those_of_the_qdq_graph(block):
    """Of 1000 results of operators less than 10 are one step off: a rule that is wrong by half a step shows."""
    pairs = [(got, f.values[name]) for f in block for name, got in beside_the_qdq_graph(f).items()]
    differing = sum(np.count_nonzero(got != wanted) for got, wanted in pairs)
    assert differing < 0.01 * sum(got.size for got, _ in pairs)


def test_the_random_graphs_are_of_every_kind():
    cases = [graphs.case(seed) for seed in range(SEEDS)]
    kinds = Counter(node.op_type for case in cases for node in case.model.graph.node)
    convs = [n for case in cases for n in case.model.graph.node if n.op_type == "Conv"]
    seen = Counter(a.name for n in convs for a in n.attribute if a.name in ("dilations", "strides") and max(a.ints) > 1)
    seen.update("group" for n in convs for a in n.attribute if a.name == "group" and a.i > 1)
    seen.update(word for case in cases for word in ("uint4", "int4", "per_channel=false") if f"={word}" in case.line)
    assert min(seen.values()) >= 20, seen
    wanted = (
        "Add ArgMax AveragePool Clip Concat Conv Elu Erf Exp Flatten Gelu Gemm GlobalAveragePool GlobalMaxPool "
        "HardSigmoid HardSwish LayerNormalization LeakyRelu MatMul MaxPool Mul PRelu Pad ReduceMean Relu Reshape "
        "Resize Sigmoid Slice Softmax Split Squeeze Tanh Transpose"
    )
    assert {kind: kinds[kind] for kind in wanted.split() if kinds[kind] < 10} == {}


@pytest.mark.parametrize("kind", graphs.OPERATORS)
def test_single_operators(kind):
    """Results half-way between integers, and large accumulators, which networks give seldom."""
    for seed in range(OPERATOR_SEEDS):
        proto, feeds = graphs.operator(kind, seed)
        model = ir.from_proto(proto)
        model.graph[0].metadata_props[ACCUMULATOR] = str(oracle.INT32)
        found = Forms(
            f"seed {seed}", model, model, lowered(model, "expand-integer"), feeds, oracle.compute(model, feeds)
        )
        the_integer_graph_in_onnx_runtime(found)
        the_expanded_graph_in_onnx_runtime(found)
        the_expanded_graph_in_the_reference(found)


# What random graphs found, or meet too seldom; each builds on an input [N, 4, 6, 6] and gives back the outputs.


def softmax_beside_values_below_zero(b, x):
    """One scale, whose zero point is not 0."""
    return b.op("Concat", x, b.op("Softmax", x), axis=1)


def upsampling_between_convolutions(b, x):
    """ONNX Runtime's transpose optimizer moves past the Resize."""
    sizes = b.constant(np.array([1, 1, 2, 2], "f4"))
    return b.conv(b.op("Resize", b.conv(x, 4, 5), "", sizes, mode="nearest"), 5, 3)


def resize_by_one(b, x):
    return b.op("Resize", x, "", b.constant(np.ones(4, "f4")), mode="nearest")


def unread_part_of_a_split(b, x):
    return b.ops("Split", x, b.constant(np.array([1, 3])), names=("unread", "read"), axis=1)[1]


def mean_over_all(b, x):
    rows = b.op("Reshape", x, b.constant(np.array([4, 4, 6, 6])))
    return b.op("ReduceMean", rows, b.constant(np.zeros(0, np.int64)))


def mean_over_nothing(b, x):
    return b.op("ReduceMean", b.conv(x, 4, 4), noop_with_empty_axes=1)


def mean_that_vanishes(b, x):
    """The range of Tanh is fixed, that of its mean is what was seen."""
    return b.op("GlobalAveragePool", b.op("Tanh", b.op("Mul", x, b.constant(1e-6))))


def mean_of_many(b, x):
    wide = b.op("Resize", x, "", b.constant(np.array([1, 1, 3, 4], "f4")), mode="nearest")
    return b.op("GlobalAveragePool", wide)


def steps_finer_than_the_accumulator(b, x):
    """Every accumulator but 0 saturates."""
    steep = b.op("Conv", b.op("Mul", x, b.constant(1e3)), b.constant(b.rng.normal(size=(3, 4, 1, 1)) * 1e3))
    return b.op("Clip", steep, b.constant(0.0), b.constant(6.0))


def three_spatial_sizes(b, x):
    cube = b.op("Reshape", x, b.constant(np.array([0, 2, 2, 6, 6])))
    return b.op("Relu", b.op("Conv", cube, b.random(3, 2, 2, 3, 3), b.random(3), pads=[0, 1, 0, 1, 1, 1]))


def constant_times_activation(b, x):
    return b.op("MatMul", b.random(5, 6), x)


def matrices_of_weights(b, x):
    return b.op("MatMul", x, b.random(4, 6, 5))


def sums_across(b, x):
    """Both operands are broadcast."""
    rows, columns = (b.op("ReduceMean", x, b.constant(np.array([axis]))) for axis in (2, 3))
    return b.op("Mul", b.op("Add", rows, columns), rows)


def many_products(b, x):
    """Accumulators beyond 2^24, which float32 rounds."""
    tiled = b.op("Tile", b.op("Flatten", b.op("Abs", x)), b.constant(np.array([1, 20])))
    return b.op("Gemm", tiled, b.constant(np.abs(b.rng.normal(size=(2880, 3)))))


def one_value_twice_in_a_product(b, x):
    """Behind what leaves it channels-last: Conv, MaxPool and Add."""
    y = b.conv(x, 4, 4, pads=[1] * 4)
    pooled = b.op("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4)
    parts = [b.op("MatMul", v, v) for v in (y, pooled, b.op("Add", y, pooled))]
    return b.op("Concat", *parts, axis=1)


CORNERS = (
    one_value_twice_in_a_product,
    softmax_beside_values_below_zero,
    upsampling_between_convolutions,
    resize_by_one,
    unread_part_of_a_split,
    mean_over_all,
    mean_over_nothing,
    mean_that_vanishes,
    mean_of_many,
    steps_finer_than_the_accumulator,
    three_spatial_sizes,
    constant_times_activation,
    matrices_of_weights,
    sums_across,
    many_products,
)


@pytest.fixture(scope="module", params=CORNERS, ids=lambda f: f.__name__)
def corner(request) -> Forms:
    b = small.Builder(0)
    model = b.model(request.param(b, b.input("x", ["N", 4, 6, 6])))
    samples, more = (b.rng.normal(size=(4, 4, 6, 6)).astype("f4") for _ in range(2))
    case = graphs.Case(model, {"x": samples}, {"x": 3 * more}, quantized.WITHOUT_CHOICE)
    return forms(case, request.param.__name__)


@every_check
def test_corners(check, corner):
    check(corner)
