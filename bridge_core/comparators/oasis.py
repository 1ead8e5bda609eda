"""OASIS (Schönfeld et al. 2021): SPADE's generator with noise in every layer, and a critic that segments.

The critic gives each pixel one of the condition's classes or "made". Our condition is an image and has no classes: here
they are sky and `BINS` bins of equal frequency of the brightness above it. The generator sees the image itself.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from surveybridge.bridge_core.comparators.blocks import HIDDEN, SLOPE, SpadeBlock, start_weights, xavier
from surveybridge.bridge_core.comparators.shape import Shape
from surveybridge.bridge_core.comparators.translator import Translator

NOISE = 64
"""Channels of noise, one vector an image, spread over its pixels."""
BINS = 7
SKY_SIGMAS = 2.0
MULTIPLIERS = (16, 16, 16, 8, 4, 2, 1)
CRITIC = (2, 2, 4, 4, 8)
"""Channels of the critic's levels over `Shape.width`."""
MIX_WEIGHT = 10.0


class NoisyGenerator(nn.Module):
    """SPADE blocks modulated by condition and noise, from 2 x 2 pixels (64 halved five times) upwards."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        doublings = min(shape.halvings - 1, len(MULTIPLIERS) - 2)
        widths = [m * shape.width for m in MULTIPLIERS[-(doublings + 2) :]]
        hidden = HIDDEN * shape.width
        self.first_side = shape.side >> doublings
        self.first = nn.Conv2d(shape.seen + NOISE, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            SpadeBlock(w_in, w, shape.seen + NOISE, hidden) for w_in, w in itertools.pairwise(widths)
        )
        self.last = nn.Conv2d(widths[-1], shape.made, 3, padding=1)

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        """Map [N, seen, S, S] and z [N, NOISE] to [N, made, S, S]."""
        noise = z[:, :, None, None].expand(-1, -1, *condition.shape[-2:])
        told = torch.cat([noise, condition], 1)
        h = self.first(F.interpolate(told, size=(self.first_side, self.first_side), mode="nearest"))
        for i, block in enumerate(self.blocks):
            h = block(F.interpolate(h, scale_factor=2.0, mode="nearest") if i else h, told)
        return self.last(F.leaky_relu(h, SLOPE))


class CriticBlock(nn.Module):
    """Two convolutions with a residual that halve, double or keep the resolution."""

    def __init__(self, width_in: int, width: int, change: int) -> None:
        super().__init__()
        self.change = change
        self.conv1 = spectral_norm(nn.Conv2d(width_in, width, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(width_in, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width_in, h, w] to [N, width, h 2^change, w 2^change]."""
        if self.change > 0:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        h = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, SLOPE)), SLOPE)) + self.skip(x)
        return F.avg_pool2d(h, 2) if self.change < 0 else h


class SegmentingCritic(nn.Module):
    """A residual U-Net from images to logits of each pixel: made, then the classes."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        levels = min(shape.halvings - 1, len(CRITIC))
        widths = [m * shape.width for m in CRITIC[:levels]]
        self.down = nn.ModuleList(
            CriticBlock(w_in, w, -1) for w_in, w in zip([shape.made, *widths[:-1]], widths, strict=True)
        )
        outputs = [*widths[:-1][::-1], 2 * shape.width]
        inputs = [widths[-1], *(2 * w for w in outputs[:-1])]
        self.up = nn.ModuleList(CriticBlock(w_in, w, 1) for w_in, w in zip(inputs, outputs, strict=True))
        self.last = nn.Conv2d(outputs[-1], BINS + 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map [N, made, S, S] to [N, BINS + 2, S, S], float32."""
        h, skips = image, []
        for block in self.down:
            h = block(h)
            skips.append(h)
        skips.pop()
        for block in self.up:
            h = block(h)
            h = torch.cat([h, skips.pop()], 1) if skips else h
        return self.last(h).float()


class Oasis(Translator):
    """Cross-entropy over classes and "made" for both networks (its eqs. (1) and (2)), and LabelMix for the critic."""

    deviates = NOISE
    rates, betas, decay, falling = (1e-4, 4e-4), (0.0, 0.999), 0.9999, False

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.generator = NoisyGenerator(shape)
        self.critic = SegmentingCritic(shape)
        self.edges: Tensor
        self.register_buffer("edges", torch.linspace(*shape.bounds, BINS + 2)[1:-1].clone())
        start_weights(self, xavier)

    def fit_to(self, conditions: Tensor) -> None:
        """Set the edges of the classes: sky to 2 sigma above the median, and bins of equal frequency above that."""
        bright = self._brightness(conditions).flatten()
        bright = bright[:: max(1, len(bright) // 1_000_000)]  # quantiles take no more values than that
        middle = bright.median()
        sky = middle + SKY_SIGMAS * 1.4826 * (bright - middle).abs().median()
        above = bright[bright > sky]
        shares = torch.arange(1, BINS) / BINS
        rest = torch.quantile(above, shares) if len(above) else sky + shares
        self.edges.copy_(torch.cat([sky[None], rest]))

    def classes(self, condition: Tensor) -> Tensor:
        """Return the class of each pixel, int64 [N, H, W]: 1 for sky, up to BINS + 1 for the brightest; 0 is made."""
        return torch.bucketize(self._brightness(condition), self.edges) + 1

    def critic_loss(self, condition: Tensor, truth: Tensor, made: Tensor, draws: torch.Generator) -> Tensor:
        """Real pixels have their class, made ones none; what is mixed by class is to be told as its parts are."""
        classes = self.classes(condition)
        real, fake = self.critic(truth), self.critic(made)
        none = torch.zeros_like(classes)
        loss = _weighted(real, classes) + F.cross_entropy(fake, none)
        kept = torch.rand(len(truth), BINS + 2, generator=draws) < 0.5
        mask = kept.to(truth.device).gather(1, classes.flatten(1)).view_as(classes)[:, None].to(truth.dtype)
        mixed = self.critic(mask * truth + (1 - mask) * made)
        return loss + MIX_WEIGHT * F.mse_loss(mixed, mask * real + (1 - mask) * fake)

    def generator_loss(self, condition: Tensor, truth: Tensor, made: Tensor) -> Tensor:
        """Made pixels are to be given the classes of the condition."""
        return _weighted(self.critic(made), self.classes(condition))

    def _brightness(self, condition: Tensor) -> Tensor:
        """The brightest aligned plane of each pixel, smoothed over 3 x 3 pixels, [N, H, W]."""
        brightest = condition[:, : self.shape.aligned].amax(1, keepdim=True)
        return F.avg_pool2d(brightest, 3, 1, padding=1, count_include_pad=False)[:, 0]


def _weighted(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy in which each class that is there weighs as much as any other (its eq. (1))."""
    counts = torch.bincount(classes.flatten(), minlength=logits.shape[1]).to(logits.dtype)
    weights = torch.where(counts > 0, classes.numel() / (counts.clamp(min=1) * (counts > 0).sum()), 0.0)
    return (weights[classes] * F.cross_entropy(logits, classes, reduction="none")).mean()
