"""nJy <-> network units, invertible: u = scale asinh(f / softening) + offset, softening in units of a band's noise.

In our checkpoints the sky is 0 in network units, so that zero padding and a zeroed channel mean empty sky; AS-Bridge
has it at -1. Lupton et al. 1999 (asinh magnitudes). The same object serves training, translation and evaluation and
travels in the checkpoint card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError


@dataclass(frozen=True)
class Stretch:
    """Asinh stretch for every band of both surveys.

    Parameters
    ----------
    softening
        Flux per pixel (nJy) by band at which the stretch turns from linear to logarithmic, e.g. twice the noise.
    scale
        Factor from asinh to network units, for all bands or by band.
    offset
        Network units of the empty sky.
    clip
        Bounds of what `forward` returns, or None: beyond them it cannot be inverted.
    """

    softening: dict[str, float]
    scale: float | dict[str, float] = 0.25
    offset: float = 0.0
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse a softening that cannot be inverted."""
        for band, value in self.softening.items():
            if not value > 0:
                raise BridgeError(f"stretch softening of band {band} is {value} nJy; it must be > 0")

    @classmethod
    def asbridge(cls, noise: Mapping[str, float], top: Mapping[str, float]) -> Stretch:
        """Stretch to AS-Bridge's range: the sky at -1 and a flux of `top` at 1.

        Parameters
        ----------
        noise, top
            Standard deviation of the sky, and the flux that is white, nJy per pixel by band.
        """
        softening = {band: 3 * noise[band] for band in top}
        scale = {band: 2 / math.asinh(top[band] / softening[band]) for band in top}
        return cls(softening, scale, offset=-1.0, clip=(-1.4, 1.0))

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Stretch:
        """Read what `card` wrote."""
        clip = card.get("clip")
        return cls(
            dict(card["softening"]), card["scale"], card.get("offset", 0.0), (clip[0], clip[1]) if clip else None
        )

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def forward(self, flux: Tensor, bands: tuple[str, ...]) -> Tensor:
        """[..., C, H, W] nJy per pixel -> network units, float32."""
        u = self._column(self.scale, bands, flux) * torch.asinh(flux / self._column(self.softening, bands, flux))
        u = u + self.offset if self.offset else u
        return u.clamp(*self.clip) if self.clip else u

    def inverse(self, u: Tensor, bands: tuple[str, ...]) -> Tensor:
        """[..., C, H, W] network units -> nJy per pixel, float32."""
        u = u - self.offset if self.offset else u
        return self._column(self.softening, bands, u) * torch.sinh(u / self._column(self.scale, bands, u))

    def unit(self, softenings: float, band: str) -> float:
        """Network units of a flux of so many softenings of a band."""
        scale = self.scale[band] if isinstance(self.scale, dict) else self.scale
        return scale * math.asinh(softenings) + self.offset

    def _column(self, values: float | dict[str, float], bands: tuple[str, ...], like: Tensor) -> Tensor:
        """Values by band as [C, 1, 1]."""
        missing = [band for band in bands if band not in self.softening]
        if missing:
            raise BridgeError(
                f"bands {missing} are not in this checkpoint's stretch, which knows {sorted(self.softening)}"
            )
        column = [values[band] if isinstance(values, dict) else values for band in bands]
        return torch.tensor(column, dtype=like.dtype, device=like.device)[:, None, None]
