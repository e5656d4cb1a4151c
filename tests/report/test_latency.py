"""What bench feeds and how it counts; no assertion on times."""

from __future__ import annotations

import numpy as np
import pytest

from qcomp.calibration.data import InputSpec, open_data
from qcomp.errors import DataError, ModelError, OptionError
from qcomp.models import digits
from qcomp.report import latency


def spec(name, dtype, *shape):
    return InputSpec(name, np.dtype(dtype), shape)


def test_random_feeds_fill_dynamic_dimensions():
    specs = [spec("ids", "i8", None, "length"), spec("x", "f4", 3, 5, None), spec("on", "?", "N")]
    feeds = latency.random_feeds(specs, batch=2, length=7)
    assert {name: array.shape for name, array in feeds.items()} == {"ids": (2, 7), "x": (3, 5, 7), "on": (2,)}
    assert [feeds[s.name].dtype for s in specs] == [s.dtype for s in specs]
    assert (feeds["ids"] == 1).all()
    assert feeds["x"].std() > 0.5


def test_first_batch_of_the_size_that_was_asked_for():
    samples = open_data([np.ones((5, 4), "f4")], [spec("x", "f4", "N", 4)])
    assert latency.first_batch(samples, 3)["x"].shape == (3, 4)
    with pytest.raises(DataError, match="5 samples for a batch of 6"):
        latency.first_batch(samples, 6)
    fixed = open_data([np.ones((5, 4), "f4")], [spec("x", "f4", 2, 4)])
    assert latency.first_batch(fixed, 6)["x"].shape == (2, 4)


def test_bench_gives_quantiles_in_order_of_the_models():
    paths = [digits.load("cnn"), digits.load("vit")]
    feeds = latency.random_feeds(latency.specs_of(paths[0]))
    found = latency.bench(paths, [feeds, feeds], runs=4)
    assert [one.model for one in found] == [str(path) for path in paths]
    assert [one.size for one in found] == [path.stat().st_size for path in paths]
    assert all(0 < one.p10 <= one.median <= one.p90 for one in found)


def test_bench_refuses():
    path = digits.load("cnn")
    with pytest.raises(OptionError, match="--runs"):
        latency.bench([path], [{}], runs=0)
    with pytest.raises(DataError, match="do not run"):
        latency.bench([path], [{"image": np.ones((1, 2, 8, 8), "f4")}], runs=1)
    with pytest.raises(ModelError):
        latency.specs_of("missing.onnx")
