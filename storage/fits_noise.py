"""Noise maps of FITS files: variances, standard deviations and weights, and where they mark pixels without coverage."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from numpy.typing import NDArray

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_hdus import Extension, Role

NEGATIVE_SHARE = 0.05
"""Share of the pixels that may be negative, with more than one value, in a map of what is positive."""

NO_COVERAGE = float(np.float32(1e15))
"""Values from here on mark pixels without coverage, as do NaN, infinity, 0 and what is negative (Euclid MER writes
1e16 into RMS maps); not in images of other quantities than light, such as columns in cm-2."""

POWER = {"variance": 2, "rms": 1, "weight": -2}
"""Power of the flux unit in which a map is."""

PRIORITY: tuple[Role, ...] = ("variance", "rms", "weight")
"""Which map counts where a file has several."""


@dataclass(frozen=True, eq=False)
class NoiseMap:
    """A noise map as it was read.

    Attributes
    ----------
    variance : float64 [H, W]
        In the squared unit of the endpoint; NaN where there is no coverage.
    source : str
        Where it comes from.
    kind : str
        "variance", "rms" or "weight".
    trusted : bool or None
        Whether it counts unless the user says otherwise: not an RMS map, as those of Euclid's MER products overestimate
        the noise of ground bands; None = if it agrees with the sky: weights are often on a scale of their own, and
        what is a variance by its place alone may be something else.
    """

    variance: NDArray[np.float64]
    source: str
    kind: str
    trusted: bool | None

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Pixels that the map does not mark, bool [H, W]."""
        return np.isfinite(self.variance)

    def counts(self, agrees: bool) -> bool:
        """Whether it counts, given whether it agrees with the sky."""
        return agrees if self.trusted is None else self.trusted

    @property
    def sigma(self) -> float:
        """Median standard deviation of the covered pixels; NaN where there are none."""
        covered = self.variance[self.covered]
        return float(np.sqrt(np.median(covered))) if covered.size else float("nan")


def read_noise(part: Extension, where: str, source: str, factor: float | NDArray[np.float64], bunit: str) -> NoiseMap:
    """Read a noise map.

    Parameters
    ----------
    part : Extension
        Its HDU; the role says what it is.
    where, source : str
        File and HDU for messages, and what to call it.
    factor : float, or float64 [H, W]
        What a count of the image is worth, in the unit of the endpoint.
    bunit : str
        BUNIT of the image, to which that of the map is compared.

    Raises
    ------
    StorageError
        The map is in a unit of other things than the image.
    """
    kind = part.role if part.role in POWER else "rms"
    assert kind is not None
    values = part.pixels
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        values = np.where((values > 0) & (values < (NO_COVERAGE if _is_light(bunit) else np.inf)), values, np.nan)
        values = {"variance": values, "rms": values**2, "weight": 1 / values}[kind]
    factor = factor * _relative_unit(str(part.hdu.header.get("BUNIT") or "").strip(), bunit, kind, where)
    by_place = not part.name and "EXTTYPE" not in part.hdu.header
    trusted = None if kind == "weight" or by_place else not part.name.endswith("RMS")
    return NoiseMap(values * factor**2, source, kind, trusted)


def check_positive(part: Extension, where: str) -> None:
    """Refuse a map whose values are negative in more than `NEGATIVE_SHARE` of its pixels, unless all are one mark."""
    values = part.pixels
    negative = values[values < 0]
    if negative.size > NEGATIVE_SHARE * values.size and np.ptp(negative) > 0:
        raise StorageError(
            f"{where}: {negative.size} of {values.size} pixels are negative, from {negative.min():.4g} to "
            f"{negative.max():.4g}, expected a {part.role} above 0; is it a flux?"
        )


def _is_light(bunit: str) -> bool:
    """Return whether an image may hold fluxes, by its unit: columns and densities are as large as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)
        kind = str(u.Unit(bunit, parse_strict="silent").physical_type)
    return kind in ("unknown", "dimensionless") or any(word in kind for word in ("flux", "brightness", "radiance"))


def _relative_unit(found: str, image: str, kind: str, where: str) -> float:
    """Unit of a map over that of its image, both as units of flux; 1 where either says nothing."""
    try:
        ours, theirs = u.Unit(found), u.Unit(image)
        if not (found and image and isinstance(ours, u.UnitBase) and isinstance(theirs, u.UnitBase)):
            return 1.0
        power = POWER[kind]
        if ours.is_equivalent(theirs**power):
            return float(ours.to(theirs**power)) ** (1 / power)
        if ours == theirs:  # many copy the image's header
            return 1.0
    except (ValueError, TypeError):
        return 1.0
    expected = {"variance": f"({image})2", "rms": image, "weight": f"1/({image})2"}[kind]
    raise StorageError(
        f"{where}: BUNIT {found} but a {kind} of an image in {image} is in {expected}; correct the header"
    )
