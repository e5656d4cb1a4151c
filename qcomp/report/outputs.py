"""What quantization did to outputs, batch by batch: noise, decisions, accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qcomp.errors import DataError
from qcomp.runtime import Array


@dataclass
class Ratio:
    """A signal-to-quantization-noise ratio that grows batch by batch.

    Values that are not finite in the reference, such as masks, are left out; one that is not finite in the quantized
    outputs alone is infinite noise.

    Args:
        signal, noise: sums of squares.
    """

    signal: float = 0.0
    noise: float = 0.0

    def update(self, reference: Array, actual: Array) -> None:
        """Take in arrays of one shape."""
        finite = np.isfinite(reference)
        wanted, found = reference[finite].astype(np.float64), actual[finite].astype(np.float64)
        noise = float(np.sum((wanted - found) ** 2))
        self.signal += float(np.sum(wanted**2))
        self.noise += noise if math.isfinite(noise) else math.inf

    @property
    def decibels(self) -> float:
        """Infinite where nothing changed, minus infinity where there is noise alone."""
        if self.noise == 0:
            return math.inf
        ratio = self.signal / self.noise
        return 10 * math.log10(ratio) if ratio else -math.inf


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


def sqnr(reference: Array, actual: Array) -> float:
    """Signal-to-quantization-noise ratio in dB of two arrays of one shape; see `Ratio`."""
    ratio = Ratio()
    ratio.update(reference, actual)
    return ratio.decibels
