"""A model under construction: a tape of nodes with scoped names, and a source of weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from qcomp.errors import ModelError

Array = NDArray[np.float32]
Init = Callable[[np.random.Generator, Sequence[int]], Array]
Dims = Sequence[int | str]
Attribute = int | float | str | Sequence[int]

OPSET = 21
IR_VERSION = 10


class Net:
    """Collects the nodes and weights of one model.

    A weight comes from `weights` under its full name, or, when there is no mapping, from its initializer and
    the generator of `seed`; so the same builder makes random and trained models. Names follow the scopes: in
    ``net.scope("layer1.0")`` a Conv is the node ``layer1.0/Conv`` and a weight ``layer1.0.weight``.

    Args:
        name: name of the graph.
        seed: of the random weights.
        weights: trained weights by full name, float32; extra entries are ignored.
    """

    def __init__(self, name: str, *, seed: int = 0, weights: Mapping[str, Array] | None = None) -> None:
        self._name = name
        self._rng = np.random.default_rng(seed)
        self._weights = weights
        self._tape = ir.tape.Tape()
        self._inputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}
        self._path: list[str] = []
        self._used: Counter[str] = Counter()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything made inside with `name`."""
        self._path.append(name)
        yield
        self._path.pop()

    def input(self, name: str, shape: Dims, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Declare an input of the model; a dimension is a number or a symbol such as 'N'."""
        value = ir.val(name, dtype=dtype, shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """Append a node of the standard domain and return its one output."""
        name = self._unique("/".join([".".join(self._path), op_type]).lstrip("/"))
        value = self._tape.op(op_type, inputs, attributes, name=name)
        value.name = name
        return value

    def weight(self, name: str, shape: Sequence[int], init: Init, *, transposed: bool = False) -> ir.Value:
        """Make a trainable float32 initializer of `shape`.

        With `transposed` the matrix is stored transposed: ``[out, in]`` weights as MatMul's ``[in, out]``.
        """
        full = ".".join([*self._path, name])
        array = self._lookup(full, shape) if self._weights is not None else init(self._rng, shape)
        stored = np.ascontiguousarray(array.T if transposed else array, dtype=np.float32)
        return self._tape.initializer(ir.tensor(stored, name=full))

    def constant(self, value: float | Sequence[int]) -> ir.Value:
        """Return the initializer of a float32 scalar or of an int64 vector, shared by all its users."""
        array = np.float32(value) if isinstance(value, (int, float)) else np.array(value, np.int64)
        name = "const_" + "_".join(str(number) for number in np.atleast_1d(array).tolist())
        if name not in self._constants:
            self._constants[name] = self._tape.initializer(ir.tensor(np.asarray(array), name=name))
        return self._constants[name]

    def model(self, output: ir.Value, name: str, shape: Dims) -> ir.Model:
        """Finish: the model whose only output is `output`, float32, under `name`, with inferred shapes."""
        output.name, output.dtype, output.shape = name, ir.DataType.FLOAT, ir.Shape(shape)
        graph = ir.Graph(
            inputs=self._inputs,
            outputs=[output],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET},
            name=self._name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="qcomp")
        return ShapeInferencePass()(model).model

    def _unique(self, name: str) -> str:
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}_{self._used[name]}"

    def _lookup(self, name: str, shape: Sequence[int]) -> Array:
        assert self._weights is not None
        if name not in self._weights:
            raise ModelError("no trained weight of this name", where=name, hint="compare the builder's names")
        array = self._weights[name]
        if array.shape != tuple(shape):
            raise ModelError(f"trained weight is {array.shape}, the layer needs {tuple(shape)}", where=name)
        return array
