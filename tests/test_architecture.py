"""The arrows between the parts, and the rules of the house, read from the source."""

import ast
from pathlib import Path

import pytest

import qcomp
from qcomp.errors import QcompError, first_line

ROOT = Path(qcomp.__file__).parent
PARTS = ("passes", "backends", "models")
DEMOS = {"commands/demo.py": {"qcomp.models.digits"}}
"""What of the core may import a particular model."""


def module_of(path: Path) -> str:
    """``qcomp.passes.clean_up`` of ``<root>/passes/clean_up.py``."""
    return ".".join(("qcomp", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def files_of(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).resolve().rglob("*.py"))


def named(path: Path) -> str:
    """The path below qcomp, through its links."""
    for part in PARTS:
        real = (ROOT / part).resolve()
        if path.is_relative_to(real):
            return f"{part}/{path.relative_to(real)}"
    return str(path.relative_to(ROOT.resolve()))


CORE = sorted(path for path in ROOT.resolve().rglob("*.py") if path.relative_to(ROOT.resolve()).parts[0] not in PARTS)
ALL = [*CORE, *files_of(*PARTS)]
every_file = pytest.mark.parametrize("path", ALL, ids=named)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_in(tree: ast.AST) -> set[str]:
    """Every module that is imported, anywhere in a file, with the names taken from it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {ast.unparse(argument).strip("'\"f") for argument in node.args[:1]}
    return found


def imports(path: Path) -> set[str]:
    return imports_in(tree_of(path))


def below(found: set[str], *parts: str) -> set[str]:
    """Those imports that lie in one of the packages."""
    return {name for name in found for part in parts if name == part or name.startswith(f"{part}.")}


def test_the_files_are_found():
    names = {named(path) for path in ALL}
    assert {"graph.py", "quantization/qparams.py", "passes/clean_up.py", "backends/onnxruntime.py"} <= names
    assert len(names) == len(ALL) > 50


def test_imports_are_read():
    source = "import a.b\nfrom c import d\ndef f():\n    from e.f import g\n    importlib.import_module('h.i')\n"
    assert {"a.b", "c", "c.d", "e.f", "e.f.g", "h.i"} <= imports_in(ast.parse(source))
    assert below({"onnx", "onnx_ir.passes", "numpy"}, "onnx", "onnx_ir") == {"onnx", "onnx_ir.passes"}


@pytest.mark.parametrize("path", files_of("quantization"), ids=named)
def test_the_numbers_know_numpy_only(path):
    found = imports(path)
    assert not below(found, "onnx", "onnx_ir", "onnxruntime", "onnxscript", "google")
    assert all(name.startswith(("qcomp.quantization", "qcomp.errors")) for name in below(found, "qcomp")), found


@pytest.mark.parametrize("path", CORE, ids=named)
def test_the_core_knows_no_particular_pass_backend_or_model(path):
    packages = {f"qcomp.{part}" for part in PARTS}
    found = below(imports(path), *packages, *PARTS)
    allowed = DEMOS.get(named(path), set())
    assert {name for name in found if not below({name}, *allowed)} <= (packages if allowed else set())


@pytest.mark.parametrize("path", files_of("passes"), ids=named)
def test_a_pass_knows_no_backend_no_model_and_no_other_pass(path):
    others = [name for name in below(imports(path), "qcomp.passes") if not below({name}, f"qcomp.passes.{path.stem}")]
    assert not others
    assert not below(imports(path), "qcomp.backends", "qcomp.models", "onnxruntime", "qcomp.commands", "qcomp.report")


@pytest.mark.parametrize("path", files_of("backends"), ids=named)
def test_a_backend_knows_no_other_backend_and_no_pass(path):
    own = named(path).split("/")[1].removesuffix(".py")
    others = [name for name in below(imports(path), "qcomp.backends") if not below({name}, f"qcomp.backends.{own}")]
    assert [name for name in others if name != "qcomp.backends"] == []
    assert not below(imports(path), "qcomp.passes", "qcomp.models", "qcomp.commands")


@every_file
def test_imports_go_through_qcomp(path):
    assert not below(imports(path), *PARTS, "tests", "benchmarks")


@every_file
def test_nothing_is_unpickled_or_printed(path):
    tree = tree_of(path)
    assert not below(imports_in(tree), "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in ("print", "eval", "exec")), node.lineno
            for keyword in node.keywords:
                pickles = keyword.arg == "allow_pickle"
                assert not pickles or ast.unparse(keyword.value) == "False", f"line {node.lineno}"


@every_file
def test_files_are_short_and_say_what_they_are(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400
    assert ast.get_docstring(ast.parse(source))
    assert source.count("\n") <= 6 or "from __future__ import annotations" in source


def test_the_public_surface():
    assert qcomp.__all__ == ["Compiled", "Pass", "QParams", "QType", "QcompError", "compile"]
    for name in qcomp.__all__:
        assert getattr(qcomp, name).__name__ == name
        assert getattr(qcomp, name).__doc__
    with pytest.raises(AttributeError, match="module 'qcomp' has no attribute 'nothing'"):
        _ = qcomp.nothing


def test_importing_qcomp_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, qcomp; print([m for m in ('numpy', 'onnx', 'onnxruntime', 'onnx_ir') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_say_what_where_and_what_to_do():
    assert str(QcompError("it is broken")) == "it is broken"
    assert str(QcompError("it is broken", where="m.onnx", hint="mend it")) == "m.onnx: it is broken (mend it)"
    error = QcompError("what", where="where", hint="hint")
    assert (error.what, error.where, error.hint) == ("what", "where", "hint")
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 999))) == 200


def test_errors_are_one_tree():
    from qcomp import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 8
    assert all(issubclass(kind, QcompError) and kind.__doc__ for kind in kinds)
