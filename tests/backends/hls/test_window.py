"""The sliding window with random sizes, strides, dilations and asymmetric padding, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cpp import needs_compiler
from hls_kernels import Call, Words, run, run_logged

pytestmark = needs_compiler


def out_size(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int) -> int:
    return (begin + size + end - (kernel - 1) * dilation - 1) // stride + 1


def windows(x: np.ndarray, c: dict[str, int]) -> np.ndarray:
    """(OH, OW, KH, KW, groups, lanes) of an image (H, W, groups, lanes)."""
    h = np.arange(c["OH"])[:, None] * c["STRIDE_H"] - c["TOP"] + np.arange(c["KH"]) * c["DILATION_H"]
    w = np.arange(c["OW"])[:, None] * c["STRIDE_W"] - c["LEFT"] + np.arange(c["KW"]) * c["DILATION_W"]
    h, w = h[:, None, :, None], w[None, :, None, :]
    inside = (h >= 0) & (h < c["H"]) & (w >= 0) & (w < c["W"])
    found = x[np.clip(h, 0, c["H"] - 1), np.clip(w, 0, c["W"] - 1)]
    return np.where(inside[..., None, None], found, c["PAD"])


def window(rng) -> Call:
    while True:
        c = {}
        for axis, before in (("H", "TOP"), ("W", "LEFT")):
            size, kernel, stride, dilation = (int(rng.integers(1, n)) for n in (10, 6, 5, 4))
            begin, end = (int(v) for v in rng.integers(0, (kernel - 1) * dilation + 2, 2))
            c |= {axis: size, f"K{axis}": kernel, f"STRIDE_{axis}": stride, f"DILATION_{axis}": dilation, before: begin}
            c[f"O{axis}"] = out_size(size, kernel, stride, dilation, begin, end)
        if c["OH"] > 0 and c["OW"] > 0:
            return call(rng, c)


def call(rng, c: dict[str, int]) -> Call:
    """With random channels, the padding a random constant."""
    groups, lanes, bits = (int(v) for v in rng.integers(1, [4, 4, 9]))
    c |= {"GROUPS": groups, "LANES": lanes, "BITS": bits, "PAD": int(rng.integers(0, 1 << bits))}
    c["CHANNEL_MAJOR"] = int(rng.integers(0, 2))
    x = rng.integers(0, 1 << bits, (c["H"], c["W"], groups, lanes))
    y = windows(x, c)
    y = y.transpose(0, 1, 4, 2, 3, 5) if c["CHANNEL_MAJOR"] else y
    return Call("window", c, [Words(bits, x.reshape(-1, lanes))], [Words(bits, y.reshape(-1, lanes))])


@pytest.mark.parametrize("way", [run, run_logged])
def test_words_come_as_numpy_has_them_and_when_the_schedule_says(way, tmp_path):
    rng = np.random.default_rng(0)
    way(["window.h"], [window(rng) for _ in range(16)], tmp_path)


def fixed(h, w, kernel, stride, dilation, pads) -> dict[str, int]:
    """Sizes of a window, of the same kernel, stride and dilation along both axes; padding top, left, bottom, right."""
    c = {"H": h, "W": w, "KH": kernel, "KW": kernel, "STRIDE_H": stride, "STRIDE_W": stride, "TOP": pads[0]}
    c |= {"DILATION_H": dilation, "DILATION_W": dilation, "LEFT": pads[1]}
    c["OH"] = out_size(h, kernel, stride, dilation, pads[0], pads[2])
    return c | {"OW": out_size(w, kernel, stride, dilation, pads[1], pads[3])}


CORNERS = {
    "3x3, same": fixed(7, 9, 3, 1, 1, (1, 1, 1, 1)),
    "7x7 with stride 2": fixed(14, 14, 7, 2, 1, (3, 3, 3, 3)),
    "asymmetric": fixed(8, 8, 3, 2, 1, (0, 0, 1, 1)),
    "a window of the whole image": fixed(5, 4, 4, 1, 1, (0, 0, 0, 0)),
    "pixels are left out": fixed(9, 9, 1, 3, 1, (0, 0, 0, 0)),
    "rows are left over": fixed(9, 8, 2, 5, 1, (0, 0, 0, 0)),
    "one pixel": fixed(1, 1, 1, 1, 1, (0, 0, 0, 0)),
    "one pixel in padding": fixed(1, 1, 3, 1, 1, (1, 1, 1, 1)),
    "the first windows lie in the padding": fixed(4, 4, 2, 1, 1, (5, 5, 0, 0)),
    "the last windows lie in the padding": fixed(4, 4, 2, 1, 1, (0, 0, 5, 5)),
    "dilated beyond the image": fixed(4, 5, 3, 1, 3, (3, 3, 3, 3)),
}


@pytest.mark.parametrize("way", [run, run_logged])
def test_corners(way, tmp_path):
    rng = np.random.default_rng(0)
    way(["window.h"], [call(rng, dict(sizes)) for sizes in CORNERS.values()], tmp_path)
