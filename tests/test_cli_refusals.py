"""Bad input: one line ``error: ...`` on stderr, exit status 2, no traceback, and no half-written file."""

from __future__ import annotations

from pathlib import Path

import command_line
import numpy as np
import onnx
import pytest
import small_graphs as small
from command_line import listing, ok, refused, run
from onnx import TensorProto

from qcomp import runtime

CNN, TRAIN = "cnn.onnx", "train.npz"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    command_line.write_digits(folder, train=8, test=8)
    (folder / "text.onnx").write_text("no model at all")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes((folder / CNN).read_bytes()[:5000])
    ok("compile", folder / CNN, "-o", folder / "int8.onnx", "--data", folder / TRAIN)
    image = np.load(folder / TRAIN)["image"]
    np.savez(folder / "shape.npz", image=image[:, :, :7])
    np.savez(folder / "names.npz", a=image, b=image)
    np.savez(folder / "dtype.npz", image=np.full(image.shape, "x"))
    np.savez(folder / "none.npz", image=image[:0])
    np.savez(folder / "nan.npz", image=image * np.nan)
    np.save(folder / "few.npy", np.zeros(3, np.int64))
    np.save(folder / "high.npy", np.full(8, 10))
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def here(made, monkeypatch):
    """Work in the folder; a refused command leaves it as it was."""
    monkeypatch.chdir(made)
    before = listing(made)
    yield made
    assert listing(made) == before


@pytest.mark.parametrize("name", ["missing.onnx", "text.onnx", "empty.onnx", "cut.onnx", "folder", TRAIN])
@pytest.mark.parametrize("command", ["compile", "inspect", "compare", "bench", "run"])
def test_what_is_no_model(here, command, name):
    data = ("--data", TRAIN)
    rest = {"compile": ("-o", "o.onnx", *data), "compare": (CNN, *data), "run": ("-o", "o.npz", *data)}
    assert name in refused(command, name, *rest.get(command, ()))


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--data", "shape.npz"], "takes float32 [N, 1, 8, 8], not the shape [8, 1, 7, 8]"),
        (["--data", "names.npz"], "image"),
        (["--data", "dtype.npz"], "float32"),
        (["--data", "none.npz"], "no samples"),
        (["--data", "nan.npz"], "NaN"),
        (["--data", "missing.npz"], "no such file"),
        (["--data", "folder"], "folder"),
        (["--data", CNN], "cnn.onnx"),
        ([], "--data"),
        (["--data", TRAIN, "--guard", "nan"], "the bound is a number of dB"),
        (["--data", TRAIN, "--threads", "10000000000"], "10000000000 threads"),
        (["--data", TRAIN, "--samples", "0"], "--samples"),
        (["--data", TRAIN, "--batch", "0"], "--batch"),
        (["--data", TRAIN, "--threads", "-1"], "--threads"),
        (["--data", TRAIN, "--passes", "fold-everything"], "unknown pass 'fold-everything'"),
        (["--data", TRAIN, "--passes", "clean-up{depth=3}"], "unknown option 'depth'"),
        (["--data", TRAIN, "--passes", "clean-up,,"], "cannot read"),
        (["--data", TRAIN, "--passes", "clean-up", "--weights", "int8"], "no pass of this line"),
        (["--data", TRAIN, "--to", "abacus"], "unknown backend 'abacus'"),
        (["--data", TRAIN, "-O7"], "unknown optimization level -O7"),
        (["--data", TRAIN, "--weights", "int9"], "int9"),
        (["--data", TRAIN, "--activations", "nonsense"], "nonsense"),
        (["--activations", "none", "--guard", "20"], "--guard needs calibration data"),
        (["--data", TRAIN, "--preprocess", "unit"], "folder of images"),
        (["--data", TRAIN, "--preprocess", "sepia"], "unknown preset 'sepia'"),
        (["--data", TRAIN, "--mean", "a,b"], "--mean"),
        (["--data", TRAIN, "--size", "8by8"], "--size"),
        (["--data", TRAIN, "--size", "8"], "give --preprocess"),
        (["--data", TRAIN, "--dump", TRAIN], TRAIN),
        (["--data", TRAIN, "--report", "missing/r.json"], "folder does not exist"),
        (["--data", TRAIN, "--guard", "much"], "--guard"),
        (["--data", TRAIN, "--nonsense"], "No such option"),
    ],
)
def test_compile_refuses(here, args, part):
    assert part in refused("compile", CNN, "-o", "o.onnx", *args)


@pytest.mark.parametrize(
    ("out", "part"),
    [("missing/o.onnx", "folder does not exist"), ("folder", "is a folder"), (CNN, "is the model itself")],
)
def test_compile_refuses_a_place_it_cannot_write(here, out, part):
    assert part in refused("compile", CNN, "-o", out, "--data", TRAIN)
    assert onnx.load(CNN).graph.node[0].op_type == "Conv"


@pytest.mark.parametrize(
    "args",
    [
        ["compile", CNN, "--data", TRAIN, "-o", TRAIN],
        ["compile", CNN, "--data", TRAIN, "-o", "o.onnx", "--report", TRAIN],
        ["compile", CNN, "--data", TRAIN, "-o", "o.onnx", "--report", CNN],
        ["compile", CNN, "--data", TRAIN, "-o", "o.onnx", "--report", "o.onnx"],
        ["run", CNN, "--data", TRAIN, "-o", TRAIN],
        ["run", CNN, "--data", TRAIN, "-o", CNN],
    ],
)
def test_nothing_is_written_over_what_is_read_or_written(here, args):
    before = {name: Path(name).read_bytes() for name in (CNN, TRAIN)}
    assert "give another name" in refused(*args)
    assert {name: Path(name).read_bytes() for name in (CNN, TRAIN)} == before


def test_compile_needs_a_place(here):
    assert "-o OUT" in refused("compile", CNN, "--data", TRAIN)


def test_compile_refuses_a_quantized_model(here):
    assert "quantized already" in refused("compile", "int8.onnx", "-o", "o.onnx", "--data", TRAIN)


@pytest.mark.parametrize(("location", "part"), [("../w.bin", "outside"), ("gone.bin", "missing")])
def test_external_weights_that_cannot_be_read(tmp_path, location, part):
    model = small.cnn(0)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(1 << 16))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    for args in (["compile", "-o", folder / "o.onnx"], ["inspect"], ["bench"], ["run", "-o", "o.npz", "--data", "x"]):
        assert part in refused(args[0], folder / "m.onnx", *args[1:])
    assert listing(folder) == {"m.onnx"}


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["compare", "vit.onnx", "int8.onnx"], "no data"),
        (["compare", "int8.onnx", CNN, "--data", TRAIN], "give the float model first"),
        (["compare", CNN, "int8.onnx", "--data", TRAIN, "--labels", "few.npy"], "3 labels for 8 samples"),
        (["compare", CNN, "int8.onnx", "--data", TRAIN, "--labels", "high.npy"], "scores of 10 classes"),
        (["compare", CNN, "int8.onnx", "--data", TRAIN, "--labels", "missing.txt"], "missing.txt"),
        (["run", CNN, "-o", "o.npz"], "no data"),
        (["run", CNN, "-o", "folder", "--data", TRAIN], "is a folder"),
        (["run", CNN, "--data", TRAIN], "Missing option '-o'"),
        (["bench"], "Missing argument"),
        (["bench", CNN, "--runs", "0"], "--runs"),
        (["bench", CNN, "--length", "0"], "--length"),
        (["bench", CNN, "--batch", "9", "--data", TRAIN], "8 samples for a batch of 9"),
        (["demo", "-o", TRAIN], TRAIN),
        (["demolish"], "No such command 'demolish'"),
    ],
)
def test_other_commands_refuse(here, args, part):
    assert part in refused(*args)


def test_compare_refuses_models_of_different_inputs(here, tmp_path):
    onnx.save(small.cnn(0), tmp_path / "other.onnx")
    assert "different inputs" in refused("compare", CNN, tmp_path / "other.onnx", "--data", TRAIN)


def test_samples_that_do_not_run_through_the_model(tmp_path):
    b = small.Builder()
    b.op("Gather", b.constant(np.eye(4)), b.input("ids", ["N", 2], TensorProto.INT64), name="y")
    onnx.save(b.model("y"), tmp_path / "m.onnx")
    np.savez(tmp_path / "ids.npz", ids=np.full((2, 2), 9))
    line = refused("run", tmp_path / "m.onnx", "--data", tmp_path / "ids.npz", "-o", tmp_path / "o.npz")
    assert "the samples do not run through the model" in line
    assert listing(tmp_path) == {"m.onnx", "ids.npz"}


def test_a_bug_is_one_line_and_with_v_a_traceback(here, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(runtime, "session", broken)
    short, long = run("bench", CNN), run("bench", CNN, "-v")
    assert short.exit_code == long.exit_code == 1
    assert short.stderr.startswith("internal error: ZeroDivisionError: two lines (run with -v")
    assert len(short.stderr.splitlines()) == 1
    assert "Traceback" in long.stderr


def test_an_interruption_exits_with_130(here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "session", interrupted)
    result = run("compile", CNN, "-o", "o.onnx", "--data", TRAIN)
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted"
