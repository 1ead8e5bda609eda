"""Make pairs from noise with a generator, and write them as a pair store, as many as are wanted.

Both stamps of a pair are drawn together. Each pair follows from the seed and its number, whichever others are drawn;
run the same command again to go on after an interruption. The table beside the store says what was asked for.
"""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig

EXAMPLES = """\
surveybridge generate --checkpoint runs/galaxies/bridge --count 10000 --out pairs/made.zarr
surveybridge generate --checkpoint runs/galaxies/bridge --count 100 --out pairs/faint.zarr --magnitude 25 --size 0.2
surveybridge generate --checkpoint runs/galaxies/bridge --count 50000 --out s3://bucket/made.zarr --workers 8"""


class Config(JobConfig):
    """Settings of `surveybridge generate`."""

    writes = ("out",)

    checkpoint: str = Field(description="checkpoint of a generator: path or shipped name")
    count: int = Field(gt=0, description="number of pairs")
    out: str = Field(description="pair store (Zarr group), local path or URL; a table of its pairs lies beside it")
    steps: int = Field(20, ge=2, description="network evaluations of a pair")
    seed: int = Field(0, ge=0, lt=2**64, description="seed of the noise from which they are made")
    magnitude: float | None = Field(
        None, description="AB magnitude of the object in the middle, as the training's table has it (default: any)"
    )
    size: float | None = Field(None, gt=0, description="its half-light radius in arcsec (default: any)")
    colour: float | None = Field(None, description="its colour in magnitudes, such as g - i (default: any)")
    redshift: float | None = Field(None, ge=0, description="its redshift (default: any)")
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="arithmetic of the network")
    executor: Literal["serial", "ray"] = Field("ray", description="draw in this process, or in Ray tasks")
    workers: int = Field(1, ge=1, description="Ray tasks at a time, each of one CPU")


def run(config: Config) -> int:
    """Draw the pairs that are missing, then finish the store and write the table beside it.

    Returns
    -------
    int
        Exit code 0.
    """
    from surveybridge.jobs.generating.blocks import Asked, begin, write_block
    from surveybridge.jobs.generating.checkpoint import read_generator
    from surveybridge.jobs.running.blocks import complete

    names = ("magnitude", "size", "colour", "redshift")
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    model = read_generator(config.checkpoint)
    asked = Asked(config.checkpoint, model.sha256, config.seed, config.steps, config.precision, given)
    writer = begin(model, asked, config.out, config.count)
    work = functools.partial(write_block, writer, asked)
    drawn = complete(writer, work, "generate", executor=config.executor, workers=config.workers)
    if drawn is None:
        print(f"{writer.folder.url}: {config.count} pairs, there already")
        return 0
    pairs, seconds = drawn
    print(
        f"{writer.folder.url}: {config.count} pairs, {pairs} of them drawn in {seconds:.0f} s ({pairs / seconds:.1f}/s)"
    )
    return 0
