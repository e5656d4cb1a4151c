"""Train the digits models and write `digits.npz`, `cnn.onnx` and `vit.onnx` into this folder.

Run ``python -m qcomp.models.digits.train``; it needs the extras `torch` and `test` (scikit-learn) and takes a
minute or two on one core. With one thread and fixed seeds, the same versions write the same files.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from qcomp.models.digits import FOLDER, data, load
from qcomp.models.digits.cnn import digits_cnn
from qcomp.models.digits.networks import DigitsCnn, DigitsVit
from qcomp.models.vit import vit

SEED = 0
TEST_IMAGES = 600
BATCH = 64
VIT_SIZES = {"size": 8, "patch": 2, "dim": 48, "depth": 3, "heads": 4}

logger = logging.getLogger(__name__)


def main() -> None:
    """Write the data, then train and write each model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_data()
    weights = train(DigitsCnn, epochs=30, rate=5e-3)
    ir.save(digits_cnn(weights=weights), load("cnn"))
    weights = train(lambda: DigitsVit(**VIT_SIZES), epochs=60, rate=2e-3)
    ir.save(vit(**VIT_SIZES, channels=1, classes=10, weights=weights), load("vit"))


def write_data() -> None:
    """Write the stratified split: images uint8 ``[n, 1, 8, 8]`` in 0..16, labels uint8 ``[n]``."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.uint8)
    train_images, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_IMAGES, random_state=SEED, stratify=labels
    )
    arrays = {"train": train_images, "train_labels": train_labels, "test": test, "test_labels": test_labels}
    np.savez_compressed(FOLDER / "digits.npz", **arrays)


def train(network: Any, epochs: int, rate: float) -> dict[str, NDArray[np.float32]]:
    """Train a new `network()` with AdamW and one learning rate cycle; return its weights by name."""
    torch.manual_seed(SEED)
    arrays = {name: torch.from_numpy(array) for name, array in data().items()}
    module = network()
    steps = epochs * -(-len(arrays["train"]) // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(arrays["train"])).split(BATCH):
            image = shifted(arrays["train"][index])
            loss = functional.cross_entropy(module(image), arrays["train_labels"][index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    accuracy = evaluate(module, arrays["test"], arrays["test_labels"])
    logger.info("%s: test accuracy %.2f %%", type(module).__name__, 100 * accuracy)
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def shifted(images: Tensor) -> Tensor:
    """Shift each image ``[1, 8, 8]`` by up to one pixel a direction, half of the time not at all."""
    padded = functional.pad(images, (1, 1, 1, 1))
    moved = torch.rand(len(images), 1) < 0.5
    offsets = torch.where(moved, torch.randint(0, 3, (len(images), 2)), 1)
    crops = [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    return torch.stack(crops)


def evaluate(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy, 0..1, of the module in evaluation mode."""
    module.eval()
    with torch.no_grad():
        return float((module(images).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
