from __future__ import annotations

import itertools
import sys

import numpy as np
import onnx
import pytest
import quantized
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qcomp import graph, operators, qdq
from qcomp.calibration.observers import Statistics
from qcomp.passes.choose_precision import ChoosePrecision
from qcomp.precision import costs, minimum_cut
from qcomp.precision.costs import Cost
from qcomp.units import bias_add


def ints(b, *values):
    return b.constant(np.array(values, np.int64))


def chosen(proto, *batches, **options):
    """The reasons of the operators that stay in float, by output name."""
    model = quantized.loaded(proto)
    step = ChoosePrecision(**options)
    stats = quantized.statistics(model, step.observe(model), *(batches or (small.feeds(model, 0, 8),)))
    step.run(model, stats)
    return {str(n.outputs[0].name): qdq.why_float(n) for n in model.graph}


def two_convs():
    b = small.Builder(0)
    c = b.op("Relu", b.op("Conv", b.input("x", ["N", 3, 8, 8]), b.random(4, 3, 3, 3), name="head/c"), name="r")
    b.op("Softmax", b.op("Conv", c, b.random(4, 4, 3, 3), name="d"), name="y")
    return b.model("y")


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("head/*", {"head/c", "r"}),
        ("node_d", {"d"}),
        ("d", {"d"}),
        ("Conv", {"head/c", "r", "d"}),
        ("Soft*", {"y"}),
        ("r", {"head/c", "r"}),
        ("nothing", set()),
        ("conv", set()),
    ],
)
def test_keep_matches_names_types_and_outputs(pattern, kept):
    reasons = chosen(two_convs(), keep=(pattern,), by="all")
    assert {name for name, reason in reasons.items() if reason} == kept
    assert {reason for reason in reasons.values() if reason} <= {f"kept by {pattern!r}"}


def test_keep_is_literal_before_it_is_a_pattern():
    b = small.Builder(0)
    b.op("Conv", b.input("x", ["N", 3, 8, 8]), b.random(4, 3, 3, 3), name="block[0]")
    reasons = chosen(b.model("block[0]"), keep=("block[0]",), by="all")
    assert reasons["block[0]"] == "kept by 'block[0]'"


def large(mask):
    """Scores whose masked positions, by a mask of 1 and 0, become very negative; the data masks nothing."""
    b = small.Builder(0)
    x = b.op("MatMul", b.input("x", ["N", 4, 6]), b.random(6, 4), name="scores")
    y = mask(b, x, b.input("m", ["N", 4]))
    b.op("Softmax", y, name="p")
    b.op("MatMul", "p", b.op("Sigmoid", b.op("MatMul", "x", b.random(6, 6))), name="y")
    return b.model("y")


LOWEST = float(np.finfo(np.float32).min)


def multiplied(b, x, m):
    masked = b.op("Sub", b.constant(1.0), b.op("Unsqueeze", m, ints(b, 1)))
    return b.op("Add", x, b.op("Mul", masked, b.constant(LOWEST)))


def selected(b, x, m):
    cond = b.op("Cast", b.op("Unsqueeze", m, ints(b, 1)), to=TensorProto.BOOL)
    return b.op("Where", cond, x, b.constant(-1e4))


def selected_apart(b, x, m):
    cond = b.op("Cast", m, to=TensorProto.BOOL)
    mask = b.op("Where", cond, b.constant(0.0), b.constant(-np.float32(np.inf)))
    return b.op("Add", x, b.op("Unsqueeze", mask, ints(b, 1)))


def expanded(b, x, m):
    mask = b.op("Mul", b.op("Sub", b.constant(1.0), m), b.constant(-1e9))
    mask = b.op("Cast", b.op("Unsqueeze", mask, ints(b, 1)), to=TensorProto.FLOAT)
    return b.op("Add", b.op("Expand", mask, b.op("Shape", x)), x)


@pytest.mark.parametrize("mask", [multiplied, selected, selected_apart, expanded])
def test_masks_are_recognised_though_the_data_masks_nothing(mask):
    proto = large(mask)
    feeds = {"x": small.feeds(quantized.loaded(proto), 0, 4)["x"], "m": np.ones((4, 4), "f4")}
    reasons = chosen(proto, feeds, by="all")
    after = quantized.quantize(proto, feeds)
    adds = [name for name in reasons if name.startswith(("add", "where"))]
    assert adds
    assert all("mask" in reasons[name] or "no integer form" in reasons[name] for name in adds)
    assert reasons["scores"] is None
    masked = feeds | {"m": np.tile(np.array([1, 1, 0, 0], "f4"), (4, 1))}
    assert quantized.sqnr(quantized.loaded(proto), after, masked)["y"] > 25


def test_a_sum_whose_operand_is_smaller_than_a_step_stays_in_float():
    b = small.Builder(0)
    c = b.conv(b.input("x", ["N", 3, 8, 8]), 3, 4)
    b.op("Add", c, b.op("Mul", b.op("Sigmoid", c), b.constant(1e-3)), name="small")
    b.op("Add", c, b.op("Mul", b.op("Sigmoid", c), b.constant(1e-1)), name="fair")
    reasons = chosen(b.model("small", "fair"), by="all")
    assert reasons["small"] == "one operand is smaller than one quantization step of the other"
    assert reasons["fair"] is None


def test_reasons_of_shape():
    b = small.Builder(0)
    x = b.input("x", ["N", 3, 8, 8])
    pads = ints(b, 0, 0, 1, 1, 0, 0, 1, 1)
    b.op("Pad", x, pads, b.constant(2.0), name="pad")
    b.op("Pad", x, pads, b.constant(0.0), name="zero_pad")
    b.op("Resize", x, "", b.constant(np.array([1, 1, 2, 2], "f4")), mode="linear", name="linear")
    b.op("Clip", x, "", b.op("ReduceMax", x, keepdims=0), name="clip")
    b.op("ReduceMax", x, keepdims=0, name="max")
    names = ("pad", "zero_pad", "linear", "clip", "max")
    reasons = chosen(b.model(*names), by="all")
    assert [reasons[name] for name in names] == [
        "it pads with a value that is not 0",
        None,
        "Resize interpolates",
        "its bounds are not constant",
        "ReduceMax has no integer form",
    ]


def test_a_convolution_before_a_clip_of_computed_bounds_has_its_integer_form():
    b = small.Builder(0)
    x = b.input("x", ["N", 3, 8, 8])
    b.op("Clip", b.op("Conv", x, b.random(4, 3, 3, 3), name="c"), "", b.op("ReduceMax", x, keepdims=0), name="y")
    reasons = chosen(b.model("y"), by="all")
    assert reasons["c"] is None
    assert reasons["y"] == "its bounds are not constant"


def test_operators_of_another_domain_stay_in_float():
    b = small.Builder(0)
    c = b.conv(b.input("x", ["N", 3, 8, 8]), 3, 4)
    b.nodes.append(helper.make_node("Relu", [c], ["y"], domain="elsewhere"))
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(b.graph(["y"]), opset_imports=imports)
    model.ir_version = 10
    loaded = quantized.loaded(model)
    ChoosePrecision(by="all").run(loaded, Statistics())
    assert qdq.why_float(list(loaded.graph)[-1]) == "Relu has no integer form"


def test_a_lone_sum_between_float_operators_stays():
    b = small.Builder(0)
    x = b.input("x", ["N", 64, 32, 32])
    b.op("Asinh", b.op("Add", b.op("Asinh", x), b.op("Sin", x), name="a"), name="y")
    assert "no faster" in chosen(b.model("y"))["a"]


def test_a_convolution_that_pays_runs_in_integers_and_a_tiny_one_does_not(monkeypatch):
    b = small.Builder(0)
    b.op("Conv", b.input("x", ["N", 8, 8, 8]), b.random(8, 8, 3, 3), name="large")
    b.op("Conv", b.op("Asinh", "large", name="erf"), b.random(2, 8, 1, 1), name="tiny")
    set_prices(monkeypatch, {"x": (0, 0, 30), "large": (200, 50, 30), "tiny": (20, 5, 10), "erf": (0, 0, 10)})
    reasons = chosen(b.model("tiny"))
    assert reasons["large"] is None
    assert "no faster" in reasons["tiny"]


def test_an_operator_without_kernel_stays():
    b = small.Builder(0)
    c = b.op("Conv", b.input("x", ["N", 32, 16, 16]), b.random(32, 32, 3, 3), name="c")
    b.op("ConvTranspose", c, b.random(32, 4, 3, 3), name="y")
    reasons = chosen(b.model("y"))
    assert reasons["c"] is None
    assert reasons["y"] == "ONNX Runtime has no integer kernel for ConvTranspose"


def test_a_second_run_changes_nothing_and_a_quantized_model_is_left_alone():
    model = quantized.loaded(two_convs())
    step = ChoosePrecision()
    stats = quantized.statistics(model, step.observe(model), small.feeds(model, 0, 8))
    assert step.run(model, stats)
    assert not step.run(model, stats)
    after = quantized.quantize(two_convs())
    assert not step.run(after, stats)


# The minimum cut against all assignments.


def set_prices(patch, prices):
    """Let operators and values cost ``(float, integer, conversion)`` by output name, and nothing be preferred."""
    patch.setattr(costs, "of", lambda node: Cost(*map(float, prices[node.outputs[0].name][:2])))
    patch.setattr(costs, "convert", lambda value: float(prices[value.name][2]))
    patch.setattr(minimum_cut, "PREFERENCE", 1.0)
    patch.setattr(minimum_cut, "PREFERENCE_FIXED", 0.0)
    patch.setattr(minimum_cut, "PREFERENCE_OTHERS", 0.0)


@st.composite
def priced_graph(draw):
    """A small graph of operators with and without integer form, and random prices by output name."""
    b = small.Builder(draw(st.integers(0, 99)))
    values = [b.input("x", ["N", 4, 4])]
    kinds = ("MatMul", "MatMul+Add", "Add", "Relu", "Sigmoid", "Transpose", "Asinh", "Concat", "Add+Relu", "Gram")
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=7)):
        x, other = (values[draw(st.integers(0, len(values) - 1))] for _ in range(2))
        values.append(priced(b, kind, x, other))
    outputs = list(dict.fromkeys([values[-1], draw(st.sampled_from(values[1:]))]))
    prices = st.integers(0, 50)
    made = [o for n in b.nodes for o in n.output]
    table = {name: (draw(prices), draw(prices), draw(prices)) for name in ["x", *made]}
    return b.model(*outputs), table


def priced(b, kind, x, other):
    match kind:
        case "MatMul":
            return b.op("MatMul", x, b.random(4, 4))
        case "MatMul+Add":
            return b.op("Add", b.op("MatMul", x, b.random(4, 4)), b.random(4))
        case "Gram":
            return b.op("MatMul", x, other)
        case "Add+Relu":
            return b.op("Relu", b.op("Add", x, other))
        case "Add":
            return b.op("Add", x, other)
        case "Concat":
            return b.op("MatMul", b.op("Concat", x, other, axis=2), b.random(8, 4))
        case "Transpose":
            return b.op("Transpose", x, perm=[0, 2, 1])
    return b.op(kind, x)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(priced_graph())
def test_no_other_choice_is_cheaper(case):
    proto, prices = case
    model = quantized.loaded(proto)
    with pytest.MonkeyPatch.context() as patch:
        set_prices(patch, prices)
        ChoosePrecision().run(model, Statistics())
    integer = {id(n) for n in model.graph if operators.find(n) is not None and qdq.why_float(n) is None}
    units = [frozenset(u) for u in linear_units(model)]
    assert all(u <= integer or not u & integer for u in units)
    best = min(
        price(model, prices, frozenset().union(*chosen_units))
        for count in range(len(units) + 1)
        for chosen_units in itertools.combinations(units, count)
    )
    assert price(model, prices, frozenset(integer)) == best


def linear_units(model):
    """Sets of nodes, by id, that run in integers together: a MatMul, its bias, and the Relu that alone reads it."""
    units: dict[int, set[int]] = {}
    for node in model.graph:
        if operators.find(node) is None:
            continue
        owner = node
        before = [v.producer() for v in node.inputs if v.producer() is not None]
        if node.op_type == "Add":
            owner = next((p for p in before if bias_add(p) is node), node)
        if node.op_type == "Relu" and before and graph.only_user(before[0].outputs[0]) is node:
            owner = next((n for n in model.graph if id(before[0]) in units.get(id(n), ())), node)
            owner = node if before[0].op_type in ("Relu", "Transpose", "Concat") else owner
        units.setdefault(id(owner), set()).add(id(node))
    return list(units.values())


def price(model, prices, integer):
    """What the graph costs with these operators in integers: each operator, and each conversion once a value."""
    total = sum(prices[n.outputs[0].name][id(n) in integer] for n in model.graph if operators.find(n) is not None)
    for value in [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]:
        maker = value.producer()
        readers = {id(user) in integer for user, _ in value.uses()} | ({False} if value.is_graph_output() else set())
        made = maker is not None and id(maker) in integer
        free = made and (maker.op_type == "MatMul" or any(bias_add(p) is maker for p in makers(maker)))
        free = free or (made and maker.op_type == "Relu" and relu_of_matmul(maker))
        if (made and False in readers and not free) or (not made and True in readers):
            total += prices[value.name][2]
    return total


def makers(node):
    return [p for v in node.inputs if (p := v.producer()) is not None]


def relu_of_matmul(node):
    before = node.inputs[0].producer()
    if before is None or graph.only_user(before.outputs[0]) is not node:
        return False
    return before.op_type == "MatMul" or any(bias_add(p) is before for p in makers(before))


def chain(length):
    b = small.Builder(0)
    x = b.input("x", ["N", 4, 4])
    for i in range(length // 5):
        y = b.op("Add", b.op("MatMul", x, b.random(4, 4)), b.random(4))
        x = b.op("Add", x, b.op("Asinh" if i % 3 else "Relu", b.op("Sigmoid", y)))
    return b.model(x)


def work(length):
    """How many functions the pass calls on a chain."""
    model, count = quantized.loaded(chain(length)), 0

    def tally(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        ChoosePrecision().run(model, Statistics())
    finally:
        sys.setprofile(None)
    return count


def test_its_work_grows_nearly_linearly():
    assert work(2000) <= 6 * work(500)


def test_the_model_itself_is_unchanged_but_for_the_notes():
    model = quantized.loaded(two_convs())
    before = onnx.ModelProto.FromString(small.serialized(model))
    ChoosePrecision(by="all", keep=("Conv",)).run(model, Statistics())
    after = onnx.ModelProto.FromString(small.serialized(model))
    for node in after.graph.node:
        del node.metadata_props[:]
    assert after == before


def test_a_volume_of_few_channels_stays_in_float():
    """ONNX Runtime gathers volumes one value at a time for its integer kernel."""
    b = small.Builder(0)
    first = b.op("Conv", b.input("x", ["N", 3, 8, 32, 32]), b.random(16, 3, 3, 3, 3), name="first")
    many = b.op("MaxPool", first, kernel_shape=[2, 4, 4], strides=[2, 4, 4])
    second = b.op("Conv", b.op("Conv", many, b.random(64, 16, 1, 1, 1)), b.random(64, 64, 1, 1, 1), name="second")
    b.op("Softmax", second, name="y")
    reasons = chosen(b.model("y"))
    assert reasons["first"] is not None
    assert reasons["second"] is None


def test_a_mean_that_is_nothing_beside_what_it_averages_stays_in_float():
    """ONNX Runtime refuses to run such a pool."""
    b = small.Builder(0)
    pooled = b.op("GlobalAveragePool", b.op("Relu", b.input("x", ["N", 3, 8, 8])), name="mean")
    proto = b.model(b.op("Softmax", b.op("Conv", pooled, b.random(4, 3, 1, 1)), name="y"))
    sparse = np.full((2, 3, 8, 8), -1.0, np.float32)
    usual = {"x": sparse.copy()}
    usual["x"][:, :, 0, 0] = 1.0
    assert chosen(proto, usual, by="all")["mean"] is None
    b = small.Builder(0)
    pooled = b.op("GlobalAveragePool", b.input("x", ["N", 3, 8, 8]), name="mean")
    proto = b.model(b.op("Softmax", b.op("Conv", pooled, b.random(4, 3, 1, 1)), name="y"))
    balanced = np.where(np.indices(sparse.shape)[3] % 2, 1.0, -1.0).astype(np.float32)
    balanced[:, :, 0, 0] += 1e-6
    assert "nothing beside" in chosen(proto, {"x": balanced}, by="all")["mean"]
