"""Makes ``tests/support`` and ``benchmarks`` importable: ``import small_graphs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
