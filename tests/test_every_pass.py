"""The laws of passes: every file in ``passes/`` obeys them, found by its name."""

from __future__ import annotations

import dataclasses
import functools
import sys

import onnx
import onnx_ir as ir
import pytest
import small_graphs as small

from qcomp import files, graph, pipeline, registry
from qcomp.calibration.calibrator import Calibrator
from qcomp.calibration.observers import Statistics

NAMES = registry.names("passes")
CASES = [(kind, seed) for kind in small.SMALL for seed in (0, 1, 2)]
every_pass = pytest.mark.parametrize("name", NAMES)
every_case = pytest.mark.parametrize(("kind", "seed"), CASES, ids=[f"{k}-{s}" for k, s in CASES])


class RandomSamples:
    """Random inputs in place of a calibration set."""

    count = None

    def __init__(self, model: ir.Model) -> None:
        self.feeds = [small.feeds(model, seed) for seed in range(3)]

    def batches(self, size, limit=None):
        yield from self.feeds

    def few(self, count, batch):
        yield from self.feeds


def calibrate(model, observations) -> Statistics:
    return Calibrator(RandomSamples(model)).collect(model, observations)


def lines() -> list[str]:
    """The longest preset with every pass at work and what each integer form adds, and the presets."""
    presets = sorted(pipeline.PRESETS.values(), key=len)
    everything = presets[-1].replace("choose-precision", "choose-precision{by=all}") + ",correct-bias"
    everything = everything.replace("equalize{per_channel=true}", "equalize")
    own = [pipeline.parse_backend(f"onnxruntime{{form={form}}}").recipe for form in ("qlinear", "integer")]
    return [*(f"{everything},{recipe}".replace("rescale", "rescale{allow_float=true}") for recipe in own), *presets]


def line_to(name: str) -> list[pipeline.Pass]:
    """The pass, behind those that come before it in the line that has it: a preset if one does."""
    for text in reversed(lines()):
        line = pipeline.parse(text)
        index = next((i for i, step in enumerate(line) if step.name() == name), None)
        if index is not None:
            return line[: index + 1]
    return [registry.find("passes", name)()]


@functools.cache
def prepared(name: str, kind: str, seed: int) -> tuple[bytes, pipeline.Pass, Statistics]:
    """The model as the pass meets it, the pass, and the statistics of the passes of its line."""
    return prepare(name, files.load(small.SMALL[kind](seed)))


def prepare(name: str, model: ir.Model) -> tuple[bytes, pipeline.Pass, Statistics]:
    *before, step = line_to(name)
    observing = {"calibrate": lambda m, _: calibrate(m, observations(m, name))}
    stats = pipeline.run(model, before, pipeline.Hooks(**observing))
    if not stats.collected:
        stats = calibrate(model, observations(model, name))
    return small.serialized(model), step, stats


def observations(model: ir.Model, name: str):
    return list(dict.fromkeys(o for step in line_to(name) for o in step.observe(model)))


def loaded(data: bytes) -> ir.Model:
    return ir.from_proto(onnx.ModelProto.FromString(data))


@every_pass
def test_is_a_frozen_dataclass_with_a_docstring(name):
    found = registry.find("passes", name)
    assert found.__dataclass_params__.frozen
    assert found.__doc__
    assert not found.__doc__.startswith(f"{found.__name__}(")
    assert sys.modules[found.__module__].__doc__
    assert found().name() == name
    assert str(pipeline.parse(name)[0]) == name
    assert all(f.default is not dataclasses.MISSING for f in dataclasses.fields(found))


@every_case
@every_pass
def test_leaves_a_valid_graph(name, kind, seed):
    data, step, stats = prepared(name, kind, seed)
    model = loaded(data)
    signature = [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]
    step.run(model, stats)
    graph.verify(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)] == signature


@every_case
@every_pass
def test_outputs_stay_within_its_tolerance(name, kind, seed):
    data, step, stats = prepared(name, kind, seed)
    model = loaded(data)
    inputs = small.feeds(model, seed + 100)
    before = small.run(model, inputs)
    step.run(model, stats)
    after = small.run(model, inputs)
    assert list(after) == list(before)
    assert step.tolerance is None or small.moved(before, after) <= step.tolerance


@every_case
@every_pass
def test_a_second_run_changes_nothing(name, kind, seed):
    data, step, stats = prepared(name, kind, seed)
    model = loaded(data)
    before = small.serialized(model)
    changed = step.run(model, stats)
    once = small.serialized(model)
    assert changed or once == before
    assert not step.run(model, stats)
    assert small.serialized(model) == once


@every_pass
def test_its_work_grows_linearly(name):
    small_work, large_work = (work(name, blocks) for blocks in (10, 40))
    assert large_work <= 6 * small_work


def work(name: str, blocks: int) -> int:
    """How many functions, Python's and C's, the pass calls on a chain: a measure without a clock."""
    data, step, stats = prepare(name, files.load(small.chain(blocks)))
    model, count = loaded(data), 0

    def tally(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        step.run(model, stats)
    finally:
        sys.setprofile(None)
    return count
