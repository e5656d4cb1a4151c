from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small
from onnx import TensorProto, helper

from qcomp import runtime
from qcomp.compiler import compile as compile_model
from qcomp.errors import DataError, ModelError, OptionError, OutputError, QcompError
from qcomp.models import digits
from qcomp.report import inspection
from qcomp.report.outputs import sqnr

IMAGES = digits.data()
CALIBRATION = {"image": IMAGES["train"][:64]}
TEST = {"image": IMAGES["test"]}
EVERYTHING = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq,round-weights,correct-bias"


def feeds(proto, count=8):
    return small.feeds(quantized.loaded(proto), 0, count)


def accuracy(logits):
    return float((logits.argmax(axis=1) == IMAGES["test_labels"]).mean())


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("name", digits.NAMES)
def test_the_digits_models_keep_their_accuracy(name, level):
    result = compile_model(digits.load(name), CALIBRATION, level=level, verify=True)
    expected = runtime.run_batches(runtime.session(digits.load(name)), [TEST])["logits"]
    logits = result.run(TEST)["logits"]
    assert sqnr(expected, logits) > 25
    assert accuracy(logits) > accuracy(expected) - 0.01
    quantized.check(result.model)
    assert result.report.notes == []


def test_the_cnn_runs_in_integers_throughout():
    result = compile_model(digits.load("cnn"), CALIBRATION, passes=EVERYTHING)
    assert quantized.float_operators(result.model) == []
    assert result.report.in_float == []
    assert result.report.macs_quantized == 1


def test_a_path_a_proto_and_a_model_give_the_same_and_stay_unchanged(tmp_path):
    path = tmp_path / "model.onnx"
    proto = small.cnn(0)
    onnx.save(proto, path)
    model = ir.from_proto(proto)
    before, bytes_before = small.serialized(model), path.read_bytes()
    proto_before = proto.SerializeToString(deterministic=True)
    data = feeds(proto)
    results = [small.serialized(compile_model(source, data).model) for source in (path, str(path), proto, model)]
    assert len(set(results)) == 1
    assert path.read_bytes() == bytes_before
    assert proto.SerializeToString(deterministic=True) == proto_before
    assert small.serialized(model) == before


@pytest.mark.parametrize("options", [{}, {"weights": "int4"}, {"activations": "none"}, {"guard_db": 45.0}])
def test_the_same_input_gives_the_same_file_byte_for_byte(options, tmp_path):
    for name in ("first", "second"):
        result = compile_model(digits.load("cnn"), CALIBRATION, tmp_path / f"{name}.onnx", **options)
        assert result.files == [tmp_path / f"{name}.onnx"]
        assert result.report.files == [str(tmp_path / f"{name}.onnx")]
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.onnx", "second.onnx"]


@pytest.mark.parametrize("name", digits.NAMES)
def test_scales_and_zero_points_do_not_depend_on_the_batch(name):
    constants = []
    for batch in (1, 8, 64):
        model = compile_model(digits.load(name), CALIBRATION, batch=batch).model
        constants.append({n: v.const_value.numpy() for n, v in model.graph.initializers.items()})
    for other in constants[1:]:
        assert list(other) == list(constants[0])
        for key, array in constants[0].items():
            np.testing.assert_allclose(other[key], array, rtol=1e-5, atol=1 if array.dtype == np.int32 else 0)


def test_data_may_come_in_many_forms(tmp_path):
    proto = small.cnn(0)
    x = feeds(proto)["x"]
    np.savez(tmp_path / "data.npz", x=x)
    np.save(tmp_path / "data.npy", x)
    forms = (
        {"x": x},
        [{"x": x[:4]}, {"x": x[4:]}],
        ({"x": row} for row in x),
        iter([x]),
        tmp_path / "data.npz",
        str(tmp_path / "data.npy"),
    )
    results = {small.serialized(compile_model(proto, data).model) for data in forms}
    assert len(results) == 1


def test_the_limit_of_samples_counts():
    report = compile_model(digits.load("cnn"), CALIBRATION, samples=10).report
    assert report.samples == 10
    seen = []
    compile_model(
        digits.load("cnn"), CALIBRATION, samples=None, batch=32, progress=lambda done, total: seen.append(done)
    )
    assert seen == [32, 64]


def test_the_report_says_what_ran():
    options = {"weights": "int4", "keep": ["Gemm", "nothing*"], "passes": EVERYTHING}
    report = compile_model(digits.load("cnn"), CALIBRATION, **options).report
    assert report.quantized["Conv"] == 8
    assert "Gemm" not in report.quantized
    assert {(o.kind, o.reason) for o in report.in_float} == {("Gemm", "kept by 'Gemm'")}
    assert report.samples == 64
    assert "insert-qdq{weights=int4" in report.passes
    assert 0 < report.macs_quantized < 1
    assert report.bytes_after < report.bytes_before / 2
    assert any("nothing*" in note for note in report.notes)
    assert report.seconds > 0
    assert json.loads(report.to_json())["quantized"]["Conv"] == 8


def test_weights_alone_need_no_data():
    result = compile_model(digits.load("cnn"), activations="none")
    assert result.report.error.least is None
    assert accuracy(result.run(TEST)["logits"]) > 0.9
    assert not any(n.op_type == "QuantizeLinear" for n in result.model.graph)
    measured = compile_model(digits.load("cnn"), CALIBRATION, activations="none").report
    assert measured.error.least > 35


def test_dump_writes_the_model_after_every_pass(tmp_path):
    result = compile_model(digits.load("cnn"), CALIBRATION, dump=tmp_path / "new" / "dump")
    names = sorted(p.name for p in (tmp_path / "new" / "dump").iterdir())
    passes = result.report.passes.split(",")
    assert names[0] == "00-input.onnx"
    assert [n.split("-", 1)[1] for n in names[1:]] == [f"{p.partition('{')[0]}.onnx" for p in passes]
    last = onnx.load(tmp_path / "new" / "dump" / names[-1])
    assert last.SerializeToString(deterministic=True) == small.serialized(result.model)


def test_a_dump_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        compile_model(digits.load("cnn"), CALIBRATION, dump=tmp_path / "file")


def never(*arguments, **options):
    raise AssertionError("work was done before the error")


def test_a_missing_folder_is_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("qcomp.files.load", never)
    with pytest.raises(OutputError, match="the folder does not exist"):
        compile_model(digits.load("cnn"), CALIBRATION, tmp_path / "missing" / "model.onnx")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"data": None}, DataError),
        ({"data": []}, DataError),
        ({"samples": 0}, OptionError),
        ({"batch": 0}, OptionError),
        ({"level": 4}, OptionError),
        ({"to": "nothing"}, OptionError),
        ({"weights": "uint8"}, OptionError),
        ({"weights": "int16"}, OptionError),
        ({"activations": "float8"}, OptionError),
        ({"passes": "no-such-pass"}, OptionError),
        ({"passes": "clean-up", "weights": "int4"}, OptionError),
        ({"model": "missing.onnx"}, ModelError),
    ],
)
def test_errors_that_the_user_can_mend(options, error, tmp_path):
    given = {"model": digits.load("cnn"), "data": CALIBRATION, "out": tmp_path / "model.onnx"} | options
    with pytest.raises(error) as caught:
        compile_model(**given)
    assert isinstance(caught.value, QcompError)
    assert not list(tmp_path.iterdir())


def test_a_quantized_model_is_refused():
    result = compile_model(digits.load("cnn"), CALIBRATION)
    with pytest.raises(ModelError, match="quantized already"):
        compile_model(result.model, CALIBRATION)


@pytest.mark.parametrize("kind", small.SMALL)
@pytest.mark.parametrize("options", [{}, {"weights": "int4", "activations": "uint4"}, {"activations": "uint16"}])
def test_small_models(kind, options):
    proto = small.SMALL[kind](0)
    result = compile_model(proto, feeds(proto, 16), verify=True, **options)
    quantized.check(result.model)
    expected = small.run(quantized.loaded(proto), feeds(proto, 16))
    actual = result.run(feeds(proto, 16))
    assert {n: a.shape for n, a in actual.items()} == {n: a.shape for n, a in expected.items()}


def float16():
    b = small.Builder(0)
    x = b.input("x", ["N", 6], TensorProto.FLOAT16)
    b.op("Relu", b.op("MatMul", x, b.constant(b.rng.normal(size=(6, 4)).astype(np.float16))), name="y")
    return b.model(helper.make_tensor_value_info("y", TensorProto.FLOAT16, None))


def double():
    b = small.Builder(0)
    x = b.input("x", ["N", 6], TensorProto.DOUBLE)
    weight = helper.make_tensor("w", TensorProto.DOUBLE, [6, 4], b.rng.normal(size=24).tolist())
    b.tensors.append(weight)
    b.op("Gemm", x, "w", name="y")
    return b.model(helper.make_tensor_value_info("y", TensorProto.DOUBLE, None))


def integers():
    b = small.Builder(0)
    x = b.input("x", ["N", 6], TensorProto.INT64)
    b.op("Concat", b.op("Add", x, b.constant(np.array([2]))), x, axis=1, name="y")
    return b.model(helper.make_tensor_value_info("y", TensorProto.INT64, None))


@pytest.mark.parametrize("build", [float16, double, integers])
def test_models_of_other_types_stay_as_they_are(build):
    proto = build()
    dtype = helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    data = {"x": np.arange(24).reshape(4, 6).astype(dtype)}
    result = compile_model(proto, data, verify=True)
    assert result.report.quantized == {}
    reasons = {o.reason for o in result.report.in_float}
    assert reasons == (set() if build is integers else {"its tensors are not known to be float32"})
    np.testing.assert_array_equal(result.run(data)["y"], small.run(quantized.loaded(proto), data)["y"])


def test_an_embedding_model_with_integer_inputs_and_a_mask():
    b = small.Builder(0)
    ids, mask = b.input("ids", ["N", "S"], TensorProto.INT64), b.input("mask", ["N", "S"], TensorProto.INT64)
    x = b.op("Gather", b.random(50, 16), ids)
    seen = b.op("Unsqueeze", b.op("Cast", mask, to=TensorProto.FLOAT), b.constant(np.array([1])))
    bias = b.op("Mul", b.op("Sub", b.constant(1.0), seen), b.constant(np.finfo(np.float32).min))
    keys = b.op("Transpose", b.op("MatMul", x, b.random(16, 16)), perm=[0, 2, 1])
    scores = b.op("Softmax", b.op("Add", b.op("MatMul", x, keys), bias), axis=-1)
    x = b.op("Add", b.op("MatMul", b.op("MatMul", scores, x), b.random(16, 16)), b.random(16))
    b.op("MatMul", b.op("Relu", x), b.random(16, 3), name="y")
    proto = b.model("y")
    rng = np.random.default_rng(0)
    data = {"ids": rng.integers(0, 50, (8, 7)), "mask": np.ones((8, 7), np.int64)}
    padded = data | {"mask": (np.arange(7) < 4).astype(np.int64)[None].repeat(8, 0)}
    for passes in (None, quantized.WITHOUT_CHOICE):
        result = compile_model(proto, data, passes=passes)
        expected = small.run(quantized.loaded(proto), padded)["y"]
        assert sqnr(expected, result.run(padded)["y"]) > 25


def test_dynamic_sizes():
    b = small.Builder(0)
    x = b.op("Relu", b.conv(b.input("x", ["N", 3, "H", "W"]), 3, 8))
    b.op("Flatten", b.op("GlobalAveragePool", b.conv(x, 8, 8)), name="y")
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(1, 3, size, size + 1)).astype("f4")} for size in (7, 9, 12)]
    result = compile_model(b.model("y"), data, batch=1, passes=quantized.WITHOUT_CHOICE)
    assert result.run(data[0])["y"].shape == (1, 8)
    assert result.report.error.least > 15


def convolution(weight, *behind, outputs, constants=()):
    """A Conv named ``c`` of ``x`` ``[N, 3, 8, 8]`` to ``h``, and what comes behind it."""
    conv = helper.make_node("Conv", ["x", "w"], ["h"], name="c", pads=[1, 1, 1, 1])
    arrays = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in (("w", weight), *constants)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    main = helper.make_graph([conv, *behind], "g", [x], outputs, arrays)
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


WEIGHT = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype("f4")
H = helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 8, 8, 8])
X = {"x": np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype("f4")}


def test_outputs_that_are_sequences_are_not_compared():
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    split = helper.make_node("SplitToSequence", ["h"], ["parts"], axis=1)
    alone = compile_model(convolution(WEIGHT, split, outputs=[parts]), X, verify=True)
    assert (alone.report.error.sqnr, alone.run(X)) == ({}, {})
    passed_on = helper.make_node("Identity", ["parts"], ["same"])
    same = helper.make_tensor_sequence_value_info("same", TensorProto.FLOAT, None)
    both = compile_model(convolution(WEIGHT, split, passed_on, outputs=[same, H]), X, passes=EVERYTHING)
    assert list(both.report.error.sqnr) == list(both.run(X)) == ["h"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused(bad):
    weight = WEIGHT.copy()
    weight[1, 2, 0, 0] = bad
    with pytest.raises(ModelError, match="Conv 'c': its weight or bias holds NaN or infinity"):
        compile_model(convolution(weight, outputs=[H]), activations="none")


def test_a_constant_without_elements():
    joined = helper.make_node("Concat", ["h", "none"], ["y"], axis=1)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 8, 8])
    empty = ("none", np.zeros((4, 0, 8, 8), "f4"))
    model = convolution(WEIGHT, joined, outputs=[y], constants=[empty])
    assert compile_model(model, X, passes="choose-precision{by=all},insert-qdq").report.error.least > 20


def invalid_pad():
    pad = helper.make_node("Pad", ["h", "pads"], ["q"])
    conv = helper.make_node("Conv", ["q", "v"], ["y"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [("pads", np.array([0, 0, 1])), ("v", np.ones((8, 8, 1, 1), "f4"))]
    return convolution(WEIGHT, pad, conv, outputs=[y], constants=constants)


def invalid_norm():
    norm = helper.make_node("BatchNormalization", ["h", *"ssss"], ["y"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = convolution(WEIGHT, norm, outputs=[y], constants=[("s", np.ones(8, "f4"))])
    model.graph.initializer[1].raw_data = b"abc"
    return model


@pytest.mark.parametrize(("group", "bias"), [(3, 8), (0, 8), (1, 5)])
def test_a_convolution_that_does_not_fit_together_is_refused(group, bias):
    norm = helper.make_node("BatchNormalization", ["z", *"ssvv"], ["y"])
    conv = helper.make_node("Conv", ["h", "k", "b"], ["z"], group=group)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    arrays = {"k": (8, 8, 1, 1), "b": (bias,), "s": (8,), "v": (8,)}
    constants = [(name, np.ones(shape, "f4")) for name, shape in arrays.items()]
    with pytest.raises(QcompError):
        compile_model(convolution(WEIGHT, conv, norm, outputs=[y], constants=constants), X)


@pytest.mark.parametrize("build", [invalid_pad, invalid_norm])
def test_a_model_that_breaks_the_rules_of_its_operators_is_refused(build, tmp_path):
    onnx.save(build(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="ONNX Runtime refuses it"):
        compile_model(tmp_path / "m.onnx", X)
    with pytest.raises(ModelError, match="ONNX Runtime refuses it"):
        inspection.inspect(tmp_path / "m.onnx")


def test_one_pattern_to_keep_need_not_be_in_a_list():
    alone, listed = (compile_model(convolution(WEIGHT, outputs=[H]), X, keep=keep) for keep in ("c", ["c"]))
    assert [o.reason for o in alone.report.in_float] == [o.reason for o in listed.report.in_float] == ["kept by 'c'"]


def test_a_softmax_of_unknown_rank():
    names = {"x": (TensorProto.FLOAT, ["N", 6]), "sizes": (TensorProto.INT64, ["M"])}
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in names.items()]
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], axis=1),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, [y]), ir_version=10)
    model.opset_import[0].version = 21
    data = {"x": np.ones((2, 6), "f4"), "sizes": np.array([2, 6])}
    assert compile_model(model, data, batch=2).report.in_float
