"""A quantized model against its float model: outputs, accuracy and layers, over samples, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcomp import graph, runtime
from qcomp.calibration.data import InputSpec, Samples, check_labels
from qcomp.errors import DataError, ModelError
from qcomp.runtime import Array, Feeds

LAYER_SAMPLES = 64
"""How many samples the layers are compared on at most; outputs and accuracy are of all samples."""
Progress = Callable[[int], None]


@dataclass
class Ratio:
    """A signal-to-quantization-noise ratio that grows batch by batch; values that are not finite in both are left out.

    Args:
        signal, noise: sums of squares.
    """

    signal: float = 0.0
    noise: float = 0.0

    def update(self, reference: Array, actual: Array) -> None:
        """Take in arrays of one shape."""
        wanted, found = reference.astype(np.float64), actual.astype(np.float64)
        both = np.isfinite(wanted) & np.isfinite(found)
        self.signal += float(np.sum(wanted[both] ** 2))
        self.noise += float(np.sum((wanted[both] - found[both]) ** 2))

    @property
    def decibels(self) -> float:
        """Infinite where nothing changed, minus infinity where there is noise alone."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@dataclass
class OutputError:
    """What quantization did to one output.

    Args:
        name: of the output.
        ratio: over all samples.
        scores: how many vectors of class scores were compared; 0 where the output has none.
        agreeing: in how many of them both models have the same greatest score.
    """

    name: str
    ratio: Ratio = field(default_factory=Ratio)
    scores: int = 0
    agreeing: int = 0

    @property
    def agreement(self) -> float | None:
        """The share of equal decisions, 0 to 1; None where the output has no class scores."""
        return self.agreeing / self.scores if self.scores else None

    def update(self, reference: Array, actual: Array) -> None:
        """Take in a batch."""
        self.ratio.update(reference, actual)
        if reference.ndim > 1 and reference.shape[-1] > 1:
            same = reference.argmax(-1) == actual.argmax(-1)
            self.scores, self.agreeing = self.scores + same.size, self.agreeing + int(same.sum())


@dataclass
class Accuracy:
    """How often the label is the greatest score, or one of the five greatest, of an output [samples, classes].

    Args:
        output: its name.
        top1, top5: correct samples so far, of the float and of the quantized model.
    """

    output: str
    samples: int = 0
    top1: tuple[int, int] = (0, 0)
    top5: tuple[int, int] = (0, 0)

    def update(self, labels: NDArray[np.int64], reference: Array, actual: Array) -> None:
        """Take in a batch.

        Raises:
            DataError: the output has no score for a label.
        """
        classes = reference.shape[-1]
        if labels.max() >= classes:
            what = f"the label {labels.max()}, but {self.output!r} has scores of {classes} classes"
            raise DataError(what, where="labels", hint="count classes from 0, as the model does")
        ranks = [_rank(scores.reshape(len(labels), -1), labels) for scores in (reference, actual)]
        self.samples += len(labels)
        self.top1 = (self.top1[0] + int((ranks[0] < 1).sum()), self.top1[1] + int((ranks[1] < 1).sum()))
        self.top5 = (self.top5[0] + int((ranks[0] < 5).sum()), self.top5[1] + int((ranks[1] < 5).sum()))


def _rank(scores: Array, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position of each label among the scores, greatest first; of equal scores the first class comes first."""
    own = scores[np.arange(len(labels)), labels][:, None]
    before = (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    return np.asarray(((scores > own) | before).sum(1))


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
        progress: called with the number of samples done so far.

    Raises:
        ModelError: the models differ in their inputs, or have no float output in common.
        DataError: the samples do not run, or the labels do not fit.
    """
    _check_inputs(runtime.input_specs(reference), runtime.input_specs(quantized))
    result = Comparison(0, _outputs(reference, quantized), layers(reference, quantized), 0)
    if labels is not None:
        check_labels(labels, len(labels) if samples.count is None else samples.count)
        result.accuracy = Accuracy(_scores_output(reference, result.outputs))
    both = [runtime.session(model, threads=threads) for model in (reference, quantized)]
    names = [output.name for output in result.outputs]
    for feeds in samples.batches(batch, limit):
        before, after = (dict(zip(names, runtime.run(one, names, feeds), strict=True)) for one in both)
        _update(result, before, after, labels)
        if progress:
            progress(result.samples)
    result.layer_samples = _measure(
        result.layers, reference, quantized, samples.batches(batch, min(limit or LAYER_SAMPLES, LAYER_SAMPLES)), threads
    )
    found = [layer for layer in result.layers if layer.ratio.signal or layer.ratio.noise]
    result.layers = sorted(found, key=lambda layer: layer.ratio.decibels)
    return result


def _update(result: Comparison, before: Feeds, after: Feeds, labels: NDArray[np.int64] | None) -> None:
    rows = len(next(iter(before.values())))
    for output in result.outputs:
        _check_shape(output.name, before[output.name], after[output.name])
        output.update(before[output.name], after[output.name])
    if result.accuracy is not None and labels is not None:
        name = result.accuracy.output
        result.accuracy.update(labels[result.samples : result.samples + rows], before[name], after[name])
    result.samples += rows


def _check_shape(name: str, before: Array, after: Array) -> None:
    if before.shape != after.shape:
        what = f"the output {name!r} has the shape {list(before.shape)} in one and {list(after.shape)} in the other"
        raise ModelError(what, hint="compare a model with its own quantized form")


def _check_inputs(reference: Sequence[InputSpec], quantized: Sequence[InputSpec]) -> None:
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


def _names(found: Sequence[LayerError]) -> tuple[list[str], list[str]]:
    return [layer.reference for layer in found], [layer.actual for layer in found]
