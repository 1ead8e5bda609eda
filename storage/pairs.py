"""Pair stores: stamps of the same place in both endpoints of a problem, the training data of a bridge.

A Zarr v3 group with an array of float32 for each endpoint, [N, H, W, B] or, of one band, [N, H, W], all of them on the
grid of the network; NaN is where there is no data. Its attributes:

    endpoints   names of the two arrays, in the order of the problem
    bands       by band (or `<endpoint>.<band>`) `pixel_arcsec` and `sigma_noise`, the sky noise in the endpoint's unit
    units       by endpoint, where that is not nJy, and by map; of an endpoint of several quantities a table by band
    problem     the problem as a whole, with its catalog and its titles, where it is known
    held_back   how many pairs at the end are for validation: no other shows their part of the sky
    name        of the store

Arrays beside them say how each pair was observed (`storage.pair_conditions`): `<end>_noise`, `<end>_fwhm`,
`<end>_wing`, `<end>_correlation` and `<end>_gain` [N, B], `<end>_sigma` [N, H, W, B], and `registration` [N]. What is
the same for all pairs may be a number of its band instead: `psf_fwhm_arcsec`, `psf_wing`, `noise_correlation`,
`gain_e_per_njy`.

Further maps on the same grid, [N, H, W] or [N, H, W, 1], may be the bands of an endpoint that a problem has and the
store does not state: an endpoint without an array of its name is made of the maps that are named as its bands. Maps of
clouds may have the field's names instead (`storage.map_names`), and a unit may be the attribute `units` of its array. A
unit other than the problem's is converted, but for fluxes, whose noise is in their unit.

Beside them `id` [N] names the pairs, and `simulation` [N] the simulation that each was cut from. `storage.pair_writer`
writes such stores.

A store without `endpoints` is of LSST and Euclid: ``lsst`` [N, 64, 64, 3] gri and ``euclid`` [N, 64, 64] VIS, each on
its own pixels and complete, in nJy, sky subtracted. AS-Bridge's own data sets have this layout in 8 bits: display
values, whose flux is not known. Where a caller takes them, they are given nominal fluxes, which its display turns back
into the same values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.coregister import resample_stamps
from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.pair_conditions import StampConditions, on_finer_grid, read_conditions
from surveybridge.storage.pair_store import (
    PairStore,
    agreed,
    check_scales,
    numbers_of,
    open_store,
    pixel_scale_of,
    problem_said,
    read_stamps,
)
from surveybridge.storage.parquet import read_parquet
from surveybridge.storage.problems import ProblemTable, image_unit

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


DEFLECTOR_LIKE = "deflector_like"
"""In the column `central_class` of the table beside a store: a galaxy such as those that are strong lenses."""


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
    conditions : StampConditions or None
        How the stamps were observed, if that was asked for.
    pixel_pc : float
        Side of a pixel in pc; NaN where the store states none.
    """

    ends: Mapping[str, NDArray[np.float32]]
    bands: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]
    pixel_scale: Mapping[str, float]
    noise: Mapping[str, Mapping[str, float]]
    name: str
    stored: int
    conditions: StampConditions | None = None
    pixel_pc: float = math.nan

    def __len__(self) -> int:
        return len(next(iter(self.ends.values())))

    def rows(self, index: slice | Sequence[int]) -> Pairs:
        """Some of the pairs."""
        conditions = None if self.conditions is None else self.conditions.rows(index)
        return replace(self, ends={name: stamps[index] for name, stamps in self.ends.items()}, conditions=conditions)


def read_pairs(
    url: str,
    grid: str = "mosaic",
    start: int = 0,
    stop: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    problem: ProblemTable | None = None,
    eight_bit: bool = False,
    conditions: bool = False,
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
    conditions : bool
        Read how the stamps were observed as well.

    Raises
    ------
    StorageError
        If it is no pair store, one of another problem, or the stamps' scales don't fit the grid.
    """
    if grid not in GRIDS:
        raise StorageError(f"grid {grid!r} is not one of {GRIDS}")
    store = open_store(url, storage_options, problem)
    problem = problem_said(store) if problem is None else agreed(store, problem)
    display = not store.stated and all(array.dtype == np.uint8 for array in store.arrays.values())
    if display and not eight_bit:
        raise StorageError(f"{url}: 8-bit display values have no flux; give stamps in nJy (float32)")
    numbers = {
        end["name"]: {
            band: numbers_of(store, end, band) if not display else dict(NOMINAL[band]) for band in end["bands"]
        }
        for end in problem["endpoints"]
    }
    scales = {name: pixel_scale_of(store, name, bands) for name, bands in numbers.items()}
    on_own_pixels = not store.stated and grid == "mosaic"
    check_scales(url, scales, multiples=on_own_pixels, same=store.stated)
    stamps = {end["name"]: read_stamps(store, end, start, stop) for end in problem["endpoints"]}
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
    read = len(next(iter(stamps.values())))
    pairs = Pairs(
        ends=stamps,
        bands={end["name"]: tuple(end["bands"]) for end in problem["endpoints"]},
        units={end["name"]: image_unit(end) for end in problem["endpoints"]},
        pixel_scale=scales,
        noise={name: {band: of["sigma_noise"] for band, of in bands.items()} for name, bands in numbers.items()},
        name=store.name,
        stored=store.count,
        conditions=read_conditions(store, problem, start, start + read, storage_options) if conditions else None,
        pixel_pc=store.pixel_pc,
    )
    return on_mosaic_grid(pairs) if on_own_pixels else pairs


def on_mosaic_grid(pairs: Pairs) -> Pairs:
    """Pairs on their own pixels -> the central part of the coarser endpoint on the pixels of the finer one.

    The coarser pixels are a multiple of the finer ones; pairs on one grid stay as they are.
    """
    coarse, fine, ratio = _coarse_and_fine(pairs.pixel_scale)
    if ratio == 1:
        return pairs
    stamps = pairs.ends[coarse].transpose(0, 2, 3, 1)
    there = resample_stamps(stamps, scale=ratio, out=pairs.ends[fine].shape[-1])
    noise = {
        name: {band: sigma / ratio**2 if name == coarse else sigma for band, sigma in bands.items()}
        for name, bands in pairs.noise.items()
    }
    sides = {name: values.shape[-1] for name, values in pairs.ends.items()}
    return replace(
        pairs,
        conditions=None if pairs.conditions is None else _on_mosaic_grid(pairs.conditions, pairs.pixel_scale, sides),
        ends={name: there if name == coarse else values for name, values in pairs.ends.items()},
        pixel_scale=dict.fromkeys(pairs.pixel_scale, pairs.pixel_scale[fine]),
        noise=noise,
    )


def states_conditions(url: str, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Return whether a store states how each of its pairs was observed."""
    group = zarr.open_group(zarr_store(Folder.at(url, storage_options)), mode="r")
    return any(f"{name}_noise" in group for name in open_store(url, storage_options).arrays)


def read_all_conditions(url: str, grid: str, stop: int, problem: ProblemTable) -> StampConditions:
    """Conditions of pairs 0 to `stop`, as `read_pairs` gives them, without the pixels and the noise of each."""
    store = open_store(url, None, problem)
    found = read_conditions(store, agreed(store, problem), 0, min(stop, store.count), maps=False)
    if store.stated or grid == "cutout":
        return found
    scales = {
        end["name"]: pixel_scale_of(store, end["name"], {band: numbers_of(store, end, band) for band in end["bands"]})
        for end in problem["endpoints"]
    }
    return _on_mosaic_grid(found, scales, {name: array.shape[1] for name, array in store.arrays.items()})


def _coarse_and_fine(scales: Mapping[str, float]) -> tuple[str, str, int]:
    """The end of coarser pixels, that of finer ones, and how many times finer they are."""
    coarse, fine = sorted(scales, key=lambda name: -scales[name])
    return coarse, fine, round(scales[coarse] / scales[fine])


def _on_mosaic_grid(
    conditions: StampConditions, scales: Mapping[str, float], sides: Mapping[str, int]
) -> StampConditions:
    """Conditions of stamps on their own pixels, of some sides, after `on_mosaic_grid`."""
    coarse, fine, ratio = _coarse_and_fine(scales)
    there = on_finer_grid(conditions.ends[coarse], ratio, sides[coarse], sides[fine])
    return replace(conditions, ends={**conditions.ends, coarse: there})


def problem_of_pairs(url: str, storage_options: Mapping[str, Any] | None = None) -> ProblemTable:
    """The problem that a store states: its endpoints, bands and units; without `endpoints` the default one.

    What no store states, it leaves out: it makes maps only, both ways, and its objective is to be measured.
    """
    return problem_said(open_store(url, storage_options))


def read_ids(url: str, start: int = 0, stop: int | None = None, problem: ProblemTable | None = None) -> list[str]:
    """Names of pairs `start` to `stop`.

    The store's array `id`; else the name of each pair's simulation (the array `simulation`), or of the store, and the
    pair's number. `problem` is what the pairs are wanted for, where the store does not state its endpoints.
    """
    store = open_store(url, None, problem)
    count = store.count if stop is None else min(stop, store.count)
    ids = _texts(store, "id", start, count)
    if ids is not None:
        return ids
    names = _texts(store, "simulation", start, count) or [store.name] * max(count - start, 0)
    return [f"{name}-{number:06d}" for number, name in zip(range(start, count), names, strict=True)]


def read_simulations(
    url: str, start: int = 0, stop: int | None = None, problem: ProblemTable | None = None
) -> list[str] | None:
    """Names of the simulations, or clouds, that pairs `start` to `stop` were cut from; None if the store knows none.

    They are the array `simulation`; else the attribute of that name, a list with one name a pair or one name for all;
    else that column of the table beside the store, by id.

    Raises
    ------
    StorageError
        If the attribute is neither, or has another number of names than there are pairs.
    """
    store = open_store(url, None, problem)
    count = store.count if stop is None else min(stop, store.count)
    names = _texts(store, "simulation", start, count)
    if names is not None:
        return names
    stated = store.attributes.get("simulation")
    if isinstance(stated, str):
        return [stated] * max(count - start, 0)
    if stated is not None:
        if not isinstance(stated, list) or len(stated) != store.count:
            given = f"{len(stated)} names" if isinstance(stated, list) else repr(stated)
            raise StorageError(
                f"{url}: the attribute simulation is {given}, but the store has {store.count} pairs; give a name for "
                "each, or one for all"
            )
        return [str(name) for name in stated[start:count]]
    labels = read_labels(url)
    found = [labels.get(name, {}).get("simulation") for name in read_ids(url, start, count, problem)] if labels else []
    return [str(name) for name in found] if found and all(name is not None for name in found) else None


def read_labels(url: str) -> dict[str, dict[str, Any]]:
    """`central_class`, `simulation` and `blended_<endpoint>` by id from the table beside a store; empty without one.

    The table is NAME.parquet of NAME.zarr.
    """
    path = url.rstrip("/").removesuffix(".zarr") + ".parquet"
    folder, _, name = path.rpartition("/")
    try:
        table = read_parquet(Folder.at(folder or ".").read(name))
    except FileNotFoundError:
        return {}
    known = table.select(
        [
            name
            for name in table.column_names
            if name in ("id", "central_class", "simulation") or name.startswith("blended_")
        ]
    )
    return {row["id"]: row for row in known.to_pylist() if "id" in row}


def _texts(store: PairStore, name: str, start: int, stop: int) -> list[str] | None:
    """Rows of an array of names, None where there is no such array."""
    try:
        array = zarr.open_array(zarr_store(Folder.at(store.url)), path=name, mode="r")
    except FileNotFoundError:
        return None
    if array.shape != (store.count,):
        raise StorageError(
            f"{store.url}: {name} is {list(array.shape)}, but the store has {store.count} pairs; give a name for each"
        )
    # old software writes texts of fixed length as bytes
    rows = np.asarray(array[start:stop]).tolist()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in rows]


def _nominal_flux(values: NDArray[np.float32], band: str) -> NDArray[np.float32]:
    """Flux that AS-Bridge's display shows as a value 0..255: v / 255 = asinh(f / 3 sigma) / asinh(white / 3 sigma)."""
    softening = 3 * NOMINAL[band]["sigma_noise"]
    white, _ = WHITE[band]
    return np.asarray(softening * np.sinh(values / 255 * np.arcsinh(white / softening)), np.float32)
