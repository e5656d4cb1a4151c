"""Real, trained models at few bits: what -O2 must keep of their accuracy, and the integer forms after it.

Slow: needs the folder of models and labelled data that benchmarks/README.md describes, in QCOMP_DATA.
"""

from __future__ import annotations

import functools

import low_bit
import numpy as np
import pytest
import zoo
from real_data import DATA, with_data

import qcomp
from qcomp import pipeline, runtime

pytestmark = [pytest.mark.slow, with_data]
LOSSES = {
    ("cifar10_resnet20_bn", "W4A4"): 6.0,
    ("mlperf_ic_resnet8", "W4A8"): 1.5,
    ("mlperf_kws_dscnn", "W4A8"): 2.0,
}
"""Points of top-1 below float32; benchmarks/low_bit.py has the larger models, which take minutes."""


@functools.cache
def compiled(name: str, bits: str, to: str = "onnxruntime"):
    assert DATA is not None
    model = zoo.MODELS[name]
    case = next(case for case in low_bit.CASES if (case.model, case.bits) == (name, bits))
    line = ",".join(map(str, pipeline.override(pipeline.parse(pipeline.preset(2)), **case.options)))
    return qcomp.compile(model.path(DATA), model.calibration(DATA), passes=line, to=to, **model.compile_options()).model


@pytest.mark.parametrize(("name", "bits"), LOSSES)
def test_accuracy_at_few_bits(name, bits):
    model = zoo.MODELS[name]
    batches, truth = model.evaluation(DATA, model), model.truth(DATA)
    sessions = runtime.session(model.path(DATA)), runtime.session(compiled(name, bits))
    real, found = (zoo.evaluate(model, session, batches, truth) for session in sessions)
    assert found.score >= real.score - LOSSES[name, bits] - zoo.chance(model, truth, real, found)


@pytest.mark.parametrize("name", ["mlperf_ic_resnet8", "mlperf_kws_dscnn"])
def test_the_forms_hold_the_same_integers(name):
    sessions = [runtime.session(compiled(name, "W4A8", f"onnxruntime{{form={f}}}")) for f in ("qlinear", "integer")]
    for feeds in zoo.MODELS[name].evaluation(DATA, zoo.MODELS[name])[:2]:
        few = {key: array[:20] for key, array in feeds.items()}
        one, other = (session.run(None, few) for session in sessions)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
