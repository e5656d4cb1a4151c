"""Requantization in narrow operators, against its definition in int64."""

from __future__ import annotations

import integer_graphs as graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from qcomp.expansion.requantize import Sums, Target, Width, plan, requantize
from qcomp.quantization.dyadic import Dyadic


def results(raw, sums, target):
    """The result in ONNX Runtime and in the reference evaluator."""
    model = graphs.emitted(TensorProto.INT32, raw.shape, lambda e, x: requantize(e, x, sums, target, "y"))
    proto = ir.to_proto(model)
    return [
        *(graphs.run(model, {"x": raw}, optimize=o)[0] for o in (True, False)),
        ReferenceEvaluator(proto).run(None, {"x": raw})[0],
    ]


def random_case(rng):
    """A target, bounds of the sums, and sums within them: at the bounds, around each step and tie, and random."""
    channels, shift = 4, int(rng.integers(25))
    m = np.round(2 ** rng.uniform(0, rng.choice([8, 17, 23.9]), channels)).astype(np.int64)
    m = np.minimum(m << int(rng.integers(8)), (1 << 24) - 1)
    zero = int(rng.choice([0, 128, rng.integers(256)]))
    low, high = sorted(rng.integers(0, 256, 2).tolist()) if rng.integers(2) else (0, 255)
    target = Target(Dyadic(m, shift), zero, low, high)
    most = 2 ** rng.uniform(1, 24, channels)
    bounds = np.sort(np.round(rng.uniform(-most, most, (2, channels))), axis=0).astype(np.int64)
    offset = rng.integers(-(1 << 24), 1 << 24, channels) * rng.integers(2)
    sums = Sums(bounds[0], bounds[1], offset)
    steps = np.round((np.arange(-520, 521)[:, None] / 2) * 2.0**shift / m) - offset
    raw = np.concatenate([steps - 1, steps, steps + 1, rng.uniform(*bounds, (100, channels)), bounds])
    return sums, target, np.clip(raw, *bounds).astype(np.int32)


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_definition(seed):
    sums, target, raw = random_case(np.random.default_rng(seed))
    wanted = target.factor.requantize(raw.astype(np.int64) + sums.offset, target.zero_point, target.low, target.high)
    for found in results(raw, sums, target):
        assert found.dtype == np.uint8
        assert np.array_equal(found, wanted)


def test_every_width_and_both_roundings_occur():
    plans = [plan(*random_case(np.random.default_rng(seed))[:2]) for seed in range(60)]
    assert {(p.width, p.wrong is not None) for p in plans} >= {
        (Width.DIRECT, False),
        (Width.DIRECT, True),
        (Width.CLAMPED, False),
        (Width.CLAMPED, True),
        (Width.WIDE, False),
        (Width.WIDE, True),
    }


@pytest.mark.parametrize("zero", [0, 3, 128])
@pytest.mark.parametrize("m", [1, 3, 6, 255, 257, 300])
def test_ties(zero, m):
    """Every sum of a narrow range; halves go to the even integer before the zero point is added."""
    raw = np.arange(-3000, 3001, dtype=np.int32)[:, None]
    target = Target(Dyadic(np.array(m), 8), zero)
    sums = Sums(np.array(-3000), np.array(3000), np.array(0))
    wanted = np.clip(np.rint(raw * m / 256.0) + zero, 0, 255)
    for found in results(raw, sums, target):
        assert np.array_equal(found, wanted)


def test_a_tie_outside_the_bounds_costs_nothing():
    target = Target(Dyadic(np.array(131), 16), 128)
    assert plan(Sums(np.array(-40000), np.array(40000), np.array(0)), target).wrong == 1
    assert plan(Sums(np.array(-32767), np.array(32767), np.array(0)), target).wrong is None


def test_the_clamp_goes_where_bounds_prove_it_idle():
    target = Target(Dyadic(np.array(1), 4), 8)
    assert plan(Sums(np.array(-100), np.array(100), np.array(0)), target).after is None
    assert plan(Sums(np.array(-200), np.array(100), np.array(0)), target).after is not None


def test_channels_whose_offsets_lie_far_apart():
    """What one channel is raised by does not depend on the offsets of others."""
    offset = np.array([214748364, -214748364])
    target, bound = Target(Dyadic(np.array([5, 5]), 0), 0), np.full(2, 1 << 30)
    near = np.arange(-60, 61)[:, None] - offset
    wanted = np.clip((near + offset) * 5, 0, 255)
    for found in results(near.astype(np.int32), Sums(-bound, bound, offset), target):
        assert np.array_equal(found, wanted)
