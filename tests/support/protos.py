"""Models made node by node, as files hold them, and their true outputs.

`tests/conftest.py` puts this folder on the path: ``import protos``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

info = helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, tensors=(), *, opset=21, ir_version=10, domains=(), **more):
    body = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(body, opset_imports=imports, ir_version=ir_version, **more)


def identity(**more):
    return model_of([helper.make_node("Relu", ["x"], ["y"], name="r")], [info("x", FLOAT, ["N"])], [y()], **more)


def y(dtype=FLOAT, shape=None):
    return info("y", dtype, shape)


def on_ort(model, feeds):
    data = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options).run(None, feeds)


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def const(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def node(kind, inputs, output="y", **attributes):
    return helper.make_node(kind, inputs.split(), [output], name=f"n_{output}", **attributes)


def f(array):
    return np.asarray(array, np.float32)
