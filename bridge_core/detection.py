"""Sources of a tile: SExtractor's detection (sep; Bertin & Arnouts 1996, Barbary 2016) and aperture fluxes.

The images are sky subtracted, so no background is fitted: what is detected depends on nearby pixels only, and two
tiles that both see an object give it the same centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import sep
from numpy.typing import NDArray

from surveybridge.bridge_core.correlation import disc, error_factor

SIGNIFICANCE = 6.0
"""Least signal to noise of an object. A field of 1024 x 1024 pixels has some 10^6 circles: pure noise exceeds 5 in one
of them now and then, and 6 once in a thousand such fields."""

SMALLEST_RADIUS = 2.5
"""Smallest radius, pixels, of the circles in which the significance is measured."""

LARGE_FOOTPRINT = 500
"""Pixels of a footprint whose radius is large against any correlation of the noise."""


@dataclass(frozen=True)
class Sources:
    """Detected objects, one row each.

    Parameters
    ----------
    x, y
        float64 [N] centre, array pixels, 0-based.
    a, b, theta
        float32 [N] rms semi-axes in pixels and position angle in rad.
    flags
        int32 [N], sep's bits: 1 merged (deblended), 2 cut by the image's edge, 4 too many branches to deblend, 8 too
        few pixels for a shape.
    pixels
        int32 [N] of its footprint.
    snr
        float32 [N], signal to noise of the footprint's sum, as if its noise were white and everywhere that at its peak.
    touches
        bool [N]: a pixel of its footprint, or one beside it, is among those marked.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    theta: NDArray[np.float32]
    flags: NDArray[np.int32]
    pixels: NDArray[np.int32]
    snr: NDArray[np.float32]
    touches: NDArray[np.bool_]

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.x)

    def select(self, keep: NDArray[np.bool_]) -> Sources:
        """Keep some of the objects."""
        return Sources(*(getattr(self, one.name)[keep] for one in fields(self)))

    def moved(self, y: float, x: float) -> Sources:
        """The same with other centres, such as those of a strip in the whole image."""
        return replace(self, y=self.y + y, x=self.x + x)

    @classmethod
    def joined(cls, parts: Sequence[Sources]) -> Sources:
        """Objects of several, one after the other."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


def detect(
    flux: NDArray[np.float32],
    variance: NDArray[np.float32],
    valid: NDArray[np.bool_],
    threshold: float = 3.0,
    *,
    clean: bool = True,
    marked: NDArray[np.bool_] | None = None,
) -> Sources:
    """Find objects above `threshold` sigma per pixel (after a 3 x 3 matched filter), at least 5 pixels, deblended.

    Noise alone reaches that now and then, correlated noise often: see `significance`.

    Parameters
    ----------
    flux, variance
        [H, W], nJy and nJy^2 per pixel.
    valid
        bool [H, W]; other pixels are not used.
    clean
        Leave out what the wings of neighbours might have raised above the threshold (SExtractor's CLEAN). The wings of
        faint neighbours are overestimated, and many real sources go; `significance` leaves out less.
    marked
        bool [H, W]: pixels, as saturated ones, of which it is to be known which objects touch them.
    """
    image, noise = _native(flux, valid), np.sqrt(_native(variance, valid, 1.0))
    how = {"err": noise, "mask": ~valid, "minarea": 5, "deblend_cont": 0.005, "clean": clean}
    touched = np.zeros(0, np.int32)
    if marked is not None and marked.any():
        found, labels = sep.extract(image, threshold, segmentation_map=True, **how)
        touched = np.unique(_neighbourhood(labels, marked))
    else:
        found = sep.extract(image, threshold, **how)
    order = np.lexsort((found["x"], found["y"]))
    return Sources(
        x=found["x"][order].astype(np.float64),
        y=found["y"][order].astype(np.float64),
        a=found["a"][order].astype(np.float32),
        b=found["b"][order].astype(np.float32),
        theta=found["theta"][order].astype(np.float32),
        flags=found["flag"][order].astype(np.int32),
        pixels=found["npix"][order].astype(np.int32),
        snr=(found["flux"] / np.sqrt(found["npix"]) / noise[found["ypeak"], found["xpeak"]])[order].astype(np.float32),
        touches=np.isin(order + 1, touched),
    )


def significance(
    flux: NDArray[np.float32],
    variance: NDArray[np.float32],
    valid: NDArray[np.bool_],
    sources: Sources,
    psf_fwhm: float = math.nan,
    correlation: float = 0.0,
) -> NDArray[np.float32]:
    """Signal to noise of each source: in its footprint, or in the better of two circles around it, whichever is less.

    Noise that rose above the threshold is not significant in a circle around it, nor a piece of the wing of a bright
    object in its own few pixels. The circles have radius r and 2 r.

    Parameters
    ----------
    flux, variance
        [H, W].
    valid
        bool [H, W].
    psf_fwhm
        Pixels: r is this, and at least `SMALLEST_RADIUS`, which holds where it is not known (NaN).
    correlation
        Of the noise of neighbouring pixels.

    Returns
    -------
    array
        float32 [N]; that of the footprint where all pixels of both circles are masked, as in the middle of a saturated
        star.
    """
    radius = max(psf_fwhm if math.isfinite(psf_fwhm) else 0.0, SMALLEST_RADIUS)
    found = np.full(len(sources), np.nan, np.float32)
    image, noise = _native(flux, valid), _native(variance, valid, 1.0)
    for reach in (radius, 2 * radius):
        values, errors, _ = sep.sum_circle(image, sources.x, sources.y, reach, var=noise, mask=~valid)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.fmax(found, values / errors / error_factor(disc(reach), correlation))
    return np.fmin(found, sources.snr / _footprint_factor(sources.pixels, correlation))


def _neighbourhood(labels: NDArray[np.int32], marked: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Labels of the marked pixels and of those beside them."""
    lines, columns = np.nonzero(marked)
    steps = np.arange(-1, 2)
    lines = np.clip(lines[:, None, None] + steps[:, None], 0, len(labels) - 1)
    columns = np.clip(columns[:, None, None] + steps, 0, labels.shape[1] - 1)
    return labels[lines, columns]


def _footprint_factor(pixels: NDArray[np.int32], correlation: float) -> NDArray[np.float32]:
    """`error_factor` of footprints, taken as round; beyond `LARGE_FOOTPRINT` it grows no more."""
    if correlation <= 0:
        return np.ones(len(pixels), np.float32)
    sizes, place = np.unique(np.minimum(pixels, LARGE_FOOTPRINT), return_inverse=True)
    factors = [error_factor(disc(math.sqrt(size / math.pi)), correlation) for size in sizes]
    return np.asarray(factors, np.float32)[place]


def aperture_flux(
    flux: NDArray[np.float32],
    variance: NDArray[np.float32],
    valid: NDArray[np.bool_],
    sources: Sources,
    radius: float,
    correlation: Sequence[float] = (),
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Flux in a circle around each source, and its standard error from the variance and the noise's correlation.

    Parameters
    ----------
    flux, variance
        [C, H, W].
    valid
        bool [C, H, W]; masked pixels count as the mean of the others in the circle.
    radius
        Pixels.
    correlation
        Of the noise of neighbouring pixels, one for each band (`correlation.error_factor`); none for white noise.

    Returns
    -------
    tuple of arrays
        float32 [C, N] flux and error, nJy; int32 [C, N] sep's bits of apertures: 16 reaches beyond the image, 32 some
        pixels masked, 64 all of them.
    """
    fluxes, errors, flags = [], [], []
    circle = disc(radius)
    for band in range(len(flux)):
        factor = error_factor(circle, correlation[band] if correlation else 0.0)
        values, sigmas, bits = sep.sum_circle(
            _native(flux[band], valid[band]),
            sources.x,
            sources.y,
            radius,
            var=_native(variance[band], valid[band], 1.0),
            mask=~valid[band],
        )
        fluxes.append(np.asarray(values, np.float32))
        errors.append(np.asarray(sigmas * factor, np.float32))
        flags.append(np.asarray(bits, np.int32))
    return np.stack(fluxes), np.stack(errors), np.stack(flags)


def _native(image: NDArray[np.floating], valid: NDArray[np.bool_], fill: float = 0.0) -> NDArray[np.float32]:
    """Contiguous native float32 with masked pixels filled: sep reads them before it looks at its mask."""
    return np.ascontiguousarray(np.where(valid, image, fill), dtype=np.float32)
