"""Designs of real, trained models: the integers of ONNX Runtime in C simulation, within the boards they are meant for.

Slow: needs the folder of models and labelled data that benchmarks/README.md describes, in QCOMP_DATA, and g++.
"""

from __future__ import annotations

import hls
import pytest
from cpp import needs_compiler
from real_data import DATA, with_data

pytestmark = [pytest.mark.slow, needs_compiler, with_data]
LIMITS = {"mlperf_ic_resnet8": 1000.0, "mlperf_kws_dscnn": 150.0}
"""Microseconds a sample, by estimate."""


@pytest.mark.parametrize("case", hls.CASES, ids=lambda case: f"{case.model}-{case.bits}")
def test_c_simulation_gives_the_integers_of_onnx_runtime(case, tmp_path):
    found = hls.measured(case, DATA, tmp_path / "design")
    assert found.differing == 0
    assert found.integers >= hls.INPUTS * 10
    bounded = [f for f in found.fifos if f.depth]
    assert bounded
    assert all(f.high_water <= f.depth for f in bounded)
    if case.model in LIMITS:
        assert found.report["interval_us"] < LIMITS[case.model]
