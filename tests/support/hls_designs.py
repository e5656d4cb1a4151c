"""Small integer graphs for designs, and a walk over a design cycle by cycle."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import small_graphs as small

import qcomp
from qcomp.backends.hls import boards, folding, lowering
from qcomp.backends.hls.design import Design
from qcomp.backends.hls.flow import LATENCY

LARGE = "alveo-u250"


def residual(b: small.Builder) -> str:
    """Forks and joins, one of them with a strided convolution in the short branch."""
    x = b.op("Relu", b.conv(b.input("x", ["N", 3, 12, 12]), 3, 8, pads=[1] * 4))
    y = b.op("Relu", b.conv(x, 8, 8, pads=[1] * 4))
    x = b.op("Relu", b.op("Add", x, b.conv(y, 8, 8, pads=[1] * 4)))
    y = b.op("Relu", b.conv(x, 8, 16, pads=[1] * 4, strides=[2, 2]))
    x = b.op("Add", b.conv(y, 16, 16, pads=[1] * 4), b.conv(x, 8, 16, 1, strides=[2, 2]))
    return b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.random(5, 16), b.random(5), transB=1, name="y")


def separable(b: small.Builder) -> str:
    """Depthwise layers, Relu6, and a flattened image in front of the last layer."""
    x = b.op(
        "Clip", b.conv(b.input("x", ["N", 1, 11, 9]), 1, 12, 5, strides=[2, 1], pads=[2, 2, 1, 2]), b.constant(0.0)
    )
    for strides in ([1, 1], [2, 2]):
        x = b.op("Clip", b.conv(x, 12, 12, group=12, strides=strides, pads=[1] * 4), b.constant(0.0), b.constant(6.0))
        x = b.op("Relu", b.conv(x, 12, 12, 1))
    flat = b.op("Flatten", x)
    return b.op("Gemm", flat, b.random(7, 12 * 3 * 5), b.random(7), transB=1, name="y")


def branches(b: small.Builder) -> str:
    """Concat of branches, pools with padding, dilation, groups, functions, products of activations."""
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 10, 10]), 4, 8, pads=[1] * 4))
    one = b.op("Sigmoid", b.conv(x, 8, 8, dilations=[2, 2], pads=[2] * 4))
    two = b.op("Relu", b.conv(x, 8, 12, group=4, pads=[1] * 4))
    three = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    joined = b.op("Concat", b.op("Mul", one, x), two, three, axis=1)
    pooled = b.op("MaxPool", joined, kernel_shape=[2, 2], strides=[2, 2])
    return b.conv(b.op("LeakyRelu", pooled), 28, 6, 3, name="y")


def shortcut(b: small.Builder) -> str:
    """A shortcut by slicing and padding, as in ResNets for CIFAR-10, in one dimension."""
    weight = b.random(6, 2, 3)
    x = b.op("Relu", b.op("Conv", b.input("x", ["N", 2, 16]), weight, b.random(6), pads=[1, 1]))
    y = b.op("Relu", b.op("Conv", x, b.random(12, 6, 3), b.random(12), pads=[1, 1], strides=[2]))
    ends = [b.constant(np.array(v, "i8")) for v in ([0], [16], [2], [2])]
    thin = b.op("Slice", x, ends[0], ends[1], ends[2], ends[3])
    wide = b.op("Pad", thin, b.constant(np.array([0, 3, 0, 0, 3, 0], "i8")))
    return b.op("Add", y, wide, name="y")


def shifted(b: small.Builder) -> str:
    """A long branch of single pixels beside one that moves the image by a row."""
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 3, 40]), 4, 4, 1))
    y = x
    for _ in range(3):
        y = b.op("Relu", b.conv(y, 4, 4, 1))
    ends = [b.constant(np.array(v, "i8")) for v in ([1], [3], [2])]
    moved = b.op("Pad", b.op("Slice", x, *ends), b.constant(np.array([0, 0, 0, 0, 0, 0, 1, 0], "i8")))
    return b.op("Add", y, moved, name="y")


NETWORKS = {
    "shifted": shifted,
    "residual": residual,
    "separable": separable,
    "branches": branches,
    "shortcut": shortcut,
}


@functools.cache
def made(name: str, weights: str = "int8", activations: str = "uint8") -> tuple[ir.Model, dict[str, np.ndarray]]:
    """An integer graph, and float samples for it."""
    b = small.Builder(1)
    proto = b.model(NETWORKS[name](b))
    rng = np.random.default_rng(2)
    shape = [d.dim_value or 48 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    data = {"x": rng.normal(size=shape).astype("f4")}
    return qcomp.compile(proto, [data], to="hls", weights=weights, activations=activations).model, data


def design_of(model: ir.Model, board: str = LARGE, interval: int | None = None) -> Design:
    """A folded design."""
    return folding.fold(lowering.lower(model), boards.find(board), interval)[0]


def walk(design: Design, samples: int = 1) -> list[int]:
    """When each sample has passed, counted cycle by cycle.

    Each process does its next iteration when its words are there and the FIFOs have room for those it makes, those on
    their way through its pipeline included.
    """
    arrived: dict[str, list[int]] = {s.name: [] for s in design.streams}
    taken = dict.fromkeys(arrived, 0)
    plans = []
    for process in design.processes:
        schedule = process.schedule.repeated(samples)
        reads = [(s.name, set(r.tolist())) for s, r in zip(process.inputs, schedule.reads, strict=True)]
        writes = [(s.name, set(w.tolist())) for s, w in zip(process.outputs, schedule.writes, strict=True)]
        plans.append([0, schedule.iterations, reads, writes, LATENCY.get(process.kernel, 2)])
    cycle, idle, ends, last = 0, 0, [], plans[-1]
    while last[0] < last[1]:
        before = dict(taken)
        moved = False
        for plan in plans:
            step, count, reads, writes, latency = plan
            if step == count:
                continue
            inputs = [name for name, when in reads if step in when]
            outputs = [name for name, when in writes if step in when]
            if any(len(arrived[n]) <= taken[n] or arrived[n][taken[n]] > cycle for n in inputs):
                continue
            if any(len(arrived[n]) - before[n] >= design.depths[n] for n in outputs):
                continue
            for name in inputs:
                taken[name] += 1
            for name in outputs:
                arrived[name].append(cycle + latency)
            plan[0], moved = step + 1, True
        cycle += 1
        if last[0] == (len(ends) + 1) * last[1] // samples:
            ends.append(cycle)
        idle = 0 if moved else idle + 1
        assert idle < 100, "a deadlock"
    return ends
