"""The commands on quantized files of every form: com.microsoft operators, functions, integers in and out."""

from __future__ import annotations

import integer_forms as forms
import numpy as np
import onnx
import pytest
from command_line import listing, ok, refused, run

from qcomp import exactness
from qcomp.report import inspection

SIZE, ROWS = 8, 30
every_form = pytest.mark.parametrize("form", forms.FORMS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A float model, its quantized forms, samples, and their integers."""
    folder, rng = tmp_path_factory.mktemp("forms"), np.random.default_rng(0)
    weights = rng.integers(-30, 31, (SIZE, SIZE)).astype(np.int8)
    for form in ("float", *forms.FORMS):
        onnx.save(forms.layer(form, weights), folder / f"{form}.onnx")
    integers = rng.integers(64, 192, (ROWS, SIZE)).astype(np.uint8)
    np.savez(folder / "ints.npz", x=integers)
    np.savez(folder / "wide.npz", x=integers.astype(np.int64))
    np.savez(folder / "over.npz", x=integers.astype(np.int64) + 100)
    np.savez(folder / "below.npz", x=-integers.astype(np.int64))
    np.savez(folder / "x.npz", x=forms.SCALE * (integers.astype(np.float32) - forms.ZERO))
    np.savez(folder / "fractions.npz", x=integers + 0.5)
    np.savez(folder / "shape.npz", x=integers[:, :3])
    np.savez(folder / "flags.npz", x=integers > 128)
    np.savez(folder / "more.npz", x=integers, other=integers > 128)
    np.savez(folder / "unnamed.npz", integers)
    onnx.save(forms.layer("qlinear", np.full((SIZE, SIZE), 127, np.int8)), folder / "full.onnx")
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def outputs(path) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays["y"]


@every_form
def test_run(here, form, tmp_path):
    text = ok("run", f"{form}.onnx", "--data", "x.npz", "-o", tmp_path / "y.npz", "--batch", 7)
    assert "y: float32 [30, 8]" in text
    ok("run", "float.onnx", "--data", "x.npz", "-o", tmp_path / "float.npz")
    error = np.abs(outputs(tmp_path / "y.npz") - outputs(tmp_path / "float.npz"))
    assert 0 < error.max() < 3 * forms.SCALE


@every_form
def test_run_on_integers_gives_the_integers_of_the_floats(here, form, tmp_path):
    for data in ("ints.npz", "wide.npz", "more.npz", "unnamed.npz"):
        text = ok("run", f"{form}.onnx", "--integer-input", "--data", data, "-o", tmp_path / "i.npz")
        assert "y: uint8 [30, 8]" in text
    ok("run", f"{form}.onnx", "--data", "x.npz", "-o", tmp_path / "y.npz")
    found = outputs(tmp_path / "i.npz")
    assert found.dtype == np.uint8
    assert np.array_equal(forms.SCALE * (found.astype("int32") - forms.ZERO), outputs(tmp_path / "y.npz"))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("x.npz", ["no integers, where --integer-input takes them (x: uint8 [N, 8])", "qcomp run --help"]),
        ("fractions.npz", ["takes them (x: uint8 [N, 8])"]),
        ("over.npz", ["input 'x', sample 0: a value that uint8 cannot hold"]),
        ("below.npz", ["input 'x', sample 0: a value that uint8 cannot hold"]),
        ("shape.npz", ["input 'x' takes uint8 [N, 8], not the shape [30, 3]"]),
        ("flags.npz", ["no integers, where --integer-input takes them (x: uint8 [N, 8])"]),
        ("missing.npz", ["no such file"]),
    ],
)
def test_data_that_are_not_such_integers(here, data, parts, tmp_path):
    line = refused("run", "integer.onnx", "--integer-input", "--data", data, "-o", tmp_path / "i.npz")
    assert all(part in line for part in parts), line
    assert listing(tmp_path) == set()


def test_a_float_model_takes_no_integers(here, tmp_path):
    line = refused("run", "float.onnx", "--integer-input", "--data", "ints.npz", "-o", tmp_path / "i.npz")
    assert "MatMul 'n_h': reads the input 'x' as floats" in line
    assert "without --integer-input" in line


def test_the_help_shows_how_to_make_the_integers(here, tmp_path):
    """The lines of the help, with the scale and zero point as `qcomp inspect` prints them, make them."""
    text, numbers = ok("run", "--help"), ok("inspect", "qlinear.onnx").splitlines()[3].split()
    make, back = (line.strip() for line in text.splitlines() if "zero_point" in line)
    values = {"numpy": np, "scale": float(numbers[-2]), "zero_point": int(numbers[-1])}
    with np.load("x.npz") as reals, np.load("ints.npz") as integers:
        assert np.array_equal(eval(make, values | {"x": reals["x"]}), integers["x"])
        assert np.array_equal(eval(back, values | {"y": integers["x"]}), reals["x"])


@every_form
def test_compare(here, form):
    text = ok("compare", "float.onnx", f"{form}.onnx", "--data", "x.npz", "--top", 3)
    line = next(line for line in text.splitlines() if line.startswith("y "))
    assert 25 < float(line.split()[1]) < 60
    assert "30 samples" in text


@every_form
def test_compare_two_quantized_models(here, form, tmp_path):
    (tmp_path / "copy.onnx").write_bytes((here / f"{form}.onnx").read_bytes())
    text = ok("compare", f"{form}.onnx", tmp_path / "copy.onnx", "--data", "x.npz")
    assert "0 of 240" in text
    assert "The outputs are equal" in text


def test_compare_two_quantized_models_that_differ(here):
    text = ok("compare", "integer.onnx", "full.onnx", "--data", "x.npz", "--samples", 10)
    differing, _, elements = next(line for line in text.splitlines() if line.startswith("y ")).split()[1:4]
    assert (0 < int(differing) <= 80, elements) == (True, "80")
    assert "The outputs differ" in text


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("integer.onnx", "float.onnx"), "give the float model first"),
        (("integer.onnx", "qlinear.onnx", "--explain"), "--explain: needs the float model"),
        (("integer.onnx", "qlinear.onnx", "--labels", "y.npy"), "--labels: needs the float model"),
    ],
)
def test_what_needs_the_float_model(here, args, hint):
    assert hint in refused("compare", *args, "--data", "x.npz")


@pytest.mark.parametrize("scale", [-0.1, 0.0, np.nan, np.inf])
@every_form
def test_scales_that_make_no_sense(here, form, scale, tmp_path):
    model = onnx.load(f"{form}.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(scale), "scale"))
    onnx.save(model, tmp_path / "bad.onnx")
    compare = ("compare", "float.onnx", tmp_path / "bad.onnx", "--data", "x.npz")
    run_ = ("run", tmp_path / "bad.onnx", "--data", "x.npz", "-o", tmp_path / "o.npz")
    for args in (("inspect", tmp_path / "bad.onnx"), run_, compare):
        line = refused(*args)
        assert "'n_q': its scale 'scale' is" in line
        assert "must be a positive number" in line


def test_what_the_metadata_claim_is_not_believed(here, tmp_path):
    model = onnx.load("full.onnx")
    onnx.helper.set_model_props(model, {exactness.KEY: exactness.EVERYWHERE})
    onnx.save(model, tmp_path / "claims.onnx")
    text = ok("inspect", tmp_path / "claims.onnx")
    assert facts(text)["Products"] == "exact on machines with 8-bit dot products (VNNI, AMX, Arm)"
    assert "(not, as its metadata say, exact on every machine)" in text


def test_bench(here):
    text = ok("bench", "float.onnx", *(f"{form}.onnx" for form in forms.FORMS), "--runs", 2)
    assert len(text.splitlines()) == 5


def facts(text: str) -> dict[str, str]:
    """The rows of the second table of inspect."""
    return {line[:15].strip(): line[15:].strip() for line in text.splitlines() if len(line) > 15}


def test_inspect_the_forms(here):
    found = {form: facts(ok("inspect", f"{form}.onnx")) for form in forms.FORMS}
    assert found["integer"]["Integer-only"] == "yes"
    assert found["integer"]["In integers"] == "1 MatMulInteger, 1 Finish"
    assert found["qdq"]["Integer-only"].startswith("no, the first float tensor is 'x_dequantized' (DequantizeLinear")
    why = "no, operators of ONNX Runtime with float scales (QLinearMatMul"
    assert found["qlinear"]["Integer-only"].startswith(why)
    assert found["qlinear"]["In integers"] == "1 QLinearMatMul, 1 QLinearAdd"
    assert {rows["Products"] for rows in found.values()} == {"exact on every machine"}
    assert {rows["MACs a sample"] for rows in found.values()} == {"64"}
    text = facts(ok("inspect", "full.onnx"))
    assert text["Products"] == "exact on machines with 8-bit dot products (VNNI, AMX, Arm)"


def test_inspect_shows_the_grids_of_quantized_models_only(here):
    lines = ok("inspect", "integer.onnx").splitlines()
    assert lines[2].split() == ["Name", "Type", "Shape", "Integers", "Scale", "Zero", "point"]
    assert [line.split()[-3:] for line in lines[3:5]] == [["uint8", "0.0625", "128"]] * 2
    plain = ok("inspect", "float.onnx")
    assert "Scale" not in plain
    assert "Integer-only" not in plain
    assert "Products" not in plain


@pytest.mark.parametrize(
    ("kind", "shape", "weights", "more", "macs"),
    [
        ("QLinearConv", (1, 4, 5, 5), (6, 2, 3, 3), {"group": 2}, 6 * 9 * 2 * 9),
        ("ConvInteger", (1, 4, 5, 5), (6, 4, 3, 3), {}, 6 * 9 * 4 * 9),
        ("MatMulInteger", (1, 3, 20), (20, 6), {}, 3 * 20 * 6),
        ("QLinearMatMul", (1, 20), (20,), {}, 20),
        ("QGemm", (1, 20), (20, 6), {}, None),
        ("qdq Gemm", (1, 20), (6, 20), {"transB": 1}, 120),
    ],
)
def test_multiply_accumulates_of_integers(kind, shape, weights, more, macs, tmp_path):
    """None where onnx infers no shape, as for com.microsoft."""
    ones = np.ones(weights, np.int8)
    onnx.save(forms.product(kind, ones, shape=shape, **more), tmp_path / "m.onnx")
    assert inspection.inspect(tmp_path / "m.onnx").macs == macs
    assert ("not known" in ok("inspect", tmp_path / "m.onnx")) == (macs is None)


@pytest.mark.parametrize(
    "args",
    [
        ["run", "full.onnx", "--data", "x.npz"],
        ["run", "full.onnx", "--data", "ints.npz", "--integer-input"],
        ["compare", "float.onnx", "full.onnx", "--data", "x.npz"],
        ["bench", "float.onnx", "full.onnx", "--runs", "1"],
    ],
)
def test_a_warning_where_the_machine_computes_other_integers(here, args, monkeypatch, tmp_path):
    args = [*args, "-o", tmp_path / "o.npz"] if args[0] == "run" else args
    monkeypatch.setattr(exactness, "probe", lambda: False)
    result = run(*args)
    assert result.exit_code == 0, result.output
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("warning: full.onnx: ")
    assert "portable=true" in result.stderr
    safe = run(*("qlinear.onnx" if arg == "full.onnx" else arg for arg in args))
    assert safe.stderr == ""
    monkeypatch.setattr(exactness, "probe", lambda: True)
    assert run(*args).stderr == ""
