"""Networks whose channels have ranges far apart, and the pass `equalize` on them."""

from __future__ import annotations

import numpy as np
import small_graphs as small

from qcomp import files
from qcomp.calibration.calibrator import Calibrator
from qcomp.calibration.observers import Statistics
from qcomp.linear import Linear
from qcomp.passes.equalize import Equalize

DEFAULT = Equalize()
SPREAD = 3.0
"""Channels of the spread networks differ by factors of about ``2 ** (2 * SPREAD)``."""


class Feeds:
    count = None

    def __init__(self, model, seeds=4, batch=8):
        self.feeds = [small.feeds(model, seed, batch) for seed in range(seeds)]

    def batches(self, size, limit=None):
        yield from self.feeds

    def few(self, count, batch):
        yield from self.feeds


def observed(model, step=DEFAULT):
    """Statistics as the pipeline collects them."""
    wanted = list(step.observe(model))
    return Calibrator(Feeds(model)).collect(model, wanted) if wanted else Statistics()


def equalize(proto, step=DEFAULT, *, changed=True, data_free=False, within=1e-5):
    """Run the pass and hold its outputs to ``within``, on samples that calibrated."""
    model = files.load(proto)
    inputs = Feeds(model).feeds[0]
    before = small.run(model, inputs)
    assert step.run(model, Statistics() if data_free else observed(model, step)) is changed
    assert small.moved(before, small.run(model, inputs)) < within
    return model


class Spread(small.Builder):
    """Builds weights whose channels have ranges far apart, as folded normalizations leave them."""

    def random(self, *shape, name="", positive=False):
        array = self.rng.normal(size=shape) / max(np.prod(shape[1:]), 1) ** 0.5
        if len(shape) > 1:
            array *= np.exp2(self.rng.normal(size=(shape[0], *(1,) * (len(shape) - 1))) * SPREAD)
        return self.constant(array, name)


def weights(model):
    return [linear.magnitudes() for node in model.graph if (linear := Linear.match(node)) is not None]


def ranges(model, maker, reader):
    """The relative range of every channel between two linear operators, in the weights before and behind it."""
    found = weights(model)
    before, after = found[maker].max(axis=2).ravel(), found[reader].max(axis=1).ravel()
    return before / before.max(), after / after.max()


def per_tensor_sqnr(proto, model):
    """dB of the first output with every weight rounded to 8 bits of one scale, against the original."""
    for node in model.graph:
        linear = Linear.match(node)
        if linear is not None:
            step = np.abs(linear.weight).max() / 127
            linear.node.inputs[1].const_value = small.ir.Tensor(np.rint(linear.weight / step) * step)
    original = files.load(proto)
    inputs = small.feeds(original, 50, 16)
    real, rounded = (small.run(m, inputs)["y"].astype("f8") for m in (original, model))
    return 10 * np.log10(np.sum(real**2) / np.sum((real - rounded) ** 2))


def bottlenecks(seed, activation):
    """Two inverted residual blocks, 1x1 - depthwise - 1x1, each beside a residual branch."""
    b = Spread(seed)
    x = b.conv(b.input("x", ["N", 3, 8, 8]), 3, 8, pads=[1] * 4)
    for _ in range(2):
        y = activation(b, b.conv(x, 8, 24, 1))
        y = activation(b, b.conv(y, 24, 24, 3, group=24, pads=[1] * 4))
        x = b.op("Add", x, b.conv(y, 24, 8, 1))
    b.conv(b.op("GlobalAveragePool", x), 8, 5, 1)
    b.nodes[-1].output[0] = "y"
    return b.model("y")


def relu(b, x):
    return b.op("Relu", x)


def clip(b, x, low=0.0, high=6.0):
    return b.op("Clip", x, b.constant(low), b.constant(high))
