"""A model too large for one protobuf (over 2 GiB), for tests of external data and of memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from qcomp.models.net import IR_VERSION, OPSET


def large_mlp(path: Path, gigabytes: float = 2.5, seed: int = 0, *, width: int = 4096) -> Path:
    """Write a stack of MatMul and Relu layers with at least `gigabytes` (10**9) of random float32 weights.

    The model takes `x` float32 ``[N, width]`` and gives `y` float32 ``[N, width]``. The weights go matrix by
    matrix into ``<path>.data``, so no more than two matrices (2 x 64 MiB at width 4096) are in memory.

    Args:
        path: of the ONNX file; its folder must exist, older files are overwritten.
        gigabytes: size of the weights.
        seed: of the weights.
        width: rows and columns of each matrix.

    Returns:
        `path`.
    """
    layers = max(1, math.ceil(gigabytes * 1e9 / (4 * width * width)))
    data = path.with_name(path.name + ".data")
    rng = np.random.default_rng(seed)
    with data.open("wb") as file:
        weights = [_write_matrix(file, rng, width, f"layer{index}.weight") for index in range(layers)]
    ir.save(_model(weights, width), path)
    return path


def _write_matrix(file: BinaryIO, rng: np.random.Generator, width: int, name: str) -> ir.ExternalTensor:
    """Append a He-initialized ``[width, width]`` matrix to the file and return the reference to it."""
    matrix = rng.standard_normal((width, width), dtype=np.float32)
    matrix *= np.float32(math.sqrt(2 / width))
    offset = file.tell()
    file.write(matrix.astype("<f4", copy=False).data)
    data, shape = Path(file.name), ir.Shape(matrix.shape)
    return ir.ExternalTensor(
        data.name, offset, matrix.nbytes, ir.DataType.FLOAT, shape=shape, name=name, base_dir=data.parent
    )


def _model(weights: list[ir.ExternalTensor], width: int) -> ir.Model:
    tape = ir.tape.Tape()
    value = source = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N", width])
    for index, weight in enumerate(weights):
        value = tape.op("MatMul", [value, tape.initializer(weight)], name=f"layer{index}/MatMul")
        value = tape.op("Relu", [value], name=f"layer{index}/Relu")
    value.name, value.dtype, value.shape = "y", ir.DataType.FLOAT, ir.Shape(["N", width])
    graph = ir.Graph(
        inputs=[source],
        outputs=[value],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": OPSET},
        name="large_mlp",
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="qcomp")
