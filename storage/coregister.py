"""Resample one image onto the pixel grid of another, conserving flux.

Cubic-spline interpolation of surface brightness times the ratio of pixel areas (of values that do not add up over
pixels, such as densities, without it). The mapping between the two pixel grids
is itself a spline through exact WCS positions every 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from surveybridge.storage.grids import NOT_DISPLACED, Displacement, GridMapping, Positions, pixel_scale
from surveybridge.storage.images import MASK_PLANES, Box, LazyImage, SurveyImage
from surveybridge.storage.psf import PsfImage
from surveybridge.storage.spline import TAPS, correlated_gain, interpolation_matrix, tap_weights

FOOTPRINT = {"BAD": 2, "SAT": 3, "NO_DATA": 2, "CLIPPED_EDGE": 2}
"""Pixels to each side of a position that must be usable. 2 is the support of the cubic B-spline; bad values are
replaced by a local fill that is nearly right, but nobody knows the flux of a saturated pixel: those reach farther."""


LATTICE = 16
"""Pixels between the places of the output at which one looks which part of the input they need."""

MARGIN = 64
"""Pixels of the input around what is interpolated. A spline coefficient depends on values at distance n as 0.268^n: at
64 pixels this is far below the last bit of a double."""


def coregister(image: SurveyImage, target_wcs_header: str, target_shape: tuple[int, int]) -> SurveyImage:
    """Interpolate an image onto another pixel grid.

    Parameters
    ----------
    image : SurveyImage
        Any pixel scale and rotation.
    target_wcs_header : str
        Celestial WCS of the wanted grid, a FITS header string.
    target_shape : (int, int)
        H, W of the wanted grid.

    Returns
    -------
    SurveyImage
        On the wanted grid. Flux is conserved where the image is `extensive`; a pixel is masked, with the planes of the
        cause, if its kernel footprint touches an unusable pixel; outside the input it is NO_DATA. `variance` is that
        of each single pixel, the sum of squared effective weights (prefilter included) times the input variance, and
        `noise_correlation` says how much neighbours share. A grid that is a shift by whole pixels is copied, not
        interpolated.
    """
    return Registration.of(LazyImage.of(image), target_wcs_header, target_shape).strip(0, target_shape[0])


@dataclass(frozen=True)
class Registration:
    """An image that is interpolated onto another pixel grid strip by strip, with the result of `coregister`.

    Parameters
    ----------
    image : LazyImage
        Any pixel scale and rotation.
    mapping : GridMapping
        From the wanted grid into the image's.
    head : SurveyImage
        Everything but the pixels of the image on the wanted grid.
    """

    image: LazyImage
    mapping: GridMapping
    head: SurveyImage

    @classmethod
    def of(
        cls,
        image: LazyImage,
        target_wcs_header: str,
        target_shape: tuple[int, int],
        displacement: Displacement = NOT_DISPLACED,
    ) -> Registration:
        """Prepare; arguments as `coregister`, and the error of the image's WCS that is taken back."""
        head = image.head
        mapping = GridMapping.between(
            target_wcs_header, target_shape, head.wcs_header, image.shape, displacement=displacement
        )
        done = mapping.name if head.extensive or mapping.whole_shift is not None else "cubic spline"
        told = {"native_pixel_scale": f"{head.pixel_scale:.6g}", "interpolation": done}
        on_grid = replace(
            head,
            wcs_header=target_wcs_header,
            pixel_scale=pixel_scale(target_wcs_header),
            noise_correlation=tuple(mapping.noise_correlation(r) for r in head.noise_correlation),
            psf_model=tuple(psf.turned(mapping.axes) if isinstance(psf, PsfImage) else psf for psf in head.psf_model),
            provenance=head.provenance | told,
        )
        return cls(image, mapping, on_grid)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the wanted grid."""
        return self.mapping.shape

    def strip(self, start: int, stop: int) -> SurveyImage:
        """Rows start..stop of the wanted grid, all columns; the WCS stays that of the whole grid."""
        size = (len(self.head.bands), stop - start, self.mapping.shape[1])
        flux, variance = (np.full(size, np.nan, np.float32) for _ in range(2))
        out = replace(self.head, flux=flux, variance=variance, mask=np.full(size, MASK_PLANES["NO_DATA"], np.uint8))
        box = self._seen(start, stop)
        if box is None:
            return out
        section = self.image.section(box)
        sources = [_Source.prepare(section, band) for band in range(len(section.bands))]
        for rows, where in self.mapping.blocks(start, stop):
            if not self.head.extensive:
                where = where._replace(area=np.ones_like(where.area))
            block = _Block.of(where, self.image.shape, box, copy=self.mapping.whole_shift is not None)
            for band, source in enumerate(sources):
                _interpolate(source, block, out, band, rows)
        return out

    def _seen(self, start: int, stop: int) -> Box | None:
        """The box of the image that the result depends on; None where the strip lies outside."""
        y, x = (
            np.unique([*range(first, last, LATTICE), last - 1]).astype(np.float64)
            for first, last in ((start, stop), (0, self.mapping.shape[1]))
        )
        where = self.mapping.at(y, x)
        between = 2 * LATTICE * max(1.0, float(np.sqrt(np.nanmax(where.area, initial=0.0))))
        (height, width), edges = self.image.shape, []
        with np.errstate(invalid="ignore"):
            near = (where.y > -between) & (where.y < height + between)
            near &= (where.x > -between) & (where.x < width + between)
        if not near.any():
            return None
        reach = 0 if self.mapping.whole_shift is not None else MARGIN
        for values, size in ((where.y[near], height), (where.x[near], width)):
            first, last = values.min() - between - reach, values.max() + between + reach
            edges += [int(np.clip(np.floor(first), 0, size)), int(np.clip(np.ceil(last) + 1, 0, size))]
        y0, y1, x0, x1 = edges
        return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def resample_stamps(
    stamps: NDArray[np.float32], scale: int = 2, out: int = 64, chunk: int = 256
) -> NDArray[np.float32]:
    """Central part of square stamps on a grid `scale` times finer with the same centre.

    The same interpolation as `coregister`, which for a fixed mapping along the axes is one matrix per axis.

    Parameters
    ----------
    stamps : float32 [N, H, W, C]
        nJy per pixel. The centre is the centre of the array (between two pixels for even sizes).
    scale : int
        Pixel scale of the stamps over that of the result: 2 for LSST 0.2" onto Euclid 0.1".
    out : int
        Size of the result in its own pixels.
    chunk : int
        Stamps worked on at a time.

    Returns
    -------
    float32 [N, C, out, out]
        nJy per (finer) pixel.
    """
    n, height, width, bands = stamps.shape
    along_y = interpolation_matrix(height, (height - 1) / 2 + (np.arange(out) - (out - 1) / 2) / scale)
    along_x = interpolation_matrix(width, (width - 1) / 2 + (np.arange(out) - (out - 1) / 2) / scale) / scale**2
    result = np.empty((n, bands, out, out), np.float32)
    for start in range(0, n, chunk):
        block = stamps[start : start + chunk].transpose(0, 3, 1, 2).astype(np.float64)
        result[start : start + chunk] = along_y @ block @ along_x.T
    return result


@dataclass(frozen=True)
class _Source:
    """One band, ready to be interpolated: spline coefficients, variance, reach of each mask plane.

    flux and variance are filled; around the variance its edge is repeated as far as `TAPS` reach.
    """

    flux: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    variance: NDArray[np.float64]
    mask: NDArray[np.uint8]
    touched: NDArray[np.uint8]
    correlation: float

    @classmethod
    def prepare(cls, image: SurveyImage, band: int) -> _Source:
        flux, variance, mask = image.flux[band], image.variance[band], image.mask[band]
        # a saturated value is too low, but nearer the truth than a fill from outside the core
        known = ((mask & ~np.uint8(MASK_PLANES["SAT"])) == 0) & np.isfinite(flux) & np.isfinite(variance)
        filled, filled_variance = fill_unknown((flux, variance), known)
        return cls(
            flux=filled,
            coefficients=np.asarray(scipy.ndimage.spline_filter(filled, order=3, output=np.float64, mode="mirror")),
            variance=np.pad(filled_variance, (-TAPS[0], TAPS[-1]), mode="edge"),
            mask=mask,
            # an average does not end at the edge as the flux of an object does
            touched=_touched(mask, MASK_PLANES["CLIPPED_EDGE"] if image.extensive else 0),
            correlation=image.noise_correlation[band],
        )


@dataclass(frozen=True)
class _Block:
    """Some rows of the output, and the quantities that all bands of an image share in them.

    at_y, at_x: input pixels under the positions; along_y, along_x: squared weights of `TAPS` (None for a copy).
    """

    where: Positions
    inside: NDArray[np.bool_]
    at_y: NDArray[np.intp]
    at_x: NDArray[np.intp]
    along_y: NDArray[np.float64] | None
    along_x: NDArray[np.float64] | None

    @classmethod
    def of(cls, where: Positions, shape: tuple[int, int], box: Box, *, copy: bool) -> _Block:
        """Relate positions in an image of some shape to the box of it that was read."""
        height, width = shape
        if not np.isfinite(where.y).all():  # places without a pixel: outside, whatever is computed there
            where = Positions(*(np.nan_to_num(plane, nan=-1.0) for plane in where))
        inside = (where.y > -0.5) & (where.y < height - 0.5) & (where.x > -0.5) & (where.x < width - 0.5)
        y0, y1, x0, x1 = box
        where = where._replace(y=where.y - y0, x=where.x - x0)  # exact: both are multiples of the same last bit
        at_y, at_x = (
            np.clip(np.floor(p), 0, n - 1).astype(np.intp) for p, n in ((where.y, y1 - y0), (where.x, x1 - x0))
        )
        if copy:
            return cls(where, inside, at_y, at_x, None, None)
        return cls(where, inside, at_y, at_x, tap_weights(where.y - at_y) ** 2, tap_weights(where.x - at_x) ** 2)


def fill_unknown(
    planes: Sequence[NDArray[np.floating]], known: NDArray[np.bool_], sigma: float = 1.0, far: float | None = None
) -> list[NDArray[np.float64]]:
    """Replace unknown pixels by the Gaussian mean of their known neighbours, far from any by the nearest; float64.

    With a value `far` that stands there instead, and no pixel more than 4 sigma away counts.
    """
    filled = [np.where(known, values, 0.0).astype(np.float64) for values in planes]
    if known.all() or not known.any():
        return filled
    weight = scipy.ndimage.gaussian_filter(known.astype(np.float64), sigma)
    if far is None:
        nearest = tuple(scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True))
    return [
        np.where(
            known,
            values,
            np.where(
                weight > 1e-3,
                scipy.ndimage.gaussian_filter(values, sigma) / np.maximum(weight, 1e-12),
                values[nearest] if far is None else far,
            ),
        )
        for values in filled
    ]


def _interpolate(source: _Source, block: _Block, out: SurveyImage, band: int, rows: slice) -> None:
    """Write one block of rows of one band."""
    where, at_y, at_x = block.where, block.at_y, block.at_x
    if block.along_y is None:
        mask = source.mask[at_y, at_x]
        flux, variance = source.flux[at_y, at_x], source.variance[at_y - TAPS[0], at_x - TAPS[0]]
    else:
        mask = source.touched[at_y, at_x]
        flux = where.area * scipy.ndimage.map_coordinates(
            source.coefficients, [where.y, where.x], order=3, mode="mirror", prefilter=False
        )
        variance = where.area**2 * _interpolated_variance(source, block)
    mask = np.where(block.inside, mask, MASK_PLANES["NO_DATA"]).astype(np.uint8)
    unknown = (mask & MASK_PLANES["NO_DATA"]) != 0
    out.mask[band, rows] = mask
    out.flux[band, rows] = np.where(unknown, np.nan, flux)
    out.variance[band, rows] = np.where(unknown, np.nan, variance)


def _interpolated_variance(source: _Source, block: _Block) -> NDArray[np.float64]:
    """Sum over input pixels of (effective weight)^2 x variance, the weights being separable cardinal splines."""
    assert block.along_y is not None and block.along_x is not None
    where, width = block.where, source.variance.shape[1]
    values = source.variance.ravel()
    first = block.at_y * width + block.at_x  # of the taps in the padded array; all others are a fixed way from it
    total, line, tap = (np.empty_like(where.y) for _ in range(3))
    total[:] = 0.0
    for i, along_y in enumerate(block.along_y):
        line[:] = 0.0
        for j, along_x in enumerate(block.along_x):
            np.take(values[i * width + j :], first, out=tap, mode="clip")  # all lie inside; "raise" would copy
            tap *= along_x
            line += tap
        line *= along_y
        total += line
    if source.correlation > 0:
        total *= correlated_gain(where.y - block.at_y, source.correlation)
        total *= correlated_gain(where.x - block.at_x, source.correlation)
    return total


def _touched(mask: NDArray[np.uint8], beyond: int) -> NDArray[np.uint8]:
    """Planes that a position in [pixel, pixel + 1) touches: OR over the footprint, and `beyond` outside."""
    touched = np.zeros_like(mask)
    height, width = mask.shape
    for reach in sorted(set(FOOTPRINT.values())):
        planes = np.uint8(sum(MASK_PLANES[name] for name, r in FOOTPRINT.items() if r == reach))
        outside = planes & np.uint8(beyond)
        padded = np.pad(mask & planes, ((reach - 1, reach), (reach - 1, reach)), constant_values=outside)
        rows = np.bitwise_or.reduce([padded[k : k + height] for k in range(2 * reach)])
        touched |= np.bitwise_or.reduce([rows[:, k : k + width] for k in range(2 * reach)])
    return touched
