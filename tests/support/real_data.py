"""Where the real models and data are, and the mark of tests that need them."""

from __future__ import annotations

import pytest
import zoo

DATA = zoo.find_data()
with_data = pytest.mark.skipif(DATA is None, reason="QCOMP_DATA is not set to a folder with models/")
