"""Which layers lose how much, weights and activations apart, and which pass would help: measured layer by layer.

Each layer is quantized alone, as its model was compiled; then its weights alone, its activations alone, and once more
with each remedy that its line of passes does not hold yet. What counts is the SQNR of the model's worst output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qcomp import graph, operators, pipeline, qdq
from qcomp.calibration.calibrator import Calibrator
from qcomp.calibration.data import Samples
from qcomp.errors import ModelError, QcompError
from qcomp.pipeline import Hooks, Pass
from qcomp.trial import BATCH, Trial, recorded_line, start_of_choice, to_nearest

logger = logging.getLogger(__name__)

SAMPLES = 64
"""How many samples are calibrated with."""
MEASURED = 16
"""How many the outputs are compared on."""
NOTICED = 0.5
"""How many dB a remedy must bring to be named."""
FLOAT_REWRITES = ("equalize", "reparameterize-scales", "split-outlier-channels", "rotate")
BEHIND = ("correct-bias",)
SETTINGS = (
    ("insert-qdq", "per_channel", True),
    ("insert-qdq", "ranges", "mse"),
    ("insert-qdq", "ranges", "percentile"),
    ("insert-qdq", "weights", "int8"),
    ("insert-qdq", "activations", "uint8"),
    ("insert-qdq", "activations", "uint16"),
    ("round-weights", "method", "learned"),
)
"""What may help: rewrites before the choice of precision, passes at the end, and options set otherwise."""

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class LayerLoss:
    """What one layer costs; all numbers are dB of the model's worst output, with nothing else quantized.

    Args:
        kind, name: the operator.
        alone: as it was compiled.
        weights, activations: with only these quantized; ``weights`` is infinite where it has none.
        remedies: what was switched on for it, and the dB then; those that help, best first.
    """

    kind: str
    name: str
    alone: float
    weights: float
    activations: float
    remedies: list[tuple[str, float]] = field(default_factory=list)


def explain(
    reference: ir.Model,
    quantized: ir.Model,
    samples: Samples,
    *,
    layers: int = 10,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> list[LayerLoss]:
    """Measure the layers that add the most noise, worst first.

    Args:
        reference: the float model, as `qcomp.files.load` gives it.
        quantized: what `qcomp.compile` made of it; its line of passes is read from its metadata.
        samples: to calibrate and to measure with.
        layers: how many layers at most.
        batch: samples a run.
        progress: called with the number of layers done so far and how many there will be.

    Raises:
        ModelError: the model does not say with which passes it was compiled.
    """
    line = recorded_line(quantized)
    if line is None or not any(step.name() == "insert-qdq" for step in line):
        hint = "compile it with this version of qcomp"
        raise ModelError("it does not say with which passes it was quantized", hint=hint)
    base = _Variant(reference, line, samples, batch)
    names = base.noisiest(layers)
    ways = [_Way(label, base, changed) for label, changed in _changed(base.tail)]
    for name in _missing(FLOAT_REWRITES, line):
        variant = _Variant(reference, [*base.head, *pipeline.parse(name), *base.tail], samples, batch)
        ways.append(_Way(name, variant, variant.tail))
    found = []
    for done, name in enumerate(names, 1):
        found.append(_loss(base, ways, name))
        if progress:
            progress(done, len(names))
    return sorted(found, key=lambda loss: loss.alone)


class _Variant:
    """The float model behind its rewrites, and trials of the passes behind them."""

    def __init__(self, reference: ir.Model, line: Sequence[Pass], samples: Samples, batch: int) -> None:
        hooks = Hooks(calibrate=Calibrator(samples, limit=SAMPLES, batch=batch).collect)
        self.rewritten = reference.clone()
        start = start_of_choice(line, self.rewritten)
        self.head, self.tail = list(line[:start]), list(line[start:])
        pipeline.run(self.rewritten, self.head, hooks)
        observing = [*self.tail, *pipeline.parse(",".join(_missing(BEHIND, line)))]
        self._trial = Trial(reference, self.rewritten, to_nearest(observing), samples, hooks, batch)
        self._quantized = self._trial.first()
        self.nodes = {str(n.name): n for n in self.rewritten.graph}

    def noisiest(self, most: int) -> list[str]:
        """The names of the layers that add the most noise."""
        return self._trial.noisiest(self._quantized, self._trial.integer_names(self._quantized), most)

    def alone(self, name: str, line: Sequence[Pass]) -> ir.Model:
        """The model with one layer quantized, by these passes."""
        return self._trial.alone(name, line=line)

    def least(self, model: ir.Model) -> float:
        """The SQNR of its worst output in dB."""
        return self._trial.least(model, MEASURED)


@dataclass(frozen=True)
class _Way:
    """A remedy: other passes behind the float rewrites, or another rewrite."""

    label: str
    variant: _Variant
    line: Sequence[Pass]

    def of(self, name: str) -> float | None:
        """The SQNR with the layer alone quantized so; None where the rewrite took it away or it cannot be done."""
        if name not in self.variant.nodes:
            return None
        try:
            return self.variant.least(self.variant.alone(name, self.line))
        except QcompError as error:
            logger.info("%s: %s: %s", name, self.label, error)
            return None


def _loss(base: _Variant, ways: Sequence[_Way], name: str) -> LayerLoss:
    node, alone = base.nodes[name], base.least(base.alone(name, base.tail))
    plain = [step for step in to_nearest(base.tail) if step.name() not in BEHIND]
    remedies = [(way.label, ratio) for way in ways if (ratio := way.of(name)) is not None]
    return LayerLoss(
        kind=node.op_type,
        name=name,
        alone=alone,
        weights=base.least(base.alone(name, pipeline.override(base.tail, activations="none"))),
        activations=base.least(_with_float_weights(base.alone(name, plain), node)),
        remedies=sorted((r for r in remedies if r[1] >= alone + NOTICED), key=lambda pair: -pair[1]),
    )


def _changed(line: Sequence[Pass]) -> Iterator[tuple[str, list[Pass]]]:
    """What is new, and the passes with one option set otherwise, or with one more behind them."""
    for name, option, value in SETTINGS:
        for index, step in enumerate(line):
            if step.name() == name and getattr(step, option) not in (None, value):
                label = f"{name}{{{option}={pipeline.written(value)}}}"
                yield label, [*line[:index], replace(step, **{option: value}), *line[index + 1 :]]
    for name in _missing(BEHIND, line):
        yield name, [*line, *pipeline.parse(name)]


def _missing(names: Sequence[str], line: Sequence[Pass]) -> list[str]:
    """Those that the line does not hold yet."""
    return [name for name in names if name not in {step.name() for step in line}]


def _with_float_weights(quantized: ir.Model, layer: ir.Node) -> ir.Model:
    """The model, changed in place, with the weight of a layer as it was in float."""
    weight = operators.weight_of(layer)
    node = next((n for n in quantized.graph if n.name == layer.name), None)
    array = graph.constant(weight)
    if node is not None and array is not None and qdq.read(node.inputs[1]) is not None:
        graph.set_constant(node, 1, array, graph.Names(quantized.graph), "weight")
    return quantized
