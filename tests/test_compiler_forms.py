"""Integer forms, compiled as a user does."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as small
from onnx import TensorProto, helper

from qcomp import exactness, files, runtime
from qcomp.calibration.data import open_data
from qcomp.compiler import compile as compile_model
from qcomp.errors import OptionError, UnsupportedError
from qcomp.integer_only import first_float
from qcomp.models import digits
from qcomp.report import equality, inspection

IMAGES = digits.data()
CALIBRATION = {"image": IMAGES["train"][:64]}
TEST = {"image": IMAGES["test"][:200]}
FORMS = ("qlinear", "integer")


def form(name, **options):
    text = " ".join([f"form={name}", *(f"{k}={v}" for k, v in options.items())])
    return f"onnxruntime{{{text}}}"


def outputs(path):
    return runtime.run_batches(runtime.session(path), [TEST])["logits"]


@pytest.mark.parametrize("name", digits.NAMES)
def test_both_forms_give_the_same_integers_and_keep_the_accuracy(name, tmp_path):
    results = {}
    for to in FORMS:
        written = compile_model(digits.load(name), CALIBRATION, tmp_path / f"{to}.onnx", to=form(to), verify=True)
        results[to] = outputs(written.files[0])
        onnx.checker.check_model(onnx.load(written.files[0]), full_check=True)
    np.testing.assert_array_equal(results["qlinear"], results["integer"])
    models = [files.read(tmp_path / f"{to}.onnx") for to in FORMS]
    found = equality.compare(*models, open_data(TEST, runtime.input_specs(models[0])), limit=20)
    assert [(one.differing, one.elements) for one in found] == [(0, 200)]
    right = results["integer"].argmax(axis=1) == IMAGES["test_labels"][:200]
    assert right.mean() > 0.96


@pytest.mark.parametrize("name", digits.NAMES)
def test_the_integer_form_has_no_float_inside(name):
    assert first_float(compile_model(digits.load(name), CALIBRATION, to=form("integer")).model) is None
    assert first_float(compile_model(digits.load(name), CALIBRATION, to=form("qlinear")).model) is not None


@pytest.mark.parametrize("to", FORMS)
def test_what_should_stay_in_float_is_refused(to):
    with pytest.raises(UnsupportedError, match=r"Gemm 'fc/Gemm': kept by 'fc\*'.*--allow-float"):
        compile_model(digits.load("cnn"), CALIBRATION, to=form(to), keep="fc*")


@pytest.mark.parametrize("to", FORMS)
def test_what_may_stay_in_float_is_reported(to):
    made = compile_model(digits.load("cnn"), CALIBRATION, to=form(to), keep="fc*", allow_float=True)
    assert any(entry.name == "fc/Gemm" for entry in made.report.in_float)
    assert made.report.error.least > 25
    assert "Gemm" in [n.op_type for n in made.model.graph]


def test_allowing_floats_where_they_are_no_matter_is_an_error():
    with pytest.raises(OptionError, match="--allow-float"):
        compile_model(digits.load("cnn"), CALIBRATION, allow_float=True)


def test_the_guard_keeps_layers_in_float_only_where_that_is_allowed():
    options = {"to": form("qlinear"), "guard_db": 60.0}
    with pytest.raises(OptionError, match="--allow-float"):
        compile_model(digits.load("cnn"), CALIBRATION, **options)
    made = compile_model(digits.load("cnn"), CALIBRATION, allow_float=True, **options)
    assert made.report.error.kept


@pytest.mark.parametrize("to", ["qdq", *FORMS])
def test_portable_files_say_that_they_are(to, tmp_path):
    portable = compile_model(digits.load("cnn"), CALIBRATION, tmp_path / "p.onnx", to=form(to, portable="true"))
    plain = compile_model(digits.load("cnn"), CALIBRATION, tmp_path / "f.onnx", to=form(to))
    read = [exactness.read(files.read(made.files[0])) for made in (portable, plain)]
    assert read == [exactness.EVERYWHERE, exactness.DOT_PRODUCT]


def test_portable_weights_are_proved_safe():
    model = compile_model(digits.load("cnn"), CALIBRATION, to=form("qlinear", portable="true")).model
    weights = [n.inputs[3].const_value.numpy() for n in model.graph if n.op_type in ("QLinearConv", "QGemm")]
    assert not any(exactness.saturates(w, 0) for w in weights)


def test_scales_are_free_where_that_is_asked_for():
    line = "choose-precision{by=all},insert-qdq{scales=free},round-weights"
    made = compile_model(small.cnn(0), small.feeds(ir.from_proto(small.cnn(0)), 0, 8), passes=line)
    assert made.report.error.least > 20
    with pytest.raises(UnsupportedError, match="scales=dyadic"):
        compile_model(small.cnn(0), small.feeds(ir.from_proto(small.cnn(0)), 0, 8), passes=line, to=form("qlinear"))


def test_dump_holds_the_integer_forms_too(tmp_path):
    made = compile_model(digits.load("cnn"), CALIBRATION, to=form("integer"), dump=tmp_path)
    dumped = sorted(tmp_path.iterdir())
    assert [path.name.split("-", 1)[1] for path in dumped[-2:]] == ["dyadic-rescale.onnx", "expand-integer.onnx"]
    assert len(dumped) == len(made.report.passes.split(",")) + 1


def test_no_name_of_a_form_is_accepted_and_ignored():
    with pytest.raises(OptionError, match=r"unknown value 'qlinar'.*did you mean 'qlinear'"):
        compile_model(digits.load("cnn"), CALIBRATION, to=form("qlinar"))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_images_normalized_inside_the_model(channels_last, padded):
    b = small.Builder(0)
    shape, parameters = (["N", 9, 9, 3], (3,)) if channels_last else (["N", 3, 9, 9], (3, 1, 1))
    mean, deviation = (
        b.constant(np.reshape(np.array(v, "f4"), parameters)) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    )
    x = b.op("Sub", b.op("Div", b.input("x", shape), b.constant(255.0)), mean)
    x = b.op("Div", x, deviation)
    x = b.op("Transpose", x, perm=[0, 3, 1, 2]) if channels_last else x
    b.op("Max", b.conv(x, 3, 5, pads=[1 if padded else 0] * 4), b.constant(0.1), name="y")
    sizes = [8, *(int(size) for size in shape[1:])]
    data = {"x": np.random.default_rng(0).uniform(0, 255, sizes).astype("f4")}
    made = [compile_model(b.model("y"), data, to=form(name)) for name in FORMS]
    assert all(result.report.error.least > 30 for result in made)
    np.testing.assert_array_equal(*(result.run(data)["y"] for result in made))


def test_inspect_says_the_same_of_both_forms(tmp_path):
    b = small.Builder(0)
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 9, 9]), 4, 8, pads=[1] * 4))
    x = b.conv(b.conv(x, 8, 8, group=8), 8, 8, 1, strides=[2, 2])
    x = b.op("MatMul", x, b.op("Transpose", x, perm=[0, 1, 3, 2]))
    x = b.op("Gemm", b.op("Flatten", x), b.random(5, 8 * 16), b.random(5), transB=1)
    best = helper.make_tensor_value_info(b.op("ArgMax", x, axis=1), TensorProto.INT64, None)
    onnx.save(b.model(b.op("Softmax", x), best), tmp_path / "float.onnx")
    data = {"x": np.random.default_rng(0).normal(size=(8, 4, 9, 9)).astype("f4")}
    for name in FORMS:
        compile_model(tmp_path / "float.onnx", data, tmp_path / f"{name}.onnx", to=form(name))
    found = {name: inspection.inspect(tmp_path / f"{name}.onnx") for name in ("float", *FORMS)}
    assert len({one.macs for one in found.values()}) == 1
    kinds = {kind for kind, _ in found["qlinear"].in_integers}
    assert kinds == {"QLinearConv", "QLinearMatMul", "QGemm", "Transpose", "Flatten", "ArgMax", "Softmax"}
