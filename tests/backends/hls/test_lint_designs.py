"""What is emitted is synthesizable as far as a compiler can tell: clang proves constant trip counts and the rest."""

from __future__ import annotations

import hls_designs
import pytest
from synthesizable import lint, why_not

from qcomp.backends.hls import Hls

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.mark.parametrize("name", hls_designs.NETWORKS)
@pytest.mark.parametrize("ports", ["stream", "memory"])
def test_designs_pass_the_lint(name, ports, tmp_path):
    model, data = hls_designs.made(name)
    Hls(board="pynq-z2", rate=500.0, ports=ports).emit(model, tmp_path / "design", [data])
    assert lint(tmp_path / "design" / "firmware", [tmp_path / "design" / "simulation"], "qcomp_top") == []


def test_the_lint_sees_a_stream_that_nobody_reads(tmp_path):
    model, data = hls_designs.made("shortcut")
    Hls(board="pynq-z2").emit(model, tmp_path / "design", [data])
    top = tmp_path / "design" / "firmware" / "top.cpp"
    lines = [line for line in top.read_text().splitlines() if "QCOMP_PROCESS(layer_000_conv_sums" not in line]
    top.write_text("\n".join(lines))
    assert lint(tmp_path / "design" / "firmware", [tmp_path / "design" / "simulation"], "qcomp_top")
