"""onnx's own node models, each through the float rewrites: outputs do not change."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.backend.test.case.node import collect_testcases

from qcomp import files, pipeline
from qcomp.errors import QcompError

LINE = "clean-up,fold-batchnorm,fold-affine,fold-pad"
LEAST_RUN = 500
ILL_TYPED = ("test_affine_grid_2d_expanded", "test_affine_grid_2d_align_corners_expanded")
"""Their Range reads vectors of one element, which ONNX Runtime takes only as long as the shapes are unknown."""
RANDOM = ("bernoulli", "dropout", "multinomial", "random", "training")


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, arrays) -> list[object]:
    runner = session(model)
    return runner.run(None, {i.name: array for i, array in zip(runner.get_inputs(), arrays, strict=True)})


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    loaded = files.load(model)
    pipeline.run(loaded, pipeline.parse(LINE))
    return ir.to_proto(loaded)


def with_constants(model: onnx.ModelProto, arrays) -> onnx.ModelProto:
    """The model with all inputs but the first as initializers, as weights, axes and shapes are in real models."""
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    for info, array in list(zip(model.graph.input, arrays, strict=True))[1:]:
        fixed.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
        fixed.graph.input.remove(info)
    fixed.ir_version = max(fixed.ir_version, 4)
    return fixed


def check(model: onnx.ModelProto, arrays) -> bool:
    """Compare; False where ONNX Runtime cannot run the model as it was, or qcomp refuses it."""
    try:
        expected = run(model, arrays)
    except Exception:
        return False
    try:
        result = rewritten(model)
    except QcompError:
        return False
    assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]
    for want, got in zip(expected, run(result, arrays), strict=True):
        same(want, got)
    return True


def same(want, got) -> None:
    if isinstance(want, list):
        for one, other in zip(want, got, strict=True):
            same(one, other)
    elif isinstance(want, np.ndarray) and want.dtype.kind == "f":
        largest = np.abs(want).max(initial=0, where=np.isfinite(want))
        step = 1e-5 if want.dtype.itemsize >= 4 else 2e-3
        np.testing.assert_allclose(got, want, rtol=10 * step, atol=step * largest)
    else:
        np.testing.assert_array_equal(got, want)


def cases(fixed: bool):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        if case.model is None or case.name in ILL_TYPED or any(word in case.name for word in RANDOM):
            continue
        arrays = case.data_sets[0][0]
        if not fixed:
            yield case.name, case.model, arrays
        elif len(arrays) > 1 and all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in arrays):
            yield case.name, with_constants(case.model, arrays), arrays[:1]


@pytest.mark.parametrize("fixed", [False, True], ids=["as they are", "with constants"])
def test_node_models_keep_their_outputs(fixed):
    ran, failures = 0, []
    for name, model, arrays in cases(fixed):
        try:
            ran += check(model, arrays)
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")
    assert not failures, "\n".join([f"{len(failures)} of {ran}", *failures])
    assert ran >= LEAST_RUN
