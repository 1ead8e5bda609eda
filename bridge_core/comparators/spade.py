"""SPADE (Park et al. 2019): the condition modulates every layer; z comes from an encoder, so that samples differ.

The condition is an image instead of a label map; nothing else follows from that. The perceptual loss on VGG's features
is left out, because its weights are not at hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from surveybridge.bridge_core.comparators.blocks import HIDDEN, SLOPE, PatchCritic, SpadeBlock, start_weights, xavier
from surveybridge.bridge_core.comparators.shape import Shape
from surveybridge.bridge_core.comparators.translator import Translator

LATENT = 256
"""Length of z."""
MULTIPLIERS = (16, 16, 8, 4, 2)
"""Channels of the residual blocks over `Shape.width`, between which the resolution doubles."""
LEAST = 4
"""Pixels across the first of them."""
FEATURE_WEIGHT, KL_WEIGHT = 10.0, 0.05


class SpadeGenerator(nn.Module):
    """A linear layer from z to 4 x 4 pixels, SPADE blocks with nearest upsampling in between, one convolution."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        doublings = min(shape.halvings - 2, len(MULTIPLIERS) - 1)
        widths = [m * shape.width for m in MULTIPLIERS[-(doublings + 1) :]]
        hidden = HIDDEN * shape.width
        self.first_shape = (widths[0], shape.side >> doublings, shape.side >> doublings)
        self.first = nn.Linear(LATENT, widths[0] * self.first_shape[1] ** 2)
        self.blocks = nn.ModuleList(
            SpadeBlock(w_in, w, shape.seen, hidden) for w_in, w in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.last = nn.Conv2d(widths[-1], shape.made, 3, padding=1)

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        """Map [N, seen, S, S] and z [N, LATENT] to [N, made, S, S]."""
        h = self.first(z).unflatten(1, self.first_shape)
        for i, block in enumerate(self.blocks):
            h = block(F.interpolate(h, scale_factor=2.0, mode="nearest") if i else h, condition)
        return self.last(F.leaky_relu(h, SLOPE))


class Encoder(nn.Module):
    """Mean and log variance of z given the wanted image: strided convolutions down to 4 x 4 pixels (its fig. 14)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        halvings = shape.halvings - 2
        widths = [shape.width * min(2**level, 8) for level in range(halvings)]
        layers = [
            nn.Sequential(spectral_norm(nn.Conv2d(w_in, w, 3, stride=2, padding=1)), nn.InstanceNorm2d(w))
            for w_in, w in zip([shape.made, *widths[:-1]], widths, strict=True)
        ]
        self.layers = nn.ModuleList(layers)
        self.moments = nn.Linear(widths[-1] * LEAST**2, 2 * LATENT)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, made, S, S] to mean and log variance, [N, LATENT] each."""
        h = image
        for layer in self.layers:
            h = F.leaky_relu(layer(h), SLOPE)
        mean, log_variance = self.moments(h.flatten(1)).float().chunk(2, 1)
        return mean, log_variance


class TwoScaleCritic(nn.Module):
    """PatchGAN on the images and on their halves."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        planes = shape.seen + shape.made
        self.scales = nn.ModuleList(PatchCritic(planes, shape.width, 3, spectral=True) for _ in range(2))

    def forward(self, condition: Tensor, image: Tensor) -> list[list[Tensor]]:
        """Return what the critic of each scale says, layer by layer, of images [N, P, H, W]."""
        found = []
        for critic in self.scales:
            found.append(critic(condition, image))
            condition, image = (F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False) for x in (condition, image))
        return found


class Spade(Translator):
    """Hinge loss, distance of the critic's features (weight 10) at two scales, and KL divergence of z (weight 0.05)."""

    deviates = LATENT
    rates, betas = (1e-4, 4e-4), (0.0, 0.9)

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.generator = SpadeGenerator(shape)
        self.encoder = Encoder(shape)
        self.critic = TwoScaleCritic(shape)
        start_weights(self, xavier)

    def attempt(self, condition: Tensor, truth: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Make images with z of the truth itself, as a variational autoencoder does; the penalty is the divergence."""
        mean, log_variance = self.encoder(truth)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        made = self.generate(condition, mean + z * (0.5 * log_variance).exp())
        return made, KL_WEIGHT * divergence

    def critic_loss(self, condition: Tensor, truth: Tensor, made: Tensor, draws: torch.Generator) -> Tensor:
        """Hinge loss, mean over the scales."""
        real, fake = self.critic(condition, truth), self.critic(condition, made)
        losses = [
            F.relu(1 - r[-1].float()).mean() + F.relu(1 + f[-1].float()).mean() for r, f in zip(real, fake, strict=True)
        ]
        return torch.stack(losses).mean()

    def generator_loss(self, condition: Tensor, truth: Tensor, made: Tensor) -> Tensor:
        """Minus the critics' opinion, and 10 times the distance of their features from those of the truth."""
        fake = self.critic(condition, made)
        with torch.no_grad():
            real = self.critic(condition, truth)
        fooled = torch.stack([-f[-1].float().mean() for f in fake]).mean()
        apart = [
            (a.float() - b.float()).abs().mean()
            for f, r in zip(fake, real, strict=True)
            for a, b in zip(f[:-1], r[:-1], strict=True)
        ]
        return fooled + FEATURE_WEIGHT * torch.stack(apart).sum() / len(fake)
