"""Weights whose products every processor adds exactly.

x86 without 8-bit dot products (VNNI, AMX) multiplies uint8 by int8 and adds neighbouring products in saturating 16 bits
(``vpmaddubsw``): the sum of two products must lie in int16, for every input and whichever weights are neighbours.
"""

from __future__ import annotations

import numpy as np

from qcomp.quantization.qparams import IntArray

PAIR = 128
"""The largest magnitude of the sum of two weights: ``255 * 128 <= 2^15 - 1``."""


def saturates(rows: IntArray) -> bool:
    """Whether two neighbouring products might leave int16.

    Args:
        rows: integer weights ``(channels, n)``, in any order within a row.
    """
    if rows.shape[1] == 0:
        return False
    ordered = np.sort(rows.astype(np.int64), axis=1)
    pairs = (ordered[:, :2], ordered[:, -2:])
    return bool(max(np.abs(pair.sum(axis=1)).max(initial=0) for pair in pairs) > PAIR)
