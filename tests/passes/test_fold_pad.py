from __future__ import annotations

import numpy as np
import pytest
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import files
from qcomp.calibration.observers import Statistics
from qcomp.passes.fold_pad import FoldPad

pads4 = st.lists(st.integers(0, 2), min_size=4, max_size=4)


def fold(proto, *, changed=True):
    model = files.load(proto)
    inputs = small.feeds(model, 7)
    before = small.run(model, inputs)
    assert FoldPad().run(model, Statistics()) is changed
    assert small.moved(before, small.run(model, inputs)) < 1e-6
    return model


def pad(b, x, pads, *, axes=None, value=None, **attributes):
    full = [0, 0, *pads[:2], 0, 0, *pads[2:]] if axes is None else pads
    inputs = [b.constant(np.array(full)), "" if value is None else b.constant(np.float32(value))]
    return b.op("Pad", x, *inputs, *([] if axes is None else [b.constant(np.array(axes))]), **attributes)


@settings(deadline=None, max_examples=40)
@given(
    pads=pads4, own=pads4, by_axes=st.booleans(), valid=st.booleans(), stride=st.integers(1, 2), group=st.integers(1, 2)
)
def test_into_a_convolution(pads, own, by_axes, valid, stride, group):
    b = small.Builder()
    x = b.input("x", ["N", 4, 6, 7])
    x = pad(b, x, pads, axes=[-2, 3], value=0.0) if by_axes else pad(b, x, pads)
    attributes = {"auto_pad": "VALID"} if valid else {"pads": own}
    b.op("Conv", x, b.random(4, 4 // group, 3, 2), name="y", strides=[stride] * 2, group=group, **attributes)
    assert small.kinds(fold(b.model("y"))) == ["Conv"]


@settings(deadline=None, max_examples=40)
@given(pads=st.lists(st.integers(0, 1), min_size=4, max_size=4), own=st.integers(0, 1), stride=st.integers(1, 3))
def test_into_an_average_that_counts_its_pads(pads, own, stride):
    b = small.Builder()
    attributes = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [own] * 4, "count_include_pad": own}
    b.op("AveragePool", pad(b, b.input("x", ["N", 2, 6, 7]), pads), name="y", **attributes)
    assert small.kinds(fold(b.model("y"))) == ["AveragePool"]


def test_into_all_who_read_it_and_through_two_pads():
    b = small.Builder()
    x = pad(b, pad(b, b.input("x", ["N", 2, 6, 6]), [1, 0, 0, 1]), [0, 1, 1, 1])
    b.op("Add", b.conv(x, 2, 3), b.conv(x, 2, 3), name="y")
    assert small.kinds(fold(b.model("y"))) == ["Conv", "Conv", "Add"]


REFUSED = {
    "reflect": ({"mode": "reflect"}, {}, "does not pad with a constant"),
    "ones": ({"value": 1.0}, {}, "does not pad with zeros"),
    "crop": ({"pads": [-1, 0, 0, 0]}, {}, "crops"),
    "channels": ({"pads": [1, 1], "axes": [1]}, {}, "the channels"),
    "same": ({}, {"auto_pad": "SAME_UPPER"}, "auto_pad"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_a_convolution(case, caplog):
    padding, attributes, reason = REFUSED[case]
    b = small.Builder()
    x = pad(b, b.input("x", ["N", 2, 6, 6]), **({"pads": [1, 1, 1, 1]} | padding))
    b.conv(x, 4 if case == "channels" else 2, 3, **attributes)
    with caplog.at_level("INFO"):
        fold(b.model(b.nodes[-1].output[0]), changed=False)
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("MaxPool", {}),
        ("AveragePool", {"ceil_mode": 1}),
        ("AveragePool", {"pads": [1] * 4}),
        ("LpPool", {}),
    ],
)
def test_refused_by_pools(kind, attributes):
    b = small.Builder()
    x = b.op("Relu", pad(b, b.input("x", ["N", 2, 6, 6]), [1] * 4))
    x = pad(b, x, [1] * 4)
    b.op(kind, x, name="y", kernel_shape=[2, 2], **attributes)
    assert "Pad" in small.kinds(fold(b.model("y"), changed=False))


def test_refused_where_another_reads_it_or_it_is_an_output():
    b = small.Builder()
    x = pad(b, b.input("x", ["N", 2, 6, 6]), [1] * 4)
    b.op("Relu", x, name="z")
    conv = b.conv(x, 2, 3)
    fold(b.model(conv, "z"), changed=False)
    fold(b.model(conv, x, "z"), changed=False)
