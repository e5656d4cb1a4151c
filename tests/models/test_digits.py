"""The trained digits models, and the data they come with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcomp.errors import OptionError
from qcomp.models.digits import FOLDER, data, load


def accuracy(name: str) -> float:
    arrays = data()
    session = ort.InferenceSession(load(name), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": arrays["test"]})
    return float((logits.argmax(1) == arrays["test_labels"]).mean())


@pytest.mark.parametrize(("name", "least"), [("cnn", 0.97), ("vit", 0.95)])
def test_trained_model_is_accurate_and_small(name: str, least: float) -> None:
    assert accuracy(name) >= least
    assert load(name).stat().st_size < 500_000
    onnx.checker.check_model(onnx.load(load(name)), full_check=True)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("cnn", {"Conv", "BatchNormalization", "Add", "Relu", "Clip", "GlobalAveragePool", "Gemm"}),
        ("vit", {"Conv", "LayerNormalization", "MatMul", "Softmax", "Erf", "Gemm"}),
    ],
)
def test_trained_model_has_the_operators_of_its_family(name: str, kinds: set[str]) -> None:
    counts = Counter(node.op_type for node in onnx.load(load(name)).graph.node)
    assert kinds <= counts.keys()
    assert name != "cnn" or counts["Conv"] == counts["BatchNormalization"] == 8


def test_split_is_disjoint_stratified_and_scaled() -> None:
    arrays = data()
    assert arrays["train"].shape == (1197, 1, 8, 8)
    assert arrays["test"].shape == (600, 1, 8, 8)
    assert arrays["train"].dtype == np.float32
    assert (arrays["train"].min(), arrays["train"].max()) == (0.0, 1.0)
    assert np.bincount(arrays["test_labels"]).min() > 55
    assert not {image.tobytes() for image in arrays["train"]} & {image.tobytes() for image in arrays["test"]}


def test_data_file_holds_plain_bytes() -> None:
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as file:
        assert {file[name].dtype for name in file.files} == {np.dtype(np.uint8)}


def test_unknown_model_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown digits model 'rnn'"):
        load("rnn")
