"""The images of a problem's endpoints on one pixel grid, read and co-registered strip by strip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surveybridge.storage.angles import AngularPart, as_vectors
from surveybridge.storage.coregister import Registration
from surveybridge.storage.domain import PIXEL_PC, describe_domain
from surveybridge.storage.errors import StorageError
from surveybridge.storage.fields import grid_id_of
from surveybridge.storage.fits_images import open_images
from surveybridge.storage.fits_planes import Noise
from surveybridge.storage.grids import Displacement, describe_footprint, no_sky_header, overlap_fraction
from surveybridge.storage.homogenise import FILL_REACH, WantedPsfs, homogenise
from surveybridge.storage.images import LazyImage, SurveyImage
from surveybridge.storage.problems import EndpointTable, ProblemTable, endpoint, quantity
from surveybridge.storage.readings import STRICT, Allowances
from surveybridge.storage.smoothing import smoothed
from surveybridge.storage.target_grids import TargetGrid
from surveybridge.storage.units import radians_of

Images = Mapping[str, Mapping[str, str]]
"""Files by endpoint and band."""

Part = LazyImage | Registration | AngularPart
"""An image that strips of a grid are had of."""


@dataclass(frozen=True)
class Field:
    """Images of a problem's endpoints on one grid, ready to be cut; all of it, or a strip of rows.

    Parameters
    ----------
    images : mapping of str to SurveyImage
        By endpoint, in the problem's order; their WCS is that of the whole grid.
    onto : str
        The endpoint whose pixels the grid has.
    top : int
        Row of the grid that is the images' first.
    """

    images: Mapping[str, SurveyImage]
    onto: str
    top: int = 0

    @property
    def wcs_header(self) -> str:
        """WCS of the grid."""
        return next(iter(self.images.values())).wcs_header

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = next(iter(self.images.values())).flux.shape[1:]
        return int(height), int(width)

    @property
    def grid_id(self) -> str:
        """Name of the pixel grid, of which this is all."""
        return grid_id_of(self.onto, self.wcs_header, self.shape)


@dataclass(frozen=True)
class OpenField:
    """Images of which strips are brought onto one grid when they are wanted.

    Parameters
    ----------
    grid : TargetGrid
        The grid.
    parts : mapping of str to sequence of Part
        By endpoint, in the problem's order: one for the bands of each pixel grid.
    ends : mapping of str to EndpointTable
        Of these endpoints.
    notes : mapping of str to str
        What the provenance of all images says besides.
    wanted : WantedPsfs, optional
        PSFs to which they are brought on the grid.
    """

    grid: TargetGrid
    parts: Mapping[str, Sequence[Part]]
    ends: Mapping[str, EndpointTable]
    notes: Mapping[str, str]
    wanted: WantedPsfs | None = None

    def displaced(self, name: str, displacement: Displacement, note: str) -> OpenField:
        """The same with an error of one endpoint's WCS taken back, which the provenance of all images says."""
        there = [part for part in self.parts[name] if not isinstance(part, AngularPart)]
        assert len(there) == len(self.parts[name]), "it is measured on fluxes, which are no angles"
        parts = [
            Registration.of(
                part.image if isinstance(part, Registration) else part,
                self.grid.wcs_header,
                self.grid.shape,
                displacement,
            )
            for part in there
        ]
        return replace(self, parts={**self.parts, name: parts}, notes={**self.notes, "alignment": note})

    def homogenised(self, wanted: WantedPsfs) -> OpenField:
        """The same brought to other PSFs; StorageError if that of a band is not known."""
        for name, psfs in wanted.psfs.items():
            end = self.ends.get(name)
            if end is None or not set(psfs) <= set(end["bands"]):
                raise StorageError(
                    f"PSFs are wanted for {name} {','.join(psfs)}, which is not given; there is "
                    + "; ".join(f"{other} {','.join(of['bands'])}" for other, of in self.ends.items())
                )
            head = self._joined(name, 0, 0)
            for band, fwhm in zip(head.bands, head.psf_fwhm, strict=True):
                if band in psfs and math.isnan(fwhm):
                    raise StorageError(
                        f"{name} {band}: its PSF is not known, so it cannot be brought to {psfs[band]}; give it as "
                        f"--psf {name}.{band}=PSF"
                    )
        return replace(self, wanted=wanted)

    def _joined(self, name: str, start: int, stop: int) -> SurveyImage:
        return _joined(self.ends[name], [part.strip(start, stop) for part in self.parts[name]])

    def _image(self, name: str, start: int, stop: int) -> SurveyImage:
        """Rows of an endpoint, with those around them that homogenisation needs."""
        if self.wanted is None or name not in self.wanted.psfs:
            return self._joined(name, start, stop)
        plans = self.wanted.plans(self._joined(name, 0, 0))
        margin = max((plan.matching.reach for plan in plans if plan.matching), default=0) + FILL_REACH
        first, last = max(start - margin, 0), min(stop + margin, self.grid.shape[0])
        image = homogenise(self._joined(name, first, last), plans)
        rows = np.s_[:, start - first : stop - first]
        return replace(image, flux=image.flux[rows], variance=image.variance[rows], mask=image.mask[rows])

    def strip(self, start: int, stop: int) -> Field:
        """Rows start..stop of the grid."""
        images = {name: self._image(name, start, stop) for name in self.parts}
        told = {name: replace(image, provenance={**image.provenance, **self.notes}) for name, image in images.items()}
        return Field(told, self.grid.endpoint, start)


def read_field(problem: ProblemTable, images: Images, onto: str | TargetGrid, **how: Any) -> Field:
    """Read all pixels; arguments and refusals as `open_field`."""
    opened = open_field(problem, images, onto, **how)
    return opened.strip(0, opened.grid.shape[0])


def open_field(
    problem: ProblemTable,
    images: Images,
    onto: str | TargetGrid,
    *,
    noise: Mapping[str, Noise] | None = None,
    numbers: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    maps: Mapping[str, Images] | None = None,
    allow: Allowances = STRICT,
    storage_options: Mapping[str, Any] | None = None,
) -> OpenField:
    """Open the images of both endpoints, or of one, and relate all bands to one grid.

    Parameters
    ----------
    problem : ProblemTable
        What the endpoints are.
    images : mapping of endpoint to mapping of band to path
        FITS file or URL, `FILE[EXT]` to name an extension. All bands of an endpoint; one endpoint may be left out.
    onto : str or TargetGrid
        The endpoint whose grid, that of its first band, the others are brought onto; or the grid for all.
    noise : mapping of endpoint to "auto", "file", "scaled" or "sky", optional
        As `open_images`. Default "file" for the endpoint on which objects are found, "auto" for the other.
    numbers : mapping of a quantity to mapping of endpoint to mapping of band to value, optional
        As `open_images`; they count instead of what the files say.
    maps : mapping of "mask", "variance", "rms" or "weight" to such a mapping as `images`, optional
        Maps in files of their own.
    allow : Allowances
        What is allowed of files that are not as they should be.
    storage_options : mapping, optional
        For fsspec.

    Raises
    ------
    StorageError
        A file is unusable, or the endpoints do not overlap each other or the grid.
    """
    maps, numbers = maps or {}, numbers or {}
    for given in (images, noise or {}, *numbers.values(), *maps.values()):
        for name in given:
            endpoint(problem, name)
    for name in numbers.get("cosmic_rays", {}):
        if name not in images:
            raise StorageError(
                f"cosmic rays are sought in images of {name}, but there are only those of {', '.join(images)}; give "
                f"them, or leave out --cosmic-rays {name}"
            )
    first = onto if isinstance(onto, str) else onto.endpoint
    if isinstance(onto, str) and onto not in images:
        raise StorageError(f"onto {onto}: images of {', '.join(images) or 'nothing'} are given; give those of {onto}")
    # the grid first: what is wrong with it concerns all others
    ends = sorted((end for end in problem["endpoints"] if end["name"] in images), key=lambda end: end["name"] != first)
    opened = {
        end["name"]: open_images(
            end,
            images[end["name"]],
            noise=(noise or {}).get(end["name"], default_noise(problem, end["name"])),
            numbers={what: given.get(end["name"], {}) for what, given in numbers.items()},
            maps={role: files[end["name"]] for role, files in maps.items() if end["name"] in files},
            allow=allow,
            filters=[band for other in problem["endpoints"] for band in other["bands"]],
            storage_options=storage_options,
        )
        for end in ends
    }
    if isinstance(onto, str):
        image = opened[onto][0]
        grid = TargetGrid(onto, image.head.wcs_header, image.shape, _first_file(problem, images, onto))
    else:
        grid = onto
    heads = {name: [part.head for part in parts] for name, parts in opened.items()}
    notes = {"domain": describe_domain(problem, heads)}
    if math.isfinite(grid.pixel_pc):
        notes[PIXEL_PC] = f"{grid.pixel_pc:.6g}"
    in_order = {end["name"]: end for end in problem["endpoints"] if end["name"] in images}
    for name in in_order:
        for part in opened[name]:
            if part is opened.get(first, [None])[0] and isinstance(onto, str):
                continue
            if part.head.wcs_header == no_sky_header() and part.shape != grid.shape:
                here, there = ("{} x {}".format(*shape) for shape in (part.shape, grid.shape))
                raise StorageError(f"{name}: {here} pixels but {grid.endpoint} has {there}; give images of one grid")
            covered = _covered(part, images[name][part.head.bands[0]], grid)
            whose = name if part is opened[name][0] else f"{name}_{part.head.bands[0]}"
            notes[f"{whose}_coverage"] = f"{covered:.4f} of the {endpoint(problem, grid.endpoint)['title']} grid"
    parts = {name: [_on_grid(end, part, grid) for part in opened[name]] for name, end in in_order.items()}
    return OpenField(grid, parts, in_order, notes)


def default_noise(problem: ProblemTable, name: str) -> Noise:
    """Return where the variances of an endpoint come from unless the user says so: its file, if it has the catalog."""
    return "file" if name == problem["catalog"] else "auto"


def _first_file(problem: ProblemTable, images: Images, name: str) -> str:
    """The file of an endpoint's first band."""
    return images[name][endpoint(problem, name)["bands"][0]]


def _covered(image: LazyImage, path: str, grid: TargetGrid) -> float:
    """Share of the grid that an image covers; StorageError if it is none."""
    here, there = image.head.wcs, grid.wcs
    covered = overlap_fraction(there, grid.shape, here, image.shape)
    if covered == 0 and overlap_fraction(here, image.shape, there, grid.shape) == 0:
        raise StorageError(
            f"surveys do not overlap: {grid.where} is at {describe_footprint(there, grid.shape)}, "
            f"{path} at {describe_footprint(here, image.shape)}; give images of the same sky"
        )
    return covered


def _on_grid(end: EndpointTable, image: LazyImage, grid: TargetGrid) -> Part:
    """The image on the grid, smoothed before to its beam; angles are brought there as vectors."""
    if grid.beam and image.head.extensive:
        raise StorageError(f"{end['name']}: fluxes are not smoothed to a beam; give --beam 0")
    same = (image.head.wcs_header, image.shape) == (grid.wcs_header, grid.shape)
    of = {band: quantity(end, band) for band in image.head.bands}
    radians = {band: radians_of(one["unit"]) for band, one in of.items() if one["stretch"] == "axial"}
    vectors = as_vectors(image, radians) if radians else image
    at_beam = smoothed(vectors, grid.beam) if grid.beam else vectors
    if at_beam is vectors:
        if same:
            return image
        plain = Registration.of(image, grid.wcs_header, grid.shape)
        if not radians or plain.mapping.whole_shift is not None:
            return plain
    part = at_beam if same else Registration.of(at_beam, grid.wcs_header, grid.shape)
    return AngularPart(part, radians) if radians else part


def _joined(end: EndpointTable, parts: list[SurveyImage]) -> SurveyImage:
    """Images of one endpoint on one grid as one image, bands in the endpoint's order."""
    if len(parts) == 1:
        return parts[0]
    bands = [band for part in parts for band in part.bands]
    order = [bands.index(band) for band in end["bands"]]

    def of_bands(name: str) -> tuple[Any, ...]:
        values = [value for part in parts for value in getattr(part, name)]
        return tuple(values[k] for k in order)

    per_band = ("native_pixel_scale", "interpolation")
    return replace(
        parts[0],
        bands=tuple(end["bands"]),
        psf_fwhm=of_bands("psf_fwhm"),
        psf_wing=of_bands("psf_wing"),
        psf_model=of_bands("psf_model"),
        noise_correlation=of_bands("noise_correlation"),
        readings=of_bands("readings"),
        provenance={
            f"{part.bands[0]}.{key}" if key in per_band and part is not parts[0] else key: note
            for part in parts
            for key, note in part.provenance.items()
        },
        flux=np.concatenate([part.flux for part in parts])[order],
        variance=np.concatenate([part.variance for part in parts])[order],
        mask=np.concatenate([part.mask for part in parts])[order],
    )
