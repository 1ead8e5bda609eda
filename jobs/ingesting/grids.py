"""The grid that an ingest brings its images to: that of an endpoint, of a file, around a place, or on a cloud."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surveybridge.jobs.config import RequestError

if TYPE_CHECKING:
    from surveybridge.storage.problems import ProblemTable
    from surveybridge.storage.target_grids import TargetGrid


@dataclass(frozen=True)
class AskedGrid:
    """What is asked of the grid; None where nothing is.

    Parameters
    ----------
    onto : str or None
        Endpoint whose grid it is.
    grid : str or None
        File, or place.
    pixel_scale : float or None
        Side of a pixel, arcsec.
    distance, pixel_pc : float or None
        Distance of a cloud and side of a pixel on it, pc; without the side, the pixels stay as they are.
    beam : float
        FWHM in pixels to which finer maps of a cloud are smoothed.
    """

    onto: str | None = None
    grid: str | None = None
    pixel_scale: float | None = None
    distance: float | None = None
    pixel_pc: float | None = None
    beam: float = 1.0

    @property
    def on_cloud(self) -> float | None:
        """Side of a pixel of given size at a given distance, arcsec; None where none is given."""
        if self.distance is None and self.pixel_pc is not None:
            raise RequestError(
                f"--pixel-pc {self.pixel_pc:g} without a distance says nothing of a pixel on the sky; give --distance"
            )
        if self.distance is None or self.pixel_pc is None:
            return None
        if self.pixel_scale is not None:
            raise RequestError(
                f"--pixel-scale {self.pixel_scale:g}, but --distance and --pixel-pc say the pixel; leave one out"
            )
        return math.degrees(math.atan(self.pixel_pc / self.distance)) * 3600


def target_grid(asked: AskedGrid, problem: ProblemTable, images: Mapping[str, Mapping[str, str]]) -> str | TargetGrid:
    """Return the endpoint that has the grid onto which all images are brought, or the grid itself."""
    on_cloud = asked.on_cloud
    if asked.distance is not None and asked.pixel_pc is None:
        return _own_pixels(asked, problem, images)
    if on_cloud is None or asked.pixel_pc is None:
        return _sky_grid(asked, problem, images)
    if asked.grid is None or _place(asked.grid) is not None:
        found = _sky_grid(replace(asked, pixel_scale=on_cloud), problem, images, like=True)
        assert not isinstance(found, str), "a pixel scale makes a grid"
        return replace(found, pixel_pc=asked.pixel_pc, beam=asked.beam * on_cloud)
    raise RequestError(f"--grid {asked.grid} states its pixels, but --distance and --pixel-pc do too; leave one out")


def _own_pixels(asked: AskedGrid, problem: ProblemTable, images: Mapping[str, Mapping[str, str]]) -> str | TargetGrid:
    """Return the grid that the map has, or that is asked for otherwise, with the size of its pixels on the cloud."""
    from surveybridge.storage.fits_images import stated_grid
    from surveybridge.storage.grids import pixel_scale
    from surveybridge.storage.problems import endpoint
    from surveybridge.storage.target_grids import TargetGrid

    found = _sky_grid(asked, problem, images)
    assert asked.distance is not None
    if isinstance(found, str):
        band = endpoint(problem, found)["bands"][0]
        if band not in images[found]:
            return found  # what is missing is said when the images are opened
        file = images[found][band]
        header, shape = stated_grid(endpoint(problem, found), band, file)
        _check_place(header, file)
        found = TargetGrid(found, header, shape, file)
    return replace(found, pixel_pc=asked.distance * math.tan(math.radians(pixel_scale(found.wcs_header) / 3600)))


def _check_place(header: str, file: str) -> None:
    """Refuse a map that has no place on the sky, and so no pixels of a size there."""
    from surveybridge.storage.grids import no_sky_header

    if header == no_sky_header():
        raise RequestError(f"{file} says no place on the sky, so --distance does not say its pixels; leave it out")


def _sky_grid(
    asked: AskedGrid, problem: ProblemTable, images: Mapping[str, Mapping[str, str]], *, like: bool = False
) -> str | TargetGrid:
    """Return the same of pixels of a side on the sky; `like`: the area and the axes of the image, in such pixels."""
    from surveybridge.storage.celestial import celestial_wcs
    from surveybridge.storage.errors import StorageError
    from surveybridge.storage.fits_images import stated_grid
    from surveybridge.storage.problems import endpoint
    from surveybridge.storage.target_grids import grid_around, grid_at, grid_like, grid_of_file

    onto = asked.onto or default_grid(problem, images)
    scale = asked.pixel_scale or endpoint(problem, onto)["pixel_scale"]
    place = None if asked.grid is None else _place(asked.grid)
    if not like and place is None and asked.pixel_scale is not None and (asked.grid is not None or onto in images):
        file = asked.grid or next(iter(images[onto].values()))
        raise RequestError(
            f"--pixel-scale {asked.pixel_scale:g}: {file} states the grid; leave it out, or give a place"
        )
    if not scale and (place is not None or (asked.grid is None and onto not in images)):
        raise RequestError(f"--onto {onto} has no pixel scale of its own; give --pixel-scale")
    if place is not None:
        return grid_at(onto, *place, scale)
    if asked.grid is not None:
        try:
            return grid_of_file(onto, asked.grid)
        except StorageError as error:
            raise RequestError(f"--grid {asked.grid}: {error}; or give a place as RA,DEC,ARCSEC") from None
    if onto in images and not like:
        return onto
    end = endpoint(problem, onto) if onto in images else next(e for e in problem["endpoints"] if e["name"] in images)
    band = end["bands"][0]
    if band not in images[end["name"]]:
        return onto  # what is missing is said when the images are opened
    header, shape = stated_grid(end, band, images[end["name"]][band])
    file = images[end["name"]][band]
    if like:
        _check_place(header, file)
    return (grid_like if like else grid_around)(onto, celestial_wcs(header), shape, scale, file)


def _place(text: str) -> tuple[float, float, float] | None:
    """Right ascension, declination and side of a grid; None where the text is something else."""
    from surveybridge.storage.errors import StorageError
    from surveybridge.storage.positions import position_and_angle

    try:
        return position_and_angle(text)
    except StorageError:
        return None


def default_grid(problem: ProblemTable, images: Mapping[str, Any]) -> str:
    """Return the endpoint whose grid is the default: the one with the catalog, else the one of finer pixels."""
    if problem["catalog"] is not None:
        return str(problem["catalog"])
    given = [end for end in problem["endpoints"] if end["name"] in images]
    return min(given, key=lambda end: end["pixel_scale"])["name"] if given else problem["endpoints"][0]["name"]
