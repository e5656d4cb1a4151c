"""Which integers and scales weights get, from the options of insert-qdq."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcomp import upgrade
from qcomp.errors import ModelError, OptionError
from qcomp.quantization import qtype
from qcomp.quantization.qtype import QType

LEAST_GROUP = 16
"""The shortest group of which ONNX Runtime has a kernel."""
PACKED_BITS = 4
WHERE = "insert-qdq{%s}"


@dataclass(frozen=True)
class WeightGrid:
    """Which integers and scales weights get.

    Args:
        qtype: the signed type.
        search: search each channel's range for the least squared error.
        per_channel: a scale for each output channel where the operator allows it.
        portable: 7 bits where 8 are not proved to be exact on every processor.
        powers: scales that are powers of two.
        group: a scale for so many inputs of each output channel of a MatMul or Gemm, for weights only.
        packed: stored in 4 bits.
    """

    qtype: QType
    search: bool
    per_channel: bool = True
    portable: bool = False
    powers: bool = False
    group: int | None = None
    packed: bool = False

    def alone(self) -> WeightGrid:
        """For weights only: no integer kernel reads them, and below 8 bits all integers of their type are used."""
        return self if self.qtype.bits >= 8 else replace(self, qtype=replace(self.qtype, narrow=False))


def check_group(group: int | None, *, alone: bool) -> None:
    """Refuse groups that no kernel knows.

    Raises:
        OptionError: beside quantized activations, or of another size.
    """
    if group is not None and not alone:
        hint = "add activations=none; ONNX Runtime quantizes activations for such weights by itself"
        raise OptionError("groups are for weights only", where=WHERE % "group", hint=hint)
    if group is not None and (group < LEAST_GROUP or group & (group - 1)):
        hint = f"give a power of two from {LEAST_GROUP} on"
        raise OptionError(f"no kernel knows groups of {group}", where=WHERE % "group", hint=hint)


def parse(weights: str, container: str) -> QType:
    """The type of weights that a container can hold.

    Raises:
        OptionError: no such type, or more than 4 bits in int4.
    """
    kind = qtype.parse_weight(weights, WHERE % "weights")
    if container == "int4" and kind.bits > PACKED_BITS:
        raise OptionError(f"int4 does not hold {weights}", where=WHERE % "container", hint="give weights=int4")
    return kind


def check_opset(version: int, group: int | None, container: str) -> None:
    """Refuse what the model's opset has no form of.

    Raises:
        ModelError: groups or int4 are asked for below opset 21.
    """
    if version < upgrade.OPSET and (group is not None or container == "int4"):
        what, hint = f"opset {version} has no groups of weights and no int4", f"export it with {upgrade.OPSET} or newer"
        raise ModelError(what, where="insert-qdq", hint=hint)


def packs(container: str, kind: QType, version: int, *, alone: bool) -> bool:
    """Whether weights are stored in 4 bits: where that is asked for, or no integer kernel reads them."""
    fits = kind.bits <= PACKED_BITS and version >= upgrade.OPSET
    return fits and (container == "int4" or (container == "auto" and alone))
