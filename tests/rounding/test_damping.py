"""How far moments are trusted depends on how many rows they are of."""

from __future__ import annotations

import numpy as np

from qcomp.rounding import second_order
from qcomp.rounding.damping import best_damping
from qcomp.rounding.grid import Grid
from qcomp.rounding.moments import DAMPING, Moments, Objective

INPUTS = 60
WEIGHT = np.random.default_rng(0).normal(size=(1, 6, INPUTS))
SCALES = np.abs(WEIGHT).max(axis=2) / 127
GRID = Grid(-127, 127, SCALES, np.zeros_like(SCALES))


def moments_of(rows, seed):
    """Of inputs that earlier layers have disturbed: where there are many rows, much of that can be made good."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(rows, 8)) @ np.random.default_rng(1).normal(size=(8, INPUTS))
    real = mixed + 0.3 * random.normal(size=mixed.shape)
    read = real + 0.05 * random.normal(size=real.shape)
    found = Moments(1, 6, INPUTS)
    found.update(read[:, None].astype("f4"), (real @ WEIGHT[0].T)[:, None].astype("f4"))
    return found


def test_few_rows_are_trusted_less_and_that_helps_on_others():
    fitted, check, others = moments_of(60, 2), moments_of(20, 3), moments_of(5000, 4)
    damping = best_damping(WEIGHT, fitted, check, GRID, centred=True)
    assert damping > DAMPING
    costs = []
    for tried in (damping, DAMPING):
        objective = Objective.of(WEIGHT, fitted, centred=True, damping=tried)
        integers = second_order.rounded(objective, GRID, GRID.current)
        costs.append(others.cost(integers * SCALES[..., None], centred=True))
    least = others.cost(np.linalg.lstsq(*_normal(others), rcond=None)[0].T[None], centred=True)
    assert costs[0] - least < 0.8 * (costs[1] - least)


def _normal(moments):
    second, cross = moments.covariances(centred=True)
    return second[0], cross[0]


def test_many_rows_are_trusted():
    assert best_damping(WEIGHT, moments_of(20000, 2), moments_of(5000, 3), GRID, centred=True) == DAMPING


def test_without_a_check_the_least_damping_serves():
    empty = Moments(1, 6, INPUTS)
    assert best_damping(WEIGHT, moments_of(60, 2), empty, GRID, centred=True) == DAMPING
