"""GlobalAveragePool and depthwise Conv in place of AveragePool and ReduceMean."""

from __future__ import annotations

import numpy as np
import pytest
import small_graphs as small

from qcomp import files, graph
from qcomp.calibration.observers import Statistics
from qcomp.passes.lower_average_pool import LowerAveragePool


def lowered(proto, *, changed=True):
    model = files.load(proto)
    inputs = small.feeds(model, 3)
    before = small.run(model, inputs)
    assert LowerAveragePool().run(model, Statistics()) is changed
    graph.verify(model)
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    assert not LowerAveragePool().run(model, Statistics())
    return small.kinds(model)


@pytest.mark.parametrize("shape", [("N", 3, 5, 7), (2, 3, 9), ("N", 3, 2, 3, 4)])
def test_average_pool_over_everything(shape):
    b = small.Builder()
    b.op("AveragePool", b.input("x", shape), kernel_shape=list(shape[2:]), name="y")
    assert lowered(b.model("y")) == ["GlobalAveragePool"]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((5, 6), {}),
        ((3, 3), {"strides": [2, 1]}),
        ((2, 2), {"dilations": [2, 1]}),
        ((5, 7), {"pads": [1, 0, 0, 0], "count_include_pad": 1}),
        ((2, 3), {"pads": [1, 1, 0, 2], "count_include_pad": 1, "strides": [2, 2]}),
    ],
)
@pytest.mark.parametrize("shape", [("N", 3, 5, 7), ("N", 3, "H", 7)])
def test_other_pools_become_depthwise_convolutions(kernel, attributes, shape):
    if "H" in shape:
        kernel = (2, kernel[1])
    b = small.Builder()
    b.op("AveragePool", b.input("x", shape), kernel_shape=list(kernel), name="y", **attributes)
    assert lowered(b.model("y")) == ["Conv"]


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        (("N", 3, 5, 7), {"pads": [1, 0, 0, 0]}),
        (("N", 3, 5, 7), {"ceil_mode": 1, "strides": [2, 2]}),
        (("N", "C", 5, 7), {}),
    ],
)
def test_average_pools_that_stay(shape, attributes, caplog):
    b = small.Builder()
    b.op("AveragePool", b.input("x", shape), kernel_shape=[2, 2], name="y", **attributes)
    with caplog.at_level("INFO"):
        assert lowered(b.model("y"), changed=False) == ["AveragePool"]
    assert "not lowered" in caplog.text


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, -2]])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 18])
def test_reduce_mean_over_the_spatial_axes(axes, keepdims, opset):
    b = small.Builder()
    x = b.input("x", ("N", 3, "H", 7))
    if opset < 18:
        b.op("ReduceMean", x, axes=axes, keepdims=keepdims, name="y")
    else:
        b.op("ReduceMean", x, b.constant(np.array(axes, np.int64)), keepdims=keepdims, name="y")
    assert lowered(b.model("y", opset=opset)) == ["GlobalAveragePool", *([] if keepdims else ["Flatten"])]


@pytest.mark.parametrize("part", ["centred", "Pow", "Mul"])
@pytest.mark.parametrize("shape", [("N", 3, 5), ("N", 3, 5, 7)])
def test_the_means_of_a_normalization_stay(part, shape):
    b = small.Builder()
    x = b.input("x", shape)
    axes = b.constant(np.arange(2, len(shape)))
    if part == "centred":
        b.op("Sub", x, b.op("ReduceMean", x, axes), name="y")
    else:
        square = b.op("Pow", x, b.constant(np.float32(2))) if part == "Pow" else b.op("Mul", x, x)
        b.op("ReduceMean", square, axes, name="y")
    assert "ReduceMean" in lowered(b.model("y"), changed=False)


@pytest.mark.parametrize("axes", [[1, 2], [3], [0, 2, 3]])
def test_other_means_stay(axes):
    b = small.Builder()
    b.op("ReduceMean", b.input("x", ("N", 3, 5, 7)), b.constant(np.array(axes, np.int64)), name="y")
    assert lowered(b.model("y"), changed=False) == ["ReduceMean"]
