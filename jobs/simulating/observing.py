"""How a simulated pair of surveys observes: PSF, noise and defects of each band, registration, and stars.

All values are frozen; `shipped_skies` holds those with a name, and `sky_files` reads a user's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

PsfKind = Literal["gaussian", "moffat", "kolmogorov", "optical"]
"""Gaussian; Moffat (1969); long exposure through the atmosphere (Kolmogorov); obscured Airy pattern with spikes."""

KOLMOGOROV_BETA = 4.765
"""Moffat beta whose profile is nearest to Kolmogorov's (Trujillo et al. 2001)."""


@dataclass(frozen=True)
class Marks:
    """Spurious light that has no source on the sky.

    Attributes
    ----------
    count : float
        Expected number: of cosmic rays a square arcmin, of satellite trails an arcmin of the image's side.
    masked : bool
        Whether the mask tells of them.
    """

    count: float = 0.0
    masked: bool = False


@dataclass(frozen=True)
class Instrument:
    """One band of one survey.

    Attributes
    ----------
    survey, band : str
    pixel_scale, psf_fwhm : float
        Pixel, and FWHM of the PSF without the pixel, arcsec.
    sky_sigma : float
        Standard deviation of the sky noise of a pixel, nJy.
    gain : float
        Electrons a nJy.
    saturation : float
        nJy per pixel.
    psf_kind : PsfKind
    psf_beta : float
        Of a Moffat profile; other kinds do not use it.
    correlation : float
        Of the noise of neighbouring pixels along an axis (lag 1), as resampling to a coadd leaves it; 0 is white.
    sky_residual : float
        Level that sky subtraction has left, in units of `sky_sigma`.
    cosmic_rays, trails : Marks
    """

    survey: str
    band: str
    pixel_scale: float
    psf_fwhm: float
    sky_sigma: float
    gain: float
    saturation: float
    psf_kind: PsfKind = "gaussian"
    psf_beta: float = math.nan
    correlation: float = 0.0
    sky_residual: float = 0.0
    cosmic_rays: Marks = Marks()
    trails: Marks = Marks()

    @property
    def beta(self) -> float:
        """Moffat beta that describes the wings; infinite of a Gaussian, NaN where no Moffat profile does."""
        return {"gaussian": math.inf, "moffat": self.psf_beta, "kolmogorov": KOLMOGOROV_BETA}.get(
            self.psf_kind, math.nan
        )


INSTRUMENTS = (
    Instrument("LSST", "g", 0.2, 0.77, 1.312, 172.6, 115_850.0),
    Instrument("LSST", "r", 0.2, 0.73, 1.347, 339.5, 135_490.0),
    Instrument("LSST", "i", 0.2, 0.71, 2.123, 248.2, 185_310.0),
    Instrument("Euclid", "VIS", 0.1, 0.16, 2.022, 12.1, 66_100.0),
)


@dataclass(frozen=True)
class Registration:
    """Where LSST shows objects against the positions that its WCS states for them.

    Attributes
    ----------
    east, north : float
        Offset, arcsec.
    rotation : float
        About the middle of the LSST grid, degrees, from north to east.
    """

    east: float = 0.0
    north: float = 0.0
    rotation: float = 0.0


@dataclass(frozen=True)
class StarCounts:
    """Counts of stars, proportional to 10^(slope i).

    Attributes
    ----------
    density : float
        Stars a square arcmin between the limits.
    brightest, faintest : float
        Limits in i, AB magnitudes.
    slope : float
        0.15 at high galactic latitude.
    showpieces : bool
        Whether some brighter ones come beside: one of 14 mag, which saturates, and others of 15.2 to 17.6.
    """

    density: float = 1.1
    brightest: float = 18.5
    faintest: float = 23.5
    slope: float = 0.15
    showpieces: bool = True


FEW_STARS = StarCounts()
"""Those of a high galactic latitude, and showpieces."""


REGISTERED = Registration()
"""Without an error."""


@dataclass(frozen=True)
class Observing:
    """The observing conditions of a simulated pair of surveys.

    Attributes
    ----------
    name : str
    instruments : tuple of Instrument
        LSST g, r, i and Euclid VIS.
    registration : Registration
    stars : StarCounts, optional
        None for a sky without stars.
    """

    name: str
    instruments: tuple[Instrument, ...] = INSTRUMENTS
    registration: Registration = REGISTERED
    stars: StarCounts | None = FEW_STARS

    def band(self, name: str) -> Instrument:
        """The instrument of a band."""
        return next(one for one in self.instruments if one.band == name)

    def changed(self, which: str, change: Callable[[Instrument], Instrument]) -> Observing:
        """The same with a change to one band, or to all of a survey (`LSST`, `Euclid`)."""
        return replace(
            self,
            instruments=tuple(change(one) if which in (one.band, one.survey) else one for one in self.instruments),
        )
