"""Designs end to end: the C simulation gives the integers of the other forms, on any folding, and never stops."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import hls_designs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as small
from cpp import needs_compiler

import qcomp
from qcomp import outer, runtime
from qcomp.backends.hls import Hls, boards, csim, folding, lowering, project
from qcomp.errors import ModelError, OptionError, OutputError, UnsupportedError

pytestmark = needs_compiler


def simulated(model: ir.Model, data: dict, folder: Path, interval: int | None = None) -> csim.Simulation:
    board = boards.find(hls_designs.LARGE)
    design, flow = folding.fold(lowering.lower(model), board, interval)
    project.write(design, flow, board, model, [data], folder)
    return csim.Simulation(folder)


CASES = [
    ("residual", "int8", "uint8", None),
    ("residual", "int4", "uint4", 20000),
    ("separable", "int8", "uint8", 3000),
    ("separable", "int3", "uint6", None),
    ("branches", "int8", "uint8", None),
    ("branches", "int5", "uint8", 50000),
    ("shortcut", "int8", "uint8", 900),
    ("shifted", "int8", "uint8", None),
]


@pytest.mark.parametrize(("name", "weights", "activations", "interval"), CASES)
def test_simulation_gives_the_integers_of_the_other_forms(name, weights, activations, interval, tmp_path):
    model, data = hls_designs.made(name, weights, activations)
    found = simulated(model, data, tmp_path / "design", interval)
    expected = runtime.run_batches(runtime.session(model), [data])["y"]
    np.testing.assert_array_equal(found.run(None, data)[0], expected)
    assert found.fifos
    assert all(f.high_water > 0 for f in found.fifos)
    testbench = ["build/simulate", "testbench/inputs.bin", "testbench/expected.bin"]
    assert subprocess.run(testbench, cwd=tmp_path / "design", capture_output=True).returncode == 0


def test_the_testbench_fails_on_one_wrong_integer(tmp_path):
    simulated(*hls_designs.made("shortcut"), tmp_path / "design")
    expected = tmp_path / "design" / "testbench" / "expected.bin"
    numbers = bytearray(expected.read_bytes())
    numbers[17] ^= 1
    expected.write_bytes(numbers)
    done = subprocess.run(["make", "--silent", "run"], cwd=tmp_path / "design", capture_output=True, text=True)
    assert done.returncode
    assert "1 of" in done.stdout


def test_a_fifo_that_is_too_short_is_found(tmp_path):
    """The depths are no formality: without them the design stops, and the simulation says where."""
    model, data = hls_designs.made("residual")
    found = simulated(model, data, tmp_path / "design", 20000)
    top = tmp_path / "design" / "firmware" / "top.cpp"
    fork = next(p for p in hls_designs.design_of(model, interval=20000).processes if p.name == "layer_000_conv_fork0")
    text, name = top.read_text(), fork.outputs[1].name
    short = re.sub(rf", \d+> {name}\(", f", 2> {name}(", text)
    assert short != text
    top.write_text(short)
    with pytest.raises(qcomp.QcompError, match="deadlock"):
        found.run(None, data)


def test_argmax_ends_a_design(tmp_path):
    b = small.Builder(3)
    hidden = b.op("Relu", b.conv(b.input("x", ["N", 3, 6, 6]), 3, 8, pads=[1] * 4))
    scores = b.op("Flatten", b.op("GlobalAveragePool", b.conv(hidden, 8, 10, 1)))
    b.op("ArgMax", scores, axis=1, keepdims=0, name="y")
    proto = b.model(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["N"]))
    data = {"x": np.random.default_rng(0).normal(size=(32, 3, 6, 6)).astype("f4")}
    model = qcomp.compile(proto, [data], to="hls").model
    expected = runtime.run_batches(runtime.session(model), [data])["y"]
    found = simulated(model, data, tmp_path / "design").run(None, data)[0]
    np.testing.assert_array_equal(found, expected)


def test_integers_in_and_out(tmp_path):
    model, data = hls_designs.made("shortcut")
    simulated(model, data, tmp_path / "design")
    found = csim.opened(tmp_path / "design", integers=True)
    grid = outer.grids(model)["x"]
    numbers = grid.integers(data["x"])
    expected = runtime.run_batches(runtime.session(outer.strip(model)), [{"x": numbers}])["y"]
    actual = found.run(None, {"x": numbers})[0]
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == np.uint8


def test_a_top_that_reads_and_writes_memory(tmp_path):
    model, data = hls_designs.made("shortcut")
    Hls(board="pynq-z2", ports="memory").emit(model, tmp_path / "design", [data])
    expected = runtime.run_batches(runtime.session(model), [data])["y"]
    np.testing.assert_array_equal(csim.Simulation(tmp_path / "design").run(None, data)[0], expected)
    assert "QCOMP_INTERFACE_MEMORY(input, INPUT_WORDS)" in (tmp_path / "design" / "firmware" / "top.cpp").read_text()
    assert not (tmp_path / "design" / "block_design.tcl").exists()


def test_same_input_same_bytes(tmp_path):
    model, data = hls_designs.made("residual")
    for name in ("one", "two"):
        Hls(board=hls_designs.LARGE).emit(model, tmp_path / name, [data])
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


HOSTILE = '"); system("touch pwned"); //*/\n#include "/etc/passwd" \\\n??/ $(shell rm -rf /) [exec ls] {{ 7 * 7 }}'


def test_names_from_the_file_reach_no_code(tmp_path):
    b = small.Builder(4)
    x = b.input("x", ["N", 3, 6, 6])
    proto = b.model(b.op("Relu", b.conv(x, 3, 8), name="y"))
    for node in proto.graph.node:
        node.name = HOSTILE + node.name
    rename = {"y": HOSTILE, "x": "in" + HOSTILE}
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = rename.get(name, name)
    proto.graph.input[0].name, proto.graph.output[0].name = rename["x"], rename["y"]
    data = {rename["x"]: np.random.default_rng(0).normal(size=(8, 3, 6, 6)).astype("f4")}
    model = qcomp.compile(proto, [data], to="hls").model
    found = simulated(model, data, tmp_path / "design")
    expected = next(iter(runtime.run_batches(runtime.session(model), [data]).values()))
    np.testing.assert_array_equal(found.run(None, data)[0], expected)
    for path in (tmp_path / "design").rglob("*"):
        if path.suffix in (".cpp", ".h", ".tcl", ".py", ".md") or path.name == "Makefile":
            text = path.read_text()
            for part in ("system(", "$(shell rm", "[exec", "??/", "*/ ", '#include "/', "{{ 7"):
                assert part not in text, (path, part)
    assert not (tmp_path / "design" / "pwned").exists()


@pytest.mark.parametrize("shape", [("N", 12), ("N", 12, 5, 4)])
def test_softmax_ends_a_design(shape, tmp_path):
    b = small.Builder(6)
    x = b.input("x", shape)
    hidden = b.op("MatMul", x, b.random(12, 9)) if len(shape) == 2 else b.conv(x, 12, 9, 1)
    proto = b.model(b.op("Softmax", b.op("Mul", hidden, b.constant(4.0)), name="y", axis=1))
    data = {"x": np.random.default_rng(0).normal(size=(64, *shape[1:])).astype("f4")}
    model = qcomp.compile(proto, [data], to="hls").model
    expected = runtime.run_batches(runtime.session(model), [data])["y"]
    np.testing.assert_array_equal(simulated(model, data, tmp_path / "design").run(None, data)[0], expected)
    assert expected.max() > 0.5


@pytest.mark.parametrize("kind", ["Softmax", "LayerNormalization"])
def test_what_has_no_hardware_is_refused_by_name(kind, tmp_path):
    b = small.Builder(5)
    hidden = b.op("MatMul", b.input("x", ["N", 16]), b.random(16, 8))
    more = [b.random(8, positive=True), b.random(8)] if kind == "LayerNormalization" else []
    hidden = b.op("Reshape", hidden, b.constant(np.array([0, 2, 4], "i8"))) if kind == "Softmax" else hidden
    proto = b.model(b.op(kind, hidden, *more, name="y", axis=-1))
    data = {"x": np.random.default_rng(0).normal(size=(16, 16)).astype("f4")}
    with pytest.raises(UnsupportedError, match=r"has no hardware|makes"):
        qcomp.compile(proto, [data], to="hls", out=tmp_path / "design")
    assert not (tmp_path / "design").exists()


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    model, data = hls_designs.made("shortcut")
    with pytest.raises(OutputError, match="other files"):
        Hls().emit(model, tmp_path / "mine", [data])
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    for _ in range(2):
        Hls().emit(model, tmp_path / "ours", [data])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "ours"]


def clipped(b: small.Builder, x: str, low: float, high: float) -> str:
    return b.op("Clip", x, b.constant(low), b.constant(high))


def zero_point_outside(b: small.Builder) -> str:
    """A Clip whose values are far from 0: their zero point needs more bits than they do."""
    x = clipped(b, b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4, pads=[1] * 4), -6.0, -4.0)
    return b.op("Add", b.conv(x, 4, 4, pads=[1] * 4), x, name="y")


def table_far_from_zero(b: small.Builder) -> str:
    x = b.op("Sub", b.op("Neg", b.op("Sigmoid", b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4))), b.constant(1.5))
    return b.op("GlobalAveragePool", b.conv(x, 4, 4, pads=[1] * 4), name="y")


def fixed_batch(b: small.Builder) -> str:
    return b.op("Relu", b.conv(b.input("x", [8, 3, 6, 6]), 3, 4), name="y")


def padded_behind(b: small.Builder) -> str:
    return b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4, 1, pads=[0, 0, 1, 1], name="y")


@pytest.mark.parametrize("network", [zero_point_outside, table_far_from_zero, fixed_batch, padded_behind])
def test_odd_ones(network, tmp_path):
    b = small.Builder(7)
    proto = b.model(network(b))
    count = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 64
    data = {"x": (4 * np.random.default_rng(0).normal(size=(count, 3, 6, 6))).astype("f4")}
    model = qcomp.compile(proto, [data], to="hls").model
    expected = runtime.run_batches(runtime.session(model), [data])["y"]
    np.testing.assert_array_equal(simulated(model, data, tmp_path / "design").run(None, data)[0], expected)


def test_a_flattened_image_and_a_vector_are_not_added(tmp_path):
    b = small.Builder(8)
    flat = b.op("Flatten", b.op("Relu", b.conv(b.input("x", ["N", 3, 4, 4]), 3, 4)))
    proto = b.model(b.op("Add", flat, b.op("Gemm", flat, b.random(16, 16), b.random(16)), name="y"))
    data = {"x": np.random.default_rng(0).normal(size=(16, 3, 4, 4)).astype("f4")}
    with pytest.raises(UnsupportedError, match="do not arrive in the same order"):
        qcomp.compile(proto, [data], to="hls", out=tmp_path / "design")


def test_what_lies_in_a_project_is_not_lost(tmp_path):
    model, data = hls_designs.made("shortcut")
    Hls().emit(model, tmp_path / "design", [data])
    samples = tmp_path / "design" / "samples.npz"
    samples.write_bytes(b"hours of work")
    with pytest.raises(OutputError, match=r"samples\.npz"):
        Hls().check_place(tmp_path / "design")
    with pytest.raises(OutputError, match=r"samples\.npz"):
        Hls().emit(model, tmp_path / "design", [data])
    samples.unlink()
    (tmp_path / "design" / "testbench" / "mine.txt").write_text("vectors")
    with pytest.raises(OutputError, match=r"testbench/mine\.txt"):
        Hls().check_place(tmp_path / "design")
    (tmp_path / "design" / "testbench" / "mine.txt").unlink()
    with pytest.raises(OutputError, match="holds what this command reads"):
        Hls().check_place(tmp_path / "design", [tmp_path / "design" / "model.onnx"])


def test_the_old_project_stays_where_the_new_one_cannot_come(tmp_path, monkeypatch):
    model, data = hls_designs.made("shortcut")
    Hls().emit(model, tmp_path / "design", [data])
    replace = project.os.replace

    def full(source, target):
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(project.os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        Hls().emit(model, tmp_path / "design", [data])
    assert (tmp_path / "design" / "model.onnx").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["design"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"input": 3, "output": 4}', "bits", "channels"])
def test_a_damaged_project_says_so(damage, tmp_path):
    model, data = hls_designs.made("shortcut")
    Hls().emit(model, tmp_path / "design", [data])
    mark = tmp_path / "design" / project.MARK
    text = mark.read_text()
    mark.write_text(text.replace(f'"{damage}": ', f'"{damage}": 1') if damage.isalpha() else damage)
    with pytest.raises(ModelError, match="damaged"):
        csim.Simulation(tmp_path / "design")


def test_windows_that_begin_behind_the_image_are_refused(tmp_path):
    """ONNX's shape inference counts them, and ONNX Runtime does not."""
    b = small.Builder(9)
    x = b.conv(b.input("x", ["N", 3, 11, 11]), 3, 7, 1)
    pooled = b.op("MaxPool", x, kernel_shape=[3, 2], strides=[3, 3], pads=[1, 0, 1, 1], ceil_mode=1)
    proto = b.model(b.op("GlobalAveragePool", pooled, name="y"))
    data = {"x": np.random.default_rng(0).normal(size=(16, 3, 11, 11)).astype("f4")}
    with pytest.raises(UnsupportedError, match="begins in the padding"):
        qcomp.compile(proto, [data], to="hls", out=tmp_path / "design")


@pytest.mark.parametrize("rate", ["nan", "inf", "-3"])
def test_what_is_no_rate_is_refused(rate, tmp_path):
    model, data = hls_designs.made("shortcut")
    with pytest.raises(OptionError, match="samples a second"):
        Hls(rate=float(rate)).emit(model, tmp_path / "design", [data])


def test_any_positive_rate_will_do(tmp_path):
    model, data = hls_designs.made("shortcut")
    assert Hls(rate=1e-320).emit(model, tmp_path / "design", [data]) == [tmp_path / "design"]


def test_errors_of_the_compiler_are_shown(tmp_path):
    model, data = hls_designs.made("shortcut")
    Hls().emit(model, tmp_path / "design", [data])
    (tmp_path / "design" / "firmware" / "top.cpp").write_text("int x = y;")
    simulation = csim.Simulation(tmp_path / "design")
    with pytest.raises(qcomp.QcompError, match="the compiler fails"):
        runtime.run_batches(simulation, [data])
