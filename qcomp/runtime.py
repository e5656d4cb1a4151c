"""Sessions of ONNX Runtime, and the inputs and outputs of a model as NumPy sees them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from qcomp import files
from qcomp.calibration.data import InputSpec
from qcomp.errors import DataError, ModelError, OptionError, QcompError, first_line

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]


class Session(Protocol):
    """What runs like a session of ONNX Runtime."""

    def get_outputs(self) -> Sequence[Any]:
        """Each with ``name`` and ``type``."""

    def run(self, names: Sequence[str] | None, feeds: Feeds) -> list[Array]:
        """The named outputs of a batch, all by default."""


_IN_MEMORY_BYTES = 1 << 30
MOST_THREADS = 1024


def session(
    model: ir.Model | str | os.PathLike[str],
    *,
    threads: int = 1,
    optimize: bool = True,
    optimized_path: Path | None = None,
) -> ort.InferenceSession:
    """A CPU session.

    Args:
        model: a file, or a model in memory.
        threads: threads inside an operator; 0 lets ONNX Runtime choose.
        optimize: False runs every operator as it stands in the file (``ORT_DISABLE_ALL``).
        optimized_path: where to write the graph as optimized, for inspection.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        OptionError: threads out of range.
        OutputError: it is too large to be handed over in memory, and there is no place for it on disk.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise OptionError(f"{threads} threads", where="threads", hint=f"give 0 (all cores) to {MOST_THREADS}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave other sessions alone
    options.log_severity_level = 4  # what it logs, it raises too
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    try:
        if isinstance(model, ir.Model):
            return _from_memory(model, options)
        return ort.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])
    except QcompError:
        raise
    except Exception as error:
        where = "the model" if isinstance(model, ir.Model) else os.fspath(model)
        raise ModelError(f"ONNX Runtime refuses it: {first_line(error)}", where=where) from error


def _from_memory(model: ir.Model, options: ort.SessionOptions) -> ort.InferenceSession:
    if files.weight_bytes(model) < _IN_MEMORY_BYTES:
        files.load_external(model)
        content = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        path = files.save(model, Path(folder) / "model.onnx")[0]
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def blaming(model: ir.Model) -> Iterator[None]:
    """Around work on a model from a stranger: where that fails by surprise, ask ONNX Runtime whose fault it is.

    Raises:
        ModelError: the work failed, and ONNX Runtime refuses the model too.
    """
    try:
        yield
    except QcompError:
        raise
    except Exception:
        session(model)
        raise


def input_specs(model: ir.Model) -> list[InputSpec]:
    """Name, dtype and shape of each input; a dynamic dimension is None or its symbol."""
    return [spec_of(value) for value in model.graph.inputs if not value.is_initializer()]


def spec_of(value: ir.Value) -> InputSpec:
    """Name, dtype and shape of an input or output."""
    shape = tuple(d if isinstance(d, int) else (d.value or None) for d in (value.shape or ()))
    return InputSpec(str(value.name), np.dtype((value.dtype or ir.DataType.FLOAT).numpy()), shape)


def run(runner: ort.InferenceSession | Session, names: Sequence[str], feeds: Feeds) -> list[Array]:
    """The named outputs of one batch.

    Raises:
        DataError: the samples do not run through the model.
    """
    if not names:
        return []
    try:
        results: list[Array] = runner.run(list(names), feeds)
    except QcompError:
        raise
    except Exception as error:
        what = f"the samples do not run through the model: {first_line(error)}"
        raise DataError(what, hint="see qcomp inspect") from error
    return results


def run_batches(
    runner: ort.InferenceSession | Session, batches: Iterable[Feeds], names: Sequence[str] = ()
) -> dict[str, Array]:
    """Run every batch and join the outputs along the first axis; for outputs that fit in memory.

    Args:
        runner: the session.
        batches: the inputs of each run.
        names: the wanted outputs; all by default, but for those that are no tensors.
    """
    wanted = list(names) or [out.name for out in runner.get_outputs() if out.type.startswith("tensor(")]
    parts = [run(runner, wanted, feeds) for feeds in batches]
    return {name: joined([part[i] for part in parts]) for i, name in enumerate(wanted)}


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone whose outputs are the named values alone; without names, its first input, for there must be one.

    Raises:
        ModelError: no operator computes such a value.
    """
    clone = model.clone()
    values = {str(value.name): value for node in clone.graph for value in node.outputs}
    clone.graph.outputs.clear()
    for name in names:
        if name not in values:
            raise ModelError(f"no operator computes the value {name!r}")
        clone.graph.outputs.append(values[name])
    if not names:
        clone.graph.outputs.extend(clone.graph.inputs[:1])
    return clone


def joined(parts: Sequence[Array]) -> Array:
    """Arrays along the first axis; where later axes differ (dynamic lengths), flattened and joined."""
    if len({part.shape[1:] for part in parts}) > 1 or not parts[0].ndim:
        return np.concatenate([part.ravel() for part in parts])
    return np.concatenate(list(parts))
