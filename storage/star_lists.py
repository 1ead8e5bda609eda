"""A list of known stars, such as Gaia's: read from a table of the user's, and matched with what was detected."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from surveybridge.storage.crossmatch import read_targets
from surveybridge.storage.errors import StorageError
from surveybridge.storage.grids import pixel_scale
from surveybridge.storage.manifests import fields_of

MAGNITUDES = ("phot_g_mean_mag", "gmag", "magnitude", "mag", "mag_auto", "mag_i", "mag_vis", "i", "vis")
"""Names of columns with magnitudes, whatever the case; the first that is there counts."""

BRIGHT_MAGNITUDE = 20.0
"""A listed star as bright as this is a bright star to what lies near, even where its own pixels are masked."""


class Matches(NamedTuple):
    """Listed stars among N objects of an image.

    matched: bool [N], an object is the nearest to a star, and within the radius; in_core: number of stars centred in
    the core; bright_x, bright_y: float64 [S], array pixels of the bright ones.
    """

    matched: NDArray[np.bool_]
    in_core: int
    bright_x: NDArray[np.float64]
    bright_y: NDArray[np.float64]


@dataclass(frozen=True)
class StarList:
    """Known stars.

    Parameters
    ----------
    ra, dec : float64 [N]
        ICRS degrees.
    magnitude : float64 [N]
        Of any broad band; NaN where not known.
    radius : float
        An object within so many arcsec is the star.
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    radius: float

    def __len__(self) -> int:
        """Count the stars."""
        return len(self.ra)

    @property
    def digest(self) -> str:
        """SHA-256 of the stars and the radius, 16 hexadecimal digits."""
        values = (self.ra, self.dec, self.magnitude, np.array([self.radius]))
        found = hashlib.sha256()
        for value in values:
            found.update(np.ascontiguousarray(value, "<f8").tobytes())
        return found.hexdigest()[:16]

    def near(self, manifest: pa.Table) -> StarList:
        """Return the stars in or beside the tiles of a manifest, in order of position."""
        return self._select(near_tiles(manifest, self.ra, self.dec))

    def match(
        self, wcs: WCS, x: NDArray[np.float64], y: NDArray[np.float64], core: tuple[int, int, int, int]
    ) -> Matches:
        """Find the stars among objects.

        Parameters
        ----------
        wcs : WCS
            Of the image.
        x, y : float64 [N]
            Array pixels of the objects.
        core : (y0, y1, x0, x1)
            The part of the image whose stars are counted.
        """
        scale = float(np.mean(proj_plane_pixel_scales(wcs.celestial))) * 3600
        y0, y1, x0, x1 = core
        middle = np.array(wcs.all_pix2world((x0 + x1) / 2, (y0 + y1) / 2, 0)).reshape(2, 1)
        reach = 2 * (math.hypot(y1 - y0, x1 - x0) + 600) * scale / 3600
        towards = _directions(self.ra, self.dec) @ _directions(*middle)[0]
        some = self._select(towards > math.cos(math.radians(min(reach, 60.0))))
        matched = np.zeros(len(x), np.bool_)
        if not len(some):
            return Matches(matched, 0, np.zeros(0), np.zeros(0))
        column, line = (np.asarray(value) for value in wcs.all_world2pix(some.ra, some.dec, 0, quiet=True))
        if len(x):
            distance, nearest = cKDTree(np.stack([x, y], 1)).query(np.stack([column, line], 1))
            matched[np.asarray(nearest)[np.asarray(distance) <= self.radius / scale]] = True
        place_x, place_y = np.floor(column + 0.5), np.floor(line + 0.5)
        inside = (place_x >= x0) & (place_x < x1) & (place_y >= y0) & (place_y < y1)
        bright = some.magnitude <= BRIGHT_MAGNITUDE
        return Matches(matched, int(inside.sum()), column[bright], line[bright])

    def _select(self, rows: NDArray[np.bool_]) -> StarList:
        return replace(self, ra=self.ra[rows], dec=self.dec[rows], magnitude=self.magnitude[rows])


def read_stars(
    where: str | os.PathLike[str], radius: float, storage_options: Mapping[str, Any] | None = None
) -> StarList:
    """Read a table of stars (CSV, ECSV, FITS, VOTable, Parquet) with positions and perhaps a magnitude (`MAGNITUDES`).

    Parameters
    ----------
    where : str
        File, local or s3://.
    radius : float
        Of the match, arcsec.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Raises
    ------
    StorageError
        As `crossmatch.read_targets`, or if no row has a position.
    """
    targets = read_targets(where, radius, storage_options=storage_options)
    if not len(targets.ra):
        raise StorageError(f"{where}: 0 rows have a position; give a table of stars with ra and dec in degrees")
    by_name = {name.lower(): name for name in reversed(targets.columns.column_names)}
    named = next((by_name[name] for name in MAGNITUDES if name in by_name), None)
    magnitude = np.full(len(targets.ra), np.nan)
    if named is not None:
        column = targets.columns[named]
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise StorageError(
                f"{where}: column {named} holds {column.type}, no magnitudes; rename it, or give numbers"
            )
        magnitude = column.cast(pa.float64()).to_numpy().astype(np.float64)
    order = np.lexsort((targets.ra, targets.dec))
    return StarList(targets.ra[order], targets.dec[order], magnitude[order], radius)


def near_tiles(manifest: pa.Table, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions, in degrees, lie in or beside the tiles of a manifest, bool [N]."""
    scale = max((pixel_scale(field.wcs_header) for field in fields_of(manifest).values()), default=1.0)
    sides = np.hypot(*(manifest[name].to_numpy().astype(np.float64) for name in ("height", "width")))
    reach = (0.5 * sides.max(initial=0.0) + 1) * scale / 3600
    tiles = cKDTree(_directions(manifest["ra"].to_numpy(), manifest["dec"].to_numpy()))
    distance, _ = tiles.query(_directions(ra, dec), distance_upper_bound=2 * math.sin(math.radians(reach) / 2))
    return np.asarray(np.isfinite(distance))


def _directions(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors, float64 [N, 3]."""
    lon, lat = np.radians(np.atleast_1d(ra)), np.radians(np.atleast_1d(dec))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)
