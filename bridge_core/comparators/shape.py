"""Which image a translator sees and makes: planes, side and bounds, and observed images on the wanted end's pixels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.problem import Direction

SMALLEST = 16
"""Pixels across the smallest window: there each network still has two changes of resolution."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the networks of one method and direction.

    Parameters
    ----------
    side
        Pixels across the window, a power of 2 of at least `SMALLEST`.
    width
        Channels of the first stage (ngf of pix2pix, nf of SPADE, ch of OASIS).
    seen, made
        Planes of the condition and of the wanted image.
    aligned
        Planes of the condition, the first, that lie on the pixels of the wanted image.
    bounds
        Network units between which the last layer, a hyperbolic tangent, lies: all that the stretch gives.
    """

    side: int
    width: int
    seen: int
    made: int
    aligned: int
    bounds: tuple[float, float] = (-1.4, 1.0)

    def __post_init__(self) -> None:
        """Refuse windows that cannot be halved down to a few pixels."""
        if self.side < SMALLEST or self.side & (self.side - 1):
            raise BridgeError(
                f"comparators see windows of {self.side} pixels, but need a power of 2 of at least {SMALLEST}; cut the "
                f"stamps to {max(SMALLEST, 2 ** int(math.log2(max(self.side, 1))))} pixels"
            )

    @classmethod
    def of(cls, direction: Direction, side: int, width: int) -> Shape:
        """Return the shape of a direction whose wanted end has a stretch with bounds, such as AS-Bridge's."""
        clip = getattr(direction.wanted.fitted, "clip", None)
        if clip is None:
            raise BridgeError(
                f"{direction}: the stretch of {direction.wanted.name} has no bounds, but comparators end with tanh; "
                "give AS-Bridge's (Stretch.asbridge)"
            )
        planes = direction.observed.planes
        seen = planes if _ratio(direction) == 1 else 2 * planes
        return cls(side, width, seen, direction.wanted.planes, planes, clip)

    @property
    def halvings(self) -> int:
        """How often the window can be halved until one pixel is left."""
        return int(math.log2(self.side))

    def bounded(self, x: Tensor) -> Tensor:
        """Bring the last layer's output of any size to network units within the bounds, float32.

        The methods end with tanh because their images fill [-1, 1]; ours have noise below the sky's -1 as well.
        """
        low, high = self.bounds
        return low + 0.5 * (high - low) * (1 + x.float().tanh())

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Shape:
        """Read what `card` wrote."""
        low, high = card["bounds"]
        return cls(**{**card, "bounds": (float(low), float(high))})


def condition(x1: Tensor, direction: Direction) -> Tensor:
    """Put observed images on the pixels of the wanted end, as far as their pixels differ.

    Stamps of both ends share their centre and their number of pixels. Where pixels of the observed end are larger, the
    middle of its stamp is enlarged (bicubic); where they are smaller, its stamp is binned into the middle of an empty
    sky. Flux is conserved. Adversarial networks work pixel by pixel, so they would be lost without (AS-Bridge feeds its
    own network unaligned stamps). The stamp as it was follows in further planes, for what the alignment cuts off.

    Parameters
    ----------
    x1
        float32 [N, C, H, W], network units of the observed end.
    direction
        Of the translation; its ends state their pixel scales.

    Returns
    -------
    Tensor
        float32 [N, P, H, W], or [N, 2 P, H, W] where pixels differ.
    """
    observed, ratio = direction.observed, _ratio(direction)
    planes = observed.planes_in(x1)
    if ratio == 1:
        return planes
    flux, side = observed.inverse(x1), x1.shape[-1]
    if ratio > 1:
        inner = round(side / ratio)
        first = (side - inner) // 2
        middle = flux[..., first : first + inner, first : first + inner]
        there = F.interpolate(middle, size=(side, side), mode="bicubic", align_corners=False) / ratio**2
    else:
        bins = round(1 / ratio)
        small = F.avg_pool2d(flux, bins) * bins**2
        edge = (side - small.shape[-1]) // 2
        there = F.pad(small, (edge, side - small.shape[-1] - edge) * 2)
    return torch.cat([observed.fitted.forward(there, observed.bands), planes], 1)


def _ratio(direction: Direction) -> float:
    """Pixel scale of the observed end over that of the wanted one, a whole number or one over it."""
    scales = direction.observed.pixel_scale, direction.wanted.pixel_scale
    ratio = scales[0] / scales[1] if all(scales) else 1.0
    larger = max(ratio, 1 / ratio)
    if abs(larger - round(larger)) > 0.01:
        raise BridgeError(
            f'{direction}: pixels of {scales[0]:g}" and {scales[1]:g}" are no multiples of each other; resample one end'
        )
    return round(ratio) if ratio >= 1 else 1 / round(larger)
