"""Comparisons of models whose differences are known."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import small_graphs as small

from qcomp import compiler, files, runtime
from qcomp.calibration.data import open_data
from qcomp.errors import DataError, ModelError
from qcomp.models import digits
from qcomp.report import comparison
from qcomp.report.outputs import Accuracy, OutputError, Ratio, sqnr


def samples_for(model, **arrays):
    return open_data(arrays, runtime.input_specs(model))


def scaled(factor: float, name: str = "x") -> onnx.ModelProto:
    """``y = factor * x``, x of [N, 4]."""
    b = small.Builder()
    b.op("Mul", b.input(name, ["N", 4]), b.constant(np.float32(factor)), name="y")
    return b.model("y")


@pytest.fixture(scope="module")
def cnn():
    """The float CNN, its compiled form, and images."""
    images = digits.data()["test"][:50]
    model = files.load(digits.load("cnn"))
    return model, compiler.compile(digits.load("cnn"), [{"image": images}]).model, images


def test_ratio_is_that_of_the_whole_whatever_the_batches():
    random = np.random.default_rng(0)
    signal, noise = random.normal(size=(9, 5)), random.normal(size=(9, 5)) / 10
    whole = Ratio()
    for rows in np.split(np.arange(9), [1, 5]):
        whole.update(signal[rows], signal[rows] + noise[rows])
    assert whole.decibels == pytest.approx(sqnr(signal, signal + noise))


def test_ratio_leaves_out_what_is_not_finite():
    ratio = Ratio()
    ratio.update(np.array([1.0, -np.inf, np.nan]), np.array([1.0, -np.inf, 0.0]))
    assert ratio.decibels == math.inf
    ratio.update(np.array([0.0]), np.array([1.0]))
    assert ratio.decibels == pytest.approx(0.0)
    lost = Ratio(signal=0.0, noise=1.0)
    assert lost.decibels == -math.inf


def test_agreement_counts_every_vector_of_scores():
    output = OutputError("y")
    output.update(np.array([[1.0, 2.0], [4.0, 3.0]]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert output.agreement == 0.5
    single = OutputError("y")
    single.update(np.ones((3, 1)), np.ones((3, 1)))
    assert single.agreement is None


def test_accuracy_of_both_models():
    scores = np.tile(np.arange(8.0), (4, 1))
    accuracy = Accuracy("y")
    accuracy.update(np.array([7, 6, 3, 2]), scores, -scores)
    assert (accuracy.samples, accuracy.top1, accuracy.top5) == (4, (1, 0), (3, 2))


def test_of_equal_scores_the_first_is_the_top():
    accuracy = Accuracy("y")
    accuracy.update(np.array([0, 1]), np.zeros((2, 3)), np.zeros((2, 3)))
    assert accuracy.top1 == (1, 1)


def test_noise_of_a_known_size():
    model, other = files.load(scaled(1.0)), files.read(scaled(1.1))
    found = comparison.compare(model, other, samples_for(model, x=np.ones((10, 4), "f4")), batch=3)
    assert found.samples == 10
    assert found.outputs[0].ratio.decibels == pytest.approx(20, abs=1e-4)
    assert [(layer.kind, layer.reference) for layer in found.layers] == [("Mul", "y")]


def test_layers_of_a_compiled_model(cnn):
    model, quantized, images = cnn
    found = comparison.compare(model, quantized, samples_for(model, image=images), limit=20, batch=7)
    assert found.samples == found.layer_samples == 20
    ratios = [layer.ratio.decibels for layer in found.layers]
    assert ratios == sorted(ratios)
    assert all(20 < ratio < 80 for ratio in ratios)
    kinds = {layer.kind for layer in found.layers}
    assert {"input", "Relu", "Clip", "Gemm", "GlobalAveragePool"} <= kinds
    outputs = [layer for layer in found.layers if layer.reference == "logits"]
    assert outputs[0].ratio.decibels == pytest.approx(found.outputs[0].ratio.decibels, abs=1)


def test_absorbed_and_dequantized_values_are_found_once(cnn):
    model, quantized, _ = cnn
    found = comparison.layers(model, quantized)
    assert len({layer.actual for layer in found}) == len(found)
    relu = next(node for node in model.graph if node.op_type == "Relu")
    actual = {layer.name: layer.actual for layer in found}
    assert actual[relu.name] == f"{relu.outputs[0].name}_dequantized"
    assert relu.inputs[0].producer().name not in actual


def test_a_model_equals_itself(cnn):
    model, _, images = cnn
    found = comparison.compare(model, model.clone(), samples_for(model, image=images[:8]), progress=lambda *_: None)
    assert found.outputs[0].agreement == 1
    assert found.outputs[0].ratio.decibels == math.inf


def test_labels_of_the_first_samples(cnn):
    model, quantized, images = cnn
    labels = digits.data()["test_labels"][:50]
    found = comparison.compare(model, quantized, samples_for(model, image=images), labels=labels, limit=10, batch=3)
    assert found.accuracy is not None
    assert found.accuracy.samples == 10
    assert min(found.accuracy.top1) >= 9


def test_refuses_models_that_are_no_pair():
    model = files.load(scaled(1.0))
    with pytest.raises(ModelError, match="different inputs"):
        comparison.compare(model, files.read(scaled(1.0, "z")), samples_for(model, x=np.ones((1, 4))))
    b = small.Builder()
    b.op("Relu", b.input("x", ["N", 4]), name="z")
    with pytest.raises(ModelError, match="no float output in common"):
        comparison.compare(model, files.read(b.model("z")), samples_for(model, x=np.ones((1, 4))))
    b = small.Builder()
    b.op("Concat", x := b.input("x", ["N", 4]), x, name="y", axis=0)
    with pytest.raises(ModelError, match="has the shape"):
        comparison.compare(model, files.read(b.model("y")), samples_for(model, x=np.ones((1, 4))))


def test_refuses_labels_for_an_output_without_scores():
    b = small.Builder()
    b.op("ReduceSum", b.input("x", ["N", 4]), b.constant(np.array([1])), name="y", keepdims=1)
    model = files.load(b.model("y"))
    with pytest.raises(DataError, match="no output of class scores"):
        comparison.compare(model, model.clone(), samples_for(model, x=np.ones((1, 4))), labels=np.array([0]))


def test_what_is_no_number_in_the_quantized_model_alone_is_all_noise():
    for bad in (np.nan, np.inf):
        ratio = Ratio()
        ratio.update(np.array([1.0, 2.0, -np.inf]), np.array([1.0, bad, 0.0]))
        ratio.update(np.array([1.0]), np.array([1.0]))
        assert ratio.decibels == -math.inf


def test_labels_that_end_before_an_iterator_does_are_refused(cnn):
    model, quantized, images = cnn
    samples = open_data(({"image": images[i : i + 4]} for i in range(0, 20, 4)), runtime.input_specs(model))
    with pytest.raises(DataError, match="10 labels for 12 samples"):
        comparison.compare(model, quantized, samples, labels=np.zeros(10, np.int64))
