"""The same file on this machine and on a processor with AVX2 alone, which qemu-user emulates.

Run as a script it compiles small models, portable and not, and prints how many output integers differ on 20 inputs.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
import zoo

import qcomp
from qcomp import exactness, runtime

QEMU = shutil.which("qemu-x86_64")
MODELS = ("mlperf_ic_resnet8", "cifar10_resnet20_bn", "digits_cnn")
INPUTS = 20
CHILD = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
with numpy.load(sys.argv[2]) as feeds:
    numpy.savez(sys.argv[3], **dict(zip(names, session.run(names, dict(feeds)))))
"""

Feeds = dict[str, np.ndarray[Any, np.dtype[Any]]]


def why_not() -> str | None:
    """Why nothing can be compared here; None where it can."""
    if QEMU is None:
        return "qemu-x86_64 is not installed (Debian: qemu-user)"
    if platform.machine() != "x86_64":
        return "not an x86-64 machine"
    return None if exactness.probe() else "this machine has no 8-bit dot products itself"


def emulated(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python on a processor with AVX2 and without 8-bit dot products."""
    assert QEMU is not None
    command = [QEMU, "-cpu", "Haswell", sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def on_avx2(model: Path, feeds: Feeds) -> Feeds:
    """The outputs of a model file by name, where ONNX Runtime has AVX2 alone."""
    given, made = model.with_suffix(".in.npz"), model.with_suffix(".out.npz")
    np.savez(given, **feeds)  # type: ignore[arg-type]
    emulated("-c", CHILD, model, given, made)
    with np.load(made) as outputs:
        return dict(outputs)


def differences(model: Path, feeds: Feeds) -> dict[str, int]:
    """How many elements of each output differ between this machine and one with AVX2 alone.

    Args:
        model: a file; files are written beside it.
        feeds: its inputs, integers or floats.
    """
    session = runtime.session(model)
    names = [output.name for output in session.get_outputs()]
    here, there = dict(zip(names, session.run(names, feeds), strict=True)), on_avx2(model, feeds)
    assert [(n, a.shape, a.dtype) for n, a in here.items()] == [(n, a.shape, a.dtype) for n, a in there.items()]
    return {name: int((here[name] != there[name]).sum()) for name in names}


def main() -> None:
    """Print one table."""
    parser = zoo.arguments(__doc__)
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        raise SystemExit(reason)
    data = zoo.data_of(options)
    rows = []
    for model in zoo.selected(options.models or ",".join(MODELS)):
        feeds = {name: array[:INPUTS] for name, array in model.evaluation(data, model)[0].items()}
        for form in ("qdq", "qlinear", "integer"):
            for portable in ("true", "false"):
                with tempfile.TemporaryDirectory() as folder:
                    to = f"onnxruntime{{form={form} portable={portable}}}"
                    chosen = model.compile_options() | {"to": to, "out": Path(folder) / "model.onnx"}
                    made = qcomp.compile(model.path(data), model.calibration(data), **chosen)
                    found = differences(made.files[0], feeds)
                rows.append([model.name, form, portable, str(sum(found.values()))])
    print(measure.table(("model", "form", "portable", "differing"), rows))


if __name__ == "__main__":
    main()
