"""Single maps of clouds in a pair store by their names, whether or not they are an endpoint of its problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.map_names import CLOUD_MAPS, documented, find_map, maps_in
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.pair_store import PairStore, check_units, read_stamps, stated_pc
from surveybridge.storage.problems import EndpointTable


def read_maps(
    url: str, names: Sequence[str], start: int = 0, stop: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Read maps of pairs `start` to `stop` (exclusive).

    Parameters
    ----------
    url : str
        Local path or fsspec URL of the pair store.
    names : sequence of str
        Of `CLOUD_MAPS`: arrays [N, H, W], or [N, H, W, 1], of that name or a synonym.
    start, stop : int
        Range of rows; by default to the end.

    Returns
    -------
    dict of str to float32 [n, H, W]
        In the unit of `CLOUD_MAPS`; NaN where there is no data.

    Raises
    ------
    StorageError
        If there is no such map, it has several planes, or its unit is not stated or of another quantity.
    """
    group, attributes = _open(url)
    found = {}
    for name in names:
        array = find_map(group, name, url)
        known = documented(name) in CLOUD_MAPS
        if not known or not isinstance(array, zarr.Array) or (array.ndim != 3 and array.shape[3:] != (1,)):
            raise StorageError(f"{url}: there is no map {name} [N, H, W]; it has {maps_in(group)}")
        store, end = PairStore(url, {name: array}, attributes, True), _end_of(name)
        check_units(store, end, "the layout of clouds")
        found[name] = read_stamps(store, end, start, stop)[:, 0]
    return found


def _end_of(name: str) -> EndpointTable:
    """Return a single map as an endpoint in its documented unit."""
    return EndpointTable(
        name=name,
        bands=[name],
        pixel_scale=0.0,
        unit=CLOUD_MAPS[documented(name)],
        extensive=False,
        stretch="axial" if CLOUD_MAPS[documented(name)] == "rad" else "log10",
        title=name,
        rgb=None,
    )


def pixel_pc_of(url: str) -> float:
    """Side of a pixel in pc, as the attribute `pixel_pc` states it; NaN where it does not."""
    return stated_pc(_open(url)[1])


def _open(url: str) -> tuple[zarr.Group, Mapping[str, Any]]:
    try:
        group = zarr.open_group(zarr_store(Folder.at(url)), mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise StorageError(f"{url}: not a pair store ({error}); give a Zarr group with arrays of maps") from error
    return group, dict(group.attrs)
