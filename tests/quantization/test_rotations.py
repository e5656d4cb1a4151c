from __future__ import annotations

import numpy as np
import pytest

from qcomp.quantization.rotations import hartley, rotation

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 32, 48, 64, 96, 160, 384]


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_is_orthogonal_and_spreads_what_is_large(size, keeps_ones):
    matrix = rotation(size, keeps_ones=keeps_ones, seed=3).matrix()
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    if size not in (2, 1):
        assert np.abs(matrix).max() <= 2.5 / np.sqrt(size)
    if keeps_ones:
        assert np.allclose(matrix.sum(axis=0), 1, atol=1e-12)


@pytest.mark.parametrize("size", [4, 16, 64, 256])
@pytest.mark.parametrize("keeps_ones", [False, True])
def test_powers_of_four_give_hadamard_matrices(size, keeps_ones):
    assert np.allclose(np.abs(rotation(size, keeps_ones=keeps_ones).matrix()), size**-0.5)


def test_hartley_is_orthogonal_for_any_size():
    for size in range(1, 20):
        assert np.allclose(hartley(size) @ hartley(size), np.eye(size), atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_applies_to_blocks_along_an_axis(axis):
    array, turn = np.random.default_rng(0).normal(size=(12, 24, 36)), rotation(12, keeps_ones=False)
    blocks = np.kron(np.eye(array.shape[axis] // 12), turn.matrix())
    expected = np.moveaxis(np.moveaxis(array, axis, -1) @ blocks, -1, axis)
    assert np.allclose(turn.apply(array, axis), expected)


def test_the_same_seed_gives_the_same_signs():
    first, second, other = (rotation(64, keeps_ones=False, seed=s).signs for s in (0, 0, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
