"""Orthogonal matrices that spread any one direction over all, as Kronecker products of small ones.

A randomized Hadamard matrix (Ashkboos et al. 2024, QuaRot, arXiv:2404.00456) has entries of one magnitude, so that a
single large feature becomes ``n`` small ones. Sizes that are no power of two take a Hartley matrix for their odd part.
A matrix that `keeps_ones` has ``1 R = 1`` beside: then the mean over the features stays, and LayerNormalization, which
takes it away, commutes with the rotation. Regular Hadamard matrices of 4^k do it, ``R_4 = J / 2 - I``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_TRIES = 64
"""How many random matrices are drawn for an odd size that keeps ones; the one with the least entries serves."""


@dataclass(frozen=True)
class Rotation:
    """``x -> (x * signs) (F_1 (x) F_2 (x) ...)``.

    Args:
        signs: float64 ``(n,)``, of 1 and -1.
        factors: orthogonal, float64; the product of their sizes is n.
    """

    signs: Array
    factors: tuple[Array, ...]

    @property
    def size(self) -> int:
        """n."""
        return int(self.signs.size)

    def matrix(self) -> Array:
        """The matrix R of ``x R``, float64 ``(n, n)``."""
        return self.apply(np.eye(self.size), -1)

    def apply(self, array: Array, axis: int) -> Array:
        """Multiply each block of n entries along an axis by R.

        Args:
            array: its size along the axis is a multiple of n.
            axis: any.

        Returns:
            float64, of the same shape.
        """
        moved = np.moveaxis(array.astype(np.float64), axis, -1)
        signed = moved.reshape(*moved.shape[:-1], -1, self.size) * self.signs
        folded = signed.reshape(-1, *(f.shape[0] for f in self.factors))
        for index, factor in enumerate(self.factors, 1):
            folded = np.moveaxis(np.tensordot(folded, factor, (index, 0)), -1, index)
        return np.moveaxis(folded.reshape(moved.shape), -1, axis)


def rotation(size: int, *, keeps_ones: bool, seed: int = 0) -> Rotation:
    """A rotation of so many features.

    Args:
        size: n, at least 1.
        keeps_ones: whether the ones vector is to stay; then the signs are all 1.
        seed: of the signs, or of what is drawn for the part of n that is no power of 4.
    """
    rng = np.random.default_rng(seed)
    if keeps_ones:
        return Rotation(np.ones(size), tuple(_keeping_ones(size, rng)))
    signs = rng.choice([-1.0, 1.0], size)
    twos = (size & -size).bit_length() - 1
    two = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
    return Rotation(signs, (hartley(size >> twos), *[two] * twos))


def hartley(size: int) -> Array:
    """``cos + sin`` of ``2 pi i j / n`` over the root of n: orthogonal for every n, entries of at most sqrt(2 / n)."""
    angles = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
    return np.asarray((np.cos(angles) + np.sin(angles)) / np.sqrt(size))


def _keeping_ones(size: int, rng: np.random.Generator) -> list[Array]:
    fours = 0
    while size % 4 == 0 and size != 8:
        size, fours = size // 4, fours + 1
    return [_drawn(size, rng), *[np.full((4, 4), 0.5) - np.eye(4)] * fours]


def _drawn(size: int, rng: np.random.Generator) -> Array:
    """The matrix with the least largest entry among ``2 J / n - I`` and random ones; all keep ones."""
    basis = hartley(size)
    drawn = [2 * np.full((size, size), 1 / size) - np.eye(size)]
    for _ in range(_TRIES if 2 < size < 64 else int(size > 2)):
        inner, _ = np.linalg.qr(rng.normal(size=(size - 1, size - 1)))
        whole = np.eye(size)
        whole[1:, 1:] = inner
        drawn.append(reduce(np.matmul, (basis, whole, basis.T)))
    return min(drawn, key=lambda m: float(np.abs(m).max()))
