from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp.rounding.columns import Columns
from qcomp.rounding.moments import Moments, Objective


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.integers(0, 999),
    st.sampled_from([1, 2, 4]),
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    st.data(),
)
def test_columns_times_weights_are_a_convolution(seed, groups, kernel, data):
    random, dims = np.random.default_rng(seed), len(kernel)
    strides, dilations = ([data.draw(st.integers(1, 2)) for _ in kernel] for _ in range(2))
    pads = [data.draw(st.integers(0, 2)) for _ in range(2 * dims)]
    columns = Columns(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads), groups)
    x = random.normal(size=(2, 4, *[7 + i for i in range(dims)])).astype("f4")
    weight = random.normal(size=(4, 4 // groups, *kernel)).astype("f4")
    b = small.Builder()
    b.input("x", x.shape)
    sizes = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    b.op("Conv", "x", b.constant(weight), name="y", **sizes)
    expected = small.run(ir.from_proto(b.model("y")), {"x": x})["y"]
    positions = columns.sample(x.shape, 5, random)
    taken = columns.take(x, positions)
    actual = np.einsum("ngk,gok->ngo", taken, weight.reshape(groups, 4 // groups, -1))
    np.testing.assert_allclose(actual, columns.outputs(expected, positions), rtol=1e-4, atol=1e-4)


def test_positions_are_all_or_so_many_of_each_sample():
    random = np.random.default_rng(0)
    columns = Columns((1, 1), (1, 1), (1, 1), (0,) * 4)
    rows, *_ = columns.sample((3, 2, 4, 5), 7, random)
    assert np.bincount(rows).tolist() == [7, 7, 7]
    rows, y, x = columns.sample((3, 2, 4, 5), 100, random)
    assert len(set(zip(rows.tolist(), y.tolist(), x.tolist(), strict=True))) == 60
    assert len(Columns().sample((3, 8), 100, random)[0]) == 3


def arrays(seed, n=300, groups=2, rows=3, inputs=5):
    random = np.random.default_rng(seed)
    x = (random.normal(size=(n, groups, inputs)) + 3).astype("f4")
    return x, random.normal(size=(n, groups, rows)).astype("f4"), random.uniform(0.1, 1, (n, groups, rows)).astype("f4")


def test_batches_and_merging_make_no_difference():
    x, y, _ = arrays(0)
    whole, one, other = Moments(2, 3, 5), Moments(2, 3, 5), Moments(2, 3, 5)
    assert other.empty
    whole.update(x, y)
    one.update(x[:100], y[:100])
    other.update(x[100:], y[100:])
    parts = Moments.together([one, other])
    expected = (*whole.means, *whole.covariances(centred=True))
    for one, two in zip(expected, (*parts.means, *parts.covariances(centred=True)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(expected[2][1], np.cov(x[:, 1].T, bias=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
def test_cost_is_the_mean_square_error_less_a_constant(centred):
    x, y, _ = arrays(2)
    moments, random = Moments(2, 3, 5), np.random.default_rng(3)
    moments.update(x, y)

    def error(weight):
        difference = np.einsum("ngk,gok->ngo", x, weight) - y
        return (difference.var(axis=0) if centred else (difference**2).mean(axis=0)).sum()

    one, two = random.normal(size=(2, 2, 3, 5))
    costs = [moments.cost(weight, centred=centred) for weight in (one, two)]
    assert costs[0] - costs[1] == pytest.approx(error(one) - error(two), rel=1e-4)


def test_some_groups_are_spread_over_all():
    x, y, _ = arrays(4, groups=9)
    moments = Moments(9, 3, 5)
    moments.update(x, y)
    some, chosen = moments.some(3 * 25)
    assert chosen.tolist() == [0, 4, 8]
    for part, whole in zip(some.covariances(centred=True), moments.covariances(centred=True), strict=True):
        np.testing.assert_array_equal(part, whole[chosen])


def test_weights_of_outputs_make_the_covariances_of_each_row():
    x, y, w = arrays(1)
    moments = Moments(6, 1, 5)
    moments.update_weighted(x, y, w)
    for group in range(2):
        for row in range(3):
            expected = np.cov(x[:, group].T, aweights=w[:, group, row], bias=True)
            np.testing.assert_allclose(
                moments.covariances(centred=True)[0][3 * group + row], expected, rtol=1e-3, atol=1e-4
            )
            mean = np.average(y[:, group, row], weights=w[:, group, row])
            assert moments.means[1][3 * group + row, 0] == pytest.approx(mean, rel=1e-4, abs=1e-6)


def test_the_target_is_the_regression_of_the_wanted_outputs():
    """What earlier layers lost is made good: with noisy inputs the best weights are not the float ones."""
    random = np.random.default_rng(0)
    real = random.normal(size=(5000, 1, 6)).astype("f4")
    seen = (real + random.normal(size=real.shape) * 0.5).astype("f4")
    weight = random.normal(size=(1, 4, 6))
    moments = Moments(1, 4, 6)
    moments.update(seen, np.einsum("ngk,gok->ngo", real, weight).astype("f4"))
    objective = Objective.of(weight, moments, centred=True)
    np.testing.assert_allclose(objective.target, weight / 1.25, atol=0.08)
    assert (objective.error(objective.target) == 0).all()
