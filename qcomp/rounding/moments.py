"""Streaming moments of what a layer reads, and what rounding its rows costs by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcomp.graph import Array

DAMPING = 0.01
"""What is added to the second moments, as a fraction of their mean diagonal."""
CHUNK = 1 << 24
"""How many products of weights and inputs are held at a time."""


class Moments:
    """Weighted sums over outputs, of constant size.

    Args:
        groups: of the layer, or its rows where each has weights of its own.
        rows: of a group.
        inputs: what each group reads, K.
    """

    def __init__(self, groups: int, rows: int, inputs: int) -> None:
        self._count = np.zeros((groups, 1))
        self._inputs = np.zeros((groups, inputs))
        self._wanted = np.zeros((groups, rows))
        self._second = np.zeros((groups, inputs, inputs))
        self._cross = np.zeros((groups, inputs, rows))

    def update(self, inputs: Array, wanted: Array) -> None:
        """Take in float32 ``(n, groups, inputs)`` and what the outputs should be, ``(n, groups, rows)``."""
        self._count += len(inputs)
        self._inputs += inputs.sum(axis=0, dtype=np.float64)
        self._wanted += wanted.sum(axis=0, dtype=np.float64)
        transposed, by_group = inputs.transpose(1, 2, 0), inputs.transpose(1, 0, 2)
        self._second += np.matmul(transposed, by_group)
        self._cross += np.matmul(transposed, wanted.transpose(1, 0, 2))

    def update_weighted(self, inputs: Array, wanted: Array, weights: Array) -> None:
        """As `update`, with a weight ``(n, groups, rows)`` for every output; this state has a group for each row."""
        groups, rows = wanted.shape[1:]
        for group in range(groups):
            own = slice(group * rows, (group + 1) * rows)
            read, weight = np.ascontiguousarray(inputs[:, group]), np.ascontiguousarray(weights[:, group].T)
            self._count[own, 0] += weight.sum(axis=1, dtype=np.float64)
            self._inputs[own] += weight @ read
            scaled = weight * wanted[:, group].T
            self._wanted[own, 0] += scaled.sum(axis=1, dtype=np.float64)
            self._cross[own, :, 0] += scaled @ read
            step = max(CHUNK // max(read.size, 1), 1)
            for start in range(0, rows, step):
                part = slice(own.start + start, min(own.start + start + step, own.stop))
                weighted = weight[start : start + step, None, :] * read.T
                self._second[part] += np.matmul(weighted, read)

    @classmethod
    def together(cls, states: Sequence[Moments]) -> Moments:
        """What all have seen, in a new state."""
        groups, inputs, rows = states[0]._cross.shape
        result = cls(groups, rows, inputs)
        for state in states:
            for mine, other in zip(result._sums(), state._sums(), strict=True):
                mine += other
        return result

    def _sums(self) -> tuple[Array, ...]:
        return self._count, self._inputs, self._wanted, self._second, self._cross

    def some(self, most: int) -> tuple[Moments, Array]:
        """Of groups spread over all, with so many elements of second moments at most, and which those are."""
        groups, inputs, rows = self._cross.shape
        chosen = np.unique(np.linspace(0, groups - 1, min(max(most // inputs**2, 1), groups)).astype(int))
        result = Moments(len(chosen), rows, inputs)
        for mine, other in zip(result._sums(), self._sums(), strict=True):
            mine += other[chosen]
        return result, chosen

    @property
    def empty(self) -> bool:
        """Whether nothing was seen."""
        return not self._count.any()

    def cost(self, rounded: Array, *, centred: bool) -> float:
        """The mean square error of the outputs of real weights ``(groups, rows, inputs)``, less a constant."""
        second, cross = self.covariances(centred=centred)
        return float(np.sum((np.matmul(rounded, second) - 2 * cross.transpose(0, 2, 1)) * rounded))

    @property
    def means(self) -> tuple[Array, Array]:
        """Of the inputs, float64 ``(groups, inputs)``, and of the wanted outputs, ``(groups, rows)``."""
        count = np.maximum(self._count, 1e-30)
        return self._inputs / count, self._wanted / count

    def covariances(self, *, centred: bool) -> tuple[Array, Array]:
        """Of the inputs ``(groups, inputs, inputs)``, and with the wanted outputs ``(groups, inputs, rows)``.

        Args:
            centred: less the products of the means.
        """
        count = np.maximum(self._count, 1e-30)[:, :, None]
        second, cross = self._second / count, self._cross / count
        if centred:
            inputs, wanted = self.means
            second -= inputs[:, :, None] * inputs[:, None, :]
            cross -= inputs[:, :, None] * wanted[:, None, :]
        return second, cross


@dataclass(frozen=True)
class Objective:
    """What rounding a layer's rows costs: ``(target - rounded) H (target - rounded)^T``, the error of its output.

    Args:
        target: float64 ``(groups, rows, inputs)``: the best float weights for the inputs that the layer will read.
        hessian: float64 ``(groups, inputs, inputs)``, positive definite.
    """

    target: Array
    hessian: Array

    @classmethod
    def of(cls, weight: Array, moments: Moments, *, centred: bool, damping: float = DAMPING) -> Objective:
        """``W* = (cov(y, xq) + lambda W)(cov(xq) + lambda I)^-1`` with the wanted outputs ``y``.

        Args:
            weight: of the float layer, ``(groups, rows, inputs)``: what damping draws to.
            moments: of its inputs and wanted outputs.
            centred: whether a bias takes up what changes the mean.
            damping: lambda, as a fraction of the mean diagonal of ``cov(xq)``.
        """
        second, cross = moments.covariances(centred=centred)
        size = second.shape[-1]
        mean = np.trace(second, axis1=1, axis2=2) / size
        added = np.where(mean > 0, damping * mean, 1.0)[:, None, None]
        second[:, np.arange(size), np.arange(size)] += added[:, :, 0]
        wanted = cross + added * weight.astype(np.float64).transpose(0, 2, 1)
        return cls(np.linalg.solve(second, wanted).transpose(0, 2, 1), second)

    def error(self, rounded: Array) -> Array:
        """Of each row, ``(groups, rows)``, for real weights ``(groups, rows, inputs)``."""
        difference = rounded - self.target
        cost: Array = np.sum(np.matmul(difference, self.hessian) * difference, axis=2)
        return cost
