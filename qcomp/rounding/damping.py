"""How far to trust moments of few samples: the damping whose rounded weights err least on samples left for the check.

Little of it lets rounding make good what earlier layers lost and what other columns lost, by correlations that a few
thousand rows show badly for a thousand inputs; much of it is rounding to nearest.
"""

from __future__ import annotations

import numpy as np

from qcomp.graph import Array
from qcomp.rounding import second_order
from qcomp.rounding.grid import Grid
from qcomp.rounding.moments import DAMPING, Moments, Objective

TRIED = (DAMPING, 0.1, 1.0, 10.0, 1000.0)
ELEMENTS = 1 << 20
"""Of second moments that are looked at: groups spread over all."""


def best_damping(weight: Array, fitted: Moments, check: Moments, grid: Grid, *, centred: bool) -> float:
    """The damping, of a few, with the least error on the check.

    Args:
        weight: of the float layer, ``(groups, rows, inputs)``.
        fitted: moments that weights are rounded with.
        check: those of other samples; without any the least damping is taken.
        grid: of the weights, whose current scales serve.
        centred: whether a bias takes up what changes the mean.
    """
    if check.empty:
        return DAMPING
    some, chosen = fitted.some(ELEMENTS)
    checked, _ = check.some(ELEMENTS)
    scale, errors = grid.current[chosen], []
    for damping in TRIED:
        objective = Objective.of(weight[chosen], some, centred=centred, damping=damping)
        rounded = second_order.rounded(objective, grid, scale) * scale[..., None]
        errors.append(checked.cost(rounded, centred=centred))
    return TRIED[int(np.argmin(errors))]
