"""Move a scale and a shift of each channel between an activation and the weights that read it.

A few channels with large values, as normalizations in transformers give, take up the range of a whole tensor. With
``x = s x' + t`` for each channel, what computes ``x`` gives ``x' = (x - t) / s`` by its constants alone, and every
linear operator that reads it undoes that:

    W x + b  =  (W s) x' + (W t + b)

so that the channels of ``x'`` have like ranges and the weights bear the difference. What gives ``x`` may be a
normalization, a linear operator, a Mul or an Add of constants, or an attention (see
`qcomp.reparameterization.producers`); where other operators read a normalization too, as a residual Add does, the
linear ones get a copy of it. How the numbers are chosen, see `qcomp.reparameterization.candidates`.

Sources: SmoothQuant, Xiao et al. 2022, arXiv:2211.10438; Outlier Suppression+, Wei et al. 2023, arXiv:2304.09145;
RepQ-ViT, Li et al. 2023, arXiv:2212.08254.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.channels import ChannelRange
from qcomp.calibration.observers import Observation, Statistics
from qcomp.pipeline import Pass
from qcomp.quantization import qtype
from qcomp.reparameterization import candidates, rewriting, samples, sites
from qcomp.reparameterization.candidates import Candidate, Channels
from qcomp.reparameterization.consumers import LARGE
from qcomp.reparameterization.sites import Site
from qcomp.reparameterization.trial import OUTPUTS, Trial, thinned

logger = logging.getLogger(__name__)

GAIN = 0.9
"""`auto` changes what leaves at most so much of the error."""
GAIN_INSERTED = 0.25
"""And where it takes operators of its own, at most so much."""


@dataclass(frozen=True)
class ReparameterizeScales(Pass):
    """Scale and shift channels between activations and weights: x' = (x - t) / s, W' = W s, b' = b + W t.

    Args:
        method: ``smooth`` balances the extremes of activations and weights; ``shift-scale`` centres channels and
            scales outliers down to a threshold; ``per-channel`` lets all channels fill one range; ``auto`` takes of
            all the one with the least error of the layers' outputs, where it is clearly less than without.
        alpha: how far ``smooth`` moves the difference into the weights, 0 to 1; none searches by the same error.
        copies: give linear operators a copy of a normalization that others read too.
        inputs: scale the model's inputs by a Mul and an Add in float, which integer forms refuse; `auto` does so
            where it leaves a quarter of the error.
        weights: the type of weights that will be inserted.
        activations: that of activations; with none there is nothing to do.
    """

    method: Literal["auto", "smooth", "shift-scale", "per-channel"] = "auto"
    alpha: float | None = None
    copies: bool = True
    inputs: bool = False
    weights: str = "int8"
    activations: str | None = "uint8"
    moves_values: ClassVar[bool] = True

    def observe(self, model: ir.Model) -> Iterable[Observation]:
        return [Observation(v, ChannelRange(site.axis)) for site in self._sites(model) for v in site.observed]

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        found = [s for s in self._sites(model) if all(_known(stats, v, s.axis) for v in s.observed)]
        rows = samples.rows(stats, found)
        names = graph.Names(model.graph)
        changed = False
        for old in found if rows else ():
            site = sites.at(old.value, model.graph)  # what was done before may have put a bias behind its producer
            if site is None:
                continue
            gain = GAIN_INSERTED if site.inserted else GAIN
            chosen = self._choose(self._trial(site, old.observed, stats, rows), gain)
            if chosen is not None:
                rewriting.apply(site, *chosen, names)
                changed = True
        return changed

    def _sites(self, model: ir.Model) -> Iterator[Site]:
        if self.activations is None or any(graph.is_op(n, "QuantizeLinear") for n in model.graph):
            return
        for site in sites.find(model):
            reason = self._refusal(site)
            if reason:
                logger.info("%s: its input is not scaled: %s", graph.describe(site.consumers[0].linear.node), reason)
            else:
                yield site

    def _refusal(self, site: Site) -> str:
        """Why a site is left alone; nothing where it is not."""
        if site.copied:
            return "" if self.copies else "others read it too, and copies=false"
        if not site.inserted:
            return ""
        if site.value.is_graph_input():
            return "" if self.inputs else "it is an input of the model, and inputs=false"
        return "others read it too" if site.others else "what computes it cannot absorb a scale"

    def _trial(self, site: Site, observed: Sequence[ir.Value], stats: Statistics, rows: samples.Rows) -> Trial:
        seen = [stats.find(value, ChannelRange(site.axis)) for value in observed]
        low = np.min([state.low for state in seen], axis=0).astype(np.float64)
        high = np.max([state.high for state in seen], axis=0).astype(np.float64)
        weights = [c.weights() for c in site.consumers]
        largest = np.max([np.abs(w).max(axis=(1, 2)) for w in weights], axis=0).astype(np.float64)
        channels = Channels(low, high, largest, site.shifts)
        tried = np.concatenate([_some_outputs(w, len(weights)) for w in weights], axis=1)
        activation = qtype.parse(str(self.activations), f"{self.name()}{{activations}}")
        positions = np.concatenate([rows[str(value.name)] for value in observed])
        return Trial(
            positions, channels, tried, activation, qtype.parse_weight(self.weights, f"{self.name()}{{weights}}")
        )

    def _choose(self, trial: Trial, gain: float) -> Candidate | None:
        """The method's candidate with the least error; None where it changes nothing, or not enough."""
        found = list(self._candidates(trial.channels))
        errors = [trial.error(c) for c in found] if len(found) > 1 or self.method == "auto" else [0.0]
        best = found[int(np.argmin(errors))]
        if self.method == "auto" and min(errors) > gain * trial.error(candidates.nothing(trial.channels)):
            return None
        return best if candidates.changes(best, trial.channels) else None

    def _candidates(self, channels: Channels) -> Iterator[Candidate]:
        if self.method == "smooth":
            return candidates.smooth(channels, candidates.ALPHAS if self.alpha is None else (self.alpha,))
        methods = {
            "auto": candidates.best_of_all,
            "shift-scale": candidates.shift_scale,
            "per-channel": candidates.per_channel,
        }
        return methods[self.method](channels)


def _known(stats: Statistics, value: ir.Value, axis: int) -> bool:
    """Whether the extremes of a value's channels were seen, and are such that nothing computed from them overflows."""
    state = stats.find(value, ChannelRange(axis))
    return state is not None and state.low is not None and bool(np.abs([state.low, state.high]).max() < LARGE)


def _some_outputs(weights: graph.Array, among: int) -> graph.Array:
    """Some output channels of weights ``(channels, outputs, positions)``, so that `OUTPUTS` of all are tried."""
    return np.moveaxis(thinned(np.moveaxis(weights, 1, 0), max(OUTPUTS // among, 1)), 0, 1)
