"""Samples in array files: `.npy` and `.npz`, known by their headers and read in blocks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from qcomp.calibration.fit import InputSpec, check_fits, listed
from qcomp.errors import DataError, QcompError

Array = NDArray[Any]
Chunk = dict[str, "StoredArray"]

MOST_FORTRAN = 1 << 30
"""The most bytes of an array in Fortran order in an `.npz`, which must be read whole."""
_HEADER = 12 + 10_000  # bytes: the magic and the longest header that NumPy reads


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever a parser makes of a broken or hostile file into a DataError at `where`."""
    try:
        yield
    except QcompError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"cannot be read: {reason}", where=where, hint="check that it is whole and readable") from error


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """The stream of a file or of a member of a zip, and the bytes it declares."""
    if member is None:
        with path.open("rb") as stream:
            yield stream, path.stat().st_size
    else:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield stream, archive.getinfo(member).file_size


def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and offset of the data, from the first bytes of an array."""
    stream = io.BytesIO(head)
    version = npy.read_magic(stream)
    parsers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in parsers:
        raise ValueError(f"version {version} of the .npy format")
    shape, fortran, dtype = parsers[version](stream)
    return shape, fortran, dtype, stream.tell()


@dataclass(frozen=True)
class StoredArray:
    """An array in a `.npy` file, or in a member of an `.npz`, known by its header and read in blocks."""

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @classmethod
    def open(cls, path: Path, member: str | None = None) -> StoredArray:
        """Read the header only.

        Raises:
            DataError: not an array, truncated, of Python objects, or not of the size it declares.
        """
        where = f"{path}[{member!r}]" if member else str(path)
        with reading(where), _opened(path, member) as (stream, size):
            shape, fortran, dtype, offset = _header(stream.read(_HEADER))
            if dtype.hasobject:
                hint = "save plain numbers: numpy.asarray(x, dtype='float32')"
                raise DataError("holds Python objects, which are never unpickled", where=where, hint=hint)
            declared = offset + prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or declared != size:
                what = f"is {size} bytes, but its header {dtype} {list(shape)} makes it {declared}"
                raise DataError(what, where=where, hint="it is truncated or damaged: save it again")
            if member and fortran and size > MOST_FORTRAN:
                hint = "save it in C order: numpy.ascontiguousarray(x)"
                raise DataError("is too large for Fortran order, which is read whole", where=where, hint=hint)
        return cls(path, member, shape, dtype, fortran, offset)

    @property
    def where(self) -> str:
        """The file, and the member in it."""
        return f"{self.path}[{self.member!r}]" if self.member else str(self.path)

    def blocks(self, rows: int) -> Iterator[Array]:
        """Consecutive blocks [<= rows, ...] of the first axis, the last one shorter; DataError if damaged."""
        with reading(self.where):
            if prod(self.shape):
                yield from self._mapped(rows) if self.member is None else self._streamed(rows)

    def _mapped(self, rows: int) -> Iterator[Array]:
        array: Array = np.load(self.path, mmap_mode="r", allow_pickle=False).reshape(self.shape)
        return _rows_of(array, rows)

    def _streamed(self, rows: int) -> Iterator[Array]:
        step = self.shape[0] if self.fortran else rows
        with _opened(self.path, self.member) as (stream, _):
            stream.read(self.offset)
            for start in range(0, self.shape[0], step):
                shape = (min(step, self.shape[0] - start), *self.shape[1:])
                flat = np.frombuffer(stream.read(prod(shape) * self.dtype.itemsize), self.dtype)
                yield from _rows_of(flat.reshape(shape, order="F" if self.fortran else "C"), rows)


def _rows_of(array: Array, rows: int) -> Iterator[Array]:
    return (array[start : start + rows] for start in range(0, len(array), rows))


def stored_chunks(path: Path, files: Sequence[Path], inputs: Sequence[InputSpec]) -> list[Chunk]:
    """The arrays by input name, for every part of the samples."""
    if not files and path.is_file():
        hint = "give one, or a folder of them, or a folder of images"
        raise DataError("neither an .npy nor an .npz", where=str(path), hint=hint)
    if not files:
        raise empty_data(str(path))
    stems = {file.stem: file for file in files if file.suffix.lower() == ".npy"}
    if path.is_dir() and all(spec.name in stems for spec in inputs):
        return [{spec.name: StoredArray.open(stems[spec.name]) for spec in inputs}]
    if 0 < len(stems) < len(files):
        hint = "keep one kind, or an .npy named after each input"
        raise DataError("a folder of both .npy and .npz files", where=str(path), hint=hint)
    if not stems:
        return [_npz_chunk(file, inputs) for file in files]
    if len(inputs) > 1:
        matched(list(stems), inputs, str(path))
    return [{inputs[0].name: _npy_chunk(file, inputs[0], lift=path.is_dir())} for file in files]


def _npy_chunk(file: Path, spec: InputSpec, *, lift: bool) -> StoredArray:
    stored = StoredArray.open(file)
    is_sample = lift and len(stored.shape) == len(spec.shape) - 1
    return replace(stored, shape=(1, *stored.shape)) if is_sample else stored


def _npz_chunk(file: Path, inputs: Sequence[InputSpec]) -> Chunk:
    with reading(str(file)), zipfile.ZipFile(file) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    keys = matched(list(members), inputs, str(file))
    return {name: StoredArray.open(file, members[key]) for name, key in keys.items()}


def matched(given: Sequence[str], inputs: Sequence[InputSpec], where: str) -> dict[str, str]:
    """The name among `given` of the array of every input; DataError when one is missing."""
    wanted = [spec.name for spec in inputs]
    if set(wanted) <= set(given):
        return {name: name for name in wanted}
    if len(wanted) == len(given) == 1:
        return {wanted[0]: given[0]}
    names, inputs_ = (listed([repr(name) for name in some]) or "nothing" for some in (given, wanted))
    what = f"arrays named {names} for the model's inputs {inputs_}"
    raise DataError(what, where=where, hint="name an array after each input")


def check_piece(piece: Mapping[str, Array | StoredArray], inputs: Sequence[InputSpec], where: str) -> None:
    """Refuse arrays that the inputs cannot take, or with different numbers of samples."""
    for spec in inputs:
        check_fits(spec, piece[spec.name].shape, piece[spec.name].dtype, where)
    counts = {name: array.shape[0] for name, array in piece.items()}
    if len(set(counts.values())) > 1:
        what = "different numbers of samples: " + listed([f"{n} of {name!r}" for name, n in counts.items()])
        raise DataError(what, where=where, hint="give every input the same samples")


def empty_data(where: str) -> DataError:
    """The error of DATA without samples."""
    hint = "give an .npz, an .npy, or a folder of .npy, .npz or images"
    return DataError("empty DATA: no samples", where=where, hint=hint)
