"""Single maps of a pair store by their names, whether or not they are an endpoint of its problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.errors import DamagedData, StorageError, StorageUnavailable
from surveybridge.storage.objectstore import Folder, zarr_store


def read_maps(
    url: str, names: Sequence[str], start: int = 0, stop: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Read maps of pairs `start` to `stop` (exclusive).

    Parameters
    ----------
    url : str
        Local path or fsspec URL of the pair store.
    names : sequence of str
        Arrays [N, H, W], or [N, H, W, 1].
    start, stop : int
        Range of rows; by default to the end.

    Returns
    -------
    dict of str to float32 [n, H, W]
        In the unit of each; NaN where there is no data.

    Raises
    ------
    StorageError
        If there is no such map, or it has several planes.
    """
    group, _ = _open(url)
    found = {}
    for name in names:
        array = group.get(name)
        if not isinstance(array, zarr.Array) or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 1):
            there = sorted(key for key, member in group.arrays() if member.ndim >= 3)
            raise StorageError(f"{url}: there is no map {name} [N, H, W]; its maps are {', '.join(there)}")
        try:
            values = np.asarray(array[start:stop], np.float32)
        except StorageUnavailable:
            raise
        except Exception as error:  # a codec may raise anything
            raise DamagedData(
                f"{url}: pairs {start} to {stop or array.shape[0]} of {name} cannot be read ({type(error).__name__}: "
                f"{error}); write the store again"
            ) from error
        found[name] = values.reshape(values.shape[:3])
    return found


def pixel_pc_of(url: str) -> float:
    """Side of a pixel in pc, as the attribute `pixel_pc` states it; NaN where it does not."""
    value = _open(url)[1].get("pixel_pc")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _open(url: str) -> tuple[zarr.Group, Mapping[str, Any]]:
    try:
        group = zarr.open_group(zarr_store(Folder.at(url)), mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise StorageError(f"{url}: not a pair store ({error}); give a Zarr group with arrays of maps") from error
    return group, dict(group.attrs)
