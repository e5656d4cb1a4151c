"""What a design costs and how long it takes, layer by layer, as data and as a page."""

from __future__ import annotations

import dataclasses
from typing import Any

from qcomp.backends.hls import costs
from qcomp.backends.hls.boards import Board
from qcomp.backends.hls.design import Design
from qcomp.backends.hls.flow import Flow
from qcomp.backends.hls.layers import Linear

PROVEN = (
    "bounds of every accumulator, from the weights",
    "FIFO depths and freedom from deadlock, by a schedule that these depths allow",
    "with `make run`: the integers of ONNX Runtime on the samples of testbench/, with FIFOs as deep as in hardware",
)
NOT_PROVEN = ("vendor synthesis", "timing closure", "latency on a board")


def report(design: Design, flow: Flow, board: Board) -> dict[str, Any]:
    """All figures, for ``report.json``."""
    clock = board.clock_mhz
    used = costs.total(design)
    return {
        "board": dataclasses.asdict(board),
        "interval_cycles": design.interval,
        "latency_cycles": flow.latency,
        "interval_us": design.interval / clock,
        "latency_us": flow.latency / clock,
        "bottleneck": design.bottleneck.name,
        "macs": sum(layer.macs for layer in design.network.layers),
        "estimates": dataclasses.asdict(used),
        "budget": {name: int(getattr(board, name) * share) for name, share in costs.SHARE.items()},
        "layers": [_layer(design, flow, number) for number in range(len(design.network.layers))],
        "fifos": [{"name": s.name, "bits": s.width, "depth": design.depths[s.name]} for s in design.streams],
        "proven": list(PROVEN),
        "not_proven": list(NOT_PROVEN),
    }


def _layer(design: Design, flow: Flow, number: int) -> dict[str, Any]:
    layer = design.network.layers[number]
    own = [p for p in design.processes if p.layer == number]
    used = sum((costs.of_process(p) for p in own), costs.Resources())
    linear = isinstance(layer, Linear)
    found = {
        "name": layer.name,
        "operator": layer.title,
        "simd": design.folds[number].simd,
        "pe": design.folds[number].pe,
        "products": ("LUT" if design.folds[number].in_luts else "DSP") if linear else None,
        "macs": layer.macs,
        "cycles": max(p.iterations for p in own),
        "first_output_cycle": max(flow.first.get(p.name, 0) for p in own),
        "activation_bits": [f.bits for f in layer.features],
        **dataclasses.asdict(used),
    }
    if isinstance(layer, Linear):
        found |= {"weight_bits": layer.weight_bits, "accumulator_bits": layer.accumulator_bits}
        found["accumulator"] = arithmetic(layer)
    return found


def arithmetic(layer: Linear) -> str:
    """How the width of the accumulator follows from the weights."""
    low, high = layer.accumulator_range
    return (
        f"inputs 0..{(1 << layer.features[0].bits) - 1}, {layer.weight.shape[1]} products a sum: from {low} to {high}, "
        f"{layer.accumulator_bits} bits of two's complement"
    )
