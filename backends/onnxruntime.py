"""ONNX Runtime: the Q/DQ graph as it stands, the integer graph of its own operators, or one of integers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from qcomp import exactness, files
from qcomp.backend import Backend
from qcomp.runtime import Feeds

RECIPES = {"qdq": "", "qlinear": "dyadic-rescale,use-table-kernels", "integer": "dyadic-rescale,expand-integer"}


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """An ONNX file for ONNX Runtime.

    Args:
        form: ``qdq``, QuantizeLinear/DequantizeLinear pairs around float operators; ``qlinear``, ONNX Runtime's integer
            operators with dyadic scales, the same integers everywhere, as fast; ``integer``, standard ONNX operators
            on integers alone, no float tensor between the first QuantizeLinear and the last DequantizeLinear.
        portable: weights that processors without 8-bit dot products compute exactly too, in 7 bits where needed.
    """

    form: Literal["qdq", "qlinear", "integer"] = "qdq"
    portable: bool = False

    @property
    def recipe(self) -> str:
        return RECIPES[self.form]

    @property
    def settings(self) -> dict[str, bool]:
        return {"portable": True} if self.portable else {}

    @property
    def takes_integers_only(self) -> bool:
        return self.form != "qdq"

    def emit(self, model: ir.Model, out: Path, feeds: Sequence[Feeds] = ()) -> list[Path]:
        exactness.record(model)
        return files.save(model, out)
