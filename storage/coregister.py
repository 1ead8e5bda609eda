"""Bring one survey onto the pixel grid of the other, conserving flux."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

KERNEL_REACH = 3
"""The cardinal cubic spline beyond 3 pixels is below 1% (decays as 0.268 per pixel): negligible when squared."""


def resample_stamps(
    stamps: NDArray[np.float32], scale: int = 2, out: int = 64, chunk: int = 256
) -> NDArray[np.float32]:
    """Central part of square stamps on a grid `scale` times finer with the same centre.

    The same interpolation as `coregister` (cubic spline of surface brightness times the ratio of pixel areas), which for
    a fixed mapping along the axes is one matrix per axis.

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


def interpolation_matrix(size: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic-spline interpolation as a matrix, float64 [len(positions), size]; rows sum to 1.

    `positions` are in pixels of the input, 0 = centre of the first. Mirrored at the ends, as `spline_coefficients`.
    """
    identity = np.eye(size)
    coefficients = ndimage.spline_filter1d(identity, order=3, axis=0, mode="mirror")
    columns = [
        ndimage.map_coordinates(coefficients[:, k], positions[None], order=3, mode="mirror", prefilter=False)
        for k in range(size)
    ]
    return np.stack(columns, axis=1)


def spline_coefficients(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cubic B-spline coefficients of an image without NaN, float64 [H, W] (mirrored at the edges)."""
    return np.asarray(ndimage.spline_filter(image, order=3, output=np.float64, mode="mirror"))
