"""What would help a compilation whose outputs are far from those of the float model."""

from __future__ import annotations

from qcomp import guard, pipeline
from qcomp.report.summary import Report

FEW_SAMPLES = 128


def warnings(report: Report, bound: float | None = None) -> list[str]:
    """What the user should know before using the result.

    Args:
        report: of the compilation.
        bound: the SQNR in dB that the guard was to reach, None without a guard.
    """
    found = [] if report.quantized else ["nothing is quantized: no operator runs in integers"]
    least = report.error.least
    limit = guard.WARN_DB if bound is None else bound
    if least is not None and least < limit:
        found.append(f"the outputs are far from those of the float model: {least:.1f} dB, less than {limit:g} dB")
    return found


def remedies(report: Report, bound: float | None = None) -> list[str]:
    """What to try, the most promising first; all of it exists."""
    options, allows_floats = _options(report), _allows_floats(report)
    floats = " --allow-float" if allows_floats is False else ""
    found = [f"--keep {name!r}{floats}  (it costs the most)" for name, _ in report.error.worst[:1]]
    if bound is None:
        found.append(f"--guard {guard.WARN_DB:g}{floats}  (keeps as few layers in float as reach that many dB)")
    if _bits(options.get("weights")) < 8:
        found.append(f"--weights int8  (now {options['weights']})")
    if allows_floats is not None and _bits(options.get("activations")) < 8:
        found.append(f"--activations uint8  (now {options['activations']})")
    if allows_floats is None and _bits(options.get("activations")) <= 8:
        found.append(f"--activations uint16  (now {options['activations']}; slower)")
    if options.get("ranges") == "minmax":
        found.append("-O1  (searches the ranges of activations, corrects biases)")
    if report.samples < FEW_SAMPLES:
        found.append(f"more samples  (now {report.samples})")
    return found


def _options(report: Report) -> dict[str, str | None]:
    """The options of the pass that quantizes, as it ran."""
    step = next((step for step in pipeline.parse(report.passes) if step.name() == "insert-qdq"), None)
    return {name: getattr(step, name, None) for name in ("weights", "activations", "ranges")}


def _allows_floats(report: Report) -> bool | None:
    """Whether an integer form, which takes at most 8 bits, may leave operators in float; None for other forms."""
    found = [step for step in pipeline.parse(report.passes) if hasattr(step, "allow_float")]
    return bool(getattr(found[0], "allow_float", False)) if found else None


def _bits(kind: str | None) -> int:
    """The bits of a type's name; many where nothing is quantized to it."""
    digits = "".join(c for c in kind or "" if c.isdigit())
    return int(digits) if digits else 99


def weights_only(report: Report) -> bool:
    """Whether operators compute in float, with weights stored as integers."""
    return _quantizes(report) and _options(report)["activations"] is None


def _quantizes(report: Report) -> bool:
    """Whether the line had a pass that quantizes."""
    return any(step.name() == "insert-qdq" for step in pipeline.parse(report.passes))
