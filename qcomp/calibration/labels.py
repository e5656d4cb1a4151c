"""Labels of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from qcomp.calibration.arrays import StoredArray, reading
from qcomp.errors import DataError


def load_labels(path: str | Path, names: Sequence[str] | None = None) -> NDArray[np.int64]:
    """The class numbers [n], int64, of the samples in their order.

    A text file has a line `name label` or `label` for each sample. Names are matched with `names`, by
    the last part of a path, in any order and with any others among them; without `names`, and where
    the lines have a label only, the order is that of the file. A `.npy` file holds integers [n].

    Args:
        path: the file.
        names: the file names of the samples (`Samples.names`), when they have any.

    Raises:
        DataError: unreadable, not class numbers, or an image without a label.
    """
    file = Path(path)
    if file.suffix.lower() == ".npy":
        return _stored_labels(file)
    with reading(str(file)), file.open(encoding="utf-8-sig") as lines:
        pairs = [_pair(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    named = {bool(name) for name, _ in pairs}
    if len(named) > 1:
        hint = "give every line a name, or none"
        raise DataError("some lines have a name and some only a label", where=str(file), hint=hint)
    labels = _labels_of(pairs, names, str(file)) if names is not None and True in named else [n for _, n in pairs]
    return np.array(labels, dtype=np.int64)


def check_labels(labels: NDArray[np.int64], n: int) -> None:
    """Refuse labels [m] of `n` samples when m is not n, with a DataError."""
    if len(labels) != n:
        what = f"{len(labels)} labels for {n} samples"
        raise DataError(what, where="labels", hint="give one label for each sample, in the same order")


def _stored_labels(file: Path) -> NDArray[np.int64]:
    stored = StoredArray.open(file)
    if len(stored.shape) != 1 or stored.dtype.kind not in "iu":
        what = f"labels are integers [n], not {stored.dtype} {list(stored.shape)}"
        raise DataError(what, where=str(file), hint="save the class numbers: labels.astype('int64')")
    return np.array([_class(int(n), str(file)) for block in stored.blocks(4096) for n in block], np.int64)


def _pair(line: str, where: str) -> tuple[str, int]:
    """The last part of the name ('' when there is none) and the label of a line."""
    *name, label = line.strip().rsplit(None, 1)
    try:
        number = int(label)
    except ValueError:
        hint = "a line is `name label` or `label`"
        raise DataError(f"{label[:40]!r} is not a class number", where=where, hint=hint) from None
    return PurePosixPath(*name).name if name else "", _class(number, where)


def _class(number: int, where: str) -> int:
    if not 0 <= number < 2**63:
        raise DataError(f"{number} is not a class number", where=where, hint="classes are counted from 0")
    return number


def _labels_of(pairs: Sequence[tuple[str, int]], names: Sequence[str], where: str) -> list[int]:
    """The labels of `names`, in their order."""
    labels: dict[str, int] = {}
    for name, label in pairs:
        if labels.setdefault(name, label) != label:
            what = f"{name!r} has the labels {labels[name]} and {label}"
            raise DataError(what, where=where, hint="leave one of them out")
    missing = [name for name in names if name not in labels]
    if missing:
        what = f"no label for the image {missing[0]!r}" + (f" and {len(missing) - 1} more" * (len(missing) > 1))
        raise DataError(what, where=where, hint="add a line `name label`")
    return [labels[name] for name in names]
