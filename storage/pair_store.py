"""Contents of a pair store: its arrays, its problem, and the numbers of its bands (layout: `storage.pairs`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.errors import DamagedData, StorageError, StorageUnavailable
from surveybridge.storage.map_names import OBSERVED, documented, find_map, maps_in, names_of
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.problems import (
    EndpointTable,
    ProblemTable,
    complete_problem,
    default_problem,
    end_names,
    is_mixed,
    unit_of,
)
from surveybridge.storage.units import factor_between, fits_unit, njy_per_unit


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

    @property
    def pixel_pc(self) -> float:
        """Side of a pixel in pc, as the attribute `pixel_pc` states it; NaN where it does not."""
        return stated_pc(self.attributes)

    def bands_of(self, name: str) -> int:
        """Return the number of planes in the stamps of an endpoint."""
        shape = self.arrays[name].shape
        return int(shape[3]) if len(shape) == 4 else 1


def stated_pc(attributes: Mapping[str, Any]) -> float:
    """Return the side of a pixel in pc that the attributes of a store state; NaN where they do not."""
    value = attributes.get("pixel_pc")
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if known and value is not None else math.nan


def open_store(url: str, storage_options: Mapping[str, Any] | None, problem: ProblemTable | None = None) -> PairStore:
    """Open a pair store: its attributes, and the arrays of its endpoints or, where it has these, those of a problem.

    An endpoint of a problem is the array of its name (or of a synonym, `storage.map_names`) or, where there is none,
    the maps that are named as its bands. A store that has them need not state its endpoints.
    """
    try:
        group = zarr.open_group(zarr_store(Folder.at(url, storage_options)), mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise _no_store(url, problem, str(error), end_names(default_problem())) from error
    attributes = dict(group.attrs)
    stated = attributes.get("endpoints")
    names: Sequence[str] = end_names(default_problem())
    if stated is not None:
        names = [str(name) for name in stated] if isinstance(stated, list) else []
        if len(set(names)) != 2:
            raise StorageError(f"{url}: the attribute endpoints is {stated!r}; give the names of two arrays")
        if problem is None or set(names) != set(end_names(problem)):
            names = [documented(name) for name in names]
    lacking = ""
    members: dict[str, Any] = {}
    if problem is not None and set(names) != set(end_names(problem)):
        members, lacking = _members_of(group, problem, url)
    # without endpoints, a store need not have those of the default problem
    own = {} if members and stated is None else {name: find_map(group, name, url) for name in names}
    absent = [name for name, member in own.items() if member is None]
    if lacking and problem is not None and not absent:
        raise StorageError(f"{_of_another(url, names, problem)}: {lacking}; give pairs of that problem")
    if lacking or absent:
        gone = f"it has no {absent[0]}" if absent and (stated is not None or not lacking) else ""
        why = "; ".join(filter(None, (lacking, gone, f"it has {maps_in(group)}")))
        raise _no_store(url, problem, why, names)
    known = stated is not None or bool(members)
    members = members or own
    return PairStore(url, _stamps_of(url, members, stated=known), attributes, known)


def _no_store(url: str, problem: ProblemTable | None, why: str, names: Sequence[str]) -> StorageError:
    """Say what a pair store needs that is not there."""
    if problem is not None and set(names) != set(end_names(problem)):
        ends = " and ".join(f"{end['name']} (or {', '.join(end['bands'])})" for end in problem["endpoints"])
        return StorageError(
            f"{url}: not a pair store of {problem['name']} ({why}); it needs arrays {ends}, and their units"
        )
    return StorageError(f"{url}: not a pair store ({why}); it needs arrays {', '.join(names)} and the attribute bands")


def _of_another(url: str, names: Iterable[str], problem: ProblemTable) -> str:
    """Say that the ends of a store are not those of a problem."""
    # of which maps they may be made; nothing where they are fluxes
    mixed = [end for end in problem["endpoints"] if is_mixed(end)]
    maps = "".join(f" ({end['name']} an array, or the maps {', '.join(end['bands'])})" for end in mixed)
    return (
        f"{url}: a store of {' and '.join(names)} but problem {problem['name']} is of "
        f"{' and '.join(end_names(problem))}{maps}"
    )


def _members_of(group: zarr.Group, problem: ProblemTable, url: str) -> tuple[dict[str, Any], str]:
    """Return what a store has for each endpoint of a problem; where it has not all, what is amiss."""
    found: dict[str, Any] = {}
    for end in problem["endpoints"]:
        if isinstance(own := find_map(group, end["name"], url), zarr.Array):
            found[end["name"]] = own
            continue
        arrays: dict[str, zarr.Array[Any]] = {}
        for band in end["bands"]:
            array = find_map(group, band, url)
            if not isinstance(array, zarr.Array):
                # of one band, the end and its map are the same
                name = end["name"] if len(end["bands"]) == 1 else band
                plain = name.removesuffix(OBSERVED)
                beside = plain != name and find_map(group, plain, url) is not None
                hint = f" (if {plain} is as a telescope sees it, call it {name})" if beside else ""
                return {}, f"it has no {name}{hint}"
            if array.ndim != 3 and array.shape[3:] != (1,):
                return {}, f"{array.basename} is {array.shape}, not [N, H, W] or [N, H, W, 1]"
            first = next(iter(arrays.values()), array)
            if array.shape[:3] != first.shape[:3]:
                return {}, f"{first.basename} is {first.shape} but {array.basename} {array.shape}"
            arrays[band] = array
        found[end["name"]] = MapStack(arrays)
    return found, ""


def _stamps_of(url: str, members: Mapping[str, Any], *, stated: bool) -> dict[str, zarr.Array[Any] | MapStack]:
    """Return the members of a store that hold stamps; refused where they are not of the same pairs."""
    first, second = members
    shapes: list[tuple[int, ...]] = [getattr(array, "shape", ()) for array in members.values()]
    arrays = {name: array for name, array in members.items() if isinstance(array, zarr.Array | MapStack)}
    wrong = len(arrays) < 2 or shapes[0][:1] != shapes[1][:1]
    if not stated and (wrong or [len(s) for s in shapes] != [4, 3] or shapes[0][-1] != 3):
        raise StorageError(
            f"{url}: {first} is {shapes[0]} and {second} {shapes[1]}; a pair store has [N, H, W, 3] gri and "
            "[N, H, W] VIS"
        )
    if wrong or not all(len(s) in (3, 4) for s in shapes) or (stated and shapes[0][1:3] != shapes[1][1:3]):
        raise StorageError(
            f"{url}: {first} is {shapes[0]} and {second} {shapes[1]}; a pair store has [N, H, W, B] or [N, H, W], with "
            "one N and one grid"
        )
    for name, array in arrays.items():
        for one in array.maps.values() if isinstance(array, MapStack) else (array,):
            if one.dtype.kind not in "iuf":
                raise StorageError(f"{url}: {one.basename or name} holds {one.dtype}; write it as numbers, as float32")
    return arrays


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
        unit = units.get(name) or _unit_stated(store, name, bands[name][0]).unit or "nJy"
        endpoints.append({"name": name, "bands": bands[name], "pixel_scale": scale, "unit": unit})
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
    """Return the problem; StorageError if the store is of another one, or in units that are not those of its ends."""
    if set(end_names(problem)) != set(store.arrays):
        raise StorageError(f"{_of_another(store.url, store.arrays, problem)}; give pairs of that problem")
    for end in problem["endpoints"]:
        name, count = end["name"], store.bands_of(end["name"])
        if count != len(end["bands"]):
            raise StorageError(
                f"{store.url}: {name} has {count} planes but problem {problem['name']} gives it {len(end['bands'])} "
                f"bands ({','.join(end['bands'])}); give pairs of that problem"
            )
        check_units(store, end, f"problem {problem['name']}")
    return problem


def check_units(store: PairStore, end: EndpointTable, wanted_by: str) -> None:
    """Refuse a band whose unit is not stated, or is not of the quantity that the endpoint has."""
    for band in end["bands"]:
        array, wanted = _unit_stated(store, end["name"], band), unit_of(end, band)
        if array.unit is None and wanted != "nJy":
            raise StorageError(
                f"{store.url}: no unit is stated of {array.name}, which {wanted_by} has in {wanted}; "
                f"state units.{array.name}"
            )
        if _factor(store, end, band) is None:
            raise StorageError(
                f"{store.url}: {array.name} is in {_spelt(store, array.unit or 'nJy')} but {wanted_by} has it in "
                f"{wanted}; convert the stamps, or state units.{array.name}"
            )


def factors_of(store: PairStore, end: EndpointTable) -> list[float]:
    """Return by band of an endpoint what its stored values are multiplied by to be in the endpoint's unit."""
    return [_factor(store, end, band) or 1.0 for band in end["bands"]]


def _factor(store: PairStore, end: EndpointTable, band: str) -> float | None:
    """Return the factor from the stored unit to that of the endpoint; None if it has no such unit."""
    stated, wanted = _unit_stated(store, end["name"], band).unit or "nJy", unit_of(end, band)
    if _spelt(store, stated) == wanted:
        return 1.0
    # beside fluxes there are numbers in their unit: noise, gain, white
    return None if njy_per_unit(wanted) is not None else factor_between(stated, wanted)


class _Stated(NamedTuple):
    """The array that holds a band, by which key its unit is stated, and the unit; None if none is."""

    name: str
    unit: str | None


def _unit_stated(store: PairStore, name: str, band: str) -> _Stated:
    """Return the array of a band of an endpoint and its unit: that of the store's `units`, else its own attribute."""
    held = store.arrays[name]
    array, wanted = (held.maps[band], band) if isinstance(held, MapStack) else (held, name)
    units = store.attributes.get("units") or {}
    table = units if isinstance(units, Mapping) else {}
    own = array.basename or wanted
    for key in (own, *names_of(wanted)):
        if key in table:
            of = table[key]
            name, said = (f"{key}.{band}", of.get(band)) if isinstance(of, Mapping) else (own, of)
            return _Stated(name, None if said is None else str(said))
    said = array.attrs.get("units", array.attrs.get("unit"))
    return _Stated(own, None if said is None else str(said))


def _spelt(store: PairStore, unit: str) -> str:
    try:
        return fits_unit(unit)
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
        found = {key: number_of(of, end["name"], band, key) for key in ("pixel_arcsec", "sigma_noise")}
        return found | {"sigma_noise": found["sigma_noise"] * (_factor(store, end, band) or 1.0)}
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


def read_stamps(store: PairStore, end: EndpointTable, start: int, stop: int | None) -> NDArray[np.float32]:
    """Return stamps of an endpoint in its unit, float32 [N, B, H, W]."""
    try:
        values = np.asarray(store.arrays[end["name"]][start:stop])
    except StorageUnavailable:
        raise
    except Exception as error:  # a codec may raise anything
        last = min(stop or store.count, store.count)
        reason = f"{type(error).__name__}: {error}"
        raise DamagedData(
            f"{store.url}: pairs {start} to {last} cannot be read ({reason}); write the store again"
        ) from error
    planes = values.transpose(0, 3, 1, 2) if values.ndim == 4 else values[:, None]
    factors = np.array(factors_of(store, end))
    if (factors != 1).any():
        planes = planes * factors[:, None, None]
    with np.errstate(over="ignore"):  # what float32 does not hold is refused as infinite
        return np.ascontiguousarray(planes, np.float32)
