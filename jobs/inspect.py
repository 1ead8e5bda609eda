"""Show what FITS files would be read as: HDU, unit, zero point, PSF, noise, sky, mask, WCS, and the domain.

Nothing is written. A file with several images is shown image by image. The band is taken from the FILTER of the
header, or from the name of the HDU; NAME.BAND=FILE says it where neither does. What `ingest` would refuse is shown
with the reason. Exit code 0: all images can be read; 2: at least one is refused, or there is no such file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    from surveybridge.storage.problems import ProblemTable

EXAMPLES = """
  surveybridge inspect vis.fits g.fits r.fits i.fits
  surveybridge inspect "cutout.fits[VIS_BGSUB]" euclid.VIS=s3://bucket/mosaic.fits
  surveybridge inspect --problem hsc-hst.toml acs.fits --format json
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
    format: Literal["text", "json"] = Field("text", description="lines for a person, or one JSON list")


def run(config: Config) -> int:
    """Print what each image is; 2 if one is refused."""
    from surveybridge.jobs.running.progress import quiet
    from surveybridge.storage.inspection import inspect_file

    problem = problem_of(config)
    with quiet("surveybridge.storage.fits_images"):  # what reading logs is what this prints
        found = [one for path in config.file for one in inspect_file(path, problem)]
    if config.format == "json":
        print(json.dumps([one.document() for one in found], indent=1))
    else:
        print("\n\n".join(one.text() for one in found))
    return 2 if any(one.refused for one in found) else 0


def problem_of(config: Config) -> ProblemTable:
    """Return the problem whose bands, units and pixel scales are expected."""
    from surveybridge.storage.problems import default_problem, described, read_problem

    if config.checkpoint is not None:
        if config.problem is not None:
            raise RequestError(
                f"--checkpoint {config.checkpoint} has a problem of its own; leave out --problem {config.problem}"
            )
        from surveybridge.bridge_core.checkpoint import load_checkpoint

        return described(load_checkpoint(config.checkpoint).card.problem.table)
    return default_problem() if config.problem is None else read_problem(config.problem)
