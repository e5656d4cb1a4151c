"""A quantized model against its float model: outputs, accuracy and layers, over samples, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcomp import graph, noted_scales, runtime
from qcomp.calibration.calibrator import Progress, total_samples
from qcomp.calibration.data import InputSpec, Samples, check_labels
from qcomp.errors import DataError, ModelError
from qcomp.report.outputs import Accuracy, OutputError, Ratio
from qcomp.runtime import Array, Feeds

LAYER_SAMPLES = 64
"""How many samples the layers are compared on at most; outputs and accuracy are of all samples."""


@dataclass
class LayerError:
    """What quantization did to the result of one operator, errors of the layers before it included.

    Args:
        kind, name: the operator of the float model.
        reference, actual: the names of its result in the float and in the quantized model.
        ratio: over `LAYER_SAMPLES` samples.
    """

    kind: str
    name: str
    reference: str
    actual: str
    ratio: Ratio = field(default_factory=Ratio)


@dataclass
class Comparison:
    """The whole comparison.

    Args:
        samples: how many samples the outputs were compared on.
        outputs: the float outputs.
        layers: those found in both models, the worst first.
        layer_samples: how many samples they were compared on.
        accuracy: where labels were given.
    """

    samples: int
    outputs: list[OutputError]
    layers: list[LayerError]
    layer_samples: int
    accuracy: Accuracy | None = None


def compare(
    reference: ir.Model,
    quantized: ir.Model,
    samples: Samples,
    *,
    labels: NDArray[np.int64] | None = None,
    limit: int | None = None,
    batch: int = 4,
    threads: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Run both models on the samples.

    Args:
        reference: the float model as `qcomp.files.load` gives it, whose values have the names of the compiled ones.
        quantized: the quantized model.
        samples: that fit both.
        labels: the class of each sample.
        limit: use the first samples only.
        batch: samples a run.
        threads: of ONNX Runtime.
        progress: called with the number of samples done so far and, where known, of all.

    Raises:
        ModelError: the models differ in their inputs, or have no float output in common.
        DataError: the samples do not run, or the labels do not fit.
    """
    check_inputs(runtime.input_specs(reference), runtime.input_specs(quantized))
    as_it_is, quantized = quantized, noted_scales.with_dequantized(quantized)
    result = Comparison(0, _outputs(reference, quantized), layers(reference, quantized), 0)
    if labels is not None:
        check_labels(labels, len(labels) if samples.count is None else samples.count)
        result.accuracy = Accuracy(_scores_output(reference, result.outputs))
    both = [runtime.session(model, threads=threads) for model in (reference, as_it_is)]
    names = [output.name for output in result.outputs]
    for feeds in samples.batches(batch, limit):
        before, after = (dict(zip(names, runtime.run(one, names, feeds), strict=True)) for one in both)
        _update(result, before, after, labels)
        if progress:
            progress(result.samples, total_samples(samples, limit))
    result.layer_samples = _measure(
        result.layers, reference, quantized, samples.batches(batch, min(limit or LAYER_SAMPLES, LAYER_SAMPLES)), threads
    )
    found = [layer for layer in result.layers if layer.ratio.signal or layer.ratio.noise]
    result.layers = sorted(found, key=lambda layer: layer.ratio.decibels)
    return result


def _update(result: Comparison, before: Feeds, after: Feeds, labels: NDArray[np.int64] | None) -> None:
    rows = len(next(iter(before.values())))
    for output in result.outputs:
        check_shape(output.name, before[output.name], after[output.name])
        output.update(before[output.name], after[output.name])
    if result.accuracy is not None and labels is not None:
        name, upto = result.accuracy.output, result.samples + rows
        check_labels(labels[:upto], upto)
        result.accuracy.update(labels[result.samples : upto], before[name], after[name])
    result.samples += rows


def check_shape(name: str, before: Array, after: Array) -> None:
    """Refuse outputs of two models with different shapes.

    Raises:
        ModelError: names the output.
    """
    if before.shape != after.shape:
        what = f"the output {name!r} has the shape {list(before.shape)} in one and {list(after.shape)} in the other"
        raise ModelError(what, hint="compare a model with its own quantized form")


def check_inputs(reference: Sequence[InputSpec], quantized: Sequence[InputSpec]) -> None:
    """Refuse models that take different inputs.

    Raises:
        ModelError: names the inputs of both.
    """
    wanted, found = ({s.name: s for s in specs} for specs in (reference, quantized))
    if wanted.keys() == found.keys() and all(_alike(spec, found[name]) for name, spec in wanted.items()):
        return
    lists = [", ".join(f"{s.name} {s}" for s in specs) for specs in (reference, quantized)]
    what = f"the models take different inputs: {lists[0]} and {lists[1]}"
    raise ModelError(what, hint="compare a model with its own quantized form")


def _alike(one: InputSpec, other: InputSpec) -> bool:
    same = one.dtype == other.dtype and len(one.shape) == len(other.shape)
    sizes = zip(one.shape, other.shape, strict=False)
    return same and all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))


def _outputs(reference: ir.Model, quantized: ir.Model) -> list[OutputError]:
    there = {value.name for value in quantized.graph.outputs}
    found = [OutputError(str(v.name)) for v in reference.graph.outputs if v.name in there and graph.is_float(v)]
    if not found:
        raise ModelError(
            "the models have no float output in common", hint="compare a model with its own quantized form"
        )
    return found


def _scores_output(reference: ir.Model, outputs: Sequence[OutputError]) -> str:
    """The output that labels are for: [samples, classes], whatever axes of 1 lie between."""
    names = {output.name for output in outputs}
    for value in reference.graph.outputs:
        shape = graph.static_shape(value)
        if value.name in names and shape and len(shape) > 1 and shape[-1] != 1 and set(shape[1:-1]) <= {1}:
            return str(value.name)
    raise DataError("labels, but no output of class scores [samples, classes]", hint="leave out --labels")


def layers(reference: ir.Model, quantized: ir.Model) -> list[LayerError]:
    """The float values that the quantized model has too, dequantized or as they are, with what computes them.

    A value that the quantized model only quantizes is found by its dequantized form.
    """
    values = {str(v.name): v for node in quantized.graph for v in node.outputs}
    found = []
    for kind, name, value in _float_values(reference):
        actual = values.get(f"{value.name}{graph.DEQUANTIZED}") or values.get(str(value.name))
        if actual is not None and not _only_quantized(actual):
            found.append(LayerError(kind, name, str(value.name), str(actual.name)))
    return found


def _float_values(model: ir.Model) -> Iterator[tuple[str, str, ir.Value]]:
    for value in model.graph.inputs:
        if graph.is_float(value):
            yield "input", str(value.name), value
    for node in model.graph:
        for value in node.outputs:
            if graph.is_float(value):
                yield node.op_type, str(node.name), value


def _only_quantized(value: ir.Value) -> bool:
    users = [user for user, _ in value.uses()]
    return bool(users) and all(graph.is_op(user, "QuantizeLinear") for user in users)


def _measure(
    found: Sequence[LayerError], reference: ir.Model, quantized: ir.Model, batches: Iterator[Feeds], threads: int
) -> int:
    """Run both models with every layer's result as an output; give back the number of samples."""
    inputs = {value.name for value in reference.graph.inputs}
    names = [list(dict.fromkeys(n for n in side if n not in inputs)) for side in _names(found)]
    models = (reference, quantized)
    runners = [runtime.session(runtime.with_outputs(m, n), threads=threads) for m, n in zip(models, names, strict=True)]
    count = 0
    for feeds in batches:
        both = [
            feeds | dict(zip(n, runtime.run(r, n, feeds), strict=True)) for r, n in zip(runners, names, strict=True)
        ]
        for layer in found:
            before, after = both[0][layer.reference], both[1][layer.actual]
            if before.shape == after.shape:
                layer.ratio.update(before, after)
        count += len(next(iter(feeds.values())))
    return count


def layer_errors(
    reference: ir.Model, quantized: ir.Model, batches: Iterator[Feeds], threads: int = 1
) -> list[LayerError]:
    """The error of every layer found in both models, in the order of the float model."""
    found = layers(reference, quantized)
    _measure(found, reference, quantized, batches, threads)
    return found


def _names(found: Sequence[LayerError]) -> tuple[list[str], list[str]]:
    return [layer.reference for layer in found], [layer.actual for layer in found]
