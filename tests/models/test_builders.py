"""Every builder's model is valid, runs at two batch sizes, and follows its seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qcomp.errors import ModelError, OptionError
from qcomp.models.bert import bert
from qcomp.models.cifar_resnet import cifar_resnet
from qcomp.models.digits.cnn import digits_cnn
from qcomp.models.ds_cnn import ds_cnn
from qcomp.models.mobilenet_v2 import mobilenet_v2
from qcomp.models.resnet18 import resnet
from qcomp.models.vit import vit

Build = Callable[[int], ir.Model]

BUILDERS: dict[str, Build] = {
    "cifar_resnet": lambda seed: cifar_resnet(8, width=4, size=8, seed=seed),
    "resnet": lambda seed: resnet(18, size=32, classes=7, seed=seed),
    "mobilenet_v2": lambda seed: mobilenet_v2(0.25, size=32, classes=7, seed=seed),
    "ds_cnn": lambda seed: ds_cnn(8, seed=seed),
    "vit": lambda seed: vit(8, 4, 3, 16, 2, 2, 5, seed),
    "bert": lambda seed: bert(50, 16, 16, 2, 2, seed),
    "digits_cnn": digits_cnn,
}
LENGTH = 5


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Build:
    return BUILDERS[request.param]


def samples(session: ort.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = {"N": batch, "L": LENGTH}
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        shape = [sizes.get(size, size) for size in value.shape]
        if value.name == "input_ids":
            feeds[value.name] = rng.integers(0, 50, shape)
        elif value.name == "attention_mask":
            feeds[value.name] = np.broadcast_to(np.arange(LENGTH) < 3, shape).astype(np.int64)
        else:
            feeds[value.name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def run(model: ir.Model, batch: int = 2) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, samples(session, batch))[0]
    return output


def test_model_is_valid_with_unique_names(build: Build) -> None:
    model = build(0)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.opset_imports == {"": 21}
    assert model.ir_version == 10
    assert max(Counter(node.name for node in model.graph).values()) == 1


@pytest.mark.parametrize("batch", [1, 2])
def test_outputs_are_finite_and_vary(build: Build, batch: int) -> None:
    output = run(build(0), batch)
    assert output.shape[0] == batch
    assert np.isfinite(output).all()
    assert 1e-3 < output.std() < 1e3


def test_outputs_depend_on_the_input(build: Build) -> None:
    first, second = run(build(0))
    assert np.abs(first - second).max() > 1e-3


def test_weights_follow_the_seed(build: Build) -> None:
    first, again, other = (ir.to_proto(build(seed)).SerializeToString() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("builder", "parameters"),
    [(resnet, 11_699_112), (mobilenet_v2, 3_538_984), (vit, 5_717_416)],
    ids=["resnet18", "mobilenet_v2", "vit"],
)
def test_default_sizes_have_the_known_number_of_parameters(builder: Callable[[], ir.Model], parameters: int) -> None:
    initializers = builder().graph.initializers
    weights = [value.const_value for name, value in initializers.items() if not name.startswith("const_")]
    assert sum(int(weight.size) for weight in weights if weight is not None) == parameters


def test_convolutional_models_keep_batch_norm_and_relu6() -> None:
    kinds = Counter(node.op_type for node in mobilenet_v2(0.25, size=32).graph)
    assert kinds["BatchNormalization"] == kinds["Conv"] == 52
    assert kinds["Clip"] == 35


def test_bert_ignores_masked_tokens() -> None:
    session = ort.InferenceSession(ir.to_proto(BUILDERS["bert"](0)).SerializeToString())
    feeds = samples(session, 1)
    before = session.run(None, feeds)[0]
    feeds["input_ids"] = feeds["input_ids"] * (feeds["attention_mask"]) + 7 * (1 - feeds["attention_mask"])
    after = session.run(None, feeds)[0]
    np.testing.assert_allclose(before[:, :3], after[:, :3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [lambda: cifar_resnet(21), lambda: resnet(50), lambda: vit(9, 2), lambda: bert(dim=15, heads=2)]
)
def test_impossible_sizes_are_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(OptionError):
        wrong()


def test_trained_weights_must_fit() -> None:
    with pytest.raises(ModelError, match=r"stem\.conv\.weight"):
        digits_cnn(weights={})
    with pytest.raises(ModelError, match=r"the layer needs \(32, 1, 3, 3\)"):
        digits_cnn(weights={"stem.conv.weight": np.zeros((1, 1, 3, 3), np.float32)})
