"""Take back what the WCS of one survey's images is off against the other's: one shift and turn for all of a field.

It is measured on the objects that both surveys show, as the offset of a tile is (`registration`), but from strips all
over the field, so that all its tiles are moved alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surveybridge.bridge_core.detection import Sources
from surveybridge.bridge_core.registration import common_shift, measured_offset
from surveybridge.jobs.translating.registration import objects_of
from surveybridge.storage.grids import Displacement, pixel_scale
from surveybridge.storage.images import seeing

if TYPE_CHECKING:
    from surveybridge.storage.field_images import OpenField

SEARCH_ARCSEC = 2.0
"""Offsets of up to this are found."""
LEAST_ARCSEC = 0.01
"""Offsets below are left: colours within galaxies move their centres as much."""
CERTAIN = 5.0
"""Standard errors from which on an offset is taken back."""
STRIPS, STRIP_PIXELS = 3, 1 << 21
"""Into how many strips of rows one looks at most, and how many pixels each has."""


class Alignment(NamedTuple):
    """What was found of a field.

    Attributes
    ----------
    endpoint : str
        The one whose images are moved.
    displacement : Displacement
        By which its WCS is off on the grid of the field.
    certain : bool
        Whether it is more than its error and than what galaxies do.
    said : str
        The same for people.
    """

    endpoint: str
    displacement: Displacement
    certain: bool
    said: str


def aligned(opened: OpenField) -> OpenField:
    """Return a field whose second survey lies on that of its grid; the same where nothing certain is found."""
    log = logging.getLogger(__name__)
    found = measured_alignment(opened)
    if found is None:
        log.info("alignment: not measured; it takes a dozen bright objects that both surveys show")
        return opened
    if not found.certain:
        log.info("alignment: %s; left as it is", found.said)
        return opened
    log.info("alignment: %s; taken back", found.said)
    return opened.displaced(found.endpoint, found.displacement, found.said)


def measured_alignment(opened: OpenField) -> Alignment | None:
    """Measure how far the images of a field's other survey are off; None where that cannot be told.

    Both surveys must be given, and be fluxes.
    """
    reference = opened.grid.endpoint
    others = [name for name in opened.parts if name != reference]
    if reference not in opened.parts or not others or not all(end["extensive"] for end in opened.ends.values()):
        return None
    moved = others[0]
    scale, shape = pixel_scale(opened.grid.wcs_header), opened.grid.shape
    found: list[tuple[Sources, Sources]] = []
    for start, stop in strips(shape):
        images = opened.strip(start, stop).images
        first, second = (objects_of(images[name]).moved(start, 0.0) for name in (reference, moved))
        found.append((first, second))
    first, second = (Sources.joined([pair[k] for pair in found]) for k in (0, 1))
    middle = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    reach = max(seeing(part.head) for parts in opened.parts.values() for part in parts) / 2 / scale
    coarse = common_shift(first, second, SEARCH_ARCSEC / scale, reach)
    if coarse is None:
        return None
    offset = measured_offset(first, second.moved(-coarse[0], -coarse[1]), middle, reach)
    if offset is None:
        return None
    shift = (offset.shift[0] + coarse[0], offset.shift[1] + coarse[1])
    offset = replace(offset, shift=shift)
    typical, error = (scale * value for value in offset.typical(shape))
    along_y, along_x = (scale * value for value in shift)
    said = (
        f'{moved} is off by {math.hypot(along_x, along_y):.3f}" ({along_x:+.3f} along x, {along_y:+.3f} along y) and '
        f'turned by {math.degrees(offset.turn):+.4f} deg against {reference}, typically {typical:.3f}" along an axis, '
        f'with an error of {error:.3f}", from {offset.objects} objects'
    )
    certain = typical > max(LEAST_ARCSEC, CERTAIN * error)
    return Alignment(moved, Displacement(shift, offset.turn, middle), certain, said)


def strips(shape: Sequence[int]) -> list[tuple[int, int]]:
    """First and last rows of the strips to look into: all of a small field, else at both ends and between."""
    height, width = shape
    rows = max(1, STRIP_PIXELS // width)
    if height <= STRIPS * rows:
        return [(first, min(first + rows, height)) for first in range(0, height, rows)]
    starts = np.linspace(0, height - rows, STRIPS).round().astype(int)
    return [(int(start), int(start) + rows) for start in starts]
