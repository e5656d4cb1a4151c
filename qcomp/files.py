"""Reading models from strangers and writing results safely.

A model is upgraded to one working opset at load, so that passes meet one form of each operator. External data may
lie only inside the model's own folder. A result is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from google.protobuf.message import DecodeError

from qcomp import graph, shapes
from qcomp.errors import ModelError, OutputError, QcompError, first_line
from qcomp.upgrade import upgrade

OWN_DOMAIN = "qcomp"
EXTERNAL_BYTES = 1 << 28
"""Weights above this size go to a file of their own, tensor by tensor: protobuf would hold them in memory twice."""
_EXTERNAL_THRESHOLD = 4096
"""Then tensors up to this size stay in the model all the same."""
_SCRATCH_LETTERS = 40
"""What is kept of a long name, so that more can be put behind it."""


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
        model = source.clone()
        _load_attributes(model)
        return model
    if isinstance(source, onnx.ModelProto):
        model = _from_proto(source, "the ModelProto")
        _check_external(model, None)
        return model
    path = Path(source)
    model = _from_proto(_parse(path), str(path))
    _check_external(model, path)
    _load_attributes(model)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if not path.is_file():
            what = "is a folder, and none that a backend made" if path.is_dir() else "no such file"
            raise ModelError(what, where=str(path), hint="give the path of an .onnx file")
        return onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            "not an ONNX file, or a truncated one", where=str(path), hint="export or download it again"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    if not proto.opset_import or not proto.graph.output:
        raise ModelError("not an ONNX model: it has no outputs or no opset", where=where, hint="export it again")
    with _well_formed(where):
        return ir.from_proto(proto)


@contextlib.contextmanager
def _well_formed(where: str = "") -> Iterator[None]:
    """Turn what onnx_ir makes of a malformed graph into a ModelError."""
    try:
        yield
    except QcompError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = first_line(cause)
        raise ModelError(f"the ONNX graph is malformed: {reason}", where=where, hint="export it again") from error


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in graph.all_values(model.graph):
        if value.const_value is not None:
            yield value.const_value
    for node in _all_nodes(model):
        for attr in node.attributes.values():
            yield from _tensors_of(attr)


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of the graph, of its functions, and of all their subgraphs."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _tensors_of(attr: ir.Attr) -> Sequence[ir.TensorProtocol]:
    if attr.is_ref() or attr.type not in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        return ()
    return (attr.value,) if attr.type == ir.AttributeType.TENSOR else tuple(attr.value)


def _load_attributes(model: ir.Model) -> None:
    """Map the tensors of attributes into memory where they lie in other files: only weights stay outside."""
    for node in _all_nodes(model):
        for attr in tuple(node.attributes.values()):
            if any(isinstance(tensor, ir.ExternalTensor) for tensor in _tensors_of(attr)):
                loaded = [ir.Tensor(tensor.numpy(), name=tensor.name) for tensor in _tensors_of(attr)]
                single = attr.type == ir.AttributeType.TENSOR
                node.attributes[attr.name] = ir.Attr(attr.name, attr.type, loaded[0] if single else loaded)


def _check_external(model: ir.Model, path: Path | None) -> None:
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if path is None:
                raise ModelError(
                    f"the weights of {tensor.name!r} lie in another file",
                    hint="give the path of the .onnx file",
                )
            _check_external_tensor(tensor, path)
            tensor.base_dir = path.parent


def _check_external_tensor(tensor: ir.ExternalTensor, path: Path) -> None:
    where, name, location = str(path), tensor.name, str(tensor.location)
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        inside, size = file.is_relative_to(folder), file.stat().st_size if file.is_file() else -1
    except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links, a zero byte
        inside, size = True, -1
    if not inside:
        what = f"the weights of {name!r} lie outside the model's folder, in {location!r}"
        raise ModelError(what, where=where, hint="put them beside the model")
    if size < 0:
        raise ModelError(f"the file of weights {location!r} is missing", where=where, hint="copy it there")
    offset, needed = tensor.offset or 0, tensor.nbytes
    if offset < 0 or (tensor.length is not None and tensor.length != needed) or size < offset + needed:
        what = f"the file of weights {location!r} is too short for {name!r}, or its length is wrong"
        raise ModelError(what, where=where, hint="copy it again")


def prepare(model: ir.Model) -> ir.Model:
    """Inline, upgrade and tidy a model in memory, as `load` does for a file.

    Raises:
        ModelError: as `load`, but for what concerns files.
    """
    with _well_formed():
        common.InlinePass(criteria=lambda f: f.domain != OWN_DOMAIN)(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.NameFixPass()(model)
    _sort(model)
    graph.verify(model)
    model = upgrade(model)
    shapes.infer_shapes(model)
    return model


def _sort(model: ir.Model) -> None:
    try:
        common.TopologicalSortPass()(model)
    except Exception as error:
        raise ModelError("the graph has a cycle", hint="export it again") from error


_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def is_quantized(node: ir.Node) -> bool:
    """Whether the node belongs to a quantized model."""
    return node.op_type in _QUANTIZED or node.op_type.startswith(("QLinear", "QGemm", "MatMulNBits"))


def is_quantized_model(model: ir.Model) -> bool:
    """Whether any operator does, those of functions too."""
    return any(is_quantized(node) for node in _all_nodes(model))


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
    data = path.with_name(path.name + ".data") if weight_bytes(model) > EXTERNAL_BYTES else None
    with replacing(path) as scratch:
        if data is None:
            load_external(model)
            ir.save(model, scratch)
        else:
            _save_external(model, scratch, data)
    return [path] if data is None else [path, data]


def _save_external(model: ir.Model, scratch: Path, data: Path) -> None:
    folder = scratch.with_suffix(".folder")
    folder.mkdir()
    try:
        ir.save(model, folder / scratch.name, external_data=data.name, size_threshold_bytes=_EXTERNAL_THRESHOLD)
        os.replace(folder / data.name, data)
        os.replace(folder / scratch.name, scratch)
    finally:
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one to write to, which takes its place in the end. Nothing half-written stays.

    Raises:
        OutputError: the place cannot be written.
    """
    check_writable(path)
    path = path.resolve() if path.is_symlink() else path
    scratch = path.with_name(f".{path.name[:_SCRATCH_LETTERS]}.{os.getpid()}.partial")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


def check_writable(path: Path, *, others: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Fail early, before the work is done, where a file cannot be written.

    Args:
        path: the file to write.
        others: files that are read or written too, which it must not replace.

    Raises:
        OutputError: the path is a folder, a device or one of the others, or its folder is missing or not writable.
    """
    try:
        is_folder, is_special = path.is_dir(), path.exists() and not path.is_file()
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    if is_folder:
        raise OutputError("is a folder", where=str(path), hint="give the name of a file")
    if is_special:
        raise OutputError("is no ordinary file", where=str(path), hint="give the name of a file")
    if any(other is not None and path.resolve() == Path(other).resolve() for other in others):
        raise OutputError("would replace what this command reads or writes", where=str(path), hint="give another name")
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", where=str(path.parent), hint="create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError("the folder is not writable", where=str(path.parent), hint="choose another one")
