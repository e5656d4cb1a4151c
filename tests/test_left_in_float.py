"""What has no integer form: refused by its own reason, or left in float where that is allowed, in both forms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small
from onnx import TensorProto, helper

from qcomp import qdq, runtime
from qcomp.compiler import compile as compile_model
from qcomp.errors import OptionError, UnsupportedError
from qcomp.passes.dyadic_rescale import DyadicRescale
from qcomp.rescale.linear import ACCUMULATOR

FORMS = ("qlinear", "integer")
every_form = pytest.mark.parametrize("form", FORMS)
STATIC, DYNAMIC = ["N", 4, 12, 12], ["N", 4, "H", "W"]
SAMPLES = {"x": np.random.default_rng(0).normal(size=(8, 4, 12, 12)).astype("f4")}
EVERYTHING = quantized.WITHOUT_CHOICE
"""Every operator that has an integer form, so that the backend meets it."""


def mean(b, y):
    return b.op("GlobalAveragePool", y)


def mean_of_lines(b, y):
    return b.op("ReduceMean", y, b.constant(np.array([2])))


def layer_norm(b, y):
    return b.op("LayerNormalization", y, b.constant(np.float32(2)), axis=2)


def resize(b, y):
    return b.op("Resize", y, "", b.constant(np.array([1, 1, 1.3, 1.7], "f4")), mode="nearest")


def crop(b, y):
    roi = b.constant(np.array([0, 0, 0.1, 0.1, 1, 1, 0.8, 0.8], "f4"))
    scales = b.constant(np.array([1, 1, 1, 2], "f4"))
    how = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 5.0}
    return b.op("Resize", y, roi, scales, mode="nearest", **how)


def average_with_padding_left_out(b, y):
    return b.op("AveragePool", y, kernel_shape=[3, 3], pads=[1] * 4)


def average_beyond_the_end(b, y):
    return b.op("AveragePool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)


def grouped_transpose(b, y):
    return b.op("ConvTranspose", y, b.random(16, 8, 2, 2), strides=[2, 2], group=2)


def dilated_transpose(b, y):
    return b.op("ConvTranspose", y, b.random(16, 16, 2, 2), strides=[2, 2], dilations=[2, 2])


def pool_with_indices(b, y):
    pooled, where = b.ops("MaxPool", y, names=("pooled", "where"), kernel_shape=[2, 2], strides=[2, 2])
    return b.op("Where", b.op("Greater", where, b.constant(np.array(90))), pooled, b.op("Neg", pooled))


CASES = {
    mean: (DYNAMIC, "the number of elements it averages is not known"),
    mean_of_lines: (DYNAMIC, "the number of elements it averages is not known"),
    layer_norm: (DYNAMIC, "the length of its rows is not known"),
    resize: (DYNAMIC, "its scales give no whole sizes"),
    crop: (STATIC, "Resize crops"),
    average_with_padding_left_out: (STATIC, "leaves its padding out of the average"),
    average_beyond_the_end: (STATIC, "its last windows reach beyond its input"),
    grouped_transpose: (STATIC, "its channels are grouped"),
    dilated_transpose: (STATIC, "its kernel is dilated"),
    pool_with_indices: (STATIC, "the indices it gives are read"),
}
every_case = pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)


def build(function, shape=None):
    b = small.Builder(1)
    y = b.op("Relu", b.conv(b.input("x", shape or CASES[function][0]), 4, 16, pads=[1] * 4))
    b.op("Identity", function(b, b.conv(y, 16, 16, pads=[1] * 4)), name="y")
    return b.model("y")


def to(form):
    return f"onnxruntime{{form={form}}}"


def allowing_floats(function, form, **options):
    return compile_model(build(function), SAMPLES, to=to(form), allow_float=True, **options)


def kinds(model):
    return {node.op_type for node in model.graph}


@every_form
@every_case
def test_integers_alone_are_refused_with_the_reason(function, form):
    with pytest.raises(UnsupportedError, match=CASES[function][1]) as caught:
        compile_model(build(function), SAMPLES, to=to(form))
    assert "--allow-float" in str(caught.value)
    assert "QuantizeLinear" not in str(caught.value)


@every_form
@every_case
def test_what_cannot_be_lowered_stays_in_float_where_that_is_allowed(function, form):
    made = allowing_floats(function, form, passes=EVERYTHING)
    assert CASES[function][1] in " ".join(operator.reason for operator in made.report.in_float)
    assert made.report.error.least > 25
    assert kinds(made.model) & {"QLinearConv", "MatMulInteger"}
    assert not DyadicRescale(allow_float=True).run(made.model, None)


@every_case
def test_what_stays_in_float_is_the_same_in_both_forms(function):
    made = [allowing_floats(function, form, passes=EVERYTHING).model for form in FORMS]
    first, second = (runtime.session(model, optimize=False).run(None, SAMPLES)[0] for model in made)
    np.testing.assert_array_equal(first, second)


def test_a_mean_that_stays_is_counted_as_float_and_fused_as_without_the_form():
    made, without = allowing_floats(mean, "qlinear"), compile_model(build(mean), SAMPLES)
    assert "GlobalAveragePool" in without.report.quantized
    assert "GlobalAveragePool" not in made.report.quantized
    assert made.report.macs_quantized == without.report.macs_quantized == 1.0
    assert "QLinearGlobalAveragePool" in quantized.fused(made.model)


def test_products_that_stay_in_float_are_counted():
    report = allowing_floats(grouped_transpose, "qlinear", passes=EVERYTHING).report
    assert 0 < report.macs_quantized < 1
    assert "ConvTranspose" not in report.quantized


@every_form
def test_whole_factors_on_dynamic_sizes(form):
    def upsampled(b, y):
        return b.conv(b.op("Resize", y, "", b.constant(np.array([1, 1, 2, 3], "f4")), mode="nearest"), 16, 3)

    model = build(upsampled, DYNAMIC)
    made = compile_model(model, SAMPLES, to=to(form)).model
    other = {"x": np.random.default_rng(1).normal(size=(3, 4, 7, 9)).astype("f4")}
    sessions = [runtime.session(ir.from_proto(model)), *(runtime.session(made, optimize=o) for o in (True, False))]
    wanted, found, plain = (session.run(None, other)[0] for session in sessions)
    assert found.shape == wanted.shape == (3, 3, 12, 25)
    assert quantized.ratio(wanted, found) > 25
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("form", ["qdq", *FORMS])
def test_what_a_branch_adds_is_no_bias(form):
    b = small.Builder(3)
    product = b.op("MatMul", b.input("x", ["N", 6]), b.random(6, 5))
    bias, bodies = b.constant(np.arange(5.0)), []
    for kind in ("Add", "Sub"):
        node = helper.make_node(kind, [product, bias] if kind == "Add" else ["zero", "zero"], [kind], f"node_{kind}")
        bodies.append(
            helper.make_graph([node], kind, [], [helper.make_tensor_value_info(kind, TensorProto.FLOAT, None)])
        )
    b.constant(np.zeros((1, 5)), "zero")
    chosen = b.op("Greater", b.op("ReduceMax", "x", keepdims=0), b.constant(np.float32(0)))
    b.op("If", chosen, then_branch=bodies[0], else_branch=bodies[1], name="y")
    data = {"x": np.random.default_rng(0).normal(size=(8, 6)).astype("f4")}
    made = compile_model(
        b.model("y"), data, to=to(form), allow_float=form != "qdq", passes=f"{EVERYTHING},correct-bias"
    )
    wanted = runtime.session(ir.from_proto(b.model("y"))).run(None, data)[0]
    assert quantized.ratio(wanted, runtime.session(made.model).run(None, data)[0]) > 25


def test_no_bound_is_noted_that_is_not_proved():
    """Of products of two activations over a dynamic length."""
    b = small.Builder(0)
    x = b.input("x", ["N", 5, "L"])
    b.op("MatMul", x, b.op("Transpose", x, perm=[0, 2, 1]), name="y")
    data = {"x": np.random.default_rng(0).normal(size=(4, 5, 6)).astype("f4")}
    made = quantized.quantize(b.model("y"), data, line=f"{EVERYTHING},dyadic-rescale")
    (product,) = (node for node in made.graph if node.op_type == "QLinearMatMul")
    assert ACCUMULATOR not in product.metadata_props


@every_form
def test_weights_only_have_no_integer_form(form):
    with pytest.raises(OptionError, match=r"--activations none.*form=qdq"):
        compile_model(build(mean), None, activations="none", to=to(form))


@every_form
def test_the_guard_keeps_layers_in_float(form):
    with pytest.raises(OptionError, match=r"--guard.*--allow-float"):
        compile_model(build(crop), SAMPLES, guard_db=30.0, to=to(form))


def test_the_reason_is_noted_on_what_is_not_lowered():
    found = {
        n.op_type: n.metadata_props.get(qdq.NOT_LOWERED) for n in quantized.quantize(build(grouped_transpose)).graph
    }
    assert "grouped" in found["ConvTranspose"]
