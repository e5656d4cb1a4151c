"""The large model is streamed into external data."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from qcomp.models.large import large_mlp


def test_large_model_runs_from_external_data(tmp_path: Path) -> None:
    path = large_mlp(tmp_path / "large.onnx", 0.05, width=1024)
    assert path.stat().st_size < 20_000
    assert 0.05e9 <= (tmp_path / "large.onnx.data").stat().st_size < 0.06e9
    onnx.checker.check_model(str(path))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 1024), dtype=np.float32)
    (output,) = session.run(None, {"x": x})
    assert output.shape == (2, 1024)
    assert np.isfinite(output).all()
    assert output.std() > 0.1


def test_large_model_holds_few_matrices_in_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    large_mlp(tmp_path / "large.onnx", 0.05, width=1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * 1024**2


def test_large_model_follows_its_seed(tmp_path: Path) -> None:
    paths = [large_mlp(tmp_path / f"{n}.onnx", 0.001, seed, width=64) for n, seed in enumerate((0, 0, 1))]
    first, again, other = (path.with_name(path.name + ".data").read_bytes() for path in paths)
    assert first == again
    assert first != other
