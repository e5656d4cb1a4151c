"""Graphs whose operators take Q/DQ pairs, each in a way of its own."""

from __future__ import annotations

import numpy as np
import small_graphs as small
from onnx import TensorProto, helper


def image(b, channels=3):
    return b.input("x", ["N", channels, 8, 8])


def ints(b, *values):
    return b.constant(np.array(values, np.int64))


def clip(b, x, low, high):
    return b.op("Clip", x, *("" if v is None else b.constant(v) for v in (low, high)), name="y")


# Each builds a graph with the output y (or those it gives back) that ONNX Runtime runs in integers throughout.


def conv_bn_relu(b):
    b.op("Relu", b.batch_norm(b.conv(image(b), 3, 8, pads=[1] * 4), 8), name="y")


def relu6(b):
    clip(b, b.conv(image(b), 3, 8), 0.0, 0.5)


def hard_tanh(b):
    clip(b, b.conv(image(b), 3, 8), -0.5, 0.5)


def clip_above_zero(b):
    clip(b, b.conv(image(b), 3, 8), 1.0, 6.0)


def clip_below_zero(b):
    clip(b, b.conv(image(b), 3, 8), -6.0, -1.0)


def clip_without_greatest(b):
    clip(b, b.conv(image(b), 3, 8), -0.3, None)


def clip_without_least(b):
    clip(b, b.conv(image(b), 3, 8), None, 0.3)


def clip_without_bounds(b):
    clip(b, b.conv(image(b), 3, 8), None, None)


def clip_far_beyond_the_data(b):
    clip(b, b.conv(image(b), 3, 8), 0.0, 600.0)


def clip_with_bounds_crossed(b):
    clip(b, b.conv(image(b), 3, 8), 2.0, 1.0)


def relu_beside_its_input_in_a_concat(b):
    x = image(b)
    positive, signed = b.op("Relu", b.conv(x, 3, 4)), b.conv(x, 3, 4)
    b.op("Concat", positive, signed, axis=1, name="y")


def relu_of_a_sum(b):
    x = image(b)
    b.op("Relu", b.op("Add", b.conv(x, 3, 4), b.conv(x, 3, 4)), name="y")


def relu_whose_input_others_read(b):
    c = b.conv(image(b), 3, 4, pads=[1] * 4)
    b.op("Add", b.conv(b.op("Relu", c), 4, 4, pads=[1] * 4), c, name="y")


def relu_of_the_input(b):
    b.op("Relu", b.conv(b.op("Relu", image(b)), 3, 4), name="y")


def relu_of_the_input_that_others_read(b):
    x = image(b)
    b.op("Add", b.op("Relu", x), x, name="y")


def relu_twice(b):
    b.op("Relu", b.op("Relu", b.conv(image(b), 3, 4)), name="y")


def clip_of_relu(b):
    clip(b, b.op("Relu", b.conv(image(b), 3, 4)), 0.3, 1.0)


def clip_of_relu_of_pad(b):
    clip(b, b.op("Relu", b.op("Pad", image(b), ints(b, 0, 0, 1, 1, 0, 0, 1, 1))), 0.3, 1.0)


def clip_outside_its_input(b):
    clip(b, b.op("Relu", b.op("Add", image(b), "x")), -1.0, -0.5)


def two_clamps_of_one_conv(b):
    c = b.conv(image(b), 3, 4)
    b.op("Relu", c, name="z")
    clip(b, c, -0.5, 0.5)
    return "y", "z"


def relu_of_a_max_pool(b):
    b.op("Relu", b.op("MaxPool", b.conv(image(b), 3, 4), kernel_shape=[2, 2], strides=[2, 2]), name="y")


def relu_of_a_concat(b):
    x = image(b)
    b.op("Relu", b.op("Concat", b.conv(x, 3, 4), b.conv(x, 3, 4), axis=1), name="y")


def relu_that_is_an_output_others_read(b):
    b.op("Conv", b.op("Relu", b.conv(image(b), 3, 4), name="r"), b.random(4, 4, 3, 3), name="y")
    return "r", "y"


def output_in_the_middle(b):
    b.op("Conv", b.op("Conv", image(b), b.random(4, 3, 3, 3), name="c"), b.random(4, 4, 3, 3), name="y")
    return "c", "y"


def output_before_its_relu(b):
    b.op("Relu", b.op("Conv", image(b), b.random(4, 3, 3, 3), name="c"), name="y")
    return "c", "y"


def value_beside_itself(b):
    c = b.conv(image(b), 3, 4)
    b.op("Concat", c, c, axis=1, name="y")


def split_and_sum(b):
    c = b.conv(image(b), 3, 8)
    s, t = b.ops("Split", c, names=("s", "t"), axis=1, num_outputs=2)
    b.op("Add", b.conv(s, 4, 4, pads=[1] * 4), t, name="y")


def relu_of_a_part(b):
    s, t = b.ops("Split", b.conv(image(b), 3, 8), names=("s", "t"), axis=1, num_outputs=2)
    b.op("Add", b.op("Relu", s), t, name="y")


def parts_as_outputs(b):
    return b.ops("Split", b.conv(image(b), 3, 8), names=("s", "t"), axis=1, num_outputs=2)


def classifier(b):
    x = b.op("MaxPool", b.op("Relu", b.conv(image(b), 3, 8)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Flatten", b.op("GlobalAveragePool", b.conv(x, 8, 8)))
    b.op("Gemm", b.op("Relu", b.op("Gemm", x, b.random(6, 8), b.random(6), transB=1)), b.random(6, 5), name="y")


def padded_pool(b):
    x = b.op("Pad", b.conv(image(b), 3, 8), ints(b, 0, 0, 1, 1, 0, 0, 1, 1), b.constant(0.0))
    b.op("AveragePool", x, kernel_shape=[2, 2], name="y")


def reflected_pool(b):
    x = b.op("Pad", b.op("Relu", b.conv(image(b), 3, 8)), ints(b, 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    b.op("AveragePool", x, kernel_shape=[2, 2], name="y")


def padded_output(b):
    b.op("Pad", b.conv(image(b), 3, 8), ints(b, 0, 0, 1, 1, 0, 0, 1, 1), name="y")


def weights_shared_by_two_convs(b):
    x, weight, bias = image(b, 4), b.random(4, 4, 3, 3), b.random(4)
    c = b.op("Conv", x, weight, bias, pads=[1] * 4)
    b.op("Conv", b.op("Mul", c, b.constant(30.0)), weight, bias, name="y")


def gemm_with_factors(b):
    x = b.input("x", ["N", 16])
    b.op("Gemm", x, b.random(8, 16), b.random(1, 8), transB=1, beta=0.5, alpha=2.0, name="y")


def rows_of_static_batch(b):
    x = b.input("x", [2, 5, 16])
    x = b.op("Relu", b.op("Add", b.random(8), b.op("MatMul", x, b.random(16, 8))))
    b.op("MatMul", x, b.random(8, 4), name="y")


def rows_of_rank_two(b):
    x = b.op("Add", b.op("MatMul", b.input("x", ["N", 16]), b.random(16, 8)), b.random(8))
    b.op("MatMul", b.op("Relu", x), b.random(8, 4), name="y")


def matmul_of_activations(b):
    x = b.input("x", ["N", 5, 16])
    k = b.op("Transpose", b.op("MatMul", x, b.random(16, 16)), perm=[0, 2, 1])
    b.op("Softmax", b.op("MatMul", x, k), axis=-1, name="y")


def matmul_by_a_vector(b):
    b.op("MatMul", b.input("x", ["N", 5, 6]), b.random(6), name="y")


def constant_times_activation(b):
    b.op("MatMul", b.random(4, 5), b.input("x", ["N", 5, 6]), name="y")


def constant_operands(b):
    k = b.random(4, 1, 1)
    b.op("Mul", b.constant(0.25), b.op("Mul", b.op("Add", b.op("Sigmoid", b.conv(image(b), 3, 4)), k), k), name="y")


def depthwise(b):
    b.op("Conv", image(b, 8), b.random(8, 1, 3, 3), b.random(8), group=8, name="y")


def swish(b):
    c = b.conv(image(b), 3, 4)
    b.op("Mul", b.op("LeakyRelu", c, alpha=0.1), b.op("Sigmoid", c), name="y")


def sliced_and_transposed(b):
    x = b.op("Slice", b.conv(image(b), 3, 4), ints(b, 1), ints(b, 3), ints(b, 2))
    b.op("Transpose", b.op("AveragePool", x, kernel_shape=[2, 2]), perm=[0, 2, 3, 1], name="y")


def reshaped_by_a_computed_shape(b):
    c = b.conv(image(b), 3, 4)
    shape = b.op("Concat", b.op("Gather", b.op("Shape", c), ints(b, 0)), ints(b, -1), axis=0)
    b.op("Gemm", b.op("Reshape", c, shape), b.random(144, 5), name="y")


def nearest_resize(b):
    scales, modes = b.constant(np.array([1, 1, 2, 2], "f4")), {"mode": "nearest", "nearest_mode": "floor"}
    b.op("Resize", b.conv(image(b), 3, 4), "", scales, coordinate_transformation_mode="asymmetric", name="y", **modes)


def one_dimension(b):
    b.op("Relu", b.op("Conv", b.input("x", ["N", 3, 18]), b.random(4, 3, 3), b.random(4)), name="y")


def dynamic_sizes(b):
    b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv(b.input("x", ["N", 3, "H", "W"]), 3, 4))), name="y")


def strange_names(b):
    x = b.input("x/ö'\"q", ["N", 3, 8, 8])
    b.op("Relu", b.op("Conv", x, b.random(4, 3, 3, 3, name='w"/ü'), name="a b/'c'"), name="日本")
    return ("日本",)


FUSED = {
    f.__name__: f
    for f in (
        *(conv_bn_relu, relu6, hard_tanh, clip_above_zero, clip_below_zero, clip_without_greatest),
        *(clip_without_least, clip_without_bounds, clip_far_beyond_the_data, clip_with_bounds_crossed),
        *(relu_beside_its_input_in_a_concat, relu_of_a_sum, relu_whose_input_others_read, relu_of_the_input),
        *(relu_of_the_input_that_others_read, relu_twice, clip_of_relu, two_clamps_of_one_conv, relu_of_a_max_pool),
        *(clip_of_relu_of_pad, clip_outside_its_input),
        *(relu_of_a_concat, relu_that_is_an_output_others_read, output_in_the_middle, output_before_its_relu),
        *(value_beside_itself, split_and_sum, relu_of_a_part, parts_as_outputs, classifier, padded_pool),
        *(reflected_pool, padded_output, weights_shared_by_two_convs, gemm_with_factors, rows_of_static_batch),
        *(rows_of_rank_two, matmul_of_activations, matmul_by_a_vector, constant_times_activation, constant_operands),
        *(depthwise, swish, sliced_and_transposed, reshaped_by_a_computed_shape, nearest_resize, one_dimension),
        *(dynamic_sizes, strange_names),
    )
}


# Those in which some operator stays in float.


def float_reader(b):
    c = b.conv(image(b), 3, 4)
    b.op("Add", b.op("Asinh", c), b.conv(c, 4, 4, pads=[1] * 4), name="y")


def float_reader_of_the_input(b):
    x = image(b)
    b.op("Add", b.op("Asinh", x), b.conv(x, 3, 3, pads=[1] * 4), name="y")


def pad_with_ones(b):
    x = b.op("Pad", b.conv(image(b), 3, 8), ints(b, 0, 0, 1, 1, 0, 0, 1, 1), b.constant(1.0))
    b.op("AveragePool", x, kernel_shape=[2, 2], name="y")


def branch_that_captures(b):
    c = b.op("Relu", b.conv(image(b), 3, 4))
    then, other = small.Builder(5), small.Builder(6)
    then.op("Neg", c, name="then_y")
    other.op("Identity", c, name="else_y")
    cond = b.op("Greater", b.op("ReduceSum", b.conv(c, 4, 4), keepdims=0), b.constant(0.0))
    y = b.op("If", cond, then_branch=then.graph(["then_y"], "then"), else_branch=other.graph(["else_y"], "else"))
    b.op("Add", y, b.random(4, 1, 1), name="y")


def computed_bound(b):
    x = image(b)
    b.op("Clip", b.conv(x, 3, 4), "", b.op("ReduceMax", x, keepdims=0), name="y")


def computed_weight(b):
    x = b.input("x", [2, 3, 8, 8])
    b.op("Conv", x, b.op("Reshape", b.op("Sin", x), ints(b, 16, 3, 8, 1)), name="y")


def rows_of_dynamic_batch(b):
    x = b.op("Add", b.op("MatMul", b.input("x", ["N", 5, 16]), b.random(16, 8)), b.random(8))
    b.op("MatMul", b.op("Relu", x), b.random(8, 4), name="y")


def steep_elu(b):
    b.op("Conv", b.op("Elu", b.conv(image(b), 3, 4), alpha=4.0), b.random(4, 4, 3, 3), name="y")


def linear_resize(b):
    scales = b.constant(np.array([1, 1, 2, 2], "f4"))
    b.op("Resize", b.conv(image(b), 3, 4), "", scales, mode="linear", name="y")


def pool_with_indices(b):
    c, _ = b.ops("MaxPool", b.conv(image(b), 3, 8), names=("p", "i"), kernel_shape=[2, 2], strides=[2, 2])
    b.op("Relu", c, name="y")
    return "y", helper.make_tensor_value_info("i", TensorProto.INT64, None)


def unread_part(b):
    s, _ = b.ops("Split", b.conv(image(b), 3, 8), names=("s", ""), axis=1, num_outputs=2)
    b.op("Conv", s, b.random(4, 4, 3, 3), name="y")


MIXED = {
    f.__name__: f
    for f in (
        *(float_reader, float_reader_of_the_input, pad_with_ones, branch_that_captures, computed_bound),
        *(computed_weight, rows_of_dynamic_batch, steep_elu, linear_resize, pool_with_indices, unread_part),
    )
}
GRAPHS = FUSED | MIXED


def build(function, seed=1):
    b = small.Builder(seed)
    outputs = function(b)
    return b.model(*(outputs or ("y",)))
