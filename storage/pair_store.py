"""Contents of a pair store: its arrays, its problem, and the numbers of its bands (layout: `storage.pairs`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.errors import DamagedData, StorageError, StorageUnavailable
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.problems import (
    EndpointTable,
    ProblemTable,
    complete_problem,
    default_problem,
    end_names,
    unit_of,
)
from surveybridge.storage.units import fits_unit


@dataclass(frozen=True)
class MapStack:
    """Maps of single quantities, arrays [N, H, W] or [N, H, W, 1], read as the one array [N, H, W, B] of an endpoint.

    Parameters
    ----------
    maps : mapping of str to array
        By band of the endpoint, in their order, of one shape.
    """

    maps: Mapping[str, zarr.Array[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that they make."""
        return (*next(iter(self.maps.values())).shape[:3], len(self.maps))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        return np.result_type(*(array.dtype for array in self.maps.values()))

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Read some rows, [n, H, W, B]."""
        return np.stack([np.asarray(array[rows]).reshape(-1, *self.shape[1:3]) for array in self.maps.values()], -1)


@dataclass(frozen=True)
class PairStore:
    """An open store: its arrays by endpoint, its attributes, and whether it states its endpoints."""

    url: str
    arrays: Mapping[str, zarr.Array[Any] | MapStack]
    attributes: Mapping[str, Any]
    stated: bool

    @property
    def name(self) -> str:
        """The name that the store states, else that of its folder."""
        return str(self.attributes.get("name", self.url.rstrip("/").rsplit("/", 1)[-1]))

    @property
    def count(self) -> int:
        """The number of pairs."""
        return int(next(iter(self.arrays.values())).shape[0])

    def bands_of(self, name: str) -> int:
        """Return the number of planes in the stamps of an endpoint."""
        shape = self.arrays[name].shape
        return int(shape[3]) if len(shape) == 4 else 1


def open_store(url: str, storage_options: Mapping[str, Any] | None, problem: ProblemTable | None = None) -> PairStore:
    """Open a pair store: its attributes, and the arrays of its endpoints or, where it has these, those of a problem.

    An endpoint of a problem is the array of its name or, where there is none, the maps that are named as its bands. A
    store that has them need not state its endpoints.
    """
    names: Sequence[str] = end_names(default_problem())
    try:
        group = zarr.open_group(zarr_store(Folder.at(url, storage_options)), mode="r")
        attributes = dict(group.attrs)
        stated = attributes.get("endpoints")
        if stated is not None:
            names = [str(name) for name in stated] if isinstance(stated, list) else []
            if len(set(names)) != 2:
                raise StorageError(f"{url}: the attribute endpoints is {stated!r}; give the names of two arrays")
        other = problem is not None and set(names) != set(end_names(problem))
        made = _members_of(group, problem) if other and problem is not None else None
        # a store of maps need not say what they are the ends of
        own = {} if stated is None and made else {name: group[name] for name in names}
        members: dict[str, Any] = made or own
        stated = stated or (made and list(made))
        names = list(members)
    except (KeyError, FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        if problem is not None and set(names) != set(end_names(problem)):
            ends = " and ".join(f"{end['name']} (or {', '.join(end['bands'])})" for end in problem["endpoints"])
            raise StorageError(
                f"{url}: not a pair store of {problem['name']} ({error}); it needs arrays {ends}, and their units"
            ) from error
        raise StorageError(
            f"{url}: not a pair store ({error}); it needs arrays {', '.join(names)} and the attribute bands"
        ) from error
    first, second = names
    shapes: list[tuple[int, ...]] = [getattr(array, "shape", ()) for array in members.values()]
    arrays = {name: array for name, array in members.items() if isinstance(array, zarr.Array | MapStack)}
    wrong = len(arrays) < 2 or shapes[0][:1] != shapes[1][:1]
    if stated is None and (wrong or [len(s) for s in shapes] != [4, 3] or shapes[0][-1] != 3):
        raise StorageError(
            f"{url}: {first} is {shapes[0]} and {second} {shapes[1]}; a pair store has [N, H, W, 3] gri and "
            "[N, H, W] VIS"
        )
    if wrong or not all(len(s) in (3, 4) for s in shapes) or (stated is not None and shapes[0][1:3] != shapes[1][1:3]):
        raise StorageError(
            f"{url}: {first} is {shapes[0]} and {second} {shapes[1]}; a pair store has [N, H, W, B] or [N, H, W], with "
            "one N and one grid"
        )
    return PairStore(url, arrays, attributes, stated is not None)


def _members_of(group: zarr.Group, problem: ProblemTable) -> dict[str, Any] | None:
    """Return what a store has for each endpoint of a problem; None where it has not all."""
    found: dict[str, Any] = {}
    for end in problem["endpoints"]:
        if isinstance(own := group.get(end["name"]), zarr.Array):
            found[end["name"]] = own
            continue
        maps = {band: group.get(band) for band in end["bands"]}
        arrays = {band: array for band, array in maps.items() if isinstance(array, zarr.Array)}
        grids = {array.shape[:3] for array in arrays.values()}
        flat = all(array.ndim == 3 or array.shape[3:] == (1,) for array in arrays.values())
        if len(arrays) < len(maps) or len(grids) != 1 or not flat:
            return None
        found[end["name"]] = MapStack(arrays)
    return found


def problem_said(store: PairStore) -> ProblemTable:
    """Return the problem that the store states."""
    if not store.stated:
        return default_problem()
    said = store.attributes.get("problem")
    if isinstance(said, Mapping):
        return agreed(store, complete_problem(said, store.url))
    units, numbers = store.attributes.get("units") or {}, store.attributes.get("bands") or {}
    if not isinstance(units, Mapping) or not isinstance(numbers, Mapping):
        raise StorageError(f"{store.url}: the attributes units and bands are tables; correct them")
    bands = _band_names(store, list(numbers))
    endpoints = []
    for name in store.arrays:
        scales = [number_of(numbers, name, band, "pixel_arcsec") for band in bands[name]]
        scale = scales[0] if math.isfinite(scales[0]) else 0.0
        endpoints.append(
            {"name": name, "bands": bands[name], "pixel_scale": scale, "unit": units.get(name, "nJy")},
        )
    return complete_problem({"name": "-".join(store.arrays), "endpoints": endpoints}, store.url)


def _band_names(store: PairStore, keys: list[str]) -> dict[str, list[str]]:
    """Return each endpoint's bands: those that `bands` names as its own, its share of the others, or numbered ones."""
    own = {name: [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")] for name in store.arrays}
    rest = [key for key in keys if not any(key.startswith(f"{name}.") for name in store.arrays)]
    open_ends = [name for name in store.arrays if not own[name]]
    if rest and len(rest) == sum(store.bands_of(name) for name in open_ends):
        for name in open_ends:
            own[name], rest = rest[: store.bands_of(name)], rest[store.bands_of(name) :]
    for name in store.arrays:
        count = store.bands_of(name)
        if own[name] and len(own[name]) != count:
            raise StorageError(
                f"{store.url}: {name} has {count} planes but the attribute bands names {len(own[name])} "
                f"({','.join(own[name])}); name one band for each plane"
            )
        own[name] = own[name] or ([name] if count == 1 else [f"{name}_{k}" for k in range(count)])
    return own


def held_back_of(store: PairStore) -> int:
    """Return how many pairs at the end of a store are for validation, on sky that no other shows; 0 if none are."""
    said = store.attributes.get("held_back", 0)
    if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said < max(store.count, 1):
        raise StorageError(
            f"{store.url}: the attribute held_back is {said!r}, but the store has {store.count} pairs; correct it"
        )
    return said


def agreed(store: PairStore, problem: ProblemTable) -> ProblemTable:
    """Return the problem; StorageError if the store is of another one."""
    if set(end_names(problem)) != set(store.arrays):
        raise StorageError(
            f"{store.url}: a store of {' and '.join(store.arrays)} but problem {problem['name']} is of "
            f"{' and '.join(end_names(problem))}{_maps_wanted(problem)}; give pairs of that problem"
        )
    for end in problem["endpoints"]:
        name, count = end["name"], store.bands_of(end["name"])
        if count != len(end["bands"]):
            raise StorageError(
                f"{store.url}: {name} has {count} planes but problem {problem['name']} gives it {len(end['bands'])} "
                f"bands ({','.join(end['bands'])}); give pairs of that problem"
            )
        for band in end["bands"]:
            array, stated = _unit_stated(store, name, band)
            unit = _spelt(store, stated)
            if unit != unit_of(end, band):
                raise StorageError(
                    f"{store.url}: {array} is in {unit} but problem {problem['name']} has it in {unit_of(end, band)}; "
                    f"convert the stamps, or state units.{array}"
                )
    return problem


def _maps_wanted(problem: ProblemTable) -> str:
    """Return of which maps the endpoints of a problem may be made, for a message; nothing where they are fluxes."""
    mixed = [end for end in problem["endpoints"] if "units" in end]
    return "".join(f" ({end['name']} an array, or the maps {', '.join(end['bands'])})" for end in mixed)


def _unit_stated(store: PairStore, name: str, band: str) -> tuple[str, Any]:
    """Return the array that holds a band of an endpoint, and its unit as the attribute `units` has it."""
    units = store.attributes.get("units") or {}
    if not isinstance(units, Mapping):
        return name, "nJy"
    if isinstance(store.arrays[name], MapStack):
        return band, units.get(band, "nJy")
    of = units.get(name, "nJy")
    return (f"{name}.{band}", of.get(band, "nJy")) if isinstance(of, Mapping) else (name, of)


def _spelt(store: PairStore, unit: Any) -> str:
    try:
        return fits_unit(str(unit))
    except ValueError as error:
        said = " ".join(str(error).split())
        raise StorageError(
            f"{store.url}: unit {unit!r} cannot be used ({said}); give one in the FITS spelling"
        ) from error


def numbers_of(store: PairStore, end: EndpointTable, band: str) -> dict[str, float]:
    """Return pixel scale and noise of a band from the attribute `bands`; NaN if a store with endpoints states none."""
    table = store.attributes.get("bands")
    if store.stated:
        of = table if isinstance(table, Mapping) else {}
        return {key: number_of(of, end["name"], band, key) for key in ("pixel_arcsec", "sigma_noise")}
    try:
        return {key: float(table[band][key]) for key in ("pixel_arcsec", "sigma_noise")}  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{store.url}: the attribute bands has no number pixel_arcsec or sigma_noise for {band} ({error!r}); "
            "a pair store states both for g, r, i and VIS"
        ) from error


def number_of(table: Mapping[str, Any], name: str, band: str, key: str) -> float:
    """Return a number that `bands` states for a band; NaN if it does not."""
    entry = table.get(f"{name}.{band}", table.get(band))
    value = entry.get(key) if isinstance(entry, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def pixel_scale_of(store: PairStore, name: str, numbers: Mapping[str, Mapping[str, float]]) -> float:
    """Return the pixel scale of an endpoint's stamps, from its first band; 0 if none is stated."""
    stated = [of["pixel_arcsec"] for of in numbers.values()]
    if store.stated and any(abs(scale - stated[0]) > 1e-6 for scale in stated):
        given = ", ".join(f'{band} {scale:g}"' for band, scale in zip(numbers, stated, strict=True))
        raise StorageError(f"{store.url}: bands of {name} have pixels of {given}; an endpoint has one grid")
    return stated[0] if math.isfinite(stated[0]) else 0.0


def check_scales(url: str, scales: Mapping[str, float], *, multiples: bool, same: bool) -> None:
    """Refuse pixel scales of the ends that are not multiples of each other, or that differ where they must not."""
    (first, coarse), (second, fine) = scales.items()
    if multiples and abs(round(coarse / fine) * fine - coarse) > 1e-6:
        raise StorageError(
            f'{url}: LSST pixels of {coarse:g}" are no multiple of Euclid\'s {fine:g}"; '
            "resample the stamps, or train on the cutout grid"
        )
    if same and coarse and fine and abs(coarse - fine) > 1e-6:
        raise StorageError(
            f'{url}: {first} has pixels of {coarse:g}" and {second} of {fine:g}"; a store that states its endpoints '
            "has both on the grid of the network"
        )


def read_stamps(store: PairStore, name: str, start: int, stop: int | None) -> NDArray[np.float32]:
    """Return stamps of an endpoint, float32 [N, B, H, W]."""
    try:
        values = np.asarray(store.arrays[name][start:stop], dtype=np.float32)
    except StorageUnavailable:
        raise
    except Exception as error:  # a codec may raise anything
        last = min(stop or store.count, store.count)
        reason = f"{type(error).__name__}: {error}"
        raise DamagedData(
            f"{store.url}: pairs {start} to {last} cannot be read ({reason}); write the store again"
        ) from error
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if values.ndim == 4 else values[:, None]
