from __future__ import annotations

import itertools

import numpy as np
import pytest

from qcomp.rounding import second_order
from qcomp.rounding.grid import Grid
from qcomp.rounding.moments import Moments, Objective


def problem(seed, groups=1, rows=6, inputs=12, spread=2.0):
    """Correlated inputs, as those of real layers are."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(groups, inputs, inputs)) * np.exp(random.normal(size=(groups, 1, inputs)) * spread / 2)
    hessian = np.matmul(mixing, mixing.transpose(0, 2, 1)) + 0.01 * np.eye(inputs)
    return Objective(random.normal(size=(groups, rows, inputs)), hessian)


def grid_of(objective, bits=4, kind="free", **options):
    high = 2 ** (bits - 1) - 1
    scale = (np.abs(objective.target).max(axis=2) / high).astype(np.float32).astype(np.float64)
    return Grid(-high, high, scale, np.zeros(scale.shape), kind=kind, **options)


def nearest(objective, grid):
    return np.clip(np.rint(objective.target / grid.current[..., None]), grid.low, grid.high)


def cost(objective, integers, scale):
    return objective.error(scale[..., None] * integers)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("groups", "rows", "inputs"), [(1, 6, 12), (5, 1, 9), (1, 8, 150)])
def test_gptq_is_better_than_nearest_and_descent_than_gptq(bits, groups, rows, inputs):
    """Frantar et al.: the output's error falls severalfold on correlated inputs; descent starts where GPTQ ends."""
    totals = np.zeros(3)
    for seed in range(8):
        objective = problem(seed, groups, rows, inputs)
        grid = grid_of(objective, bits, "fixed")
        found = second_order.gptq(objective, grid)
        learned = second_order.learned(objective, grid)
        assert (cost(objective, *learned) <= cost(objective, *found) * (1 + 1e-9)).all()
        totals += [cost(objective, *pair).sum() for pair in ((nearest(objective, grid), grid.current), found, learned)]
    assert totals[1] < 0.6 * totals[0]
    assert totals[2] < 0.97 * totals[1]


@pytest.mark.parametrize("seed", range(5))
def test_descent_ends_where_no_single_integer_is_better(seed):
    objective = problem(seed, groups=2, rows=3, inputs=70)
    grid = grid_of(objective, 3, "fixed")
    found = second_order.descend(objective, grid, nearest(objective, grid), grid.current, sweeps=1000)
    least = cost(objective, found, grid.current)
    for column, step in itertools.product(range(70), (-1, 1)):
        other = found.copy()
        other[:, :, column] = np.clip(other[:, :, column] + step, grid.low, grid.high)
        assert (cost(objective, other, grid.current) >= least - 1e-9).all()


def test_finds_the_best_integers_of_a_tiny_layer_nearly_always():
    ratios = []
    for seed in range(20):
        objective = problem(seed, rows=1, inputs=5)
        grid = grid_of(objective, 2, "fixed")
        found = cost(objective, *second_order.learned(objective, grid)).sum()
        every = [np.array([[row]]) for row in itertools.product((-1.0, 0.0, 1.0), repeat=5)]
        ratios.append(found / min(cost(objective, integers, grid.current).sum() for integers in every))
    assert np.min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 1.2


@pytest.mark.parametrize("kind", ["free", "powers", "dyadic"])
@pytest.mark.parametrize("pooled", [False, True])
def test_better_scales_than_the_largest_weight_gives(kind, pooled):
    gains = []
    for seed in range(5):
        objective = problem(seed, rows=4, inputs=30)
        objective.target[..., 0] *= 4
        fixed = grid_of(objective, 3)
        current = np.full_like(fixed.current, fixed.current.max()) if pooled else fixed.current
        current = np.exp2(np.ceil(np.log2(current))) if kind == "powers" else current
        unit = np.full(current.shape, 2.0**-7) if kind == "dyadic" else None
        grid = Grid(-3, 3, current, fixed.least, kind, unit, pooled)
        integers, scale = second_order.learned(objective, grid)
        assert np.abs(integers).max() <= 3
        np.testing.assert_array_equal(integers, np.rint(integers))
        np.testing.assert_array_equal(scale, scale.astype(np.float32))
        allowed = grid.snap(scale)
        assert (np.isclose(scale, allowed, rtol=1e-6) | (scale == grid.current)).all()
        assert not pooled or np.ptp(scale) == 0
        before = cost(objective, *second_order.learned(objective, Grid(-3, 3, current, fixed.least))).sum()
        gains.append(before / cost(objective, integers, scale).sum())
    assert np.mean(gains) > 1.2


def test_dead_inputs_and_all_zero_weights_stay_finite():
    moments = Moments(2, 3, 4)
    moments.update(np.zeros((10, 2, 4), np.float32), np.zeros((10, 2, 3), np.float32))
    objective = Objective.of(np.zeros((2, 3, 4)), moments, centred=True)
    grid = Grid(-7, 7, np.ones((2, 3)), np.zeros((2, 3)), "free")
    integers, scale = second_order.learned(objective, grid)
    assert not integers.any()
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_without_inputs_seen_the_weights_are_rounded_to_nearest():
    weight = np.random.default_rng(0).normal(size=(1, 3, 4))
    objective = Objective.of(weight, Moments(1, 3, 4), centred=True)
    grid = grid_of(objective, kind="fixed")
    np.testing.assert_array_equal(second_order.learned(objective, grid)[0], nearest(objective, grid))
