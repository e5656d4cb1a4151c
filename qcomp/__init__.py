"""qcomp: a compiler for quantized neural networks. Float ONNX in, quantized artefact out.

import qcomp
result = qcomp.compile("model.onnx", data="samples.npz", out="model.int8.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcomp.compiler import Compiled, compile
    from qcomp.errors import QcompError
    from qcomp.pipeline import Pass
    from qcomp.quantization.qparams import QParams
    from qcomp.quantization.qtype import QType

_HOMES = {
    "Compiled": "qcomp.compiler",
    "Pass": "qcomp.pipeline",
    "QParams": "qcomp.quantization.qparams",
    "QType": "qcomp.quantization.qtype",
    "QcompError": "qcomp.errors",
    "compile": "qcomp.compiler",
}
__all__ = ["Compiled", "Pass", "QParams", "QType", "QcompError", "compile"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``qcomp --help`` is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qcomp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
