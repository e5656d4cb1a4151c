"""A model of any opset computes the same at the working one."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from protos import FLOAT, const, f, info, model_of, node, on_ort, rows, y

from qcomp import files, graph, upgrade
from qcomp.errors import ModelError

BN = [const(n, abs(rows(3, seed=i)) + 0.5) for i, n in enumerate("sbmv")]
IMAGE, FLAT = rows(2, 3, 6, 6), rows(2, 3, 4)
UPGRADES = {
    "batch-norm-7": (7, [node("BatchNormalization", "x s b m v", epsilon=1e-2)], IMAGE, BN),
    "batch-norm-9": (9, [node("BatchNormalization", "x s b m v", momentum=0.5)], IMAGE, BN),
    "batch-norm-14": (14, [node("BatchNormalization", "x s b m v", training_mode=0)], IMAGE, BN),
    "clip-7": (7, [node("Clip", "x", min=-0.5, max=0.25)], IMAGE, []),
    "clip-7-min": (7, [node("Clip", "x", min=-0.5)], IMAGE, []),
    "clip-10-none": (10, [node("Clip", "x")], IMAGE, []),
    "clip-11": (11, [node("Clip", "x lo hi")], IMAGE, [const("lo", f(-0.1)), const("hi", f(0.2))]),
    "squeeze-11": (11, [node("Squeeze", "x", axes=[0, 2])], rows(1, 3, 1, 4), []),
    "squeeze-7-all": (7, [node("Squeeze", "x")], rows(1, 3, 1, 4), []),
    "unsqueeze-11": (11, [node("Unsqueeze", "x", axes=[0, 3])], FLAT, []),
    "reduce-mean-7": (7, [node("ReduceMean", "x", axes=[1, 2], keepdims=0)], IMAGE, []),
    "reduce-mean-13": (13, [node("ReduceMean", "x", axes=[-1])], IMAGE, []),
    "reduce-max-12": (12, [node("ReduceMax", "x", axes=[2, 3])], IMAGE, []),
    "reduce-l2-13": (13, [node("ReduceL2", "x", axes=[1])], IMAGE, []),
    "reduce-sum-11": (11, [node("ReduceSum", "x", axes=[1])], IMAGE, []),
    "reduce-sum-11-all": (11, [node("ReduceSum", "x")], IMAGE, []),
    "upsample-7": (7, [node("Upsample", "x", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")], IMAGE, []),
    "upsample-9": (9, [node("Upsample", "x z", mode="nearest")], IMAGE, [const("z", f([1, 1, 2, 3]))]),
    "upsample-9-linear": (9, [node("Upsample", "x z", mode="linear")], IMAGE, [const("z", f([1, 1, 2, 2]))]),
    "resize-10": (10, [node("Resize", "x z", mode="nearest")], IMAGE, [const("z", f([1, 1, 2, 2]))]),
    "resize-10-down": (10, [node("Resize", "x z", mode="nearest")], IMAGE, [const("z", f([1, 1, 0.5, 0.5]))]),
    "resize-10-linear": (10, [node("Resize", "x z", mode="linear")], IMAGE, [const("z", f([1, 1, 2, 2]))]),
    "resize-10-up": (10, [node("Resize", "x z", mode="nearest")], IMAGE, [const("z", f([1, 1, 1.4, 1.7]))]),
    "resize-10-less": (10, [node("Resize", "x z", mode="nearest")], IMAGE, [const("z", f([1, 1, 0.7, 0.6]))]),
    "resize-10-linear-less": (10, [node("Resize", "x z", mode="linear")], IMAGE, [const("z", f([1, 1, 0.7, 0.6]))]),
    "upsample-7-linear": (7, [node("Upsample", "x", scales=[1.0, 1.0, 2.0, 3.0], mode="linear")], IMAGE, []),
    "roi-align-10": (
        10,
        [node("RoiAlign", "x r i", output_height=3, output_width=3, spatial_scale=0.9)],
        IMAGE,
        [const("r", f([[0, 0, 4, 4], [1, 2, 5, 5]])), const("i", np.array([0, 1]))],
    ),
    "grid-sample-16": (
        16,
        [node("GridSample", "x g", mode="bilinear")],
        IMAGE,
        [const("g", np.clip(rows(2, 3, 3, 2), -1, 1))],
    ),
    "scatter-9": (9, [node("Scatter", "x i u")], rows(2, 3), [const("i", np.array([[1]])), const("u", f([[5]]))]),
    "lstm-7": (
        7,
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2)],
        FLAT,
        [const("w", rows(1, 8, 4)), const("r", rows(1, 8, 2))],
    ),
    "resize-11": (
        11,
        [node("Resize", "x e z", mode="linear", coordinate_transformation_mode="align_corners")],
        IMAGE,
        [const("e", f([])), const("z", f([1, 1, 2, 2]))],
    ),
    "resize-13-sizes": (
        13,
        [helper.make_node("Resize", ["x", "", "", "n"], ["y"], mode="cubic")],
        IMAGE,
        [const("n", np.array([2, 3, 9, 5]))],
    ),
    "pad-7": (7, [node("Pad", "x", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=1.5)], IMAGE, []),
    "pad-10-reflect": (10, [node("Pad", "x", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect")], IMAGE, []),
    "pad-11": (11, [node("Pad", "x p")], IMAGE, [const("p", np.array([0, 0, 1, 0, 0, 0, 0, 2]))]),
    "dropout-7": (7, [node("Dropout", "x", ratio=0.3)], IMAGE, []),
    "dropout-10": (10, [node("Dropout", "x", ratio=0.9)], IMAGE, []),
    "dropout-12": (12, [node("Dropout", "x r")], IMAGE, [const("r", f(0.5))]),
    "softmax-7": (7, [node("Softmax", "x")], FLAT, []),
    "softmax-11-flattens": (11, [node("Softmax", "x", axis=1)], IMAGE, []),
    "softmax-11-last": (11, [node("Softmax", "x", axis=-1)], FLAT, []),
    "softmax-11-zero": (11, [node("Softmax", "x", axis=0)], FLAT, []),
    "log-softmax-11": (11, [node("LogSoftmax", "x", axis=1)], FLAT, []),
    "flatten-7": (7, [node("Flatten", "x", axis=2)], IMAGE, []),
    "gemm-7": (
        7,
        [node("Gemm", "x w c", alpha=0.5, beta=2.0, transB=1)],
        rows(2, 4),
        [const("w", rows(5, 4)), const("c", rows(5))],
    ),
    "slice-9": (9, [node("Slice", "x", starts=[1], ends=[100], axes=[2])], IMAGE, []),
    "topk-9": (9, [helper.make_node("TopK", ["x"], ["y", "i"], k=2, axis=2)], FLAT, []),
    "split-11": (
        11,
        [helper.make_node("Split", ["x"], ["a", "c"], axis=2, split=[1, 3]), node("Concat", "c a", axis=2)],
        FLAT,
        [],
    ),
    "split-13-equal": (
        13,
        [helper.make_node("Split", ["x"], ["a", "c"], axis=2), node("Concat", "c a", axis=2)],
        FLAT,
        [],
    ),
    "max-pool-7": (7, [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], IMAGE, []),
    "average-pool-7": (7, [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4)], IMAGE, []),
    "prelu-7": (7, [node("PRelu", "x w")], IMAGE, [const("w", rows(3, 1, 1))]),
    "lrn-7": (7, [node("LRN", "x", size=3)], IMAGE, []),
    "instance-norm-7": (7, [node("InstanceNormalization", "x s b")], IMAGE, BN[:2]),
    "conv-transpose-7": (7, [node("ConvTranspose", "x w", strides=[2, 2])], IMAGE, [const("w", rows(3, 2, 3, 3))]),
    "group-norm-18": (
        18,
        [node("GroupNormalization", "x s b", num_groups=1)],
        IMAGE,
        [const("s", f([2])), const("b", f([1]))],
    ),
    "gelu-20": (20, [node("Gelu", "x", approximate="tanh")], IMAGE, []),
    "cast-7": (7, [node("Cast", "x", "c", to=TensorProto.INT32), node("Cast", "c", to=FLOAT)], IMAGE, []),
    "add-7-big": (7, [node("Add", "x w")], IMAGE, [const("w", rows(2, 3, 6, 6))]),
}


@pytest.mark.parametrize("name", UPGRADES)
def test_an_upgraded_model_computes_the_same(name):
    version, nodes, x, tensors = UPGRADES[name]
    proto = model_of(nodes, [info("x", FLOAT, ["N", *x.shape[1:]])], [y()], tensors, opset=version, ir_version=8)
    expected = on_ort(proto.SerializeToString(), {"x": x})[0]
    proto.graph.output[0].CopyFrom(y(shape=[None] * expected.ndim))
    before = proto.SerializeToString(deterministic=True)
    model = files.load(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert upgrade.opset(model) == upgrade.OPSET
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found = on_ort(model, {"x": x})[0]
    assert found.shape == expected.shape
    assert graph.rank(model.graph.outputs[0]) == expected.ndim
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_onnx_would_change_in_silence_is_refused():
    proto = model_of([node("Hardmax", "x", axis=1)], [info("x", FLOAT, ["N", 3, 4])], [y()], opset=11, ir_version=7)
    with pytest.raises(ModelError, match="onnx cannot upgrade Hardmax from opset 11"):
        files.load(proto)
    proto = model_of(
        [node("Scan", "x", num_scan_inputs=1, body=helper.make_graph([], "b", [], []))], [], [y()], opset=8
    )
    with pytest.raises(ModelError, match="Scan"):
        upgrade.upgrade(ir.from_proto(proto))


@pytest.mark.parametrize("version", range(7, 21))
def test_every_opset_is_upgraded(version):
    w, c = const("w", rows(5, 3, 3, 3)), const("c", rows(5))
    nodes = [node("Conv", "x w c", "a", pads=[1] * 4), node("Relu", "a", "r"), node("GlobalAveragePool", "r")]
    proto = model_of(nodes, [info("x", FLOAT, ["N", 3, 6, 6])], [y()], [w, c], opset=version, ir_version=7)
    model = files.load(proto)
    assert upgrade.opset(model) == upgrade.OPSET
    np.testing.assert_allclose(on_ort(model, {"x": IMAGE})[0], on_ort(proto.SerializeToString(), {"x": IMAGE})[0])
    assert graph.static_shape(model.graph.outputs[0]) == (None, 5, 1, 1)


@pytest.mark.parametrize("version", [9, 11])
def test_an_old_operator_inside_a_branch_computes_the_same(version):
    then = helper.make_graph([node("Softmax", "x", "t", axis=1)], "t", [], [info("t", FLOAT, None)])
    pair = [node("Unsqueeze", "x", "u", axes=[0]), node("Squeeze", "u", "e", axes=[0])]
    other = helper.make_graph(pair, "e", [], [info("e", FLOAT, None)])
    nodes = [
        node("ReduceMax", "x", "s", keepdims=0),
        node("Cast", "s", "c", to=TensorProto.BOOL),
        node("If", "c", then_branch=then, else_branch=other),
    ]
    proto = model_of(nodes, [info("x", FLOAT, ["N", 3, 4])], [y()], opset=version, ir_version=7)
    for x in (FLAT, np.zeros_like(FLAT)):
        expected = on_ort(proto.SerializeToString(), {"x": x})[0]
        np.testing.assert_allclose(on_ort(files.load(proto), {"x": x})[0], expected, rtol=1e-5)
