from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small

from qcomp import files, graph, pipeline
from qcomp.calibration.channels import ChannelRange
from qcomp.passes.reparameterize_scales import ReparameterizeScales
from qcomp.reparameterization import candidates, sites
from qcomp.reparameterization.candidates import Channels

METHODS = ("smooth", "shift-scale", "per-channel", "auto")
every_method = pytest.mark.parametrize("method", METHODS)
SAMPLES = 400
WIDTH = 16


def spread(b: small.Builder, size: int = WIDTH) -> np.ndarray:
    """A scale a channel: a few of them large, as of the normalizations of transformers."""
    scale = np.exp(b.rng.normal(0, 0.2, size))
    scale[b.rng.choice(size, 2, replace=False)] *= 30
    return scale


def layer_norm(b: small.Builder, x: str, **attributes) -> str:
    bias = b.constant(2 * spread(b) * b.rng.normal(size=WIDTH))
    return b.op("LayerNormalization", x, b.constant(spread(b)), bias, name="norm", **attributes)


def linear(b: small.Builder, x: str, size: int = 8) -> str:
    return b.op("Add", b.op("MatMul", x, b.random(WIDTH, size)), b.random(size))


def after_layer_norm(b):
    x = layer_norm(b, b.input("x", ["N", 6, WIDTH]), axis=int(b.rng.choice([-1, 2])))
    first = b.op("MatMul", x, b.random(WIDTH, 8))
    b.op("Add", b.op("Tanh", first), linear(b, x), name="y")


def after_unbiased_layer_norm(b):
    x = b.op("LayerNormalization", b.input("x", ["N", 6, WIDTH]), b.constant(spread(b)), name="norm")
    b.op("Relu", b.op("MatMul", x, b.random(WIDTH, 8)), name="y")


def after_rms_norm(b):
    x = b.input("x", ["N", 6, WIDTH])
    root = b.op("Sqrt", b.op("ReduceMean", b.op("Mul", x, x), b.constant(np.array([-1]))))
    b.op("Relu", linear(b, b.op("Mul", b.op("Div", x, root), b.constant(spread(b)))), name="y")


def after_batch_norm(b):
    x = b.input("x", ["N", WIDTH, 5, 5])
    constants = [b.constant(spread(b)), b.random(WIDTH), b.random(WIDTH), b.random(WIDTH, positive=True)]
    x = b.op("BatchNormalization", x, *constants, name="norm")
    pads = [int(p) for p in b.rng.integers(0, 2, 4)]
    b.op("Add", b.conv(x, WIDTH, 4, pads=pads), b.conv(x, WIDTH, 4, pads=pads, bias=False), name="y")


def after_conv(b):
    x = b.input("x", ["N", 3, 5, 5])
    weight = b.constant(b.rng.normal(size=(WIDTH, 3, 1, 1)) * spread(b)[:, None, None, None])
    b.conv(b.op("Conv", x, weight, b.random(WIDTH), name="norm"), WIDTH, 4)
    b.op("Relu", b.nodes[-1].output[0], name="y")


def after_gemm(b):
    wide = b.constant(b.rng.normal(size=(9, WIDTH)) * spread(b))
    x = b.op("Gemm", b.input("x", ["N", 9]), wide, b.constant(spread(b)), name="norm")
    transposed = int(b.rng.integers(0, 2))
    weight = b.random(*((8, WIDTH) if transposed else (WIDTH, 8)))
    b.op("Gemm", x, weight, b.random(8), transB=transposed, alpha=0.5, beta=2.0, name="y")


def after_biased_matmul(b):
    wide = b.constant(b.rng.normal(size=(9, WIDTH)) * spread(b))
    x = b.op("Add", b.constant(3 * spread(b)), b.op("MatMul", b.input("x", ["N", 6, 9]), wide), name="norm")
    b.op("Relu", linear(b, x), name="y")


def after_attention(b, heads: int = 4):
    x = b.input("x", ["N", 6, 9])
    q, k = (split(b, b.op("MatMul", x, b.random(9, WIDTH)), heads) for _ in range(2))
    wide = b.constant(b.rng.normal(size=(9, WIDTH)) * spread(b))
    v = split(b, b.op("Add", b.op("MatMul", x, wide), b.constant(spread(b)), name="norm"), heads)
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    joined = b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    b.op("Relu", linear(b, b.op("Reshape", joined, b.constant(np.array([0, 0, WIDTH])))), name="y")


def encoder(b):
    """Values without a bias, which the shift of the normalization gives them before the attention is scaled."""
    x = layer_norm(b, b.input("x", ["N", 6, WIDTH]))
    q, k, v = (b.op("MatMul", x, b.random(WIDTH, WIDTH)) for _ in range(3))
    scores = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), b.constant(0.001))
    b.op("Add", x, linear(b, b.op("MatMul", b.op("Softmax", scores, axis=-1), v), WIDTH), name="y")


def split(b: small.Builder, x: str, heads: int) -> str:
    shape = b.constant(np.array([0, 0, heads, WIDTH // heads]))
    return b.op("Transpose", b.op("Reshape", x, shape), perm=[0, 2, 1, 3])


def after_post_norm(b):
    """A residual Add reads the normalization too."""
    x = layer_norm(b, b.input("x", ["N", 6, WIDTH]))
    b.op("Add", x, linear(b, b.op("Tanh", linear(b, x, WIDTH)), WIDTH), name="y")


def of_the_input(b):
    x = b.input("x", ["N", 6, WIDTH])
    b.op("Relu", linear(b, x), name="y")


GRAPHS = (
    after_layer_norm,
    after_unbiased_layer_norm,
    after_rms_norm,
    after_batch_norm,
    after_conv,
    after_gemm,
    after_biased_matmul,
    after_attention,
    encoder,
    after_post_norm,
    of_the_input,
)


def built(make, seed: int) -> ir.Model:
    b = small.Builder(seed)
    make(b)
    return files.load(b.model("y"))


def feeds(model: ir.Model, seed: int, make=None) -> dict[str, np.ndarray]:
    """So many samples that extremes hold for others too."""
    given = small.feeds(model, seed, SAMPLES)
    if make is of_the_input:
        given["x"] = (given["x"] * spread(small.Builder(1)) + 5).astype(np.float32)
    return given


def rewritten(model: ir.Model, make, **options) -> tuple[ir.Model, bool]:
    work, step = model.clone(), ReparameterizeScales(**{"inputs": make is of_the_input} | options)
    stats = quantized.statistics(work, step.observe(work), feeds(model, 0, make))
    changed = step.run(work, stats)
    quantized.check(work)
    return work, changed


@every_method
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", GRAPHS, ids=lambda g: g.__name__)
def test_moves_scales_and_keeps_the_outputs(make, seed, method):
    model = built(make, seed)
    work, changed = rewritten(model, make, method=method)
    assert changed or method == "auto"
    inputs = feeds(model, 9, make)
    assert small.moved(small.run(model, inputs), small.run(work, inputs)) < 1e-5


@pytest.mark.parametrize("options", [{"method": "per-channel"}, {"method": "smooth", "alpha": 0.5}])
@pytest.mark.parametrize("make", [g for g in GRAPHS if g not in (of_the_input, encoder)], ids=lambda g: g.__name__)
def test_with_new_statistics_too_a_second_run_has_nothing_to_do(make, options):
    """What is chosen without a search is its own fixed point, where no other choice changes its weights."""
    once, changed = rewritten(built(make, 0), make, **options)
    assert changed
    for node in once.graph:
        node.metadata_props.clear()
    assert not rewritten(once, make, **options)[1]


def reach(make, method: str, **options) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of each channel of what the linear operators read, afterwards."""
    model = built(make, 0)
    work, changed = rewritten(model, make, method=method, **options)
    assert changed
    for node in work.graph:
        node.metadata_props.clear()
    site = next(sites.find(work))
    stats = quantized.statistics(work, list(ReparameterizeScales().observe(work)), feeds(model, 0, make))
    seen = stats.find(site.value, ChannelRange(site.axis))
    return seen.low, seen.high


def test_per_channel_lets_every_channel_fill_one_range():
    """RepQ-ViT: the quantizer of the tensor is then the one that each channel would have."""
    low, high = reach(after_layer_norm, "per-channel")
    np.testing.assert_allclose(low, low.mean(), rtol=1e-4)
    np.testing.assert_allclose(high, high.mean(), rtol=1e-4)


def test_shift_scale_centres_each_channel():
    """Outlier Suppression+: the shift takes out the asymmetry, the scale what exceeds the threshold."""
    low, high = reach(after_layer_norm, "shift-scale")
    np.testing.assert_allclose(low, -high, rtol=1e-3, atol=1e-3)
    before = built(after_layer_norm, 0)
    seen = small.run(exposed(before, "norm"), feeds(before, 0))["norm"]
    assert ratio(high) < 0.5 * ratio(np.abs(seen).max(axis=(0, 1)))


def ratio(magnitudes: np.ndarray) -> float:
    return float(magnitudes.max() / np.median(magnitudes))


def exposed(model: ir.Model, name: str) -> ir.Model:
    clone = model.clone()
    clone.graph.outputs[:] = [next(v for n in clone.graph for v in n.outputs if v.name == name)]
    return clone


def test_smooth_balances_activations_and_weights():
    """SmoothQuant at alpha one half: the extremes of each channel and of its weights have one ratio."""
    model = built(after_unbiased_layer_norm, 0)
    work, _ = rewritten(model, after_unbiased_layer_norm, method="smooth", alpha=0.5)
    seen = small.run(exposed(work, "norm_scaled"), feeds(model, 0))["norm_scaled"]
    product = next(n for n in work.graph if n.op_type == "MatMul")
    weights = np.abs(graph.constant(product.inputs[1])).max(axis=1)
    quotient = np.abs(seen).max(axis=(0, 1)) / weights
    np.testing.assert_allclose(quotient, quotient.mean(), rtol=1e-4)


LINE = "choose-precision{by=all keep=LayerNormalization|Softmax|Add|Tanh},insert-qdq,round-weights,correct-bias"


def sqnr(make, method: str, seed: int) -> float:
    """dB of the quantized output with the pass before, on inputs that did not calibrate."""
    model = built(make, seed)
    line = f"fold-gemm,reparameterize-scales{{method={method} inputs=true}},{LINE}"
    line = f"fold-gemm,{LINE}" if method == "none" else line
    work = model.clone()
    given = feeds(model, seed, make)
    hooks = pipeline.Hooks(calibrate=lambda m, o: quantized.statistics(m, o, given))
    pipeline.run(work, pipeline.parse(line), hooks)
    inputs = feeds(model, 50 + seed, make)
    return quantized.sqnr(model, work, inputs)["y"]


@pytest.mark.parametrize(("method", "gain"), [("smooth", 3), ("shift-scale", 3), ("per-channel", 3), ("auto", 4)])
def test_a_linear_operator_behind_a_normalization_with_outliers_gains(method, gain):
    """What all three papers claim, on weights of equal size, in dB of the output."""
    gains = [sqnr(after_layer_norm, method, seed) - sqnr(after_layer_norm, "none", seed) for seed in range(4)]
    assert np.mean(gains) > gain
    assert min(gains) > 0


@pytest.mark.parametrize("make", GRAPHS, ids=lambda g: g.__name__)
def test_auto_never_makes_it_clearly_worse(make):
    gains = [sqnr(make, "auto", seed) - sqnr(make, "none", seed) for seed in range(3)]
    assert min(gains) > -1


def kinds(make, **options) -> list[str]:
    return small.kinds(rewritten(built(make, 0), make, **options)[0])


def test_a_residual_add_keeps_the_normalization_it_read():
    assert kinds(after_post_norm).count("LayerNormalization") == 2
    assert kinds(after_post_norm, copies=False).count("LayerNormalization") == 1


def test_inputs_are_scaled_in_float():
    work, changed = rewritten(built(of_the_input, 0), of_the_input)
    assert changed
    assert small.kinds(work)[:2] == ["Mul", "Add"]
    assert not rewritten(built(of_the_input, 0), of_the_input, inputs=False)[1]  # so that integer forms take it


def test_without_activations_there_is_nothing_to_do():
    step = ReparameterizeScales(activations=None)
    assert not list(step.observe(built(after_layer_norm, 0)))


def after_relu(b):
    b.op("Relu", linear(b, b.op("Relu", layer_norm(b, b.input("x", ["N", 6, WIDTH])))), name="y")


def read_by_others(b):
    wide = b.constant(b.rng.normal(size=(9, WIDTH)) * spread(b))
    x = b.op("MatMul", b.input("x", ["N", 6, 9]), wide)
    b.op("Add", linear(b, x, WIDTH), x, name="y")


def depthwise(b):
    constants = [b.constant(spread(b)), *(b.random(WIDTH, positive=True) for _ in range(3))]
    x = b.op("BatchNormalization", b.input("x", ["N", WIDTH, 5, 5]), *constants)
    b.conv(x, WIDTH, WIDTH, group=WIDTH)
    b.op("Relu", b.nodes[-1].output[0], name="y")


@pytest.mark.parametrize("make", [after_relu, read_by_others, depthwise], ids=lambda g: g.__name__)
def test_leaves_alone_what_cannot_be_undone(make):
    model = built(make, 0)
    work, changed = rewritten(model, make, method="per-channel", inputs=False)
    assert not changed
    assert small.serialized(work) == small.serialized(model)


def test_weights_that_are_shared_are_copied():
    b = small.Builder(0)
    x = layer_norm(b, b.input("x", ["N", 6, WIDTH]))
    weight = b.random(WIDTH, WIDTH)
    b.op("Tanh", b.op("MatMul", b.op("Tanh", b.op("MatMul", x, weight)), weight), name="y")
    model = files.load(b.model("y"))
    work, changed = rewritten(model, None)
    assert changed
    assert small.moved(small.run(model, feeds(model, 9)), small.run(work, feeds(model, 9))) < 1e-5


@every_method
def test_dead_channels_and_weights_of_zero(method):
    b = small.Builder(0)
    scale, weight = spread(b), b.rng.normal(size=(WIDTH, 8))
    scale[:3] = 0
    weight[2:5] = 0
    x = b.op("LayerNormalization", b.input("x", ["N", 6, WIDTH]), b.constant(scale), name="norm")
    b.op("Relu", b.op("MatMul", x, b.constant(weight)), name="y")
    model = files.load(b.model("y"))
    work, _ = rewritten(model, None, method=method)
    found = small.run(work, feeds(model, 9))
    assert small.moved(small.run(model, feeds(model, 9)), found) < 1e-5


@pytest.mark.parametrize("strange", [np.nan, np.inf, 1e35])
def test_what_is_not_finite_is_left_alone(strange):
    model, step = built(after_layer_norm, 0), ReparameterizeScales()
    stats = quantized.statistics(model, step.observe(model), feeds(model, 0))
    for state in stats.states.values():
        state.high = np.full_like(state.high, strange)
    assert not step.run(model, stats)


@pytest.mark.parametrize("weight", [np.zeros(4), np.ones(4), np.array([0, 1e-30, 1, 1e4])])
@pytest.mark.parametrize("low", [np.zeros(4), -np.ones(4), np.array([-1e20, 0, 1, -1e-30])])
def test_candidates_are_finite_and_positive(low, weight):
    for shifts in (False, True):
        channels = Channels(low, low + np.abs(low), weight, shifts)
        for scale, shift in candidates.best_of_all(channels):
            assert np.isfinite(scale).all()
            assert (scale > 0).all()
            assert np.isfinite(shift).all()
            assert shifts or not np.any(shift)
