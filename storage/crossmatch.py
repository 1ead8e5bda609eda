"""Cross-match with a catalog of the user's, lenscat's catalog.csv among them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from numpy.typing import NDArray

from surveybridge.storage.catalog_files import arrow_column, positions, read_catalog_file
from surveybridge.storage.errors import StorageError

_ROW = "_target"
"""Column with the row of a target."""


@dataclass(frozen=True)
class Targets:
    """Objects to look for.

    Parameters
    ----------
    ra, dec : float64 [N]
        ICRS degrees, all finite.
    columns : pyarrow.Table
        What the user's catalog says of them, N rows.
    radius : float
        Match within so many arcsec.
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    columns: pa.Table
    radius: float

    def __post_init__(self) -> None:
        """Refuse a radius that is not a number within bounds."""
        if not 0 < self.radius <= 3600:
            raise StorageError(f"match radius {self.radius:g} arcsec lies outside 0..3600")


def read_targets(
    where: str | os.PathLike[str],
    radius: float,
    position: Sequence[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Targets:
    """Read a catalog of the user's; rows without a position are left out.

    Parameters
    ----------
    where : str
        File, local or s3://, in a format of `storage.catalog_files.FORMATS`.
    radius : float
        arcsec.
    position : (ra, dec), optional
        Names of the columns with ICRS degrees; found by name by default.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Raises
    ------
    StorageError
        If the file is not there or not a table, or its positions are not found.
    """
    table = read_catalog_file(os.fspath(where), position, storage_options)
    ra, dec = positions(table, position, where)
    known = np.isfinite(ra) & np.isfinite(dec)
    if (np.abs(dec[known]) > 90).any() or (np.abs(ra[known]) > 360).any():
        raise StorageError(f"{where}: positions reach beyond 360 and 90; give ICRS degrees")
    flat = [name for name in table.colnames if table[name].ndim == 1]
    columns = {name: arrow_column(table[name], known) for name in flat}
    return Targets(ra[known], dec[known], pa.table(columns), radius)


def match(places: pa.Table, targets: Targets) -> pa.Table:
    """Candidates near a target.

    Parameters
    ----------
    places : pyarrow.Table
        object_id, ra and dec (degrees) of candidates.
    targets : Targets
        What to look for.

    Returns
    -------
    pyarrow.Table
        object_id, match_separation (arcsec) and the row of the nearest target; `with_targets` adds its columns.
    """
    near, nearest = np.zeros(0, np.int64), np.zeros(0, np.int64)
    separation = np.zeros(0)
    if places.num_rows and len(targets.ra):
        sky = SkyCoord(places["ra"].to_numpy(), places["dec"].to_numpy(), unit="deg")
        index, distance, _ = sky.match_to_catalog_sky(SkyCoord(targets.ra, targets.dec, unit="deg"))
        near = np.flatnonzero(distance.arcsec <= targets.radius)
        nearest, separation = np.asarray(index)[near], distance.arcsec[near]
    return pa.table(
        {
            "object_id": places["object_id"].take(pa.array(near)),
            "match_separation": pa.array(separation),
            _ROW: pa.array(nearest),
        }
    )


def with_targets(found: pa.Table, targets: Targets) -> pa.Table:
    """Rows joined with those of `match`, with the target's columns, as match_<name>, in place of its row.

    Not SQL does this, because its names do not differ by case, and those of a catalog may.
    """
    theirs = targets.columns.take(found[_ROW])
    found = found.drop_columns([_ROW])
    for name in theirs.column_names:
        if name != "separation":
            found = found.append_column(f"match_{name}", theirs[name])
    return found
