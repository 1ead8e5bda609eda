"""Observations of sharp skies that are drawn while a network trains: seeing, wings, depth, and correlated noise.

Only the skies come from a store. PSFs and noise are drawn from the distributions of `simulating.training_skies`, and
whatever a `Bridge.seeing` makes of them is computed by mode, so that no image is observed twice alike.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from surveybridge.bridge_core.conditions import QUANTITIES
from surveybridge.bridge_core.context import Context, condition_vector, noise_map
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.physics import log_ratio
from surveybridge.bridge_core.problem import planes_of_channels
from surveybridge.bridge_core.sharpening import PAD
from surveybridge.bridge_core.spectral import Physics
from surveybridge.jobs.simulating.optics import Psf, transfer_functions
from surveybridge.jobs.simulating.training_skies import SKY, draw_observation
from surveybridge.jobs.translating.scene import half_noise_power
from surveybridge.storage.homogenise import spline_lags
from surveybridge.storage.psf import parse_psf
from surveybridge.storage.spline import noise_covariance

KEPT = 64
"""Observations that a shard draws its own from; the depth of each is drawn anew."""

DEPTH = (0.8, 3.6)
"""Noise over that of `training_skies.SKY`, log-uniform: one to ten years and a little more to each side."""

NATIVE = 0.2
"""Side of LSST's pixels, arcsec, whose image is interpolated onto the network's."""


class Observations:
    """PSFs and noise that a shard observes its skies with.

    Parameters
    ----------
    card
        Of a `Bridge.seeing`; its observed endpoint has LSST's bands.
    size
        Side of the skies in pixels, with `PAD` around.
    seed
        Of what is drawn.
    """

    def __init__(self, card: Card, size: int, seed: tuple[int, ...]) -> None:
        self.card, self.size = card, size
        rng = np.random.default_rng(seed)
        direction = card.problem.directions[0]
        self.observed, self.wanted = direction.observed, direction.wanted
        scale = self.wanted.pixel_scale
        drawn = [draw_observation(rng) for _ in range(KEPT)]
        bands = len(self.observed.bands)
        psfs = [psf for one in drawn for psf in one.psfs[:bands]]
        cpu = torch.device("cpu")
        wide = transfer_functions(psfs, size, scale, NATIVE, cpu).view(KEPT, bands, size, -1)
        self.sharp = parse_psf(card.bridge.parameters["sharp"])
        sharp = transfer_functions([Psf(self.sharp.fwhm)], size, scale, scale, cpu)
        self.log_transfer = log_ratio(sharp.double(), wide.double())
        # rounded, so that few of them need be computed
        before = [[round(float(r), 2) for r in one.correlation[:bands]] for one in drawn]
        lags = [[spline_lags(scale / NATIVE, r) for r in of] for of in before]
        power = [[half_noise_power(one, (size, size)) for one in of] for of in lags]
        self.power = torch.from_numpy(np.array(power))
        # noise of a pixel of the network over that of one of LSST
        share = [[noise_covariance(0.0, r) * (scale / NATIVE) ** 2 for r in of] for of in before]
        self.sky = torch.tensor(share, dtype=torch.float32) * torch.tensor(SKY[:bands])
        numbers = [
            [[np.nan, psf.fwhm, psf.wing, lag[1]] for psf, lag in zip(one.psfs[:bands], of, strict=True)]
            for one, of in zip(drawn, lags, strict=True)
        ]
        self.numbers = torch.tensor(numbers, dtype=torch.float32).mT  # [KEPT, Q, B] in the order of QUANTITIES

    def typical_noise(self) -> Tensor:
        """Median noise of a pixel by band, float32 [B] in the observed endpoint's unit."""
        return self.sky.median(0).values * float(np.sqrt(np.prod(DEPTH)))

    def draw(self, count: int, generator: torch.Generator) -> Context:
        """What a network is told of `count` observations, with their physics."""
        which = torch.randint(0, KEPT, (count,), generator=generator)
        bands = len(self.observed.bands)
        low, high = np.log(DEPTH)
        depth = torch.exp(low + (high - low) * torch.rand(count, 1, generator=generator))
        depth = depth * torch.exp(0.12 * torch.randn(count, bands, generator=generator))
        sigma = self.sky[which] * depth
        channels = self.card.network.image_channels
        of_channels = planes_of_channels(bands, channels)
        unit = self.observed.fitted.forward(torch.ones(bands, 1, 1), self.observed.bands)[:, 0, 0]
        power = self.power[which] * (sigma * unit).double().square()[..., None, None]
        physics = Physics(self.log_transfer[which][:, of_channels], power[:, of_channels].float())
        side = self.size - 2 * PAD
        noise = noise_map(self.observed, sigma[..., None, None], channels).expand(-1, -1, side, side)
        tables = [self.numbers[which], torch.full((count, len(QUANTITIES), bands), torch.nan)]
        tables[1][:, QUANTITIES.index("fwhm")] = self.sharp.fwhm
        tables[1][:, QUANTITIES.index("wing")] = 0.0
        in_order = tables if self.wanted == self.card.problem.endpoints[1] else tables[::-1]
        index = self.card.problem.directions[0].index
        vector = condition_vector(
            self.card.problem.endpoints,
            channels,
            in_order,
            torch.full((count,), torch.nan),
            torch.full((count,), index),
            torch.ones(count, dtype=torch.bool),
        )
        return Context(torch.cat([noise, torch.ones_like(noise)], 1), vector, physics)


def turned(skies: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the skies [N, C, H, H] turned by quarters and mirrored at random."""
    draws = torch.randint(0, 8, (len(skies),), generator=generator).tolist()
    return torch.stack(
        [
            (image.flip(2) if draw % 2 else image).rot90(draw // 2, (1, 2))
            for image, draw in zip(skies, draws, strict=True)
        ]
    )
