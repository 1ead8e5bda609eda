"""Angles with period pi on other pixels: they are smoothed and interpolated as cos 2psi and sin 2psi, and turned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from surveybridge.storage.coregister import Registration
from surveybridge.storage.images import Box, LazyImage, SurveyImage

Value = TypeVar("Value")

PER_BAND = ("bands", "psf_fwhm", "psf_wing", "psf_model", "noise_correlation", "readings")


@dataclass(frozen=True)
class AngularPart:
    """An image on another grid of which some bands are angles.

    Parameters
    ----------
    part : LazyImage or Registration
        Of `as_vectors`.
    radians : mapping of str to float
        By band of angles, those of one unit.
    """

    part: LazyImage | Registration
    radians: Mapping[str, float]

    @property
    def head(self) -> SurveyImage:
        """Everything but the pixels."""
        return self.strip(0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.part.shape

    def strip(self, start: int, stop: int) -> SurveyImage:
        """Rows start..stop; angles are from the columns of this grid towards its rows."""
        found = self.part.strip(start, stop)
        mapping = self.part.mapping if isinstance(self.part, Registration) else None
        axes = np.eye(2) if mapping is None or mapping.whole_shift is not None else mapping.axes
        return _as_angles(found, self.radians, axes)


def as_vectors(image: LazyImage, radians: Mapping[str, float]) -> LazyImage:
    """Return the image with two bands, cos 2psi and sin 2psi, in the place of each band of angles."""
    bands = image.head.bands

    def read(box: Box) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        flux, variance, mask = image.read(box)
        values, squares = [], []
        for band, plane, square in zip(bands, flux, variance, strict=True):
            unit = radians.get(band)
            double = 2 * (unit or 0.0) * plane.astype(np.float64)
            values += [plane] if unit is None else [np.cos(double), np.sin(double)]
            # the mean over all angles of (d cos 2psi / d psi)^2
            squares += [square] if unit is None else [2 * unit**2 * square] * 2
        return np.stack(values).astype(np.float32), np.stack(squares).astype(np.float32), mask[_twice(bands, radians)]

    places = _twice(bands, radians)
    return LazyImage(_rearranged(image.head, places), image.shape, read)


def _as_angles(image: SurveyImage, radians: Mapping[str, float], axes: NDArray[np.float64]) -> SurveyImage:
    """Return the angles again; `axes` (y, x) brings offsets on this grid to those on which they were measured."""
    back = np.linalg.inv(axes)
    values, squares, masks, kept = [], [], [], []
    place = 0
    while place < len(image.bands):
        unit = radians.get(image.bands[place])
        kept.append(place)
        if unit is None:
            values.append(image.flux[place])
            squares.append(image.variance[place])
            masks.append(image.mask[place])
            place += 1
            continue
        cosine, sine = image.flux[place : place + 2].astype(np.float64)
        psi = np.arctan2(sine, cosine) / 2
        along_y, along_x = (row[0] * np.sin(psi) + row[1] * np.cos(psi) for row in back)
        turned = np.arctan2(along_y, along_x)
        turned -= math.pi * np.round(turned / math.pi)
        values.append((turned / unit).astype(np.float32))
        squares.append(image.variance[place : place + 2].mean(0) / np.float32(2 * unit**2))
        masks.append(image.mask[place] | image.mask[place + 1])
        place += 2
    return replace(_rearranged(image, kept), flux=np.stack(values), variance=np.stack(squares), mask=np.stack(masks))


def _twice(bands: Sequence[str], radians: Mapping[str, float]) -> list[int]:
    """Indices of the bands, those of angles twice."""
    return [k for k, band in enumerate(bands) for _ in range(2 if band in radians else 1)]


def _rearranged(image: SurveyImage, places: Sequence[int]) -> SurveyImage:
    """Return an image with these of its bands; their pixels too."""

    def these(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(values[k] for k in places) if values else values

    of: dict[str, Any] = {name: these(getattr(image, name)) for name in PER_BAND}
    planes = {name: getattr(image, name)[list(places)] for name in ("flux", "variance", "mask")}
    return replace(image, **of, **planes)
