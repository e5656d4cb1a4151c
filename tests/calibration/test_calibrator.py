"""The calibrator observes any value of a model, in constant memory, and names what is wrong."""

import pickle
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs as small

from qcomp import files, runtime
from qcomp.calibration.calibrator import Calibrator
from qcomp.calibration.channels import ChannelRange, ChannelSquare
from qcomp.calibration.data import open_data
from qcomp.calibration.observers import ChannelMean, Distribution, Observation, PatchMean
from qcomp.errors import CalibrationError, DataError, ModelError


def model_and_samples(kind="cnn", count=10):
    model = files.load(small.SMALL[kind](0))
    feeds = small.feeds(model, 1, count)
    return model, feeds, open_data(feeds, runtime.input_specs(model))


def values(model: ir.Model) -> dict[str, ir.Value]:
    return {v.name: v for node in model.graph for v in node.outputs} | {v.name: v for v in model.graph.inputs}


def outputs_of(model: ir.Model, names, feeds):
    """The true values, by a model of our own with these outputs."""
    clone = model.clone()
    known = values(clone)
    clone.graph.outputs.clear()
    clone.graph.outputs.extend(known[name] for name in names)
    return small.run(clone, feeds)


@pytest.mark.parametrize("kind", ["cnn", "mlp", "attention", "shared", "middle_output", "branches"])
def test_observes_inputs_intermediate_values_and_outputs(kind):
    count = 1 if kind == "branches" else 10
    model, feeds, samples = model_and_samples(kind, count)
    before = small.serialized(model)
    wanted = [v for v in values(model).values() if v.dtype == ir.DataType.FLOAT]
    stats = Calibrator(samples, batch=3).collect(model, [Observation(v, Distribution()) for v in wanted])
    assert small.serialized(model) == before
    assert stats.samples == count
    truth = feeds | outputs_of(model, [v.name for v in wanted if v.producer()], feeds)
    assert len(truth) == len(wanted) >= 4
    for value in wanted:
        found = stats.histogram(value)
        tolerance = 1e-5 * float(np.abs(truth[value.name]).max())
        assert found.low == pytest.approx(truth[value.name].min(), abs=tolerance)
        assert found.high == pytest.approx(truth[value.name].max(), abs=tolerance)


def test_several_kinds_and_duplicates_of_one_value():
    model, feeds, samples = model_and_samples()
    x = model.graph.inputs[0]
    wishes = [Observation(x, kind) for kind in (Distribution(), ChannelMean(1), Distribution(), ChannelMean(1))]
    stats = Calibrator(samples).collect(model, wishes)
    assert stats.histogram(x).total == feeds["x"].size
    assert stats.find(x, ChannelMean(1)).count == feeds["x"][:, 0].size
    np.testing.assert_allclose(stats.find(x, ChannelMean(1)).mean, feeds["x"].mean(axis=(0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 4, 10, 99])
def test_statistics_do_not_depend_on_the_batch_size(batch):
    model, _, samples = model_and_samples()
    wishes = [Observation(model.graph.inputs[0], Distribution()), Observation(model.graph.inputs[0], ChannelMean(1))]
    one = Calibrator(samples, batch=10).collect(model, wishes)
    other = Calibrator(samples, batch=batch).collect(model, wishes)
    assert (one.histogram("x").counts == other.histogram("x").counts).all()
    np.testing.assert_allclose(*(s.find("x", ChannelMean(1)).mean for s in (one, other)), rtol=1e-5)


def test_limit_and_progress():
    model, feeds, samples = model_and_samples()
    done = []
    stats = Calibrator(samples, limit=7, batch=3, progress=lambda *state: done.append(state)).collect(
        model, [Observation(model.graph.inputs[0], Distribution())]
    )
    assert done == [(3, 7), (6, 7), (7, 7)]
    assert stats.samples == 7
    assert stats.histogram("x").high == feeds["x"][:7].max()


def test_splitting_the_samples_and_merging_is_the_same():
    model, feeds, samples = model_and_samples()
    wish = Observation(values(model)["y"], Distribution())
    whole = Calibrator(samples, batch=5).collect(model, [wish])
    parts = [
        Calibrator(open_data({"x": half}, runtime.input_specs(model)), batch=5).collect(model, [wish])
        for half in (feeds["x"][:5], feeds["x"][5:])
    ]
    parts[0].merge(parts[1])
    assert (parts[0].histogram("y").counts == whole.histogram("y").counts).all()
    assert parts[0].samples == whole.samples


def test_the_samples_and_the_model_once_more():
    model, _, samples = model_and_samples()
    replay = Calibrator(samples, limit=7, batch=3).collect(model, []).replay
    assert [len(batch["x"]) for batch in replay.batches(5)] == [3, 2]
    assert sum(len(batch["x"]) for batch in replay.batches(99)) == 7
    outputs = runtime.run_batches(runtime.session(replay.model), replay.batches(7))
    assert list(outputs) == [str(v.name) for v in model.graph.outputs]


@pytest.mark.parametrize("axis", [1, -1])
def test_extremes_and_squares_of_channels(axis):
    model, feeds, samples = model_and_samples()
    x, kinds = model.graph.inputs[0], (ChannelRange(axis), ChannelSquare(axis))
    wishes = [Observation(x, kind) for kind in kinds]
    whole = Calibrator(samples, batch=4).collect(model, wishes)
    parts = [
        Calibrator(open_data({"x": half}, runtime.input_specs(model))).collect(model, wishes)
        for half in (feeds["x"][:5], feeds["x"][5:])
    ]
    parts[0].merge(parts[1])
    others = tuple(i for i in range(feeds["x"].ndim) if i != axis % feeds["x"].ndim)
    for stats in (whole, parts[0]):
        found, square = (stats.find(x, kind) for kind in kinds)
        assert (found.low == feeds["x"].min(axis=others)).all()
        assert (found.high == feeds["x"].max(axis=others)).all()
        np.testing.assert_allclose(square.mean, (feeds["x"].astype("f8") ** 2).mean(axis=others), rtol=1e-5)


def test_no_observations_at_all():
    model, _, samples = model_and_samples()
    stats = Calibrator(samples).collect(model, [])
    assert stats.samples == 10
    assert not stats.states


def test_memory_does_not_grow_with_the_samples():
    model = files.load(small.cnn(0))
    specs = runtime.input_specs(model)
    convolution = next(n for n in model.graph if n.op_type == "Conv")
    wishes = [
        Observation(convolution.outputs[0], Distribution()),
        Observation(convolution.outputs[0], ChannelMean(1)),
        Observation(convolution.inputs[0], PatchMean((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
    ]

    class Endless:
        """Samples made as they are read."""

        def batches(self, size, limit):
            for i in range(limit // size):
                yield small.feeds(model, i, size)

    sizes, peaks = [], []
    for limit in (40, 400):
        tracemalloc.start()
        stats = Calibrator(Endless(), limit=limit, batch=4).collect(model, wishes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert stats.samples == limit
        sizes.append(len(pickle.dumps(stats.states)))
    assert specs[0].shape[0] == "N"
    assert sizes[1] <= sizes[0] + 64
    assert peaks[1] <= peaks[0] * 1.2 + 100_000


def test_a_value_that_no_operator_computes():
    model, _, samples = model_and_samples("branches", 1)
    for name in ("nowhere", "c0", "then_y"):
        with pytest.raises(ModelError, match=f"no operator computes the value '{name}'"):
            Calibrator(samples).collect(model, [Observation(ir.Value(name=name), Distribution())])


def test_names_the_operator_and_the_sample_that_is_not_finite():
    b = small.Builder()
    b.op("Relu", b.op("Log", b.input("x", ["N", 2]), name="logarithm"), name="y")
    model = files.load(b.model("y"))
    x = np.ones((6, 2), np.float32)
    x[5, 1] = -1
    samples = open_data({"x": x}, runtime.input_specs(model))
    with pytest.raises(CalibrationError, match=r"Log 'node_logarithm': its value 'logarithm' .* sample 5 "):
        Calibrator(samples, batch=4).collect(model, [Observation(values(model)["logarithm"], Distribution())])


def test_samples_that_do_not_run():
    b = small.Builder()
    b.op("MatMul", b.input("x", ["N", "K"]), b.random(4, 2), name="y")
    model = files.load(b.model("y"))
    samples = open_data({"x": np.ones((2, 5), np.float32)}, runtime.input_specs(model))
    with pytest.raises(DataError, match="the samples do not run through the model: "):
        Calibrator(samples).collect(model, [Observation(values(model)["y"], Distribution())])


def test_no_samples():
    class Nothing:
        def batches(self, size, limit):
            return iter(())

    model, _, _ = model_and_samples()
    with pytest.raises(DataError, match="no samples to calibrate with"):
        Calibrator(Nothing()).collect(model, [])
