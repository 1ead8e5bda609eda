"""Sources of a tile: SExtractor's detection (sep; Bertin & Arnouts 1996, Barbary 2016) and aperture fluxes.

The images are sky subtracted, so no background is fitted: what is detected depends on nearby pixels only, and two
tiles that both see an object give it the same centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray


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
        int32 [N], sep's.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    theta: NDArray[np.float32]
    flags: NDArray[np.int32]

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.x)

    def select(self, keep: NDArray[np.bool_]) -> Sources:
        """Keep some of the objects."""
        return Sources(*(getattr(self, name)[keep] for name in ("x", "y", "a", "b", "theta", "flags")))


def detect(
    flux: NDArray[np.float32], variance: NDArray[np.float32], valid: NDArray[np.bool_], threshold: float = 3.0
) -> Sources:
    """Find objects above `threshold` sigma per pixel (after a 3 x 3 matched filter), at least 5 pixels, deblended.

    Parameters
    ----------
    flux, variance
        [H, W], nJy and nJy^2 per pixel.
    valid
        bool [H, W]; other pixels are not used.
    """
    image, noise = _native(flux, valid), np.sqrt(_native(variance, valid, 1.0))
    found = sep.extract(image, threshold, err=noise, mask=~valid, minarea=5, deblend_cont=0.005)
    order = np.lexsort((found["x"], found["y"]))
    return Sources(
        x=found["x"][order].astype(np.float64),
        y=found["y"][order].astype(np.float64),
        a=found["a"][order].astype(np.float32),
        b=found["b"][order].astype(np.float32),
        theta=found["theta"][order].astype(np.float32),
        flags=found["flag"][order].astype(np.int32),
    )


def aperture_flux(
    flux: NDArray[np.float32],
    variance: NDArray[np.float32],
    valid: NDArray[np.bool_],
    sources: Sources,
    radius: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flux in a circle around each source and its standard error from the variance (noise taken as white).

    Parameters
    ----------
    flux, variance
        [C, H, W].
    valid
        bool [C, H, W]; masked pixels count as the mean of the others in the circle.
    radius
        Pixels.

    Returns
    -------
    tuple of arrays
        float32 [C, N] each, nJy.
    """
    fluxes, errors = [], []
    for band in range(len(flux)):
        values, sigmas, _ = sep.sum_circle(
            _native(flux[band], valid[band]),
            sources.x,
            sources.y,
            radius,
            var=_native(variance[band], valid[band], 1.0),
            mask=~valid[band],
        )
        fluxes.append(np.asarray(values, np.float32))
        errors.append(np.asarray(sigmas, np.float32))
    return np.stack(fluxes), np.stack(errors)


def _native(image: NDArray[np.floating], valid: NDArray[np.bool_], fill: float = 0.0) -> NDArray[np.float32]:
    """Contiguous native float32 with masked pixels filled: sep reads them before it looks at its mask."""
    return np.ascontiguousarray(np.where(valid, image, fill), dtype=np.float32)
