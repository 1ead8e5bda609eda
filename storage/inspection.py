"""What a FITS file would be ingested as, or the reason why it would be refused: band by band, nothing written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from astropy.io.fits import Header
from astropy.wcs.utils import wcs_to_celestial_frame

from surveybridge.storage.domain import describe_domain, is_filter_of
from surveybridge.storage.errors import StorageError
from surveybridge.storage.field_images import default_noise
from surveybridge.storage.fits_files import open_fits
from surveybridge.storage.fits_hdus import Extension, extensions, listed
from surveybridge.storage.fits_images import open_images
from surveybridge.storage.fits_selection import named_extension, split_extension
from surveybridge.storage.grids import describe_footprint
from surveybridge.storage.images import LazyImage
from surveybridge.storage.orientation import orientation
from surveybridge.storage.problems import EndpointTable, ProblemTable, end_names, endpoint
from surveybridge.storage.readings import BandReading

_NAMED = re.compile(r"(\w+)\.(\w+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Inspection:
    """One image: what was understood of it, or why it is refused.

    Attributes
    ----------
    path : str
        The file, with the HDU in brackets where it holds several images.
    endpoint, band : str
        What it is in the problem; "" where nothing in the file says so.
    reading : BandReading or None
        What was understood; None if it is refused.
    wcs : str
        Projection, frame, footprint and orientation, in words.
    pixel_scale, noise_correlation : float
        arcsec, and correlation of the noise of neighbouring pixels.
    domain : str
        "in", or "out: " and why, by what the models of the problem are trained on.
    refused : str
        The reason of the refusal; "" if there is none.
    hdus : str
        The images of the file: number, name, EXTVER, shape, type, and what each holds.
    """

    path: str
    endpoint: str
    band: str
    reading: BandReading | None = None
    wcs: str = ""
    pixel_scale: float = math.nan
    noise_correlation: float = math.nan
    domain: str = ""
    refused: str = ""
    hdus: str = ""

    def text(self) -> str:
        """Return it as lines for a person."""
        what = f"{self.band} of {self.endpoint}" if self.endpoint else "no band of the problem"
        lines = [f"{self.path}: {what}"]
        if self.reading is None:
            return "\n".join(
                [*lines, f"  refused      {self.refused}", *([f"  HDUs         {self.hdus}"] if self.hdus else [])]
            )
        facts = self.reading.facts()
        shown = facts | {"WCS": "; ".join(filter(None, (self.wcs, facts.get("WCS")))), "domain": self.domain}
        return "\n".join([*lines, *(f"  {key:<12} {value}" for key, value in shown.items())])

    def document(self) -> dict[str, Any]:
        """Return it as plain values for JSON, in which null stands for NaN."""
        return {key: _plain(value) for key, value in asdict(self).items()}


Numbers = Mapping[str, Mapping[str, Mapping[str, float]]]
"""What the user says by kind, endpoint and band: `factor` and `no_data` of `fits_images.NUMBERS`."""


def inspect_file(
    path: str,
    problem: ProblemTable,
    numbers: Numbers | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Inspection]:
    """Read every image of a file as `ingest` would.

    Parameters
    ----------
    path : str
        A FITS file or URL; `FILE[EXT]` for one HDU of it, `NAME.BAND=FILE` to say which band of the problem it is.
    problem : ProblemTable
        Whose bands, units and noise settings count.
    numbers : Numbers, optional
        Values of a count, and of no data.
    storage_options : mapping, optional
        For fsspec.

    Returns
    -------
    list of Inspection
        One for each image that may hold fluxes; what is wrong with one stands in it.
    """
    named = _NAMED.fullmatch(path)
    known = named is not None and named[1] in end_names(problem)
    name, band, path = (named[1], named[2], named[3]) if named is not None and known else ("", "", path)
    file, selector = split_extension(path)
    try:
        with open_fits(file, storage_options) as hdus:
            found = extensions(hdus)
            primary = hdus[0].header.copy(strip=True)
            asked: list[tuple[str, Extension | None]]
            fluxes = [ext for ext in found if ext.is_plane and ext.role == "flux"]
            if selector is not None or known or len(fluxes) < 2:
                one = _chosen(found, file, selector) or next(iter([*fluxes, *found]), None)
                asked = [(path, one)]
            else:
                asked = [(f"{file}[{ext.label}]", ext) for ext in fluxes]
            hdus_of_file = listed(found)
            guessed = [(one, (name, band) if known else _band_of(ext, primary, problem)) for one, ext in asked]
    except StorageError as error:
        return [Inspection(path, name, band, refused=str(error))]
    return [
        replace(_inspected(one, *place, problem, numbers or {}, storage_options), hdus=hdus_of_file)
        for one, place in guessed
    ]


def _inspected(
    path: str, name: str, band: str, problem: ProblemTable, numbers: Numbers, storage_options: Mapping[str, Any] | None
) -> Inspection:
    try:
        end = endpoint(problem, name) if name else _stand_in(problem)
        if band and band not in end["bands"]:
            raise StorageError(f"{path}: {name} has no band {band}; it has {','.join(end['bands'])}")
        only = EndpointTable(**{**end, "bands": [band or "image"]})
        image = open_images(
            only,
            {only["bands"][0]: path},
            noise=default_noise(problem, name),
            numbers={
                kind: {b: value for b, value in of.get(name, {}).items() if b == band} for kind, of in numbers.items()
            },
            filters=[band for other in problem["endpoints"] for band in other["bands"]] if name else (),
            storage_options=storage_options,
        )[0]
    except StorageError as error:
        return Inspection(path, name, band, refused=str(error))
    if name:
        domain = describe_domain(problem, {name: [image.head]})
    else:
        wanted = ", ".join(f"{end['name']}.{band}" for end in problem["endpoints"] for band in end["bands"])
        domain = f"not known: is it one of {wanted}? Say so by NAME.BAND={path}"
    head = image.head
    measured = float(head.pixel_scale), float(head.noise_correlation[0])
    return Inspection(path, name, band, head.readings[0], describe_wcs(image), *measured, domain)


def describe_wcs(image: LazyImage) -> str:
    """Return projection, frame, footprint, pixel scale and orientation of an image in words."""
    wcs, (height, width) = image.head.wcs, image.shape
    middle = wcs.all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
    found = orientation(wcs, *(float(degrees) for degrees in middle))
    turn = (
        "north is up"
        if abs(found.north) < 0.05
        else f"north is {abs(found.north):.1f} deg {'left' if found.north > 0 else 'right'} of up"
    )
    return (
        f"{'/'.join(wcs.wcs.ctype)}, {wcs_to_celestial_frame(wcs).name}, {describe_footprint(wcs, (height, width))}, "
        f'{image.head.pixel_scale:.4g}" per pixel, {turn}, east is {"right" if found.mirrored else "left"} of north'
    )


def _chosen(found: list[Extension], file: str, selector: str | None) -> Extension | None:
    """The HDU in brackets, if there is just one; what is wrong with it, the reading says."""
    try:
        return None if selector is None else named_extension(found, file, selector)
    except StorageError:
        return None


def _band_of(extension: Extension | None, primary: Header, problem: ProblemTable) -> tuple[str, str]:
    """Endpoint and band by the FILTER of the header, else by the words in it and in EXTNAME; "" where none tells."""
    if extension is None:
        return "", ""
    filter_name = str(extension.hdu.header.get("FILTER", primary.get("FILTER", ""))).strip()
    places = [(end["name"], band) for end in problem["endpoints"] for band in end["bands"]]
    words = re.findall(r"[A-Za-z0-9]+", f"{filter_name} {extension.stem}")
    tiers = (
        [place for place in places if is_filter_of(filter_name, *place)],
        [place for place in places if place[1] in words],
        # EXTNAME is in capitals
        [place for place in places if place[1].lower() in [word.lower() for word in words]],
    )
    return next((tier[0] for tier in tiers if len(tier) == 1), ("", ""))


def _stand_in(problem: ProblemTable) -> EndpointTable:
    """An endpoint for an image that is none of the problem's: fluxes in nJy."""
    return EndpointTable(**{**problem["endpoints"][0], "name": "image", "unit": "nJy", "extensive": True})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
