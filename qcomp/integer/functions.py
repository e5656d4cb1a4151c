"""The operators of the domain ``qcomp`` as ONNX functions: standard integer operators inside, and no float.

A model carries the bodies of the functions that it calls, so that any ONNX runtime runs it. What each computes, bit
for bit, is defined in NumPy: `requantize`, `tables`, `softmax`, `layer_norm` and `mean` of this package, which also
make the constants that a function reads, in its order. The bounds that keep every integer in its type stand there.

ONNX shifts unsigned integers alone, and divides towards zero: what is shifted or divided here is never negative.
Min, Max and Clip of int64 are not used: ONNX Runtime's are wrong for some values on x86 (microsoft/onnxruntime#25280).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnxscript import INT32, INT64, UINT8, UINT64, script
from onnxscript import opset21 as op
from onnxscript.values import Opset

from qcomp import graph, upgrade
from qcomp.errors import UnsupportedError, unknown

DOMAIN = "qcomp"
VERSION = 1
OLDEST_OPSET = 18
"""The first with BitwiseAnd, and ReduceMax with its axes as an input."""
POWERS_OF_FOUR = [4**i for i in range(31)]


def integer_function(body: Callable[..., Any]) -> Any:
    """An ONNX function of the domain ``qcomp``, written with onnxscript."""
    return script(Opset(DOMAIN, VERSION), default_opset=op)(body)


@integer_function
def PowerOfTwo(exponent: UINT64[...]) -> INT64[...]:
    """``2**exponent``, for exponents up to 62."""
    one = op.Cast(op.Constant(value_int=1), to=TensorProto.UINT64)
    return op.Cast(op.BitShift(one, exponent, direction="LEFT"), to=TensorProto.INT64)


@integer_function
def ShiftRight(value: INT64[...], shift: UINT64) -> UINT8[...]:
    """``clamp(floor(value / 2**shift), 0, 255)``."""
    zero = op.Constant(value_int=0)
    positive = op.Cast(op.Where(value < zero, zero, value), to=TensorProto.UINT64)
    largest = op.Cast(op.Constant(value_int=255), to=TensorProto.UINT64)
    return op.Cast(op.Min(op.BitShift(positive, shift, direction="RIGHT"), largest), to=TensorProto.UINT8)


@integer_function
def Requantize(accumulator: INT32[...], multiplier: INT64[...], shift: UINT64, zero_point: UINT8) -> UINT8[...]:
    """``clamp(round_half_even(accumulator * multiplier / 2**shift) + zero_point, 0, 255)``."""
    one = op.Constant(value_int=1)
    step = PowerOfTwo(shift)
    product = op.Cast(accumulator, to=TensorProto.INT64) * multiplier
    value = product + op.Cast(zero_point, to=TensorProto.INT64) * step
    below = op.Cast(ShiftRight(value, shift), to=TensorProto.INT64)
    odd = op.BitwiseAnd(below, one)
    almost_half = step / op.Constant(value_int=2) - one
    return ShiftRight(value + almost_half + odd, shift)


@integer_function
def Table(x: UINT8[...], table: UINT8[256]) -> UINT8[...]:
    """``table[x]``: any function of one variable, of 256 values."""
    return op.Gather(table, op.Cast(x, to=TensorProto.INT32))


@integer_function
def TableByElements(x: UINT8[...], table: UINT8[256]) -> UINT8[...]:
    """``table[x]``, by the operator for it that is fast in ONNX Runtime."""
    index = op.Reshape(op.Cast(x, to=TensorProto.INT32), op.Constant(value_ints=[-1]))
    return op.Reshape(op.GatherElements(table, index, axis=0), op.Shape(x))


@integer_function
def SquareRoot(value: INT64[...]) -> INT64[...]:
    """``floor(sqrt(value))``, exactly, for ``1 <= value < 2**62``.

    Newton's iteration falls from the power of two above the root, at most twice the root. What it is too large by, of
    the root itself, goes 1, 1/4, 1/40, 3e-4, 5e-8, 1e-15: five steps end at the floor of the root or one above it,
    which the last line takes off.
    """
    last = op.Constant(value_ints=[-1])
    reached = op.GreaterOrEqual(op.Unsqueeze(value, last), op.Constant(value_ints=POWERS_OF_FOUR))
    bits = op.ReduceSum(op.Cast(reached, to=TensorProto.INT64), last, keepdims=0)
    two = op.Constant(value_int=2)
    root = PowerOfTwo(op.Cast(bits, to=TensorProto.UINT64))
    root = (root + value / root) / two
    root = (root + value / root) / two
    root = (root + value / root) / two
    root = (root + value / root) / two
    root = (root + value / root) / two
    return root - op.Cast(root * root > value, to=TensorProto.INT64)


@integer_function
def Softmax(x: UINT8[...], table: INT64[256], numerator: INT64, shift: UINT64, axes: Sequence[int]) -> UINT8[...]:
    """Softmax over the axis: a table of exponentials, their sum, and one division a row."""
    dims = op.Constant(value_ints=axes)
    wide = op.Cast(x, to=TensorProto.INT32)
    exponential = Table(op.ReduceMax(wide, dims, keepdims=1) - wide, table)
    total = op.ReduceSum(exponential, dims, keepdims=1)
    factor = numerator / op.Cast(total, to=TensorProto.INT64)
    half = PowerOfTwo(shift) / op.Constant(value_int=2)
    return ShiftRight(op.Cast(exponential, to=TensorProto.INT64) * factor + half, shift)


@integer_function
def LayerNormalization(
    x: UINT8[...],
    gamma: INT64[...],
    beta: INT64[...],
    epsilon: INT64,
    count: INT32,
    scaling: INT64,
    numerator: INT64,
    shift: UINT64,
    axes: Sequence[int],
) -> UINT8[...]:
    """Layer normalization over the last axes: exact sums, an integer square root, and one division a row."""
    dims = op.Constant(value_ints=axes)
    wide = op.Cast(x, to=TensorProto.INT32)
    total = op.ReduceSum(wide, dims, keepdims=1)
    squares = op.ReduceSum(wide * wide, dims, keepdims=1)
    deviation = wide * count - total
    total_64 = op.Cast(total, to=TensorProto.INT64)
    variance = op.Cast(squares, to=TensorProto.INT64) * op.Cast(count, to=TensorProto.INT64) - total_64 * total_64
    factor = numerator / SquareRoot(variance * scaling + epsilon)
    return ShiftRight(op.Cast(deviation, to=TensorProto.INT64) * factor * gamma + beta, shift)


@integer_function
def ReduceMean(
    x: UINT8[...],
    offset: INT32,
    multiplier: INT64,
    shift: UINT64,
    zero_point: UINT8,
    axes: Sequence[int],
    keepdims: int = 1,
) -> UINT8[...]:
    """The mean over some axes: an integer sum, requantized by a factor that holds one over the count."""
    total = op.ReduceSum(op.Cast(x, to=TensorProto.INT32), op.Constant(value_ints=axes), keepdims=keepdims)
    return Requantize(total - offset, multiplier, shift, zero_point)


FUNCTIONS: dict[str, Any] = {
    f.name: f for f in (PowerOfTwo, ShiftRight, Requantize, Table, SquareRoot, Softmax, LayerNormalization, ReduceMean)
}
FAST: dict[str, Any] = {"Table": TableByElements}
"""Bodies that are faster in ONNX Runtime, of the same name and meaning."""


def attach(model: ir.Model, names: Iterable[str], *, fast: bool = False) -> None:
    """Give a model the bodies of these functions and of those they call, and the import of the domain.

    Args:
        model: of opset 18 or newer; the bodies take its opset.
        names: of `FUNCTIONS`; a body that is there gives way.
        fast: let Table use GatherElements, 8 times as fast as Gather in ONNX Runtime, but beyond what
            ``onnx.reference`` runs (its GatherElements knows tables of at most 64 entries) and infers shapes of
            without ``data_prop``.

    Raises:
        OptionError: an unknown function.
        UnsupportedError: the model is of an older opset.
    """
    version = upgrade.opset(model)
    if version < OLDEST_OPSET:
        what = f"opset {version} has no BitwiseAnd"
        raise UnsupportedError(what, where="integer functions", hint=f"export it with opset {OLDEST_OPSET} or newer")
    model.graph.opset_imports[DOMAIN] = VERSION
    for needed in dict.fromkeys(f for name in names for f in _with_callees(name)):
        function = ir.from_proto(_proto(needed, fast))
        function.opset_imports[""] = version
        model.functions[function.identifier()] = function


def _with_callees(name: str) -> Iterator[str]:
    """The functions that a function calls, callees first, and itself: the order in which readers define them."""
    if name not in FUNCTIONS:
        raise unknown("integer function", name, FUNCTIONS)
    for node in _proto(name, False).node:
        if node.domain == DOMAIN:
            yield from _with_callees(node.op_type)
    yield name


@functools.cache
def _proto(name: str, fast: bool) -> onnx.FunctionProto:
    """The function as onnxscript writes it, without its types: Softmax and Table take several."""
    proto: onnx.FunctionProto = (FAST if fast else {}).get(name, FUNCTIONS[name]).to_function_proto()
    proto.name = name
    del proto.value_info[:]
    return proto


def called(model: ir.Model) -> list[str]:
    """The functions of this domain that the model's graph calls."""
    return list(dict.fromkeys(n.op_type for n in model.graph if n.domain == DOMAIN and n.op_type in FUNCTIONS))


def use_plain_bodies(model: ir.Model) -> bool:
    """Replace bodies that `attach` made ``fast``, which onnx.reference cannot run; say whether there were any."""
    fast = [f for (domain, name, _), f in model.functions.items() if domain == DOMAIN and name in FAST]
    if not any(graph.is_op(node, "GatherElements") for function in fast for node in function):
        return False
    attach(model, called(model))
    return True


def detach_uncalled(model: ir.Model) -> None:
    """Remove the bodies of this domain that neither the graph nor another body calls any more."""
    needed = {callee for name in called(model) for callee in _with_callees(name)}
    for key in [key for key in model.functions if key[0] == DOMAIN and key[1] not in needed]:
        del model.functions[key]
    if not needed:
        model.graph.opset_imports.pop(DOMAIN, None)
