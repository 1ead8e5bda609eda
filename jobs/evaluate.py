"""Evaluate a checkpoint on pairs it has not seen: calibration, energy scores, photometry, and how anomalies rank.

For images of objects it writes metrics.json (scores, calibration and ranking with 95% intervals from drawing pairs
anew), images.parquet, pixels.parquet and scores.parquet, from whose rows the numbers follow, and three plots. With
--anomalies, the pairs are the regular objects and each anomaly score stands beside scores that need no model: central
flux, total flux, 1/flux, and what a smooth leaves. AS-Bridge's own checkpoints (.pth) see the stores of pairs through
its display, white at 3000 nJy (LSST) and 1500 nJy (Euclid) a pixel, and its own 8-bit data sets as they are.

Densities, and whatever else has the stretch log10, are judged by the error of their logarithm: dex.parquet, dex.png,
and `dex` in metrics.json, with intervals from drawing whole simulations anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError
from surveybridge.jobs.running.threads import threads
from surveybridge.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.problem import Direction
    from surveybridge.bridge_core.settings import Sampling, Scoring
    from surveybridge.jobs.evaluating.blocks import Settings
    from surveybridge.storage.objectstore import Folder

log = logging.getLogger(__name__)

EXAMPLES = """\
surveybridge evaluate --pairs pairs/test_regular.zarr --anomalies pairs/test_lens.zarr --out evaluation
surveybridge evaluate --pairs pairs/test_regular.zarr --direction 'lsst->euclid' --limit 64 --samples 5 --out quick
surveybridge evaluate --pairs s3://sky/test.zarr --checkpoint runs/mosaic/bridge --executor ray --workers 8 --out e
surveybridge evaluate --pairs clouds/gravity.zarr --checkpoint runs/clouds/clouds --samples 16 --out gravity"""

BLOCK = 64
"""Pairs of an item of work."""

STAMP = 64
"""The side of a stamp must be a multiple of this: patches have 8 x 8 pixels at scales up to 8."""

OUTPUTS = (
    *("images.parquet", "pixels.parquet", "scores.parquet", "dex.parquet"),
    *("calibration.png", "photometry.png", "anomalies.png", "dex.png"),
)
"""Files that not every evaluation writes: those of an earlier one are deleted."""


class Config(JobConfig):
    """Settings of `surveybridge evaluate`."""

    writes = ("out",)

    pairs: str = Field(description="pair store of regular objects, or of densities, local path or URL")
    out: str = Field(description="folder to write, local path or URL; files of an earlier evaluation are replaced")
    anomalies: str | None = Field(None, description="pair store of anomalies (lenses), for the ranking")
    checkpoint: str | None = Field(None, description="checkpoint path or shipped name (default: the shipped one)")
    direction: str = Field(
        "both", description="direction in quotes, such as 'lsst->euclid'; or both, for every direction"
    )
    samples: int = Field(8, ge=2, description="posterior samples K of each pair")
    steps: int = Field(6, ge=1, description="network evaluations per sample")
    order: int = Field(2, ge=1, le=2, description="order of the sampler")
    eta: float = Field(
        0.0, ge=0, le=1, description="noise of the sampler: 0 for none after the start, 1 for ancestral sampling"
    )
    sigma_max: float = Field(2.0, gt=0, description="noise level of the sampler's second step, network units")
    from_end: bool = Field(
        True,
        description="begin at the bridge's end; use --no-from-end for networks that predict the noise, such as eps",
    )
    score_samples: int = Field(5, ge=2, description="reconstructions K of each object for the anomaly score")
    score_steps: int = Field(8, ge=1, description="network evaluations per reconstruction")
    start: int = Field(
        0, ge=0, description="first row of each store to use, such as the first of the pairs held out from training"
    )
    limit: int | None = Field(None, ge=1, description="number of pairs of each store to use (default: all)")
    seed: int = Field(0, ge=0, description="key of the noise")
    batch: int = Field(16, ge=1, description="stamps in one network call")
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="arithmetic of the network")
    calibrated: bool = Field(
        False, description="stretch samples by the recalibration in the checkpoint's card; without it for a comparison"
    )
    executor: Literal["ray", "serial"] = Field("serial", description="serial in this process, or ray for large sets")
    workers: int = Field(1, ge=1, description="largest number of actors at a time, on Ray")

    @property
    def sampling(self) -> Sampling:
        """How posteriors are sampled."""
        from surveybridge.bridge_core.settings import Sampling

        return Sampling(**self.model_dump(include={field.name for field in fields(Sampling)}))

    @property
    def scoring(self) -> Scoring:
        """How objects are scored."""
        from surveybridge.bridge_core.settings import Scoring

        return Scoring(
            samples=self.score_samples,
            steps=self.score_steps,
            seed=self.seed,
            batch=self.batch,
            precision=self.precision,
        )


def run(config: Config) -> int:
    """Judge, summarise and draw; return 0, or 1 if pairs could not be judged."""
    from surveybridge.jobs.evaluating.blocks import TABLES
    from surveybridge.jobs.evaluating.dex_summary import dex_lines, summarise_dex
    from surveybridge.jobs.evaluating.plots import draw
    from surveybridge.jobs.evaluating.summary import lines_of, summarise
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.parquet import parquet_bytes

    settings, model, nominal = check(config)
    out = Folder.at(config.out)
    parts = [file for name in TABLES for file in settings.parts(name)]
    out.delete_many(parts)  # of an evaluation that failed
    failures = [receipt for receipt in judge(config, settings) if receipt["status"] != "ok"]
    for receipt in failures:
        log.error("%s: %s", receipt["tile_id"], receipt["reason"])
    if failures:
        return 1
    tables = gather(out, settings)
    found: dict[str, Any] = {}
    if settings.directions:
        found |= summarise(tables["images"], tables["pixels"], tables.get("scores"), config.samples)
    if settings.densities:
        wanted = {name: model.card.problem.direction(name).wanted for name in settings.densities}
        units = {name: dict.fromkeys(end.bands, end.unit) for name, end in wanted.items()}
        found["dex"] = summarise_dex(tables["dex"], units)
    document = {
        "checkpoint": {"name": model.card.name, "sha256": model.sha256, "grid": model.card.grid},
        "code_version": __version__,
        "config": config.model_dump(exclude={"storage_options"}, mode="json"),
        "pairs": dict(settings.counts),
        "fluxes_are_nominal": nominal,
        **found,
    }
    files = {f"{name}.parquet": parquet_bytes(table) for name, table in tables.items()} | draw(found, tables)
    for name, content in files.items():
        out.put(content, name)
    out.put_json(document, "metrics.json")
    out.delete_many([*parts, *(name for name in OUTPUTS if name not in files)])
    print(f"{model.card.name} on {settings.counts['pairs']} pairs, {out.file_url('metrics.json')}")
    print("\n".join([*(lines_of(found) if settings.directions else []), *dex_lines(found.get("dex", {}))]))
    return 0


def check(config: Config) -> tuple[Settings, Model, bool]:
    """Read the inputs of the evaluation; refuse what cannot work, before anything is written.

    Returns
    -------
    tuple
        Settings of the stages, the model, and whether fluxes are nominal, those of 8-bit stores.
    """
    from surveybridge.jobs.evaluating.blocks import Settings
    from surveybridge.jobs.evaluating.stages import display_stretch, with_display
    from surveybridge.jobs.translating.request import read_model
    from surveybridge.storage.domain import of_other_pixels
    from surveybridge.storage.objectstore import Folder, configured
    from surveybridge.storage.pairs import NOMINAL, read_ids, read_pairs, read_simulations

    out = Folder.at(config.out)
    if out.is_local and os.path.isfile(out.path()):
        raise RequestError(f"--out {config.out} is a file; give a folder")
    model = read_model(config.checkpoint)
    if model.card.bridge.kind == "seeing":
        raise RequestError(
            f"checkpoint {model.card.name} sharpens images through their own seeing, but evaluate judges pairs as they "
            "are; translate a tile store, or give another checkpoint"
        )
    published, grid = not model.card.physical, model.card.grid  # AS-Bridge's sees the display, not fluxes
    problem = model.card.problem
    stores = {"pairs": config.pairs} | ({} if config.anomalies is None else {"anomalies": config.anomalies})
    wanted = problem.directions if config.direction == "both" else [problem.direction(config.direction)]
    objects, densities = _judged(config, model, wanted)
    for direction in wanted if config.calibrated else ():
        model.card.calibrated(direction)  # refused where it is not
    probes = {
        which: read_pairs(url, grid, stop=1, problem=problem.table, eight_bit=published)
        for which, url in stores.items()
    }
    display = display_stretch(probes["pairs"]) if objects else {}
    model = with_display(model, display)
    for which, probe in probes.items():
        url = stores[which]
        if probe.stored <= config.start:
            raise RequestError(f"{url} has {probe.stored} pairs but --start is {config.start}; give a smaller one")
        for names in (read_ids, read_simulations):
            names(url, 0, 1, problem.table)  # refused where they are not those of the pairs
        if of_other_pixels(probe.pixel_pc, model.card.pixel_pc):
            log.warning(
                "%s: pixels of %.3g pc, but %s was trained on %.3g pc; bring the maps to that, or read the result so",
                url,
                probe.pixel_pc,
                model.card.name,
                model.card.pixel_pc,
            )
        for end in problem.endpoints:
            scale, stamps = probe.pixel_scale[end.name], probe.ends[end.name]
            if scale and end.pixel_scale and abs(scale - end.pixel_scale) > 0.01 * end.pixel_scale:
                raise RequestError(
                    f'{url}: {end.name} pixel scale {scale:.3f}" on the {grid} grid but checkpoint '
                    f'{model.card.name} expects {end.pixel_scale:.3f}"; choose another checkpoint'
                )
            if objects and (stamps.shape[-2] % STAMP or stamps.shape[-1] % STAMP):
                raise RequestError(
                    f"{url}: {end.name} stamps of {stamps.shape[-2]} x {stamps.shape[-1]} pixels, but patches at all "
                    f"scales need multiples of {STAMP}; cut other stamps"
                )
        if published and any(
            abs(noise / probes["pairs"].noise[end][band] - 1) > 0.01
            for end, noises in probe.noise.items()
            for band, noise in noises.items()
        ):
            raise RequestError(
                f"{url} and {config.pairs} state another sky noise, and {model.card.name} sees both through one "
                "display; give stores of one survey"
            )
    settings = Settings(
        checkpoint=config.checkpoint,
        sampling=config.sampling,
        scoring=config.scoring,
        pairs=Folder.at(config.pairs).url,
        anomalies=None if config.anomalies is None else Folder.at(config.anomalies).url,
        grid=grid,
        problem=problem.table,
        directions=tuple(map(str, objects)),
        densities=tuple(map(str, densities)),
        out=out.url,
        threads=threads(config.workers),
        start=config.start,
        counts={
            which: min(probe.stored - config.start, config.limit or probe.stored) for which, probe in probes.items()
        },
        block=BLOCK if objects else max(1, BLOCK * STAMP**2 // probes["pairs"].ends[problem.endpoints[0].name][0].size),
        display=display,
        calibrated=config.calibrated,
        filesystems=configured(),
    )
    stated = {band: sigma for bands in probes["pairs"].noise.values() for band, sigma in bands.items()}
    nominal = stated == {band: numbers["sigma_noise"] for band, numbers in NOMINAL.items()}
    return settings, model, nominal


def _judged(config: Config, model: Model, wanted: Sequence[Direction]) -> tuple[list[Direction], list[Direction]]:
    """Directions to images of objects, and those to quantities that are judged in dex; others are refused."""
    from surveybridge.bridge_core.anomaly import scored_direction

    densities = [direction for direction in wanted if direction.wanted.kind == "log10"]
    objects = [direction for direction in wanted if direction not in densities]
    if config.anomalies is not None or (objects and not (densities and config.direction == "both")):
        scored_direction(model)  # refused where the problem makes maps only
    if model.card.problem.catalog is None:
        objects = []  # without objects only densities can be judged
    if densities and config.calibrated:
        raise RequestError(
            f"--calibrated stretches samples of a flux, but {densities[0].wanted.name} is judged in dex; leave it out"
        )
    return objects, densities


def judge(config: Config, settings: Settings) -> Iterable[dict[str, Any]]:
    """Receipts of all blocks; each has written its rows."""
    from surveybridge.cluster.stages import serially
    from surveybridge.jobs.evaluating.stages import evaluation_stages
    from surveybridge.jobs.running.progress import progress

    blocks, stages = settings.blocks(), evaluation_stages(settings)
    if config.executor == "serial":
        yield from progress(serially(blocks, stages), "evaluate", total=len(blocks), unit="blocks")
        return
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.stream import Stream

    started = start_ray(config.workers)
    try:
        # what ends the loop of the caller ends the stream before Ray
        with contextlib.closing(iter(Stream(blocks, stages, workers=(1, config.workers)))) as receipts:
            yield from progress(receipts, "evaluate", total=len(blocks), unit="blocks")
    finally:
        if started:
            stop_ray()


def gather(out: Folder, settings: Settings) -> dict[str, pa.Table]:
    """Collect the tables of all blocks, in the order of the stores, no matter when and where each was done."""
    import pyarrow as pa

    from surveybridge.storage.parquet import read_parquet

    tables = {}
    for name in settings.tables:
        found = out.read_existing(settings.parts(name))
        table = pa.concat_tables([read_parquet(found[file]) for file in settings.parts(name) if file in found])
        directions = settings.densities if name == "dex" else settings.directions
        tables[name] = table if name == "scores" else _by_direction(table, directions)
    return tables


def _by_direction(table: pa.Table, directions: tuple[str, ...]) -> pa.Table:
    """All rows of one direction, then all of the other, each in the order of the store."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.concat_tables([table.filter(pc.equal(table["direction"], one)) for one in directions]).combine_chunks()
