"""Strong lenses made from real deflectors: simulated arcs are put into images of galaxies, in both surveys.

The galaxy keeps its own pixels; only the light of the arcs is added, seen through each band's PSF and pixel, with its
photon noise. So what tells the injected lens from the galaxy alone is the arcs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import galsim
import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running.progress import progress
from surveybridge.jobs.simulating.lenses import RAY_SPACING, LensedImages, SourceRange, draw_images
from surveybridge.jobs.simulating.sky import INSTRUMENTS, Instrument
from surveybridge.storage.pairs import Pairs

THETA_E = (0.5, 2.1)
"""Einstein radii of injected lenses, arcsec."""
SOURCES = SourceRange(mag_i=(23.3, 26.0), re=(0.1, 0.5), offset=(0.03, 0.6), min_snr=25.0, min_magnification=2.0)
"""Sources of injected lenses: a wide range, of which the arcs that VIS shows at S/N 25 are kept."""


@dataclass(frozen=True)
class InjectedLens:
    """Arcs around one galaxy: Einstein radius in arcsec, and the images of the source."""

    theta_e: float
    images: LensedImages


def draw_lens(rng: np.random.Generator) -> InjectedLens:
    """Draw a lens of random size, shape and source, with its mass centred on the galaxy that gets it."""
    theta_e = float(np.clip(rng.lognormal(np.log(0.92), 0.31), *THETA_E))
    gamma, angle = 0.03 * np.sqrt(rng.exponential()), rng.uniform(0, np.pi)
    lens = {
        "theta_E": theta_e, "q": rng.uniform(0.6, 0.97), "angle": rng.uniform(0, np.pi),
        "gamma1": gamma * np.cos(2 * angle), "gamma2": gamma * np.sin(2 * angle),
    }  # fmt: skip
    return InjectedLens(theta_e, draw_images(rng, lens, SOURCES))


def arc_stamp(
    images: LensedImages, instrument: Instrument, size: int, offset: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Arcs as a survey sees them, with their photon noise: [size, size] nJy.

    Parameters
    ----------
    offset
        (x, y) of the deflector from the middle of the stamp, pixels.
    """
    gsparams = galsim.GSParams(folding_threshold=2e-3, maxk_threshold=3e-4, maximum_fft_size=16384)
    grid = galsim.Image(np.ascontiguousarray(images.shape), scale=RAY_SPACING)
    light = galsim.InterpolatedImage(grid, normalization="flux", gsparams=gsparams) * images.flux[instrument.band]
    seen = galsim.Convolve(light, galsim.Gaussian(fwhm=instrument.psf_fwhm, gsparams=gsparams))
    image = galsim.ImageD(size, size, scale=instrument.pixel_scale)
    seen.drawImage(image, offset=galsim.PositionD(*offset))
    # rounded as in `simulated_sky.render`: the last bits are not reproducible, and Poisson would make more of them
    expected = np.round(np.maximum(image.array, 0.0), 4)
    return np.asarray(rng.poisson(expected * instrument.gain) / instrument.gain, np.float64)


def inject(pairs: Pairs, rows: Sequence[int], seed: int) -> tuple[Pairs, list[InjectedLens], list[int]]:
    """Copies of some pairs, on their own pixels, with arcs around the galaxy in the middle.

    Returns
    -------
    Pairs, list of InjectedLens, list of int
        The copies, what was put into each, and the row it was made of; draws whose arcs stay too faint are left out.

    Raises
    ------
    RequestError
        Where all do, or where the stamps have other pixels than the simulator's instruments.
    """
    ends = {one.survey: one.survey.lower() for one in INSTRUMENTS}
    for one in INSTRUMENTS:
        scale = pairs.pixel_scale[ends[one.survey]]
        if abs(scale / one.pixel_scale - 1) > 0.01:
            raise RequestError(
                f'{pairs.name}: {one.band} has pixels of {scale:.3f}", but arcs are drawn for the '
                f"{one.pixel_scale:.3f}\" of {one.survey}; give stamps on the surveys' own pixels"
            )
    rng = np.random.default_rng(seed)
    found: list[tuple[int, InjectedLens, dict[str, NDArray[np.float32]]]] = []
    for row in progress(rows, "inject", unit="lenses"):
        lens = draw_lens(rng)
        size = {survey: pairs.ends[end].shape[-1] for survey, end in ends.items()}
        stamps = {one.band: arc_stamp(lens.images, one, size[one.survey], (0.0, 0.0), rng) for one in INSTRUMENTS}
        if lens.images.snr < SOURCES.min_snr:
            continue
        lit = {
            end: (pairs.ends[end][row] + np.stack([stamps[band] for band in bands])).astype(np.float32)
            for end, bands in pairs.bands.items()
        }
        found.append((row, lens, lit))
    if not found:
        raise RequestError(f"no arcs of {len(rows)} draws reach S/N {SOURCES.min_snr:g}; give more galaxies")
    copies = replace(pairs, ends={end: np.stack([lit[end] for _, _, lit in found]) for end in pairs.ends})
    return copies, [f[1] for f in found], [f[0] for f in found]
