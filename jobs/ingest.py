"""Co-register FITS images of LSST and Euclid onto one grid and cut them into a tile store."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

EXAMPLES = """\
surveybridge ingest --euclid vis.fits --lsst g.fits r.fits i.fits --store tiles
surveybridge ingest --euclid vis.fits --lsst g.fits r.fits i.fits --store s3://bucket/tiles --tile-size 1024
surveybridge ingest --euclid "c.fits[VIS_BGSUB]" --lsst "c.fits[DES_G_BGSUB]" "c.fits[DES_R_BGSUB]" \\
    "c.fits[DES_I_BGSUB]" --store tiles"""

LSST_BANDS = ("g", "r", "i")

Value = TypeVar("Value")


class Config(JobConfig):
    """Arguments of `surveybridge ingest`."""

    euclid: str = Field(description="Euclid VIS image: FITS file or URL, FILE[EXT] to name an extension")
    lsst: tuple[str, ...] = Field(description="LSST images in the order of --lsst-bands, FITS files, URLs or FILE[EXT]")
    store: str = Field(
        description="tile store to write, local path or s3:// URL; an earlier one of the same grid is replaced"
    )
    lsst_bands: tuple[str, ...] = Field(LSST_BANDS, description="which band each --lsst image is")
    tile_size: int = Field(512, description="side of a tile's core, Euclid pixels")
    halo: int = Field(64, description="pixels around the core that a tile also holds")
    euclid_rms: str | None = Field(None, description="RMS map of the Euclid image, if it is in a file of its own")
    euclid_psf: float | None = Field(
        None, gt=0, description="PSF FWHM of the Euclid image, arcsec (default: its header)"
    )
    lsst_psf: tuple[float, ...] = Field((), description="PSF FWHM per LSST image, arcsec (default: their headers)")
    euclid_noise: Literal["auto", "file", "sky"] = Field(
        "file", description="where the Euclid variance comes from: file (VARIANCE or RMS map), sky, or auto"
    )
    lsst_noise: Literal["auto", "file", "sky"] = Field(
        "auto", description="where LSST variances come from: file, sky, or auto = VARIANCE extension, else sky"
    )


def run(config: Config) -> int:
    """Write the store, then say what is in it."""
    from surveybridge.jobs.running.progress import progress
    from surveybridge.storage.ingest import ingest_field

    log = logging.getLogger(__name__)
    start = time.monotonic()
    rows = ingest_field(
        config.euclid,
        by_band(config.lsst, config.lsst_bands, "--lsst"),
        config.store,
        tile_size=config.tile_size,
        halo=config.halo,
        watch=lambda tiles, total: progress(tiles, "ingest", total),
        euclid_rms=config.euclid_rms,
        euclid_psf_fwhm=config.euclid_psf,
        lsst_psf_fwhm=by_band(config.lsst_psf, config.lsst_bands, "--lsst-psf") if config.lsst_psf else None,
        euclid_noise=config.euclid_noise,
        lsst_noise=config.lsst_noise,
    )
    both = sum(len(row["surveys"]) == 2 for row in rows)
    log.info("%d tiles in %s (%d with both surveys), %.1f s", len(rows), config.store, both, time.monotonic() - start)
    return 0


def by_band(values: Sequence[Value], bands: Sequence[str], flag: str) -> dict[str, Value]:
    """One value per band, or RequestError."""
    if len(values) != len(bands) or len(set(bands)) != len(bands):
        given = " ".join(map(str, values))
        raise RequestError(
            f"{flag} {given}: {len(values)} values for bands {','.join(bands)}; give one per band, or say with "
            "--lsst-bands which bands these are"
        )
    return dict(zip(bands, values, strict=True))
