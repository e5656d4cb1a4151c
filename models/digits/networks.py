"""The digits networks in PyTorch, for training; parameters are named as in the ONNX builders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBn(nn.Module):  # type: ignore[misc]
    """Convolution without bias and BatchNorm, as `qcomp.models.blocks.conv_bn` without its activation."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, cin, H, W]`` to ``[N, cout, H / stride, W / stride]``."""
        return self.bn(self.conv(x))


class BasicBlock(nn.Module):  # type: ignore[misc]
    """Two convolutions around an identity, as `qcomp.models.blocks.basic_block`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvBn(channels, channels), ConvBn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape ``[N, channels, H, W]``."""
        return functional.relu(self.conv2(functional.relu(self.conv1(x))) + x)


class Separable(nn.Module):  # type: ignore[misc]
    """Depthwise and pointwise convolution with ReLU6, as `qcomp.models.blocks.separable`."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.depthwise, self.pointwise = ConvBn(cin, cin, groups=cin), ConvBn(cin, cout, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, cin, H, W]`` to ``[N, cout, H, W]``."""
        return functional.relu6(self.pointwise(functional.relu6(self.depthwise(x))))


class DigitsCnn(nn.Module):  # type: ignore[misc]
    """`qcomp.models.digits.cnn.digits_cnn`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block1 = ConvBn(1, 32), BasicBlock(32)
        self.down, self.block2 = ConvBn(32, 48, stride=2), BasicBlock(48)
        self.separable, self.fc = Separable(48, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 1, 8, 8]`` to ``[N, 10]``."""
        x = self.block1(functional.relu(self.stem(x)))
        x = self.block2(functional.relu(self.down(x)))
        return self.fc(self.separable(x).mean(dim=(2, 3)))


class Embed(nn.Module):  # type: ignore[misc]
    """Patch projection, class token and positions."""

    def __init__(self, size: int, patch: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(1, dim, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, dim) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 1, size, size]`` to ``[N, 1 + patches, dim]``."""
        patches = self.project(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.position


class Attention(nn.Module):  # type: ignore[misc]
    """Multi-head self-attention, as `qcomp.models.blocks.attention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape ``[N, L, dim]``."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):  # type: ignore[misc]
    """The perceptron of a block, as `qcomp.models.blocks.feed_forward`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape ``[N, L, dim]``."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):  # type: ignore[misc]
    """A pre-LayerNorm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape ``[N, L, dim]``."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitsVit(nn.Module):  # type: ignore[misc]
    """`qcomp.models.vit.vit` for images of one channel."""

    def __init__(self, size: int, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = Embed(size, patch, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 1, size, size]`` to ``[N, 10]``."""
        return self.head(self.norm(self.blocks(self.embed(x)))[:, 0])
