"""Random layers that have an integer form, added to a small float model one after the other.

Each operator is computed on the calibration samples as it is added, so that its shape and range are known to the next.
A layer is a function ``(generator, name of its input) -> name of its result``.

`tests/conftest.py` puts this folder on the path: ``import random_layers``.
"""

from __future__ import annotations

import integer_oracle as oracle
import numpy as np
import small_graphs as small
from protos import on_ort

LARGEST = 9e3
"""Of a constant; larger ones are taken for masks."""


class Generator:
    """A `small_graphs.Builder` that knows the value of everything on the calibration samples."""

    def __init__(self, seed: int) -> None:
        self.b = small.Builder(seed)
        self.rng = self.b.rng
        self.arrays: dict[str, np.ndarray] = {}
        self.sized = True
        """Whether the sizes of images are static."""

    def constant(self, array) -> str:
        array = np.asarray(array)
        array = np.asarray(np.clip(array, -LARGEST, LARGEST), "f4") if array.dtype == "f8" else array
        name = self.b.constant(array)
        self.arrays[name] = array
        return name

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        return self.ops(kind, *inputs, count=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, count: int, **attributes) -> list[str]:
        names = [f"{kind.lower()}{len(self.b.nodes)}_{i}" for i in range(count)]
        self.b.ops(kind, *inputs, names=names, **attributes)
        model, feeds = oracle.alone(self.b.nodes[-1], [self.arrays[name] if name else None for name in inputs])
        self.arrays.update(zip(names, on_ort(model.SerializeToString(), feeds), strict=True))
        return names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def reach(self, name: str) -> float:
        """The largest magnitude, not 0."""
        return float(np.abs(self.arrays[name]).max(initial=0)) or 1.0

    def span(self, name: str) -> float:
        return float(np.ptp(self.arrays[name]))

    def varies(self, name: str) -> bool:
        """Whether it is more than a constant with some noise."""
        return self.span(name) > 0.05 * self.reach(name)

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def picks(self, count: int, *choices) -> list:
        return [self.pick(*choices) for _ in range(count)]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def magnitude(self, decades: float) -> float:
        return float(10 ** self.rng.uniform(-decades, decades))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def weight(self, *shape: int, axis: int = 0) -> np.ndarray:
        """Of any magnitude; with channels of very different magnitudes, a nearly dead one, or one enormous weight."""
        array = self.normal(*shape) * self.magnitude(1.5) / max(np.prod(shape) // shape[axis], 1) ** 0.5
        channels = np.moveaxis(array, axis, 0)
        kind = self.pick("plain", "plain", "uneven", "dead", "enormous")
        if kind == "uneven":
            channels *= 10 ** self.rng.uniform(-2, 1, (shape[axis], *(1,) * (array.ndim - 1)))
        elif kind == "dead":
            channels[self.rng.integers(shape[axis])] *= self.pick(0.0, 1e-9, 1e-5, 1e-3)
        elif kind == "enormous":
            array.flat[self.rng.integers(array.size)] *= self.magnitude(1) * 100
        return array

    def bias(self, channels: int, reach: float) -> list[str]:
        """For results of that reach; none half of the time."""
        return [self.constant(self.normal(channels) * reach * self.magnitude(1.5))] if self.chance(0.5) else []


def clamp(g: Generator, x: str) -> str:
    """Relu, Clip or nothing behind what computes."""
    kind = g.pick("nothing", "nothing", "relu", "relu6", "clip")
    if kind == "relu":
        return g.op("Relu", x)
    bounds = {"relu6": (0.0, 6.0), "clip": (-g.reach(x) * g.pick(0, 0.3), g.reach(x) * g.pick(0.5, 2))}.get(kind)
    return x if bounds is None else g.op("Clip", x, *(g.constant(bound) for bound in bounds))


# Images, [N, C, *sizes] of one or two sizes.


def window(g: Generator, x: str, *kernels: int) -> dict[str, list[int]]:
    """Kernel, strides, pads and dilations that fit."""
    sizes = g.shape(x)[2:]
    kernel, pads = g.picks(len(sizes), *kernels), g.picks(2 * len(sizes), 0, 0, 1)
    dilations, strides = g.picks(len(sizes), 1, 1, 2), g.picks(len(sizes), 1, 1, 2)
    kernel = [k if n >= (k - 1) * d + 1 else 1 for n, k, d in zip(sizes, kernel, dilations, strict=True)]
    pads = [min(p, k - 1) if max(kernels) > 1 else p for p, k in zip(pads, kernel * 2, strict=True)]
    return {"kernel_shape": kernel, "pads": pads, "dilations": dilations, "strides": strides}


def conv(g: Generator, x: str) -> str:
    channels = g.shape(x)[1]
    kind = g.pick("dense", "dense", "grouped", "depthwise", "pointwise")
    group = {"grouped": next((n for n in (2, 3) if channels % n == 0), 1), "depthwise": channels}.get(kind, 1)
    made = group * g.pick(1, 1, 2, 3) if group > 1 else g.pick(1, 3, 4, 6)
    attributes = window(g, x, *((1,) if kind == "pointwise" else (1, 2, 3, 3)))
    weight = g.weight(made, channels // group, *attributes["kernel_shape"])
    bias = g.bias(made, g.reach(x) * float(np.abs(weight).mean()))
    return clamp(g, g.op("Conv", x, g.constant(weight), *bias, group=group, **attributes))


def max_pool(g: Generator, x: str) -> str:
    if x.startswith("pad"):  # ONNX Runtime adds up the pads of both, of which none may be as large as the kernel
        return g.op("MaxPool", x, kernel_shape=[min(n, 2) for n in g.shape(x)[2:]])
    return g.op("MaxPool", x, **window(g, x, 2, 3))


def average_pool(g: Generator, x: str) -> str:
    return g.op("AveragePool", x, count_include_pad=1, **window(g, x, 2, 3))


def pad(g: Generator, x: str) -> str:
    dims = len(g.shape(x)) - 2
    return g.op("Pad", x, g.constant(np.array([0, 0, *g.picks(dims, 0, 1), 0, 0, *g.picks(dims, 0, 1)])))


def resize(g: Generator, x: str) -> str:
    dims = len(g.shape(x)) - 2
    factors = [1.0, 1.0, *g.picks(dims, 1.0, 2.0, 3.0)] if np.prod(g.shape(x)[2:]) < 200 else np.ones(dims + 2)
    how = g.pick({}, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"})
    return g.op("Resize", x, "", g.constant(factors), mode="nearest", **how)


def upsampled(g: Generator, x: str) -> str:
    """Between convolutions, as networks have it."""
    return conv(g, resize(g, conv(g, x)))


def present(g: Generator, x: str, *axes: int) -> str:
    """The value, or a function of it, whose mean is not lost beside it, as behind a normalization."""
    left = np.abs(g.arrays[x].mean(axis=axes)).max()
    return x if left > 0.01 * g.reach(x) else g.op("Sigmoid", x)


def global_average(g: Generator, x: str) -> str:
    return g.op("GlobalAveragePool", present(g, x, *range(2, len(g.shape(x)))))


def global_max(g: Generator, x: str) -> str:
    return g.op("GlobalMaxPool", x)


def excite(g: Generator, x: str) -> str:
    """Squeeze and excitation: every channel times a gate, or plus one."""
    channels = g.shape(x)[1]
    weight = g.weight(channels, channels, *(1,) * (len(g.shape(x)) - 2))
    gate = g.op("Conv", global_average(g, x), g.constant(weight))
    return g.op("Mul", *g.rng.permutation([x, g.op(g.pick("Sigmoid", "HardSigmoid"), gate)]))


def to_rows(g: Generator, x: str) -> str:
    kind, axes = g.pick("flatten", "pool", "mean"), range(2, len(g.shape(x)))
    if kind == "mean":
        return g.op("ReduceMean", present(g, x, *axes), g.constant(np.array(axes)), keepdims=0)
    return g.op("Flatten", global_average(g, x) if kind == "pool" else x)


def to_sequence(g: Generator, x: str) -> str:
    return g.op("Transpose", g.op("Reshape", x, g.constant(np.array([0, g.shape(x)[1], -1]))), perm=[0, 2, 1])


# Sequences, [N, T, K], and rows, [N, K].


def matmul(g: Generator, x: str) -> str:
    made = g.pick(1, 3, 4, 8)
    result = g.op("MatMul", x, g.constant(g.weight(g.shape(x)[-1], made, axis=1)))
    bias = g.bias(made, g.reach(result))
    return clamp(g, g.op("Add", *g.rng.permutation([result, *bias])) if bias else result)


def gemm(g: Generator, x: str) -> str:
    width, made, transposed = g.shape(x)[-1], g.pick(1, 3, 5, 8), g.pick(0, 1)
    weight = g.weight(made, width) if transposed else g.weight(width, made, axis=1)
    bias = g.bias(made, g.reach(x) * float(np.abs(weight).mean()))
    return clamp(g, g.op("Gemm", x, g.constant(weight), *bias, transB=transposed))


def product(g: Generator, x: str) -> str:
    """Of a sequence and the transpose of what an operator makes of it; that, as attention, times the sequence."""
    other = g.pick(unary, softmax, keep)(g, x)
    scores = g.op("MatMul", x, g.op("Transpose", other, perm=[0, 2, 1]))
    return g.op("MatMul", g.op("Softmax", scores, axis=-1), x) if g.chance(0.6) else scores


def heads(g: Generator, x: str) -> str:
    """[N, T, K] to [N, H, T, K / H], multiplied, and back."""
    length, width = g.shape(x)[1:]
    count = g.pick(*(n for n in (1, 2, 3, 4) if width % n == 0))
    split = g.op("Reshape", x, g.constant(np.array([0, length, count, width // count])))
    queries, keys = g.op("Transpose", split, perm=[0, 2, 1, 3]), g.op("Transpose", split, perm=[0, 2, 3, 1])
    mixed = g.op("MatMul", g.op("Softmax", g.op("MatMul", queries, keys), axis=-1), queries)
    return g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.constant(np.array([0, 0, -1])))


def mean_to_rows(g: Generator, x: str) -> str:
    axes, x = g.constant(np.array([1])), present(g, x, 1)
    if g.chance(0.5):
        return g.op("Squeeze", g.op("ReduceMean", x, axes, keepdims=1), axes)
    return g.op("ReduceMean", x, axes, keepdims=0)


# Any rank.


def unary(g: Generator, x: str) -> str:
    kinds = ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Gelu", "Elu", "PRelu", "Erf", "Exp", "Number", "HardSigmoid")
    kind = g.pick(*kinds)
    if kind == "Exp":
        return g.op("Exp", g.op("Tanh", x))
    if kind == "PRelu":
        return g.op("PRelu", x, g.constant(np.array([g.pick(0.25, -0.5, 2.0)])))
    if kind == "Number":
        kind = g.pick("Mul", "Div", "Sub", "Add") if g.varies(x) else "Mul"
        return g.op(kind, x, g.constant(g.reach(x) * g.pick(0.5, -0.2)))
    attributes = {"LeakyRelu": {"alpha": g.pick(0.01, 0.2)}, "Elu": {"alpha": g.pick(1.0, 0.4)}}
    return g.op(kind, x, **(attributes | {"Gelu": {"approximate": g.pick("none", "tanh")}}).get(kind, {}))


def relu(g: Generator, x: str) -> str:
    return g.op("Relu", x)


def softmax(g: Generator, x: str) -> str:
    return g.op("Softmax", x, axis=g.pick(-1, 1))


def keep(g: Generator, x: str) -> str:
    return g.op("Neg", x) if g.chance(0.3) else x


def layer_norm(g: Generator, x: str) -> str:
    axis = g.pick(-1, *range(1, len(g.shape(x))))
    sizes = g.shape(x)[axis:]
    gamma, bias = g.normal(*sizes) * g.magnitude(1), [g.constant(g.normal(*sizes))] if g.chance(0.7) else []
    return g.op("LayerNormalization", x, g.constant(gamma), *bias, axis=axis, epsilon=g.pick(1e-5, 1e-3))


def mean(g: Generator, x: str) -> str:
    axis = g.pick(*range(1, len(g.shape(x))), -1)
    return g.op("ReduceMean", present(g, x, axis), g.constant(np.array([axis])), keepdims=1)


def with_constant(g: Generator, x: str) -> str:
    """A sum or a product with one number a channel, or a number an element."""
    shape = g.shape(x)[1:]
    shape = (*shape[:1], *(1,) * (len(shape) - 1)) if g.chance(0.5) else shape
    array = (g.normal(*shape) + g.pick(-2, 2)) * g.reach(x) * g.magnitude(0.5)
    kind = g.pick("Add", "Add", "Mul") if g.varies(x) else "Mul"
    return clamp(g, g.op(kind, x, g.constant(array)))


def residual(g: Generator, x: str) -> str:
    """A sum, a product or a concatenation of a value and what an operator makes of it."""
    kind = g.pick("Add", "Add", "Mul", "Concat", "Concat")
    other = g.pick(unary, unary, relu, softmax, keep)(g, x)
    if kind != "Concat" and g.sized and g.chance(0.3):
        other = mean(g, other)
    if kind == "Concat":
        return g.op("Concat", *g.rng.permutation([x, other]), axis=1)
    if kind == "Add" and not (g.span(x) > 0.1 and g.varies(x) and 0.02 < g.span(other) / g.span(x) < 50):
        return other  # one of them would be nothing beside the other
    return clamp(g, g.op(kind, *g.rng.permutation([x, other])))


def twice(g: Generator, x: str) -> str:
    """A sum or product of a value and itself; a product of matrices where they are square."""
    square = len(g.shape(x)) > 2 and g.shape(x)[-1] == g.shape(x)[-2] and g.sized
    kind = g.pick("MatMul", "MatMul", "Add", "Mul") if square else g.pick("Add", "Mul")
    return clamp(g, g.op(kind, x, x))


def split(g: Generator, x: str) -> str:
    size = g.shape(x)[1]
    first = int(g.rng.integers(1, max(size, 2)))
    if first == size:
        return relu(g, x)
    parts = g.ops("Split", x, g.constant(np.array([first, size - first])), count=2, axis=1)
    return g.op("Concat", unary(g, parts[1]), parts[0], axis=1) if g.chance(0.8) else parts[1]


def cut(g: Generator, x: str) -> str:
    size = g.shape(x)[1]
    start = int(g.rng.integers(0, max(size - 1, 1)))
    return g.op("Slice", x, *(g.constant(np.array([n])) for n in (start, size, 1, g.pick(1, 2))))


EVERYWHERE = (unary, unary, relu, softmax, residual, residual, twice, split, cut)
SIZED = (layer_norm, layer_norm, with_constant, *EVERYWHERE)
BY_KIND = {
    "image": (conv,) * 7
    + (upsampled, max_pool, max_pool, average_pool, pad, resize, excite, global_average, global_max, *SIZED),
    "image of any size": (conv,) * 9 + (max_pool, max_pool, average_pool, pad, *EVERYWHERE),
    "sequence": (matmul,) * 5 + (product, product, heads, mean, *SIZED),
    "rows": (gemm,) * 4 + (matmul,) * 2 + SIZED,
}
"""The layers of each kind of value, as often as they are drawn."""
