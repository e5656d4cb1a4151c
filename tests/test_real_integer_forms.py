"""The integer forms of real, trained models: equal integers, accuracy, and the same integers with AVX2 alone.

Slow: needs the folder of models and labelled data that benchmarks/README.md describes, in QCOMP_DATA; two tests
qemu-user too.
"""

from __future__ import annotations

import functools

import avx2
import numpy as np
import pytest
import zoo
from real_data import DATA, with_data

import qcomp
from qcomp import exactness, files, runtime
from qcomp.integer_only import first_float

with_qemu = pytest.mark.skipif(avx2.why_not() is not None, reason=str(avx2.why_not()))
pytestmark = pytest.mark.slow

MODELS = ("mobilenetv2", "squeezenet1.1", "cifar10_resnet20_bn", "mlperf_ic_resnet8", "mlperf_kws_dscnn", "kwt1")
SAMPLES = 64
LOSS = 1.5
"""Points of top-1 below float32; two models of 500 images differ by a few tenths by chance."""


@functools.cache
def compiled(name: str, form: str):
    assert DATA is not None
    model = zoo.MODELS[name]
    options = model.compile_options() | {"samples": SAMPLES, "to": f"onnxruntime{{{form}}}"}
    return qcomp.compile(model.path(DATA), model.calibration(DATA), **options).model


def batches(name: str, count: int):
    found, model = [], zoo.MODELS[name]
    for feeds in model.evaluation(DATA, model):
        found.append({key: array[:count] for key, array in feeds.items()})
        count -= len(next(iter(found[-1].values())))
        if count <= 0:
            break
    return found


@with_data
@pytest.mark.parametrize("name", [*MODELS, "mnist_cntk_opt"])
def test_both_forms_give_the_same_integers(name):
    results = [runtime.session(compiled(name, f"form={form}")) for form in ("qlinear", "integer")]
    for feeds in batches(name, 20):
        one, other = (session.run(None, feeds) for session in results)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@with_data
@pytest.mark.parametrize("name", MODELS)
def test_no_float_is_inside(name):
    assert first_float(compiled(name, "form=integer")) is None


@with_data
@pytest.mark.parametrize("name", MODELS)
def test_integers_keep_the_accuracy(name):
    model = zoo.MODELS[name]
    assert DATA is not None
    assert model.truth is not None
    truth, feeds = model.truth(DATA), model.evaluation(DATA, model)
    sessions = [runtime.session(model.path(DATA)), runtime.session(compiled(name, "form=qlinear"))]
    real, integer = (zoo.evaluate(model, session, feeds, truth).score for session in sessions)
    assert integer >= real - LOSS


@with_data
@with_qemu
@pytest.mark.parametrize("form", ["qdq", "qlinear", "integer"])
def test_a_portable_model_is_the_same_with_avx2_alone(form, tmp_path):
    model = compiled("mlperf_ic_resnet8", f"form={form} portable=true")
    assert exactness.record(model) == exactness.EVERYWHERE
    path = files.save(model, tmp_path / "model.onnx")[0]
    for feeds in batches("mlperf_ic_resnet8", 20):
        assert set(avx2.differences(path, feeds).values()) == {0}


@with_qemu
@pytest.mark.parametrize(("portable", "expected"), [("true", False), ("false", True)])
def test_an_embedded_model_differs_with_avx2_alone_unless_portable(portable, expected, tmp_path):
    images = zoo.digits.data()
    options = {"to": f"onnxruntime{{form=qlinear portable={portable}}}"}
    made = qcomp.compile(zoo.digits.load("cnn"), {"image": images["train"][:64]}, tmp_path / "model.onnx", **options)
    found = avx2.differences(made.files[0], {"image": images["test"][:20]})
    assert any(found.values()) is expected
