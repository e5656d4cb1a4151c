"""Activations spelled out become one operator."""

from __future__ import annotations

import math
import sys

import numpy as np
import onnx
import pytest
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import files, graph
from qcomp.calibration.observers import Statistics
from qcomp.passes.clean_up import CleanUp
from qcomp.passes.fuse_activations import FuseActivations

seeds = st.integers(0, 2**16)
halves = st.sampled_from(["of x", "behind", "of the sum", "of both terms"])


class Spelling:
    """Writes products and sums by numbers in a random order, and with the number or its inverse."""

    def __init__(self, seed: int) -> None:
        self.b = small.Builder(seed)
        self.x = self.b.input("x", ["N", 5, 8])

    def of_two(self, kind: str, first: str, second: str) -> str:
        return self.b.op(kind, *((first, second) if self.b.rng.integers(2) else (second, first)))

    def number(self, number: float) -> str:
        return self.b.constant(np.full((1,) * self.b.rng.integers(3), number, np.float32))

    def times(self, value: str, number: float) -> str:
        if self.b.rng.integers(2):
            return self.b.op("Div", value, self.number(1 / number))
        return self.of_two("Mul", value, self.number(number))

    def plus(self, value: str, number: float) -> str:
        return self.of_two("Add", value, self.number(number))

    def cube(self, square: bool) -> str:
        if square:
            return self.of_two("Mul", self.x, self.b.op("Mul", self.x, self.x))
        return self.b.op("Pow", self.x, self.number(3.0))

    def product(self, function: str, half: str) -> str:
        """``x * (function + 1) / 2``"""
        if half == "of both terms":
            return self.of_two("Mul", self.x, self.plus(self.times(function, 0.5), 0.5))
        total = self.plus(function, 1.0)
        if half == "of the sum":
            return self.of_two("Mul", self.times(total, 0.5), self.x)
        if half == "of x":
            return self.of_two("Mul", self.times(self.x, 0.5), total)
        return self.times(self.of_two("Mul", self.x, total), 0.5)

    def erf(self, factor: float = math.sqrt(0.5)) -> str:
        return self.b.op("Erf", self.times(self.x, factor))

    def tanh(self, square: bool, cubic: float = 0.044715) -> str:
        inner = self.of_two("Add", self.x, self.times(self.cube(square), cubic))
        return self.b.op("Tanh", self.times(inner, math.sqrt(2 / math.pi)))

    def clip(self, source: str, high: float = 6.0) -> str:
        return self.b.op("Clip", source, self.b.constant(0.0), self.b.constant(high))

    def model(self, result: str, *others: str) -> onnx.ModelProto:
        self.b.op("Identity", result, name="y")
        return self.b.model("y", *others)


def fuse(proto: onnx.ModelProto, *, changed: bool = True):
    """The nodes behind the pass, but for the Identity; results are equal, and a second run does nothing."""
    model = files.load(proto)
    inputs = {name: 4 * array for name, array in small.feeds(model, 3).items()}
    before = small.run(model, inputs)
    assert FuseActivations().run(model, Statistics()) is changed
    assert not FuseActivations().run(model, Statistics())
    graph.verify(model)
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    return [node for node in model.graph if node.op_type != "Identity"]


def only(nodes):
    assert len(nodes) == 1
    return nodes[0].op_type, {name: attr.value for name, attr in nodes[0].attributes.items()}


@settings(deadline=None, max_examples=60)
@given(seed=seeds, half=halves)
def test_gelu_of_erf(seed, half):
    s = Spelling(seed)
    assert only(fuse(s.model(s.product(s.erf(), half)))) == ("Gelu", {})


@settings(deadline=None, max_examples=60)
@given(seed=seeds, half=halves, square=st.booleans())
def test_gelu_of_tanh(seed, half, square):
    s = Spelling(seed)
    assert only(fuse(s.model(s.product(s.tanh(square), half)))) == ("Gelu", {"approximate": "tanh"})


@pytest.mark.parametrize("half", ["of x", "behind"])
def test_gelu_of_tanh_with_x_outside_the_brackets(half):
    s = Spelling(0)
    square = s.times(s.b.op("Mul", s.x, s.x), 0.044715)
    argument = s.of_two("Mul", s.times(s.x, math.sqrt(2 / math.pi)), s.plus(square, 1.0))
    assert only(fuse(s.model(s.product(s.b.op("Tanh", argument), half)))) == ("Gelu", {"approximate": "tanh"})


@settings(deadline=None, max_examples=60)
@given(seed=seeds, sixth=st.sampled_from(["of x", "behind", "of the clip", "before the clip"]))
def test_hard_swish_of_clip(seed, sixth):
    s = Spelling(seed)
    shifted = s.plus(s.x, 3.0)
    clip = s.clip(s.times(shifted, 1 / 6), 1.0) if sixth == "before the clip" else s.clip(shifted)
    if sixth == "behind":
        result = s.times(s.of_two("Mul", clip, s.x), 1 / 6)
    elif sixth == "of x":
        result = s.of_two("Mul", s.times(s.x, 1 / 6), clip)
    else:
        result = s.of_two("Mul", s.x, s.times(clip, 1 / 6) if sixth == "of the clip" else clip)
    assert only(fuse(s.model(result))) == ("HardSwish", {})


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_hard_swish_of_hard_sigmoid(seed):
    s = Spelling(seed)
    result = s.of_two("Mul", s.x, s.b.op("HardSigmoid", s.x, alpha=1 / 6, beta=0.5))
    assert only(fuse(s.model(result))) == ("HardSwish", {})


@pytest.mark.parametrize("attributes", [{}, {"alpha": 1 / 6, "beta": 0.4}, {"alpha": 0.17}, {"alpha": 0.0}])
def test_another_hard_sigmoid_stays(attributes):
    s = Spelling(0)
    proto = s.model(s.of_two("Mul", s.x, s.b.op("HardSigmoid", s.x, **attributes)))
    assert "HardSwish" not in [n.op_type for n in fuse(proto, changed=False)]


@pytest.mark.parametrize("function", ["erf", "tanh", "clip"])
def test_other_constants_stay(function, caplog):
    s = Spelling(1)
    if function == "clip":
        result = s.times(s.b.op("Mul", s.x, s.clip(s.plus(s.x, 3.1))), 1 / 6)
    else:
        result = s.product(s.erf(0.70712) if function == "erf" else s.tanh(False, 0.0448), "of x")
    with caplog.at_level("INFO"):
        fuse(s.model(result), changed=False)
    assert f"its argument is not that of {'HardSwish' if function == 'clip' else 'Gelu'}" in caplog.text


@pytest.mark.parametrize("bounds", [(1.0, 6.0), (-1.0, 6.0), (0.0, np.inf), (0.0, 0.0), (0.0,)])
def test_other_bounds_stay(bounds):
    s = Spelling(1)
    clip = s.b.op("Clip", s.plus(s.x, 3.0), *map(s.b.constant, bounds))
    fuse(s.model(s.times(s.b.op("Mul", s.x, clip), 1 / 6)), changed=False)


@pytest.mark.parametrize("number", [0.0, np.inf, 3.5])
@pytest.mark.parametrize("kind", ["Mul", "Div", "Pow"])
def test_numbers_that_make_no_polynomial_stay(kind, number):
    s = Spelling(1)
    cube = s.b.op(kind, s.cube(False) if kind != "Pow" else s.x, s.b.constant(number))
    inner = s.b.op("Add", s.x, s.b.op("Mul", cube, s.b.constant(0.044715)))
    tanh = s.b.op("Tanh", s.b.op("Mul", inner, s.b.constant(math.sqrt(2 / math.pi))))
    assert not FuseActivations().run(files.load(s.model(s.product(tanh, "of x"))), Statistics())


@pytest.mark.parametrize("half", ["of x", "behind"])
def test_an_x_that_is_scaled_itself(half):
    s = Spelling(1)
    s.x = s.b.op("Mul", s.x, s.b.constant(3.0))
    assert [n.op_type for n in fuse(s.model(s.product(s.erf(), half)))] == ["Mul", "Gelu"]


def test_an_argument_divided_by_a_sum_stays():
    s = Spelling(1)
    erf = s.b.op("Erf", s.b.op("Div", s.x, s.plus(s.x, 2**0.5)))
    assert not FuseActivations().run(files.load(s.model(s.product(erf, "of x"))), Statistics())


def test_float64_stays():
    b = small.Builder()
    x = b.op("Cast", b.input("x", ["N", 5, 8]), to=onnx.TensorProto.DOUBLE)
    half, root, one = (b.constant(np.array([n], np.float64).astype("f4")) for n in (0.5, 2**0.5, 1.0))
    half, root, one = (b.op("Cast", c, to=onnx.TensorProto.DOUBLE) for c in (half, root, one))
    total = b.op("Add", b.op("Erf", b.op("Div", x, root)), one)
    b.op("Cast", b.op("Mul", b.op("Mul", x, half), total), name="y", to=onnx.TensorProto.FLOAT)
    model = files.load(b.model("y"))
    CleanUp().run(model, Statistics())
    assert not FuseActivations().run(model, Statistics())


RESULTS_THAT_STAY = {
    "no factor": lambda s, total: s.b.op("Mul", s.x, total),
    "another factor": lambda s, total: s.times(s.b.op("Mul", s.x, total), 0.25),
    "something else for x": lambda s, total: s.times(s.b.op("Mul", s.b.op("Relu", s.x), total), 0.5),
    "x squared": lambda s, total: s.times(s.b.op("Mul", s.b.op("Mul", s.x, s.x), total), 0.5),
    "divided by x": lambda s, total: s.times(s.b.op("Div", total, s.x), 0.5),
    "times itself": lambda s, total: s.times(s.b.op("Mul", total, total), 0.5),
    "a vector": lambda s, total: s.b.op("Mul", s.b.op("Mul", s.x, total), s.b.constant(np.full(8, 0.5, np.float32))),
}


@pytest.mark.parametrize("result", RESULTS_THAT_STAY.values(), ids=RESULTS_THAT_STAY)
def test_other_results_stay(result):
    s = Spelling(2)
    fuse(s.model(result(s, s.plus(s.erf(), 1.0))), changed=False)


def test_a_tanh_of_its_own_and_relu6_stay():
    s = Spelling(4)
    fuse(s.model(s.b.op("Mul", s.clip(s.x), s.b.op("Tanh", s.x))), changed=False)


@pytest.mark.parametrize("kind", ["Div", "Erf", "Add"])
@pytest.mark.parametrize("reader", ["output", "operator"])
def test_what_others_read_stays(kind, reader, caplog):
    b = small.Builder()
    x = b.input("x", ["N", 5, 8])
    inner = {"Div": b.op("Div", x, b.constant(2**0.5))}
    inner["Erf"] = b.op("Erf", inner["Div"])
    inner["Add"] = b.op("Add", inner["Erf"], b.constant(1.0))
    b.op("Mul", b.op("Mul", b.constant(0.5), x), inner["Add"], name="y")
    other = inner[kind] if reader == "output" else b.op("Relu", inner[kind])
    with caplog.at_level("INFO"):
        fuse(b.model("y", other), changed=False)
    assert f"{inner[kind]!r} is read elsewhere too" in caplog.text


def test_what_a_subgraph_reads_stays():
    s = Spelling(5)
    erf = s.erf()
    gelu = s.product(erf, "behind")
    branches = {name: small.Builder() for name in ("then_branch", "else_branch")}
    graphs = {name: b.graph([b.op("Relu", erf, name=f"{name}_y")], name) for name, b in branches.items()}
    s.b.op("If", s.b.constant(np.array(True)), name="chosen", **graphs)
    assert "Gelu" not in [n.op_type for n in fuse(s.model(gelu, "chosen"), changed=False)]


def test_a_product_in_a_subgraph_stays():
    s = Spelling(5)
    half_sum, then, other = s.times(s.plus(s.erf(), 1.0), 0.5), small.Builder(), small.Builder()
    then.op("Mul", s.x, half_sum, name="then_y")
    other.op("Identity", s.x, name="else_y")
    condition = s.b.constant(np.array(True))
    branches = {"then_branch": then.graph(["then_y"], "then"), "else_branch": other.graph(["else_y"], "else")}
    s.b.op("If", condition, name="y", **branches)
    fuse(s.b.model("y"), changed=False)


def test_a_constant_that_adds_dimensions_stays(caplog):
    s = Spelling(6)
    total = s.b.op("Add", s.erf(), s.b.constant(np.ones((1, 1, 1, 1), np.float32)))
    with caplog.at_level("INFO"):
        fuse(s.model(s.b.op("Mul", s.times(s.x, 0.5), total)), changed=False)
    assert "ranks" in caplog.text


def test_an_opset_without_gelu():
    s = Spelling(8)
    model = files.load(s.model(s.product(s.erf(), "of x")))
    model.graph.opset_imports[""] = 19
    assert not FuseActivations().run(model, Statistics())


def test_one_behind_another_and_a_graph_output():
    proto = chain(3)
    nodes = fuse(proto)
    assert [n.op_type for n in nodes] == ["Gelu"] * 3
    assert nodes[-1].outputs[0].name == proto.graph.output[0].name
    assert nodes[-1].name == proto.graph.node[-1].name


def test_its_work_grows_linearly():
    few, many = (calls(chain(blocks)) for blocks in (10, 40))
    assert many <= 5 * few


def chain(blocks: int) -> onnx.ModelProto:
    """Gelus one behind the other."""
    b = small.Builder()
    x = b.input("x", ["N", 5, 8])
    for _ in range(blocks):
        total = b.op("Add", b.op("Erf", b.op("Div", x, b.constant(2**0.5))), b.constant(1.0))
        x = b.op("Mul", b.op("Mul", x, total), b.constant(0.5))
    return b.model(x)


def calls(proto: onnx.ModelProto) -> int:
    """How many functions the pass calls: a measure without a clock."""
    model, count = files.load(proto), 0

    def tally(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        FuseActivations().run(model, Statistics())
    finally:
        sys.setprofile(None)
    return count
