"""Every model at one working opset, by onnx's version converter, so that passes meet one form of each operator."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from qcomp import graph, shapes
from qcomp.errors import ModelError, first_line

logger = logging.getLogger(__name__)

OPSET = 21
"""The working opset: the first with 4-bit types and block-wise DequantizeLinear."""
OLDEST_OPSET = 7
NEEDED_OPSET = 13
"""DequantizeLinear per channel; a model that cannot be upgraded this far is refused."""
IR_VERSION = 10
_CHANGED_IN_SILENCE = {"Scan": 9, "Hardmax": 13}
"""Operators that onnx's converter gives another meaning when it comes from before that opset."""


def opset(model: ir.Model) -> int:
    """The version of the default domain."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def upgrade(model: ir.Model) -> ir.Model:
    """The model at the working opset, by onnx's version converter; a newer one stays as it is.

    Raises:
        ModelError: it is older than opset 7, or onnx cannot convert it and it is older than opset 13.
    """
    version = opset(model)
    model.ir_version = max(model.ir_version, IR_VERSION)
    if version < OLDEST_OPSET:
        raise ModelError(f"opset {version} is too old", hint=f"export it with opset {OLDEST_OPSET} or newer")
    if version >= OPSET:
        return model
    _refuse_silent_changes(model, version)
    try:
        converted = _converted(model)
    except Exception as error:
        if version < NEEDED_OPSET:
            raise ModelError(
                f"onnx cannot upgrade it from opset {version} to {OPSET}: {first_line(error)}",
                hint=f"export it with opset {NEEDED_OPSET} or newer",
            ) from error
        logger.warning("stays at opset %d: onnx cannot upgrade it: %s", version, first_line(error))
        return model
    if version < 11:
        _keep_old_resize(converted)
    return converted


def _refuse_silent_changes(model: ir.Model, version: int) -> None:
    for node in model.graph.all_nodes():
        needed = _CHANGED_IN_SILENCE.get(node.op_type, 0) if graph.is_op(node, node.op_type) else 0
        if version < needed:
            what = f"onnx cannot upgrade {node.op_type} from opset {version}"
            raise ModelError(what, where=graph.describe(node), hint=f"export it with opset {needed} or newer")


def _keep_old_resize(model: ir.Model) -> None:
    """Let Resize sample as before opset 11, where onnx's converter leaves it to the new default.

    Coordinates were not shifted by half a pixel; the nearest pixel was the one below, or above where it shrinks
    (ONNX Runtime, ``core/providers/cpu/tensor/upsample.cc``).
    """
    for node in model.graph.all_nodes():
        if graph.is_op(node, "Resize"):
            scales = graph.constant(node.inputs[2])
            shrinks = scales is not None and bool((scales <= 1).all())
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", "ceil" if shrinks else "floor"))


def _converted(model: ir.Model) -> ir.Model:
    big = {v.name: v.const_value for v in model.graph.initializers.values() if v.const_value is not None}
    inputs = {v.name for v in model.graph.inputs}
    proto = shapes.call_onnx(model, lambda m: onnx.version_converter.convert_version(m, OPSET))
    converted = ir.from_proto(proto)
    for value in [v for v in converted.graph.inputs if v.name not in inputs]:
        converted.graph.inputs.remove(value)
        value.const_value = big[value.name]
        converted.graph.register_initializer(value)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(converted)
    common.NameFixPass()(converted)
    graph.verify(converted)
    converted.functions.update(model.functions)
    return converted
