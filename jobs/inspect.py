"""Show what FITS files would be read as: HDU, unit, zero point, PSF, noise, sky, mask, WCS, and the domain.

Nothing is written. A file with several images is shown image by image. The band is taken from the FILTER of the
header, or from the name of the HDU; NAME.BAND=FILE says it where neither does. What `ingest` would refuse is shown
with the reason. Exit code 0: all images can be read; 2: at least one is refused, or there is no such file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card
    from surveybridge.storage.inspection import Inspection
    from surveybridge.storage.problems import ProblemTable

SAME_PIXELS = 0.01
"""Share by which pixels may be larger or smaller and are those of the grid, so that nothing is interpolated."""

EXAMPLES = """
  surveybridge inspect vis.fits g.fits r.fits i.fits
  surveybridge inspect "cutout.fits[VIS_BGSUB]" euclid.VIS=s3://bucket/mosaic.fits
  surveybridge inspect --problem hsc-hst.toml acs.fits --format json
  surveybridge inspect --problem clouds-density column.N=perseus_av.fits --factor column.N=2.2e21
"""


class Config(JobConfig):
    """Settings of `surveybridge inspect`."""

    bare_words: ClassVar[str | None] = "file"

    file: tuple[str, ...] = Field(
        min_length=1, description="FITS files or URLs, FILE[EXT] for one HDU, NAME.BAND=FILE to say which band it is"
    )
    problem: str | None = Field(None, description="TOML file of a problem, or a shipped one (default: lsst-euclid)")
    checkpoint: str | None = Field(
        None, description="compare with the domain of this checkpoint's problem, instead of --problem"
    )
    factor: tuple[str, ...] = Field(
        (), description="values of one count as NAME.BAND=NUMBER, of what is no flux, as for ingest"
    )
    no_data: tuple[str, ...] = Field(
        (), description="values in files that mean no data, as NAME.BAND=NUMBER, as for ingest"
    )
    format: Literal["text", "json"] = Field("text", description="lines for a person, or one JSON list")


def run(config: Config) -> int:
    """Print what each image is; 2 if one is refused."""
    from surveybridge.jobs.ingesting.problems import problem_and_card
    from surveybridge.jobs.ingesting.texts import by_end, positive
    from surveybridge.jobs.running.progress import quiet
    from surveybridge.storage.inspection import inspect_file

    problem, card = problem_and_card(config.problem, config.checkpoint)
    numbers = {
        "factor": by_end(config.factor, "--factor", "NUMBER", positive),
        "no_data": by_end(config.no_data, "--no-data", "NUMBER", float),
    }
    for flag, of in (("--factor", numbers["factor"]), ("--no-data", numbers["no_data"])):
        check_named(of, problem, flag)
    with quiet("surveybridge.storage.fits_images"):  # what reading logs is what this prints
        found = [one for path in config.file for one in inspect_file(path, problem, numbers)]
    if card is not None:
        found = [compared(one, card) for one in found]
    if config.format == "json":
        print(json.dumps([one.document() for one in found], indent=1))
    else:
        print("\n\n".join(one.text() for one in found))
    return 2 if any(one.refused for one in found) else 0


def check_named(given: Mapping[str, Mapping[str, float]], problem: ProblemTable, flag: str) -> None:
    """Refuse numbers of a band that the problem does not have."""
    from surveybridge.storage.problems import endpoint

    for name, of in given.items():
        bands = endpoint(problem, name)["bands"]
        for band in of:
            if band not in bands:
                raise RequestError(f"{flag} {name}.{band}: {name} has no band {band}; it has {','.join(bands)}")


def compared(one: Inspection, card: Card) -> Inspection:
    """Add to the domain of an image what its seeing and noise, as they will be on the checkpoint's grid, say of it."""
    from surveybridge.bridge_core.conditions import Conditions
    from surveybridge.storage.domain import with_reasons
    from surveybridge.storage.spline import noise_on_finer_pixels

    if one.reading is None or not one.endpoint:
        return one
    end = card.problem[one.endpoint]
    ratio = end.pixel_scale / one.pixel_scale if end.pixel_scale and one.pixel_scale else 1.0
    ratio = 1.0 if abs(ratio - 1) < SAME_PIXELS else ratio
    noise, correlation = noise_on_finer_pixels(one.reading.noise_sigma, one.noise_correlation, ratio)

    def of_band(value: float) -> tuple[float, ...]:
        return tuple(value if band == one.band else math.nan for band in end.bands)

    seen = Conditions(
        noise=of_band(noise),
        fwhm=of_band(one.reading.psf_fwhm),
        wing=of_band(one.reading.psf_wing),
        correlation=of_band(correlation),
    )
    reasons = card.outside({one.endpoint: seen})
    return replace(one, domain=with_reasons(one.domain, reasons, known=card.conditions is not None) or "")
