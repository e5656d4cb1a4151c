"""ONNX Runtime: the Q/DQ graph as it stands, whose patterns ONNX Runtime fuses into integer kernels at load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from qcomp import files
from qcomp.backend import Backend


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """An ONNX file for ONNX Runtime.

    Args:
        form: ``qdq``, QuantizeLinear/DequantizeLinear pairs around float operators.
    """

    form: Literal["qdq"] = "qdq"

    def emit(self, model: ir.Model, out: Path) -> list[Path]:
        return files.save(model, out)
