"""Scales and zero points: their choice, and QuantizeLinear and DequantizeLinear bit for bit."""

import functools
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from qcomp.quantization.qparams import TINY, QParams
from qcomp.quantization.qtype import QType

LARGEST = float(np.finfo(np.float32).max)
CONTAINERS = {
    QType(8, signed=False): TensorProto.UINT8,
    QType(8, signed=True): TensorProto.INT8,
    QType(16, signed=False): TensorProto.UINT16,
    QType(16, signed=True): TensorProto.INT16,
}
TYPES = [QType(b, s, n) for b in (2, 3, 4, 5, 7, 8, 16) for s, n in ((False, False), (True, False), (True, True))]
FULL = st.sampled_from(list(CONTAINERS))
SCALES = st.one_of(
    st.floats(TINY, LARGEST, width=32), st.floats(2**-10, 2**10, width=32), st.integers(-126, 127).map(lambda e: 2.0**e)
)
FLOATS = st.floats(-LARGEST, LARGEST, width=32)


@functools.cache
def session(operator: str, kind: QType, axis: int | None) -> ort.InferenceSession:
    """The operator alone; x has two axes."""
    element, channel = CONTAINERS[kind], [] if axis is None else ["C"]
    source, target = TensorProto.FLOAT, element
    if operator == "DequantizeLinear":
        source, target = target, source
    node = helper.make_node(operator, ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
    info = helper.make_tensor_value_info
    inputs = [info("x", source, ["A", "B"]), info("s", TensorProto.FLOAT, channel), info("z", element, channel)]
    graph = helper.make_graph([node], "g", inputs, [info("y", target, ["A", "B"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString())


def reference(operator: str, params: QParams, x: np.ndarray) -> np.ndarray:
    feeds = {"x": x, "s": params.scale, "z": params.zero_point}
    return session(operator, params.qtype, params.axis).run(None, feeds)[0]


@st.composite
def params_and_shape(draw):
    kind, axis = draw(FULL), draw(st.sampled_from([None, 0, 1]))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    channels = () if axis is None else (shape[axis],)
    scale = draw(hnp.arrays(np.float32, channels, elements=SCALES))
    zero = draw(hnp.arrays(kind.container, channels, elements=st.integers(kind.qmin, kind.qmax)))
    return QParams(kind, scale, zero, axis), shape


@st.composite
def quantizations(draw):
    """Parameters, and values among which are ties, saturated ones and any others."""
    params, shape = draw(params_and_shape())
    steps = draw(hnp.arrays(np.float32, shape, elements=st.integers(-70000, 70000).map(lambda n: n / 2)))
    with np.errstate(over="ignore"):
        near = steps * params.broadcast(params.scale, shape)
    anything = draw(hnp.arrays(np.float32, shape, elements=FLOATS))
    take = draw(hnp.arrays(bool, shape))
    return params, np.where(take & np.isfinite(near), near, anything).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(quantizations())
def test_quantize_is_onnx_bit_for_bit(case):
    params, x = case
    ours = params.quantize(x)
    theirs = reference("QuantizeLinear", params, x)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=200, deadline=None)
@given(params_and_shape(), st.data())
def test_dequantize_is_onnx_bit_for_bit(case, data):
    params, shape = case
    kind = params.qtype
    q = data.draw(hnp.arrays(kind.container, shape, elements=st.integers(kind.qmin, kind.qmax)))
    ours = params.dequantize(q)
    assert ours.dtype == np.float32
    assert ours.tobytes() == reference("DequantizeLinear", params, q).tobytes()


@pytest.mark.parametrize("kind", CONTAINERS, ids=str)
def test_chosen_values_are_onnx_bit_for_bit(kind):
    rng = np.random.default_rng(0)
    steps = np.arange(-600, 600, dtype=np.float32) / 2
    values = [steps, np.nextafter(steps, np.float32(0)), np.float32([0, -0.0, 1e-45, -1e-45, 1e-38, LARGEST, -LARGEST])]
    for scale in (1.0, 0.1, 1 / 3, 1e-3, TINY, 1e30, *rng.uniform(1e-3, 10, 20)):
        for zero in {kind.qmin, kind.qmax, 0, (kind.qmin + kind.qmax) // 2, kind.qmin + 1}:
            params = QParams(kind, np.asarray(scale, np.float32), np.asarray(zero, kind.container))
            x = np.concatenate([*values, *(v * np.float32(scale) for v in values[:2])])[None].astype(np.float32)
            np.testing.assert_array_equal(params.quantize(x), reference("QuantizeLinear", params, x))


def test_the_order_of_operations():
    """x / scale, not x * (1 / scale); rounded to even before the zero point is added; then saturated."""
    params = QParams(QType(8, signed=False), np.asarray(1.0, np.float32), np.asarray(1, np.uint8))
    assert params.quantize(np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 253.5, 255, 1e9, -7])).tolist() == [
        *(1, 3, 3, 1, 0, 255, 255, 255, 0)
    ]
    scale = np.float32(0.3)
    x = (np.arange(-100, 100, dtype=np.float32) + np.float32(0.5)) * scale
    quotient, product = np.rint(x / scale), np.rint(x * (np.float32(1) / scale))
    assert (quotient != product).any(), "this case must tell the two apart"
    params = QParams(QType(8, signed=True), np.asarray(scale), np.asarray(0, np.int8))
    np.testing.assert_array_equal(params.quantize(x), quotient)


def test_quantize_below_8_bits_saturates_to_the_range_not_the_container():
    params = QParams(QType(3, signed=True, narrow=True), np.asarray(0.5, np.float32), np.asarray(0, np.int8))
    q = params.quantize(np.float32([-100, -1.5, -1.25, 0, 1.4, 100]))
    assert q.dtype == np.int8
    assert q.tolist() == [-3, -3, -2, 0, 3, 3]


@pytest.mark.parametrize("axis", [1, -3])
def test_per_axis_broadcasts_along_the_axis(axis):
    x = np.ones((2, 3, 4, 5), np.float32)
    params = QParams(QType(8, signed=True), np.float32([1, 0.5, 0.25]), np.int8([0, 1, 2]), axis)
    q = params.quantize(x)
    assert np.unique(q, axis=(1 if axis else 0)).shape[1] == 3
    assert [q[0, c, 0, 0] for c in range(3)] == [1, 3, 6]
    np.testing.assert_array_equal(params.dequantize(q), x)


def test_overflow_saturates_in_silence():
    params = QParams(QType(8, signed=False), np.asarray(TINY, np.float32), np.asarray(0, np.uint8))
    huge = QParams(QType(8, signed=False), np.asarray(LARGEST, np.float32), np.asarray(0, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert params.quantize(np.float32([LARGEST, -LARGEST])).tolist() == [255, 0]
        assert huge.dequantize(np.uint8([2])).tolist() == [np.inf]


def f32(*values):
    return np.asarray(values[0] if len(values) == 1 else values, np.float32)


@pytest.mark.parametrize(
    ("constraint", "scale", "zero", "axis"),
    [
        ("C1", f32(0), np.asarray(0), None),
        ("C1", f32(-1), np.asarray(0), None),
        ("C1", f32(np.nan), np.asarray(0), None),
        ("C1", f32(np.inf), np.asarray(0), None),
        ("C1", f32(1, 0), np.asarray([0, 0]), 0),
        ("C2", f32(1), np.asarray(8), None),
        ("C2", f32(1), np.asarray(-8), None),
        ("C2", f32(1, 1), np.asarray([0, 9]), 0),
        ("C3", f32(1), np.asarray(0), 0),
        ("C3", f32(1, 1), np.asarray([0, 0]), None),
        ("C3", f32(1, 1), np.asarray([0, 0, 0]), 0),
        ("C3", f32(1, 1), np.asarray(0), 0),
        ("C3", np.ones((2, 2), np.float32), np.zeros((2, 2), np.int8), 0),
    ],
)
def test_constraints(constraint, scale, zero, axis):
    with pytest.raises(ValueError, match=f"^{constraint}: "):
        QParams(QType(4, signed=True, narrow=True), scale, zero, axis)


RANGES = st.tuples(FLOATS, FLOATS).map(lambda ends: (min(ends), max(ends)))


@settings(max_examples=500)
@given(RANGES, st.sampled_from(TYPES))
@example((-1.0, 0.0), QType(16, signed=False))
@example((-LARGEST, 0.0), QType(8, signed=False))
@example((-LARGEST, LARGEST), QType(2, signed=True, narrow=True))
@example((0.0, 0.0), QType(8, signed=False))
@example((-1e-45, 1e-45), QType(8, signed=False))
@example((-1.0, 2.0), QType(2, signed=False))
def test_asymmetric(ends, kind):
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    params = QParams.asymmetric(*ends, kind)
    scale, zero = float(params.scale), int(params.zero_point)
    assert params.scale.dtype == np.float32
    assert params.zero_point.dtype == kind.container
    assert params.axis is None
    assert zero % 2 == 0
    assert params.quantize(f32(0)[None])[0] == zero
    assert params.dequantize(params.zero_point) == 0
    slack = 1 + 1e-6
    assert (kind.qmin - zero) * scale <= low / slack + scale * slack
    assert (kind.qmax - zero) * scale >= high / slack - scale * slack


@settings(max_examples=200)
@given(RANGES, st.sampled_from([t for t in TYPES if t.bits >= 7]))
@example((-2.9, 252.1), QType(8, signed=False))
@example((-1.1, 253.9), QType(8, signed=False))
@example((-252.1, 2.9), QType(8, signed=True))
def test_asymmetric_wastes_little(ends, kind):
    """The even zero point costs at most two of the levels, and the step is never finer than the range needs."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = float(QParams.asymmetric(*ends, kind).scale)
    ideal = (high - low) / kind.levels
    if ideal > 2 * TINY:
        assert 1 - 2 / kind.levels <= scale / ideal <= 1 + 4 / kind.levels


def test_asymmetric_refuses_ranges_that_are_not_finite():
    for low, high in ((0.0, np.nan), (np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0)):
        with pytest.raises(ValueError, match="C1"):
            QParams.asymmetric(low, high, QType(8, signed=False))


@settings(max_examples=200)
@given(
    hnp.arrays(np.float32, st.integers(1, 6), elements=st.floats(0, LARGEST, width=32)),
    st.sampled_from([t for t in TYPES if t.narrow]),
)
def test_symmetric(largest, kind):
    params = QParams.symmetric(largest, kind, axis=0)
    assert params.scale.shape == largest.shape
    assert not params.zero_point.any()
    assert params.zero_point.dtype == kind.container
    np.testing.assert_allclose(
        params.scale, np.where(largest / kind.qmax > TINY, largest / kind.qmax, params.scale), rtol=1e-6
    )
    assert (params.scale >= TINY).all()
    q = params.quantize(np.stack([largest, -largest], axis=1))
    assert (q[:, 0] == -q[:, 1]).all()
    assert (q[largest > TINY * kind.qmax, 0] == kind.qmax).all()


def test_symmetric_per_tensor():
    params = QParams.symmetric(f32(2.54), QType(8, signed=True, narrow=True))
    assert params.scale.shape == params.zero_point.shape == ()
    assert float(params.scale) == pytest.approx(0.02)
    assert QParams.symmetric(f32(0), QType(8, signed=True)).scale == 1
