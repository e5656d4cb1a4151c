"""Weights whose products every processor adds exactly.

x86 without 8-bit dot products (VNNI, AMX) multiplies uint8 by int8 and adds neighbouring products in saturating 16 bits
(``vpmaddubsw``): the sum of two products must lie in int16, for every input and whichever weights are neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qcomp.quantization.qparams import FloatArray, IntArray

PAIR = 128
"""The largest magnitude of the sum of two weights: ``255 * 128 <= 2^15 - 1``."""


def saturates(rows: IntArray) -> bool:
    """Whether two neighbouring products might leave int16.

    Args:
        rows: integer weights ``(channels, n)``, in any order within a row.
    """
    return bool(_largest_pairs(rows.astype(np.int64)).max(initial=0) > PAIR)


def pair_reach(rows: FloatArray) -> FloatArray:
    """The magnitude that int8 must reach so that no two rounded weights of a row saturate.

    With steps of 1/127 of the largest sum of two, the rounded ones add up to at most 127 and a half twice.

    Args:
        rows: float weights ``(channels, n)``.

    Returns:
        ``(channels,)``.
    """
    reach: FloatArray = _largest_pairs(rows)
    return reach


def _largest_pairs(rows: Any) -> Any:
    """The largest magnitude of the sum of two elements of each row; of one where there is but one."""
    if rows.shape[1] == 0:
        return np.zeros(rows.shape[0], rows.dtype)
    ordered = np.sort(rows, axis=1)
    return np.maximum(np.abs(ordered[:, :2].sum(axis=1)), np.abs(ordered[:, -2:].sum(axis=1)))
