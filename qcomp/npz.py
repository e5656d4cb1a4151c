"""Arrays by name in one ``.npz`` file, written beside its place and renamed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcomp import files
from qcomp.errors import OutputError


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays, whatever their names; `numpy.load` reads them. Nothing half-written stays.

    Raises:
        OutputError: the place cannot be written.
    """
    files.check_writable(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(scratch, "w") as archive:
            for name, array in arrays.items():
                plain = array.astype(np.str_) if array.dtype == object else array
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.ascontiguousarray(plain), allow_pickle=False)
        os.replace(scratch, path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)
