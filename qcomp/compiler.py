"""compile(): load -> float rewrites -> calibrate -> quantize -> guard -> emit. The whole compiler in one function."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from qcomp import files, guard, pipeline, runtime
from qcomp.backend import Backend
from qcomp.calibration.calibrator import Calibrator, Progress
from qcomp.calibration.data import Preprocess, Samples, open_data
from qcomp.calibration.observers import Observation, Statistics
from qcomp.errors import DataError, OptionError, OutputError
from qcomp.pipeline import Hooks, Pass
from qcomp.report import summary
from qcomp.report.summary import Report, describe
from qcomp.runtime import Array, Feeds
from qcomp.trial import few, record_line, to_nearest

Source = str | os.PathLike[str] | onnx.ModelProto | ir.Model
DEFAULT_SAMPLES = 512
DEFAULT_BATCH = 4
EMITTED_SAMPLES = 4
"""That a backend may write beside the artefact, for its own test."""


@dataclass
class Compiled:
    """What `compile` gives back.

    Args:
        model: the quantized model, in memory.
        files: what was written, the main file first; empty where no ``out`` was given.
        report: what was quantized, what stayed in float and why, sizes, the output's error.
    """

    model: ir.Model
    files: list[Path]
    report: Report
    _session: Any = field(default=None, init=False, repr=False)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run one batch in ONNX Runtime.

        Args:
            feeds: arrays by input name, the first axis the samples.

        Returns:
            Arrays by output name.
        """
        if self._session is None:
            self._session = runtime.session(self.files[0] if self.files else self.model)
        return runtime.run_batches(self._session, [feeds])


def compile(
    model: Source,
    data: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    level: int = 1,
    to: str = "onnxruntime",
    weights: str | None = None,
    activations: str | None = None,
    scales: str | None = None,
    group: int | None = None,
    per_channel: bool | None = None,
    keep: str | Sequence[str] = (),
    passes: str | None = None,
    samples: int | None = DEFAULT_SAMPLES,
    batch: int | None = None,
    threads: int = 1,
    preprocess: Preprocess | None = None,
    verify: bool = False,
    dump: str | os.PathLike[str] | None = None,
    guard_db: float | None = None,
    allow_float: bool = False,
    progress: Progress | None = None,
) -> Compiled:
    """Quantize a float ONNX model.

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; it stays unchanged.
        data: calibration samples: a path to ``.npz``, ``.npy``, a folder of them or of images, or an iterable of
            dicts of arrays by input name, first axis the samples. None only where ``activations="none"``.
        out: where to write; None writes nothing.
        level: the line of passes, 0 to 3.
        to: the backend with its options, as in ``"onnxruntime{form=qdq}"``.
        weights, activations: types, as in ``"int8"``, ``"uint8"``; None for those of the line.
        scales: ``"dyadic"`` ratios, powers of two (``"pow2"``) or ``"free"``; None for those of the line.
        group: with ``activations="none"``, a scale for each group of so many inputs of a MatMul or Gemm.
        per_channel: False for one scale a weight, for hardware that knows no others; None for what the line says.
        keep: patterns of operator names or types that stay in float, or one.
        passes: a line of passes instead of that of the level.
        samples: how many samples to calibrate with at most, spread evenly over those there are; None for all.
        batch: samples a run; None chooses.
        threads: threads of ONNX Runtime while calibrating.
        preprocess: how images become inputs.
        verify: run sample inputs before and after every pass and hold it to its tolerance.
        dump: a folder that receives the model after every pass.
        guard_db: keep as few operators in float as bring the output's SQNR to this many dB.
        allow_float: where the backend takes integers only, leave in float what has no integer form or would be slower
            in integers; else that is an error.
        progress: called with the number of samples calibrated so far and, where known, of all.

    Raises:
        QcompError: every error that the user can mend; see `qcomp.errors`.
    """
    start = time.perf_counter()
    backend = pipeline.parse_backend(to)
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    options = {"weights": weights, "activations": activations, "scales": scales, "group": group, "keep": kept}
    options["per_channel"] = per_channel
    line = passes_of(level, backend, passes=passes, allow_float=allow_float, **options)
    if data is None and passes is None:
        line = to_nearest(line)
    count = len(line) - len(pipeline.parse(backend.recipe))
    if guard_db is not None and backend.takes_integers_only and not allow_float:
        what, hint = f"keeps layers in float, and {backend} takes integers only", "add --allow-float"
        raise OptionError(what, where=f"--guard {guard_db:g}", hint=hint)
    if out is not None:
        backend.check_place(Path(out))
    with _no_cyclic_gc():
        job = _Job(files.load(model), line, DEFAULT_BATCH if batch is None else batch, threads, samples, progress)
        with runtime.blaming(job.model):
            job.open(data, preprocess)
            hooks = Hooks(
                calibrate=job.calibrate if job.data is not None else None,
                outputs=job.sample_outputs if verify else None,
                dump=_dumper(Path(dump)) if dump is not None else None,
            )
            record_line(job.model, line[:count])
            quantized, stats, found = guard.quantize(job.model, line[:count], hooks, job.data, guard_db, job.batch)
            report = describe(job.model, quantized, found, samples=stats.samples, line=line)
            if line[count:]:
                total = summary.macs(quantized)
                pipeline.run(quantized, line[count:], replace(hooks, start=count), stats)
                report = summary.left_in_float(report, quantized, total)
                report = replace(report, error=guard.measure_again(found, job.model, quantized, job.data, job.batch))
            feeds = [] if job.data is None else few(job.data, quantized, EMITTED_SAMPLES, job.batch)
            written = backend.emit(quantized, Path(out), feeds) if out is not None else []
    report = replace(report, seconds=time.perf_counter() - start, files=[str(p) for p in written])
    return Compiled(quantized, written, report)


def passes_of(
    level: int, backend: Backend, *, passes: str | None = None, allow_float: bool = False, **options: Any
) -> list[Pass]:
    """The passes of a level with the options set, then those the backend needs.

    Raises:
        OptionError: an unknown level, pass or option.
    """
    line = pipeline.parse(pipeline.preset(level) if passes is None else passes)
    given = {key: value for key, value in options.items() if value not in (None, ())}
    if given.get("activations") == "none":
        if backend.takes_integers_only:
            what, hint = f"leaves all that computes in float, and {backend} takes integers only", "compile to form=qdq"
            raise OptionError(what, where="--activations none", hint=hint)
        line = _weights_only(line)
    if backend.takes_integers_only and not allow_float and passes is None:
        line = _everything(line)
    return [*pipeline.override(line, **backend.settings, **given), *_own_passes(backend, allow_float=allow_float)]


def _own_passes(backend: Backend, *, allow_float: bool) -> list[Pass]:
    own = pipeline.parse(backend.recipe)
    if allow_float and not backend.takes_integers_only:
        raise OptionError(
            "leaves operators in float anyway", where=f"--allow-float with {backend}", hint="leave it out"
        )
    return [
        pipeline.override([p], allow_float=True)[0] if allow_float and hasattr(p, "allow_float") else p for p in own
    ]


def _everything(line: Sequence[Pass]) -> list[Pass]:
    """The line with every operator in integers that has an integer form."""
    wanted: dict[str, dict[str, Any]] = {"choose-precision": {"by": "all"}, "reparameterize-scales": {"inputs": False}}
    return [pipeline.override([s], **wanted.get(s.name(), {}))[0] for s in line]


def _weights_only(line: Sequence[Pass]) -> list[Pass]:
    """The line without what pays only where integers are computed with."""
    return [step for step in _everything(line) if step.name() != "lower-conv-transpose"]


@dataclass
class _Job:
    """The samples and how they run through the model."""

    model: ir.Model
    line: Sequence[Pass]
    batch: int
    threads: int
    limit: int | None
    progress: Progress | None
    data: Samples | None = None

    def open(self, data: Any, preprocess: Preprocess | None) -> None:
        """Open the samples; they may be missing only where no pass observes anything."""
        if self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise OptionError("samples and batch are at least 1", where=f"samples={self.limit} batch={self.batch}")
        if data is not None:
            self.data = open_data(data, runtime.input_specs(self.model), preprocess=preprocess).spread(
                self.limit, self.batch
            )
        elif any(any(True for _ in step.observe(self.model)) for step in _needing(self.line)):
            raise DataError(
                "activations need calibration data",
                hint="give samples with --data, or --activations none for weights only",
            )

    def calibrate(self, model: ir.Model, observations: Sequence[Observation]) -> Statistics:
        """Collect statistics of the samples."""
        assert self.data is not None
        return Calibrator(self.data, self.limit, self.batch, self.threads, self.progress).collect(model, observations)

    def sample_outputs(self, model: ir.Model) -> dict[str, Array]:
        """The outputs of a few samples, with every operator run as it stands."""
        runner = runtime.session(model, threads=self.threads, optimize=False)
        return runtime.run_batches(runner, few(self.data, model, guard.VERIFY_SAMPLES, self.batch))


def _needing(line: Sequence[Pass]) -> list[Pass]:
    """The passes that cannot work without statistics: all that observe, where activations are quantized."""
    return [step for step in line if getattr(step, "activations", None) is not None]


def _dumper(folder: Path) -> Callable[[int, str, ir.Model], None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(folder)) from error

    def dump(index: int, name: str, model: ir.Model) -> None:
        files.save(model, folder / f"{index:02d}-{name}.onnx")

    return dump


@contextlib.contextmanager
def _no_cyclic_gc() -> Iterator[None]:
    """Python's cyclic collector doubles the time on big graphs, which hold many objects and drop few."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
