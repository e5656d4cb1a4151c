"""From a PyTorch module to a model; needs the extra `torch`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from qcomp.errors import OptionError
from qcomp.models.net import OPSET

if TYPE_CHECKING:
    import torch


def export(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool = True,
) -> ir.Model:
    """Export a module in evaluation mode with PyTorch's `torch.export`-based exporter, at opset 21.

    BatchNormalization stays a node: the exporter's own optimization, which fuses it into Conv, is off; only
    constants are folded. Operators have the exporter's names, weights those of the module's state. The
    module's training mode is restored afterwards.

    Args:
        module: takes the examples as positional arguments and returns a tensor or a tuple of tensors.
        example_inputs: one tensor an input; with `dynamic_batch` axis 0 is the batch, best
            of 2 or more, for PyTorch may specialize a dimension of 1.
        input_names: names for the inputs of the model.
        output_names: names for its outputs.
        dynamic_batch: make axis 0 of every input the dynamic dimension 'N'.
    """
    try:
        import torch
    except ImportError as error:
        raise OptionError("the export needs PyTorch", hint="pip install 'qcomp[torch]'") from error
    batch = torch.export.Dim("N")
    options: dict[str, Any] = {
        "input_names": list(input_names),
        "output_names": list(output_names),
        "dynamic_shapes": tuple({0: batch} for _ in example_inputs) if dynamic_batch else None,
        "opset_version": OPSET,
    }
    training = module.training
    try:
        return _tidy(_traced(module.eval(), tuple(example_inputs), options))
    finally:
        module.train(training)


def _traced(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> ir.Model:
    """Run PyTorch's exporter without its optimization, and without the warnings about its own internals."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, inputs, **options, dynamo=True, optimize=False, verbose=False)
    model: ir.Model = program.model
    return model


def _tidy(model: ir.Model) -> ir.Model:
    """Fold constant subgraphs, drop what nothing uses, and turn Constant nodes into initializers."""
    import onnxscript.optimizer

    onnxscript.optimizer.fold_constants(model)
    passes = ir.passes.Sequential(
        RemoveUnusedNodesPass(), LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    )
    return passes(model).model
