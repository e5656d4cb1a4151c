"""Passes and backends are found by the names of their files."""

from pathlib import Path

import pytest

import qcomp
from qcomp import registry
from qcomp.backend import Backend
from qcomp.errors import OptionError
from qcomp.pipeline import Pass

ROOT = Path(qcomp.__file__).parent
BASES = {"passes": Pass, "backends": Backend}


@pytest.mark.parametrize("kind", BASES)
def test_names_are_those_of_the_files(kind):
    entries = [p for p in (ROOT / kind).iterdir() if not p.name.startswith(("_", "."))]
    modules = [p for p in entries if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert registry.names(kind) == tuple(sorted(p.stem.replace("_", "-") for p in modules))
    assert registry.names(kind)


@pytest.mark.parametrize("kind", BASES)
def test_every_name_is_a_class_of_that_name(kind):
    for name in registry.names(kind):
        found = registry.find(kind, name)
        assert issubclass(found, BASES[kind])
        assert found is not BASES[kind]
        assert found().name() == name
        assert registry.find(kind, name.replace("-", "_")) is found


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", ["", "nothing", "_private", "__init__", "../passes/clean-up", "os", "clean-up.py"])
def test_unknown_names(kind, name):
    with pytest.raises(OptionError, match=f"unknown {registry.SINGULAR[kind]} ") as caught:
        registry.find(kind, name)
    assert all(known in str(caught.value) for known in registry.names(kind))


@pytest.mark.parametrize(
    ("kind", "near", "name"), [("passes", "insert-qdqs", "insert-qdq"), ("backends", "onnxruntme", "onnxruntime")]
)
def test_hints_at_the_nearest(kind, near, name):
    with pytest.raises(OptionError, match=rf"\(did you mean '{name}'\? known: "):
        registry.find(kind, near)
