"""Linear operators with constant weights as one thing: ``y = W x + b`` along a channel axis.

Conv, ConvTranspose, Gemm and MatMul differ in where the channels lie in the weights; `Linear` hides that. With
per-channel vectors ``s`` and ``t`` two identities carry every fold:

    output:  s * (W x + b) + t  =  (s * W) x + (s * b + t)        s, t over output channels
    input:   W (s * x + t) + b  =  (W * s) x + (W t + b)          s, t over input channels, no zero padding if t != 0

Everything is computed in float64 and rounded to float32 once. A weight that others read too is copied first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.graph import Array

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A Conv, ConvTranspose, Gemm or MatMul whose weights and bias are float32 constants."""

    node: ir.Node

    @classmethod
    def match(cls, node: ir.Node | None) -> Linear | None:
        """The node as a linear operator, or None where its weights or its bias are not constant."""
        if node is None or not graph.is_op(node, *KINDS) or len(node.inputs) < 2:
            return None
        data, weight = node.inputs[0], graph.constant_tensor(node.inputs[1])
        if data is None or weight is None or weight.dtype != ir.DataType.FLOAT or len(weight.shape) < 2:
            return None
        found = cls(node)
        if node.op_type == "Gemm" and len(weight.shape) != 2:
            return None
        if found.bias is not None and graph.constant_tensor(found.bias) is None:
            return None
        return found if found._fits_together() else None

    def _fits_together(self) -> bool:
        """Whether weights, groups and bias agree, as they do not in every file."""
        if not self._is_convolution():
            return True
        if self.groups < 1 or 0 in self.weight_shape or self.weight_shape[0] % self.groups:
            return False
        return self.bias is None or graph.static_shape(self.bias) == (self.channels,)

    @property
    def kind(self) -> str:
        """The operator type."""
        return self.node.op_type

    @property
    def bias(self) -> ir.Value | None:
        """The third input, where there is one."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def weight(self) -> Array:
        """The weights as they are stored, float32."""
        array = graph.constant(self.node.inputs[1])
        assert array is not None
        return array

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Their shape, without loading them."""
        tensor = graph.constant_tensor(self.node.inputs[1])
        assert tensor is not None
        return graph.shape_of(tensor)

    @property
    def groups(self) -> int:
        """The groups of a convolution; 1 otherwise."""
        return int(graph.attribute(self.node, "group", 1))

    @property
    def channels(self) -> int:
        """The number of output channels."""
        return self._channels_along(self._output_axis)

    @property
    def input_channels(self) -> int:
        """The number of input channels."""
        return self._channels_along(self._input_axis)

    def output_channel_axis(self) -> int | None:
        """The axis of the output that holds the channels, from its front; None where the rank is unknown."""
        return self._channel_axis(self.node.outputs[0])

    def input_channel_axis(self) -> int | None:
        """The axis of the input that holds the channels, from its front; None where the rank is unknown."""
        if self.kind == "Gemm" and graph.attribute(self.node, "transA", 0):
            return 0
        return self._channel_axis(self.node.inputs[0])

    def can_shift_output(self) -> bool:
        """Whether there is a place for a bias: a MatMul needs two matrices, to become a Gemm."""
        return self.kind != "MatMul" or self._is_matrix_product()

    def can_shift_input(self) -> bool:
        """Whether a constant added to the input reaches every output alike: nothing is padded with zeros."""
        if self.kind == "Conv":
            pads = graph.attribute(self.node, "pads", ())
            auto = graph.attribute(self.node, "auto_pad", "NOTSET")
            return auto == "VALID" or (auto == "NOTSET" and not any(pads))
        return self.kind != "ConvTranspose" and self.can_shift_output()

    def affine_output(self, names: graph.Names, scale: Array, shift: Array) -> bool:
        """Let the operator yield ``scale * y + shift``; False, and nothing changed, where that is not finite.

        Args:
            names: the pass's.
            scale, shift: float64, ``(channels,)`` or with one element. Without `can_shift_output`, all shifts are 0.
        """
        vector = np.broadcast_to(scale, (self.channels,))
        weight = self._scaled(vector, self._output_axis)
        bias = self._bias64() * vector + np.broadcast_to(shift, (self.channels,))
        return self._store(names, weight, bias)

    def affine_input(self, names: graph.Names, scale: Array, shift: Array) -> bool:
        """Let the operator read ``x`` where it read ``scale * x + shift``; False where that is not finite.

        Args:
            names: the pass's.
            scale, shift: float64, ``(input_channels,)`` or with one element. Without `can_shift_input`, shifts are 0.
        """
        size = (self.input_channels,)
        weight = self._scaled(np.broadcast_to(scale, size), self._input_axis)
        bias = self._bias64()
        if np.any(shift):
            bias = bias + self._product(np.broadcast_to(shift, size))
        return self._store(names, weight, bias)

    def magnitudes(self) -> Array:
        """The largest weight between two channels, by magnitude: float32 ``(groups, outputs, inputs)`` of a group."""
        weight: Array = np.abs(self.weight)
        if not self._is_convolution():
            weight = weight.max(axis=tuple(range(weight.ndim - 2)))[None]
        else:
            weight = weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])
            weight = weight.max(axis=tuple(range(3, weight.ndim)))
        first = self._output_axis - (0 if self._is_convolution() else len(self.weight_shape) - 2)
        return weight if first == 0 else weight.transpose(0, 2, 1)

    @property
    def _output_axis(self) -> int:
        """The axis of the weights, in groups, that holds the output channels of a group."""
        if self.kind == "Gemm":
            return 0 if graph.attribute(self.node, "transB", 0) else 1
        return {"Conv": 0, "ConvTranspose": 1}.get(self.kind, len(self.weight_shape) - 1)

    @property
    def _input_axis(self) -> int:
        """The axis of the weights, in groups, that holds the input channels of a group."""
        if self.kind == "MatMul":
            return len(self.weight_shape) - 2
        return 1 - self._output_axis

    def _channels_along(self, axis: int) -> int:
        """Stored weights have every group's channels on axis 0, and one group's on axis 1."""
        return self.weight_shape[axis] * (self.groups if axis == 1 and self._is_convolution() else 1)

    def _is_convolution(self) -> bool:
        return self.kind in ("Conv", "ConvTranspose")

    def _is_matrix_product(self) -> bool:
        return graph.rank(self.node.inputs[0]) == 2 and len(self.weight_shape) == 2

    def _channel_axis(self, value: ir.Value | None) -> int | None:
        if self.kind != "MatMul":
            return 1
        rank = graph.rank(value)
        return rank - 1 if rank is not None and rank >= 2 else None

    def _grouped(self) -> Array:
        """The weights in float64 with the groups on an axis of their own in front, for convolutions."""
        weight = self.weight.astype(np.float64)
        if not self._is_convolution():
            return weight
        return weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])

    def _along(self, vector: Array, axis: int) -> Array:
        """The vector shaped to broadcast against `_grouped` along an axis of a group's weights."""
        if not self._is_convolution():
            return vector.reshape(-1, *(1,) * (len(self.weight_shape) - axis - 1))
        return vector.reshape(self.groups, *(1,) * axis, -1, *(1,) * (len(self.weight_shape) - axis - 1))

    def _scaled(self, vector: Array, axis: int) -> Array:
        return np.asarray((self._grouped() * self._along(vector, axis)).reshape(self.weight_shape))

    def _product(self, vector: Array) -> Array:
        """``W t``: what a constant input yields without padding, ``(channels,)``."""
        products = self._grouped() * self._along(vector, self._input_axis)
        kept = (0, 1 + self._output_axis) if self._is_convolution() else (self._output_axis,)
        summed = products.sum(axis=tuple(a for a in range(products.ndim) if a not in kept)).reshape(-1)
        return np.asarray(summed * self._alpha())

    def _alpha(self) -> float:
        return float(graph.attribute(self.node, "alpha", 1.0)) if self.kind == "Gemm" else 1.0

    def _bias64(self) -> Array:
        """The bias with Gemm's beta in it: ``(channels,)``, or ``(rows, channels)`` where it differs by row."""
        bias = graph.constant(self.bias)
        if bias is None:
            return np.zeros(self.channels)
        beta = float(graph.attribute(self.node, "beta", 1.0)) if self.kind == "Gemm" else 1.0
        full = np.broadcast_to(bias.astype(np.float64) * beta, np.broadcast_shapes(bias.shape, (self.channels,)))
        return full.reshape(-1) if full.ndim == 2 and full.shape[0] == 1 else full

    def _store(self, names: graph.Names, weight: Array, bias: Array) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            weight32, bias32 = weight.astype(np.float32), bias.astype(np.float32)
        if not (np.isfinite(weight32).all() and np.isfinite(bias32).all()):
            return False
        graph.set_constant(self.node, 1, weight32, names, "weight")
        if self.bias is not None or np.any(bias32):
            self._store_bias(bias32, names)
        return True

    def _store_bias(self, bias: Array, names: graph.Names) -> None:
        if self.kind == "MatMul":
            self.node.op_type = "Gemm"
        if self.kind == "Gemm":
            self.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        graph.set_constant(self.node, 2, bias, names, "bias")
