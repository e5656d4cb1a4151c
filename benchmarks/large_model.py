"""A model of 2.5 GB, weights only at -O0: peak memory, sizes, and whether the result is right.

Needs about 4 GB of disk in $TMPDIR, and frees it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import measure
import numpy as np
import onnx
import zoo

import qcomp
from qcomp import runtime
from qcomp.models.large import large_mlp
from qcomp.report.outputs import sqnr


def main() -> None:
    """Print one table."""
    parser = zoo.arguments(__doc__, models=False)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        measure.in_child(large_mlp, folder / "model.onnx", options.gigabytes)
        seconds, peak = measure.in_child(_compile, folder)
        (error, moved), running = measure.in_child(_check, folder)
        rows = [
            ["float model", f"{_megabytes(folder, 'model.onnx'):.0f} MB"],
            ["quantized model", f"{_megabytes(folder, 'quantized.onnx'):.0f} MB"],
            ["compile", f"{seconds:.1f} s"],
            ["peak memory of compile", f"{peak / 1e6:.0f} MB"],
            ["peak memory of loading and running it", f"{running / 1e6:.0f} MB"],
            ["largest error of a row of weights, in steps (0.5 is rounding)", f"{error:.3f}"],
            ["outputs' SQNR on one random sample", f"{moved:.1f} dB"],
        ]
    print(measure.table(("2.5 GB of weights" if options.gigabytes == 2.5 else f"{options.gigabytes} GB", ""), rows))


def _compile(folder: Path) -> float:
    made = qcomp.compile(folder / "model.onnx", out=folder / "quantized.onnx", level=0, activations="none")
    return made.report.seconds


def _check(folder: Path) -> tuple[float, float]:
    """The largest error of the last matrix's first row, in steps; and the SQNR of the outputs."""
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4096)).astype(np.float32)}
    outputs = []
    for name in ("model.onnx", "quantized.onnx"):
        outputs.append(runtime.run_batches(runtime.session(folder / name), [feeds])["y"])
    return _row_error(folder), sqnr(*outputs)


def _row_error(folder: Path) -> float:
    real = _graph(folder / "model.onnx")
    quantized = _graph(folder / "quantized.onnx")
    weight = [t for t in real.initializer if len(t.dims) == 2][-1]
    reader = next(n for n in quantized.node if n.op_type == "DequantizeLinear" and weight.name in n.input[0])
    stored = {t.name: t for t in quantized.initializer}
    integers, scale = (_first(stored[name], folder, 4096) for name in reader.input[:2])
    return float(np.abs(_first(weight, folder, 4096) / scale - integers).max())


def _graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def _first(tensor: onnx.TensorProto, folder: Path, count: int) -> np.ndarray:
    """The first elements, from the file beside the model or from the model."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(tensor).ravel()[:count]
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.fromfile(folder / where["location"], dtype, count, offset=int(where.get("offset", 0)))


def _megabytes(folder: Path, name: str) -> float:
    return sum(file.stat().st_size for file in folder.glob(f"{name}*")) / 1e6


if __name__ == "__main__":
    main()
