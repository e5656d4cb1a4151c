"""Reading models from strangers, upgrading them, and writing safely."""

import os

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import small_graphs as small
from onnx import TensorProto, helper, numpy_helper

from qcomp import files, graph
from qcomp.errors import ModelError, OutputError, QcompError

info = helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, tensors=(), *, opset=21, ir_version=10, domains=(), **more):
    body = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(body, opset_imports=imports, ir_version=ir_version, **more)


def identity(**more):
    return model_of([helper.make_node("Relu", ["x"], ["y"], name="r")], [info("x", FLOAT, ["N"])], [y()], **more)


def y(dtype=FLOAT, shape=None):
    return info("y", dtype, shape)


def on_ort(model, feeds):
    data = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options).run(None, feeds)


class TestRefuses:
    """Everything that is no model is refused in words."""

    def test_missing_and_folder(self, tmp_path):
        for path in (tmp_path / "missing.onnx", tmp_path):
            with pytest.raises(ModelError, match="no such file"):
                files.load(path)
        with pytest.raises(ModelError, match="cannot be read: File name too long"):
            files.load("m" * 5000)

    @pytest.mark.parametrize("suffix", [".onnx", "", ".json", ".txt", ".textproto", ".onnxtxt"])
    @pytest.mark.parametrize(
        "content",
        [b"", b"hello, this is text\n", b"{}", bytes(range(256)) * 20, b"\x00" * 100, b"\x08\x08", b"\xff" * 64],
        ids=["empty", "text", "json", "binary", "zeros", "header", "ff"],
    )
    def test_what_is_no_model(self, tmp_path, content, suffix):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not an ONNX"):
            files.load(path)

    def test_random_bytes(self, tmp_path):
        rng, path = np.random.default_rng(0), tmp_path / "m.onnx"
        for size in [*range(40), 1000, 10_000]:
            path.write_bytes(rng.bytes(size))
            with pytest.raises(ModelError):
                files.load(path)

    def test_truncated_and_damaged_models_never_crash(self, tmp_path):
        data, path = small.cnn(0).SerializeToString(), tmp_path / "m.onnx"
        rng = np.random.default_rng(1)
        cuts = [data[: len(data) * i // 40] for i in range(40)]
        for _ in range(150):
            spoiled = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                spoiled[place] = rng.integers(256)
            cuts.append(bytes(spoiled))
        refused = 0
        for content in cuts:
            path.write_bytes(content)
            try:
                files.load(path)
            except QcompError:
                refused += 1
        assert 40 <= refused < len(cuts)

    @pytest.mark.parametrize("version", [1, 6])
    def test_old_opsets(self, version):
        with pytest.raises(ModelError, match=f"opset {version} is too old .*opset 7 or newer"):
            files.load(identity(opset=version, ir_version=3))

    def test_a_cycle(self):
        nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
        nodes.append(helper.make_node("Relu", ["b"], ["y"]))
        with pytest.raises(ModelError, match="cycle"):
            files.load(model_of(nodes, [info("x", FLOAT, [1])], [y()]))

    def test_an_undefined_input_or_output(self):
        with pytest.raises(ModelError, match="nowhere"):
            files.load(model_of([helper.make_node("Relu", ["nowhere"], ["y"])], [info("x", FLOAT, [1])], [y()]))
        with pytest.raises(ModelError, match="nowhere"):
            files.load(
                model_of(
                    [helper.make_node("Relu", ["x"], ["y"])], [info("x", FLOAT, [1])], [info("nowhere", FLOAT, None)]
                )
            )

    def test_a_value_that_is_defined_twice(self):
        nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Exp", ["x"], ["y"])]
        with pytest.raises(ModelError, match="'y'"):
            files.load(model_of(nodes, [info("x", FLOAT, [1])], [y()]))

    def test_a_quantized_model(self):
        nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="q")]
        with pytest.raises(ModelError, match=r"DynamicQuantizeLinear 'q': the model is quantized already"):
            files.load(model_of(nodes, [info("x", FLOAT, [1])], [y(TensorProto.UINT8)]))


def external(location="w.bin", *, dims=(4,), offset=None, length=None, name="w"):
    tensor = TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def adding(tensor):
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], [info("x", FLOAT, [4])], [y()], [tensor])


def in_attribute(tensor):
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    return model_of(nodes, [info("x", FLOAT, [4])], [y()])


def in_custom_attribute(tensor):
    node = helper.make_node("Strange", ["x"], ["y"], domain="strange", table=tensor)
    return model_of([node], [info("x", FLOAT, [4])], [y()], domains=["strange"])


def in_list(tensor):
    node = helper.make_node("Strange", ["x"], ["y"], domain="strange", tables=[tensor])
    return model_of([node], [info("x", FLOAT, [4])], [y()], domains=["strange"])


def in_subgraph(tensor):
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["t"])], "b", [], [info("t", FLOAT, [4])], [tensor])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "e", [], [info("e", FLOAT, [4])])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]
    return model_of(nodes, [info("x", FLOAT, [4])], [y()])


def in_function(tensor):
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["a", "w"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 21)])
    node = helper.make_node("F", ["x"], ["y"], domain="local")
    return model_of([node], [info("x", FLOAT, [4])], [y()], domains=["local"], functions=[function])


PLACES = [adding, in_attribute, in_custom_attribute, in_list, in_subgraph, in_function]
places = pytest.mark.parametrize("place", PLACES, ids=[p.__name__ for p in PLACES])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's folder beside a secret; the working directory is elsewhere and has a decoy."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.full(4, 7, np.float32).tobytes())
    (elsewhere / "w.bin").write_bytes(np.full(4, 9, np.float32).tobytes())
    (home / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    monkeypatch.chdir(elsewhere)
    return home


class TestExternal:
    """Weights in other files."""

    @places
    def test_are_read_from_the_models_folder(self, folder, place):
        (folder / "m.onnx").write_bytes(place(external()).SerializeToString())
        model = files.load(folder / "m.onnx")
        tensors = [t for t in files._tensors(model) if t.size == 4]
        assert [t.numpy().tolist() for t in tensors] == [[0, 1, 2, 3]]
        proto = place(external())
        ours = ir.from_proto(proto)
        for tensor in files._tensors(ours):
            tensor.base_dir = folder
        assert [t.numpy().tolist() for t in files._tensors(files.load(ours)) if t.size == 4] == [[0, 1, 2, 3]]

    @places
    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            ({"location": "../secret.bin"}, "outside"),
            ({"location": "sub/../../secret.bin"}, "outside"),
            ({"location": "/etc/hostname"}, "outside"),
            ({"location": "link.bin"}, "outside"),
            ({"location": "gone.bin"}, "missing"),
            ({"location": ""}, "missing|malformed"),
            ({"location": "."}, "missing"),
            ({"location": "a" * 5000}, "missing"),
            ({"location": "loop.bin"}, "missing|outside"),
            ({"location": "w.bin", "dims": (5,)}, "too short"),
            ({"location": "w.bin", "offset": 4}, "too short"),
            ({"location": "w.bin", "offset": -4}, "too short|malformed"),
            ({"location": "w.bin", "offset": "x"}, "malformed"),
            ({"location": "w.bin", "length": 8}, "length is wrong"),
            ({"location": "w.bin", "length": -16}, "length is wrong|malformed"),
            ({"location": "w.bin", "length": 1 << 60}, "length is wrong"),
            ({"location": "w.bin", "dims": (1 << 40, 1 << 40)}, "too short|malformed"),
        ],
        ids=lambda x: "-".join(f"{k}={str(v)[:16]}" for k, v in x.items()) if isinstance(x, dict) else "",
    )
    def test_are_refused(self, folder, place, tensor, message):
        (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
        (folder / "loop.bin").symlink_to(folder / "loop.bin")
        (folder / "m.onnx").write_bytes(place(external(**tensor)).SerializeToString())
        with pytest.raises(ModelError, match=message):
            files.load(folder / "m.onnx")

    @places
    def test_of_a_model_in_memory_are_refused(self, folder, place):
        with pytest.raises(ModelError, match="lie in another file"):
            files.load(place(external()))

    @places
    def test_end_in_the_saved_model(self, folder, place, tmp_path):
        (folder / "m.onnx").write_bytes(place(external()).SerializeToString())
        model = files.load(folder / "m.onnx")
        (tmp_path / "out").mkdir()
        out = files.save(model, tmp_path / "out" / "m.onnx")
        assert out == [tmp_path / "out" / "m.onnx"]
        for leftover in folder.iterdir():
            leftover.unlink()
        again = files.load(out[0])
        assert [t.numpy().tolist() for t in files._tensors(again) if t.size == 4] == [[0, 1, 2, 3]]


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def const(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def node(kind, inputs, output="y", **attributes):
    return helper.make_node(kind, inputs.split(), [output], name=f"n_{output}", **attributes)


def f(array):
    return np.asarray(array, np.float32)


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
    assert files.opset(model) == files.OPSET
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
        files.upgrade(ir.from_proto(proto))


@pytest.mark.parametrize("version", range(7, 21))
def test_every_opset_is_upgraded(version):
    w, c = const("w", rows(5, 3, 3, 3)), const("c", rows(5))
    nodes = [node("Conv", "x w c", "a", pads=[1] * 4), node("Relu", "a", "r"), node("GlobalAveragePool", "r")]
    proto = model_of(nodes, [info("x", FLOAT, ["N", 3, 6, 6])], [y()], [w, c], opset=version, ir_version=7)
    model = files.load(proto)
    assert files.opset(model) == files.OPSET
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


class TestKeeps:
    """What a load must not lose."""

    def test_newer_opsets(self):
        assert files.opset(files.load(identity(opset=22))) == 22

    @pytest.mark.parametrize("version", [11, 17, 21])
    def test_operators_of_unknown_domains(self, version):
        nodes = [helper.make_node("Strange", ["x"], ["s"], domain="strange", a=1), node("Relu", "s")]
        proto = model_of(nodes, [info("x", FLOAT, ["N"])], [y()], opset=version, domains=["strange"], ir_version=8)
        model = files.load(proto)
        assert [(n.domain, n.op_type) for n in model.graph] == [("strange", "Strange"), ("", "Relu")]
        assert model.graph.opset_imports["strange"] == 1
        assert model.graph.node(0).attributes["a"].value == 1

    @pytest.mark.parametrize("version", [11, 21])
    def test_metadata(self, version):
        proto = identity(opset=version, ir_version=8, producer_name="p", doc_string="d", model_version=3)
        helper.set_model_props(proto, {"names": "cat,dog", "stride": "32"})
        model = files.load(proto)
        assert dict(model.metadata_props) == {"names": "cat,dog", "stride": "32"}
        assert (model.producer_name, model.doc_string, model.model_version) == ("p", "d", 3)

    @pytest.mark.parametrize("version", [11, 21])
    def test_an_initializer_that_is_a_graph_input_is_a_constant(self, version):
        inputs = [info("x", FLOAT, ["N", 3]), info("w", FLOAT, [3, 500])]
        proto = model_of(
            [node("MatMul", "x w")], inputs, [y()], [const("w", rows(3, 500))], opset=version, ir_version=3
        )
        model = files.load(proto)
        assert [v.name for v in model.graph.inputs] == ["x"]
        np.testing.assert_array_equal(graph.constant(model.graph.node(0).inputs[1]), rows(3, 500))

    @pytest.mark.parametrize("version", [13, 21])
    def test_functions_are_inlined_but_for_our_own(self, version):
        functions = [
            helper.make_function(d, "F", ["a"], ["b"], [node("Relu", "a", "b")], [helper.make_opsetid("", version)])
            for d in ("local", "qcomp")
        ]
        nodes = [
            helper.make_node("F", ["x"], ["h"], domain="local"),
            helper.make_node("F", ["h"], ["y"], domain="qcomp"),
        ]
        proto = model_of(
            nodes,
            [info("x", FLOAT, ["N"])],
            [y()],
            opset=version,
            domains=["local", "qcomp"],
            functions=functions,
            ir_version=8,
        )
        model = files.load(proto)
        assert [(n.domain, n.op_type) for n in model.graph] == [("", "Relu"), ("qcomp", "F")]
        assert [key[0] for key in model.functions] == ["qcomp"]
        assert on_ort(model, {"x": f([-1, 2])})[0].tolist() == [0, 2]

    def test_constants_become_initializers(self):
        nodes = [
            helper.make_node("Constant", [], ["a"], value_float=2.0),
            helper.make_node("Constant", [], ["b"], value_ints=[1, 2]),
            helper.make_node("Constant", [], ["c"], value=const("", rows(300))),
            node("Mul", "x a", "p"),
            node("Add", "p c", "q"),
            node("Unsqueeze", "q b"),
        ]
        model = files.load(model_of(nodes, [info("x", FLOAT, [300])], [y()]))
        assert small.kinds(model) == ["Mul", "Add", "Unsqueeze"]

    def test_strings_sequences_optionals_and_empty_tensors(self):
        words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])
        sequence = helper.make_tensor_sequence_value_info("seq", FLOAT, None)
        nodes = [
            helper.make_node("SequenceConstruct", ["x", "x"], ["seq"]),
            helper.make_node("Optional", ["x"], ["opt"]),
            helper.make_node("OptionalGetElement", ["opt"], ["got"]),
            helper.make_node("Concat", ["got", "nothing"], ["y"], axis=0),
            helper.make_node("Identity", ["words"], ["texts"]),
        ]
        outputs = [y(), sequence, info("texts", TensorProto.STRING, [2])]
        tensors = [words, const("nothing", np.zeros((0, 3), np.float32))]
        for version in (15, 21):
            proto = model_of(nodes, [info("x", FLOAT, ["N", 3])], outputs, tensors, opset=version, ir_version=8)
            model = files.load(proto)
            found = on_ort(model, {"x": np.ones((2, 3), np.float32)})
            assert found[0].shape == (2, 3)
            assert len(found[1]) == 2
            assert list(found[2]) == ["a", "b"]

    def test_scalars_and_dimensions_of_size_zero(self):
        proto = model_of([node("Relu", "x")], [info("x", FLOAT, [0, 3])], [y()])
        assert graph.static_shape(files.load(proto).graph.outputs[0]) == (0, 3)
        proto = model_of([node("Relu", "x")], [info("x", FLOAT, [])], [y()])
        assert graph.static_shape(files.load(proto).graph.outputs[0]) == ()

    def test_unordered_nodes_and_names_that_are_missing_or_shadowed(self):
        nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Exp", ["x"], ["h"])]
        model = files.load(model_of(nodes, [info("x", FLOAT, ["N"])], [y()]))
        assert small.kinds(model) == ["Exp", "Relu"]
        assert all(n.name for n in model.graph)
        assert len({n.name for n in model.graph}) == 2
        branch = helper.make_graph([node("Exp", "x", "h")], "b", [], [info("h", FLOAT, None)])
        nodes = [node("Abs", "x", "h"), node("Cast", "h", "c", to=TensorProto.BOOL)]
        nodes.append(node("If", "c", then_branch=branch, else_branch=branch))
        model = files.load(model_of(nodes, [info("x", FLOAT, [])], [y()]))
        assert len({v.name for v in graph.all_values(model.graph)}) == len(list(graph.all_values(model.graph)))


class TestSourcesStayUnchanged:
    """A model in memory is the caller's."""

    @pytest.mark.parametrize("kind", small.SMALL)
    @pytest.mark.parametrize("version", [17, 21])
    def test_protos_and_models(self, kind, version):
        proto = small.SMALL[kind](0)
        proto.opset_import[0].version = version  # their operators have one form in both
        for n in proto.graph.node:
            n.name = ""  # so that names must be given
        before = proto.SerializeToString(deterministic=True)
        files.load(proto)
        assert proto.SerializeToString(deterministic=True) == before
        model = ir.from_proto(proto)
        before = small.serialized(model)
        loaded = files.load(model)
        for name in list(loaded.graph.initializers):
            loaded.graph.initializers[name].name = f"{name}_renamed"
        assert small.serialized(model) == before

    def test_names_that_are_taken_twice(self):
        then, other = (helper.make_graph([node("Exp", "x", "t")], "b", [], [info("t", FLOAT, None)]) for _ in range(2))
        nodes = [node("Cast", "x", "c", to=TensorProto.BOOL), node("If", "c", then_branch=then, else_branch=other)]
        model = ir.from_proto(model_of(nodes, [info("x", FLOAT, [])], [y()]))
        before = small.serialized(model)
        files.load(model)
        assert small.serialized(model) == before


class TestSave:
    """What is written is whole or not there."""

    def test_round_trip(self, tmp_path):
        model = files.load(small.cnn(0))
        before = small.serialized(model)
        assert files.save(model, tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
        assert small.serialized(model) == before
        again = files.load(tmp_path / "m.onnx")
        feeds = small.feeds(model, 0)
        np.testing.assert_array_equal(small.run(again, feeds)["y"], small.run(model, feeds)["y"])

    @pytest.mark.parametrize("limit", [0, 1 << 40])
    @pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(28, "No space left on device")])
    def test_a_failure_keeps_the_old_file(self, tmp_path, monkeypatch, error, limit):
        monkeypatch.setattr(files, "EXTERNAL_BYTES", limit)
        path = tmp_path / "m.onnx"
        path.write_bytes(b"old")
        (tmp_path / "m.onnx.data").write_bytes(b"old data")

        def half(model, target, **more):
            with open(target, "wb") as stream:
                stream.write(b"half")
            if more:
                (target.parent / more["external_data"]).write_bytes(b"half")
            raise error

        monkeypatch.setattr(ir, "save", half)
        expected = OutputError if isinstance(error, OSError) else RuntimeError
        with pytest.raises(expected, match="No space left" if expected is OutputError else "boom"):
            files.save(files.load(small.cnn(0)), path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"m.onnx": b"old", "m.onnx.data": b"old data"}

    def test_large_weights_go_beside_the_model(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "EXTERNAL_BYTES", 1000)
        monkeypatch.setattr(files, "_EXTERNAL_THRESHOLD", 100)
        model, path = files.load(small.cnn(0)), tmp_path / "m.onnx"
        before, feeds = small.serialized(model), small.feeds(model, 0)
        assert files.save(model, path) == [path, tmp_path / "m.onnx.data"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
        assert any(
            t.data_location == TensorProto.EXTERNAL for t in onnx.load(path, load_external_data=False).graph.initializer
        )
        assert small.serialized(model) == before
        again = files.load(path)
        for name, value in model.graph.initializers.items():
            np.testing.assert_array_equal(again.graph.initializers[name].const_value.numpy(), value.const_value.numpy())
        assert files.save(again, path) == [path, tmp_path / "m.onnx.data"]
        third = files.load(path)
        np.testing.assert_array_equal(small.run(third, feeds)["y"], small.run(model, feeds)["y"])

    def test_places_that_cannot_be_written(self, tmp_path):
        model = files.load(small.mlp(0))
        with pytest.raises(OutputError, match="is a folder"):
            files.save(model, tmp_path)
        with pytest.raises(OutputError, match="does not exist"):
            files.save(model, tmp_path / "no" / "m.onnx")
        with pytest.raises(OutputError, match="cannot be written"):
            files.save(model, tmp_path / ("m" * 300))
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_without_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="not writable"):
            files.check_writable(tmp_path / "m.onnx")
