from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import quantized
import small_graphs as small

from qcomp import graph, pipeline, runtime
from qcomp.rounding.segments import Segments
from qcomp.rounding.walk import Counterparts, kept_of, walk

LINE = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq{{ranges=minmax}},round-weights,correct-bias"


def prepared(proto, batches=3):
    model = quantized.files.load(proto)
    given = [small.feeds(model, seed) for seed in range(batches)]
    hooks = pipeline.Hooks(calibrate=lambda m, o: quantized.statistics(m, o, *given))
    stats = pipeline.run(model, pipeline.parse(LINE), hooks)
    return model, stats.replay, given


def layers_of(model, replay):
    found = Counterparts(replay)
    nodes = [n for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose")]
    return {n: [pair] for n in nodes if (pair := found.of(n.inputs[0])) is not None}


@pytest.mark.parametrize("kind", small.SMALL)
def test_sees_what_the_whole_models_compute(kind):
    model, replay, given = prepared(small.SMALL[kind](0))
    wanted = layers_of(model, replay)
    assert wanted
    seen = {}

    def visit(nodes, batches):
        for number, pairs in enumerate(batches):
            for node, (pair,) in zip(nodes, pairs, strict=True):
                seen[node, number] = pair

    walk(model, replay, wanted, 100, visit)
    assert len(seen) == len(wanted) * len(given)
    for side, whole in enumerate((model, replay.model)):
        names = sorted(
            {str(pairs[0][side].name) for pairs in wanted.values()} - {str(v.name) for v in whole.graph.inputs}
        )
        session = quantized_session(whole, names)
        for number, feeds in enumerate(given):
            arrays = dict(zip(names, session.run(names, feeds), strict=True)) if names else {}
            for node, pairs in wanted.items():
                expected = (feeds | arrays)[str(pairs[0][side].name)]
                actual = (seen[node, number].quantized, seen[node, number].real)[side]
                assert actual.dtype == expected.dtype
                np.testing.assert_allclose(
                    actual.astype("f8"), expected.astype("f8"), rtol=1e-4, atol=1e-4 if side else 1
                )


def quantized_session(model, names):

    return runtime.session(runtime.with_outputs(model, names))


def test_every_operator_runs_once_and_the_folder_empties():
    model, replay, _ = prepared(small.chain(6))
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        values = [pairs[0][1] for pairs in layers_of(model, replay).values()]
        stages = [[value] for value in values]
        segments = Segments(replay.model, stages, Path(folder))
        segments.begin(small.feeds(replay.model, 0))
        most = 0
        for stage in range(len(stages)):
            segments.open(stage)
            runs += segments._nodes[stage]
            segments.run(stage, 0)
            most = max(most, len(list(Path(folder).iterdir())))
            segments.close(stage)
        assert len(runs) == len(set(runs))
        assert most <= 5
        assert not list(Path(folder).iterdir())


def test_a_change_of_a_layer_is_in_effect_behind_it():
    model, replay, _ = prepared(small.chain(2))
    seen = []

    def visit(nodes, batches):
        for node in nodes:
            seen.append(max(float(np.ptp(pairs[0][0].quantized)) for pairs in batches))
            graph.set_constant(node.inputs[1].producer(), 0, np.zeros((4, 4, 3, 3), np.int8), names, "weight")

    names = graph.Names(model.graph)
    wanted = dict(list(layers_of(model, replay).items())[:2])
    walk(model, replay, wanted, 8, visit)
    assert seen[0] > 50
    assert seen[1] < seen[0] / 4  # the first layer gives its bias alone, to all but the padding


def test_the_folder_is_gone_after_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, replay, _ = prepared(small.cnn(0))

    def visit(nodes, batches):
        next(batches)
        raise ValueError

    with pytest.raises(ValueError):
        walk(model, replay, layers_of(model, replay), 8, visit)
    assert not list(tmp_path.iterdir())


def test_constants_have_nothing_to_see():
    model, _, _ = prepared(small.cnn(0))
    conv = next(n for n in model.graph if n.op_type == "Conv")
    assert kept_of(conv.inputs[1]) is None
    assert kept_of(conv.inputs[0]).dtype.name == "UINT8"
