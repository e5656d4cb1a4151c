"""A linear operator that reads what was scaled and shifted, and undoes it in its constants.

It reads ``x`` where it read ``s x + t``:  ``W (s x + t) + b = (W s) x + (W t + b)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph, units
from qcomp.graph import Array
from qcomp.linear import Linear

MARK = "qcomp.reparameterized"
"""Metadata of an operator whose input was scaled: the statistics are old, and a second run leaves it alone."""
LARGE = 1e30
"""Larger constants may overflow when they are scaled."""


@dataclass(frozen=True)
class Consumer:
    """A linear operator whose first input is scaled."""

    linear: Linear

    @classmethod
    def match(cls, node: ir.Node, index: int, home: ir.Graph) -> Consumer | None:
        """The reader as one that can undo a scale, or None."""
        linear = Linear.match(node) if node.graph is home and index == 0 else None
        if linear is None or linear.groups != 1 or 0 in linear.weight_shape:
            return None
        constants = [graph.constant(v) for v in node.inputs[1:]]
        fits = all(a is None or (a.dtype == np.float32 and np.abs(a).max(initial=0.0) < LARGE) for a in constants)
        return cls(linear) if fits and (linear.kind != "MatMul" or len(linear.weight_shape) == 2) else None

    @property
    def shifts(self) -> bool:
        """Whether a shift can be undone: in the bias, in an Add behind it, or in a new one."""
        if self.linear.kind != "MatMul" or self.linear.can_shift_input():
            return self.linear.can_shift_input()
        return units.bias_add(self.linear.node) is not None or not self.linear.node.outputs[0].is_graph_output()

    def undo(self, names: graph.Names, scale: Array, shift: Array) -> None:
        """Read ``x`` where ``scale * x + shift`` was read; float64 ``(channels,)`` each."""
        self.linear.node.metadata_props[MARK] = "true"
        if not np.any(shift) or self.linear.can_shift_input():
            self.linear.affine_input(names, scale, shift)
            return
        constant = shift @ self.linear.weight.astype(np.float64)
        self.linear.affine_input(names, scale, np.zeros(1))
        self._add(names, constant)

    def weights(self) -> Array:
        """The weights, float32 ``(input channels, output channels, positions)``."""
        weight, kind = self.linear.weight, self.linear.kind
        inputs_first = kind in ("MatMul", "ConvTranspose") or self._is_untransposed_gemm()
        swapped = weight if inputs_first else np.swapaxes(weight, 0, 1)
        return swapped.reshape(*swapped.shape[:2], -1)

    def _is_untransposed_gemm(self) -> bool:
        return self.linear.kind == "Gemm" and not graph.attribute(self.linear.node, "transB", 0)

    def _add(self, names: graph.Names, constant: Array) -> None:
        """Add a vector to what a MatMul gives: in the Add of its bias, or in a new one."""
        product = self.linear.node.outputs[0]
        add = units.bias_add(self.linear.node)
        if add is not None:
            index = 1 if add.inputs[0] is product else 0
            old = graph.constant(add.inputs[index])
            assert old is not None
            graph.set_constant(add, index, (old + constant).astype(np.float32), names, "bias")
            return
        home = graph.main_graph(self.linear.node)
        bias = graph.initializer(home, names, f"{product.name}_bias", constant.astype(np.float32))
        result = ir.Value(name=names.fresh(f"{product.name}_shifted"), shape=product.shape, type=product.type)
        new = ir.Node("", "Add", [product, bias], outputs=[result], name=f"{self.linear.node.name}_add")
        home.insert_after(self.linear.node, new)
        graph.redirect(product, result, keep=[new])
