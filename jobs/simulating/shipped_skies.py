"""Observing conditions with a name: `ideal`, one departure from training at a time, and two years of a real survey.

`training` is what the shipped checkpoints were trained on, and each of the others but `ideal` and the two years differs
from it in what its name says.

The two years are what LSST and Euclid's wide survey deliver, as far as that is known:

- Seeing: `year10` has LSST's expected medians at zenith, 0.87, 0.83 and 0.80" in g, r and i (SMTN-002), with the wings
  of a Kolmogorov profile; `year1` has 1.05, 1.00 and 0.95" and the wider wings of a telescope whose optics are still
  being tuned (Moffat beta 3). VIS has its diffraction pattern.
- Noise: that of training is LSST's after ten years (27.4, 27.5 and 27.0 mag for point sources at 5 sigma); after one
  year it is sqrt(10) times higher. VIS has 1.3 nJy a pixel and a correlation of 0.23, as measured in four stacks of
  Euclid's Q1 (1.1 to 1.5 nJy, 0.22 to 0.25). LSST's coadds are correlated by 0.2.
- Stars: 3 a square arcmin between i = 16 and 24, as at a galactic latitude of 50 degrees.
- Registration within 0.02", sky levels within 0.1 sigma, and the cosmic rays and trails that coaddition has left.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from surveybridge.jobs.simulating.observing import (
    Instrument,
    Marks,
    Observing,
    PsfKind,
    Registration,
    StarCounts,
)

IDEAL = Observing("ideal")
TRAINING = Observing("training", stars=None)
FIELD_STARS = StarCounts(density=4.0, brightest=16.0, faintest=24.0, showpieces=False)
"""Stars of the skies that are about stars: somewhat more than there are, so that a small field tells."""


def shipped() -> dict[str, Observing]:
    """All observing conditions with a name."""
    skies = {
        "ideal": IDEAL,
        "training": TRAINING,
        **{f"seeing-{fwhm}": _lsst(psf_fwhm=fwhm) for fwhm in (0.5, 0.6, 0.9, 1.1)},
        "i-seeing-1.1": _with("i", psf_fwhm=1.1),
        **{f"moffat-{beta}": _lsst(psf_kind="moffat", psf_beta=beta) for beta in (3.5, 2.5)},
        "kolmogorov": _lsst(psf_kind="kolmogorov"),
        "lsst-noise-3": _noisier("LSST", 3.0),
        "lsst-correlated-0.6": _lsst(correlation=0.6),
        "lsst-sky+0.3": _lsst(sky_residual=0.3),
        "lsst-sky-0.3": _lsst(sky_residual=-0.3),
        "vis-noise-1.5": _noisier("VIS", 1.5),
        "vis-noise-0.6": _noisier("VIS", 0.6),
        "vis-correlated-0.3": _with("VIS", correlation=0.3),
        "vis-optical": _with("VIS", psf_kind="optical"),
        "vis-0.20": _with("VIS", psf_fwhm=0.20),
        "vis-sky-0.3": _with("VIS", sky_residual=-0.3),
        "offset-0.05": replace(TRAINING, registration=Registration(east=0.04, north=-0.03)),
        "offset-0.10": replace(TRAINING, registration=Registration(east=0.08, north=-0.06)),
        "rotation-0.1": replace(TRAINING, registration=Registration(rotation=0.1)),
        "stars": replace(TRAINING, stars=FIELD_STARS),
        "stars-wings": replace(_wings(3.5), stars=FIELD_STARS),
        "cosmic-rays": _with("VIS", cosmic_rays=Marks(7.0)),
        "cosmic-rays-masked": _with("VIS", cosmic_rays=Marks(7.0, masked=True)),
        "trails": _lsst(trails=Marks(0.5)),
        "year10": _year(10.0, {"g": 0.87, "r": 0.83, "i": 0.80}, "kolmogorov"),
        "year1": _year(1.0, {"g": 1.05, "r": 1.00, "i": 0.95}, "moffat", 3.0),
    }
    return {name: replace(sky, name=name) for name, sky in skies.items()}


def _year(year: float, seeing: dict[str, float], kind: PsfKind, beta: float = math.nan) -> Observing:
    """LSST after so many of its ten years, beside Euclid's wide survey."""
    share = year / 10

    def lsst(one: Instrument) -> Instrument:
        return replace(
            one,
            psf_fwhm=seeing[one.band],
            psf_kind=kind,
            psf_beta=beta,
            sky_sigma=one.sky_sigma / share**0.5,
            gain=one.gain * share,
            correlation=0.2,
            sky_residual={"g": 0.05, "r": -0.05, "i": 0.1}[one.band],
            trails=Marks(0.02 / share**0.5, masked=True),
        )

    rays = Marks(1.0, masked=True)
    vis = replace(
        TRAINING.band("VIS"), psf_kind="optical", sky_sigma=1.3, correlation=0.23, sky_residual=-0.05, cosmic_rays=rays
    )
    return replace(
        TRAINING.changed("LSST", lsst).changed("VIS", lambda _: vis),
        registration=Registration(east=0.016, north=-0.012),
        stars=replace(FIELD_STARS, density=3.0),
    )


def _with(which: str, **values: Any) -> Observing:
    """As in training, but for some values of a band or survey."""
    return TRAINING.changed(which, lambda one: replace(one, **values))


def _lsst(**values: Any) -> Observing:
    return _with("LSST", **values)


def _wings(beta: float) -> Observing:
    """PSFs with wings in both surveys."""
    sky = _lsst(psf_kind="moffat", psf_beta=beta)
    return sky.changed("VIS", lambda one: replace(one, psf_kind="optical"))


def _noisier(which: str, factor: float) -> Observing:
    return TRAINING.changed(which, lambda one: replace(one, sky_sigma=factor * one.sky_sigma))
