"""A picture of a mosaic of any size, from tiles that come one by one: blocks of pixels are averaged."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.drawing.rendering import Picture, png, sky_picture
from surveybridge.storage.footprint import Box
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.problems import EndpointTable


class Overview:
    """Means of square blocks of the mosaic's pixels.

    Parameters
    ----------
    box
        Global pixels of the whole mosaic.
    end
        The endpoint that the mosaic is of.
    side
        Pixels of the picture at most, each way.
    """

    def __init__(self, box: Box, end: EndpointTable, side: int = 4096) -> None:
        self.end = end
        # the mean of angles is that of their directions, twice as far around
        self._turns = 2 * float(u.Unit(end["unit"]).to(u.rad)) if end["stretch"] == "axial" else None
        bands = len(end["bands"]) * (1 if self._turns is None else 2)
        y0, y1, x0, x1 = box
        self.origin = (y0, x0)
        self.block = max(1, -(-max(y1 - y0, x1 - x0) // side))
        shape = (-(-(y1 - y0) // self.block), -(-(x1 - x0) // self.block))
        self._flux = np.zeros((bands, *shape), np.float32)
        self._std = np.zeros((len(end["bands"]), *shape), np.float32)
        self._known = np.zeros(shape, np.float32)

    def add(self, mean: NDArray[np.float32], std: NDArray[np.float32], origin: tuple[int, int]) -> None:
        """Take in pixels [C, H, W] whose first one is global (y, x); NaN where unknown."""
        known = np.isfinite(mean).all(axis=0)
        if self._turns is not None:
            mean = np.concatenate([np.cos(self._turns * mean), np.sin(self._turns * mean)])
        rows, columns = (
            (start - own + np.arange(length)) // self.block
            for start, own, length in zip(origin, self.origin, known.shape, strict=True)
        )
        there = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        edges = [np.flatnonzero(np.diff(index, prepend=-1)) for index in (rows, columns)]
        for total, values in ((self._flux, mean), (self._std, std), (self._known, np.ones(known.shape, np.float32))):
            blocks = np.where(known, values, np.float32(0))
            for axis, edge in zip((-2, -1), edges, strict=True):
                blocks = np.add.reduceat(blocks, edge, axis=axis)
            total[..., *there] += blocks

    def picture(self) -> Picture:
        """The picture, north up where the grid has north up; its contrast follows the typical uncertainty."""
        with np.errstate(invalid="ignore"):
            flux, std = self._flux / self._known, self._std / self._known
        sigma = np.array([np.median(plane[np.isfinite(plane)]) if np.isfinite(plane).any() else 1.0 for plane in std])
        if self._turns is not None:
            flux = np.arctan2(*np.split(flux, 2)[::-1]) / self._turns
        return sky_picture(flux, np.maximum(sigma, 1e-6), self.end)

    def put(self, out: Folder, name: str, description: str) -> None:
        """Write the picture as PNG with a description in it, and print where it is."""
        picture = self.picture()
        out.put(png(picture, description), name)
        binned = f", {self.block} x {self.block} px in one" if self.block > 1 else ""
        print(f"{out.file_url(name)}: {picture.shape[0]} x {picture.shape[1]} px{binned}")
