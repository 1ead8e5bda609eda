"""Point-spread functions: a profile or an image, its width and its wings, and its transfer function.

All are those of atmosphere, optics and detector without the pixel: an image of a PSF, which holds the pixels that it is
sampled on, is taken apart from them.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError

INNER, OUTER = 1.0, 2.0
"""Radii in FWHM: the wings of a PSF are judged by its flux between them, against that within the first."""

LEAST_OUTER = 1.25
"""FWHM that an image must reach for its wings to be known."""

ZOOM = 8
"""Points along a pixel of an image at which its PSF is measured."""


CENTRING_STEPS = 20
"""Of a windowed centroid, as SExtractor's XWIN_IMAGE; each leaves about a tenth of the distance."""


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian PSF; `fwhm` in arcsec."""

    fwhm: float
    wing: ClassVar[float] = 0.0

    def transfer(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transfer function at frequencies in cycles per arcsec along x and y, which broadcast; 1 at 0."""
        return np.asarray(np.exp(-(np.pi**2) * self.fwhm**2 * (u**2 + v**2) / (4 * np.log(2))))

    def __str__(self) -> str:
        return f"gaussian:{self.fwhm:g}"


@dataclass(frozen=True)
class Moffat:
    """A Moffat (1969) PSF, I(r) ~ (1 + (r / alpha)^2)^-beta; `fwhm` in arcsec, `beta` above 1."""

    fwhm: float
    beta: float

    @property
    def wing(self) -> float:
        """1 / beta."""
        return 1 / self.beta

    def transfer(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transfer function as in `Gaussian`: a Matern function, (k a / 2)^(b-1) K_{b-1}(k a) 2 / Gamma(b-1)."""
        alpha = self.fwhm / (2 * math.sqrt(2 ** (1 / self.beta) - 1))
        order = self.beta - 1
        ka = np.maximum(2 * np.pi * alpha * np.sqrt(u**2 + v**2), 1e-10)
        # kve = K exp(ka), in logarithms: the power and the Bessel function of a large beta overflow apart
        logarithm = (
            order * np.log(ka / 2)
            + np.log(scipy.special.kve(order, ka))
            - ka
            + np.log(2)
            - scipy.special.gammaln(order)
        )
        return np.asarray(np.where(ka > 1e-8, np.exp(logarithm), 1.0))

    def __str__(self) -> str:
        return f"moffat:{self.fwhm:g},{self.beta:g}"


@dataclass(frozen=True)
class Kolmogorov:
    """The PSF of a long exposure through Kolmogorov turbulence (Fried 1966); `fwhm` in arcsec."""

    fwhm: float

    @property
    def wing(self) -> float:
        """1 / beta of the Moffat with the same wings, see `wing_of`."""
        return _kolmogorov_wing()

    def transfer(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transfer function as in `Gaussian`: exp(-3.44 (lambda f / r0)^(5/3)), FWHM = 0.97586 lambda / r0."""
        return np.asarray(np.exp(-3.44196 * (self.fwhm / 0.9758634 * np.sqrt(u**2 + v**2)) ** (5 / 3)))

    def __str__(self) -> str:
        return f"kolmogorov:{self.fwhm:g}"


@dataclass(frozen=True, eq=False)
class PsfImage:
    """An image of a PSF.

    Parameters
    ----------
    values : float64 [h, w]
        Flux in each pixel, sum 1; x and y are those of the survey's image.
    pixel_scale : float
        arcsec; the values are integrals over pixels of this side.
    """

    values: NDArray[np.float64]
    pixel_scale: float

    @classmethod
    def of(cls, values: NDArray[np.floating], pixel_scale: float, where: str) -> PsfImage:
        """Normalise the pixels of a file; StorageError, naming `where`, if they cannot be those of a PSF."""
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or min(values.shape) < 3 or not np.isfinite(values).all() or not values.sum() > 0:
            raise StorageError(
                f"{where}: {' x '.join(map(str, values.shape))} pixels with sum {values.sum():.4g} are no image of a "
                "PSF; give a finite one of at least 3 x 3 with a positive sum"
            )
        return cls(values / values.sum(), pixel_scale)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PsfImage)
            and self.pixel_scale == other.pixel_scale
            and np.array_equal(self.values, other.values)
        )

    def __hash__(self) -> int:
        return hash((self.values.shape, self.pixel_scale, self.values.tobytes()))

    def __str__(self) -> str:
        height, width = self.values.shape
        return f"image {height}x{width}:{self.fwhm:.3g}"

    @functools.cached_property
    def centre(self) -> tuple[float, float]:
        """Centroid (y, x) in a Gaussian window of the PSF's width, pixels: where catalogs put a source."""
        y, x = np.indices(self.values.shape)
        top = np.unravel_index(np.argmax(self.values), self.values.shape)
        at_y, at_x = float(top[0]), float(top[1])
        variance = (self.values > self.values.max() / 2).sum() / np.pi / (2 * math.log(2))
        for _ in range(CENTRING_STEPS):
            weight = self.values * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * variance))
            at_y += 2 * float((weight * (y - at_y)).sum() / weight.sum())
            at_x += 2 * float((weight * (x - at_x)).sum() / weight.sum())
        return at_y, at_x

    def transfer(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Transfer function as in `Gaussian`, about the centroid; 0 beyond what the pixels can say.

        `u` must be [1, M] and `v` [N, 1]: the sum over pixels is then two matrix products.
        """
        height, width = self.values.shape
        across, along = np.asarray(u, np.float64).ravel(), np.asarray(v, np.float64).ravel()
        x = (np.arange(width) - self.centre[1]) * self.pixel_scale
        y = (np.arange(height) - self.centre[0]) * self.pixel_scale
        rows = np.exp(-2j * np.pi * along[:, None] * y)
        columns = np.exp(-2j * np.pi * x[:, None] * across)
        pixel = np.sinc(across * self.pixel_scale) * np.sinc(along * self.pixel_scale)[:, None]
        nyquist = 0.5 / self.pixel_scale * (1 + 1e-9)
        said = (np.abs(across) <= nyquist) & (np.abs(along) <= nyquist)[:, None]
        return np.where(said, rows @ self.values @ columns / np.where(said, pixel, 1.0), 0.0)

    @property
    def fwhm(self) -> float:
        """Diameter in arcsec of the circle with the area above half of the maximum, without the pixel."""
        return self._measured[0]

    @property
    def wing(self) -> float:
        """1 / beta of the Moffat with the same wings, see `wing_of`; NaN where the image ends too near."""
        return self._measured[1]

    @functools.cached_property
    def _measured(self) -> tuple[float, float]:
        fine, step = self._without_pixel()
        fwhm = 2 * math.sqrt((fine > fine.max() / 2).sum() / math.pi) * step
        y, x = np.indices(fine.shape)
        radius = np.hypot(y - fine.shape[0] // 2, x - fine.shape[1] // 2) * step
        reach = min(n - 1 - abs(n - 1 - 2 * c) for n, c in zip(self.values.shape, self.centre, strict=True))
        outer = min(OUTER, reach * self.pixel_scale / 2 / fwhm)
        if outer < LEAST_OUTER:
            return fwhm, math.nan
        inner = float(fine[radius < INNER * fwhm].sum())
        return fwhm, wing_of(float(fine[radius < outer * fwhm].sum()) / inner - 1, outer)

    def _without_pixel(self) -> tuple[NDArray[np.float64], float]:
        """The PSF at points closer than pixels, centred, and the distance of the points in arcsec."""
        side = 2 * max(self.values.shape)
        # a little inside of Nyquist's frequency, at which the sum of pixels has no phase
        frequency = np.asarray(np.fft.fftfreq(side, self.pixel_scale), np.float64)
        spectrum = np.fft.fftshift(self.transfer(frequency[None, :], frequency[:, None]))
        spectrum[0, :] = spectrum[:, 0] = 0
        larger = np.zeros((side * ZOOM, side * ZOOM), complex)
        first = side * ZOOM // 2 - side // 2
        larger[first : first + side, first : first + side] = spectrum
        return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(larger)).real), self.pixel_scale / ZOOM

    def turned(self, matrix: NDArray[np.float64]) -> PsfImage:
        """The image on a turned or mirrored grid; `matrix` (y, x) brings offsets there to offsets here."""
        matrix = np.asarray(matrix, np.float64) / math.sqrt(abs(np.linalg.det(matrix)))
        if np.abs(matrix - np.eye(2)).max() < SAME_AXES:
            return self
        side = max(self.values.shape) | 1
        offset = np.asarray(self.centre) - matrix @ np.full(2, (side - 1) / 2)
        values = scipy.ndimage.affine_transform(self.values, matrix, offset, (side, side), order=3)
        return PsfImage(values / values.sum(), self.pixel_scale)


SAME_AXES = 2e-3
"""Radians, or share, by which the axes of two grids may differ so that an image of a PSF need not be turned."""

Psf = Gaussian | Moffat | Kolmogorov | PsfImage
"""All have `fwhm` (arcsec), `wing` and `transfer`."""

_SPEC = re.compile(r"(gaussian|moffat|kolmogorov):([^,]+)(?:,([^,]+))?", re.IGNORECASE)


def parse_psf(text: str) -> Gaussian | Moffat | Kolmogorov:
    """Read `gaussian:FWHM`, `moffat:FWHM,BETA` or `kolmogorov:FWHM`; StorageError if it is none of them."""
    match = _SPEC.fullmatch(text.strip())
    try:
        kind = match[1].lower() if match else ""
        numbers = [float(part) for part in match.groups()[1:] if part is not None] if match else []
        right = len(numbers) == (2 if kind == "moffat" else 1) and 0 < numbers[0] < math.inf
        if right and kind == "moffat" and 1 < numbers[1] <= LARGEST_BETA:
            return Moffat(*numbers)
        if right and kind in ("gaussian", "kolmogorov"):
            return Gaussian(*numbers) if kind == "gaussian" else Kolmogorov(*numbers)
    except ValueError:
        pass
    raise StorageError(
        f"PSF {text!r}: expected gaussian:FWHM, moffat:FWHM,BETA or kolmogorov:FWHM, the FWHM in arcsec and above 0, "
        f"BETA above 1 and up to {LARGEST_BETA:g}"
    )


LARGEST_BETA = 100.0
"""A Moffat of a larger beta is a Gaussian, to a percent."""


def psf_of(fwhm: float, wing: float) -> Gaussian | Moffat | None:
    """The profile of a width in arcsec and wings; None where one of them is unknown (NaN)."""
    if not (math.isfinite(fwhm) and math.isfinite(wing)):
        return None
    return Moffat(fwhm, 1 / wing) if wing > 1 / LARGEST_BETA else Gaussian(fwhm)


def wing_of(ratio: float, outer: float = OUTER) -> float:
    """1 / beta of the Moffat with a certain ratio of flux: that from `INNER` to `outer` FWHM, to that within `INNER`.

    0 where the ratio is that of a Gaussian, or less.
    """

    def excess(wing: float) -> float:
        inner, whole = (_moffat_share(radius, wing) for radius in (INNER, outer))
        return whole / inner - 1 - ratio

    least, most = 1 / LARGEST_BETA, 0.95
    if excess(least) >= 0:
        return 0.0
    return most if excess(most) <= 0 else float(scipy.optimize.brentq(excess, least, most))


def _moffat_share(radius: float, wing: float) -> float:
    """Share of a Moffat's flux within a radius in FWHM."""
    return float(1 - (1 + 4 * radius**2 * (2**wing - 1)) ** (1 - 1 / wing))


@functools.cache
def _kolmogorov_wing() -> float:
    unit = Kolmogorov(1.0)
    inner, whole = (_share_within(radius, lambda f: unit.transfer(f, np.zeros_like(f))) for radius in (INNER, OUTER))
    return wing_of(whole / inner - 1)


def _share_within(radius: float, transfer: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
    """Share of the flux of a round PSF within a radius: 2 pi R int T(f) J1(2 pi f R) df."""
    f = np.linspace(0, 6, 60_001)
    return float(
        2 * np.pi * radius * scipy.integrate.simpson(transfer(f) * scipy.special.j1(2 * np.pi * f * radius), x=f)
    )
