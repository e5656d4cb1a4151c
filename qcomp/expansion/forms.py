"""Values in channels-last memory order, next to the order of the file, each made where something first reads it.

Integer products run fast on rows of channels, so the operators between two convolutions hand over ``[N, *spatial, C]``,
or the same memory in another shape, and Transposes stand only where values enter and leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from qcomp import graph
from qcomp.errors import UnsupportedError
from qcomp.expansion.emitter import Emitter

Sizes = tuple[int | None, ...]


@dataclass
class _Form:
    """A value in channels-last memory order.

    Args:
        sizes: ``(C, *spatial)``, None where dynamic.
        latest: the value as made, in the shape ``made``, whose first dimension is N.
        first: the value in the order of the file; None where the graph does not hold it.
        shapes: what it was reshaped to.
    """

    sizes: Sizes
    latest: ir.Value
    made: tuple[int, ...]
    first: ir.Value | None
    shapes: dict[tuple[int, ...], ir.Value] = field(default_factory=dict)


class Forms:
    """The forms of every value of the graph; one a pass."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self._forms: dict[ir.Value, _Form] = {}

    def is_last(self, value: ir.Value) -> bool:
        """Whether the value exists channels-last already."""
        return value in self._forms

    def last(self, value: ir.Value) -> ir.Value:
        """``[N, *spatial, C]`` of a value with a known rank of 3 or more."""
        sizes = self._form(value).sizes
        return self.shaped(value, (*(s or 0 for s in sizes[1:]), sizes[0] or 0))

    def pixels(self, value: ir.Value) -> ir.Value:
        """``[N, pixels, C]``; all spatial sizes must be static."""
        channels, *spatial = self._form(value).sizes
        return self.shaped(value, (math.prod(s or 0 for s in spatial), channels or 0))

    def shaped(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The same memory in another shape ``[N, *shape]``.

        Raises:
            UnsupportedError: that shape is not static.
        """
        form = self._form(value)
        if shape not in form.shapes and 0 in shape:
            hint = "give the model's inputs fixed shapes"
            raise UnsupportedError(f"the shape of {value.name!r} is not known", where="expand-integer", hint=hint)
        if shape not in form.shapes:
            form.shapes[shape] = self.emitter.reshape(form.latest, (0, *shape), f"{value.name}_rows")
        return form.shapes[shape]

    def common_shape(self, values: Sequence[ir.Value]) -> tuple[int, ...]:
        """The shape behind N in which the first of the values that is channels-last was made."""
        return next(self._forms[v].made for v in values if v in self._forms)

    def define(self, old: ir.Value, new: ir.Value, made: Sequence[int]) -> None:
        """Let ``new`` stand for ``old``, channels-last.

        Args:
            made: the shape behind N; 0 where dynamic, and then no other shape is ever asked for.
        """
        channels_and_spatial = sizes_of(old)[1:]
        self._forms[old] = _Form(channels_and_spatial, new, tuple(made), None, {tuple(made): new})

    def first(self, value: ir.Value) -> ir.Value:
        """The value in the order of the file; from here on the graph reads it by its old name.

        An operator may read one value twice: for the value that was, the one that took its place is given again.
        """
        form = self._forms.get(value)
        if form is None:
            return value
        if form.first is None:
            form.first = new = self._to_first(form, f"{value.name}_channels_first")
            graph.take_over(value, new)
            new.type = ir.TensorType(ir.DataType.UINT8)
            self._forms[new] = form
        return form.first

    def missing(self, values: Iterable[ir.Value]) -> list[ir.Value]:
        """Those of the values that exist channels-last only."""
        return [v for v in values if v in self._forms and self._forms[v].first is None]

    def _form(self, value: ir.Value) -> _Form:
        form = self._forms.get(value)
        if form is None:
            form = self._forms[value] = self._from_first(value)
        return form

    def _from_first(self, value: ir.Value) -> _Form:
        sizes = sizes_of(value)[1:]
        shape = (*(s or 0 for s in sizes[1:]), sizes[0] or 0)
        name = f"{value.name}_channels_last"
        if all(s == 1 for s in sizes[1:]):
            made = self.emitter.reshape(value, (0, *shape), name)
        else:
            made = self.emitter.transpose(value, (0, *range(2, len(sizes) + 1), 1), name)
        return _Form(sizes, made, shape, value, {shape: made})

    def _to_first(self, form: _Form, name: str) -> ir.Value:
        channels, *spatial = form.sizes
        if all(s == 1 for s in spatial):
            return self.emitter.reshape(form.latest, (0, channels or 0, *(1 for _ in spatial)), name)
        rank = len(form.sizes) + 1
        shape = (*(s or 0 for s in spatial), channels or 0)
        if shape not in form.shapes:
            form.shapes[shape] = self.emitter.reshape(form.latest, (0, *shape), f"{name}_rows")
        return self.emitter.transpose(form.shapes[shape], (0, rank - 1, *range(1, rank - 1)), name)


def sizes_of(value: ir.Value) -> Sizes:
    """The shape of a value whose rank is known."""
    shape = graph.static_shape(value)
    assert shape is not None
    return shape
