"""The command line as a user runs it, and the files of the digits to run it on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from qcomp.cli import cli
from qcomp.models import digits


def run(*args: object) -> Result:
    """Run ``qcomp ARGS``."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli, [str(arg) for arg in args])


def ok(*args: object) -> str:
    """What ``qcomp ARGS`` prints, where it must succeed."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    """The one line on stderr of ``qcomp ARGS``, where it must be refused."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def write_digits(folder: Path, train: int = 64, test: int = 100) -> None:
    """Write ``cnn.onnx``, ``vit.onnx``, ``train.npz``, ``test.npz`` and ``labels.npy``."""
    data = digits.data()
    for name in digits.NAMES:
        (folder / f"{name}.onnx").write_bytes(digits.load(name).read_bytes())
    np.savez(folder / "train.npz", image=data["train"][:train])
    np.savez(folder / "test.npz", image=data["test"][:test])
    np.save(folder / "labels.npy", data["test_labels"][:test])


def listing(folder: Path) -> set[str]:
    """All files, hidden ones too."""
    return set(os.listdir(folder))
