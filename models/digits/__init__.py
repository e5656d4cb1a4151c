"""Two small trained models of handwritten digits and their data, for the demo and the tests.

The images are scikit-learn's `load_digits` (the test part of the UCI set "Optical Recognition of Handwritten
Digits", E. Alpaydin and C. Kaynak 1998, licence CC BY 4.0): 1797 images of 8x8 pixels with values 0..16.
`train.py` in this folder makes the split, trains the models and writes all three files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcomp.errors import unknown

FOLDER = Path(__file__).parent
NAMES = ("cnn", "vit")
PIXEL_MAX = 16


def load(name: str) -> Path:
    """Return the path of a trained model, 'cnn' or 'vit'.

    Both take `image` float32 ``[N, 1, 8, 8]`` in 0..1 and give `logits` float32 ``[N, 10]``.
    """
    if name not in NAMES:
        raise unknown("digits model", name, NAMES)
    return FOLDER / f"{name}.onnx"


def data() -> dict[str, NDArray[Any]]:
    """Return the fixed, stratified split.

    `train` (for training and calibration) and `test` are images as float32 ``[n, 1, 8, 8]`` in 0..1,
    `train_labels` and `test_labels` int64 ``[n]``.
    """
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as file:
        images = {name: file[name].astype(np.float32) / np.float32(PIXEL_MAX) for name in ("train", "test")}
        labels = {name: file[name].astype(np.int64) for name in ("train_labels", "test_labels")}
    return images | labels
