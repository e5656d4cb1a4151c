"""The same integers on this machine and on one with AVX2 alone, which qemu-user emulates.

Slow: needs ``qemu-x86_64`` (Debian's qemu-user) on an x86-64 machine with 8-bit dot products. No data.
"""

from __future__ import annotations

from pathlib import Path

import integer_forms as forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from avx2 import differences, emulated, why_not
from onnx import helper
from protos import const, info, model_of, node

from qcomp import exactness

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

IMAGE = (2, 8, 7, 7)


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def network(make, rng: np.random.Generator, gain: int) -> onnx.ModelProto:
    """uint8 images through convolutions, dense, depthwise and grouped, an Add, a Gemm and a MatMul.

    Args:
        make: the weights, of a shape whose first axis is the channels.
        gain: of each layer, so that its outputs fill their range.
    """
    weights = {"dense": make(rng, 16, 8, 3, 3), "depthwise": make(rng, 16, 1, 3, 3), "grouped": make(rng, 16, 4, 3, 3)}
    weights |= {"gemm": make(rng, 12, 16 * 49), "matmul": make(rng, 10, 12)}
    steps = {f"{name}_step": forms.step_of(w[0].size, gain) for name, w in weights.items()}
    scalars = {"one": np.float32(1), "half": np.float32(0.5), "zero": np.uint8(0), "none": np.int8(0)}
    tensors = scalars | weights | steps | {"matmul": weights["matmul"].T.copy(), "middle": np.uint8(128)}
    add = ["a", "half", "middle", "c", "half", "middle", "one", "middle"]
    gemm = ["e", "one", "middle", "gemm", "gemm_step", "none", "", "one", "middle"]
    nodes = [
        _convolution("x", "zero", "dense", "a", 1),
        _convolution("a", "middle", "depthwise", "b", 16),
        _convolution("b", "middle", "grouped", "c", 4),
        helper.make_node("QLinearAdd", add, ["d"], domain="com.microsoft"),
        node("Flatten", "d", "e"),
        helper.make_node("QGemm", gemm, ["f"], domain="com.microsoft", transB=1),
        node("MatMulInteger", "f matmul middle", "y"),
    ]
    held = [const(name, array) for name, array in tensors.items()]
    outputs = [info(name, forms.KINDS["int32" if name == "y" else "uint8"], None) for name in "dfy"]
    inputs = [info("x", forms.KINDS["uint8"], ["N", *IMAGE[1:]])]
    return model_of(nodes, inputs, outputs, held, domains=["com.microsoft"])


def _convolution(data: str, zero: str, weights: str, output: str, group: int) -> onnx.NodeProto:
    inputs = f"{data} one {zero} {weights} {weights}_step none one middle"
    return node("QLinearConv", inputs, output, pads=[1] * 4, group=group)


def bright(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Large activations, of which the saturating products are made."""
    return rng.integers(200, 256, shape).astype(np.uint8)


def test_a_safe_network_is_the_same_everywhere(tmp_path):
    proto = network(forms.at_the_bound, np.random.default_rng(0), gain=8)
    assert exactness.needed(ir.from_proto(proto)) == exactness.EVERYWHERE
    for seed, make in enumerate((bright, lambda rng, *shape: rng.choice([0, 255], shape).astype(np.uint8))):
        found = differences(saved(proto, tmp_path), {"x": make(np.random.default_rng(seed), *IMAGE)})
        assert found == {"d": 0, "f": 0, "y": 0}


def test_a_network_of_full_range_is_not(tmp_path):
    proto = network(forms.full_range, np.random.default_rng(0), gain=1)
    assert exactness.needed(ir.from_proto(proto)) == exactness.DOT_PRODUCT
    found = differences(saved(proto, tmp_path), {"x": bright(np.random.default_rng(0), *IMAGE)})
    assert all(found.values()), found


def many_products(seed: int, excess: int, count: int = 60) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """MatMulIntegers of random shapes, each with inputs and weights of its own."""
    rng = np.random.default_rng(seed)
    nodes, inputs, outputs, tensors, feeds = [], [], [], [], {}
    for i in range(count):
        rows, depth, columns = int(rng.choice([1, 1, 2, 5, 8])), int(rng.integers(4, 200)), int(rng.integers(1, 70))
        low = int(rng.choice([0, 180, 255]))
        feeds[f"x{i}"] = rng.choice([low, 255], (rows, depth)).astype(np.uint8)
        tensors.append(const(f"w{i}", forms.at_the_bound(rng, columns, depth, excess=excess).T.copy()))
        tensors.append(const(f"z{i}", np.uint8(rng.integers(0, 256))))
        nodes.append(node("MatMulInteger", f"x{i} w{i} z{i}", f"y{i}"))
        inputs.append(info(f"x{i}", forms.KINDS["uint8"], [rows, depth]))
        outputs.append(info(f"y{i}", forms.KINDS["int32"], None))
    return model_of(nodes, inputs, outputs, tensors), feeds


@pytest.mark.parametrize("seed", range(3))
def test_no_weights_at_the_bound_saturate(seed, tmp_path):
    proto, feeds = many_products(seed, excess=0)
    assert not any(differences(saved(proto, tmp_path), feeds).values())


def test_weights_one_step_beyond_the_bound_do(tmp_path):
    proto, feeds = many_products(0, excess=1)
    found = differences(saved(proto, tmp_path), feeds)
    assert sum(map(bool, found.values())) > len(found) / 2


def _uint8(rng, *shape):
    return rng.integers(200, 256, shape).astype(np.uint8)


CASES = {
    "MatMulInteger": (forms.full_range, (40, 8), "uint8", {}),
    "QLinearMatMul": (forms.full_range, (40, 8), "uint8", {}),
    "QGemm": (forms.full_range, (40, 8), "uint8", {}),
    "qdq MatMul": (forms.full_range, (40, 8), "uint8", {}),
    "qdq Gemm": (forms.full_range, (40, 8), "uint8", {}),
    "QLinearConv": (forms.full_range, (6, 8, 3, 3), "uint8", {}),
    "qdq Conv": (forms.full_range, (6, 8, 3, 3), "uint8", {}),
    "ConvInteger, its operands swapped": (_uint8, (6, 8, 3, 3), "int8", {}),
    "QLinearConv, grouped": (forms.full_range, (6, 4, 3, 3), "uint8", {"group": 2}),
    "QLinearConv, two outputs a group": (forms.full_range, (16, 1, 3, 3), "uint8", {"group": 8}),
    "MatMulInteger, unsigned": (_uint8, (40, 8), "uint8", {}),
    "QLinearMatMul, unsigned": (_uint8, (40, 8), "uint8", {}),
    "MatMulInteger, signed": (forms.full_range, (40, 8), "int8", {}),
    "QLinearMatMul, signed": (forms.full_range, (40, 8), "int8", {}),
    "MatMulInteger, signed by unsigned": (_uint8, (40, 8), "int8", {}),
    "ConvInteger": (forms.full_range, (6, 8, 3, 3), "uint8", {}),
    "QLinearConv, depthwise": (forms.full_range, (8, 1, 3, 3), "uint8", {"group": 8}),
    "qdq Conv, depthwise": (forms.full_range, (8, 1, 5, 5), "uint8", {"group": 8}),
}
SAFE = 8
"""The last ones, which ONNX Runtime adds exactly whatever the weights."""


@pytest.mark.parametrize("name", CASES)
def test_the_operators_that_saturate_are_those_that_are_said_to(name, tmp_path):
    make, size, data, attributes = CASES[name]
    rng = np.random.default_rng(0)
    shape = IMAGE if "Conv" in name else (5, size[0])
    proto = forms.product(name.partition(",")[0], make(rng, *size), data, shape=shape, **attributes)
    x = bright(rng, *shape) if data == "uint8" else forms.full_range(rng, *shape)
    found = differences(saved(proto, tmp_path), {"x": x})
    expected = exactness.EVERYWHERE if name in list(CASES)[-SAFE:] else exactness.DOT_PRODUCT
    assert exactness.needed(ir.from_proto(proto)) == expected
    assert bool(found["y"]) == (expected == exactness.DOT_PRODUCT)


@pytest.mark.parametrize("form", forms.FORMS)
def test_what_is_recorded_holds_in_every_form(form, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(5, 7, (50, 12)).astype(np.float32)
    for make, name in ((forms.at_the_bound, exactness.EVERYWHERE), (forms.balanced, exactness.DOT_PRODUCT)):
        proto = forms.layer(form, make(rng, 12, 12).T.copy())
        assert exactness.needed(ir.from_proto(proto)) == name
        assert bool(differences(saved(proto, tmp_path), {"x": x})["y"]) == (name == exactness.DOT_PRODUCT)


def test_the_command_line_warns_there(tmp_path):
    rng = np.random.default_rng(0)
    model = saved(forms.layer("integer", forms.full_range(rng, 12, 12)), tmp_path)
    np.save(tmp_path / "x.npy", rng.uniform(-2, 2, (4, 12)).astype(np.float32))
    done = emulated("-m", "qcomp", "run", model, "--data", tmp_path / "x.npy", "-o", tmp_path / "y.npz")
    said = [line for line in done.stderr.splitlines() if not line.startswith("qemu-x86_64: ")]
    assert len(said) == 1
    assert said[0].startswith("warning: model.onnx: ")
