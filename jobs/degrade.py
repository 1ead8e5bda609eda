"""Show a tile store as it would be through a worse seeing, or with more noise.

Every band is convolved to the wider PSF that is asked for. Then noise is added, so that the noise of the result has the
spectrum of the noise before, at the level that is asked for. The result is another tile store of the same fields and
tiles, with the PSF, variance and masks of the new images, which `translate` and all other jobs take. So a survey can be
seen on a worse night, or after fewer years, without simulating a sky.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError
from surveybridge.jobs.ingesting.texts import by_end, positive, profile_of_text

if TYPE_CHECKING:
    from surveybridge.jobs.degrading.worse import Worse

EXAMPLES = """\
surveybridge degrade --store tiles --out bad-night --psf lsst.g=1.2 lsst.r=1.1 lsst.i=1.1
surveybridge degrade --store tiles --out first-year --noise lsst.g=3.16 lsst.r=3.16 lsst.i=3.16
surveybridge degrade --store tiles --out wings --psf lsst.i=moffat:1.0,2.5 --noise lsst.i=1.5 --seed 7"""


class Config(JobConfig):
    """Settings of `surveybridge degrade`."""

    writes = ("out",)

    named_values: ClassVar[tuple[str, ...]] = ("psf", "noise")

    store: str = Field(description="tile store, local path or s3:// URL")
    out: str = Field(description="tile store to write, another one: new, or one to which the fields are added")
    psf: tuple[str, ...] = Field(
        (),
        description="PSFs as NAME.BAND=PSF, endpoint and band: a FWHM in arcsec (a Gaussian), gaussian:FWHM, "
        "moffat:FWHM,BETA or kolmogorov:FWHM, wider than those of the images (default: as they are)",
    )
    noise: tuple[str, ...] = Field(
        (),
        description="noise of a pixel as NAME.BAND=FACTOR of what it is, 1 or more (default: 1, as deep as before)",
    )
    seed: int = Field(0, ge=0, description="seed of the noise that is added")
    wait: float = Field(0.0, ge=0, description="seconds to wait for another process that writes into --out to end")


def run(config: Config) -> int:
    """Write the store, and say what is in it."""
    from surveybridge.jobs.degrading.stores import Degradation
    from surveybridge.jobs.running.progress import progress
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.tiles import TileStore

    log, start = logging.getLogger(__name__), time.monotonic()
    worse, store = asked(config), TileStore.open(config.store)
    if Folder.at(config.out).url == store.url:
        raise RequestError(f"--out {config.out} is the store that is read; give another one")
    found = Degradation.of(store, worse)
    tiles = found.put(
        TileStore.create(config.out),
        config.wait,
        lambda tiles, field, count: progress(tiles, f"degrade {field}", count),
    )
    log.info("%d tiles in %s, %.1f s", tiles, config.out, time.monotonic() - start)
    return 0


def asked(config: Config) -> Worse:
    """What the images are to become, as the settings say; RequestError if they make no sense."""
    from surveybridge.jobs.degrading.worse import Worse

    if not (config.psf or config.noise):
        raise RequestError("nothing would change; give --psf NAME.BAND=PSF, --noise NAME.BAND=FACTOR or both")
    noise = by_end(config.noise, "--noise", "FACTOR", positive)
    for end, bands in noise.items():
        for band, factor in bands.items():
            if factor < 1:
                raise RequestError(f"--noise {end}.{band}={factor:g}: noise is added, never taken away; give 1 or more")
    return Worse(by_end(config.psf, "--psf", "PSF", profile_of_text), noise, config.seed)
