"""Properties of the object in the middle of each pair, from the table beside a pair store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import file_at
from surveybridge.storage.pair_labels import labels_url
from surveybridge.storage.pairs import read_ids
from surveybridge.storage.parquet import read_parquet

COLUMNS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "magnitude": (("magnitude",), ("mag_VIS",), ("mag_i",)),
    "size": (("size",), ("re",)),
    "colour": (("colour",), ("mag_g", "mag_i")),
    "redshift": (("redshift",), ("z",)),
}
"""Where a table says each of them: the first of these columns that it has, or the difference of two."""


def read_properties(url: str, names: Sequence[str], start: int, stop: int) -> NDArray[np.float32]:
    """Read properties of pairs `start` to `stop`.

    Parameters
    ----------
    url : str
        Of the pair store.
    names : sequence of str
        Of `COLUMNS`; without any, no table is read.
    start, stop : int
        Range of rows.

    Returns
    -------
    array
        float32 [N, P]: AB magnitude, arcsec, magnitudes and redshift; NaN where the table has none, or not the pair.

    Raises
    ------
    StorageError
        If there is no table, or it has no column of a property.
    """
    if not names:
        return np.empty((max(stop - start, 0), 0), np.float32)
    where = labels_url(url)
    folder, file = file_at(where)
    try:
        table = read_parquet(folder.read(file))
    except FileNotFoundError as error:
        raise StorageError(
            f"{url} has no table {where} beside it, which would say {', '.join(names)} of each pair; train without "
            "--properties"
        ) from error
    rows = {str(name): row for row, name in enumerate(table["id"].to_pylist())}
    ids = read_ids(url, start, stop)
    index = np.array([rows.get(name, -1) for name in ids], np.int64)
    found = np.stack([_values(table, name, where) for name in names], 1)
    found = np.concatenate([found, np.full((1, len(names)), np.nan)])  # the last row is that of pairs not in the table
    return found[index].astype(np.float32)


def _values(table: pa.Table, name: str, where: str) -> NDArray[np.float64]:
    """A property of all rows of a table, NaN where null or infinite."""
    for columns in COLUMNS[name]:
        if set(columns) <= set(table.column_names):
            values = [np.array(table[column].to_pylist(), np.float64) for column in columns]
            found = values[0] if len(values) == 1 else values[0] - values[1]
            return np.where(np.isfinite(found), found, np.nan)
    wanted = " or ".join(" and ".join(columns) for columns in COLUMNS[name])
    raise StorageError(f"{where} does not say the {name} of pairs: it needs {wanted}; leave {name} out of --properties")
