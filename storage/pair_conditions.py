"""The observing conditions that a pair store states of its stamps: arrays by pair, or numbers of its bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from surveybridge.storage.errors import DamagedData, StorageError, StorageUnavailable
from surveybridge.storage.objectstore import Folder, zarr_store
from surveybridge.storage.pair_store import PairStore, factors_of, number_of
from surveybridge.storage.pair_writer import QUANTITIES
from surveybridge.storage.problems import ProblemTable
from surveybridge.storage.spline import interpolation_matrix

Values = NDArray[np.float32]

STATED = {"noise": "sigma_noise", "fwhm": "psf_fwhm_arcsec", "wing": "psf_wing", "correlation": "noise_correlation"}
"""Number of a band, in the store's attribute `bands`, that stands for a quantity of all pairs."""


@dataclass(frozen=True, eq=False)
class EndConditions:
    """How the stamps of one end were observed, on the grid of the network; NaN where unknown.

    Parameters
    ----------
    noise, fwhm, wing, correlation : float32 [N, B]
        As `bridge_core.conditions.Conditions` has them.
    gain : float32 [N, B]
        Electrons per unit: the light of a source adds the variance max(flux, 0) / gain. NaN: none, or in `sigma`.
    sigma : float32 [N, B, H, W] or None
        Noise of each pixel, where it is not `noise` everywhere.
    """

    noise: Values
    fwhm: Values
    wing: Values
    correlation: Values
    gain: Values
    sigma: Values | None = None

    def rows(self, index: slice | Sequence[int]) -> EndConditions:
        """Those of some of the stamps."""
        return EndConditions(
            **{name: getattr(self, name)[index] for name in (*QUANTITIES, "gain")},
            sigma=None if self.sigma is None else self.sigma[index],
        )


@dataclass(frozen=True, eq=False)
class StampConditions:
    """Conditions of all stamps that were read.

    Parameters
    ----------
    ends : mapping of endpoint to EndConditions
    registration : float32 [N]
        Typical offset between the ends, arcsec; NaN where unknown.
    """

    ends: Mapping[str, EndConditions]
    registration: Values

    def rows(self, index: slice | Sequence[int]) -> StampConditions:
        """Those of some of the stamps."""
        return StampConditions({name: end.rows(index) for name, end in self.ends.items()}, self.registration[index])


def read_conditions(
    store: PairStore,
    problem: ProblemTable,
    start: int,
    stop: int,
    storage_options: Mapping[str, Any] | None = None,
    *,
    maps: bool = True,
) -> StampConditions:
    """Read the conditions of pairs `start` to `stop`; without `maps` not those of every pixel.

    What has no array is the number that the attribute `bands` states (`STATED`, and `gain_e_per_njy`), else NaN.
    """
    group = zarr.open_group(zarr_store(Folder.at(store.url, storage_options)), mode="r")

    def read(name: str, shape: tuple[int, ...]) -> Values | None:
        try:
            array = group[name]
        except KeyError:
            return None
        if not isinstance(array, zarr.Array) or array.shape != (store.count, *shape):
            raise StorageError(
                f"{store.url}: {name} is {getattr(array, 'shape', 'a group')} but {(store.count, *shape)} fits the "
                "stamps; write it again"
            )
        try:
            return np.asarray(array[start:stop], np.float32)
        except StorageUnavailable:
            raise
        except Exception as error:  # a codec may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise DamagedData(f"{store.url}: {name} cannot be read ({reason}); write the store again") from error

    ends = {}
    for end in problem["endpoints"]:
        name, bands = end["name"], end["bands"]
        tables = store.attributes.get("bands")
        entries = tables if isinstance(tables, Mapping) else {}
        found: dict[str, Values] = {}
        for quantity in (*QUANTITIES, "gain"):
            array = read(f"{name}_{quantity}", (len(bands),))
            if array is None:
                key = STATED.get(quantity, "gain_e_per_njy")
                stated = [number_of(entries, name, band, key) for band in bands]
                array = np.tile(np.array(stated, np.float32), (stop - start, 1))
                if not store.stated and quantity in ("wing", "correlation"):
                    # stores of before there were such conditions hold Gaussian PSFs and white noise
                    array = np.nan_to_num(array)
            found[quantity] = array
        height, width = store.arrays[name].shape[1:3]
        sigma = read(f"{name}_sigma", (height, width, len(bands))) if maps else None
        planes = None if sigma is None else np.ascontiguousarray(sigma.transpose(0, 3, 1, 2))
        factors = np.array(factors_of(store, end), np.float32)
        if (factors != 1).any():
            found["noise"] = found["noise"] * factors
            planes = None if planes is None else planes * factors[:, None, None]
        ends[name] = EndConditions(**found, sigma=planes)
    registration = read("registration", ())
    unknown = np.full(stop - start, np.nan, np.float32)
    return StampConditions(ends, unknown if registration is None else registration)


def on_finer_grid(conditions: EndConditions, ratio: int, size: int, out: int) -> EndConditions:
    """Conditions of stamps that were interpolated onto pixels `ratio` times finer (`coregister.resample_stamps`).

    Parameters
    ----------
    conditions : EndConditions
        On their own pixels, without `sigma`; noise of unknown correlation is taken as white.
    ratio : int
        Own pixel scale over that of the grid.
    size, out : int
        Sides of the stamps before and after, pixels.
    """
    if conditions.sigma is not None:
        raise StorageError("noise by pixel cannot be brought onto a finer grid; state the noise of each stamp instead")
    places = (size - 1) / 2 + (np.arange(out) - (out - 1) / 2) / ratio
    weights = interpolation_matrix(size, places)
    lags = np.abs(np.arange(size)[:, None] - np.arange(size))
    kept, correlation = np.empty_like(conditions.noise), np.empty_like(conditions.noise)
    before = np.nan_to_num(conditions.correlation)
    for r in np.unique(before):
        shared = r**lags if r > 0 else np.eye(size)
        variance = np.einsum("pi,ij,pj->p", weights, shared, weights)
        beside = np.einsum("pi,ij,pj->p", weights[:-1], shared, weights[1:])
        kept[before == r] = variance.mean()
        correlation[before == r] = beside.mean() / variance.mean()
    # the same share of the variance is kept along each axis; a pixel's flux is shared by ratio^2 pixels
    return replace(
        conditions,
        noise=conditions.noise * kept / np.float32(ratio**2),
        correlation=correlation,
        gain=conditions.gain * np.float32(ratio**2) / kept**2,
    )
