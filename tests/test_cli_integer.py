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
    for data in ("ints.npz", "wide.npz"):
        text = ok("run", f"{form}.onnx", "--integer-input", "--data", data, "-o", tmp_path / "i.npz")
        assert "y: uint8 [30, 8]" in text
    ok("run", f"{form}.onnx", "--data", "x.npz", "-o", tmp_path / "y.npz")
    found = outputs(tmp_path / "i.npz")
    assert found.dtype == np.uint8
    assert np.array_equal(forms.SCALE * (found.astype("int32") - forms.ZERO), outputs(tmp_path / "y.npz"))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("x.npz", ["floats, where --integer-input takes integers (x: uint8 [N, 8])", "qcomp run --help"]),
        ("fractions.npz", ["takes integers (x: uint8 [N, 8])"]),
        ("over.npz", ["input 'x', sample 0: a value that uint8 cannot hold"]),
        ("below.npz", ["input 'x', sample 0: a value that uint8 cannot hold"]),
        ("shape.npz", ["input 'x' takes uint8 [N, 8], not the shape [30, 3]"]),
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
    assert found["qlinear"]["Integer-only"].startswith("no, the first float tensor is 'scale' (QuantizeLinear")
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
