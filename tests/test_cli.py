"""Every command, as a user runs it, on the digits models."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import command_line
import numpy as np
import onnxruntime as ort
import pytest
from command_line import ok, run

from qcomp import cli, registry
from qcomp.calibration.data import PRESETS
from qcomp.models import digits


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the models, the data and the compiled CNN."""
    folder = tmp_path_factory.mktemp("digits")
    command_line.write_digits(folder)
    ok("compile", folder / "cnn.onnx", "-o", folder / "cnn.int8.onnx", "--data", folder / "train.npz")
    return folder


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys\nfrom qcomp.cli import cli\n"
        f"try: cli({args!r})\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'rich'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_module_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "qcomp", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("qcomp ")


def test_help_without_a_command():
    assert ok() == ok("--help")
    assert all(name in ok() for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_an_example(name):
    assert f"\n    qcomp {name}" in ok(name, "--help")


def test_help_names_what_the_registry_has():
    text = ok("compile", "--help")
    assert all(name in text for name in (*registry.names("backends"), *PRESETS))


def test_compile_says_what_it_did(made):
    out = made / "said.onnx"
    text = ok("compile", made / "cnn.onnx", "-o", out, "--data", made / "train.npz", "-O1")
    assert "8 Conv" in text
    assert "100 %" in text
    assert "times smaller" in text
    assert f"qcomp run {out} --data {made / 'train.npz'} -o outputs.npz" in text
    assert "warning" not in text
    session = ort.InferenceSession(out)
    assert session.run(None, {"image": digits.data()["test"][:1]})[0].shape == (1, 10)


def test_compile_groups_what_stayed_in_float(made):
    common = ("compile", made / "vit.onnx", "-o", made / "v.onnx", "--data", made / "train.npz", "--samples", 8)
    assert "7 LayerNormalization" in ok(*common)
    assert "norm/LayerNormalization" in ok(*common, "-v")
    assert "norm/LayerNormalization" not in ok(*common)


def test_compile_verbose_logs_the_passes_to_stderr(made):
    result = run("compile", made / "cnn.onnx", "-o", made / "v.onnx", "--data", made / "train.npz", "-v")
    assert "fold-batchnorm: changed" in result.stderr
    assert "fold-batchnorm: changed" not in result.stdout


def test_compile_weights_only_needs_no_data(made):
    text = ok("compile", made / "cnn.onnx", "-o", made / "w.onnx", "--activations", "none")
    assert "Integer weights" in text
    assert "not measured" in text


def test_compile_warns_of_noise_and_says_what_may_help(made):
    text = ok(
        *("compile", made / "cnn.onnx", "-o", made / "n.onnx", "--data", made / "train.npz"),
        *("--weights", "int2", "-O0"),
    )
    for part in ("warning: ", "--keep '", "--guard 20", "--weights int8", "--activations uint16", "-O1", "samples"):
        assert part in text
    advised = text.split("--keep ")[1].split("'")[1]
    assert f"keeps nothing: {advised}" not in ok(
        *("compile", made / "cnn.onnx", "-o", made / "n.onnx", "--data", made / "train.npz"), "--keep", advised
    )


def test_compile_guard_names_what_it_kept(made):
    text = ok(
        *("compile", made / "vit.onnx", "-o", made / "g.onnx", "--data", made / "train.npz"),
        *("--weights", "int2", "--guard", 20),
    )
    assert "Kept by --guard" in text
    assert "kept by the guard" in text
    assert "--guard 20" not in text


def test_compile_notes_patterns_that_keep_nothing(made):
    text = ok(
        *("compile", made / "cnn.onnx", "-o", made / "k.onnx", "--data", made / "train.npz"),
        *("--keep", "nonsense*", "--keep", "fc/Gemm", "--keep", "BatchNormalization"),
    )
    assert "--keep 'nonsense*' matches no operator" in text
    assert "--keep 'BatchNormalization' keeps nothing" in text
    assert "--keep 'fc/Gemm'" not in text
    assert "kept by 'fc/Gemm'" in text


def test_compile_writes_the_report_and_every_stage(made):
    common = ("compile", made / "cnn.onnx", "-o", made / "r.onnx", "--data", made / "train.npz", "--verify")
    ok(*common, "--report", made / "r.json", "--dump", made / "stages")
    report = json.loads((made / "r.json").read_text())
    assert report["quantized"]["Conv"] == 8
    assert report["files"] == [str(made / "r.onnx")]
    stages = sorted(path.name for path in (made / "stages").iterdir())
    assert stages[0] == "00-input.onnx"
    assert len(stages) == 1 + len(report["passes"].split(","))


def test_print_passes_gives_a_line_to_copy(made):
    text = ok("compile", "missing.onnx", "-O0", "--weights", "int4", "--print-passes")
    line = text.splitlines()[-1].removeprefix("--passes '").removesuffix("'")
    assert "insert-qdq{weights=int4 ranges=minmax}" in line
    assert ok("compile", "missing.onnx", "--passes", line, "--print-passes") == text
    assert all(name in text for name in registry.names("passes"))


def test_compile_images(made):
    image = pytest.importorskip("PIL.Image")
    folder = made / "images"
    folder.mkdir()
    for index, pixels in enumerate(digits.data()["train"][:12, 0]):
        image.fromarray((255 * pixels).astype(np.uint8)).save(folder / f"{index}.png")
    common = ("compile", made / "cnn.onnx", "-o", made / "i.onnx", "--data", folder)
    assert "with 12 samples" in ok(*common, "--preprocess", "unit")
    assert "with 12 samples" in ok(*common, "--mean", "0", "--std", "255", "--size", "8x8", "--resize", "squash")


def test_inspect_a_float_model(made):
    text = ok("inspect", made / "vit.onnx")
    assert "a float model, opset 21" in text
    assert "float32   [N, 1, 8, 8]" in text
    assert "Would be quantized" in text
    assert "ONNX Runtime has no integer kernel for" in text
    assert "blocks.0.mlp/Mul_2" in ok("inspect", made / "vit.onnx", "-v")


def test_inspect_a_quantized_model(made):
    text = ok("inspect", made / "cnn.int8.onnx")
    assert "a quantized model" in text
    assert "QuantizeLinear" in text
    assert "In integers     8 Conv" in text


def test_compare(made):
    common = ("compare", made / "cnn.onnx", made / "cnn.int8.onnx", "--data", made / "test.npz")
    text = ok(*common, "--labels", made / "labels.npy", "--top", 3)
    assert "100 samples" in text
    assert "Same top class" in text
    assert "top 5" in text
    assert "The worst 3 of 14 layers" in text
    assert "top 1" not in ok(*common, "--samples", 10)


def test_bench(made):
    text = ok("bench", made / "cnn.onnx", made / "cnn.int8.onnx", "--runs", 3, "--batch", 2)
    assert text.splitlines()[1].endswith("1.00 x")
    assert len(text.splitlines()) == 3
    assert "cnn.onnx" in ok("bench", made / "cnn.onnx", "--runs", 1, "--data", made / "test.npz")


def test_run(made):
    text = ok("run", made / "cnn.int8.onnx", "--data", made / "test.npz", "-o", made / "o.npz", "--batch", 7)
    assert "logits: float32 [100, 10]" in text
    with np.load(made / "o.npz") as outputs:
        assert (outputs["logits"].argmax(1) == np.load(made / "labels.npy")).mean() > 0.9


def test_demo_and_the_commands_that_it_prints(tmp_path, monkeypatch):
    text = ok("demo", "-o", tmp_path / "demo")
    assert "Accuracy, 600 test images" in text
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("  qcomp ")]
    assert [args[0] for args in commands] == ["inspect", "compile", "compare", "bench", "run"]
    monkeypatch.chdir(tmp_path / "demo")
    for args in commands:
        ok(*args)


def test_all_output_fits_80_columns_but_commands(tmp_path):
    text = ok("demo", "-o", tmp_path / "demo")
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 80


def test_how_to_run_it_names_the_preprocessing(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    for i in range(4):
        image.fromarray(np.full((8, 8), 40 * i, "uint8")).save(tmp_path / "photos" / f"{i}.png")
    command = ("compile", digits.load("cnn"), "-o", tmp_path / "q.onnx", "--data", tmp_path / "photos")
    text = ok(*command, "--preprocess", "unit", "--resize", "crop")
    advised = next(line for line in text.splitlines() if line.strip().startswith("qcomp run"))
    assert "--preprocess unit --resize crop" in advised
    ok(*shlex.split(advised)[1:-1], tmp_path / "outputs.npz")
