"""Parts of the sky (a cone, a box, a MOC), each as SQL over `candidates` and as the rows to read for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.sky import check_cone, cone_ranges

READ_RANGES = 64
"""Largest number of HEALPix ranges in which a region is read; rows outside the region are dropped afterwards."""

# Great-circle distance in arcsec, haversine form: exact at small separations. Parameters: ra, dec in degrees.
_SEPARATION = """
    2 * 3600 * degrees(asin(least(1.0, sqrt(
        pow(sin(radians(dec - $dec) / 2), 2)
        + cos(radians(dec)) * cos(radians($dec)) * pow(sin(radians(ra - $ra) / 2), 2)
    ))))
"""


class Region(ABC):
    """A part of the sky."""

    @property
    def table(self) -> pa.Table | None:
        """The table `region` that the SQL names, if it does."""
        return None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Values of the SQL's parameters."""
        return {}

    @property
    def ranges(self) -> NDArray[np.int64] | None:
        """First and last HEALPix indices of order 29, int64 [N, 2], ascending, that hold it; None: not known."""
        return None

    @abstractmethod
    def select(self) -> str:
        """SQL: the rows of the view `candidates` inside."""

    @abstractmethod
    def to_read(self) -> pc.Expression:
        """Return what must be read: at least the rows inside."""


@dataclass(frozen=True)
class Cone(Region):
    """The sky within `radius` arcsec of (ra, dec), ICRS degrees; its rows have the column `separation`, arcsec."""

    ra: float
    dec: float
    radius: float

    def __post_init__(self) -> None:
        """Refuse numbers that do not make a cone."""
        check_cone(self.ra, self.dec, self.radius)

    def select(self) -> str:
        """Implement `Region.select`."""
        cells = " OR ".join(f"_healpix_29 BETWEEN {first} AND {last}" for first, last in self.ranges.tolist())
        inside = f"SELECT *, {_SEPARATION} AS separation FROM candidates WHERE {cells}"
        return f"SELECT * FROM ({inside}) WHERE separation <= $radius"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Implement `Region.parameters`."""
        return {"ra": self.ra, "dec": self.dec, "radius": self.radius}

    def to_read(self) -> pc.Expression:
        """Implement `Region.to_read`."""
        return _within(self.ranges)

    @cached_property
    def ranges(self) -> NDArray[np.int64]:
        """Implement `Region.ranges`."""
        return np.array(cone_ranges(self.ra, self.dec, self.radius), np.int64)


@dataclass(frozen=True)
class Box(Region):
    """The sky between two meridians and two parallels, ICRS degrees.

    It extends across RA 0 if ra_min is above ra_max or below 0: 359.9 to 0.1 and -0.1 to 0.1 are the same.
    """

    ra_min: float
    ra_max: float
    dec_min: float
    dec_max: float

    def __post_init__(self) -> None:
        """Refuse numbers that do not make a box."""
        for name, value in (("RAMIN", self.ra_min), ("RAMAX", self.ra_max)):
            if not -360 <= value <= 360:
                raise StorageError(f"box {name} {value:g} deg lies outside -360..360; give RAMIN,RAMAX,DECMIN,DECMAX")
        if min(self.ra_min, self.ra_max) < 0 and self.ra_min > self.ra_max:
            raise StorageError(
                f"box RAMIN {self.ra_min:g} lies above RAMAX {self.ra_max:g} deg, which is negative; give both within "
                "0..360, or in ascending order"
            )
        if not -90 <= self.dec_min <= self.dec_max <= 90:
            raise StorageError(
                f"box DECMIN {self.dec_min:g} and DECMAX {self.dec_max:g} deg are not in order within -90..90; "
                "give RAMIN,RAMAX,DECMIN,DECMAX"
            )

    def select(self) -> str:
        """Implement `Region.select`."""
        ra = f"(ra >= $ra_min {'OR' if self._across_zero else 'AND'} ra <= $ra_max)"
        return f"SELECT * FROM candidates WHERE dec BETWEEN $dec_min AND $dec_max AND {ra}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Implement `Region.parameters`."""
        first, last = self._meridians
        return {"ra_min": first, "ra_max": last, "dec_min": self.dec_min, "dec_max": self.dec_max}

    def to_read(self) -> pc.Expression:
        """Implement `Region.to_read`."""
        ra, dec = pc.field("ra"), pc.field("dec")
        first, last = self._meridians
        east, west = ra >= first, ra <= last
        return (dec >= self.dec_min) & (dec <= self.dec_max) & (east | west if self._across_zero else east & west)

    @property
    def _meridians(self) -> tuple[float, float]:
        """First and last right ascension within 0..360."""
        return (0.0, 360.0) if self.ra_max - self.ra_min >= 360 else (self.ra_min % 360, self.ra_max % 360)

    @property
    def _across_zero(self) -> bool:
        first, last = self._meridians
        return first > last


class Coverage(Region):
    """The sky inside a MOC; make one with `storage.mocs.read_moc`.

    Parameters
    ----------
    cells : int64 [N, 2]
        First and last HEALPix index of order 29, ascending and apart from each other.
    """

    def __init__(self, cells: NDArray[np.int64]) -> None:
        self.cells = cells

    @property
    def ranges(self) -> NDArray[np.int64]:
        """Implement `Region.ranges`."""
        return self.cells

    def select(self) -> str:
        """Implement `Region.select`."""
        # Of all ranges the last one that begins before the row is the only one that may hold it.
        return (
            "SELECT candidates.* FROM candidates ASOF JOIN region ON candidates._healpix_29 >= region.range_first "
            "WHERE candidates._healpix_29 <= region.range_last"
        )

    @property
    def table(self) -> pa.Table:
        """Implement `Region.table`."""
        return pa.table({"range_first": self.ranges[:, 0], "range_last": self.ranges[:, 1]})

    def to_read(self) -> pc.Expression:
        """Implement `Region.to_read`."""
        return _within(coarse(self.ranges))

    def holds(self, healpix: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which HEALPix indices of order 29 lie inside."""
        place = np.searchsorted(self.ranges[:, 0], healpix, side="right") - 1
        return (place >= 0) & (healpix <= self.ranges[np.maximum(place, 0), 1])


def coarse(ranges: NDArray[np.int64], limit: int = READ_RANGES) -> NDArray[np.int64]:
    """At most `limit` ranges that hold all of `ranges`: the narrowest gaps are closed."""
    gaps = ranges[1:, 0] - ranges[:-1, 1]
    if len(gaps) < limit:
        return ranges
    kept = np.sort(np.argpartition(gaps, -(limit - 1))[-(limit - 1) :]) if limit > 1 else np.zeros(0, np.int64)
    first = np.concatenate([ranges[:1, 0], ranges[kept + 1, 0]])
    last = np.concatenate([ranges[kept, 1], ranges[-1:, 1]])
    return np.stack([first, last], axis=1)


def _within(ranges: NDArray[np.int64]) -> pc.Expression:
    index = pc.field("_healpix_29")
    return reduce(or_, ((index >= first) & (index <= last) for first, last in ranges.tolist()))
