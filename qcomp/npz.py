"""Arrays by name in one ``.npz`` file, written beside its place and renamed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcomp import files


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays, whatever their names; `numpy.load` reads them. Nothing half-written stays.

    Raises:
        OutputError: the place cannot be written.
    """
    with files.replacing(path) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        for name, array in arrays.items():
            plain = array.astype(np.str_) if array.dtype == object else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(plain), allow_pickle=False)
