"""Pieces of samples, as they are read, cut and joined to batches."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcomp.calibration.fit import listed
from qcomp.errors import DataError

Array = NDArray[Any]
Batch = dict[str, Array]


def spread_indices(count: int, limit: int, block: int) -> list[int]:
    """The indices of `limit` of `count` samples, in whole blocks but for the last, spread evenly."""
    there, wanted = count // block, -(-limit // block)
    if wanted > there:
        return list(range(limit))
    return [i * there // wanted * block + row for i in range(wanted) for row in range(block)][:limit]


def chosen(pieces: Iterable[Batch], indices: Sequence[int]) -> Iterator[Batch]:
    """Of all pieces the samples of these sorted indices."""
    start = 0
    for piece in pieces:
        stop = start + rows_of(piece)
        inside = [i - start for i in indices[bisect_left(indices, start) : bisect_left(indices, stop)]]
        start = stop
        if inside:
            yield {name: array[inside] for name, array in piece.items()}


def rebatch(pieces: Iterable[Batch], size: int, where: str) -> Iterator[Batch]:
    """Batches of exactly `size` samples, the last one of what is left, from pieces of at most `size`."""
    held: list[Batch] = []
    room = size
    for piece in pieces:
        held.append(cut(piece, 0, room))
        rest = rows_of(piece) - room
        if rest >= 0:
            yield joined(held, where)
            held = [cut(piece, room, size)] if rest else []
        room = -rest if rest < 0 else size - rest
    if held:
        yield joined(held, where)


def joined(pieces: list[Batch], where: str) -> Batch:
    """Pieces as one.

    Raises:
        DataError: they differ in more than the number of samples.
    """
    if len(pieces) == 1:
        return pieces[0]
    for name in pieces[0]:
        shapes = sorted({piece[name].shape[1:] for piece in pieces})
        if len(shapes) > 1:
            what = f"input {name!r}: samples of the shapes {listed([list(s) for s in shapes])} in one batch"
            raise DataError(what, where=where, hint="use batches of 1, or pad the samples to one shape")
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def rows_of(batch: Batch) -> int:
    """How many samples a piece holds."""
    return len(next(iter(batch.values())))


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """The samples from start to stop of a piece."""
    return {name: array[start:stop] for name, array in batch.items()}
