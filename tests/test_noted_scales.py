"""Scales noted on integer values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small

from qcomp import files, noted_scales


def value():
    return ir.Value(name="x_quantized", type=ir.TensorType(ir.DataType.UINT8))


def test_a_note_is_read_back_exactly():
    x = value()
    noted_scales.note(x, float(np.float32(0.1)), 128)
    scale, zero = noted_scales.read(x)
    assert (np.float32(scale), zero) == (np.float32(0.1), 128)


@pytest.mark.parametrize(
    "text", ["", "0.1", "nan 3", "-1 3", "0 3", "inf 3", "0.1 300", "0.1 -1", "0.1 x", "a b c", "1e-46 0", "1e39 0"]
)
def test_a_note_from_a_stranger_that_makes_no_sense_is_none(text):
    x = value()
    x.metadata_props[noted_scales.KEY] = text
    assert noted_scales.read(x) is None


def test_notes_survive_a_file_and_become_dequantized_values(tmp_path):
    b = small.Builder(0)
    b.op("Relu", b.conv(b.conv(b.input("x", ["N", 4, 8, 8]), 4, 4), 4, 4), name="y")
    made = quantized.quantize(b.model("y"), line=f"{quantized.WITHOUT_CHOICE},dyadic-rescale")
    model = files.read(files.save(made, tmp_path / "m.onnx")[0])
    shown = noted_scales.with_dequantized(model)
    dequantized = [n.outputs[0].name for n in shown.graph if n.op_type == "DequantizeLinear"]
    assert len(dequantized) == 2
    assert sum(n.op_type == "DequantizeLinear" for n in model.graph) == 1
    assert any(name.endswith("_dequantized") for name in dequantized)


def test_a_note_of_fewer_bits_is_that_of_what_their_clip_gives():
    b = small.Builder(0)
    b.op("Relu", b.conv(b.conv(b.input("x", ["N", 4, 8, 8]), 4, 4, name="h"), 4, 4), name="y")
    narrow = quantized.WITHOUT_CHOICE.replace("ranges=minmax", "ranges=minmax activations=uint4 wide_ends=false")
    line = f"{narrow},dyadic-rescale"
    shown = noted_scales.with_dequantized(quantized.quantize(b.model("y"), line=line))
    read = {n.outputs[0].name: n.inputs[0].name for n in shown.graph if n.op_type == "DequantizeLinear"}
    assert read == {"h_dequantized": "h_clipped", "y": "y_clipped"}
    assert len({n.name for n in shown.graph}) == len(shown.graph)
