"""What the templates of an HLS project are given."""

from __future__ import annotations

from qcomp.backends.hls import boards


def project(board: str = "pynq-z2", **changes) -> dict:
    """What a template is given, with lanes that do not fit a DMA."""
    found = boards.find(board)
    names = ("name", "part", "board_part", "clock_ns", "processing_system")
    source = {"name": "image", "shape": (5, 4, 6), "bits": 8, "lanes": 6, "words": 20, "scale": 0.037, "zero_point": 3}
    sink = {"name": "y", "shape": (10,), "bits": 8, "lanes": 2, "words": 5, "scale": 0.11, "zero_point": 128}
    values = {
        "ports": "stream",
        "top": "qcomp_top",
        "board": {name: getattr(found, name) for name in names},
        "input": source,
        "output": sink,
        "sources": ["firmware/qcomp_top.cpp", "firmware/weights_0.cpp", "testbench/main.cpp"],
        "cycles": 12345,
        "estimates": {"dsp": 11, "bram18": 22, "lut": 33, "ff": 44},
        "version": "1.2.3",
    }
    return values | changes
