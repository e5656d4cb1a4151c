"""Ranges, containers and names of integer types."""

import numpy as np
import pytest

from qcomp.errors import OptionError
from qcomp.quantization import qtype
from qcomp.quantization.qtype import QType


@pytest.mark.parametrize(
    ("kind", "low", "high", "levels", "container", "fills"),
    [
        (QType(8, signed=False), 0, 255, 255, "uint8", True),
        (QType(8, signed=True), -128, 127, 255, "int8", True),
        (QType(8, signed=True, narrow=True), -127, 127, 254, "int8", False),
        (QType(7, signed=False), 0, 127, 127, "uint8", False),
        (QType(4, signed=True), -8, 7, 15, "int8", False),
        (QType(4, signed=True, narrow=True), -7, 7, 14, "int8", False),
        (QType(2, signed=True, narrow=True), -1, 1, 2, "int8", False),
        (QType(2, signed=False), 0, 3, 3, "uint8", False),
        (QType(16, signed=False), 0, 65535, 65535, "uint16", True),
        (QType(16, signed=True), -32768, 32767, 65535, "int16", True),
    ],
)
def test_range_and_container(kind, low, high, levels, container, fills):
    assert (kind.qmin, kind.qmax, kind.levels) == (low, high, levels)
    assert kind.container == np.dtype(container)
    assert kind.fills_container is fills


def test_every_name_is_read_and_written():
    assert len(qtype.NAMES) == len(set(qtype.NAMES)) == 16
    for name in qtype.NAMES:
        found = qtype.parse(name, "weights")
        assert str(found) == name
        assert not found.narrow
        assert found.container.itemsize * 8 >= found.bits


def test_weights_are_symmetric():
    assert qtype.parse_weight("int4", "weights") == QType(4, signed=True, narrow=True)
    assert QType(8, signed=False).as_weight() == QType(8, signed=False)


@pytest.mark.parametrize(
    "name", ["", "int", "int1", "int9", "int17", "int08", "uint", "float8", "INT8", "int8 ", "-int8"]
)
def test_refuses_unknown_names(name):
    with pytest.raises(OptionError, match="unknown type"):
        qtype.parse(name, "insert-qdq{weights}")


def test_guesses_the_nearest_name():
    with pytest.raises(OptionError, match=r"insert-qdq\{weights\}: unknown type 'int88' \(did you mean 'int8'\?"):
        qtype.parse("int88", "insert-qdq{weights}")


@pytest.mark.parametrize("name", ["uint8", "uint2", "int16", "uint16"])
def test_refuses_types_that_weights_cannot_have(name):
    with pytest.raises(OptionError, match=f"weights cannot be {name}"):
        qtype.parse_weight(name, "weights")
