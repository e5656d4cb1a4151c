"""The folding solver and the flow of words: budgets, rates, cycles."""

from __future__ import annotations

import hls_designs
import onnx_ir as ir
import pytest

from qcomp.backends.hls import boards, costs, flow, folding, lowering
from qcomp.backends.hls.layers import Pool
from qcomp.backends.hls.schedules import iterations_of
from qcomp.errors import OptionError, UnsupportedError

TINY = "dsp=16,bram18=60,lut=14000,ff=32000,clock=100,part=xc7z010"


@pytest.mark.parametrize("name", hls_designs.NETWORKS)
def test_a_design_keeps_to_its_board(name):
    network = lowering.lower(hls_designs.made(name)[0])
    small, large = boards.parse_generic(TINY), boards.find("alveo-u250")
    designs = [folding.fold(network, board)[0] for board in (small, large)]
    for design, board in zip(designs, (small, large), strict=True):
        assert not costs.total(design).over(board)
    assert designs[0].interval >= designs[1].interval
    if name in ("residual", "branches"):
        assert designs[0].interval > designs[1].interval


@pytest.mark.parametrize("name", ["residual", "separable"])
def test_a_rate_is_reached_with_less(name):
    network, board = lowering.lower(hls_designs.made(name)[0]), boards.find("alveo-u250")
    fastest = folding.fold(network, board)[0]
    asked = 4 * fastest.interval
    slower = folding.fold(network, board, asked)[0]
    assert slower.interval <= asked
    assert costs.total(slower).dsp < costs.total(fastest).dsp


def test_what_does_not_fit_says_what_is_over_and_what_would_do():
    network = lowering.lower(hls_designs.made("residual")[0])
    board = boards.parse_generic("dsp=5,bram18=60,lut=16000,ff=32000,clock=100,part=none")
    with pytest.raises(UnsupportedError, match=r"dsp \d+ of 5.*smallest board that would do: pynq-z2"):
        folding.fold(network, board)


def test_a_design_that_takes_seconds_is_refused(monkeypatch):
    network = lowering.lower(hls_designs.made("residual")[0])
    monkeypatch.setattr(folding, "LONGEST", 1000)
    with pytest.raises(UnsupportedError, match=r"takes \d+ cycles a sample in layer"):
        folding.fold(network, boards.find("pynq-z2"))


def test_what_nothing_reads_has_no_hardware():
    model = hls_designs.made("residual")[0].clone()
    dead = ir.node("MaxPool", [model.graph[3].outputs[0]], {"kernel_shape": [2, 2]})
    model.graph.insert_after(model.graph[3], dead)
    assert not any(isinstance(layer, Pool) for layer in lowering.lower(model).layers)


def test_a_rate_that_nothing_reaches_says_which_is():
    network = lowering.lower(hls_designs.made("residual")[0])
    with pytest.raises(OptionError, match="the fastest folding takes"):
        folding.fold(network, boards.find("alveo-u250"), 3)


@pytest.mark.parametrize("interval", [None, 5000, 50000])
@pytest.mark.parametrize("name", hls_designs.NETWORKS)
def test_the_estimate_is_what_a_walk_counts(name, interval):
    """Within 5 %, with FIFOs as deep as they are emitted; and the schedule fits the streams."""
    network, board = lowering.lower(hls_designs.made(name)[0]), boards.find("alveo-u250")
    design, found = folding.fold(network, board, interval)
    for process in design.processes:
        schedule = process.schedule
        assert schedule.iterations == iterations_of(process.kernel, process.constants)
        assert [len(r) for r in schedule.reads] == [s.words for s in process.inputs]
        assert [len(w) for w in schedule.writes] == [s.words for s in process.outputs]
    ends = hls_designs.walk(design, 3)
    assert ends[0] == pytest.approx(found.latency, rel=0.05)
    assert ends[2] - ends[1] == pytest.approx(design.interval, rel=0.05)


def test_depths_follow_what_the_longer_branch_needs():
    design = hls_designs.design_of(hls_designs.made("residual")[0], interval=20000)
    fork = next(p for p in design.processes if p.name == "layer_000_conv_fork0")
    to_join = fork.outputs[1]
    image = design.network.layers[0].result
    rows = to_join.lanes * flow.analyse(design).depths[to_join.name] / image.channels / image.width
    assert 4 < rows < 8, "the short branch waits for two windows of three rows, and what they read ahead"
