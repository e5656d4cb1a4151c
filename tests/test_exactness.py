"""Which weights may saturate where neighbouring products are added in 16 bits, and what a model needs for it."""

from __future__ import annotations

import logging

import integer_forms as forms
import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from protos import FLOAT, const, info, model_of, node

from qcomp import exactness, runtime
from qcomp.errors import ModelError
from qcomp.exactness import DOT_PRODUCT, EVERYWHERE

RNG = np.random.default_rng(0)
DENSE = ("MatMulInteger", "QLinearMatMul", "qdq MatMul", "QGemm", "qdq Gemm")
CONVOLUTIONS = ("QLinearConv", "qdq Conv")
IMAGE = (1, 4, 5, 5)


def needed(proto) -> str:
    return exactness.needed(ir.from_proto(proto))


def pairwise(weights: np.ndarray) -> bool:
    """By force: whether some pair of a row of weights leaves int16 for some pair of inputs."""
    for row in weights.astype(int):
        sums = [a * x + b * y for i, a in enumerate(row) for b in row[i + 1 :] for x in (0, 255) for y in (0, 255)]
        if sums and not -(2**15) <= min(sums) <= max(sums) < 2**15:
            return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_is_that_of_every_pair(seed):
    rng = np.random.default_rng(seed)
    reach = rng.integers(50, 128)
    weights = rng.integers(-reach, reach + 1, (3, rng.integers(1, 6))).astype(np.int8)
    assert exactness.saturates(weights, 0) == exactness.saturates(weights.T, 1) == pairwise(weights)


def test_weights_at_the_bound():
    assert not exactness.saturates(np.int8([[64, 64, -64, -64]]), 0)
    assert not exactness.saturates(np.int8([[127, 1, -127, -1]]), 0)
    assert exactness.saturates(np.int8([[65, 64]]), 0)
    assert exactness.saturates(np.int8([[-127, 0, -2]]), 0)
    assert not exactness.saturates(np.int8([[127], [-128], [127]]), 0), "one weight a channel has no neighbour"
    assert exactness.saturates(np.int8([[127], [-128], [127]]), 1)
    assert not exactness.saturates(forms.at_the_bound(RNG, 5, 3, 2, 2), 0)
    assert exactness.saturates(forms.at_the_bound(RNG, 5, 3, 2, 2, excess=1), 0)


@pytest.mark.parametrize("kind", DENSE)
def test_matrix_products(kind):
    """The columns are channels, or the rows with transB: each alone is at the bound, all together are beyond."""
    safe, full = forms.at_the_bound(RNG, 6, 20), forms.full_range(RNG, 6, 20)
    assert needed(forms.product(kind, safe.T.copy())) == EVERYWHERE
    assert needed(forms.product(kind, full.T.copy())) == DOT_PRODUCT
    column = np.zeros((20, 6), np.int8)
    column[:2, 3] = 127, -127
    column[4, :] = 127
    assert needed(forms.product(kind, column)) == DOT_PRODUCT
    column[4, 3] = 1
    assert needed(forms.product(kind, column)) == EVERYWHERE
    if "Gemm" in kind:
        assert needed(forms.product(kind, column.T.copy(), transB=1)) == EVERYWHERE
        assert needed(forms.product(kind, full, transB=1)) == DOT_PRODUCT


def test_batched_products_are_proved_one_matrix_at_a_time():
    one, other = np.int8([[127, 0], [0, 5]]), np.int8([[0, 0], [9, 127]])
    expected = {EVERYWHERE: np.stack([one, other]), DOT_PRODUCT: np.stack([one, np.int8([[64, 9], [65, 127]])])}
    for where, weights in expected.items():
        proto = model_of(
            [node("MatMulInteger", "x w")],
            [info("x", forms.KINDS["uint8"], [2, 3, 2])],
            [info("y", forms.KINDS["int32"], None)],
            [const("w", weights)],
        )
        assert needed(proto) == where


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind):
    assert needed(forms.product(kind, forms.at_the_bound(RNG, 6, 4, 3, 3), shape=IMAGE)) == EVERYWHERE
    assert needed(forms.product(kind, forms.full_range(RNG, 6, 4, 3, 3), shape=IMAGE)) == DOT_PRODUCT
    assert needed(forms.product(kind, forms.full_range(RNG, 6, 2, 3, 3), shape=IMAGE, group=2)) == DOT_PRODUCT
    assert needed(forms.product(kind, forms.full_range(RNG, 8, 1, 3, 3), shape=IMAGE, group=4)) == DOT_PRODUCT
    assert needed(forms.product(kind, forms.full_range(RNG, 4, 1, 3, 3), shape=IMAGE, group=4)) == EVERYWHERE


def test_types_that_are_not_multiplied_in_pairs():
    full = forms.full_range(RNG, 20, 6)
    unsigned = np.full((20, 6), 255, np.uint8)
    assert needed(forms.product("MatMulInteger", unsigned)) == EVERYWHERE
    assert needed(forms.product("QLinearMatMul", unsigned)) == EVERYWHERE
    assert needed(forms.product("MatMulInteger", full, "int8")) == EVERYWHERE
    assert needed(forms.product("QLinearMatMul", full, "int8")) == EVERYWHERE
    assert needed(forms.product("qdq MatMul", full, "int8")) == DOT_PRODUCT, "ONNX Runtime makes uint8 of int8 data"
    kernel = forms.full_range(RNG, 6, 4, 3, 3)
    assert needed(forms.product("ConvInteger", kernel, shape=IMAGE)) == EVERYWHERE
    assert needed(forms.product("ConvInteger", np.abs(kernel).astype(np.uint8), "int8", shape=IMAGE)) == DOT_PRODUCT


@pytest.mark.parametrize(("other", "where"), [("uint8", EVERYWHERE), ("int8", DOT_PRODUCT)])
@pytest.mark.parametrize("kind", ["MatMulInteger", "QLinearMatMul"])
def test_products_of_activations(kind, other, where):
    proto = forms.product(kind, np.zeros((20, 6), other))
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "w"))
    proto.graph.input.append(info("w", forms.KINDS[other], [20, 6]))
    assert needed(proto) == where


def between_dequantize(*weights) -> str:
    """What a MatMul of uint8 by weights ``w_real`` needs, where these nodes and tensors make them."""
    nodes = [item for item in weights if not hasattr(item, "raw_data")]
    tensors = [item for item in weights if hasattr(item, "raw_data")]
    tensors += [const("one", np.float32(1)), const("zero", np.uint8(0)), const("none", np.int8(0))]
    nodes = [*nodes, node("DequantizeLinear", "x one zero", "x_real"), node("MatMul", "x_real w_real")]
    return needed(model_of(nodes, [info("x", forms.KINDS["uint8"], ["N", 4])], [info("y", FLOAT, None)], tensors))


@pytest.mark.parametrize(("reach", "where"), [(7, EVERYWHERE), (64, EVERYWHERE), (65, DOT_PRODUCT)])
def test_weights_that_are_clipped_or_not_yet_rounded(reach, where):
    bounds = [const("low", np.int8(-reach)), const("high", np.int8(reach)), node("Clip", "i low high", "c")]
    dequantize = node("DequantizeLinear", "c one none", "w_real")
    assert between_dequantize(const("i", np.full((4, 2), 127, np.int8)), *bounds, dequantize) == where
    quantize = node("QuantizeLinear", "f one none", "i")
    assert between_dequantize(const("f", np.ones((4, 2), np.float32)), quantize, *bounds, dequantize) == where


def test_weights_that_are_not_multiplied_as_integers():
    full = const("w", forms.full_range(RNG, 4, 2))
    assert between_dequantize(full, node("DequantizeLinear", "w one none", "w_real")) == DOT_PRODUCT
    nodes = [node("DequantizeLinear", "w one", "w_real"), node("MatMul", "x w_real")]
    only = model_of(nodes, [info("x", FLOAT, ["N", 4])], [info("y", FLOAT, None)], [full, const("one", np.float32(1))])
    assert needed(only) == EVERYWHERE
    assert needed(forms.layer("float", np.eye(4))) == EVERYWHERE
    assert needed(forms.product("qdq MatMul", forms.full_range(RNG, 20, 2), "uint16")) == EVERYWHERE


@pytest.mark.parametrize("form", forms.FORMS)
def test_the_metadata(form, tmp_path):
    safe = ir.from_proto(forms.layer(form, forms.at_the_bound(RNG, 6, 6).T.copy()))
    full = ir.from_proto(forms.layer(form, forms.full_range(RNG, 6, 6).T.copy()))
    assert exactness.read(safe) is None
    assert exactness.record(safe) == EVERYWHERE
    assert exactness.record(full) == DOT_PRODUCT
    ir.save(full, tmp_path / "m.onnx")
    saved = ir.load(tmp_path / "m.onnx")
    assert saved.metadata_props == {"qcomp.exact": "dot-product"}
    assert exactness.read(saved) == DOT_PRODUCT
    saved.metadata_props["qcomp.exact"] = "sometimes"
    assert exactness.read(saved) is None


def test_weights_in_a_function():
    body = [node("MatMulInteger", "a b")]
    function = helper.make_function("qcomp", "Product", ["a", "b"], ["y"], body, [helper.make_opsetid("", 21)])
    call = helper.make_node("Product", ["x", "w"], ["y"], domain="qcomp")
    ends = [info("x", forms.KINDS["uint8"], ["N", 20])], [info("y", forms.KINDS["int32"], None)]
    for weights, where in ((forms.full_range(RNG, 20, 6), DOT_PRODUCT), (np.ones((20, 6), np.int8), EVERYWHERE)):
        assert needed(model_of([call], *ends, [const("w", weights)], domains=["qcomp"], functions=[function])) == where


@pytest.fixture
def inexact(monkeypatch):
    monkeypatch.setattr(exactness, "probe", lambda: False)


def test_a_warning_where_the_model_needs_what_the_machine_lacks(inexact, caplog):
    full, safe = (ir.from_proto(forms.product("MatMulInteger", w)) for w in _weights())
    exactness.warn(safe, "safe.onnx")
    assert not caplog.records
    exactness.warn(full, "full.onnx")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    message = caplog.records[0].getMessage()
    assert message.startswith("full.onnx: ")
    assert "portable=true" in message
    assert "\n" not in message


def _weights() -> tuple[np.ndarray, np.ndarray]:
    return forms.full_range(RNG, 20, 6), forms.at_the_bound(RNG, 6, 20).T.copy()


def test_the_metadata_are_not_believed(inexact, caplog):
    full, safe = (ir.from_proto(forms.product("MatMulInteger", w)) for w in _weights())
    safe.metadata_props[exactness.KEY] = DOT_PRODUCT
    exactness.warn(safe, "safe.onnx")
    assert not caplog.records
    full.metadata_props[exactness.KEY] = EVERYWHERE
    exactness.warn(full, "full.onnx")
    assert len(caplog.records) == 1


def test_a_broken_model_is_no_matter_of_warnings(inexact, caplog, monkeypatch):
    def unreadable(_):
        raise ModelError("broken")

    monkeypatch.setattr(exactness, "needed", unreadable)
    exactness.warn(ir.from_proto(forms.product("MatMulInteger", _weights()[0])), "unknown.onnx")
    assert not caplog.records


def test_no_warning_where_the_machine_is_exact(caplog, monkeypatch):
    monkeypatch.setattr(exactness, "probe", lambda: True)
    exactness.warn(ir.from_proto(forms.product("MatMulInteger", _weights()[0])), "full.onnx")
    assert not caplog.records


def test_the_probe_asks_once(monkeypatch):
    exactness.probe.cache_clear()
    first = exactness.probe()
    monkeypatch.setattr(runtime, "run", lambda *_: pytest.fail("asked again"))
    assert exactness.probe() == first


@pytest.mark.skipif(not exactness.probe(), reason="this machine has no 8-bit dot products")
def test_the_probe_sees_each_operator_saturate(monkeypatch):
    true_run, asked = runtime.run, []

    def all_but_one(runner, names, feeds):
        found = true_run(runner, names, feeds)
        index = len(asked)
        asked.append(names[index])
        middle = 0 if found[index].dtype == np.int32 else 128
        found[index] = (found[index].astype(int) - middle) // 2 + middle
        return found

    monkeypatch.setattr(runtime, "run", all_but_one)
    for _ in range(8):
        exactness.probe.cache_clear()
        assert not exactness.probe()
    assert len(set(asked)) == 8
    exactness.probe.cache_clear()
