"""Rounding rows of weights to a grid so that the layer's output moves least: ``(w - s q) H (w - s q)^T``.

`gptq` rounds column by column and lets the columns that follow take up the error (Frantar et al. 2022, "GPTQ",
arXiv:2210.17323), all rows at once, the columns with the largest inputs first. `descend` then changes one integer of
each row at a time for as long as that lowers the error: cyclic coordinate descent, exact for a quadratic. The
objective is that of AdaRound (Nagel et al. 2020, arXiv:2004.10568) and AdaQuant (Hubara et al. 2020, arXiv:2006.10518);
integers are not bound to the two next to the float weight.

Arrays are float64; ``(groups, rows, inputs)`` for weights, ``(groups, inputs, inputs)`` for ``H``.
"""

from __future__ import annotations

import numpy as np

from qcomp.graph import Array
from qcomp.rounding.grid import Grid
from qcomp.rounding.moments import Objective

BLOCK = 64
"""Columns that are rounded before the others hear of it."""
FRACTIONS = np.linspace(0.3, 1.05, 26)
"""Of the largest weight of a row: the clipping that is tried by the errors of single weights."""
AROUND = (0.85, 0.92, 1.0, 1.08, 1.16)
"""Around the best of those: tried by the error of the row."""
SWEEPS = 10
"""Over the columns, at most, for one choice of scales."""
TURNS = 3
"""How often integers and scales are improved in turn."""


def gptq(objective: Objective, grid: Grid) -> tuple[Array, Array]:
    """Integers and scales by GPTQ, each row with the best of several scales.

    Returns:
        Integers, float64 ``(groups, rows, inputs)``, and scales ``(groups, rows)``.
    """
    order, factor = _factor(objective.hessian)
    target = np.take_along_axis(objective.target, order[:, None, :], axis=2)
    best: Array = np.zeros_like(target)
    best_scale, least = grid.current, np.full(grid.current.shape, np.inf)
    for scale in _scales(objective, grid):
        found = _round_columns(target, factor, scale, grid)
        error = grid.pool(objective.error(scale[..., None] * _back(found, order)))
        better = error < least
        least = np.where(better, error, least)
        best_scale = np.where(better, scale, best_scale)
        best = np.where(better[..., None], found, best)
    return _back(best, order), best_scale


def rounded(objective: Objective, grid: Grid, scale: Array) -> Array:
    """Integers by GPTQ for given scales, ``(groups, rows, inputs)``."""
    order, factor = _factor(objective.hessian)
    target = np.take_along_axis(objective.target, order[:, None, :], axis=2)
    return _back(_round_columns(target, factor, scale, grid), order)


def learned(objective: Objective, grid: Grid, sweeps: int = SWEEPS) -> tuple[Array, Array]:
    """As `gptq`, then integers and scales in turn, each the best for the other, for as long as that helps."""
    integers, scale = gptq(objective, grid)
    for _ in range(TURNS):
        integers = descend(objective, grid, integers, scale, sweeps)
        scale = _rescaled(objective, grid, integers, scale)
    return descend(objective, grid, integers, scale, sweeps), scale


def descend(objective: Objective, grid: Grid, integers: Array, scale: Array, sweeps: int = SWEEPS) -> Array:
    """Coordinate descent on the integers until nothing changes, for so many sweeps at most."""
    hessian, integers = objective.hessian, integers.copy()
    gradient = np.matmul(scale[..., None] * integers - objective.target, hessian)
    for _ in range(sweeps):
        changed = False
        for start in range(0, integers.shape[2], BLOCK):
            block = slice(start, min(start + BLOCK, integers.shape[2]))
            old = integers[:, :, block].copy()
            _descend_block(integers[:, :, block], gradient[:, :, block].copy(), hessian[:, block, block], scale, grid)
            moved = scale[..., None] * (integers[:, :, block] - old)
            if moved.any():
                changed = True
                gradient += np.matmul(moved, hessian[:, block])
        if not changed:
            break
    return integers


def _descend_block(integers: Array, gradient: Array, hessian: Array, scale: Array, grid: Grid) -> None:
    """One sweep over a few columns, in place."""
    for j in range(integers.shape[2]):
        step = scale * hessian[:, j, j, None]
        wanted = np.clip(np.rint(integers[:, :, j] - gradient[:, :, j] / step), grid.low, grid.high)
        moved = wanted - integers[:, :, j]
        if moved.any():
            integers[:, :, j] = wanted
            gradient += (scale * moved)[..., None] * hessian[:, None, j, :]


def _rescaled(objective: Objective, grid: Grid, integers: Array, scale: Array) -> Array:
    """The best scales for the integers, where that lowers the error."""
    if grid.kind == "fixed":
        return scale
    product = np.matmul(integers, objective.hessian)
    along = grid.pool(np.einsum("gok,gok->go", product, objective.target))
    square = grid.pool(np.einsum("gok,gok->go", product, integers))
    wanted = np.where(square > 0, along / np.maximum(square, 1e-300), scale)
    new = grid.snap(np.where(wanted > 0, wanted, scale))
    errors = [grid.pool(objective.error(s[..., None] * integers)) for s in (new, scale)]
    chosen: Array = np.where(errors[0] < errors[1], new, scale)
    return chosen


def _scales(objective: Objective, grid: Grid) -> list[Array]:
    """The scales that are worth trying: the current one, and those around the best for single weights."""
    if grid.kind == "fixed":
        return [grid.current]
    target = objective.target
    importance = np.diagonal(objective.hessian, axis1=1, axis2=2)[:, None, :]
    reach = np.abs(target).max(axis=2, initial=0)
    reach = np.full_like(reach, reach.max(initial=0)) if grid.pooled else reach
    largest = np.where(reach > 0, reach / grid.high, grid.current)
    best, least = grid.current, np.full(reach.shape, np.inf)
    for fraction in FRACTIONS:
        scale = grid.snap(largest * fraction)
        rounded = np.clip(np.rint(target / scale[..., None]), grid.low, grid.high) * scale[..., None]
        error = grid.pool(np.sum((rounded - target) ** 2 * importance, axis=2))
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return [grid.current, *(grid.snap(best * around) for around in AROUND)]


def _factor(hessian: Array) -> tuple[Array, Array]:
    """The order of the columns, ``(groups, inputs)``, and in that order the upper Cholesky factor of ``H^-1``."""
    order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
    ordered = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], 1), order[:, None, :], 2)
    inverse = np.linalg.inv(ordered)
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    return order, np.linalg.cholesky(inverse).transpose(0, 2, 1)


def _back(ordered: Array, order: Array) -> Array:
    """Columns as they were before they were ordered."""
    result = np.empty_like(ordered)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], ordered.shape), ordered, axis=2)
    return result


def _round_columns(target: Array, factor: Array, scale: Array, grid: Grid) -> Array:
    """Round the columns in order, the columns behind taking up the error."""
    work, integers = target.copy(), np.empty_like(target)
    size = target.shape[2]
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.empty((*scale.shape, stop - start))
        for j in range(start, stop):
            integers[:, :, j] = np.clip(np.rint(work[:, :, j] / scale), grid.low, grid.high)
            error = (work[:, :, j] - scale * integers[:, :, j]) / factor[:, j, j, None]
            work[:, :, j:stop] -= error[..., None] * factor[:, None, j, j:stop]
            errors[:, :, j - start] = error
        work[:, :, stop:] -= np.matmul(errors, factor[:, start:stop, stop:])
    return integers
