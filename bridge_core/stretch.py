"""nJy <-> network units, invertible: u = scale asinh(f / softening), softening in units of the noise of the band.

The sky is 0 in network units, so that zero padding and a zeroed channel mean empty sky. Lupton et al. 1999 (asinh
magnitudes). The same object serves training, translation and evaluation and travels in the checkpoint card.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bridge_core.errors import BridgeError


@dataclass(frozen=True)
class Stretch:
    """Asinh stretch for every band of both surveys.

    Parameters
    ----------
    softening
        Flux per pixel (nJy) by band at which the stretch turns from linear to logarithmic, e.g. twice the noise.
    scale
        Factor from asinh to network units.
    """

    softening: dict[str, float]
    scale: float = 0.25

    def __post_init__(self) -> None:
        """Refuse a softening that cannot be inverted."""
        for band, value in self.softening.items():
            if not value > 0:
                raise BridgeError(f"stretch softening of band {band} is {value} nJy; it must be > 0")

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Stretch:
        """Read what `card` wrote."""
        return cls(dict(card["softening"]), card["scale"])

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def forward(self, flux: Tensor, bands: tuple[str, ...]) -> Tensor:
        """[..., C, H, W] nJy per pixel -> network units, float32."""
        return self.scale * torch.asinh(flux / self._softening(bands, flux))

    def inverse(self, u: Tensor, bands: tuple[str, ...]) -> Tensor:
        """[..., C, H, W] network units -> nJy per pixel, float32."""
        return self._softening(bands, u) * torch.sinh(u / self.scale)

    def unit(self, softenings: float) -> float:
        """Network units of a flux of so many softenings, the same for every band."""
        return self.scale * math.asinh(softenings)

    def _softening(self, bands: tuple[str, ...], like: Tensor) -> Tensor:
        missing = [band for band in bands if band not in self.softening]
        if missing:
            raise BridgeError(
                f"bands {missing} are not in this checkpoint's stretch, which knows {sorted(self.softening)}"
            )
        return torch.tensor([self.softening[b] for b in bands], dtype=like.dtype, device=like.device)[:, None, None]
