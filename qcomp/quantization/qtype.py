"""The type of a quantized tensor's elements: how many bits, signed or not, and the container ONNX keeps it in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcomp.errors import OptionError, unknown

NAMES = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (*range(2, 9), 16))
"""The types that `parse` knows."""


@dataclass(frozen=True)
class QType:
    """Integers of ``bits`` bits in the range ``[qmin, qmax]``.

    A signed type leaves out its most negative value where it is ``narrow``, as weights do, so that the range is
    symmetric: int8 weights lie in [-127, 127]. Types below 8 bits may be kept in an 8-bit container: the range
    shrinks, the container stays.
    """

    bits: int
    signed: bool
    narrow: bool = False

    @property
    def qmin(self) -> int:
        """The least integer."""
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The greatest integer."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def levels(self) -> int:
        """How many steps lie between the least and the greatest integer."""
        return self.qmax - self.qmin

    @property
    def container(self) -> np.dtype[np.integer[Any]]:
        """The NumPy type that holds the integers: int8, uint8, int16 or uint16."""
        return np.dtype(f"{'' if self.signed else 'u'}int{8 if self.bits <= 8 else 16}")

    @property
    def fills_container(self) -> bool:
        """Whether saturation to the container is saturation to the type's range."""
        info = np.iinfo(self.container)
        return (self.qmin, self.qmax) == (info.min, info.max)

    def as_weight(self) -> QType:
        """The symmetric form, for weights."""
        return QType(self.bits, self.signed, narrow=self.signed)

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}"


def parse_weight(name: str, option: str) -> QType:
    """A type for weights: signed, symmetric, at most 8 bits.

    Raises:
        OptionError: unknown name, or not such a type.
    """
    found = parse(name, option)
    if not found.signed or found.bits > 8:
        raise OptionError(f"weights cannot be {name}", where=option, hint="known: int2 to int8")
    return found.as_weight()


def parse(name: str, option: str) -> QType:
    """A type from its name, ``int2`` .. ``int8``, ``int16`` and their unsigned forms.

    Raises:
        OptionError: unknown name.
    """
    if name not in NAMES:
        raise unknown("type", name, NAMES, where=option)
    match = re.fullmatch(r"(u?)int(\d+)", name)
    assert match is not None
    return QType(int(match[2]), signed=not match[1])
