"""Train a bridge on a pair store, on Ray Train; resumes from its last checkpoint when run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    from surveybridge.storage.objectstore import Folder

EXAMPLES = """\
surveybridge train --pairs pairs/train.zarr --out runs/mosaic --minutes 90
surveybridge train --pairs pairs/train.zarr --out runs/quick --steps 200 --base 16
surveybridge train --pairs pairs/mine.zarr --checkpoint mosaic-v2 --out runs/mine --steps 300
surveybridge train --pairs clouds.zarr --problem clouds.toml --to density --out runs/clouds --minutes 30
surveybridge train --pairs s3://bucket/train.zarr --out s3://bucket/runs/four --workers 4 --minutes 60
surveybridge train --pairs s3://bucket/train.zarr --out s3://bucket/runs/spot --workers 1,8 --minutes 60"""

FREE = ("minutes", "steps", "report_seconds", "report_steps", "patience", "workers", "threads", "accumulate")
"""Settings that may change between resumes; everything else makes another run."""


LATER = {"problem": None, "to": None, "conditions": False, "checkpoint": None}
"""Settings that earlier versions did not have, with the default that does what they did."""

FIT_PAIRS = 256
"""Pairs to which stretch and objective are fitted."""


class Config(JobConfig):
    """Settings of `surveybridge train`."""

    writes = ("out",)

    pairs: str = Field(description="pair store (Zarr group), local path or URL")
    out: str = Field(description="folder or s3:// URL for the checkpoint, loss.csv, loss.png and the run's own state")
    problem: str | None = Field(
        None, description="problem file (TOML) or shipped name (default: the endpoints that the pair store states)"
    )
    to: str | None = Field(
        None, description="train one way only, to this endpoint (default: as the problem says, else both ways)"
    )
    checkpoint: str | None = Field(
        None,
        description="checkpoint path or shipped name whose weights training begins with; its problem, stretch, bridge, "
        "network and objective are kept (default: none)",
    )
    name: str = Field("bridge", description="name of the checkpoint")
    grid: Literal["mosaic", "cutout"] = Field("mosaic", description="pixel grid on which the network works")
    minutes: float | None = Field(None, gt=0, description="training time in minutes, all resumes together")
    steps: int | None = Field(None, gt=0, description="number of training steps, instead of --minutes")
    workers: tuple[int, ...] = Field(
        (1,),
        min_length=1,
        max_length=2,
        description="Ray Train workers: N, or MIN,MAX to take as many as there is room for",
    )
    threads: int = Field(1, ge=1, description="CPUs of each worker")
    base: int = Field(32, ge=8, description="channels of the first stage of the U-Net")
    stem: int = Field(
        2, ge=1, description="side of the pixel blocks that the network sees as one (space to depth); 1 as published"
    )
    norm: Literal["group", "pixel"] = Field("pixel", description="normalisation; group as published")
    conditions: bool | None = Field(
        None,
        description="tell the network noise, PSF and masks of the images (default: if the store states them by pair)",
    )
    objective: Literal["eps", "grad", "maxnll", "edm"] = Field("edm", description="what the network predicts")
    bridge: Literal["brownian", "schrodinger", "diffusion"] = Field("brownian", description="forward process")
    batch_size: int = Field(32, ge=2, description="pairs per step, over all workers; an even number for each shard")
    shards: int = Field(
        8, ge=1, description="parts into which the data are divided for the workers; also the largest number of workers"
    )
    accumulate: int = Field(
        1, ge=1, description="passes in which a single worker takes a batch, to save memory; must divide --shards"
    )
    learning_rate: float = Field(4e-4, gt=0, description="peak learning rate")
    bright_weight: float = Field(
        4.0, ge=0, description="extra weight in the loss of a pixel one network unit above the sky; 0 as published"
    )
    validation: int = Field(
        128, ge=1, description="number of pairs at the end of the store that are kept for validation"
    )
    limit: int | None = Field(
        None, ge=4, description="number of pairs to use, from the start of the store (default: all)"
    )
    report_seconds: float = Field(120.0, gt=0, description="seconds between checkpoints")
    report_steps: int | None = Field(
        None, gt=0, description="steps between checkpoints, in addition to --report-seconds"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many reports in a row that have not lowered the validation energy score",
    )
    seed: int = Field(0, ge=0, description="seed of initialisation, order and noise")


def run(config: Config) -> int:
    """Train, then write NAME.safetensors, NAME.json, loss.csv and loss.png into `out`."""
    import functools
    import hashlib
    import tempfile

    import torch

    from surveybridge.bridge_core.checkpoint import save_checkpoint
    from surveybridge.bridge_core.network import UNet
    from surveybridge.bridge_core.training import TrainState
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.training import Scaling, fit
    from surveybridge.jobs.training.card import asked_problem, make_card, next_card, plot_loss, start_of
    from surveybridge.jobs.training.claim import FILE, check_folder, stated
    from surveybridge.jobs.training.images import ranges_of
    from surveybridge.jobs.training.worker import make_recipe, read_log, train_loop
    from surveybridge.storage.objectstore import Folder, configured
    from surveybridge.storage.pairs import read_all_conditions, read_pairs, states_conditions

    _check(config)
    start = start_of(config.checkpoint, config.model_dump(include=config.model_fields_set))
    problem = asked_problem(config.problem, config.to, config.pairs) if start is None else start.card.problem
    told = states_conditions(config.pairs) if config.conditions is None else config.conditions
    told = told or (start is not None and start.card.network.conditions)
    probe = read_pairs(config.pairs, config.grid, stop=FIT_PAIRS, problem=problem.table, conditions=told)
    available = min(probe.stored, config.limit or probe.stored)
    if available - config.validation < config.shards:
        raise RequestError(
            f"{config.pairs}: {available} pairs to use, but {config.validation} are kept for validation and each of "
            f"{config.shards} shards needs one; give a smaller --validation or more pairs"
        )
    out = Folder.at(config.out)
    settings = config.model_dump() | {"pairs": Folder.at(config.pairs).url, "out": out.url, "available": available}
    settings["conditions"] = told
    if start is not None:
        settings["checkpoint"] = f"{start.card.name}-{start.sha256[:12]}"
    # a setting that is younger than a run is not in its name, where it is left at its default
    identity = {key: value for key, value in settings.items() if key not in FREE and LATER.get(key, ...) != value}
    # Ray Train trains nothing in a finished run of the same name, so a new budget is a new run
    budget = f"{config.minutes}m" if config.minutes else f"{config.steps}s"
    name = hashlib.sha256(json.dumps([identity, budget], sort_keys=True).encode()).hexdigest()[:12]
    if (end := _finished(out, config.name, name)) is not None:
        print(_summary(out, config.name, end))
        return 0
    recipe = asdict(make_recipe(settings))
    card = next_card(settings, start, probe, recipe) if start else make_card(settings, problem, probe, recipe)
    if told:
        seen = read_all_conditions(config.pairs, config.grid, available, problem.table)
        card = replace(card, conditions=ranges_of(card.problem, seen))
    check_folder(out, identity, card.name)
    workers = (min(config.workers), max(config.workers))
    started = start_ray(workers[1] * config.threads)
    try:
        out.put_json(stated(identity), FILE)
        checkpoint = fit(
            # credentials go along with the loop: Ray shows the settings in its dashboard
            functools.partial(train_loop, configured()),
            settings | {"card": card.to_json(), "start": config.checkpoint},
            storage_path=out.path("ray"),
            filesystem=None if out.is_local else out.filesystem,
            name=name,
            scaling=Scaling(workers, config.threads, torch.cuda.is_available()),
        )
        if checkpoint is None:
            raise RuntimeError(f"training left no checkpoint under {out.file_url('ray', name)}")
        with checkpoint.as_directory() as folder, tempfile.TemporaryDirectory() as scratch:
            rows = read_log(Path(folder))
            state = TrainState(UNet(card.network), make_recipe(settings))
            state.load(folder)
            log, plot = Path(scratch, "loss.csv"), Path(scratch, "loss.png")
            log.write_bytes(Path(folder, "loss.csv").read_bytes())
            plot_loss(rows, plot)
            card = replace(card, provenance=card.provenance | {"log_end": rows[-1], "run": name})
            weights = save_checkpoint(card, state.averages[float(rows[-1]["ema_width"])], Path(scratch, config.name))
            for file in (log, plot, weights.with_suffix(".json"), weights):
                out.put(file.read_bytes(), file.name)
    finally:
        if started:
            stop_ray()
    print(_summary(out, config.name, rows[-1]))
    return 0


def _finished(out: Folder, checkpoint: str, run: str) -> dict[str, str] | None:
    """Return the last row of the log of a run whose results are all in `out`; None if something is left to do."""
    results = (f"{checkpoint}.safetensors", f"{checkpoint}.json", "loss.csv", "loss.png")
    if not all(out.exists(name) for name in results):
        return None
    provenance = json.loads(out.read(f"{checkpoint}.json"))["provenance"]
    return provenance["log_end"] if provenance.get("run") == run else None


def _summary(out: Folder, checkpoint: str, end: Mapping[str, str]) -> str:
    """Return what the last row of its log says of a run."""
    return (
        f"{out.file_url(f'{checkpoint}.safetensors')}: {end['step']} steps, {float(end['seconds']) / 60:.1f} minutes, "
        f"loss {end['loss']}, validation {end['validation_loss']}, energy {end['validation_energy']}"
    )


def _check(config: Config) -> None:
    """Refuse settings that contradict each other."""
    if (config.minutes is None) == (config.steps is None):
        raise RequestError(f"give either --minutes or --steps (minutes={config.minutes}, steps={config.steps})")
    fewest, most = config.workers[0], config.workers[-1]
    if not 1 <= fewest <= most:
        raise RequestError(f"--workers {','.join(map(str, config.workers))}: give N, or MIN,MAX with 1 <= MIN <= MAX")
    if most > config.shards:
        raise RequestError(
            f"{most} workers but {config.shards} shards of data, which are dealt to them whole; "
            f"give --workers {config.shards} or fewer, or --shards {most} or more (which makes another run)"
        )
    if config.batch_size % (2 * config.shards):
        raise RequestError(
            f"batch size {config.batch_size} does not divide over {config.shards} shards into an even number of pairs "
            f"each; give a multiple of {2 * config.shards}, or other --shards"
        )
    if config.shards % config.accumulate:
        raise RequestError(
            f"--accumulate {config.accumulate} does not divide the {config.shards} shards; give a divisor of "
            f"{config.shards}"
        )
