"""The loop that runs passes and holds them to what they promise."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs as small
from plain_pass import Plain

from qcomp import files, pipeline
from qcomp.calibration.observers import ChannelMean, Distribution, Observation, Statistics
from qcomp.errors import PassError
from qcomp.pipeline import Hooks, Pass


@dataclass(frozen=True)
class Scale(Plain):
    """Multiplies a weight by 1 + ``by``, and says so."""

    by: float = 0.0

    def run(self, model, stats):
        value = model.graph.initializers["w"]
        with np.errstate(invalid="ignore"):
            value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1 + self.by), name="w")
        return True


@dataclass(frozen=True)
class Loose(Scale):
    """As Scale, but changes numbers on purpose."""

    tolerance: ClassVar[float | None] = None


@dataclass(frozen=True)
class Breaks(Plain):
    """Leaves a graph that reads what is gone."""

    def run(self, model, stats):
        model.graph.remove(model.graph.node(0))
        return True


@dataclass(frozen=True)
class Renames(Plain):
    """Gives the output another name."""

    to: str = "z"

    def run(self, model, stats):
        model.graph.outputs[0].name = self.to
        return True


@dataclass(frozen=True)
class Reshapes(Plain):
    """Gives the output one element."""

    def run(self, model, stats):
        node = ir.Node("", "ReduceMax", [model.graph.outputs[0]], {"keepdims": ir.AttrInt64("keepdims", 1)}, name="m")
        node.outputs[0].name = "m"
        model.graph.append(node)
        old, model.graph.outputs[0] = model.graph.outputs[0], node.outputs[0]
        old.name, node.outputs[0].name = "old", "y"
        return True


DISTRIBUTION = Distribution()


@dataclass(frozen=True)
class Observes(Plain):
    """Reads statistics of some values."""

    of: tuple[str, ...] = ()
    kind: Any = DISTRIBUTION

    def observe(self, model):
        values = {v.name: v for node in model.graph for v in node.outputs}
        return [Observation(values[name], self.kind) for name in self.of]

    def run(self, model, stats):
        seen.append(sorted(key[0] for key in stats.states))
        return False


@dataclass(frozen=True)
class Moves(Observes):
    """Changes what inner values hold."""

    moves_values: ClassVar[bool] = True


seen: list[list[str]] = []


@pytest.fixture
def model():
    b = small.Builder()
    h = b.op("Relu", b.op("MatMul", b.input("x", ["N", 3]), b.constant(np.eye(3), "w"), name="h"), name="r")
    b.op("Identity", h, name="y")
    seen.clear()
    return files.load(b.model("y"))


def outputs(model):
    return small.run(model, {"x": np.float32([[1, -2, 3]])})


class TestRun:
    """What the driver holds passes to."""

    def test_an_invalid_graph_is_the_passs_fault(self, model):
        with pytest.raises(
            PassError, match=r"the pass breaks left an invalid graph: .*'h'.* \(this is a bug of the pass\)"
        ):
            pipeline.run(model, [Plain(), Breaks(), Plain()])

    def test_outputs_within_the_tolerance(self, model):
        pipeline.run(model, [Scale(by=5e-6), Scale(by=-5e-6), Loose(by=3.0), Scale(by=1e-6)], Hooks(outputs=outputs))

    @pytest.mark.parametrize("by", [2e-5, -1.0, float("nan"), float("inf")])
    def test_outputs_that_moved_further(self, model, by):
        with pytest.raises(PassError, match=r"the pass scale\{by=.* moved the output 'y' by .* tolerance 1e-05"):
            pipeline.run(model, [Plain(), Scale(by=by)], Hooks(outputs=outputs))

    def test_are_compared_with_the_pass_before_not_the_first(self, model):
        with pytest.raises(PassError, match="scale"):
            pipeline.run(model, [Loose(by=1.0), Scale(by=1.0)], Hooks(outputs=outputs))

    def test_without_the_hook_nothing_is_compared(self, model):
        pipeline.run(model, [Scale(by=1.0)])
        assert outputs(model)["y"].tolist() == [[2, 0, 6]]

    def test_an_output_that_is_gone(self, model):
        with pytest.raises(PassError, match="the pass renames lost the output 'y'"):
            pipeline.run(model, [Renames()], Hooks(outputs=outputs))

    def test_an_output_of_another_shape(self, model):
        with pytest.raises(PassError, match=r"the pass reshapes gave the output 'y' the shape \(1, 1\), not \(1, 3\)"):
            pipeline.run(model, [Reshapes()], Hooks(outputs=outputs))

    def test_outputs_that_are_no_floats(self, model):
        def values(_):
            return {"ids": np.arange(3), "flags": np.array([True, False]), "words": np.array(["a", "b"], object)}

        pipeline.run(model, [Scale(by=0.0)], Hooks(outputs=values))
        turns = iter([np.array(["a"], object), np.array(["b"], object)])
        with pytest.raises(PassError, match="moved the output 'words'"):
            pipeline.run(model, [Scale(by=0.0)], Hooks(outputs=lambda _: {"words": next(turns)}))

    def test_values_that_are_not_finite_may_stay_but_not_appear(self, model):
        odd, turns = np.float32([1, np.nan, np.inf, -np.inf]), []
        pipeline.run(model, [Scale(by=0.0)], Hooks(outputs=lambda _: {"y": odd}))
        for index, bad in ((0, np.nan), (0, np.inf), (2, -np.inf), (1, 0.0)):
            spoiled = odd.copy()
            spoiled[index] = bad
            turns = iter([{"y": odd}, {"y": spoiled}])
            with pytest.raises(PassError, match="moved the output 'y'"):
                pipeline.run(model, [Scale(by=0.0)], Hooks(outputs=lambda _, turns=turns: next(turns)))

    def test_what_changes_numbers_on_purpose_keeps_names_and_shapes(self, model, monkeypatch):
        for broken in (Renames, Reshapes):
            monkeypatch.setattr(broken, "tolerance", None)
        with pytest.raises(PassError, match="lost the output"):
            pipeline.run(model.clone(), [Renames()], Hooks(outputs=outputs))
        with pytest.raises(PassError, match="the shape"):
            pipeline.run(model.clone(), [Reshapes()], Hooks(outputs=outputs))

    def test_dumps_are_numbered(self, model):
        dumped = []

        def dump(index, name, given):
            assert given is model
            dumped.append((index, name))

        pipeline.run(model, [Plain(), Scale()], Hooks(dump=dump))
        pipeline.run(model, [Plain()], Hooks(dump=dump, start=2))
        assert dumped == [(0, "input"), (1, "plain"), (2, "scale"), (3, "plain")]

    def test_calibrates_once_with_the_union_before_numbers_change_or_are_observed(self, model):
        asked = []

        def calibrate(given, observations):
            asked.append([(o.value.name, o.kind) for o in observations])
            assert given.graph.initializers["w"].const_value.numpy()[0, 0] == 2
            return Statistics({o.key: o.kind.start() for o in observations}, samples=1)

        line = [
            Scale(by=1.0),
            Loose(by=1.0),
            Observes(of=("h",)),
            Plain(),
            Observes(of=("h", "r")),
            Observes(of=("r",), kind=ChannelMean(-1)),
        ]
        stats = pipeline.run(model, line, Hooks(calibrate=calibrate))
        assert asked == [[("h", Distribution()), ("r", Distribution()), ("r", ChannelMean(-1))]]
        assert seen == [["h", "r", "r"]] * 3
        assert stats.collected

    def test_calibrates_again_behind_what_moves_values(self, model):
        asked = []

        def calibrate(given, observations):
            asked.append([o.value.name for o in observations])
            return Statistics({o.key: o.kind.start() for o in observations}, samples=1)

        line = [Observes(of=("h",)), Moves(of=("h",)), Plain(), Observes(of=("r",))]
        pipeline.run(model, line, Hooks(calibrate=calibrate))
        assert asked == [["h"], ["r"]]
        assert seen == [["h"], ["h"], ["r"]]

    def test_given_statistics_serve_instead(self, model):
        given = Statistics({("h", Distribution()): Distribution().start()}, samples=4)

        def never(*_):
            pytest.fail("calibrated again")

        assert pipeline.run(model, [Observes(of=("h",))], Hooks(calibrate=never), given) is given
        assert seen == [["h"]]

    def test_no_calibration_where_nothing_observes(self, model):
        stats = pipeline.run(model, [Plain(), Observes()], Hooks(calibrate=lambda *_: pytest.fail("calibrated")))
        assert not stats.collected

    def test_says_what_each_pass_did(self, model, caplog):
        with caplog.at_level(logging.INFO):
            pipeline.run(model, [Plain(), Loose(by=1.0)])
        assert [r.getMessage().rsplit(",", 1)[0] for r in caplog.records if r.name == "qcomp.pipeline"] == [
            "plain: nothing to do",
            "loose{by=1.0}: changed",
        ]

    def test_a_pass_must_be_written(self, model):
        @dataclass(frozen=True)
        class Empty(Pass):
            pass

        with pytest.raises(NotImplementedError):
            pipeline.run(model, [Empty()])
        assert list(Empty().observe(model)) == []
