"""Simulate pairs for training under many observing conditions, and write them as a pair store.

Scenes with galaxies and stars are observed by LSST and Euclid with other PSFs, depths, noise, registration and defects
each; windows are cut out of them. A share has the conditions of an ideal survey. The pairs follow from the seed,
whichever number of workers draws them; run the same command again to go on after an interruption.
"""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

EXAMPLES = """\
surveybridge simulate-pairs --out pairs/sky.zarr --count 40000
surveybridge simulate-pairs --out pairs/more.zarr --count 100000 --seed 2 --workers 8
surveybridge simulate-pairs --out pairs/wide.zarr --count 8000 --size 128
surveybridge simulate-pairs --out pairs/stamps.zarr --count 8000 --grid cutout
surveybridge simulate-pairs --out pairs/skies.zarr --count 8000 --grid sharp
surveybridge simulate-pairs --out s3://bucket/pairs/sky.zarr --count 512 --executor serial"""


class Config(JobConfig):
    """Settings of `surveybridge simulate-pairs`."""

    writes = ("out",)

    out: str = Field(description="pair store (Zarr group), local path or URL; a table of its pairs lies beside it")
    count: int = Field(gt=0, description="number of pairs")
    grid: Literal["mosaic", "cutout", "sharp"] = Field(
        "mosaic",
        description="mosaic: both surveys on Euclid's pixels, with masks; cutout: complete stamps on their own pixels; "
        "sharp: LSST beside the same sky in its bands, without noise at Euclid's resolution, 96 x 96 pixels",
    )
    size: int | None = Field(
        None,
        ge=32,
        description="side in pixels of the windows of the mosaic grid, up to half of a scene, 256: a network that is "
        "to translate whole tiles should see more than their edges (default: 64)",
    )
    seed: int = Field(0, ge=0, description="seed of everything that is drawn")
    validation: int | None = Field(
        None,
        ge=0,
        description="number of pairs at the end of the store that are stated to be for validation, whole scenes "
        "(default: about a tenth, at most 256)",
    )
    executor: Literal["serial", "ray"] = Field("ray", description="draw in this process, or in Ray tasks")
    workers: int = Field(1, ge=1, description="Ray tasks at a time, each of one CPU")


def run(config: Config) -> int:
    """Draw the pairs that are missing, then finish the store and write the table beside it.

    Returns
    -------
    int
        Exit code 0.
    """
    from surveybridge.jobs.running.blocks import complete
    from surveybridge.jobs.simulating.pair_blocks import begin, spec_of, write_block

    _check_size(config)
    spec = spec_of(config.grid, config.size)
    held_back = _held_back(config, spec.windows)
    writer = begin(config.out, config.count, config.seed, held_back, spec)
    work = functools.partial(write_block, writer, config.seed, spec)
    drawn = complete(writer, work, "simulate-pairs", executor=config.executor, workers=config.workers)
    if drawn is None:
        print(f"{writer.folder.url}: {config.count} pairs, there already")
        return 0
    pairs, seconds = drawn
    print(
        f"{writer.folder.url}: {config.count} pairs, {pairs} of them drawn in {seconds:.0f} s ({pairs / seconds:.1f}/s)"
    )
    return 0


def _check_size(config: Config) -> None:
    """Refuse windows that do not fit the scenes, or the grid."""
    from surveybridge.jobs.simulating.pair_blocks import LARGEST

    if config.size is None:
        return
    if config.grid != "mosaic":
        raise RequestError(f"--size {config.size}, but stamps of --grid {config.grid} have one size; leave it out")
    if config.size > LARGEST:
        raise RequestError(f"--size {config.size}: windows of a scene have up to {LARGEST} pixels a side; give fewer")


def _held_back(config: Config, windows: int) -> int:
    """Return how many pairs are for validation; the scene of none of them has others."""
    if config.validation is None:
        last = -(-(config.count - min(256, config.count // 10)) // windows) * windows
        return max(0, config.count - last)
    kept = config.count - config.validation
    if kept <= 0 or kept % windows:
        nearest = config.count - max(windows, round(kept / windows) * windows)
        raise RequestError(
            f"--validation {config.validation} of {config.count} pairs leaves {kept}, but {windows} pairs are of one "
            f"scene; " + (f"give {nearest}" if nearest >= 0 else f"give a --count of at least {windows}")
        )
    return config.validation
