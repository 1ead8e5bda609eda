"""Pair stores: stamps of the same place in both endpoints of a problem, the training data of a bridge.

A Zarr v3 group with an array of float32 for each endpoint, [N, H, W, B] or, of one band, [N, H, W], all of them on the
grid of the network; NaN is where there is no data. Its attributes:

    endpoints   names of the two arrays, in the order of the problem
    bands       by band (or `<endpoint>.<band>`) `pixel_arcsec` and `sigma_noise`, the sky noise in the endpoint's unit
    units       by endpoint, where that is not nJy
    name        of the store

Beside them `id` [N] names the pairs, or `simulation` [N] the simulation that each was cut from.

A store without `endpoints` is of LSST and Euclid: ``lsst`` [N, 64, 64, 3] gri and ``euclid`` [N, 64, 64] VIS, each on
its own pixels and complete, in nJy, sky subtracted. AS-Bridge's own data sets have this layout in 8 bits: display
values, whose flux is not known. Where a caller takes them, they are given nominal fluxes, which its display turns back
into the same values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.coregister import resample_stamps
from surveybridge.storage.errors import DamagedData, StorageError, StorageUnavailable
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.parquet import read_parquet
from surveybridge.storage.problems import (
    EndpointTable,
    ProblemTable,
    complete_problem,
    default_problem,
    end_names,
    fits_unit,
)

GRIDS = ("mosaic", "cutout")

WHITE = {"g": (3000.0, 0.2), "r": (3000.0, 0.2), "i": (3000.0, 0.2), "VIS": (1500.0, 0.1)}
"""By band: flux in nJy that AS-Bridge's display shows white, and the pixel in arcsec that it is of."""

NOMINAL = {
    "g": {"pixel_arcsec": 0.2, "sigma_noise": 1.3},
    "r": {"pixel_arcsec": 0.2, "sigma_noise": 1.3},
    "i": {"pixel_arcsec": 0.2, "sigma_noise": 2.1},
    "VIS": {"pixel_arcsec": 0.1, "sigma_noise": 2.0},
}
"""Numbers of the instruments that 8-bit stores do not state: about LSST's ten years and Euclid's wide survey."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Stamps of both endpoints on the grid of the network.

    Parameters
    ----------
    ends : mapping of str to float32 [N, B, H, W]
        By endpoint, in the problem's order, each in its unit; NaN where there is no data.
    bands : mapping of str to tuple of str
        Bands of each endpoint.
    units : mapping of str to str
        Unit of each endpoint, as FITS writes it.
    pixel_scale : mapping of str to float
        Arcsec by endpoint, on this grid; 0 where the store states none.
    noise : mapping of str to mapping of str to float
        Standard deviation of the sky noise by endpoint and band, scaled by pixel area to this grid's pixels; NaN where
        the store states none.
    name : str
        Name of the store.
    stored : int
        Pairs in the store, of which these may be a part.
    """

    ends: Mapping[str, NDArray[np.float32]]
    bands: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]
    pixel_scale: Mapping[str, float]
    noise: Mapping[str, Mapping[str, float]]
    name: str
    stored: int

    def __len__(self) -> int:
        return len(next(iter(self.ends.values())))


def read_pairs(
    url: str,
    grid: str = "mosaic",
    start: int = 0,
    stop: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    problem: ProblemTable | None = None,
    eight_bit: bool = False,
) -> Pairs:
    """Read pairs `start` to `stop` (exclusive) of a store and bring them onto a grid; other chunks are not touched.

    Parameters
    ----------
    url : str
        Local path or fsspec URL of the Zarr group.
    grid : str
        ``mosaic``: the central half of the LSST stamp on the Euclid pixels; ``cutout``: as stored. A store that states
        its endpoints has one grid, that of the network, whichever it is called.
    start, stop : int
        Range of rows; by default to the end. A stop beyond the end is the end.
    storage_options : mapping, optional
        Arguments of the fsspec filesystem.
    problem : ProblemTable, optional
        What the pairs are wanted for; by default what the store says itself.
    eight_bit : bool
        Take AS-Bridge's display values as well, with nominal fluxes.

    Raises
    ------
    StorageError
        If it is no pair store, one of another problem, or the stamps' scales don't fit the grid.
    """
    if grid not in GRIDS:
        raise StorageError(f"grid {grid!r} is not one of {GRIDS}")
    store = _open(url, storage_options)
    problem = _said(store) if problem is None else _agreed(store, problem)
    display = not store.stated and all(array.dtype == np.uint8 for array in store.arrays.values())
    if display and not eight_bit:
        raise StorageError(f"{url}: 8-bit display values have no flux; give stamps in nJy (float32)")
    numbers = {
        end["name"]: {band: _numbers(store, end, band) if not display else dict(NOMINAL[band]) for band in end["bands"]}
        for end in problem["endpoints"]
    }
    scales = {name: _pixel_scale(store, name, bands) for name, bands in numbers.items()}
    on_own_pixels = not store.stated and grid == "mosaic"
    _check_scales(url, scales, multiples=on_own_pixels, same=store.stated)
    stamps = {end["name"]: _stamps(store, end["name"], start, stop) for end in problem["endpoints"]}
    if display:
        stamps = {
            name: np.stack([_nominal_flux(values[:, k], band) for k, band in enumerate(numbers[name])], 1)
            for name, values in stamps.items()
        }
    for name, values in stamps.items():
        bad = np.isinf(values).any() if store.stated else not np.isfinite(values).all()
        if bad:
            what = f"infinite values of {name}" if store.stated else "NaN or infinite flux"
            raise StorageError(f"{url}: pairs {start} to {start + len(values)} hold {what}; leave such stamps out")
    pairs = Pairs(
        ends=stamps,
        bands={end["name"]: tuple(end["bands"]) for end in problem["endpoints"]},
        units={end["name"]: end["unit"] for end in problem["endpoints"]},
        pixel_scale=scales,
        noise={name: {band: of["sigma_noise"] for band, of in bands.items()} for name, bands in numbers.items()},
        name=store.name,
        stored=store.count,
    )
    return on_mosaic_grid(pairs) if on_own_pixels else pairs


def on_mosaic_grid(pairs: Pairs) -> Pairs:
    """Pairs on their own pixels -> the central part of the coarser endpoint on the pixels of the finer one.

    The coarser pixels are a multiple of the finer ones.
    """
    coarse, fine = sorted(pairs.ends, key=lambda name: -pairs.pixel_scale[name])
    ratio = round(pairs.pixel_scale[coarse] / pairs.pixel_scale[fine])
    stamps = pairs.ends[coarse].transpose(0, 2, 3, 1)
    there = resample_stamps(stamps, scale=ratio, out=pairs.ends[fine].shape[-1])
    noise = {
        name: {band: sigma / ratio**2 if name == coarse else sigma for band, sigma in bands.items()}
        for name, bands in pairs.noise.items()
    }
    return replace(
        pairs,
        ends={name: there if name == coarse else values for name, values in pairs.ends.items()},
        pixel_scale=dict.fromkeys(pairs.pixel_scale, pairs.pixel_scale[fine]),
        noise=noise,
    )


def problem_of_pairs(url: str, storage_options: Mapping[str, Any] | None = None) -> ProblemTable:
    """The problem that a store states: its endpoints, bands and units; without `endpoints` the default one.

    What no store states, it leaves out: it makes maps only, both ways, and its objective is to be measured.
    """
    return _said(_open(url, storage_options))


def read_ids(url: str, start: int = 0, stop: int | None = None) -> list[str]:
    """Names of pairs `start` to `stop`.

    The store's array `id`; else the name of each pair's simulation (the array `simulation`), or of the store, and the
    pair's number.
    """
    store = _open(url, None)
    count = store.count if stop is None else min(stop, store.count)
    ids = _texts(url, "id", start, count)
    if ids is not None:
        return ids
    names = _texts(url, "simulation", start, count) or [store.name] * max(count - start, 0)
    return [f"{name}-{number:06d}" for number, name in zip(range(start, count), names, strict=True)]


def read_labels(url: str) -> dict[str, dict[str, Any]]:
    """`central_class` and `blended_<endpoint>` by id from the table beside a pair store; empty without one.

    The table is NAME.parquet of NAME.zarr.
    """
    path = url.rstrip("/").removesuffix(".zarr") + ".parquet"
    folder, _, name = path.rpartition("/")
    try:
        table = read_parquet(Folder.at(folder or ".").read(name))
    except FileNotFoundError:
        return {}
    known = table.select(
        [name for name in table.column_names if name in ("id", "central_class") or name.startswith("blended_")]
    )
    return {row["id"]: row for row in known.to_pylist() if "id" in row}


# -- what a store says --


class _Store(NamedTuple):
    """An open store: its arrays by endpoint, its attributes, and whether it states its endpoints."""

    url: str
    arrays: Mapping[str, zarr.Array[Any]]
    attributes: Mapping[str, Any]
    stated: bool

    @property
    def name(self) -> str:
        return str(self.attributes.get("name", self.url.rstrip("/").rsplit("/", 1)[-1]))

    @property
    def count(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def bands_of(self, name: str) -> int:
        shape = self.arrays[name].shape
        return int(shape[3]) if len(shape) == 4 else 1


def _open(url: str, storage_options: Mapping[str, Any] | None) -> _Store:
    """The arrays and attributes of a pair store."""
    names: Sequence[str] = end_names(default_problem())
    try:
        group = zarr.open_group(zarr_store(Folder.at(url, storage_options)), mode="r")
        attributes = dict(group.attrs)
        stated = attributes.get("endpoints")
        if stated is not None:
            names = [str(name) for name in stated] if isinstance(stated, list) else []
            if len(set(names)) != 2:
                raise StorageError(f"{url}: the attribute endpoints is {stated!r}; give the names of two arrays")
        arrays = {name: group[name] for name in names}
    except (KeyError, FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{url}: not a pair store ({error}); it needs arrays {', '.join(names)} and the attribute bands"
        ) from error
    first, second = names
    shapes: list[tuple[int, ...]] = [getattr(array, "shape", ()) for array in arrays.values()]
    wrong = not all(isinstance(array, zarr.Array) for array in arrays.values()) or shapes[0][:1] != shapes[1][:1]
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
    return _Store(url, arrays, attributes, stated is not None)


def _said(store: _Store) -> ProblemTable:
    """The problem that the store states."""
    if not store.stated:
        return default_problem()
    units, numbers = store.attributes.get("units") or {}, store.attributes.get("bands") or {}
    if not isinstance(units, Mapping) or not isinstance(numbers, Mapping):
        raise StorageError(f"{store.url}: the attributes units and bands are tables; correct them")
    bands = _band_names(store, list(numbers))
    endpoints = []
    for name in store.arrays:
        scales = [_number_of(numbers, name, band, "pixel_arcsec") for band in bands[name]]
        scale = scales[0] if math.isfinite(scales[0]) else 0.0
        endpoints.append(
            {"name": name, "bands": bands[name], "pixel_scale": scale, "unit": units.get(name, "nJy")},
        )
    return complete_problem({"name": "-".join(store.arrays), "endpoints": endpoints}, store.url)


def _band_names(store: _Store, keys: list[str]) -> dict[str, list[str]]:
    """Bands of each endpoint: those that `bands` names as its own, its share of the others in order, else numbers."""
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


def _agreed(store: _Store, problem: ProblemTable) -> ProblemTable:
    """The problem, if the store is of it."""
    if set(end_names(problem)) != set(store.arrays):
        raise StorageError(
            f"{store.url}: a store of {' and '.join(store.arrays)} but problem {problem['name']} is of "
            f"{' and '.join(end_names(problem))}; give pairs of that problem"
        )
    units = store.attributes.get("units") or {}
    for end in problem["endpoints"]:
        name, count = end["name"], store.bands_of(end["name"])
        if count != len(end["bands"]):
            raise StorageError(
                f"{store.url}: {name} has {count} planes but problem {problem['name']} gives it {len(end['bands'])} "
                f"bands ({','.join(end['bands'])}); give pairs of that problem"
            )
        unit = _spelt(store, units.get(name, "nJy") if isinstance(units, Mapping) else "nJy")
        if unit != end["unit"]:
            raise StorageError(
                f"{store.url}: {name} is in {unit} but problem {problem['name']} has it in {end['unit']}; convert the "
                f"stamps, or state units.{name}"
            )
    return problem


def _spelt(store: _Store, unit: Any) -> str:
    try:
        return fits_unit(str(unit))
    except ValueError as error:
        said = " ".join(str(error).split())
        raise StorageError(f"{store.url}: unit {unit!r} cannot be used ({said}); give one as FITS has it") from error


def _numbers(store: _Store, end: EndpointTable, band: str) -> dict[str, float]:
    """Pixel scale and noise of a band from the attribute `bands`; NaN where a store with endpoints states none."""
    table = store.attributes.get("bands")
    if store.stated:
        of = table if isinstance(table, Mapping) else {}
        return {key: _number_of(of, end["name"], band, key) for key in ("pixel_arcsec", "sigma_noise")}
    try:
        return {key: float(table[band][key]) for key in ("pixel_arcsec", "sigma_noise")}  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{store.url}: the attribute bands has no number pixel_arcsec or sigma_noise for {band} ({error!r}); "
            "a pair store states both for g, r, i and VIS"
        ) from error


def _number_of(table: Mapping[str, Any], name: str, band: str, key: str) -> float:
    """A number that `bands` states of a band; NaN where it does not."""
    entry = table.get(f"{name}.{band}", table.get(band))
    value = entry.get(key) if isinstance(entry, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _pixel_scale(store: _Store, name: str, numbers: Mapping[str, Mapping[str, float]]) -> float:
    """Pixel scale of an endpoint's stamps, that of its first band; 0 where none is stated."""
    stated = [of["pixel_arcsec"] for of in numbers.values()]
    if store.stated and any(abs(scale - stated[0]) > 1e-6 for scale in stated):
        given = ", ".join(f'{band} {scale:g}"' for band, scale in zip(numbers, stated, strict=True))
        raise StorageError(f"{store.url}: bands of {name} have pixels of {given}; an endpoint has one grid")
    return stated[0] if math.isfinite(stated[0]) else 0.0


def _check_scales(url: str, scales: Mapping[str, float], *, multiples: bool, same: bool) -> None:
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


def _stamps(store: _Store, name: str, start: int, stop: int | None) -> NDArray[np.float32]:
    """Stamps of an endpoint, float32 [N, B, H, W]."""
    try:
        values = np.asarray(store.arrays[name][start:stop], dtype=np.float32)
    except StorageUnavailable:
        raise
    except Exception as error:  # a codec raises what it likes
        last = min(stop or store.count, store.count)
        reason = f"{type(error).__name__}: {error}"
        raise DamagedData(
            f"{store.url}: pairs {start} to {last} cannot be read ({reason}); write the store again"
        ) from error
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if values.ndim == 4 else values[:, None]


def _texts(url: str, name: str, start: int, stop: int) -> list[str] | None:
    """Rows of an array of names, None where there is no such array."""
    try:
        array = zarr.open_array(zarr_store(Folder.at(url)), path=name, mode="r")
    except FileNotFoundError:
        return None
    return [str(value) for value in np.asarray(array[start:stop])]


def _nominal_flux(values: NDArray[np.float32], band: str) -> NDArray[np.float32]:
    """Flux that AS-Bridge's display shows as a value 0..255: v / 255 = asinh(f / 3 sigma) / asinh(white / 3 sigma)."""
    softening = 3 * NOMINAL[band]["sigma_noise"]
    white, _ = WHITE[band]
    return np.asarray(softening * np.sinh(values / 255 * np.arcsinh(white / softening)), np.float32)
