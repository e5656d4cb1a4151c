"""Passes, the lines they are written in, and the loop that runs and verifies them.

A line of passes is text such as ``fold-batchnorm,insert-qdq{weights=int4 ranges=mse}``: names of files in
``passes/``, each with the fields of its dataclass as options; several values are ``keep=Softmax|"a name with spaces"``.
``-O0`` to ``-O3`` are such lines.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph, registry
from qcomp.calibration.observers import Observation, Statistics
from qcomp.errors import OptionError, PassError, QcompError, unknown

logger = logging.getLogger(__name__)

_FLOAT_REWRITES = (
    "clean-up,fuse-layer-norm,fuse-activations,fold-gemm,fold-batchnorm,fold-affine,fold-pad,lower-average-pool"
    ",lower-conv-transpose"
)
_LEARNED = (
    f"{_FLOAT_REWRITES},equalize{{per_channel=true}},reparameterize-scales{{inputs=true}},choose-precision"
    ",insert-qdq{ranges=mse},round-weights"
)
PRESETS = {
    0: f"{_FLOAT_REWRITES},choose-precision,insert-qdq{{ranges=minmax}},round-weights",
    1: f"{_FLOAT_REWRITES},choose-precision,insert-qdq{{ranges=mse}},round-weights,correct-bias",
    2: f"{_LEARNED}{{method=learned}}",
    3: f"{_LEARNED}{{method=learned samples=1024 positions=256}}",
}
_SPEC = re.compile(r'\s*([A-Za-z0-9_-]+)\s*(?:\{((?:[^{}"]|"[^"]*")*)\})?\s*(?:,|$)')
_OPTION = re.compile(r'(?:[^\s"]|"[^"]*")+')
_PART = re.compile(r'"([^"]*)"|([^|"]+)')
_PLAIN = re.compile(r'[^\s{}|"]+')


@dataclass(frozen=True)
class Pass:
    """One rewrite of the graph. Its fields are its options, on the command line and in Python."""

    tolerance: ClassVar[float | None] = 1e-5
    """How far outputs may move, relative to their largest magnitude, beside float32's own rounding in each operator;
    None: numbers change on purpose."""
    moves_values: ClassVar[bool] = False
    """Whether the pass changes what inner values hold, so that later passes need statistics of their own."""

    @classmethod
    def name(cls) -> str:
        """The name on the command line: the file's."""
        return cls.__module__.rsplit(".", 1)[-1].replace("_", "-")

    def observe(self, model: ir.Model) -> Iterable[Observation]:
        """The statistics this pass reads, on the model as it is before the first pass that reads any."""
        return ()

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        """Rewrite the model in place, in one walk; say whether anything changed."""
        raise NotImplementedError

    def __str__(self) -> str:
        changed = [
            f"{f.name}={written(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name() + (f"{{{' '.join(changed)}}}" if changed else "")


@dataclass(frozen=True)
class Hooks:
    """What the driver does around every pass; each may be None."""

    calibrate: Callable[[ir.Model, Sequence[Observation]], Statistics] | None = None
    outputs: Callable[[ir.Model], dict[str, Any]] | None = None
    """Runs sample inputs: turns on numerical verification (``--verify``)."""
    dump: Callable[[int, str, ir.Model], None] | None = None
    start: int = 0
    """How many passes ran before these, for the numbers of dumped files."""


def preset(level: int) -> str:
    """The line of passes of ``-O<level>``."""
    if level not in PRESETS:
        raise OptionError(f"unknown optimization level -O{level}", hint="known: -O0, -O1, -O2, -O3")
    return PRESETS[level]


def parse(line: str) -> list[Pass]:
    """Passes from a line such as ``"fold-batchnorm,insert-qdq{weights=int4}"``.

    Raises:
        OptionError: malformed text, an unknown pass, an unknown option, or a value of the wrong type.
    """
    return [_build("passes", name, options) for name, options in split_specs(line)]


def split_specs(line: str) -> list[tuple[str, str]]:
    """The ``(name, options)`` pairs of a line of specs ``name{key=value key=value},name,...``."""
    specs, position = [], 0
    while position < len(line):
        match = _SPEC.match(line, position)
        if match is None:
            raise OptionError(
                f"cannot read {line[position:]!r}",
                where=line,
                hint="write name{key=value key=value},name,...",
            )
        specs.append((match[1], match[2] or ""))
        position = match.end()
    return specs


def parse_backend(spec: str) -> Any:
    """A backend from ``name`` or ``name{key=value}``.

    Raises:
        OptionError: as `parse`.
    """
    specs = split_specs(spec)
    if len(specs) != 1:
        raise OptionError("one backend is needed", where=repr(spec), hint="write name{key=value key=value}")
    return _build("backends", *specs[0])


def override(passes: Iterable[Pass], **options: Any) -> list[Pass]:
    """The passes with every option that is not None set wherever a pass has a field of that name.

    Raises:
        OptionError: no pass of the line has the option, so that it would be ignored.
    """
    line = list(passes)
    for key, value in options.items():
        if value is None:
            continue
        having = [i for i, p in enumerate(line) if key in {f.name for f in dataclasses.fields(p)}]
        if not having:
            raise OptionError(f"no pass of this line has the option {key!r}", where=", ".join(map(str, line)))
        for i in having:
            line[i] = _replace(line[i], key, value)
    return line


def run(
    model: ir.Model,
    passes: Sequence[Pass],
    hooks: Hooks = Hooks(),
    stats: Statistics | None = None,
) -> Statistics:
    """Run the passes in order, verifying the graph after each one.

    Statistics are collected once: before the first pass that observes anything or changes numbers on purpose, for it
    and all later ones; and once more behind a pass that moves values. Those that are given serve instead.

    Raises:
        PassError: a pass left an invalid graph, or moved the outputs further than its tolerance.
    """
    stats = stats or Statistics()
    if hooks.dump and hooks.start == 0:
        hooks.dump(0, "input", model)
    reference = hooks.outputs(model) if hooks.outputs else None
    for index, step in enumerate(passes):
        stats = _collect(model, passes[index:], stats, hooks)
        start = time.perf_counter()
        changed = step.run(model, stats)
        stats = Statistics() if step.moves_values else stats
        _verify(model, step)
        logger.info(
            "%s: %s, %.0f ms",
            step,
            "changed" if changed else "nothing to do",
            1e3 * (time.perf_counter() - start),
        )
        if hooks.outputs and changed:
            now = hooks.outputs(model)
            _hold_to_tolerance(step, _allowed(step, model), reference or {}, now)
            reference = now
        if hooks.dump:
            hooks.dump(hooks.start + index + 1, step.name(), model)
    return stats


def _collect(model: ir.Model, passes: Sequence[Pass], stats: Statistics, hooks: Hooks) -> Statistics:
    """The statistics for the passes up to the next that moves values, where it is time to collect any."""
    if stats.collected or hooks.calibrate is None:
        return stats
    if passes[0].tolerance is not None and not any(True for _ in passes[0].observe(model)):
        return stats
    last = next((i for i, step in enumerate(passes) if step.moves_values), len(passes))
    wanted = dict.fromkeys(observation for step in passes[: last + 1] for observation in step.observe(model))
    return hooks.calibrate(model, list(wanted)) if wanted else stats


def _verify(model: ir.Model, step: Pass) -> None:
    try:
        graph.verify(model)
    except QcompError as error:
        raise PassError(f"the pass {step} left an invalid graph: {error}", hint="this is a bug of the pass") from error


def _allowed(step: Pass, model: ir.Model) -> float | None:
    """The tolerance of a pass, and what float32 may lose anew in each operator where numbers are computed otherwise."""
    if not step.tolerance:
        return step.tolerance
    return step.tolerance + float(np.finfo(np.float32).eps) * len(model.graph)


def _hold_to_tolerance(step: Pass, allowed: float | None, before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, old in before.items():
        broken, new = "", after.get(name)
        if new is None:
            broken = f"lost the output {name!r}"
        elif new.shape != old.shape:
            broken = f"gave the output {name!r} the shape {new.shape}, not {old.shape}"
        elif allowed is not None and not (moved := _moved(old, new)) <= allowed:
            broken = f"moved the output {name!r} by {moved:.2g} of its largest value, more than its tolerance "
            broken += f"{step.tolerance:.0e}"
        if broken:
            raise PassError(f"the pass {step} {broken}", hint="leave it out with --passes, and report the model")


def _moved(old: Any, new: Any) -> float:
    """The largest difference, relative to the largest magnitude; what is no number is equal or infinitely far."""
    same = old == new
    try:
        old, new = old.astype("f8"), new.astype("f8")
    except ValueError:
        return 0.0 if same.all() else float("inf")
    same |= np.isnan(old) & np.isnan(new)
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, abs(new - old)).max(initial=0.0)
    return float(difference / abs(old[np.isfinite(old)]).max(initial=1e-30))


def _build(kind: str, name: str, options: str) -> Any:
    built, seen = registry.find(kind, name)(), set[str]()
    for item in _OPTION.findall(options):
        key, separator, value = item.partition("=")
        if not separator:
            raise OptionError(f"cannot read the option {item!r}", where=name, hint="write key=value")
        if key in seen:
            raise OptionError(f"the option {key!r} is given twice", where=name, hint="write it once")
        seen.add(key)
        built = _replace(built, key, value)
    return built


def _replace(built: Any, key: str, value: Any) -> Any:
    """The frozen dataclass with one field set; text is converted to the field's type."""
    hints = typing.get_type_hints(type(built))
    fields = tuple(f.name for f in dataclasses.fields(built))
    if key not in fields:
        label = built.name()
        if not fields:
            raise OptionError(f"unknown option {key!r}", where=label, hint="it has no options")
        raise unknown("option", key, fields, where=label)
    converted = _convert(value, hints[key], f"{built.name()}{{{key}}}") if isinstance(value, str) else value
    return dataclasses.replace(built, **{key: converted})


def _convert(text: str, kind: Any, where: str) -> Any:
    """Text as a value of an annotated type: bool, int, float, str, Literal, tuples of str, optionals."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if text not in args:
            raise unknown("value", text, args, where=where)
        return text
    if origin is tuple:
        return tuple(quoted or plain for quoted, plain in _PART.findall(text) if quoted or plain)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        return None if text == "none" else _convert(text, inner, where)
    if kind is str:
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if kind is bool:
        if text not in ("true", "false"):
            raise OptionError(f"{text!r} is not true or false", where=where)
        return text == "true"
    try:
        return kind(text)
    except (ValueError, TypeError) as error:
        raise OptionError(f"{text!r} is not of type {kind.__name__}", where=where) from error


def written(value: Any) -> str:
    """The value of an option as a line of passes has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "|".join(map(_quoted, value))
    return "none" if value is None else str(value)


def _quoted(pattern: str) -> str:
    """A pattern as one part of a value; a quote in it, which a line cannot hold, is left to match any character."""
    return pattern if _PLAIN.fullmatch(pattern) else f'"{pattern.replace(chr(34), "?")}"'
