"""Co-register FITS images of two surveys onto one grid and cut them into a tile store.

`--image NAME.BAND=FILE ...` names the images of any problem; `--euclid FILE --lsst FILE FILE FILE` is short for those
of LSST and Euclid. One survey alone will do: tiles with the observed one are translated, and catalogs are made where
both are. A store holds many fields, each on a grid of its own: an ingest adds one, or replaces the one of its name.
"""

from __future__ import annotations

import logging
import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from surveybridge.jobs.config import JobConfig, RequestError
from surveybridge.jobs.ingesting.grids import AskedGrid, target_grid
from surveybridge.jobs.ingesting.problems import problem_and_card
from surveybridge.jobs.ingesting.texts import (
    bands_named,
    by_band,
    by_end,
    checked_psf,
    positive,
    profile_of_text,
    psf_of_text,
)
from surveybridge.jobs.translating.config import NOISE_BOUND

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card
    from surveybridge.storage.homogenise import WantedPsfs
    from surveybridge.storage.ingest import Foreseen

EXAMPLES = """\
surveybridge ingest --euclid vis.fits --lsst g.fits r.fits i.fits --store tiles
surveybridge ingest --euclid vis.fits --lsst g.fits r.fits i.fits --store s3://bucket/tiles --tile-size 1024
surveybridge ingest --euclid vis.fits --lsst g.fits r.fits i.fits --cosmic-rays euclid.VIS --store tiles
surveybridge ingest --euclid "c.fits[VIS_BGSUB]" --lsst "c.fits[DES_G_BGSUB]" "c.fits[DES_R_BGSUB]" \\
    "c.fits[DES_I_BGSUB]" --store tiles
surveybridge ingest --lsst g.fits r.fits i.fits --store tiles --field tract9813-patch42
surveybridge ingest --lsst g.fits r.fits i.fits --grid EUC_MER_tile.fits --store tiles
surveybridge ingest --problem hsc-hst.toml --image hsc.g=g.fits hsc.r=r.fits hst.F814W=acs.fits --onto hst \\
    --store tiles
surveybridge ingest --problem clouds-density --image column.N=perseus_av.fits --factor column.N=2.2e21 \\
    --distance 294 --pixel-pc 0.125 --store perseus"""

LSST_BANDS = ("g", "r", "i")
MAPS = ("mask", "variance", "rms", "weight")
"""Maps that may be in files of their own."""
NAMED = ("psf", "factor", "no_data", "noise")
"""Further settings that name endpoints; those of LSST and Euclid have short forms."""
SHORT = (
    "euclid", "lsst", "euclid_mask", "euclid_rms", "lsst_mask", "lsst_variance", "euclid_psf", "lsst_psf",
    "euclid_noise", "lsst_noise", "lsst_bands",
)  # fmt: skip
"""Settings that are short for those of the problem lsst-euclid."""
NOISES = ("auto", "file", "scaled", "sky")


class Config(JobConfig):
    """Settings of `surveybridge ingest`."""

    writes = ("store",)

    named_values: ClassVar[tuple[str, ...]] = (
        *("image", "zero_point", "homogenise"),
        *NAMED,
        *MAPS,
    )

    store: str = Field(description="tile store, local path or s3:// URL: new, or one to which the field is added")
    field: str | None = Field(
        None,
        description="name of the field, which replaces one of the same name (default: the field of the same grid, or "
        "a new one named after its grid)",
    )
    euclid: str | None = Field(None, description="Euclid VIS image: FITS file or URL, FILE[EXT] to name an extension")
    lsst: tuple[str, ...] = Field(
        (), description="LSST images in the order of --lsst-bands, FITS files, URLs or FILE[EXT]"
    )
    problem: str | None = Field(None, description="TOML file of a problem, or a shipped one (default: lsst-euclid)")
    checkpoint: str | None = Field(
        None,
        description="checkpoint that the tiles are for, instead of --problem: its problem and, with --distance, the "
        "pixels of its training maps, unless --pixel-pc says others",
    )
    image: tuple[str, ...] = Field((), description="images as NAME.BAND=FILE: endpoint, band, FITS file or FILE[EXT]")
    onto: str | None = Field(
        None,
        description="endpoint whose grid all images are resampled to (default: that of the catalog, else the finer); "
        "without its images, a TAN grid of its pixel scale around those of the other, with their tangent point",
    )
    grid: str | None = Field(
        None,
        description="grid to resample all images to: a FITS file, FILE[EXT] or text header (.hdr, .head) that states "
        "it, or RA,DEC,ARCSEC: TAN around a place, a square",
    )
    pixel_scale: float | None = Field(
        None, gt=0, description="side of a pixel of a grid that no file states, arcsec (default: that of --onto)"
    )
    distance: float | None = Field(None, gt=0, description="distance of a molecular cloud in pc, for pixels of a size")
    pixel_pc: float | None = Field(
        None,
        gt=0,
        description="side of a pixel of the grid on a cloud in pc, such as that of the maps a checkpoint was trained "
        "on, with --distance; the grid then has the area and the axes of the image, in such pixels (default: its own)",
    )
    beam: float = Field(
        1.0,
        ge=0,
        description="FWHM, in pixels of that grid, to which finer maps are smoothed before they are resampled; 0 not "
        "to smooth them",
    )
    tile_size: int = Field(512, description="side of a tile's core, pixels of the grid")
    halo: int = Field(64, description="pixels around the core that a tile also holds")
    psf: tuple[str, ...] = Field(
        (),
        description="PSFs as NAME.BAND=PSF: a FWHM in arcsec, gaussian:FWHM, moffat:FWHM,BETA, kolmogorov:FWHM, or a "
        "FITS file or FILE[HDU] with an image of it (default: the images' headers and PSF HDUs)",
    )
    zero_point: tuple[str, ...] = Field(
        (), description="AB zero points as NAME.BAND=MAG, which count instead of the units and zero points in headers"
    )
    factor: tuple[str, ...] = Field(
        (),
        description="values of one count as NAME.BAND=NUMBER in the unit of an endpoint that is no flux, which count "
        "instead of the units in headers, such as 2.2e21 for the column density of a magnitude of extinction",
    )
    no_data: tuple[str, ...] = Field(
        (), description="values in files that mean no data, as NAME.BAND=NUMBER, such as 0"
    )
    noise: tuple[str, ...] = Field(
        (),
        description="where variances come from, as NAME=auto, NAME=file (a map), NAME=scaled (a map, scaled to what "
        "the pixels of the sky scatter by) or NAME=sky",
    )
    cosmic_rays: tuple[str, ...] = Field(
        (),
        description="find cosmic rays in these images and mask them, as NAME.BAND, such as euclid.VIS: where no mask "
        "shows them; the PSF must be known, and astroscrappy be there (extra cosmic-rays)",
    )
    mask: tuple[str, ...] = Field((), description="masks in separate files, as NAME.BAND=FILE or FILE[EXT]")
    variance: tuple[str, ...] = Field((), description="variance maps in separate files, as NAME.BAND=FILE")
    rms: tuple[str, ...] = Field((), description="RMS maps in separate files, as NAME.BAND=FILE")
    weight: tuple[str, ...] = Field(
        (), description="weight maps (inverse variance, 0 = no coverage) in separate files, as NAME.BAND=FILE"
    )
    homogenise: tuple[str, ...] = Field(
        (),
        description="bring images to other PSFs: those that a checkpoint was trained on (its path or name), or "
        "NAME.BAND=PSF, a FWHM in arcsec (a Gaussian), gaussian:FWHM, moffat:FWHM,BETA or kolmogorov:FWHM; by default "
        "`translate` does so by itself",
    )
    psf_noise: float = Field(
        NOISE_BOUND, gt=1, le=10, description="factor by which --homogenise may enlarge the noise of a pixel"
    )
    align: bool = Field(
        True,
        description="measure on the objects of both surveys by how much the images of one are off, and where that is "
        "certain and above 0.01 arcsec, move them onto the other's",
    )
    dry_run: bool = Field(False, description="read everything, say what would be written, and write nothing")
    wait: float = Field(0.0, ge=0, description="seconds to wait for another ingest into the store to end")
    subtract_sky: bool = Field(
        False,
        description="subtract the level of the sky, measured on each image; refused without it if it is not near 0",
    )
    stale_sums: bool = Field(
        False,
        description="take images whose CHECKSUM or DATASUM is not theirs, because they were edited since; without it "
        "they count as damaged",
    )
    lsst_bands: tuple[str, ...] = Field(LSST_BANDS, description="which band each --lsst image is")
    euclid_rms: str | None = Field(None, description="RMS map of the Euclid image, if it is in a separate file")
    euclid_mask: str | None = Field(
        None, description="mask of the Euclid image in a separate file, such as MER's FLAG map"
    )
    lsst_mask: tuple[str, ...] = Field(
        (), description="masks of the LSST images in separate files, FILE or FILE[EXT] each"
    )
    lsst_variance: tuple[str, ...] = Field((), description="variance maps of the LSST images in separate files")
    euclid_psf: str | None = Field(
        None, description="PSF of the Euclid image, FWHM in arcsec or as in --psf (default: its file)"
    )
    lsst_psf: tuple[str, ...] = Field(
        (), description="PSF per LSST image, FWHM in arcsec or as in --psf (default: their files)"
    )
    euclid_noise: Literal["auto", "file", "scaled", "sky"] = Field(
        "file",
        description="where the Euclid variance comes from: file (VARIANCE or RMS map), scaled (the same, scaled to the "
        "scatter of the sky), sky, or auto",
    )
    lsst_noise: Literal["auto", "file", "scaled", "sky"] = Field(
        "auto",
        description="where LSST variances come from: file, scaled, sky, or auto = VARIANCE extension, else sky",
    )

    @model_validator(mode="after")
    def _one_way_to_name_images(self) -> Self:
        short = [f"--{name.replace('_', '-')}" for name in SHORT if name in self.model_fields_set]
        named = [
            f"--{name.replace('_', '-')}"
            for name in ("problem", "checkpoint", "image", *NAMED, *MAPS)
            if name in self.model_fields_set
        ]
        if short and named:
            raise ValueError(
                f"{short[0]} is a short form for the problem lsst-euclid; leave it out, or leave out {named[0]}"
            )
        if not self.image:
            if self.problem is not None or self.checkpoint is not None:
                raise ValueError("--image is required; give NAME.BAND=FILE for each band of the problem")
            if not (self.euclid or self.lsst):
                raise ValueError(
                    "--euclid is required; --lsst is required: one of them or both, or --image NAME.BAND=FILE ... of "
                    "another problem"
                )
        return self


def run(config: Config) -> int:
    """Write the store, and report what is in it."""
    from surveybridge.jobs.running.progress import progress
    from surveybridge.jobs.translating.alignment import aligned
    from surveybridge.storage.field_update import Slot
    from surveybridge.storage.ingest import foresee_field, ingest_field
    from surveybridge.storage.readings import Allowances

    log = logging.getLogger(__name__)
    start = time.monotonic()
    problem, card = problem_and_card(config.problem, config.checkpoint)
    asked = AskedGrid(**config.model_dump(include={field.name for field in fields(AskedGrid)}))
    asked = asked if card is None else with_pixels_of(card, asked)
    images, how = named_images(config) if config.image else lsst_and_euclid(config)
    how |= {
        "tile_size": config.tile_size,
        "halo": config.halo,
        "slot": Slot(config.field, config.wait),
        "allow": Allowances(config.subtract_sky, config.stale_sums),
        "aligned": aligned if config.align else None,
        "wanted_psfs": wanted_psfs(config),
    }
    onto = target_grid(asked, problem, images)
    if config.dry_run:
        print(describe(foresee_field(problem, images, onto, config.store, **how), config.store))
        return 0
    rows = ingest_field(
        problem, images, onto, config.store, watch=lambda tiles, total: progress(tiles, "ingest", total), **how
    )
    both = sum(len(row["surveys"]) == 2 for row in rows)
    log.info(
        "field %s: %d tiles in %s (%d with both surveys), %.1f s",
        rows[0]["field"],
        len(rows),
        config.store,
        both,
        time.monotonic() - start,
    )
    return 0


def with_pixels_of(card: Card, asked: AskedGrid) -> AskedGrid:
    """Return the grid; on a cloud for which no other pixels are asked, with those of a checkpoint's training maps."""
    if asked.distance is None or asked.pixel_pc is not None:
        return asked
    if card.pixel_pc is None:
        raise RequestError(
            f"--distance, but checkpoint {card.name} says no size of the pixels of its training; give --pixel-pc, "
            "or leave out --distance"
        )
    return replace(asked, pixel_pc=card.pixel_pc)


def wanted_psfs(config: Config) -> WantedPsfs | None:
    """Return the PSFs to which images are to be brought, by name of a checkpoint or one by one; None for none."""
    from surveybridge.storage.homogenise import WantedPsfs

    if not config.homogenise:
        return None
    if len(config.homogenise) == 1 and "=" not in config.homogenise[0]:
        from surveybridge.bridge_core.checkpoint import load_checkpoint
        from surveybridge.jobs.translating.homogenising import Homogenisation

        card = load_checkpoint(config.homogenise[0]).card
        found = Homogenisation.of_card(card, config.psf_noise)
        if found is None:
            raise RequestError(
                f"--homogenise {card.name}: its card states no single PSF of its training images; give NAME.BAND=PSF"
            )
        return found
    return WantedPsfs(by_end(config.homogenise, "--homogenise", "PSF", profile_of_text), config.psf_noise)


def describe(found: Foreseen, store: str) -> str:
    """Format what would be written for a person."""
    from surveybridge.storage.celestial import celestial_wcs
    from surveybridge.storage.grids import describe_footprint, pixel_scale

    field, (height, width) = found.field, found.field.shape
    tiles = ", ".join(f"{count} with {' and '.join(names)}" for names, count in sorted(found.surveys.items()))
    lines = {
        "store": f"{store}; nothing has been written",
        "field": f"{field.name}, {'in the place of the one of this name' if found.replaces else 'new'}",
        "grid": f"{height} x {width} pixels of {pixel_scale(field.wcs_header):.4g} arcsec, "
        f"{describe_footprint(celestial_wcs(field.wcs_header), field.shape)}",
        "tiles": f"{sum(found.surveys.values())} of {field.tile_size} pixels and a halo of {field.halo}: {tiles}",
        "domain": found.domain,
    }
    return "\n".join(f"{name:<7} {said}" for name, said in lines.items())


def named_images(config: Config) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    """Return images by endpoint and band, and the settings about them, in the form that `read_field` takes."""
    noise: dict[str, str] = {}
    for text in config.noise:
        name, _, kind = text.partition("=")
        if kind not in NOISES or name in noise:
            raise RequestError(f"--noise {text}: expected NAME={'|'.join(NOISES)}, once for an endpoint")
        noise[name] = kind
    return by_end(config.image, "--image", "FILE", str), {
        "noise": noise,
        "numbers": {
            "psf": by_end(config.psf, "--psf", "PSF", psf_of_text),
            "zero_point": zero_points(config),
            "factor": by_end(config.factor, "--factor", "NUMBER", positive),
            "no_data": by_end(config.no_data, "--no-data", "NUMBER", float),
            "cosmic_rays": bands_named(config.cosmic_rays, "--cosmic-rays"),
        },
        "maps": {role: by_end(getattr(config, role), f"--{role}", "FILE", str) for role in MAPS},
    }


def lsst_and_euclid(config: Config) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    """Return the same from the short settings for the problem lsst-euclid."""
    images = {"lsst": by_band(config.lsst, config.lsst_bands, "--lsst")} if config.lsst else {}
    if config.euclid is not None:
        images["euclid"] = {"VIS": config.euclid}
    psfs: dict[str, dict[str, str | float]] = {"lsst": {}, "euclid": {}}
    if config.lsst_psf:
        given = by_band(config.lsst_psf, config.lsst_bands, "--lsst-psf")
        psfs["lsst"] = {band: checked_psf(text, "--lsst-psf") for band, text in given.items()}
    if config.euclid_psf is not None:
        psfs["euclid"] = {"VIS": checked_psf(config.euclid_psf, "--euclid-psf")}
    maps: dict[str, dict[str, dict[str, str]]] = {}
    for role, survey in (("rms", "euclid"), ("mask", "euclid"), ("mask", "lsst"), ("variance", "lsst")):
        given = getattr(config, f"{survey}_{role}")
        if given and survey == "euclid":
            maps.setdefault(role, {})[survey] = {"VIS": given}
        elif given:
            maps.setdefault(role, {})[survey] = by_band(given, config.lsst_bands, f"--{survey}-{role}")
    return images, {
        "noise": {"lsst": config.lsst_noise, "euclid": config.euclid_noise},
        "numbers": {
            "psf": psfs,
            "zero_point": zero_points(config),
            "cosmic_rays": bands_named(config.cosmic_rays, "--cosmic-rays"),
        },
        "maps": maps,
    }


def zero_points(config: Config) -> dict[str, dict[str, float]]:
    """Return AB zero points by endpoint and band."""
    return by_end(config.zero_point, "--zero-point", "MAG", float)
