"""Compiles and runs C++ programs that tests write."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SECONDS = 300

COMPILER = shutil.which(os.environ.get("CXX", "g++"))

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler: g++ or the program CXX names")


def compile_program(source: str, folder: Path, includes: Sequence[Path], *flags: str) -> Path:
    """The program in ``folder`` that a C++14 text makes; ``flags`` come last and can change standard and optimization.

    Raises:
        AssertionError: with the compiler's message.
    """
    assert COMPILER is not None, "a test that compiles is marked needs_compiler"
    text, program = folder / "program.cpp", folder / "program"
    text.write_text(source)
    options = ["-std=c++14", "-O2", *(f"-I{each}" for each in includes), *flags]
    command = [COMPILER, *options, str(text), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert compiled.returncode == 0, compiled.stderr
    return program


def compile_and_run(
    source: str, folder: Path, includes: Sequence[Path], *flags: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Exit code, output and error output of a C++14 text, compiled in ``folder`` and given ``stdin``.

    Raises:
        AssertionError: with the compiler's message.
    """
    program = compile_program(source, folder, includes, *flags)
    return subprocess.run([str(program)], input=stdin, capture_output=True, timeout=SECONDS)
