"""Simulate molecular clouds, and write what is seen of them, and their densities and fields, as a pair store.

Isothermal magnetised gas in a periodic box of 4 pc is driven, collapses or collides; its snapshots are seen along three
axes and from five random sides, as they are and as telescopes would see them. All follows from the seed, whichever
number of workers simulates; run the same command again to go on after an interruption.
"""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

EXAMPLES = """\
surveybridge simulate-clouds --out clouds/id.zarr --suite id --workers 8
surveybridge simulate-clouds --out clouds/gravity.zarr --suite ood-gravity
surveybridge simulate-clouds --out clouds/null.zarr --suite null --cells 32 --executor serial
surveybridge simulate-clouds --out s3://bucket/clouds/id.zarr --suite id --cells 128 --simulations 60 --device cuda"""


class Config(JobConfig):
    """Settings of `surveybridge simulate-clouds`."""

    writes = ("out",)

    out: str = Field(description="pair store (Zarr group), local path or URL; a table of its pairs lies beside it")
    suite: Literal["id", "ood-field", "ood-gravity", "ood-collision", "null"] = Field(
        description="id: driven turbulence, the last fifth of the simulations for validation; ood-field: weaker and "
        "stronger fields; ood-gravity: collapse; ood-collision: two streams; null: fractional Brownian, no simulation",
    )
    cells: int = Field(64, ge=16, le=1024, description="cells of the box along a side, which are pixels of the maps")
    simulations: int | None = Field(
        None, ge=1, description="number of simulations (default: 30 of id, 12 of null, 4 of the others)"
    )
    seed: int = Field(0, ge=0, description="seed of everything that is random")
    device: Literal["cpu", "cuda"] = Field("cpu", description="what simulates; their results differ by rounding")
    compile: bool = Field(
        False,
        description="compile the solver first, which takes a C++ compiler and a minute a worker, and simulate twice as "
        "fast; results differ by rounding",
    )
    executor: Literal["serial", "ray"] = Field("ray", description="simulate in this process, or in Ray tasks")
    workers: int = Field(1, ge=1, description="Ray tasks at a time, each of one CPU and, with --device cuda, one GPU")


def run(config: Config) -> int:
    """Simulate what is missing, then finish the store and write the table beside it.

    Returns
    -------
    int
        Exit code 0.
    """
    from surveybridge.jobs.clouds.blocks import begin, write_block
    from surveybridge.jobs.clouds.suites import SUITES
    from surveybridge.jobs.running.blocks import complete

    if config.device == "cuda" and config.executor == "serial":
        _check_cuda()
    if config.compile and config.executor == "serial":
        _check_compiler()
    count = config.simulations or SUITES[config.suite].simulations
    writer = begin(config.out, config.suite, count, config.cells, config.seed, config.device, compiled=config.compile)
    said = f"{writer.folder.url}: {writer.layout.count} pairs of {count} simulations"
    made = complete(
        writer,
        functools.partial(write_block, writer),
        "simulate-clouds",
        executor=config.executor,
        workers=config.workers,
        gpus=1 if config.device == "cuda" else 0,
        unit="simulations",
    )
    if made is None:
        print(f"{said}, there already")
        return 0
    pairs, seconds = made
    print(f"{said}, {pairs} of them made in {seconds:.0f} s")
    return 0


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise RequestError(
            f"--compile, but torch finds no C++ compiler ({' '.join(str(error).split())}); install g++, or leave it out"
        ) from error


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise RequestError("--device cuda, but this machine has no GPU that torch can use; give --device cpu")
