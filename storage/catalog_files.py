"""Catalogs of other people: CSV, FITS, VOTable or Parquet files, the positions in them, and their columns in Arrow."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import file_at
from surveybridge.storage.positions import declination, right_ascension

FORMATS = {
    ".csv": "ascii.csv",
    ".tsv": "ascii.tab",
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
"""Names of columns with positions, whatever the case."""

SAME_PLACE = 1.0 / 3600
"""Two pairs of columns with positions are the same if no row differs by more, degrees."""

ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # which begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks of text, and how to decode what begins with them."""

_UNITS = {
    **dict.fromkeys(("", "deg", "degs", "degree", "degrees", "°", "d:m:s", "dms"), u.deg),
    **dict.fromkeys(("hourangle", "h", "hr", "hrs", "hour", "hours", "h:m:s", "hms"), u.hourangle),
    **dict.fromkeys(("rad", "rads", "radian", "radians"), u.rad),
}
"""Units of positions as files spell them, in small letters."""


def read_catalog_file(
    where: str, named: Sequence[str] | None = None, storage_options: Mapping[str, Any] | None = None
) -> Table:
    """Read a table from a file, local or s3://, in one of `FORMATS`; of several in FITS the first with positions.

    Parameters
    ----------
    where : str
        The file.
    named : (ra, dec), optional
        Names of its columns with positions; one of `POSITIONS` by default.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.

    Raises
    ------
    StorageError
        If it is not there, or not a table.
    """
    ending = os.path.splitext(where.removesuffix(".gz"))[1].lower()
    if ending not in FORMATS:
        raise StorageError(f"{where} ends in {ending or 'nothing'!r}; give a catalog in one of {', '.join(FORMATS)}")
    folder, name = file_at(where, storage_options)
    try:
        data = folder.read(name)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise StorageError(f"{where} does not exist; give a catalog to match with") from error
    form = FORMATS[ending]
    options: dict[str, Any] = {}
    try:
        data = gzip.decompress(data) if where.endswith(".gz") else data
        if form.startswith("ascii"):
            data = _utf8(data)
            header = data.split(b"\n", 1)[0]
            if form == "ascii.csv" and b"," not in header and b";" in header:  # as spreadsheets of half of Europe write
                options = {"delimiter": ";"}
        elif form == "fits":
            options = {"hdu": _table_with_positions(data, named)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # units and dates of other people's files are often not quite standard
            return Table.read(io.BytesIO(data), format=form, **options)
    except Exception as error:  # whatever a damaged file makes a parser raise
        said = " ".join(str(error).split())
        raise StorageError(f"{where} cannot be read as {form}: {said[:200]}") from error


def _table_with_positions(data: bytes, named: Sequence[str] | None) -> int:
    """Number of the first table of a FITS file that has columns with positions, else of the first."""
    with fits.open(io.BytesIO(data)) as hdus:
        tables = [n for n, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
        if not tables:
            raise StorageError("it has no table")
        return next((n for n in tables if _pairs(hdus[n].columns.names, named)), tables[0])


def _utf8(data: bytes) -> bytes:
    """Return text as UTF-8 without a byte order mark."""
    encoding = next((encoding for mark, encoding in ENCODINGS if data.startswith(mark)), None)
    return data if encoding is None else data.decode(encoding).encode()


def positions(
    table: Table, named: Sequence[str] | None, where: object
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascension and declination of a table's rows, degrees, NaN where there is none.

    Parameters
    ----------
    table : Table
        From `read_catalog_file`.
    named : (ra, dec), optional
        Names of the columns; found by `POSITIONS` by default.
    where : object
        The file, for messages.

    Raises
    ------
    StorageError
        If there are no such columns, they hold something else, or several that differ only by case hold other places.
    """
    pairs = _pairs(table.colnames, named)
    if not pairs:
        asked = "ra and dec" if named is None else " and ".join(named)
        raise StorageError(f"{where} has no columns {asked}; name two of: {', '.join(table.colnames)}")
    for ra, dec in pairs:
        _check_unit_is_said(table, ra, dec, where)
    found = [
        (_degrees(table, ra, right_ascension, where), _degrees(table, dec, declination, where)) for ra, dec in pairs
    ]
    for pair, other in zip(pairs[1:], found[1:], strict=True):
        apart = [np.abs(theirs - ours) for theirs, ours in zip(other, found[0], strict=True)]
        if any(((difference > SAME_PLACE) & (difference < 360 - SAME_PLACE)).any() for difference in apart):
            raise StorageError(
                f"{where} has positions in {', '.join(pairs[0])} and, elsewhere, in {', '.join(pair)}; name two columns"
            )
    return found[0]


def _pairs(names: Sequence[str], named: Sequence[str] | None) -> list[tuple[str, str]]:
    """Pairs of columns that may be meant: the one spelled so, or all that differ by case; then those of one style."""
    if named is not None and set(named) <= set(names):
        return [(named[0], named[1])]
    for ra, dec in [(named[0].lower(), named[1].lower())] if named is not None else POSITIONS:
        right = [name for name in names if name.lower() == ra]
        pairs = [(r, d) for r in right for d in names if d.lower() == dec]
        alike = [(r, d) for r, d in pairs if (r.islower(), r.isupper()) == (d.islower(), d.isupper())]
        if pairs:
            return alike or pairs
    return []


def _check_unit_is_said(table: Table, ra: str, dec: str, where: object) -> None:
    """Refuse `coord_ra` and `coord_dec` without a unit that may be radians, as catalogs of afw have them."""
    columns = [table[ra], table[dec]]
    if not ra.lower().startswith("coord_") or any(one.unit or one.dtype.kind not in "iuf" for one in columns):
        return
    highest = [
        float(np.nanmax(np.abs(np.ma.filled(np.ma.asarray(one, float), np.nan)), initial=0.0)) for one in columns
    ]
    if highest[0] <= 2 * np.pi and 0 < highest[1] <= np.pi / 2:
        raise StorageError(
            f"{where}: columns {ra}, {dec} have no unit and reach {highest[0]:.4g}, {highest[1]:.4g}: degrees, or "
            "radians as afw writes them? State their unit, or rename them ra and dec if they are degrees"
        )


def _degrees(table: Table, name: str, parse: Callable[[str], float], where: object) -> NDArray[np.float64]:
    """Return the column in degrees; `parse` reads text with colons or letters."""
    column = table[name]
    spelled = "" if column.unit is None else str(column.unit).strip(" '\"").lower()
    hours = _UNITS.get(spelled) is u.hourangle
    try:
        if hours and parse is declination:
            raise StorageError("its unit is hours")
        if column.dtype.kind in "SUO":
            texts = (_text(value) for value in np.ma.filled(np.ma.asarray(column).astype(object), None))
            # Text with colons says by itself what it is; a plain number is in the column's unit.
            pairs = [(np.nan, 1.0) if text is None else _number(text, parse) for text in texts]
            values, plain = np.array(pairs, np.float64).reshape(-1, 2).T
        else:
            values, plain = np.ma.filled(np.ma.asarray(column, float), np.nan), np.ones(len(column))
        unit = _UNITS.get(spelled) or u.Unit(column.unit)
        return np.asarray(np.where(plain > 0, (values * unit).to_value(u.deg), values), np.float64)
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{where}: column {name} does not hold degrees ({' '.join(str(error).split())[:160]})"
        ) from error


def _number(text: str, parse: Callable[[str], float]) -> tuple[float, float]:
    """Value of a text, and 1 if it is a plain number."""
    try:
        return float(text), 1.0
    except ValueError:
        return parse(text), 0.0


def _text(value: Any) -> str | None:
    """Text of a cell; none if it is empty or masked."""
    if value is None:
        return None
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip() or None


def arrow_column(column: Any, rows: NDArray[np.bool_]) -> pa.Array:
    """Some rows of a table's column with the type that it has there; masked values become null."""
    values = np.ma.asarray(column)[rows]
    data, mask = np.asarray(values.data), np.ma.getmaskarray(values)
    kind = data.dtype.kind
    if kind in "biuf":
        wanted = np.dtype(np.float64) if data.dtype.itemsize > 8 else data.dtype.newbyteorder("=")
        return pa.array(np.ascontiguousarray(data.astype(wanted)), mask=mask)
    listed = [None if hidden else value for value, hidden in zip(data.tolist(), mask.tolist(), strict=True)]
    if kind in "SU":
        return pa.array([_text(value) for value in listed] if kind == "S" else listed, pa.string())
    try:
        return pa.array(listed)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in listed], pa.string())
