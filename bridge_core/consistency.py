"""Flux consistency: the light that a network says there is, held against the light that was observed.

A sharp image cannot be read off a blurred one, but how much light there is can. Each image convolved with the other's
PSF shows the sky at one resolution (the cross-convolution of Yuan & Akerlof 2008, ApJ 677, 808), where the light in a
band of one end follows from the bands of the other but for the scatter of colours. Each sample of the wanted end is
multiplied by the factor that brings both to agree there, as far as noise and colours allow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.correlate import added_along, gaussian_line
from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.patches import fill_masked
from surveybridge.bridge_core.physics import Psf, Shape, filtered, response
from surveybridge.bridge_core.problem import Direction, Problem
from surveybridge.bridge_core.sampler import draw, window_noise
from surveybridge.bridge_core.scene import Scene
from surveybridge.bridge_core.spectral import mean_power
from surveybridge.kernels.transfer import to_device

CORE, WINGS = 1.5, 5.0
"""Radii in FWHM of the resolution that both images share: within the first, all pixels have to be seen; to the second,
kernels are kept where there are so many pixels around."""

SMOOTHED = 0.5
"""Standard deviation of the Gaussian in which images are compared, in that of the resolution that they share."""

PASSES = 4
"""In which the factors are found: each looks at what those of the one before make of the light of the neighbours."""

LEAST_TRANSFER = 3e-3
"""Modes of which a PSF leaves less are not brought back."""

KNOWN = 0.9
"""Share of the light around a pixel, by the widest PSF, that has to come from known pixels."""

LIMITS = (0.2, 5.0)
"""Of the factor."""

LEAST_VARIANCE = 0.5
"""Share of its variance that a mean keeps: light is not all that is uncertain."""

ON_HOST = torch.zeros(())
"""Lines are added up by numbers of the host, so that no device is waited for."""

LIGHT = 2**16 - 2
"""Noise step of the errors of the light, which no update uses."""


@dataclass(frozen=True)
class BandOptics:
    """What has to be known of a band: PSF, its FWHM, and the side of the pixels that it was taken with, arcsec."""

    psf: Psf
    fwhm: float
    pixel: float


@dataclass(frozen=True)
class Consistency:
    """How the light of a tile is compared in one direction.

    Parameters
    ----------
    observed, wanted
        complex64 [B, H, W // 2 + 1]: what the bands of either end are multiplied by, mode by mode, before they are
        added; of a frame that reaches `margin` pixels beyond the core.
    around
        complex64 [H, W // 2 + 1]: the widest PSF, by which pixels have to be known.
    smoothing
        Standard deviation, pixels, of the Gaussian in which the images are compared.
    noise
        Of a pixel of the observed light, in the end's unit. It is alike in the pixels that are compared.
    scatter, error
        As in `LightRelation`, in the direction.
    margin
        Pixels beyond the core that are looked at.
    unseen
        Pixels at the border of the frame whose surroundings are not seen, so that nothing is compared.
    """

    observed: Tensor
    wanted: Tensor
    around: Tensor
    smoothing: float
    noise: float
    scatter: float
    error: float
    margin: int
    unseen: int

    def to(self, device: torch.device) -> Consistency:
        """Return the same on a device."""
        return replace(
            self,
            observed=to_device(self.observed, device),
            wanted=to_device(self.wanted, device),
            around=to_device(self.around, device),
        )

    def observe(self, frame: Scene) -> Agreement:
        """Look at the observed end in the frame: what all samples of a tile are compared with."""
        light = filtered(fill_masked(frame.flux, frame.valid), self.observed).sum(0)
        known, seen = frame.valid.all(0), torch.zeros_like(frame.valid[0])
        seen[self.unseen : -self.unseen, self.unseen : -self.unseen] = True
        share = filtered(known.to(light.dtype), self.around) / self.around[0, 0].real
        return Agreement(self, light, known & seen & (share > KNOWN), frame.origin)


@dataclass(frozen=True)
class Agreement:
    """What was observed of a tile, with which the light of the wanted end is brought to agree.

    Parameters
    ----------
    how
        In which way.
    light
        float32 [H, W], the observed light in the frame, at the resolution of both ends.
    counted
        bool [H, W], where it is known.
    origin
        Global (y, x) of the frame's first pixel.
    """

    how: Consistency
    light: Tensor
    counted: Tensor
    origin: tuple[int, int]

    def mean(self, moments: Tensor) -> Tensor:
        """Bring a mean to agree, and take from its variance what is known of the light.

        Parameters
        ----------
        moments
            float32 [2, B, H, W], mean and standard deviation in the frame.

        Returns
        -------
        Tensor
            float32 [2, B, h, w], of the core.
        """
        factor, left = self.factor(moments[0])
        mean, std = moments[..., self._core, self._core]
        # the network's deviation has in it that its light is off
        of_light = (self.how.error * mean).square() * (1 - left)
        variance = torch.maximum(std.square() - of_light, LEAST_VARIANCE * std.square())
        return torch.stack([mean, variance.sqrt()]) * factor

    def samples(self, samples: Tensor, first: int, seed: int, stream: int) -> Tensor:
        """Bring samples to agree, each by itself.

        Each is held against the observed light with an error of its own, as large as the observed one may have, so that
        samples vary as the light does that is not known (the ensemble Kalman filter of Burgers et al. 1998). That error
        is the noise of the sky, and of two samples that follow each other one has the other's with a minus.

        Parameters
        ----------
        samples
            float32 [K, B, H, W] in the frame.
        first
            Number of the first of them among all samples of the tile.
        seed, stream
            Of their noise.

        Returns
        -------
        Tensor
            float32 [K, B, h, w], of the core.
        """
        agreeing = []
        for number, sample in enumerate(samples, first):
            factor, _ = self.factor(sample, self._error(number, seed, stream, sample))
            agreeing.append(sample[..., self._core, self._core] * factor)
        return torch.stack(agreeing)

    def factor(self, said: Tensor, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the factors of the core, and what is left of the variance of the light.

        Parameters
        ----------
        said
            float32 [B, H, W], the wanted end in the frame.
        error
            float32 [H, W], by how many standard deviations the observed light is taken to be off; by default by none.

        Returns
        -------
        tuple of Tensor
            Each float32 [h, w]. Both are 1 where there is nothing to compare; the factors lie within `LIMITS`.
        """
        how = self.how
        reach = _smoothing_reach(how.smoothing)
        line = gaussian_line(how.smoothing, reach, ON_HOST)

        def around(products: Tensor) -> Tensor:
            return added_along(torch.nn.functional.pad(products, (reach,) * 4), line / line.sum())

        shown = filtered(said, how.wanted).sum(0)
        # a least-squares fit of a factor to each place, whose surroundings count by a Gaussian; light of which nothing
        # was observed counts as if it agreed, and noise draws the factor towards 1
        there = shown.clamp(min=0)
        counted, power = around(torch.stack([there.square() * self.counted, there.square()]))
        ridge = (how.noise / how.error) ** 2
        power = power + ridge
        known = counted / power
        unsure = (known.square() * how.scatter**2 + known * (ridge / power) * how.error**2).sqrt()
        off = torch.zeros_like(shown)
        for number in range(PASSES):
            if number:
                shown = filtered(said * (1 + off), how.wanted).sum(0)
            excess = around(there * (self.light - shown) * self.counted)
            seen = excess / power + known * off
            # the scatter of colours draws it towards 1 too, where it could explain the whole difference
            expected = how.error**2 + seen.square()
            believed = expected / (expected + how.scatter**2)
            if error is not None:
                seen = seen + unsure * error
            off = (believed * seen).clamp(LIMITS[0] - 1, LIMITS[1] - 1)
        left = (1 - believed * known).square() + (believed * unsure / how.error).square()
        return (1 + off)[self._core, self._core], left[self._core, self._core]

    @property
    def _core(self) -> slice:
        return slice(self.how.margin, -self.how.margin)

    def _error(self, number: int, seed: int, stream: int, like: Tensor) -> Tensor:
        """Errors of the light in a frame that the sky has for a sample, standard deviation 1, alike within a source."""
        reach = self.how.unseen
        top, left = self.origin
        noise = window_noise(seed, stream, [(0, number // 2)], [(top - reach, left - reach)], like.device)
        drawn = draw(noise, LIGHT, torch.nn.functional.pad(like[None, :1], (reach,) * 4))[0, 0]
        line = gaussian_line(reach / 3, reach, ON_HOST)
        return (-1) ** number * added_along(drawn, line / line.square().sum().sqrt())


def consistency_of(
    relation: LightRelation,
    problem: Problem,
    direction: Direction,
    optics: Mapping[str, Sequence[BandOptics]],
    noise: Sequence[tuple[float, Callable[[Shape], NDArray[np.float64]]]],
    pixel_scale: float,
    core: Shape,
    halo: int,
) -> Consistency:
    """Find how a tile's light is compared.

    Parameters
    ----------
    problem
        That of `relation`, with a catalog.
    optics
        By endpoint, of its bands.
    noise
        Of the observed bands: standard deviation of the sky in the end's unit, and its power by mode of a shape,
        float64 [H, W // 2 + 1] with mean 1.
    pixel_scale
        Of the grid, arcsec.
    core
        Its height and width, pixels.
    halo
        Pixels around it that there are. Where they are fewer than its `unseen`, the margin of what is found is larger.
    """
    scored = problem.scored
    assert scored is not None
    end, other = scored.wanted, scored.observed.name
    sharp, others = optics[end.name][end.bands.index(relation.band)], tuple(optics[other])
    fwhm = shared_fwhm(sharp, others) / pixel_scale
    unseen = math.ceil(CORE * fwhm) + _smoothing_reach(_smoothing(fwhm))
    margin = max(min(math.ceil(WINGS * fwhm), halo), unseen)
    height, width = core[0] + 2 * margin, core[1] + 2 * margin
    kernels = kernels_of(sharp, others, pixel_scale, (height, width), margin)
    of_end = {}
    for name in (end.name, other):
        own = kernels.others if name == other else kernels.around
        of_end[name] = own * torch.tensor(relation.weights_of(problem, name))[:, None, None]
    observed = of_end[direction.observed.name]
    variance = sum(
        sigma**2 * float(mean_power(kernel.abs().double().square() * torch.from_numpy(power((height, width))), width))
        for kernel, (sigma, power) in zip(observed, noise, strict=True)
    )
    return Consistency(
        observed=observed,
        wanted=of_end[direction.wanted.name],
        around=kernels.around,
        smoothing=_smoothing(fwhm),
        noise=math.sqrt(variance),
        scatter=relation.scatter,
        error=relation.error[str(direction)],
        margin=margin,
        unseen=unseen,
    )


class Kernels(NamedTuple):
    """What the bands of both ends are convolved with before they are compared, in modes of an image.

    around: complex64 [H, W // 2 + 1], the widest PSF of the other end, for the sharp image; others: complex64
    [B, H, W // 2 + 1], which bring the bands of the other end to the widest PSF and that of the sharp image.
    """

    around: Tensor
    others: Tensor


def shared_fwhm(sharp: BandOptics, others: Sequence[BandOptics]) -> float:
    """FWHM in arcsec of the resolution at which both ends are compared."""
    return math.hypot(sharp.fwhm, max(band.fwhm for band in others))


@functools.lru_cache(maxsize=2)  # of large tiles they are large
def kernels_of(
    sharp: BandOptics, others: tuple[BandOptics, ...], pixel_scale: float, shape: Shape, most: int
) -> Kernels:
    """Make the kernels for images of a shape with opposite sides as neighbours; tiles of a field have them in common.

    Parameters
    ----------
    sharp
        The band of the end with the catalog.
    others
        The bands of the other end.
    pixel_scale
        Of the grid, arcsec.
    most
        Pixels beyond which nothing of a kernel is kept, whatever its PSF.
    """
    wide = max(others, key=lambda band: band.fwhm)
    reach = min(math.ceil(WINGS * shared_fwhm(sharp, others) / pixel_scale), most)

    def transfer(band: BandOptics) -> NDArray[Any]:
        return response(band.psf, band.pixel, pixel_scale, shape)

    def kept(transfer: NDArray[Any]) -> Tensor:
        """Modes of a kernel of which nothing lies beyond the reach."""
        kernel = np.fft.irfft2(transfer, shape)
        y, x = (np.abs(np.fft.fftfreq(side, 1 / side)) for side in shape)
        found = np.fft.rfft2(np.where(np.hypot(y[:, None], x) <= reach, kernel, 0))
        return torch.from_numpy(found.astype(np.complex64))

    broad, narrow = transfer(wide), transfer(sharp)
    brought = []
    for band in others:
        own = transfer(band)
        brought.append(kept(narrow * broad * np.conj(own) / (np.abs(own) ** 2 + LEAST_TRANSFER**2)))
    return Kernels(kept(broad), torch.stack(brought))


def _smoothing(fwhm: float) -> float:
    """Standard deviation, pixels, of the Gaussian in which images of a resolution are compared."""
    return max(SMOOTHED * fwhm / (2 * math.sqrt(2 * math.log(2))), 0.5)


def _smoothing_reach(smoothing: float) -> int:
    return math.ceil(3 * smoothing)
