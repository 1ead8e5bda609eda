"""Pixel grids on the sky: WCS headers, pixel scales, and the mapping from one grid into another."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io.fits import Header
from astropy.wcs import WCS, FITSFixedWarning, NoConvergence
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.spline import noise_covariance

if TYPE_CHECKING:
    from scipy.interpolate import RectBivariateSpline


def celestial_wcs(header: Header | str, where: str = "image") -> WCS:
    """Celestial WCS of a FITS header.

    Raises
    ------
    StorageError
        If there is none, or it cannot be read; `where` names the file.
    """
    if isinstance(header, str):
        header = Header.fromstring(header)
    try:
        with warnings.catch_warnings():
            # repairs such as "RADECSYS is deprecated" say nothing about the pixels
            warnings.simplefilter("ignore", FITSFixedWarning)
            wcs = WCS(header)
            if wcs.has_celestial:
                return wcs.celestial
    except (ValueError, KeyError, MemoryError) as error:
        raise StorageError(f"{where}: unreadable WCS ({error}); give an image with a valid celestial WCS") from error
    kinds = [header.get(f"CTYPE{axis}", "absent") for axis in (1, 2)]
    raise StorageError(
        f"{where}: no celestial WCS (CTYPE1 {kinds[0]}, CTYPE2 {kinds[1]}, expected RA---TAN, DEC--TAN or the like); "
        "solve the astrometry first or name the right extension as FILE[EXT]"
    )


def has_celestial_wcs(header: Header) -> bool:
    """Return whether a FITS header says where on the sky its pixels are."""
    try:
        celestial_wcs(header)
    except StorageError:
        return False
    return True


def wcs_header_string(wcs: WCS) -> str:
    """Header string that restores the WCS, distortions included."""
    return str(wcs.to_header_string(relax=True))


def pixel_scale(wcs_header: str) -> float:
    """Pixel scale in arcsec, geometric mean of both axes."""
    scales = proj_plane_pixel_scales(celestial_wcs(wcs_header))
    return float(np.sqrt(scales[0] * scales[1]) * 3600)


def shifted_header(wcs_header: str, y: int, x: int) -> str:
    """Return the WCS of the grid that is cut at pixel (y, x), which becomes pixel (0, 0)."""
    return wcs_header_string(celestial_wcs(wcs_header)[y:, x:])


def pixel_to_pixel(
    first: WCS, second: WCS, y: NDArray[np.float64], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (y, x, 0-based) on the first grid, on the second; NaN where the second cannot see them."""
    sky = SkyCoord(*first.all_pix2world(x, y, 0), unit="deg", frame=wcs_to_celestial_frame(first))
    sky = sky.transform_to(wcs_to_celestial_frame(second))
    lon, lat = sky.spherical.lon.deg, sky.spherical.lat.deg
    try:
        there = second.all_world2pix(lon, lat, 0)
    except NoConvergence:
        there = second.wcs_world2pix(lon, lat, 0)
    return np.asarray(there[1]), np.asarray(there[0])


def overlap_fraction(first: WCS, first_shape: tuple[int, int], second: WCS, second_shape: tuple[int, int]) -> float:
    """Share of the first grid that lies on the second, from a lattice of 65 x 65 points."""
    y, x = np.meshgrid(*(np.linspace(0, n - 1, 65) for n in first_shape), indexing="ij")
    y, x = pixel_to_pixel(first, second, y, x)
    with np.errstate(invalid="ignore"):
        inside = (y > -0.5) & (y < second_shape[0] - 0.5) & (x > -0.5) & (x < second_shape[1] - 0.5)
    return float(inside.mean())


def describe_footprint(wcs: WCS, shape: tuple[int, int]) -> str:
    """Centre and size on the sky, for messages."""
    ra, dec = wcs.all_pix2world((shape[1] - 1) / 2, (shape[0] - 1) / 2, 0)
    size = [n * scale * 60 for n, scale in zip(shape[::-1], proj_plane_pixel_scales(wcs), strict=True)]
    return f"RA {float(ra):.5f} Dec {float(dec):+.5f} deg, {size[0]:.2f}' x {size[1]:.2f}'"


class Positions(NamedTuple):
    """Places of output pixels in the input: y, x in input pixels, and input pixels per output pixel, float64 [h, W]."""

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    area: NDArray[np.float64]


@dataclass(frozen=True)
class GridMapping:
    """Pixel positions of one grid in another, by splines through exact WCS positions.

    Attributes
    ----------
    shape : (int, int)
        H, W of the output grid.
    spline_y, spline_x : RectBivariateSpline
        Input pixel position as a function of the output (y, x).
    whole_shift : (int, int) or None
        (dy, dx) if the grids differ by whole pixels only.
    """

    shape: tuple[int, int]
    spline_y: RectBivariateSpline
    spline_x: RectBivariateSpline
    whole_shift: tuple[int, int] | None

    @classmethod
    def between(cls, output_header: str, shape: tuple[int, int], input_header: str, spacing: int = 64) -> GridMapping:
        """Map the grid of `output_header` into that of `input_header`, exact every `spacing` pixels."""
        from scipy.interpolate import RectBivariateSpline  # half a second, which those who read tiles do without

        nodes_y, nodes_x = (np.linspace(0, n - 1, max(5, -(-n // spacing) + 1)) for n in shape)
        y, x = np.meshgrid(nodes_y, nodes_x, indexing="ij")
        y, x = pixel_to_pixel(celestial_wcs(output_header), celestial_wcs(input_header), y, x)
        if not (np.isfinite(y).all() and np.isfinite(x).all()):
            raise StorageError(
                f"the grids do not see the same sky: {describe_footprint(celestial_wcs(output_header), shape)} and "
                f"CRVAL {celestial_wcs(input_header).wcs.crval} deg; give images that overlap"
            )
        shift = (round(float(y[0, 0])), round(float(x[0, 0])))
        off = max(np.abs(y - nodes_y[:, None] - shift[0]).max(), np.abs(x - nodes_x - shift[1]).max())
        return cls(
            shape,
            RectBivariateSpline(nodes_y, nodes_x, y),
            RectBivariateSpline(nodes_y, nodes_x, x),
            # 1e-4 px is 10 micro-arcsec on Euclid's grid: far below any astrometry, far above header rounding
            shift if off < 1e-4 else None,
        )

    @property
    def name(self) -> str:
        """Return the name of the resampling, for provenance."""
        return "none (whole-pixel shift)" if self.whole_shift is not None else "cubic spline x pixel area"

    def at(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> Positions:
        """Positions of the output pixels on the rectangle y [h] times x [w]."""
        if self.whole_shift is not None:
            rows, columns = np.meshgrid(y + self.whole_shift[0], x + self.whole_shift[1], indexing="ij")
            return Positions(rows, columns, np.ones_like(rows))
        yy, yx = self.spline_y(y, x, dx=1), self.spline_y(y, x, dy=1)
        xy, xx = self.spline_x(y, x, dx=1), self.spline_x(y, x, dy=1)
        return Positions(self.spline_y(y, x), self.spline_x(y, x), np.abs(yy * xx - yx * xy))

    def blocks(self, rows: int = 64) -> Iterator[tuple[slice, Positions]]:
        """Walk over the output in strips of rows, so that temporaries stay in the processor's cache."""
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            y, x = np.arange(start, stop, dtype=np.float64), np.arange(self.shape[1], dtype=np.float64)
            yield slice(start, stop), self.at(y, x)

    def noise_correlation(self, input_correlation: float) -> float:
        """Lag-1 noise correlation on the output grid, mean over x and y, at the centre and averaged over pixel phase.

        Input noise of lag-1 correlation r is taken as r^|lag| along each axis.
        """
        if self.whole_shift is not None:
            return input_correlation
        centre = np.array([(self.shape[0] - 1) / 2]), np.array([(self.shape[1] - 1) / 2])
        steps = [
            (self.spline_y(*centre, dx=1), self.spline_x(*centre, dx=1)),
            (self.spline_y(*centre, dy=1), self.spline_x(*centre, dy=1)),
        ]
        none = noise_covariance(0.0, input_correlation)
        lags = [
            noise_covariance(abs(float(dy[0, 0])), input_correlation)
            * noise_covariance(abs(float(dx[0, 0])), input_correlation)
            for dy, dx in steps
        ]
        return float(np.mean(lags) / none**2)
