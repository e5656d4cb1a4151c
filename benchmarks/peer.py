"""The peer: ``onnxruntime.quantization.quantize_static``, set as its documentation advises for x86 with VNNI.

Per channel, unsigned activations and signed weights, QDQ, after ``quant_pre_process`` (shapes, folding, fusing).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from zoo import CALIBRATION_SAMPLES, Feeds, Model

from qcomp import files, upgrade
from qcomp.compiler import DEFAULT_BATCH

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out batches one by one."""

    def __init__(self, batches: Iterable[Feeds]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Any:
        return next(self._batches, None)


def quantize(
    model: Model, data: Path, folder: Path, *, ranges: str = "minmax", samples: int = CALIBRATION_SAMPLES
) -> Path | None:
    """The peer's model of the same calibration samples, written into `folder`; None where the peer fails.

    A model older than per-channel QDQ (opset 13) is upgraded first.
    """
    logging.getLogger().setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    source, prepared = folder / f"{model.name}_source.onnx", folder / f"{model.name}_prepared.onnx"
    out = folder / f"{model.name}_peer.onnx"
    read = files.read(model.path(data))
    old = upgrade.opset(read) < upgrade.NEEDED_OPSET
    ir.save(files.prepare(read) if old else read, source)
    quant_pre_process(str(source), str(prepared))
    try:
        quantize_static(
            str(prepared),
            str(out),
            Reader(model.samples(data).batches(DEFAULT_BATCH, samples)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[ranges],
        )
    except Exception as error:  # it raises whatever its parts raise
        print(f"{model.name}: quantize_static fails: {type(error).__name__}: {str(error)[:90]}")
        return None
    return out
