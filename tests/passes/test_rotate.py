from __future__ import annotations

import numpy as np
import pytest
import quantized
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import feature_spaces, files, pipeline
from qcomp.calibration.observers import Statistics
from qcomp.models import digits
from qcomp.passes.rotate import MARK, Rotate

WIDTH = 64
EVERYTHING = Rotate()


def rotate(proto, step=EVERYTHING, *, changed=True):
    """Run the pass: outputs stay, the graph is valid, and a second run changes nothing."""
    model = files.load(proto)
    inputs = small.feeds(model, 7)
    before = small.run(model, inputs)
    assert step.run(model, Statistics()) is changed
    quantized.check(model)
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    assert not step.run(model, Statistics())
    return model


def product(b, x, cin, cout, *, bias=True, spread=None):
    """A MatMul with the Add of a bias; `spread` multiplies the outputs."""
    weight = b.rng.normal(size=(cin, cout)) / cin**0.5 * (1 if spread is None else spread)
    x = b.op("MatMul", x, b.constant(weight))
    return b.op("Add", x, b.random(cout)) if bias else x


def norm(b, x, kind):
    scale = b.random(WIDTH, positive=True)
    if kind == "layer":
        return b.op("LayerNormalization", x, scale, b.random(WIDTH))
    if kind == "layer without shift":
        return b.op("LayerNormalization", x, scale)
    squares = b.op("Pow", x, b.constant(2.0)) if kind == "power" else b.op("Mul", x, x)
    mean = b.op("ReduceMean", squares, b.constant(np.array([-1])), keepdims=1)
    root = b.op("Sqrt", b.op("Add", mean, b.constant(1e-5)))
    x = b.op("Div", x, root) if kind == "power" else b.op("Mul", b.op("Reciprocal", root), x)
    return b.op("Mul", scale, x)


NORMS = ("layer", "layer without shift", "power", "product")


def heads(b, x, count, perm):
    split = b.op("Reshape", x, b.constant(np.array([0, 0, count, WIDTH // count])))
    return b.op("Transpose", split, perm=perm)


def attention(b, x, *, count=2, bias=True):
    query, key, value = (product(b, x, WIDTH, WIDTH, bias=bias) for _ in range(3))
    scores = b.op("MatMul", heads(b, query, count, [0, 2, 1, 3]), heads(b, key, count, [0, 2, 3, 1]))
    scores = b.op("Softmax", b.op("Mul", scores, b.constant(0.3)))
    mixed = b.op("MatMul", scores, heads(b, value, count, [0, 2, 1, 3]))
    return b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.constant(np.array([0, 0, WIDTH])))


def transformer(kind="layer", *, seed=0, count=2, bias=True, spread=None, blocks=2, before=True):
    """Blocks with normalizations before attention and perceptron, or behind their residual Adds."""
    b = small.Builder(seed)
    x = product(b, b.input("x", ["N", 5, 8]), 8, WIDTH, spread=spread)
    x = b.op("Add", x, b.random(1, 5, WIDTH))
    for _ in range(blocks):
        mixed = attention(b, norm(b, x, kind) if before else x, count=count, bias=bias)
        x = b.op("Add", x, product(b, mixed, WIDTH, WIDTH, bias=bias, spread=spread))
        x = x if before else norm(b, x, kind)
        hidden = b.op("Relu", product(b, norm(b, x, kind) if before else x, WIDTH, 32, bias=bias))
        x = b.op("Add", product(b, hidden, 32, WIDTH, bias=bias, spread=spread), x)
        x = x if before else norm(b, x, kind)
    product(b, norm(b, x, kind), WIDTH, 3)
    return b.model(b.nodes[-1].output[0])


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(NORMS),
    count=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    where=st.sampled_from(["all", "residual", "attention"]),
)
def test_a_transformer_with_normalizations_in_front(seed, kind, count, bias, where):
    proto = transformer(kind, seed=seed, count=count, bias=bias)
    model = rotate(proto, Rotate(where))
    marked = [n for n in model.graph if MARK in n.metadata_props]
    assert marked
    before = {k: v.const_value.numpy() for k, v in files.load(proto).graph.initializers.items()}
    embedding = next(iter(model.graph)).inputs[1]
    assert np.array_equal(before[embedding.name], embedding.const_value.numpy()) == (where == "attention")


def test_normalizations_on_the_stream_leave_it_and_heads_are_rotated(caplog):
    """As in BERT: others than linear operators read their scales."""
    with caplog.at_level("INFO"):
        model = rotate(transformer(before=False))
    assert "features are not rotated: LayerNormalization" in caplog.text
    spaces = [s for s in feature_spaces.find(model.graph) if not s.why_not and (s.readers or s.attention)]
    assert sum(s.attention for s in spaces) == 4
    rotate(transformer(before=False), Rotate("residual"), changed=False)


def test_tables_tokens_positions_and_a_selected_token():
    b = small.Builder()
    patches = b.conv(b.input("x", ["N", 3, 4, 4]), 3, WIDTH, 2, strides=[2, 2])
    x = b.op("Transpose", b.op("Reshape", patches, b.constant(np.array([0, WIDTH, 4]))), perm=[0, 2, 1])
    batch = b.op("Shape", "x", start=0, end=1)
    token = b.op("Expand", b.random(1, 1, WIDTH), b.op("Concat", batch, b.constant(np.array([1, WIDTH])), axis=0))
    x = b.op("Add", b.op("Concat", token, x, axis=1), b.random(1, 5, WIDTH))
    x = b.op("Add", x, b.op("Gather", b.random(9, WIDTH), b.constant(np.array([3, 1, 4, 1, 5]))))
    x = norm(b, b.op("Add", x, b.constant(0.5)), "layer")
    x = b.op("Slice", x, *(b.constant(np.array([n])) for n in (0, 1, 1)))
    b.op("Gemm", b.op("Squeeze", x, b.constant(np.array([1]))), b.random(3, WIDTH), b.random(3), transB=1, name="y")
    model = rotate(b.model("y"))
    assert sum(MARK in n.metadata_props for n in model.graph) == 5


def test_the_stream_of_linear_bottlenecks():
    b = small.Builder()
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 3, 8, bias=False)
    y = b.conv(b.op("Relu", b.conv(x, 8, 16, 1)), 16, 8, 3, pads=[1] * 4)
    b.op("Relu", b.conv(b.op("Add", x, y), 8, 6, pads=[1, 0, 2, 1]), name="y")
    rotate(b.model("y"))


@pytest.mark.parametrize("kind", ["ReduceMean", "GlobalAveragePool", "AveragePool"])
def test_means_over_positions(kind):
    b = small.Builder()
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 3, 8)
    if kind == "ReduceMean":
        x = b.op(kind, x, b.constant(np.array([2, 3])), keepdims=0)
    else:
        x = b.op("Flatten", b.op(kind, x, **({"kernel_shape": [4, 4]} if kind == "AveragePool" else {})))
    b.op("Gemm", x, b.random(8, 3), name="y")
    rotate(b.model("y"))


@pytest.mark.parametrize("why", ["Relu", "output", "reversed", "reduced", "multiplied", "normalized elsewhere", "few"])
def test_refused(why):
    b, width = small.Builder(), 3 if why == "few" else 5
    x = product(b, b.input("x", ["N", 5, 8]), 8, width)
    if why == "Relu":
        x = b.op("Relu", x)
    if why == "reversed":
        x = b.op("Slice", x, *(b.constant(np.array([n])) for n in (-1, -9, 2, -1)))
    if why == "reduced":
        x = b.op("ReduceMean", x, b.constant(np.array([2])), keepdims=0)
    if why == "multiplied":
        x = b.op("Mul", x, b.op("Sigmoid", x))
    if why == "normalized elsewhere":
        x = b.op("LayerNormalization", x, b.random(5, 5, positive=True), axis=1)
    b.op("MatMul", x, b.random(width, 3), name="y")
    rotate(b.model("y", *([x] if why == "output" else [])), changed=False)


def test_shared_tables_and_weights_are_copied():
    b = small.Builder()
    table, weight = b.random(9, WIDTH), b.random(WIDTH, WIDTH)
    x = b.op("Gather", table, b.constant(np.array([[1, 2, 3]])))
    x = b.op("Add", b.op("MatMul", b.input("x", ["N", 3, WIDTH]), weight), x)
    y = b.op("Relu", b.op("MatMul", norm(b, x, "layer"), weight))
    b.op("MatMul", y, b.op("Transpose", table, perm=[1, 0]), name="y")
    rotate(b.model("y"))


def outliers(kind, seed=0):
    """A transformer with one feature of the stream 30 times as large as the others."""
    spread = np.ones(WIDTH)
    spread[3] = 30.0
    return transformer(kind, seed=seed, spread=spread)


def peak(model, inputs):
    """The largest of the stream's features over their root mean square, at the last sum."""
    work = model.clone()
    sums = [n for n in work.graph if n.op_type == "Add" and len(n.outputs[0].shape) == 3 and _is_sum(n)]
    work.graph.outputs.append(sums[-1].outputs[0])
    found = small.run(work, inputs)[sums[-1].outputs[0].name]
    return float(np.abs(found).max() / np.sqrt(np.mean(found**2)))


def _is_sum(node):
    return all(v.const_value is None for v in node.inputs)


@pytest.mark.parametrize("kind", ["layer", "power"])
def test_no_feature_of_the_stream_stands_out(kind):
    """QuaRot, Ashkboos et al. 2024, figure 1."""
    model = files.load(outliers(kind))
    inputs = small.feeds(model, 0, 64)
    before = peak(model, inputs)
    Rotate().run(model, Statistics())
    assert peak(model, inputs) < before / 3 < 7


def test_low_bits_suffice_for_a_stream_with_outliers():
    line = "choose-precision{by=all},insert-qdq{activations=uint6},round-weights"
    gains = []
    for seed in range(3):
        proto = outliers("layer", seed)
        model = files.load(proto)
        calibration, inputs = small.feeds(model, 1, 64), small.feeds(model, 2, 64)
        found = [quantized.quantize(proto, calibration, line=f"{s}{line}") for s in ("", "rotate,")]
        without, with_it = (min(quantized.sqnr(model, m, inputs).values()) for m in found)
        gains.append(with_it - without)
    assert np.mean(gains) > 5


def test_a_trained_vision_transformer_at_four_bits():
    """The trained ViT of digits: with weights and activations of 4 bits it keeps most of what it knows."""
    model, data = files.load(digits.load("vit")), digits.data()
    batches = [{"image": data["train"][i : i + 16]} for i in range(0, 128, 16)]
    end = "choose-precision{by=all},insert-qdq{weights=int4 activations=uint4},round-weights"
    correct = []
    for first in ("", "rotate,"):
        work = model.clone()
        hooks = pipeline.Hooks(calibrate=lambda m, o: quantized.statistics(m, o, *batches))
        pipeline.run(work, pipeline.parse(f"{quantized.FLOAT_REWRITES},{first}{end}"), hooks)
        answers = small.run(work, {"image": data["test"][:300]})["logits"].argmax(axis=1)
        correct.append(float((answers == data["test_labels"][:300]).mean()))
    assert correct[1] > correct[0] + 0.05
