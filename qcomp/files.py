"""Reading models from strangers and writing results safely.

A model is upgraded to one working opset at load, so that passes meet one form of each operator. External data may
lie only inside the model's own folder. A result is written beside its place and renamed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from google.protobuf.message import DecodeError

from qcomp import graph
from qcomp.errors import ModelError, OutputError

logger = logging.getLogger(__name__)

OPSET = 21
"""The working opset: the first with 4-bit types and block-wise DequantizeLinear."""
OLDEST_OPSET = 7
NEEDED_OPSET = 13
"""DequantizeLinear per channel; a model that cannot be upgraded this far is refused."""
IR_VERSION = 10
OWN_DOMAIN = "qcomp"
EXTERNAL_BYTES = 1 << 28
"""Weights above this size go to a file of their own, tensor by tensor: protobuf would hold them in memory twice."""


def load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """A model ready for the passes: checked, inlined, upgraded to the working opset, with shapes.

    Args:
        source: a file, or a model in memory, which stays unchanged.

    Raises:
        ModelError: not an ONNX model, truncated, with external data missing or outside its folder, of an opset
            before 7, or that onnx cannot upgrade.
    """
    model = prepare(read(source))
    _check_floatable(model)
    return model


def read(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """The model as it is, checked for what a hostile file could hold.

    Raises:
        ModelError: as `load`.
    """
    if isinstance(source, ir.Model):
        return source.clone()
    if isinstance(source, onnx.ModelProto):
        model = _from_proto(source, "the ModelProto")
        _check_external(model, None)
        return model
    path = Path(source)
    model = _from_proto(_parse(path), str(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    _check_external(model, path)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError("no such file", where=str(path), hint="give the path of an .onnx file")
    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            "not an ONNX file, or a truncated one", where=str(path), hint="export or download it again"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    if not proto.opset_import or not proto.graph.output:
        raise ModelError("not an ONNX model: it has no outputs or no opset", where=where, hint="export it again")
    try:
        return ir.from_proto(proto)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the ONNX graph is malformed: {reason}", where=where, hint="export it again") from error


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in graph.all_values(model.graph):
        if value.const_value is not None:
            yield value.const_value
    for node in model.graph.all_nodes():
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.TENSOR and not attr.is_ref():
                yield attr.value


def _check_external(model: ir.Model, path: Path | None) -> None:
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if path is None:
                raise ModelError(
                    f"the weights of {tensor.name!r} lie in another file",
                    hint="give the path of the .onnx file",
                )
            _check_external_tensor(tensor, path)


def _check_external_tensor(tensor: ir.ExternalTensor, path: Path) -> None:
    where, name = str(path), tensor.name
    folder = path.parent.resolve()
    file = (folder / str(tensor.location)).resolve()
    if not file.is_relative_to(folder):
        raise ModelError(
            f"the weights of {name!r} lie outside the model's folder, in {str(tensor.location)!r}",
            where=where,
            hint="put them beside the model",
        )
    if not file.is_file():
        raise ModelError(f"the file of weights {str(tensor.location)!r} is missing", where=where, hint="copy it there")
    offset, needed = tensor.offset or 0, tensor.nbytes
    if offset < 0 or (tensor.length is not None and tensor.length != needed) or file.stat().st_size < offset + needed:
        raise ModelError(
            f"the file of weights {str(tensor.location)!r} is too short for {name!r}, or its length is wrong",
            where=where,
            hint="copy it again",
        )


def prepare(model: ir.Model) -> ir.Model:
    """Inline, upgrade and tidy a model in memory, as `load` does for a file."""
    common.InlinePass(criteria=lambda f: f.domain != OWN_DOMAIN)(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.NameFixPass()(model)
    _sort(model)
    graph.verify(model)
    model = upgrade(model)
    try:
        graph.infer_shapes(model)
    except Exception as error:
        raise ModelError(f"onnx cannot infer its shapes: {_first_line(error)}", hint="check it with onnx") from error
    return model


def _sort(model: ir.Model) -> None:
    try:
        common.TopologicalSortPass()(model)
    except Exception as error:
        raise ModelError("the graph has a cycle", hint="export it again") from error


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
    if version < 9 and any(graph.is_op(node, "Scan") for node in model.graph.all_nodes()):
        raise ModelError(f"onnx cannot upgrade Scan from opset {version}", hint="export it with opset 9 or newer")
    try:
        return _converted(model)
    except Exception as error:
        if version < NEEDED_OPSET:
            raise ModelError(
                f"onnx cannot upgrade it from opset {version} to {OPSET}: {_first_line(error)}",
                hint=f"export it with opset {NEEDED_OPSET} or newer",
            ) from error
        logger.warning("stays at opset %d: onnx cannot upgrade it: %s", version, _first_line(error))
        return model


def _converted(model: ir.Model) -> ir.Model:
    big = {v.name: v.const_value for v in model.graph.initializers.values() if v.const_value is not None}
    inputs = {v.name for v in model.graph.inputs}
    proto = graph.call_onnx(model, lambda m: onnx.version_converter.convert_version(m, OPSET))
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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def is_quantized(node: ir.Node) -> bool:
    """Whether the node belongs to a quantized model."""
    return node.op_type in _QUANTIZED or node.op_type.startswith(("QLinear", "QGemm", "MatMulNBits"))


def _check_floatable(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if is_quantized(node):
            raise ModelError(
                "the model is quantized already", where=graph.describe(node), hint="compile the float model"
            )


def weight_bytes(model: ir.Model) -> int:
    """The size of every tensor of the model, loaded or not."""
    return sum(tensor.nbytes for tensor in _tensors(model))


def load_external(model: ir.Model) -> None:
    """Map the weights that lie in other files into memory, so that the model stands alone."""
    for value in graph.all_values(model.graph):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)


def save(model: ir.Model, out: str | os.PathLike[str]) -> list[Path]:
    """Write the model; weights above 256 MB in all go to ``<out>.data`` beside it. Nothing half-written stays.

    Returns:
        The files written, the model first.

    Raises:
        OutputError: the place cannot be written.
    """
    path = Path(out)
    check_writable(path)
    data = path.with_name(path.name + ".data") if weight_bytes(model) > EXTERNAL_BYTES else None
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if data is None:
            load_external(model)
            ir.save(model, scratch)
            os.replace(scratch, path)
            return [path]
        return _save_external(model, path, data, scratch)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


def _save_external(model: ir.Model, path: Path, data: Path, scratch: Path) -> list[Path]:
    folder = path.with_name(f".{path.name}.{os.getpid()}.folder")
    folder.mkdir()
    try:
        ir.save(model, folder / path.name, external_data=data.name, size_threshold_bytes=_EXTERNAL_THRESHOLD)
        os.replace(folder / data.name, data)
        os.replace(folder / path.name, path)
    finally:
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()
    return [path, data]


_EXTERNAL_THRESHOLD = 4096


def check_writable(path: Path) -> None:
    """Fail early, before the work is done, where a file cannot be written.

    Raises:
        OutputError: the path is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError("is a folder", where=str(path), hint="give the name of a file")
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", where=str(path.parent), hint="create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError("the folder is not writable", where=str(path.parent), hint="choose another one")
