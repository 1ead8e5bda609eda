"""Physical values <-> network units, invertible; a stretch serves training, translation and evaluation, in the card.

Fluxes take asinh (Lupton et al. 1999): u = scale asinh(f / softening) + offset, softening in units of a band's noise.
In our checkpoints the sky is 0 in network units, so that zero padding and a zeroed channel mean empty sky; AS-Bridge
has it at -1. Densities, which span orders of magnitude, take log10. Angles with period pi, as a polarisation angle,
are shown as cos 2psi and sin 2psi, which have no seam. An endpoint of several quantities has a stretch for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.kernels.transfer import to_device


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
        """Map [..., C, H, W] from physical values to network units, float32."""
        u = self._column(self.scale, bands, flux) * torch.asinh(flux / self._column(self.softening, bands, flux))
        u = u + self.offset if self.offset else u
        return u.clamp(*self.clip) if self.clip else u

    def inverse(self, u: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map [..., C, H, W] from network units to physical values, float32."""
        u = u - self.offset if self.offset else u
        return self._column(self.softening, bands, u) * torch.sinh(u / self._column(self.scale, bands, u))

    def averaged(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Return what posterior moments are taken of: the values themselves."""
        return values

    def summary(self, mean: Tensor, std: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Bring mean and standard deviation of `averaged` back to the unit."""
        return mean, std

    def moments(self, u: Tensor, log_width: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a flux whose network units are Gaussian.

        With a = (mean of u - offset) / scale, E the exponential of the variance of u / scale, and q = cosh 2a, the flux
        has the mean softening sinh(a) sqrt(E) and the variance softening^2 (E - 1) (q E + 1) / 2. The second is given
        here, and E follows from it.

        Parameters
        ----------
        u
            [..., B, H, W], mean in network units.
        log_width
            [..., B, H, W], logarithm of the standard deviation of the flux over the derivative of `inverse` by
            u / scale, softening cosh(a).

        Returns
        -------
        tuple of Tensor
            Mean and standard deviation, [..., B, H, W] in the unit.
        """
        a = (u - self.offset) / self._column(self.scale, bands, u)
        softening, width = self._column(self.softening, bands, u), log_width.exp()
        p = 1 / torch.cosh(2 * a)
        e = (1 - p + ((1 + p) ** 2 + 4 * (1 + p) * width**2).sqrt()) / 2
        return softening * torch.sinh(a) * e.sqrt(), softening * torch.cosh(a) * width

    def of_bands(self, bands: Sequence[str]) -> Stretch:
        """Return the part of it that concerns some bands."""
        scale = {b: self.scale[b] for b in bands} if isinstance(self.scale, dict) else self.scale
        return Stretch({band: self.softening[band] for band in bands}, scale, self.offset, self.clip)

    def unit(self, softenings: float, band: str) -> float:
        """Return the network units of a flux of this many softenings of a band."""
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
        return to_device(torch.tensor(column, dtype=like.dtype), like.device)[:, None, None]


@dataclass(frozen=True)
class LinearStretch:
    """Values over a unit of each band: what physics is linear in, a flux, stays so.

    Parameters
    ----------
    unit
        Value that is 1 in network units, by band, such as twice the noise.
    """

    unit: dict[str, float]

    def __post_init__(self) -> None:
        """Refuse a unit that cannot be inverted."""
        for band, value in self.unit.items():
            if not value > 0:
                raise BridgeError(f"linear stretch of band {band}: unit {value} must be > 0")

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return {"kind": "linear", **asdict(self)}

    def forward(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map values [..., B, H, W] to network units [..., B, H, W]."""
        return values / _column(self.unit, bands, values)

    def inverse(self, u: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map network units [..., B, H, W] to values."""
        return u * _column(self.unit, bands, u)

    def averaged(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Return what posterior moments are taken of: the values themselves."""
        return values

    def summary(self, mean: Tensor, std: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Bring mean and standard deviation of `averaged` back to the unit."""
        return mean, std


@dataclass(frozen=True)
class Log10Stretch:
    """Logarithm of positive values: u = scale (log10 x - offset).

    Parameters
    ----------
    offset
        log10 of the value that is 0 in network units, by band: the mean of the data.
    scale
        Network units a decade, by band.
    floor
        Smallest value by band, in the unit; what lies below, zero and less included, counts as that.
    """

    offset: dict[str, float]
    scale: dict[str, float]
    floor: dict[str, float]

    def __post_init__(self) -> None:
        """Refuse what has no logarithm."""
        for band in self.offset:
            if not (self.scale[band] > 0 and self.floor[band] > 0):
                raise BridgeError(
                    f"log10 stretch of band {band}: scale {self.scale[band]} and floor {self.floor[band]} must be > 0"
                )

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return {"kind": "log10", **asdict(self)}

    def forward(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map values [..., B, H, W] to network units [..., B, H, W]."""
        offset, scale, floor = (_column(by_band, bands, values) for by_band in (self.offset, self.scale, self.floor))
        return scale * (torch.log10(torch.maximum(values, floor)) - offset)

    def inverse(self, u: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map network units [..., B, H, W] to values."""
        offset, scale = (_column(by_band, bands, u) for by_band in (self.offset, self.scale))
        return 10 ** (u / scale + offset)

    def averaged(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Return the values over that of `offset`: the square of 1e22 per cm2 is more than float32 holds."""
        return values / 10 ** _column(self.offset, bands, values)

    def summary(self, mean: Tensor, std: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Bring mean and standard deviation of `averaged` back to the unit."""
        reference = 10 ** _column(self.offset, bands, mean)
        return mean * reference, std * reference


@dataclass(frozen=True)
class AxialStretch:
    """Angles with period pi as scale cos 2psi and scale sin 2psi, two planes a band.

    Parameters
    ----------
    radians
        Of one unit: 1 for rad, pi / 180 for deg.
    scale
        Network units of the unit circle's radius.
    """

    radians: float = 1.0
    scale: float = 0.5

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return {"kind": "axial", **asdict(self)}

    def forward(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map angles [..., B, H, W] to network units [..., 2 B, H, W], cosine and sine of each band in turn."""
        return self.scale * self.averaged(values, bands)

    def inverse(self, u: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map network units [..., 2 B, H, W] to angles [..., B, H, W] in (-pi / 2, pi / 2]."""
        return 0.5 * torch.atan2(u[..., 1::2, :, :], u[..., ::2, :, :]) / self.radians

    def averaged(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Return cos 2psi and sin 2psi: angles themselves cannot be averaged."""
        double = 2 * self.radians * values
        return torch.stack([double.cos(), double.sin()], -3).flatten(-4, -3)

    def summary(self, mean: Tensor, std: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Mean direction and circular standard deviation sqrt(-2 ln R) / 2 (Mardia & Jupp 2000, sec. 2.3)."""
        length = torch.hypot(mean[..., ::2, :, :], mean[..., 1::2, :, :]).clamp(1e-12, 1)
        return self.inverse(mean, bands), 0.5 * (-2 * length.log()).sqrt() / self.radians


@dataclass(frozen=True)
class MixedStretch:
    """A stretch for each band, where the bands of an endpoint are several quantities; planes in the order of the bands.

    Parameters
    ----------
    of
        Stretch of each band.
    """

    of: dict[str, AnyStretch]

    @property
    def card(self) -> dict[str, Any]:
        """JSON form."""
        return {"kind": "mixed", "of": {band: stretch.card for band, stretch in self.of.items()}}

    def forward(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map values [..., B, H, W] to network units [..., P, H, W]."""
        parts = zip(bands, values.split(1, -3), strict=True)
        return torch.cat([self._of(band).forward(part, (band,)) for band, part in parts], -3)

    def inverse(self, u: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Map network units [..., P, H, W] to values [..., B, H, W]."""
        parts = zip(bands, u.split([self._planes(band) for band in bands], -3), strict=True)
        return torch.cat([self._of(band).inverse(part, (band,)) for band, part in parts], -3)

    def averaged(self, values: Tensor, bands: tuple[str, ...]) -> Tensor:
        """Return what posterior moments are taken of, [..., P, H, W]."""
        parts = zip(bands, values.split(1, -3), strict=True)
        return torch.cat([self._of(band).averaged(part, (band,)) for band, part in parts], -3)

    def summary(self, mean: Tensor, std: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Bring mean and standard deviation of `averaged` back to the units of the bands."""
        sizes = [self._planes(band) for band in bands]
        parts = zip(bands, mean.split(sizes, -3), std.split(sizes, -3), strict=True)
        found = [self._of(band).summary(one, other, (band,)) for band, one, other in parts]
        return torch.cat([one for one, _ in found], -3), torch.cat([other for _, other in found], -3)

    def _of(self, band: str) -> AnyStretch:
        if band not in self.of:
            raise BridgeError(f"band {band} is not in this checkpoint's stretch, which knows {sorted(self.of)}")
        return self.of[band]

    def _planes(self, band: str) -> int:
        return 2 if isinstance(self._of(band), AxialStretch) else 1


AnyStretch = Stretch | LinearStretch | Log10Stretch | AxialStretch | MixedStretch

Difference = TypeVar("Difference", Tensor, NDArray[Any])


def departure(stretch: AnyStretch | None, difference: Difference) -> Difference:
    """Return differences of values; those of angles, which repeat after half a turn, by the shorter way."""
    if not isinstance(stretch, AxialStretch):
        return difference
    period = math.pi / stretch.radians
    return (difference + period / 2) % period - period / 2


def decades(stretch: AnyStretch | None, bands: Sequence[str]) -> list[float]:
    """Return the network units of a factor of ten in each plane of some bands; 0 where none is a constant step."""
    if isinstance(stretch, MixedStretch):
        return [step for band in bands for step in decades(stretch.of[band], (band,))]
    if isinstance(stretch, Log10Stretch):
        return [stretch.scale[band] for band in bands]
    return [0.0] * len(bands) * (2 if isinstance(stretch, AxialStretch) else 1)


def stretch_from_card(card: Mapping[str, Any]) -> AnyStretch:
    """Read the JSON form of any stretch; a card of before there were others is asinh."""
    values = {name: value for name, value in card.items() if name != "kind"}
    kind = card.get("kind", "asinh")
    if kind == "asinh":
        return Stretch.from_card(values)
    if kind == "mixed":
        return MixedStretch({band: stretch_from_card(one) for band, one in card["of"].items()})
    if kind == "linear":
        return LinearStretch(**values)
    if kind not in ("log10", "axial"):
        raise BridgeError(
            f"stretch {kind!r} is not one of asinh, linear, log10, axial, mixed; use a newer surveybridge"
        )
    return Log10Stretch(**values) if kind == "log10" else AxialStretch(**values)


def _column(by_band: Mapping[str, float], bands: tuple[str, ...], like: Tensor) -> Tensor:
    """Values by band as [B, 1, 1]."""
    column = torch.tensor([by_band[band] for band in bands], dtype=like.dtype)
    return to_device(column, like.device)[:, None, None]
