"""compare --explain: what each layer costs, and what would help it."""

from __future__ import annotations

import numpy as np
import pytest
import quantized
import small_graphs as small

from qcomp import compiler, files, trial
from qcomp.calibration.data import open_data
from qcomp.errors import ModelError, OptionError
from qcomp.report import explanation
from qcomp.runtime import input_specs

SAMPLES = {"x": np.random.default_rng(0).normal(size=(16, 4, 8, 8)).astype("f4")}
LINE = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq{{ranges=minmax}},round-weights"


def explained(proto, line: str, **options):
    found = compiler.compile(proto, SAMPLES, passes=line).model
    reference = files.load(proto)
    return explanation.explain(reference, found, open_data(SAMPLES, input_specs(reference)), **options)


def poisoned(factor: float = 30):
    """Three convolutions; one channel between the second and the third is larger than the others."""
    b = small.Builder(1)
    x = b.input("x", ["N", 4, 8, 8])
    wide = np.array([factor, 1, 1, 1]).reshape(4, 1, 1, 1)
    weights = [b.rng.normal(size=(4, 4, 3, 3)) / 6 for _ in range(3)]
    weights[1] *= wide
    weights[2] /= wide.reshape(1, 4, 1, 1)
    for name, weight in zip(("k0", "k1", "y"), weights, strict=True):
        x = b.op("Conv", x, b.constant(weight), pads=[1] * 4, name=name)
        x = b.op("Relu", x) if name != "y" else x
    return b.model("y")


def test_the_weights_are_to_blame():
    losses = explained(poisoned(1), LINE.replace("ranges=minmax", "ranges=minmax weights=int3"))
    assert all(loss.weights < loss.activations - 6 for loss in losses)
    assert all(loss.alone == pytest.approx(loss.weights, abs=3) for loss in losses)
    for loss in losses:
        ratios = dict(loss.remedies)
        assert ratios["insert-qdq{weights=int8}"] > loss.alone + 12
        assert list(ratios.values()) == sorted(ratios.values(), reverse=True)


def test_the_activations_are_to_blame():
    losses = explained(poisoned(1), LINE.replace("ranges=minmax", "ranges=minmax activations=uint4"))
    assert all(loss.activations < loss.weights - 6 for loss in losses)
    assert losses[0].alone == min(loss.alone for loss in losses)
    assert dict(losses[0].remedies)["insert-qdq{activations=uint8}"] > losses[0].alone + 12


def test_one_scale_for_channels_that_differ():
    losses = explained(poisoned(30), LINE.replace("ranges=minmax", "ranges=minmax per_channel=false"))
    worst = next(loss for loss in losses if loss.name == "node_k1")
    assert dict(worst.remedies)["insert-qdq{per_channel=true}"] > worst.alone + 1


def test_as_many_layers_as_asked_for():
    done = []
    losses = explained(poisoned(), LINE, layers=2, progress=lambda *state: done.append(state))
    assert len(losses) == 2
    assert done == [(1, 2), (2, 2)]


def test_what_the_line_holds_already_is_no_remedy():
    line = LINE.replace("ranges=minmax", "ranges=mse") + ",correct-bias"
    labels = {label for loss in explained(poisoned(), line) for label, _ in loss.remedies}
    assert not labels & {"correct-bias", "insert-qdq{ranges=mse}", "insert-qdq{weights=int8}"}


def test_a_model_of_unknown_passes():
    reference = files.load(poisoned())
    samples = open_data(SAMPLES, input_specs(reference))
    with pytest.raises(ModelError, match="does not say with which passes"):
        explanation.explain(reference, reference, samples)
    reference.metadata_props[trial.PASSES] = "__import__('os')"
    with pytest.raises(OptionError):
        explanation.explain(reference, reference, samples)
