"""Export from PyTorch."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qcomp.errors import OptionError
from qcomp.models.torch_export import export

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: pip install 'qcomp[torch]'"
)


@needs_torch
def test_exported_module_agrees_and_keeps_batch_norm() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten(), nn.Linear(144, 3)]
    module = nn.Sequential(*layers).train()
    x = torch.randn(2, 1, 8, 8)
    model = export(module, (x,), input_names=["image"], output_names=["logits"])
    assert module.training
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["BatchNormalization"], kinds["Constant"], kinds["CastLike"]) == (1, 0, 0)
    assert model.opset_imports[""] == 21
    assert str(model.graph.inputs[0].shape) == "[N,1,8,8]"
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    images = torch.randn(5, 1, 8, 8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(["logits"], {"image": images.numpy()})
    np.testing.assert_allclose(output, module.eval()(images).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OptionError, match="pip install"):
        export(None, (), input_names=[], output_names=[])
