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
from surveybridge.jobs.simulating.lenses import RAY_SPACING, VIS_SIGMA, LensedImages, SourceRange, draw_images
from surveybridge.jobs.simulating.observing import INSTRUMENTS, Instrument
from surveybridge.storage.pairs import Pairs

THETA_E = (0.5, 2.1)
"""Einstein radii of injected lenses, arcsec."""
SOURCES = SourceRange(mag_i=(23.3, 26.0), re=(0.1, 0.5), offset=(0.03, 0.6), min_snr=25.0, min_magnification=2.0)
"""Sources of injected lenses: a wide range, of which the arcs that VIS shows at S/N 25 are kept."""

FARTHEST = 20.0
"""Radius, in FWHM, at which a Moffat profile with very wide wings ends."""

_GS = galsim.GSParams(folding_threshold=2e-3, maxk_threshold=3e-4, maximum_fft_size=16384)


@dataclass(frozen=True)
class InjectedLens:
    """Arcs around one galaxy: Einstein radius in arcsec, and the images of the source."""

    theta_e: float
    images: LensedImages


@dataclass(frozen=True)
class ArcView:
    """How a band of an image sees light.

    Attributes
    ----------
    band : str
        One of `population.BANDS`.
    pixel_scale : float
        Of the image, arcsec.
    native : float
        Of the detector, arcsec: larger where the image is on a finer grid than it was taken on.
    psf : galsim.GSObject
        Without the pixel.
    gain : float or None
        Electrons per nJy; None adds no photon noise.
    """

    band: str
    pixel_scale: float
    native: float
    psf: galsim.GSObject
    gain: float | None

    @classmethod
    def of(cls, instrument: Instrument) -> ArcView:
        """An instrument's own image."""
        psf = moffat(instrument.psf_fwhm)
        return cls(instrument.band, instrument.pixel_scale, instrument.pixel_scale, psf, instrument.gain)


def moffat(fwhm: float, wing: float = 0.0) -> galsim.GSObject:
    """A PSF of some FWHM, arcsec, with wings of 1 / beta: a Gaussian where that is next to 0, else a Moffat profile.

    A telescope's spikes may have the light of a Moffat profile with next to all of its flux infinitely far out; such a
    profile ends at `FARTHEST` FWHM.
    """
    if wing < 0.02:
        return galsim.Gaussian(fwhm=fwhm, gsparams=_GS)
    beta = max(1 / wing, 1.2)
    return galsim.Moffat(beta=beta, fwhm=fwhm, trunc=FARTHEST * fwhm if beta < 2 else 0.0, gsparams=_GS)


def draw_lens(rng: np.random.Generator, sigma: float = VIS_SIGMA) -> InjectedLens:
    """Draw a lens of random size, shape and source, with its mass centred on the galaxy that gets it.

    `sigma` is the sky noise of VIS, nJy per pixel of 0.1 arcsec, by which arcs are bright enough.
    """
    theta_e = float(np.clip(rng.lognormal(np.log(0.92), 0.31), *THETA_E))
    gamma, angle = 0.03 * np.sqrt(rng.exponential()), rng.uniform(0, np.pi)
    lens = {
        "theta_E": theta_e, "q": rng.uniform(0.6, 0.97), "angle": rng.uniform(0, np.pi),
        "gamma1": gamma * np.cos(2 * angle), "gamma2": gamma * np.sin(2 * angle),
    }  # fmt: skip
    return InjectedLens(theta_e, draw_images(rng, lens, SOURCES, sigma))


@dataclass(frozen=True)
class ArcLight:
    """The images of a source for GalSim: a profile of flux 1, and the flux in nJy by band.

    Make it once for all bands: to find how far a profile reaches in Fourier space takes longer than to draw it in four
    bands. Do not keep it: it holds 10 MB.
    """

    profile: galsim.GSObject
    flux: dict[str, float]

    @classmethod
    def of(cls, images: LensedImages) -> ArcLight:
        """The light of some images."""
        grid = galsim.Image(np.ascontiguousarray(images.shape), scale=RAY_SPACING)
        return cls(galsim.InterpolatedImage(grid, normalization="flux", gsparams=_GS), images.flux)

    def expected(self, view: ArcView, size: int, offset: tuple[float, float]) -> NDArray[np.float64]:
        """Arcs as a survey sees them, without noise: [size, size] nJy.

        Parameters
        ----------
        offset
            (x, y) of the deflector from the middle of the stamp, pixels.
        """
        light = self.profile * self.flux[view.band]
        image = galsim.ImageD(size, size, scale=view.pixel_scale)
        if view.native > 1.01 * view.pixel_scale:  # what coarse pixels saw, on a finer grid
            seen = galsim.Convolve(light, view.psf, galsim.Pixel(view.native, gsparams=_GS))
            seen.drawImage(image, offset=galsim.PositionD(*offset), method="no_pixel")
        else:
            galsim.Convolve(light, view.psf).drawImage(image, offset=galsim.PositionD(*offset))
        # rounded as in `simulated_sky.render`: the last bits are not reproducible, and Poisson would make more of them
        return np.asarray(np.round(np.maximum(image.array, 0.0), 4), np.float64)

    def stamp(
        self, view: ArcView, size: int, offset: tuple[float, float], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Do the same as `expected`, with photon noise."""
        return with_photons(self.expected(view, size, offset), view.gain, rng)


def with_photons(expected: NDArray[np.float64], gain: float | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return light in nJy with its photon noise, for a gain in electrons per nJy; without one, the light itself."""
    return expected if gain is None else np.asarray(rng.poisson(expected * gain) / gain, np.float64)


def inject(pairs: Pairs, rows: Sequence[int], seed: int) -> tuple[Pairs, list[InjectedLens], list[int]]:
    """Copies of some pairs with arcs around the galaxy in the middle.

    Arcs are seen as each pair was observed where that is stated, else through the simulator's instruments.

    Returns
    -------
    Pairs, list of InjectedLens, list of int
        The copies, what was put into each, and the row it was made of; draws whose arcs stay too faint are left out.

    Raises
    ------
    RequestError
        Where all do, or where the stamps have larger pixels than the simulator's instruments.
    """
    for one in INSTRUMENTS:
        scale = pairs.pixel_scale[one.survey.lower()]
        if scale > 1.01 * one.pixel_scale:
            raise RequestError(
                f'{pairs.name}: {one.band} has pixels of {scale:.3f}", but arcs are drawn for the '
                f"{one.pixel_scale:.3f}\" of {one.survey}; give stamps on the surveys' own pixels, or on finer ones"
            )
    rng = np.random.default_rng(seed)
    found: list[tuple[int, InjectedLens, dict[str, NDArray[np.float32]]]] = []
    for row in progress(rows, "inject", unit="lenses"):
        lens = draw_lens(rng, vis_noise(pairs, row))
        light, stamps = ArcLight.of(lens.images), {}
        for one in INSTRUMENTS:
            size = pairs.ends[one.survey.lower()].shape[-1]
            stamps[one.band] = light.stamp(pair_view(pairs, row, one), size, (0.0, 0.0), rng)
        if lens.images.snr < SOURCES.min_snr:
            continue
        lit = {
            end: (pairs.ends[end][row] + np.stack([stamps[band] for band in bands])).astype(np.float32)
            for end, bands in pairs.bands.items()
        }
        found.append((row, lens, lit))
    if not found:
        raise RequestError(f"no arcs of {len(rows)} draws reach S/N {SOURCES.min_snr:g}; give more galaxies")
    origin = [row for row, _, _ in found]
    copies = replace(pairs.rows(origin), ends={end: np.stack([lit[end] for _, _, lit in found]) for end in pairs.ends})
    return copies, [lens for _, lens, _ in found], origin


def pair_view(pairs: Pairs, row: int, instrument: Instrument) -> ArcView:
    """How a band of a pair sees light: as the pair was observed where that is known, else as the instrument does."""
    plain, end = ArcView.of(instrument), instrument.survey.lower()
    view = replace(plain, pixel_scale=pairs.pixel_scale[end], native=max(plain.native, pairs.pixel_scale[end]))
    if pairs.conditions is None:
        return view
    known, plane = pairs.conditions.ends[end], pairs.bands[end].index(instrument.band)
    fwhm, wing, gain = (float(values[row, plane]) for values in (known.fwhm, known.wing, known.gain))
    if fwhm > 0:  # NaN is unknown
        view = replace(view, psf=moffat(fwhm, wing if wing > 0 else 0.0))
    return replace(view, gain=gain if gain > 0 else None)


def vis_noise(pairs: Pairs, row: int) -> float:
    """Sky noise of VIS in a pair, nJy per pixel of 0.1 arcsec; the simulator's where that is not known."""
    (instrument,) = (one for one in INSTRUMENTS if one.band == "VIS")
    if pairs.conditions is None:
        return VIS_SIGMA
    end = instrument.survey.lower()
    noise = float(pairs.conditions.ends[end].noise[row, pairs.bands[end].index("VIS")])
    return noise * instrument.pixel_scale / pairs.pixel_scale[end] if noise > 0 else VIS_SIGMA
