"""Run the whole chain on a simulated field: simulate, ingest, translate, query, and a figure of the result."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

log = logging.getLogger(__name__)

EXAMPLES = """\
surveybridge demo --out demo
surveybridge demo --out demo --size 600 --lenses 2 --samples 4 --seed 11"""


class Config(JobConfig):
    """Settings of `surveybridge demo`."""

    writes = ("out",)

    out: str = Field(
        "demo", description="folder for the field, tile store, run and figures (an earlier demo there is replaced)"
    )
    size: int = Field(1024, ge=300, description="side of the field, Euclid pixels of 0.1 arcsec")
    lenses: int = Field(4, ge=0, description="strong lenses in the field")
    seed: int = Field(3, ge=0, description="seed of the sky and of the noise")
    samples: int = Field(8, ge=2, description="posterior samples of each patch")
    steps: int = Field(6, ge=1, description="network evaluations per sample")
    workers: int = Field(2, ge=1, description="Ray actors")
    checkpoint: str | None = Field(None, description="checkpoint path or shipped name (default: the shipped one)")
    top: int = Field(10, ge=1, description="candidates to print and circle")


def run(config: Config) -> int:
    """Do every stage in turn; the exit code is the translation's."""
    from surveybridge.jobs import ingest, query, simulate, translate
    from surveybridge.jobs.drawing.panel import draw_candidates, draw_panel
    from surveybridge.jobs.simulating.observing import INSTRUMENTS

    out = Path(config.out)
    field, store, folder = out / "field", out / "tiles.zarr", out / "run"
    if out.exists() and not (out.is_dir() and set(os.listdir(out)) <= {"field", "tiles.zarr", "run", *FIGURES}):
        raise RequestError(f"{out} holds files that no demo wrote; give another --out")
    for earlier in (field, store, folder):
        shutil.rmtree(earlier, ignore_errors=True)
    times: dict[str, float] = {}
    with _stage("simulate", times):
        simulate.run(
            simulate.Config(out=str(field), size=config.size, lenses=config.lenses, seed=config.seed, overwrite=True)
        )
    with _stage("ingest", times):
        bands = tuple(str(field / f"lsst_{band}.fits") for band in "gri")
        # headers state widths alone, and light is compared where the wings are known too
        psfs = {one.band: f"gaussian:{one.psf_fwhm:g}" for one in INSTRUMENTS}
        ingest.run(
            ingest.Config(
                euclid=str(field / "euclid_vis.fits"),
                lsst=bands,
                store=str(store),
                lsst_psf=tuple(psfs[band] for band in "gri"),
                euclid_psf=psfs["VIS"],
            )
        )
    with _stage("translate", times):
        code = translate.run(
            translate.Config(
                store=str(store),
                run=str(folder),
                checkpoint=config.checkpoint,
                samples=config.samples,
                steps=config.steps,
                workers=config.workers,
                seed=config.seed,
            )
        )
    with _stage("query", times):
        query.run(query.Config(run=str(folder), top=config.top))
    with _stage("figures", times):
        truth = field / "truth.parquet"
        draw_panel(str(folder), str(store), out / FIGURES[0], truth, config.top)
        draw_candidates(str(folder), out / FIGURES[1], config.top)
    print(f"{out / FIGURES[0]}: both surveys, translation, uncertainty, candidates")
    print(f"{out / FIGURES[1]}: the top {config.top} candidates")
    print("where the time went: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in times.items()))
    return code


FIGURES = ("demo.png", "candidates.png")


@contextmanager
def _stage(name: str, times: dict[str, float]) -> Iterator[None]:
    log.info("demo: %s", name)
    start = time.monotonic()
    yield
    times[name] = time.monotonic() - start
