"""Ingest: from the FITS images of a problem's endpoints to a tile store on the pixel grid of one of them.

Everything that can be wrong with the request is found before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surveybridge.storage.coregister import coregister
from surveybridge.storage.domain import describe_domain
from surveybridge.storage.errors import StorageError
from surveybridge.storage.field_update import Slot, put_field
from surveybridge.storage.fields import FieldGrid, grid_id_of
from surveybridge.storage.fits_images import Noise, read_images
from surveybridge.storage.grids import GridMapping, describe_footprint, overlap_fraction, shifted_header
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.problems import EndpointTable, ProblemTable, endpoint
from surveybridge.storage.tiles import Tile, TileStore

MIN_TILE_SIZE = 64
"""Pixels: the window that the network sees."""

Images = Mapping[str, Mapping[str, str]]
"""Files by endpoint and band."""


@dataclass(frozen=True)
class Field:
    """The images of a problem's endpoints on the grid of one of them, ready to be cut.

    Parameters
    ----------
    images : mapping of str to SurveyImage
        By endpoint, in the problem's order.
    onto : str
        Whose grid it is.
    """

    images: Mapping[str, SurveyImage]
    onto: str

    @property
    def wcs_header(self) -> str:
        """WCS of the grid."""
        return next(iter(self.images.values())).wcs_header

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = next(iter(self.images.values())).flux.shape[1:]
        return int(height), int(width)

    @property
    def grid_id(self) -> str:
        """Name of the pixel grid."""
        return grid_id_of(self.onto, self.wcs_header, self.shape)


def ingest_field(
    problem: ProblemTable,
    images: Images,
    onto: str,
    store_url: str,
    *,
    tile_size: int = 512,
    halo: int = 64,
    slot: Slot | None = None,
    watch: Callable[[Iterable[Tile], int], Iterable[Tile]] | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Read, co-register, cut, and write a field of a tile store.

    Parameters
    ----------
    problem, images, onto
        As `read_field`.
    store_url : str
        The store, local or s3://: absent, or one that keeps its other fields.
    tile_size, halo : int
        Pixels of the grid; tiles at the edge are smaller, halos end at the field's edge.
    slot : Slot, optional
        Name of the field, which takes the place of one of the same name, and how long to wait for another ingest.
    watch : callable (tiles, total) -> tiles, optional
        Wrapped around the tiles as they are written: a progress bar.
    **how
        Passed to `read_field`; `storage_options` hold for the store too.

    Returns
    -------
    list of dict
        Rows of the manifest.

    Raises
    ------
    StorageError
        The request is wrong, or another process ingests into the store; nothing has been written.
    """
    check_tiling(tile_size, halo)
    field = read_field(problem, images, onto, **how)
    boxes = [box for box in tile_boxes(field.shape, tile_size, halo) if _has_data(field, box)]
    if not any(len(cut_tile(field, box).images) == len(field.images) for box in boxes):
        raise StorageError(
            f"{_first_file(problem, images, onto)}: no tile in which both surveys have usable pixels (of {len(boxes)} "
            "with any); give images whose unmasked areas overlap"
        )
    grid = FieldGrid("", field.grid_id, field.wcs_header, field.shape, tile_size, halo)

    def cut(named: FieldGrid) -> Iterable[Tile]:
        tiles = (cut_tile(field, box, named) for box in boxes)
        return watch(tiles, len(boxes)) if watch else tiles

    return put_field(TileStore.create(store_url, how.get("storage_options")), grid, slot or Slot(), cut)


def read_field(
    problem: ProblemTable,
    images: Images,
    onto: str,
    *,
    noise: Mapping[str, Noise] | None = None,
    numbers: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    maps: Mapping[str, Images] | None = None,
    subtract_sky: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Field:
    """Read the images of both endpoints, or of one, and bring all bands onto one grid.

    Parameters
    ----------
    problem : ProblemTable
        What the endpoints are.
    images : mapping of endpoint to mapping of band to path
        FITS file or URL, `FILE[EXT]` to name an extension. All bands of an endpoint; one endpoint may be left out.
    onto : str
        The endpoint whose grid, that of its first band, the others are brought onto.
    noise : mapping of endpoint to "auto", "file" or "sky", optional
        As `read_images`. Default "file" for the endpoint on which objects are found, "auto" for the other.
    numbers : mapping of "psf_fwhm" or "zero_point" to mapping of endpoint to mapping of band to float, optional
        Arcsec, or AB magnitude of one count; they count instead of what the files say.
    maps : mapping of "mask", "variance", "rms" or "weight" to such a mapping as `images`, optional
        Maps in files of their own.
    subtract_sky : bool
        Subtract the measured level of the sky from all fluxes.
    storage_options : mapping, optional
        For fsspec.

    Raises
    ------
    StorageError
        A file is unusable, or the endpoints do not overlap.
    """
    maps, numbers = maps or {}, numbers or {}
    for given in (images, noise or {}, *numbers.values(), *maps.values()):
        for name in given:
            endpoint(problem, name)
    if onto not in images:
        raise StorageError(f"onto {onto}: images of {', '.join(images) or 'nothing'} are given; give those of {onto}")
    # the grid first: what is wrong with it concerns all others
    ends = sorted((end for end in problem["endpoints"] if end["name"] in images), key=lambda end: end["name"] != onto)
    read = {
        end["name"]: read_images(
            end,
            images[end["name"]],
            noise=(noise or {}).get(end["name"], default_noise(problem, end["name"])),
            numbers={what: given.get(end["name"], {}) for what, given in numbers.items()},
            maps={role: files[end["name"]] for role, files in maps.items() if end["name"] in files},
            subtract_sky=subtract_sky,
            filters=[band for other in problem["endpoints"] for band in other["bands"]],
            storage_options=storage_options,
        )
        for end in ends
    }
    grid = read[onto][0]
    path = _first_file(problem, images, onto)
    in_order = [end for end in problem["endpoints"] if end["name"] in images]
    notes = {"domain": describe_domain(problem, read)}
    for end in in_order:
        for part in read[end["name"]]:
            if part is grid:
                continue
            if end["pixel_scale"] == 0 and part.flux.shape[1:] != grid.flux.shape[1:]:
                here, there = ("{} x {}".format(*image.flux.shape[1:]) for image in (part, grid))
                raise StorageError(f"{end['name']}: {here} pixels but {onto} has {there}; give images of one grid")
            covered = _covered(part, images[end["name"]][part.bands[0]], grid, path)
            whose = end["name"] if part is read[end["name"]][0] else f"{end['name']}_{part.bands[0]}"
            notes[f"{whose}_coverage"] = f"{covered:.4f} of the {endpoint(problem, onto)['title']} grid"
    shape = (int(grid.flux.shape[1]), int(grid.flux.shape[2]))
    on_grid = {
        end["name"]: _joined(end, [_registered(end, part, grid, shape) for part in read[end["name"]]])
        for end in in_order
    }
    return Field({name: replace(image, provenance=image.provenance | notes) for name, image in on_grid.items()}, onto)


def default_noise(problem: ProblemTable, name: str) -> Noise:
    """Return where the variances of an endpoint come from unless the user says so: its file, if it has the catalog."""
    return "file" if name == problem["catalog"] else "auto"


def _first_file(problem: ProblemTable, images: Images, name: str) -> str:
    """The file of an endpoint's first band."""
    return images[name][endpoint(problem, name)["bands"][0]]


def _covered(image: SurveyImage, path: str, grid: SurveyImage, grid_path: str) -> float:
    """Share of the grid that an image covers; StorageError if it is none."""
    here, there = image.flux.shape[1:], grid.flux.shape[1:]
    covered = overlap_fraction(grid.wcs, there, image.wcs, here)
    if covered == 0 and overlap_fraction(image.wcs, here, grid.wcs, there) == 0:
        raise StorageError(
            f"surveys do not overlap: {grid_path} is at {describe_footprint(grid.wcs, there)}, "
            f"{path} at {describe_footprint(image.wcs, here)}; give images of the same sky"
        )
    return covered


def _registered(end: EndpointTable, image: SurveyImage, grid: SurveyImage, shape: tuple[int, int]) -> SurveyImage:
    """The image on the grid."""
    if image is grid:
        return image
    if end["stretch"] == "axial" and GridMapping.between(grid.wcs_header, shape, image.wcs_header).whole_shift is None:
        raise StorageError(
            f"{end['name']}: its angles lie on other pixels than the grid of {grid.survey}, and angles are not "
            "interpolated; give them on that grid, or bring the rest onto theirs"
        )
    return coregister(image, grid.wcs_header, shape)


def _joined(end: EndpointTable, parts: list[SurveyImage]) -> SurveyImage:
    """Images of one endpoint on one grid as one image, bands in the endpoint's order."""
    if len(parts) == 1:
        return parts[0]
    bands = [band for part in parts for band in part.bands]
    order = [bands.index(band) for band in end["bands"]]
    per_band = ("native_pixel_scale", "interpolation")
    return replace(
        parts[0],
        bands=tuple(end["bands"]),
        psf_fwhm=tuple([width for part in parts for width in part.psf_fwhm][k] for k in order),
        noise_correlation=tuple([value for part in parts for value in part.noise_correlation][k] for k in order),
        readings=tuple([reading for part in parts for reading in part.readings][k] for k in order),
        provenance={
            f"{part.bands[0]}.{key}" if key in per_band and part is not parts[0] else key: note
            for part in parts
            for key, note in part.provenance.items()
        },
        flux=np.concatenate([part.flux for part in parts])[order],
        variance=np.concatenate([part.variance for part in parts])[order],
        mask=np.concatenate([part.mask for part in parts])[order],
    )


@dataclass(frozen=True)
class TileBox:
    """The place of a tile on the grid, in half-open global pixels: what it owns (core) and what it holds (outer)."""

    tile_id: str
    core: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]


def tile_boxes(shape: tuple[int, int], tile_size: int, halo: int) -> Iterator[TileBox]:
    """Cut a grid into tiles, row-major, t0000 first. Cores partition the grid; halos end at its edge."""
    height, width = shape
    corners = [(y, x) for y in range(0, height, tile_size) for x in range(0, width, tile_size)]
    for number, (y, x) in enumerate(corners):
        core = (y, min(y + tile_size, height), x, min(x + tile_size, width))
        outer = (max(y - halo, 0), min(core[1] + halo, height), max(x - halo, 0), min(core[3] + halo, width))
        yield TileBox(f"t{number:04d}", core, outer)


def cut_tile(field: Field, box: TileBox, named: FieldGrid | None = None) -> Tile:
    """Cut one tile; a survey without a usable pixel in it is left out. `named` is the field as it is in a store."""
    y0, y1, x0, x1 = box.outer
    core = (box.core[0] - y0, box.core[1] - y0, box.core[2] - x0, box.core[3] - x0)
    header = shifted_header(field.wcs_header, y0, x0)
    cut = np.s_[:, y0:y1, x0:x1]
    images = {
        name: replace(
            image, flux=image.flux[cut], variance=image.variance[cut], mask=image.mask[cut], wcs_header=header
        )
        for name, image in field.images.items()
        if (image.mask[cut] == 0).any()
    }
    if named is None:
        return Tile(box.tile_id, images, core, (y0, x0), field.grid_id)
    return Tile(f"{named.prefix}{box.tile_id}", images, core, (y0, x0), field.grid_id, named.name)


def check_tiling(tile_size: int, halo: int) -> None:
    """Refuse a tiling that cannot be translated."""
    if tile_size < MIN_TILE_SIZE:
        raise StorageError(f"tile size {tile_size} px is below {MIN_TILE_SIZE} px, the network's window; enlarge it")
    if halo < 0:
        raise StorageError(f"halo {halo} px is negative; give 0 or more")


def _has_data(field: Field, box: TileBox) -> bool:
    y0, y1, x0, x1 = box.outer
    return any(bool((image.mask[:, y0:y1, x0:x1] == 0).any()) for image in field.images.values())
