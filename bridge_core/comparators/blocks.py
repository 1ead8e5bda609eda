"""Layers that the adversarial methods share: SPADE's normalisation and residual block, PatchGAN, initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

GROUPS = 8
SLOPE = 0.2
"""Of LeakyReLU."""
HIDDEN = 2
"""Channels between the condition and SPADE's modulation over `Shape.width`: 128 at the published width of 64."""


class SpadeNorm(nn.Module):
    """Spatially adaptive normalisation: norm(x) (1 + gamma(condition)) + beta(condition), Park et al. 2019, eq. (1).

    The norm without parameters is over groups of channels of each image; published is that of the batch, which small
    batches do not bear.
    """

    def __init__(self, width: int, seen: int, hidden: int) -> None:
        super().__init__()
        self.groups = math.gcd(GROUPS, width)
        self.shared = nn.Conv2d(seen, hidden, 3, padding=1)
        self.gamma_beta = nn.Conv2d(hidden, 2 * width, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map [N, width, h, w], given a condition [N, seen, H, W], to the shape of x."""
        resized = F.interpolate(condition, size=x.shape[-2:], mode="nearest")
        gamma, beta = self.gamma_beta(self.shared(resized).relu()).chunk(2, 1)
        normed = F.group_norm(x, self.groups)
        return normed * (1 + gamma) + beta


class SpadeBlock(nn.Module):
    """SPADE's residual block: twice SPADE, LeakyReLU and a spectrally normalised 3 x 3 convolution (its fig. 4)."""

    def __init__(self, width_in: int, width: int, seen: int, hidden: int) -> None:
        super().__init__()
        middle = min(width_in, width)
        self.norm1, self.norm2 = SpadeNorm(width_in, seen, hidden), SpadeNorm(middle, seen, hidden)
        self.conv1 = spectral_norm(nn.Conv2d(width_in, middle, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(middle, width, 3, padding=1))
        self.same = width_in == width
        if not self.same:
            self.norm_skip = SpadeNorm(width_in, seen, hidden)
            self.skip = spectral_norm(nn.Conv2d(width_in, width, 1, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map [N, width_in, h, w], given a condition [N, seen, H, W], to [N, width, h, w]."""
        h = self.conv1(F.leaky_relu(self.norm1(x, condition), SLOPE))
        h = self.conv2(F.leaky_relu(self.norm2(h, condition), SLOPE))
        return h + (x if self.same else self.skip(self.norm_skip(x, condition)))


class PatchCritic(nn.Module):
    """PatchGAN: tells real from made in overlapping patches (Isola et al. 2017, sec. 3.2).

    Parameters
    ----------
    seen
        Planes of the condition and the image together.
    width
        Channels of the first layer; they double up to 8 times as many.
    strided
        Layers that halve the resolution: 2 see patches of 34 pixels, 3 of 70.
    spectral
        Whether weights are normalised spectrally, as SPADE does.
    """

    def __init__(self, seen: int, width: int, strided: int, *, spectral: bool) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(strided + 1)]
        layers: list[nn.Module] = []
        for level, (w_in, w) in enumerate(zip([seen, *widths[:-1]], widths, strict=True)):
            # two pixels of padding keep some of the smallest windows
            conv: nn.Module = nn.Conv2d(w_in, w, 4, stride=2 if level < strided else 1, padding=2)
            inner = [nn.InstanceNorm2d(w)] if level else []
            conv = spectral_norm(conv) if spectral and level else conv
            layers.append(nn.Sequential(conv, *inner, nn.LeakyReLU(SLOPE)))
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=2))
        self.layers = nn.ModuleList(layers)

    def forward(self, condition: Tensor, image: Tensor) -> list[Tensor]:
        """Return what every layer says of images [N, P, H, W], the last of them the logits [N, 1, h, w]."""
        found, h = [], torch.cat([condition, image], 1)
        for layer in self.layers:
            h = layer(h)
            found.append(h)
        return found


def start_weights(network: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    """Draw the weights of all convolutions and linear layers in place and set their biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # a spectrally normalised layer has its weight elsewhere, and whatever its scale
            if not is_parametrized(module):
                draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def xavier(weight: Tensor) -> Tensor:
    """Draw as SPADE and OASIS do."""
    return nn.init.xavier_normal_(weight, gain=0.02)


def normal(weight: Tensor) -> Tensor:
    """Draw as pix2pix does."""
    return nn.init.normal_(weight, 0.0, 0.02)
