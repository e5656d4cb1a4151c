"""Activations of every type through the compiler, and the 8 bits at a model's ends beside narrow ones."""

from __future__ import annotations

import numpy as np
import pytest
import quantized
import small_graphs as small

import qcomp
from qcomp import qdq
from qcomp.errors import UnsupportedError
from qcomp.models import digits

IMAGES = digits.data()
CALIBRATION = {"image": IMAGES["train"][:64]}
TEST = {"image": IMAGES["test"][:200]}


def line(**options) -> str:
    text = " ".join(["ranges=minmax", *(f"{k}={v}" for k, v in options.items())])
    return quantized.WITHOUT_CHOICE.replace("ranges=minmax", text)


def outputs(activations: str, **options) -> np.ndarray:
    return qcomp.compile(digits.load("cnn"), CALIBRATION, activations=activations, **options).run(TEST)["logits"]


@pytest.mark.parametrize("kind", ["uint4", "uint5", "uint6", "uint7", "uint8", "int4", "int8", "uint16", "int16"])
def test_every_type_keeps_the_accuracy(kind):
    right = outputs(kind).argmax(axis=1) == IMAGES["test_labels"][:200]
    assert right.mean() > 0.96


@pytest.mark.parametrize("form", ["qlinear", "integer"])
@pytest.mark.parametrize("kind", ["int8", "uint16", "int16"])
def test_integer_forms_name_what_they_take(form, kind):
    with pytest.raises(UnsupportedError, match=r"integer forms take uint8 activations.*or a shorter uint type"):
        outputs(kind, to=f"onnxruntime{{form={form}}}")


@pytest.mark.parametrize("kind", ["uint4", "uint6"])
def test_integer_forms_of_narrow_types_agree(kind):
    found = [outputs(kind, to=f"onnxruntime{{form={form}}}") for form in ("qlinear", "integer")]
    np.testing.assert_array_equal(*found)


def bounds(model):
    """The greatest and least integer of every activation, by name."""
    found = [r for n in model.graph for v in n.outputs if (r := qdq.read(v)) is not None and not r.scale.ndim]
    return {qdq.float_name(r.dequantize.outputs[0]): r.bounds or (0, 255) for r in found if r.quantize is not None}


def three_layers(seed: int):
    b = small.Builder(seed)
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 9, 9]), 4, 8))
    x = b.op("Relu", b.conv(x, 8, 8))
    b.op("Identity", b.conv(x, 8, 5), name="y")
    return b.model("y")


def test_the_ends_have_eight_bits_and_what_lies_between_has_not():
    wide, same = (
        bounds(quantized.quantize(three_layers(0), line=line(activations="uint4", wide_ends=w)))
        for w in ("true", "false")
    )
    assert wide["x"] == wide["y"] == (0, 255)
    assert set(same.values()) == {(0, 15)}
    assert sorted(wide.values()) == [(0, 15), (0, 15), (0, 255), (0, 255)]


@pytest.mark.parametrize("seed", range(3))
def test_eight_bits_at_the_ends_lose_less(seed):
    proto = three_layers(seed)
    before = quantized.loaded(proto)
    inputs = small.feeds(before, 7, 16)
    noise = [
        quantized.sqnr(before, quantized.quantize(proto, line=line(activations="uint4", wide_ends=w)), inputs)["y"]
        for w in ("true", "false")
    ]
    assert noise[0] > noise[1] + 1
