"""DATA as its user gives it (array files, folders, images, iterables), read as batches that fit a model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcomp.calibration.arrays import Chunk, check_piece, empty_data, matched, reading, stored_chunks
from qcomp.calibration.batching import Array, Batch, chosen, cut, rebatch, rows_of, spread_indices
from qcomp.calibration.fit import InputSpec, cast, check_fits, listed
from qcomp.calibration.images import PRESETS, SUFFIXES, Preprocess, image_pieces
from qcomp.calibration.labels import check_labels, load_labels
from qcomp.errors import DataError, OptionError

__all__ = ["PRESETS", "InputSpec", "Preprocess", "Samples", "check_labels", "load_labels", "open_data"]

Source = str | os.PathLike[str] | Iterable[Any]


class Samples:
    """Samples that fit a model, read again from the start by every call of `batches`.

    Attributes:
        inputs: the model's inputs.
        count: the number of samples, None when it is not known before reading them.
        names: the file name of every sample of a folder of images, else None.
        fixed_batch: the only batch size that the model takes, None when any will do.
    """

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        pieces: Callable[[int], Iterator[Batch]],
        *,
        where: str = "",
        count: int | None = None,
        names: Sequence[str] | None = None,
        choose: Callable[[list[int]], Samples] | None = None,
    ) -> None:
        self.inputs, self.count, self.where, self._choose = tuple(inputs), count, where, choose
        self.names = None if names is None else tuple(names)
        self.fixed_batch = fixed_batch(inputs)
        self._pieces = pieces
        if count == 0:
            raise empty_data(where)

    def spread(self, limit: int | None, block: int = 1) -> Samples:
        """At most so many samples, spread evenly over all: sets are often sorted by class, and a head is one-sided.

        Blocks of consecutive samples stay together, which may have one length where others differ. Where the number
        of samples is not known before reading them, the first ones.
        """
        if limit is None or self.count is None or limit >= self.count:
            return self
        indices = spread_indices(self.count, limit, self.fixed_batch or block)
        if self._choose is not None:
            return self._choose(indices)
        return Samples(self.inputs, lambda rows: chosen(self._pieces(rows), indices), where=self.where, count=limit)

    def few(self, count: int, batch: int) -> Iterator[Batch]:
        """Batches of about so many samples, spread evenly over those there are; at least one batch."""
        least = max(count, self.fixed_batch or 1)
        return self.spread(least, batch).batches(batch, least)

    def batches(self, batch: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of input name -> C-contiguous array [batch, ...] of the input's own dtype.

        Args:
            batch: samples in a batch; `fixed_batch` overrides it, and then an incomplete last batch
                is dropped, else it is shorter.
            limit: use only the first samples.

        Raises:
            OptionError: batch or limit below 1.
            DataError: while iterating: no samples, fewer than the fixed batch, NaN or infinity, a value
                that the input's dtype cannot hold, or samples of different shapes in one batch.
        """
        for option, value in (("batch", batch), ("limit", limit)):
            if value is not None and value < 1:
                raise OptionError(f"{option} is {value}", where=option, hint="give 1 or more")
        return self._batches(self.fixed_batch or batch, limit)

    def _batches(self, size: int, limit: int | None) -> Iterator[Batch]:
        seen = 0
        for batch in rebatch(self._fitted(size, limit), size, self.where):
            rows = rows_of(batch)
            if rows == size or not self.fixed_batch:
                yield batch
            elif not seen:
                hint = f"give {size} or more samples, or a model with a dynamic batch"
                raise DataError(f"{rows} of the {size} samples of a batch", where=self.where, hint=hint)
            seen += rows
        if not seen:
            raise empty_data(self.where)

    def _fitted(self, size: int, limit: int | None) -> Iterator[Batch]:
        """The pieces cut to at most `size` samples and `limit` in all, checked, and cast."""
        start = 0
        for piece in self._pieces(size):
            for offset in range(0, rows_of(piece), size):
                stop = offset + size if limit is None else min(offset + size, offset + limit - start)
                part = cut(piece, offset, stop)
                yield {spec.name: self._fit(spec, part[spec.name], start) for spec in self.inputs}
                start += rows_of(part)
                if start == limit:
                    return

    def _fit(self, spec: InputSpec, array: Array, start: int) -> Array:
        check_fits(spec, array.shape, array.dtype, self.where)
        return cast(spec, array, start, self.where)


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The batch size that the first axes of the inputs fix; DataError when they have none, or several."""
    scalars = [spec.name for spec in inputs if not spec.shape]
    sizes = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)}
    if scalars or len(sizes) > 1 or not inputs:
        what = f"the inputs {listed([f'{spec.name} {spec}' for spec in inputs])} have no batch axis in common"
        raise DataError(what, where="model", hint="the first axis of every input must be the samples")
    return int(next(iter(sizes))) if sizes else None


def open_data(source: Source, inputs: Sequence[InputSpec], *, preprocess: Preprocess | None = None) -> Samples:
    """Open DATA for a model; the headers of array files are checked at once, values as they are read.

    A source is one of:
      * an `.npz`: an array [samples, ...] by the name of each input, others ignored; for a model of one
        input, one array of any name will do;
      * an `.npy` [samples, ...], for a model of one input;
      * a folder with an `.npy` [samples, ...] named after each input;
      * else a folder of `.npz` as above, or for a model of one input of `.npy` [samples, ...] or [...]
        (one sample), joined in the order of their names;
      * with `preprocess`, a folder of images (jpg, jpeg, png, bmp, webp), in the order of their names;
      * an iterable of batches, dicts name -> array [samples, ...], or [...] for one sample (for a model
        of one input, bare arrays too), or one such dict. What can be iterated again is; an iterator is
        read as far as needed, once, and what was read is kept in memory.

    Memory holds about two batches, except for Fortran-ordered arrays in an `.npz`: these are read whole.

    Raises:
        DataError: DATA that is unreadable, empty, or does not fit the inputs.
        OptionError: `preprocess` for what is not a folder of images, or one that does not fit the input.
    """
    fixed_batch(inputs)
    if not isinstance(source, str | os.PathLike):
        _refuse_preprocess(preprocess, "DATA")
        return _open_iterable(source, inputs)
    path = Path(source)
    files = _files(path)
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if path.is_dir() and images and (preprocess or not _arrays(files)):
        return _open_images(images, inputs, preprocess, str(path))
    _refuse_preprocess(preprocess, str(path))
    return _open_chunks(stored_chunks(path, _arrays(files), inputs), inputs, str(path))


def _refuse_preprocess(preprocess: Preprocess | None, where: str) -> None:
    if preprocess is not None:
        raise OptionError("preprocessing is for a folder of images", where=where, hint="leave it out")


def _files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder in the order of their names, hidden ones left out."""
    with reading(str(path)):
        if not path.is_dir() and not path.is_file():
            raise DataError("no such file or folder", where=str(path), hint="check the path of DATA")
        if not path.is_dir():
            return [path]
        files = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return sorted(files, key=lambda file: file.name)


def _arrays(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in (".npy", ".npz")]


def _open_chunks(chunks: Sequence[Chunk], inputs: Sequence[InputSpec], where: str) -> Samples:
    for chunk in chunks:
        check_piece(chunk, inputs, listed(sorted({str(array.path) for array in chunk.values()})))

    def pieces(rows: int) -> Iterator[Batch]:
        for chunk in chunks:
            for blocks in zip(*(array.blocks(rows) for array in chunk.values()), strict=True):
                yield dict(zip(chunk, blocks, strict=True))

    count = sum(next(iter(chunk.values())).shape[0] for chunk in chunks)
    return Samples(inputs, pieces, where=where, count=count)


def _open_images(
    files: Sequence[Path], inputs: Sequence[InputSpec], preprocess: Preprocess | None, where: str
) -> Samples:
    if preprocess is None:
        raise OptionError("images without a preprocessing", where=where, hint=f"one of {', '.join(PRESETS)}")
    if len(inputs) > 1:
        what = f"one folder of images for the inputs {listed([spec.name for spec in inputs])}"
        raise DataError(what, where=where, hint="give an array for each input")
    name, fitted = inputs[0].name, preprocess.fitted(inputs[0])

    def pieces(rows: int) -> Iterator[Batch]:
        return ({name: block} for block in image_pieces(files, fitted, rows))

    def choose(indices: list[int]) -> Samples:
        return _open_images([files[i] for i in indices], inputs, preprocess, where)

    return Samples(inputs, pieces, where=where, count=len(files), names=[f.name for f in files], choose=choose)


def _open_iterable(source: Iterable[Any], inputs: Sequence[InputSpec]) -> Samples:
    items: Iterable[Any] = [source] if isinstance(source, Mapping) else source
    if not isinstance(items, Iterable):
        hint = "give a path or an iterable of dicts name -> array"
        raise DataError(f"{type(items).__name__} is not DATA", where="DATA", hint=hint)
    known = isinstance(items, list | tuple | np.ndarray)
    read = _Remembered(items, inputs) if isinstance(items, Iterator) else None
    again = items

    def pieces(rows: int) -> Iterator[Batch]:
        return iter(read) if read else (_piece(item, inputs, i) for i, item in enumerate(again))

    count = sum(map(rows_of, pieces(1))) if known else None
    return Samples(inputs, pieces, where="DATA", count=count)


class _Remembered:
    """The pieces of an iterator, copied and kept so that they can be read again."""

    def __init__(self, source: Iterator[Any], inputs: Sequence[InputSpec]) -> None:
        self._source, self._inputs = source, inputs
        self._kept: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        for i in itertools.count():
            if i == len(self._kept):
                try:
                    item = next(self._source)
                except StopIteration:
                    return
                piece = _piece(item, self._inputs, i)
                self._kept.append({name: array.copy() for name, array in piece.items()})
            yield self._kept[i]


def _piece(item: object, inputs: Sequence[InputSpec], index: int) -> Batch:
    """The arrays [samples, ...] by input name of one item of an iterable."""
    where = f"DATA, item {index}"
    given = item if isinstance(item, Mapping) else {inputs[0].name: item}
    if given is not item and len(inputs) > 1:
        what = f"{type(item).__name__} for the model's inputs {listed([spec.name for spec in inputs])}"
        raise DataError(what, where=where, hint="give a dict name -> array")
    keys = matched(list(given), inputs, where)
    with reading(where):
        arrays = {spec.name: np.asarray(given[keys[spec.name]]) for spec in inputs}
    for spec in inputs:
        if arrays[spec.name].ndim == len(spec.shape) - 1:
            arrays[spec.name] = arrays[spec.name][None]
    check_piece(arrays, inputs, where)
    return arrays
