"""Which outputs decide about a layer's weights."""

from __future__ import annotations

import numpy as np
import pytest

from qcomp.rounding.collected import enough_is_read


def tokens(seed=0, count=400):
    return np.random.default_rng(seed).normal(size=(count, 1, 24)).astype("f4")


def test_outputs_whose_input_a_range_clips_do_not_count():
    real = tokens()
    real[::50] *= 1000
    read = np.clip(np.rint(real / 0.03), -128, 127) * np.float32(0.03)
    np.testing.assert_array_equal(enough_is_read(read, real), np.arange(400) % 50 != 0)


@pytest.mark.parametrize("steps", [0.03, 0.5, 2.0])
def test_all_count_where_the_grid_is_merely_coarse(steps):
    real = tokens()
    assert enough_is_read((np.rint(real / steps) * steps).astype("f4"), real).all()


def test_outputs_that_read_next_to_nothing_count():
    real = tokens()
    real[:30] *= 1e-4
    assert enough_is_read(np.rint(real / np.float32(0.03)) * np.float32(0.03), real).all()
    assert enough_is_read(np.zeros_like(real), np.zeros_like(real)).all()


@pytest.mark.parametrize("loss", [0.0, 0.5, 1.0])
def test_at_least_half_always_count(loss):
    real = tokens()
    real[np.random.default_rng(1).permutation(400)[:300]] *= 100
    assert enough_is_read(real * np.float32(1 - loss), real).mean() >= 0.5
