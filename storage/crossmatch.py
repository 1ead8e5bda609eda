"""Cross-match with a catalog of the user's: CSV, FITS, VOTable or Parquet, lenscat's catalog.csv among them."""

from __future__ import annotations

import gzip
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from astropy.table import Table
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import file_at

FORMATS = {
    ".csv": "ascii.csv",
    ".fits": "fits",
    ".fit": "fits",
    ".vot": "votable",
    ".votable": "votable",
    ".xml": "votable",
    ".ecsv": "ascii.ecsv",
    ".parquet": "parquet",
}
"""Formats by the file's ending; .gz may follow."""

POSITIONS = (
    ("ra", "dec"),
    ("ra [deg]", "dec [deg]"),  # lenscat
    ("ra_deg", "dec_deg"),
    ("raj2000", "dej2000"),
    ("ra_icrs", "de_icrs"),
    ("_raj2000", "_dej2000"),
    ("alpha_j2000", "delta_j2000"),
    ("right_ascension", "declination"),
    ("coord_ra", "coord_dec"),
)
"""Names of columns with positions, degrees, whatever the case."""


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
        File, local or s3://, in a format of `FORMATS`.
    radius : float
        arcsec.
    position : (ra, dec), optional
        Names of the columns with ICRS degrees; found by `POSITIONS` by default.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Raises
    ------
    StorageError
        If the file is not there or not a table, or its positions are not found.
    """
    table = _read(os.fspath(where), storage_options)
    ra, dec = (_degrees(table, name, where) for name in _position(table, position, where))
    known = np.isfinite(ra) & np.isfinite(dec)
    if (np.abs(dec[known]) > 90).any() or (np.abs(ra[known]) > 360).any():
        raise StorageError(f"{where}: positions reach beyond 360 and 90; give ICRS degrees")
    flat = [name for name in table.colnames if table[name].ndim == 1]
    columns = {name: _arrow(table[name], known) for name in flat}
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
        object_id, match_separation (arcsec) and, as match_<name>, the columns of the nearest target.
    """
    near, nearest = np.zeros(0, np.int64), np.zeros(0, np.int64)
    separation = np.zeros(0)
    if places.num_rows and len(targets.ra):
        sky = SkyCoord(places["ra"].to_numpy(), places["dec"].to_numpy(), unit="deg")
        index, distance, _ = sky.match_to_catalog_sky(SkyCoord(targets.ra, targets.dec, unit="deg"))
        near = np.flatnonzero(distance.arcsec <= targets.radius)
        nearest, separation = np.asarray(index)[near], distance.arcsec[near]
    theirs = targets.columns.take(pa.array(nearest))
    return pa.table(
        {
            "object_id": places["object_id"].take(pa.array(near)),
            "match_separation": pa.array(separation),
            **{f"match_{name}": theirs[name] for name in theirs.column_names if name != "separation"},
        }
    )


def _read(where: str, storage_options: Mapping[str, Any] | None) -> Table:
    ending = os.path.splitext(where.removesuffix(".gz"))[1].lower()
    if ending not in FORMATS:
        raise StorageError(f"{where} ends in {ending or 'nothing'!r}; give a catalog in one of {', '.join(FORMATS)}")
    folder, name = file_at(where, storage_options)
    try:
        data = folder.read(name)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise StorageError(f"{where} does not exist; give a catalog to match with") from error
    try:
        data = gzip.decompress(data) if where.endswith(".gz") else data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # units and dates of other people's files are often not quite standard
            return Table.read(io.BytesIO(data), format=FORMATS[ending])
    except Exception as error:  # whatever a damaged file makes a parser raise
        said = " ".join(str(error).split())
        raise StorageError(f"{where} cannot be read as {FORMATS[ending]}: {said[:200]}") from error


def _position(table: Table, position: Sequence[str] | None, where: object) -> tuple[str, str]:
    names = {name.lower(): name for name in reversed(table.colnames)}
    for ra, dec in [(position[0], position[1])] if position is not None else POSITIONS:
        if ra.lower() in names and dec.lower() in names:
            return names[ra.lower()], names[dec.lower()]
    asked = "ra and dec" if position is None else " and ".join(position)
    raise StorageError(f"{where} has no columns {asked}; name two of: {', '.join(table.colnames)}")


def _degrees(table: Table, name: str, where: object) -> NDArray[np.float64]:
    column = table[name]
    try:
        values: NDArray[np.float64] = np.ma.filled(np.ma.asarray(column, float), np.nan)
        unit = u.Unit(column.unit) if column.unit is not None else u.deg
        return np.asarray((values * unit).to_value(u.deg), np.float64)
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{where}: column {name} does not hold degrees ({' '.join(str(error).split())[:120]})"
        ) from error


def _arrow(column: Any, rows: NDArray[np.bool_]) -> pa.Array:
    return pa.array(np.ma.asarray(column)[rows].tolist())  # masked values become null
