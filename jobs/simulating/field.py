"""A simulated field: its objects, the grids of both surveys, and its noise-free images in each band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.simulating.files import half_of
from surveybridge.jobs.simulating.lenses import LENS_MARGIN, Arc, draw_lenses
from surveybridge.jobs.simulating.observing import FEW_STARS, REGISTERED, Instrument, Registration, StarCounts
from surveybridge.jobs.simulating.population import Catalogue, columns, concatenate, draw_galaxies, draw_stars, take
from surveybridge.jobs.simulating.sky import (
    Frame,
    SkyPositions,
    displaced,
    euclid_frame,
    lsst_frame,
    render,
    sky_positions,
)

CENTRE = (61.241, -48.423)
"""ra, dec of the field, degrees: where the Euclid Deep Field South is."""
OFFSET = (3.7, -2.9)
"""Offset of the LSST grid's centre towards east and north, arcsec."""


@dataclass(frozen=True)
class SimulatedField:
    """Objects and grids.

    Attributes
    ----------
    euclid, lsst : Frame
        Pixel grids, as the files state them.
    galaxies, stars, lenses : Catalogue
    arcs : list of Arc
        Of the lenses.
    """

    euclid: Frame
    lsst: Frame
    galaxies: Catalogue
    stars: Catalogue
    lenses: Catalogue
    arcs: list[Arc]

    @classmethod
    def draw(
        cls, size: int, rotation: float, lenses: int, seed: int, stars: StarCounts | None = FEW_STARS
    ) -> SimulatedField:
        """Draw a field of `size` x `size` pixels of 0.1 arcsec; LSST's grid is turned by `rotation` degrees.

        Galaxies and lenses of a seed are the same whatever the stars.
        """
        euclid, lsst = euclid_frame(CENTRE, size), lsst_frame(CENTRE, size, rotation, OFFSET)
        half = 0.05 * size
        reach = half_of(lsst) + max(map(abs, OFFSET)) + 4.0
        deflectors, arcs = draw_lenses(stream(seed, 0), lenses, half - LENS_MARGIN)
        places = np.stack([deflectors["u"], deflectors["v"]], axis=-1)
        galaxies = draw_galaxies(stream(seed, 1), reach)
        for u, v in places:  # no bright galaxy on top of a lens: the deflector is one already
            near = np.hypot(galaxies["u"] - u, galaxies["v"] - v) < 2.5
            galaxies = take(galaxies, ~(near & (galaxies["mag_i"] < 23.0)))
        if stars is None:
            field_stars = columns("star", {"u": np.zeros(0), "v": np.zeros(0)})
        else:
            field_stars = draw_stars(stream(seed, 2), reach, 0.9 * half, places, stars)
        return cls(euclid, lsst, galaxies, field_stars, deflectors, arcs)

    @property
    def catalogue(self) -> Catalogue:
        """All objects."""
        return concatenate(self.galaxies, self.stars, self.lenses)

    def sky(self, objects: Catalogue) -> SkyPositions:
        """Ra and dec of objects, degrees."""
        return sky_positions(self.euclid, objects["u"], objects["v"])

    def frame(self, instrument: Instrument) -> Frame:
        """The grid of a band, as its file states it."""
        return self.euclid if instrument.survey == "Euclid" else self.lsst

    def model(
        self,
        instrument: Instrument,
        registration: Registration = REGISTERED,
        objects: Catalogue | None = None,
    ) -> NDArray[np.float64]:
        """Noise-free image of a band, [ny, nx] nJy per pixel.

        Parameters
        ----------
        instrument : Instrument
        registration : Registration
            Moves what LSST sees.
        objects : Catalogue, optional
            By default all; arcs are drawn where there are lenses among them.
        """
        objects = self.catalogue if objects is None else objects
        frame = self.frame(instrument)
        if instrument.survey == "LSST" and registration != REGISTERED:
            frame = displaced(frame, registration)
        arcs = self.arcs if (objects["kind"] == "lens").any() else []
        places = self.sky(self.lenses) if arcs else (np.zeros(0), np.zeros(0))
        return render(frame, instrument, objects, arcs, self.sky(objects), places)


def stream(seed: int, number: int) -> np.random.Generator:
    """An independent generator for each thing that is drawn, so that more lenses leave the galaxies as they were."""
    return np.random.default_rng([seed, number])


def noise_stream(seed: int, instrument: Instrument) -> np.random.Generator:
    """The generator of the noise of a band."""
    return stream(seed, 3 + ("g", "r", "i", "VIS").index(instrument.band))
