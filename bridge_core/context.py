"""What a network is told of an observation beside its pixels: maps of the observed end, and a vector of both ends.

The maps say of every pixel of the observed end how noisy it is and whether it is known. The vector holds what does not
vary within a window: noise, seeing, PSF wings and noise correlation of each end by band, and how well the ends are
registered; each number beside a flag that is 1 where it is known. The noise of the observed end is in the maps alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from surveybridge.bridge_core.conditions import QUANTITIES, Conditions
from surveybridge.bridge_core.correlate import blur, gaussian_line
from surveybridge.bridge_core.problem import Direction, Endpoint, Problem, planes_at, planes_of_channels, to_channels
from surveybridge.bridge_core.spectral import Physics
from surveybridge.bridge_core.stretch import LinearStretch, Stretch
from surveybridge.kernels.transfer import to_device

MAPS = 2
"""Maps of the observed end by channel: noise, and known or not."""

NOISE_UNIT = 0.125
"""Noise in network units whose logarithm is told as 0: that to which a stretch is fitted (softening of two sigma)."""
LIMIT = 4.0
"""No number that is told exceeds this."""
NEAR = 1.5
"""Standard deviation, pixels, of the surroundings of which the noise is told."""
REGISTRATION_UNIT = 0.02
"""Registration error, arcsec, that is told as 0."""
DROPPED = 0.1
"""Share of training pairs of which the network is not told a quantity of an end."""
DROPPED_ALL = 0.1
"""Share of training pairs of which the network is told nothing but the pixels that are known."""

_NOISE, _FWHM, _WING, _CORRELATION = range(len(QUANTITIES))


def row_numbers(index: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Return numbers of windows, int64 [N], where they can be used as an index without being waited for."""
    return to_device(index if isinstance(index, Tensor) else torch.tensor(list(index), dtype=torch.int64), device)


@dataclass(frozen=True)
class Context:
    """What the network is told of N windows.

    Parameters
    ----------
    maps
        float32 [N, 2C, H, W]: logarithm of the noise of the observed end's pixels, and 1 where they are known.
    vector
        float32 [N, V], or [1, V] where all windows share it.
    physics
        What lies between the wanted and the observed end, for a bridge that is made of it (`Bridge.seeing`); else None.
    """

    maps: Tensor
    vector: Tensor
    physics: Physics | None = None

    def rows(self, index: Sequence[int] | slice | Tensor) -> Context:
        """The context of some of the windows."""
        index = index if isinstance(index, slice) else row_numbers(index, self.maps.device)
        vector = self.vector if len(self.vector) == 1 else self.vector[index]
        return Context(self.maps[index], vector, self.physics and self.physics.rows(index))

    def to(self, device: torch.device) -> Context:
        """The same on a device."""
        physics = self.physics and self.physics.to(device)
        return Context(to_device(self.maps, device), to_device(self.vector, device), physics)

    @classmethod
    def blank(cls, known: Tensor) -> Context:
        """Only which pixels of the observed end are known, bool [N, C, H, W]."""
        maps = torch.cat([torch.zeros(known.shape, device=known.device), known.float()], 1)
        return cls(maps, torch.zeros(len(known), vector_size(known.shape[1]), device=known.device))


class Views(NamedTuple):
    """Contexts of both directions of a problem, by the index of the wanted end."""

    first: Context
    second: Context

    def rows(self, index: Sequence[int] | slice | Tensor) -> Views:
        """The contexts of some of the windows."""
        return Views(self.first.rows(index), self.second.rows(index))

    def to(self, device: torch.device) -> Views:
        """The same on a device."""
        return Views(self.first.to(device), self.second.to(device))


@dataclass(frozen=True)
class PairConditions:
    """The observing conditions of N pairs; see `Conditions`.

    Parameters
    ----------
    tables
        By end: float32 [N, Q, B], the quantities in the order of `QUANTITIES`, NaN where unknown.
    noise
        By end: float32 [N, C, H, W], `noise_map` of each pixel; 0 where it is not known.
    registration
        float32 [N], arcsec; NaN where unknown.
    """

    tables: tuple[Tensor, Tensor]
    noise: tuple[Tensor, Tensor]
    registration: Tensor

    def dropped(self, generator: torch.Generator) -> PairConditions:
        """The same, of which some is forgotten (`DROPPED`, `DROPPED_ALL`), so that a network learns to do without."""
        n, q = len(self.registration), len(QUANTITIES)
        device = generator.device
        kept = torch.rand(n, 2 * q + 1, generator=generator, device=device) >= DROPPED
        kept &= torch.rand(n, 1, generator=generator, device=device) >= DROPPED_ALL
        first, second = (
            table.masked_fill(~kept[:, end * q : (end + 1) * q, None], torch.nan)
            for end, table in enumerate(self.tables)
        )
        return replace(
            self, tables=(first, second), registration=self.registration.masked_fill(~kept[:, -1], torch.nan)
        )

    def context(self, problem: Problem, wanted: Tensor, known: Tensor) -> Context:
        """What the network is told of the pairs.

        Parameters
        ----------
        problem
            With fitted endpoints.
        wanted
            int64 [N], index of the wanted end.
        known
            bool [N, C, H, W], pixels of the observed end that have data.
        """
        second = wanted.bool()
        of_first, of_second = (torch.isfinite(table[:, _NOISE]).all(1) for table in self.tables)
        noise_known = torch.where(second, of_first, of_second)
        noise = torch.where(second.view(-1, 1, 1, 1), *self.noise) * (known & noise_known.view(-1, 1, 1, 1))
        vector = condition_vector(
            problem.endpoints, known.shape[1], self.tables, self.registration, wanted, noise_known
        )
        return Context(torch.cat([noise, known.float()], 1), vector)


def vector_size(channels: int) -> int:
    """The length V of the vector: every quantity of every channel of both ends and the registration, with flags."""
    return 2 * (2 * len(QUANTITIES) * channels + 1)


def context_of(
    direction: Direction,
    channels: int,
    sigma: Tensor | None,
    valid: Tensor,
    ends: Mapping[str, Conditions],
) -> Context:
    """The context of a tile, as one window of its size.

    Parameters
    ----------
    direction
        Which end is observed.
    channels
        Of the network's images.
    sigma
        float32 [B, H, W], noise of each pixel of the observed end in its unit; None where that is not known.
    valid
        bool [B, H, W]; what `sigma` holds elsewhere is not read.
    ends
        Conditions by endpoint; the registration is that of the wanted one.
    """
    observed, wanted = direction.observed, direction.wanted
    known = to_channels(planes_at(valid, observed.band_of).float(), channels)
    noise = torch.zeros_like(known)
    if sigma is not None:
        noise = noise_map(observed, sigma.where(valid, torch.nan)[None], channels)[0] * known
    in_order = (observed, wanted) if direction.index else (wanted, observed)
    vector = condition_vector(
        in_order,
        channels,
        [table_of(ends[end.name]) for end in in_order],
        torch.tensor([ends[wanted.name].registration]),
        torch.tensor([direction.index]),
        torch.tensor([sigma is not None]),
    )
    return Context(torch.cat([noise, known])[None], to_device(vector, valid.device))


def condition_vector(
    ends: Sequence[Endpoint],
    channels: int,
    tables: Sequence[Tensor],
    registration: Tensor,
    wanted: Tensor,
    noise_known: Tensor,
) -> Tensor:
    """The vectors of N windows, float32 [N, V].

    Parameters
    ----------
    ends
        Both endpoints in the order of the problem.
    channels
        Of the network's images.
    tables
        By end: float32 [N, Q, B], the quantities in the order of `QUANTITIES`, NaN where unknown.
    registration
        float32 [N], typical offset between the ends, arcsec; NaN where unknown.
    wanted
        int64 [N], index of the wanted end.
    noise_known
        bool [N], whether the maps hold the noise of the observed end, which the vector then only flags.
    """
    parts = []
    for index, (end, table) in enumerate(zip(ends, tables, strict=True)):
        values = _features(end, table)
        in_maps = torch.zeros_like(registration).masked_fill(~noise_known, torch.nan)[:, None]
        values[:, _NOISE] = values[:, _NOISE].where((wanted == index)[:, None], in_maps)
        parts.append(values[:, :, planes_of_channels(len(end.bands), channels)].flatten(1))
    offset = (registration / REGISTRATION_UNIT).clamp(min=1e-3).log()
    told = torch.cat([*parts, offset[:, None]], 1)
    known = torch.isfinite(told)
    return torch.cat([told.where(known, 0.0).clamp(-LIMIT, LIMIT), known.float()], 1)


def told_conditions(problem: Problem, views: Views, number: int) -> dict[str, Tensor]:
    """The numbers that stand in the vectors of both directions, by name such as ``lsst i fwhm``.

    Returns
    -------
    dict of str to Tensor
        float32 [number], as the network is told them (of the order of 1); NaN where unknown.
    """
    vectors = [view.vector.expand(number, -1) for view in views]
    size = vectors[0].shape[1] // 2
    values = [vector[:, :size].masked_fill(vector[:, size:] == 0, torch.nan) for vector in vectors]
    channels = (size - 1) // (2 * len(QUANTITIES))
    found = {}
    for index, end in enumerate(problem.endpoints):
        of_channels = planes_of_channels(len(end.bands), channels)
        for q, quantity in enumerate(QUANTITIES):
            for b, band in enumerate(end.bands):
                place = (index * len(QUANTITIES) + q) * channels + of_channels.index(b)
                # of the observed end the noise is in the maps, so it is read where that end is wanted
                found[f"{end.name} {band} {quantity}"] = values[index][:, place]
    return found | {"registration": values[0][:, -1]}


def noise_map(end: Endpoint, sigma: Tensor, channels: int) -> Tensor:
    """Logarithm of the noise around each pixel as the network is told it.

    It is the mean variance of known pixels near by (a Gaussian of `NEAR` pixels): an image that was interpolated onto
    the grid has a pattern of noisier and calmer pixels, which depends on where its own pixels lie and says nothing.

    Parameters
    ----------
    end
        With its fitted stretch.
    sigma
        float32 [N, B, H, W] in the end's unit, of each pixel; NaN where it is not known.
    channels
        Of the network's images.

    Returns
    -------
    Tensor
        float32 [N, C, H, W]; 0 where no noise is known, or the end's stretch knows no sky.
    """
    line = gaussian_line(NEAR, math.ceil(3 * NEAR), sigma)
    flat = sigma.flatten(0, 1)
    known = torch.isfinite(flat) & (flat > 0)
    variance = blur(torch.where(known, flat**2, 0.0), line) / blur(known.float(), line)
    slope = to_device(torch.tensor(slopes(end), dtype=sigma.dtype), sigma.device)[:, None, None]
    told = (variance.view_as(sigma).sqrt() * slope / NOISE_UNIT).log()
    told = told.where(torch.isfinite(told), 0.0).clamp(-LIMIT, LIMIT)
    return to_channels(planes_at(told, end.band_of), channels)


def observed_noise(end: Endpoint, flux: Tensor, sigma: Tensor, gain: Tensor, channels: int) -> Tensor:
    """`noise_map` of training images: the noise of the sky, and what the light of the observed image adds to it.

    It is never that of the image without noise, which nobody knows.

    Parameters
    ----------
    end
        With its fitted stretch.
    flux
        float32 [N, B, H, W] as observed, in the end's unit; NaN where there is no data.
    sigma
        float32, shape as `flux` or [N, B, 1, 1]: noise of the sky.
    gain
        float32 [N, B], electrons per unit; NaN where sources add no noise.
    channels
        Of the network's images.
    """
    light = (flux.clamp(min=0) / gain[:, :, None, None]).nan_to_num(0.0)
    return noise_map(end, (sigma**2 + light).sqrt().where(torch.isfinite(flux), torch.nan), channels)


def slopes(end: Endpoint) -> list[float]:
    """Network units of one unit of a band above an empty sky, by band; NaN where the stretch knows no sky."""
    stretch = end.stretch
    if isinstance(stretch, LinearStretch):
        return [1 / stretch.unit[band] for band in end.bands]
    if not isinstance(stretch, Stretch):
        return [float("nan")] * len(end.bands)
    scale = stretch.scale
    return [(scale[b] if isinstance(scale, dict) else scale) / stretch.softening[b] for b in end.bands]


def _features(end: Endpoint, table: Tensor) -> Tensor:
    """Quantities [N, Q, B] as numbers of the order of 1, NaN where unknown."""
    slope = to_device(torch.tensor(slopes(end), dtype=table.dtype), table.device)
    scale = end.pixel_scale or torch.nan
    told = torch.empty_like(table)
    told[:, _NOISE] = (table[:, _NOISE] * slope / NOISE_UNIT).log()
    told[:, _FWHM] = (table[:, _FWHM] / scale).log() - 1.2  # between a PSF of one pixel and one of ten
    told[:, _WING] = 4 * table[:, _WING] - 0.4
    told[:, _CORRELATION] = 2 * table[:, _CORRELATION] - 0.5
    return told


def table_of(conditions: Conditions) -> Tensor:
    """Conditions of one end as [1, Q, B]."""
    return torch.tensor([[getattr(conditions, name) for name in QUANTITIES]], dtype=torch.float32)
