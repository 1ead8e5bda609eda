"""Maps of a pair store by the names that are documented for them, or by the field's own: N_H, n_H, B."""

from __future__ import annotations

import warnings
from typing import Any

import zarr
from zarr.errors import ZarrUserWarning

from surveybridge.storage.errors import StorageError

CLOUD_MAPS = {
    "column": "cm-2",
    "density": "cm-3",
    "psi": "rad",
    "sigma_v": "cm s-1",
    "field": "uG",
    "field_total": "uG",
    "column_observed": "cm-2",
    "psi_observed": "rad",
    "sigma_v_observed": "cm s-1",
}
"""Maps of clouds that are documented, and their units."""

SYNONYMS = (("column", "N_H", "NH"), ("density", "n_H", "nH"), ("field", "B", "B_pos"))
"""Names of one map, the documented one first. Their case counts: N_H is a column density and n_H a density."""

OBSERVED = "_observed"
"""Ends the name of a map as a telescope sees it."""


def documented(name: str) -> str:
    """Return the documented name of a map; one that is no synonym stays as it is."""
    names, suffix = _alike(name)
    return names[0] + suffix


def names_of(name: str) -> tuple[str, ...]:
    """Return the names that a map may have in a store, the given one first."""
    names, suffix = _alike(name)
    return (name, *(one + suffix for one in names if one + suffix != name))


def _alike(name: str) -> tuple[tuple[str, ...], str]:
    """Return the names of one map without the suffix of an observed one, and that."""
    base = name.removesuffix(OBSERVED)
    return next((names for names in SYNONYMS if base in names), (base,)), name[len(base) :]


def find_map(group: zarr.Group, name: str, where: str) -> Any | None:
    """Return the member of a store that is the map of a name; None if there is none.

    Raises
    ------
    StorageError
        If two members are that map.
    """
    there = [one for one in names_of(name) if one in group]
    if len(there) > 1:
        raise StorageError(f"{where}: {there[0]} and {there[1]} are two names of one map; keep the one that is meant")
    return group[there[0]] if there else None


def maps_in(group: zarr.Group) -> str:
    """Return the names and shapes of the maps of a store, for messages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # of files that lie about there
        found = sorted((name, array.shape) for name, array in group.arrays() if len(array.shape) >= 2)
    return ", ".join(f"{name} {list(shape)}" for name, shape in found) or "no maps"
