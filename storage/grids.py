"""Pixel grids on the sky: scales and footprints, and the mapping from one grid into another."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import scipy
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from numpy.typing import NDArray

from surveybridge.storage.celestial import celestial_wcs, pixel_area, sky_to_pixel, wcs_header_string
from surveybridge.storage.errors import StorageError
from surveybridge.storage.images import Box
from surveybridge.storage.spline import noise_covariance

if TYPE_CHECKING:
    from scipy.interpolate import RectBivariateSpline


NO_SKY_SCALE = 1.0
"""arcsec per pixel of the WCS that stands in where an endpoint has no place on the sky."""


@functools.cache
def no_sky_header() -> str:
    """The WCS that stands in for that of an image which has no place on the sky."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [0, 0], [1, 1]
    wcs.wcs.cdelt = [-NO_SKY_SCALE / 3600, NO_SKY_SCALE / 3600]
    wcs.wcs.radesys = "ICRS"
    return wcs_header_string(wcs)


def pixel_scale(wcs_header: str) -> float:
    """Pixel scale in arcsec at the reference point, geometric mean of both axes."""
    wcs = celestial_wcs(wcs_header)
    scales = proj_plane_pixel_scales(wcs)
    stated = float(np.sqrt(scales[0] * scales[1]) * 3600)
    x, y = wcs.wcs.crpix - 1
    found = float(np.degrees(np.sqrt(pixel_area(wcs, y, x))) * 3600)
    # the polynomials of TPV have a scale of their own, on top of that of the CD matrix
    return found if abs(found / stated - 1) > 1e-3 else stated


def pixel_areas(
    wcs_header: str, shape: Sequence[int], boxes: Sequence[Box] = (), spacing: int = 64
) -> NDArray[np.float64]:
    """Area on the sky, in steradian, of the pixels of an image, float64 [H, W]; exact every `spacing` pixels.

    With `boxes`, all of one width, those of the pixels in these, one below the other.
    """
    from scipy.interpolate import RectBivariateSpline

    nodes_y, nodes_x = (np.linspace(0, n - 1, max(5, -(-n // spacing) + 1)) for n in shape)
    areas = pixel_area(celestial_wcs(wcs_header), *np.meshgrid(nodes_y, nodes_x, indexing="ij"))
    spline = RectBivariateSpline(nodes_y, nodes_x, areas)
    parts = boxes or [(0, shape[0], 0, shape[1])]
    return np.concatenate([spline(np.arange(y0, y1), np.arange(x0, x1)) for y0, y1, x0, x1 in parts])


def shifted_header(wcs_header: str, y: int, x: int) -> str:
    """Return the WCS of the grid that is cut at pixel (y, x), which becomes pixel (0, 0)."""
    return wcs_header_string(celestial_wcs(wcs_header)[y:, x:])


def pixel_to_pixel(
    first: WCS, second: WCS, y: NDArray[np.float64], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (y, x, 0-based) on the first grid, on the second; NaN where the second has no pixel for them."""
    sky = SkyCoord(*first.all_pix2world(x, y, 0), unit="deg", frame=wcs_to_celestial_frame(first))
    sky = sky.transform_to(wcs_to_celestial_frame(second))
    return sky_to_pixel(second, sky.spherical.lon.deg, sky.spherical.lat.deg)


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
class Displacement:
    """Where on a grid an image shows what belongs at a place, if its WCS is not quite right: a shift and a turn.

    Parameters
    ----------
    shift : (float, float)
        (y, x), pixels of the grid.
    turn : float
        By which a place at x from the middle is too high in y, rad; small.
    middle : (float, float)
        (y, x) of the grid about which it is turned.
    """

    shift: tuple[float, float]
    turn: float
    middle: tuple[float, float]

    def of(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places (y, x) of the grid, displaced."""
        from_y, from_x = y - self.middle[0], x - self.middle[1]
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return (
            self.middle[0] + self.shift[0] + cos * from_y + sin * from_x,
            self.middle[1] + self.shift[1] + cos * from_x - sin * from_y,
        )


NOT_DISPLACED = Displacement((0.0, 0.0), 0.0, (0.0, 0.0))


@dataclass(frozen=True)
class Route:
    """The way from a place on the output grid to its pixel of the input, by the WCS of both.

    Parameters
    ----------
    output, input : WCS
        Of the two grids.
    displacement : Displacement
        Where the input, brought onto the output grid by its WCS, would show what belongs at a place.
    """

    output: WCS
    input: WCS
    displacement: Displacement = NOT_DISPLACED

    def of(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions (y, x) in the input of places on the output grid; NaN where it has no pixel for them."""
        return pixel_to_pixel(self.output, self.input, *self.displacement.of(y, x))


EXACT_WITHIN = 1e-4
"""Pixels: what the splines of a mapping may differ from the WCS in the middle between their nodes."""


@dataclass(frozen=True)
class Cells:
    """The squares between the nodes of a mapping in which its splines are not what the WCS says.

    Attributes
    ----------
    nodes_y, nodes_x : float64 [N], [M]
        Output pixels of the nodes.
    exact : bool [N - 1, M - 1]
        Where each pixel is computed by itself.
    unseen : bool [N - 1, M - 1]
        Where no pixel lies on the input.
    route : Route
        By which they are computed.
    """

    nodes_y: NDArray[np.float64]
    nodes_x: NDArray[np.float64]
    exact: NDArray[np.bool_]
    unseen: NDArray[np.bool_]
    route: Route

    def correct(self, y: NDArray[np.float64], x: NDArray[np.float64], where: Positions) -> None:
        """Write exact positions into those of the rectangle y [h] times x [w], NaN where there are none."""
        row = np.clip(np.searchsorted(self.nodes_y, y, "right") - 1, 0, len(self.nodes_y) - 2)[:, None]
        column = np.clip(np.searchsorted(self.nodes_x, x, "right") - 1, 0, len(self.nodes_x) - 2)
        exact, unseen = self.exact[row, column], self.unseen[row, column]
        for plane in where:
            plane[unseen] = np.nan
        if exact.any():
            all_y, all_x = (plane[exact] for plane in np.meshgrid(y, x, indexing="ij"))
            there_y, there_x = self.route.of(all_y, all_x)
            where.y[exact], where.x[exact] = there_y, there_x
            output, there = self.route.output, self.route.input
            where.area[exact] = pixel_area(output, all_y, all_x) / pixel_area(there, there_y, there_x)


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
    centre : (float, float)
        Output pixel (y, x) at which the splines say how large a step is: the middle, or the place nearest to it where
        they hold.
    cells : Cells or None
        Where the splines do not hold, because the input's WCS has no pixel for a place or bends too much.
    """

    shape: tuple[int, int]
    spline_y: RectBivariateSpline
    spline_x: RectBivariateSpline
    whole_shift: tuple[int, int] | None
    centre: tuple[float, float]
    cells: Cells | None = None

    @classmethod
    def between(
        cls,
        output_header: str,
        shape: tuple[int, int],
        input_header: str,
        input_shape: Sequence[int] | None = None,
        spacing: int = 64,
        displacement: Displacement = NOT_DISPLACED,
    ) -> GridMapping:
        """Map the grid of `output_header` into that of `input_header`, exact every `spacing` pixels.

        Where the splines between are off by more than `EXACT_WITHIN`, every pixel is exact; of positions outside
        `input_shape` (H, W of the input), where it is given, this need not hold. The input is read where
        `displacement` says that it shows what its WCS has elsewhere.
        """
        from scipy.interpolate import RectBivariateSpline  # half a second, which those who read tiles do without

        route = Route(celestial_wcs(output_header), celestial_wcs(input_header), displacement)
        nodes_y, nodes_x = (np.linspace(0, n - 1, max(5, -(-n // spacing) + 1)) for n in shape)
        y, x = route.of(*np.meshgrid(nodes_y, nodes_x, indexing="ij"))
        seen = np.isfinite(y) & np.isfinite(x)
        if not seen.any():
            raise StorageError(
                f"the grids do not see the same sky: {describe_footprint(route.output, shape)} and CRVAL "
                f"{route.input.wcs.crval} deg; give images that overlap"
            )
        ahead_y, ahead_x = (y - nodes_y[:, None])[seen], (x - nodes_x)[seen]
        shift = (round(float(ahead_y[0])), round(float(ahead_x[0])))
        off = max(np.abs(ahead_y - shift[0]).max(), np.abs(ahead_x - shift[1]).max())
        if not seen.all():
            y, x = _nearest(y, seen), _nearest(x, seen)
        mapping = cls(
            shape,
            RectBivariateSpline(nodes_y, nodes_x, y),
            RectBivariateSpline(nodes_y, nodes_x, x),
            # 1e-4 px is 10 micro-arcsec on Euclid's grid: far below any astrometry, far above header rounding
            shift if off < 1e-4 else None,
            ((shape[0] - 1) / 2, (shape[1] - 1) / 2),
        )
        return mapping if mapping.whole_shift is not None else mapping._checked(route, seen, input_shape)

    def _checked(self, route: Route, seen: NDArray[np.bool_], input_shape: Sequence[int] | None) -> Self:
        """The mapping with the cells in which its splines are not what the WCS says; `seen` are its nodes."""
        nodes_y, nodes_x = (np.linspace(0, n - 1, nodes) for n, nodes in zip(self.shape, seen.shape, strict=True))
        middle_y, middle_x = ((nodes[1:] + nodes[:-1]) / 2 for nodes in (nodes_y, nodes_x))
        y, x = route.of(*np.meshgrid(middle_y, middle_x, indexing="ij"))
        off = np.hypot(y - self.spline_y(middle_y, middle_x), x - self.spline_x(middle_y, middle_x))
        corners = np.stack([seen[:-1, :-1], seen[:-1, 1:], seen[1:, :-1], seen[1:, 1:], np.isfinite(off)])
        holds = corners.all(axis=0) & (off <= EXACT_WITHIN)
        if holds.all():
            return self
        exact = ~holds & corners.any(axis=0)
        if input_shape is not None:
            exact &= scipy.ndimage.binary_dilation(self._touches(nodes_y, nodes_x, input_shape), np.ones((3, 3), bool))
        centre = self.centre
        if holds.any():
            row, column = np.unravel_index(
                np.argmin(np.where(holds, np.hypot(middle_y[:, None] - centre[0], middle_x - centre[1]), np.inf)),
                holds.shape,
            )
            centre = (float(middle_y[row]), float(middle_x[column]))
        return replace(self, centre=centre, cells=Cells(nodes_y, nodes_x, exact, ~holds & ~exact, route))

    def _touches(
        self, nodes_y: NDArray[np.float64], nodes_x: NDArray[np.float64], input_shape: Sequence[int]
    ) -> NDArray[np.bool_]:
        """Cells whose corners span a box that reaches the input."""
        touches = np.ones((len(nodes_y) - 1, len(nodes_x) - 1), bool)
        for spline, size in ((self.spline_y, input_shape[0]), (self.spline_x, input_shape[1])):
            node = spline(nodes_y, nodes_x)
            corners = np.stack([node[:-1, :-1], node[:-1, 1:], node[1:, :-1], node[1:, 1:]])
            touches &= (corners.max(axis=0) > -1) & (corners.min(axis=0) < size)
        return touches

    @property
    def name(self) -> str:
        """Return the name of the resampling, for provenance."""
        return "none (whole-pixel shift)" if self.whole_shift is not None else "cubic spline x pixel area"

    def at(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> Positions:
        """Positions of the output pixels on the rectangle y [h] times x [w]; NaN where the input has none."""
        if self.whole_shift is not None:
            rows, columns = np.meshgrid(y + self.whole_shift[0], x + self.whole_shift[1], indexing="ij")
            return Positions(rows, columns, np.ones_like(rows))
        yy, yx = self.spline_y(y, x, dx=1), self.spline_y(y, x, dy=1)
        xy, xx = self.spline_x(y, x, dx=1), self.spline_x(y, x, dy=1)
        where = Positions(self.spline_y(y, x), self.spline_x(y, x), np.abs(yy * xx - yx * xy))
        if self.cells is not None:
            self.cells.correct(y, x, where)
        return where

    def blocks(self, start: int, stop: int, rows: int = 64) -> Iterator[tuple[slice, Positions]]:
        """Walk over rows start..stop of the output, a few at a time, so that temporaries stay in the processor's cache.

        The slices count from `start`.
        """
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            y, x = np.arange(first, last, dtype=np.float64), np.arange(self.shape[1], dtype=np.float64)
            yield slice(first - start, last - start), self.at(y, x)

    @property
    def axes(self) -> NDArray[np.float64]:
        """Pixels of the input for a pixel of the output, at `centre`: float64 [2, 2], rows and columns are y and x."""
        at = np.array([self.centre[0]]), np.array([self.centre[1]])
        along_y, along_x = (
            [float(spline(*at, dx=down, dy=1 - down)[0, 0]) for spline in (self.spline_y, self.spline_x)]
            for down in (1, 0)
        )
        return np.array([along_y, along_x]).T

    def noise_correlation(self, input_correlation: float) -> float:
        """Lag-1 noise correlation on the output grid, mean over x and y, at `centre` and averaged over pixel phase.

        Input noise of lag-1 correlation r is taken as r^|lag| along each axis.
        """
        if self.whole_shift is not None:
            return input_correlation
        centre = np.array([self.centre[0]]), np.array([self.centre[1]])
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


def _nearest(plane: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The plane with the nearest known value wherever none is known."""
    return np.asarray(
        plane[tuple(scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True))]
    )
