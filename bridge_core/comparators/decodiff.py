"""DeCo-Diff (Beizaee et al. 2025): a detector that learns to correct images of one survey towards ordinary ones.

Published in the latent space of an autoencoder whose weights are not at hand; here its pixels are blocks of 2 x 2
pixels, and its network is the house's U-Net. Clips of the anomaly map are in units of the sky noise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.bridge_core.correlate import gaussian_blur
from surveybridge.bridge_core.network import NetworkConfig, UNet

STEPS = 10
"""T of the forward process."""
REVERSE = (8, 6, 4, 2, 0)
BLOCK = 2
SIDES, SHARES = (1, 2, 4, 8), (0.4, 0.3, 0.2, 0.1)
"""Sides of the patches of the mask in blocks, and how often each is drawn."""
MASKED, SHUFFLED = 0.7, 0.3
"""Largest shares of the blocks that are noised, and whose noise is other images' content."""
CLIP = 5.0
"""Deviation in sky sigmas beyond which the image's part of the map does not rise; half of it for that of blocks."""


def alpha_bar() -> Tensor:
    """Return the share of the image left after each of `STEPS` steps, float32 [T], cosine (Nichol & Dhariwal 2021)."""
    f = torch.cos((torch.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - (1 - f[1:] / f[:-1]).clamp(max=0.999)).cumprod(0)


class DecoDiff(nn.Module):
    """Predicts the direction of deviation of images of one end, float32 [N, P, S, S] in network units."""

    def __init__(self, planes: int, base: int = 16) -> None:
        super().__init__()
        self.depth = planes * BLOCK**2
        # of the house's network the slots of both ends stay empty, and the second head is not used
        self.unet = UNet(NetworkConfig(base=base, image_channels=self.depth, norm="pixel"))
        self.alpha_bar: Tensor
        self.register_buffer("alpha_bar", alpha_bar())

    def forward(self, blocks: Tensor, t: Tensor) -> Tensor:
        """Map noised blocks [N, 4 P, S / 2, S / 2] at steps int64 [N] to their deviation, of the same shape."""
        with torch.autocast(blocks.device.type, torch.bfloat16):
            heads = self.unet(torch.cat([blocks, torch.zeros_like(blocks).repeat(1, 2, 1, 1)], 1), t, 0 * t)
        return heads[:, : self.depth].float()

    def loss(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Squared error of the deviation of partly noised images, a scalar (its eqs. (5) and (6))."""
        x0 = F.pixel_unshuffle(images, BLOCK)
        t = torch.randint(0, STEPS, (len(x0),), generator=draws)
        x_t, deviation = noised(x0, self.alpha_bar[t].view(-1, 1, 1, 1), draws)
        return F.mse_loss(self(x_t, t), deviation)

    @torch.inference_mode()
    def corrected(self, images: Tensor) -> Tensor:
        """Follow the deviation back from the images themselves, without noise, in 5 deterministic steps."""
        x = F.pixel_unshuffle(images, BLOCK)
        for i, step in enumerate(REVERSE):
            deviation = self(x, torch.full((len(x),), step))
            x = x - (1 - self.alpha_bar[step]).sqrt() * deviation
            if i + 1 < len(REVERSE):
                x = x + (1 - self.alpha_bar[REVERSE[i + 1]]).sqrt() * deviation
        return F.pixel_shuffle(x, BLOCK)

    def anomaly_map(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Return how much is corrected where, float32 [N, S, S] in 0..1; sigma [P] is the noise in network units."""
        off = (self.corrected(images) - images).abs() / sigma.view(-1, 1, 1)
        fine = (off.amax(1, keepdim=True) / CLIP).clamp(max=1)
        coarse = (F.pixel_unshuffle(off, BLOCK).mean(1, keepdim=True) / (CLIP / 2)).clamp(max=1)
        coarse = F.interpolate(
            gaussian_blur(coarse, 1.0, "replicate"), scale_factor=BLOCK, mode="bilinear", align_corners=False
        )
        return (gaussian_blur(fine, 3.0, "replicate") * coarse).sqrt()[:, 0]

    def score(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Score images by the largest value of their map, float32 [N]."""
        return self.anomaly_map(images, sigma).amax((1, 2))


def noised(x0: Tensor, left: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise random patches of blocks, and return the result with its deviation, each of the shape of x0 [N, D, H, W].

    Parameters
    ----------
    x0
        Blocks.
    left
        alpha_bar of each image, [N, 1, 1, 1].
    draws
        Source of masks and noise.

    Notes
    -----
    x_t - sqrt(1 - alpha_bar) deviation = x0 everywhere.
    """
    side = SIDES[int(torch.multinomial(torch.tensor(SHARES), 1, generator=draws))]
    kept = 1 - _patches(x0, side, MASKED, draws)
    noise = torch.randn(x0.shape, generator=draws)
    other = _patches(x0, side, SHUFFLED, draws)
    noise = torch.where(other > 0, _shuffled(x0, side, draws), noise)
    c = (1 - left.sqrt()) / (1 - left).sqrt()
    deviation = (1 - kept) * (noise - c * x0)
    return x0 + (1 - left).sqrt() * deviation, deviation


def _patches(x: Tensor, side: int, most: float, draws: torch.Generator) -> Tensor:
    """Mark patches of a side with 1, in each image a share uniform in 0..most, float32 [N, 1, H, W]."""
    n, _, height, width = x.shape
    share = most * torch.rand(n, 1, 1, 1, generator=draws)
    grid = torch.rand(n, 1, -(-height // side), -(-width // side), generator=draws) < share
    return F.interpolate(grid.float(), scale_factor=float(side), mode="nearest")[..., :height, :width]


def _shuffled(x: Tensor, side: int, draws: torch.Generator) -> Tensor:
    """Deal the patches of all images out anew."""
    n, depth, height, width = x.shape
    parts = x.view(n, depth, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    flat = parts.reshape(-1, depth, side, side)
    dealt = flat[torch.randperm(len(flat), generator=draws)].view(parts.shape)
    return dealt.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
