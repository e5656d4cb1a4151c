"""onnx's reference implementation gives the integers of ONNX Runtime, on the embedded models."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from qcomp import runtime
from qcomp.compiler import compile as compile_model
from qcomp.models import digits

IMAGES = digits.data()


@pytest.mark.parametrize("name", digits.NAMES)
def test_the_integer_form_by_the_reference(name):
    data = {"image": IMAGES["train"][:64]}
    made = {
        form: compile_model(digits.load(name), data, to=f"onnxruntime{{form={form}}}").model
        for form in ("qlinear", "integer")
    }
    inputs = {"image": IMAGES["test"][:20]}
    by_reference = ReferenceEvaluator(ir.to_proto(made["integer"])).run(None, inputs)[0]
    for model in made.values():
        np.testing.assert_array_equal(runtime.session(model).run(None, inputs)[0], by_reference)
