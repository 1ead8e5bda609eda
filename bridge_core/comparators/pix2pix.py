"""pix2pix (Isola et al. 2017): a U-Net whose only noise is dropout, a PatchGAN, and an L1 distance to the truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.bridge_core.comparators.blocks import SLOPE, PatchCritic, normal, start_weights
from surveybridge.bridge_core.comparators.shape import Shape
from surveybridge.bridge_core.comparators.translator import Translator

L1_WEIGHT = 100.0
NOISY = 3
"""Innermost blocks of the decoder that drop half of their values, in training and after it."""


class DropoutUNet(nn.Module):
    """Encoder C-2C-4C-8C-8C-8C of 4 x 4 convolutions with stride 2 down to one pixel, and its mirror with skips.

    Instance norm, which is what the paper's batch norm is at its batch of 1; none in the first and the innermost layer.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        levels = shape.halvings
        widths = [shape.width * min(2**level, 8) for level in range(levels)]
        self.down = nn.ModuleList(
            nn.Conv2d(w_in, w, 4, stride=2, padding=1)
            for w_in, w in zip([shape.seen, *widths[:-1]], widths, strict=True)
        )
        outputs = [shape.made, *widths[:-1]][::-1]
        inputs = [widths[-1], *(2 * w for w in outputs[:-1])]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(w_in, w, 4, stride=2, padding=1) for w_in, w in zip(inputs, outputs, strict=True)
        )
        sides = [2 ** (level + 1) for level in range(min(NOISY, levels - 1))]
        self.dropped = [(w, side, side) for w, side in zip(outputs, sides, strict=False)]

    @property
    def deviates(self) -> int:
        """Values that may be dropped."""
        return sum(w * h * v for w, h, v in self.dropped)

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        """Map [N, seen, S, S] and deviates [N, D] to [N, made, S, S]; a value is dropped if its deviate is negative."""
        h, skips, last = condition, [], len(self.down) - 1
        for level, conv in enumerate(self.down):
            h = conv(F.leaky_relu(h, SLOPE) if level else h)
            h = F.instance_norm(h) if 0 < level < last else h
            skips.append(h)
        h = skips.pop()
        for level, conv in enumerate(self.up):
            h = conv(h.relu())
            if level == last:
                return h
            h = F.instance_norm(h)
            if level < len(self.dropped):
                size = h[0].numel()
                mask, z = z[:, :size] > 0, z[:, size:]
                h = h * (2 * mask.view_as(h))
            h = torch.cat([h, skips.pop()], 1)
        raise AssertionError("the last level returns")


class Pix2Pix(Translator):
    """Its objective is cGAN + 100 L1 (eq. (4)), with the critic's loss halved (sec. 3.3)."""

    rates, betas = (2e-4, 2e-4), (0.5, 0.999)

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.generator = DropoutUNet(shape)
        # the paper's critic has three such layers for 256 pixels
        self.critic = PatchCritic(shape.seen + shape.made, shape.width, 2, spectral=False)
        self.deviates = self.generator.deviates
        start_weights(self, normal)

    def critic_loss(self, condition: Tensor, truth: Tensor, made: Tensor, draws: torch.Generator) -> Tensor:
        """Half the binary cross-entropy of real and made patches."""
        real, fake = (self.critic(condition, image)[-1].float() for image in (truth, made))
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())

    def generator_loss(self, condition: Tensor, truth: Tensor, made: Tensor) -> Tensor:
        """Cross-entropy of being taken for real, and 100 times the distance to the truth."""
        fooled = F.softplus(-self.critic(condition, made)[-1].float()).mean()
        return fooled + L1_WEIGHT * (made - truth).abs().mean()
