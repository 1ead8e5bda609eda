"""Train a bridge on a pair store or a tile store, on Ray Train; resumes from its last checkpoint when run again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.problem import Problem
    from surveybridge.jobs.cutting.cut import Source

EXAMPLES = """\
surveybridge train --pairs pairs/train.zarr --out runs/mosaic --minutes 90
surveybridge train --pairs pairs/train.zarr --out runs/quick --steps 200 --base 16
surveybridge train --store tiles --out runs/mine --minutes 90
surveybridge train --store tiles --checkpoint mosaic-v3 --limit 2000 --out runs/tuned --steps 300
surveybridge train --pairs pairs/train.zarr --bridge diffusion --generate lsst euclid --out runs/galaxies --minutes 60
surveybridge train --pairs clouds.zarr --problem clouds.toml --to density --out runs/clouds --minutes 30
surveybridge train --pairs s3://bucket/train.zarr --out s3://bucket/runs/four --workers 4 --minutes 60
surveybridge train --pairs s3://bucket/train.zarr --out s3://bucket/runs/spot --workers 1,8 --minutes 60"""

FREE = ("minutes", "steps", "report_seconds", "report_steps", "patience", "workers", "threads", "accumulate")
"""Settings that may change between resumes; everything else makes another run."""


LATER: dict[str, Any] = {
    **{"problem": None, "to": None, "conditions": False, "checkpoint": None},
    **{"store": None, "hold_back": 0.1, "hold_back_order": None},
    **{"crop": None, "rescale": 0.0},
    **{"generate": (), "properties": ()},
    **{"end_share": 0.0, "end_noise": 0.0, "clean_input": True, "broadcast": True},
}
"""Settings that earlier versions did not have, with the default that does what they did."""

FIT_PAIRS = 256
"""Pairs to which stretch and objective are fitted."""

RATE, FURTHER_RATE = 4e-4, 1e-4
"""Peak learning rate from random weights, and from those of a checkpoint (docs/notes/2026-11-28-own-model.md)."""

PAIRS = "pairs.zarr"
"""Pair store below `out`, where pairs are cut from a tile store."""


class Config(JobConfig):
    """Settings of `surveybridge train`."""

    writes = ("out",)

    out: str = Field(description="folder or s3:// URL for the checkpoint, loss.csv, loss.png and the run's own state")
    pairs: str | None = Field(None, description="pair store (Zarr group), local path or URL; or give --store")
    store: str | None = Field(
        None, description="tile store, local path or URL, from which pairs are cut into OUT/pairs.zarr first"
    )
    problem: str | None = Field(
        None, description="problem file (TOML) or shipped name (default: the endpoints that the store states)"
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
    objective: Literal["eps", "grad", "maxnll", "i2sb", "edm", "wiener"] = Field(
        "edm", description="what the network predicts; wiener with --bridge seeing"
    )
    bridge: Literal["brownian", "schrodinger", "diffusion", "regression", "seeing"] = Field(
        "brownian",
        description="forward process; regression is none: one answer, for comparison (with --objective grad); seeing "
        "is physics, learnt from sharp skies alone (with --objective wiener)",
    )
    generate: tuple[str, ...] = Field(
        (),
        description="train a generator: endpoints whose stamps it makes together from noise, with no observed image; "
        "with --bridge diffusion (default: translate)",
    )
    properties: tuple[Literal["magnitude", "size", "colour", "redshift"], ...] = Field(
        (),
        description="what a generator may be asked for, each known of the object in the middle by the table beside the "
        "pairs (AB mag, half-light radius in arcsec, mag, redshift)",
    )
    end_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the states that lie at the bridge's end with nothing of the wanted image in them, where "
        "samples then begin; edm only (default: that of --checkpoint, else 0.1 of a network that is told conditions, "
        "0 of others)",
    )
    end_noise: float = Field(
        0.0,
        ge=0,
        description="standard deviation, in network units, of noise by which the bridge's end differs from the "
        "observed image, in training and in every sample; 0.1 as published for clouds (M1), 0 without",
    )
    clean_input: bool = Field(
        True,
        description="show the network the observed image beside the state of the bridge (M2); without it, only the "
        "state tells of it",
    )
    broadcast: bool = Field(
        True,
        description="repeat a wanted end of fewer planes than the other in all channels, whose mean is the result "
        "(M0); without it, it is the first, and the others go to 0",
    )
    batch_size: int = Field(32, ge=2, description="pairs per step, over all workers; an even number for each shard")
    shards: int = Field(
        8, ge=1, description="parts into which the data are divided for the workers; also the largest number of workers"
    )
    accumulate: int = Field(
        1, ge=1, description="passes in which a single worker takes a batch, to save memory; must divide --shards"
    )
    learning_rate: float | None = Field(
        None, gt=0, description=f"peak learning rate (default: {RATE:g}, with --checkpoint {FURTHER_RATE:g})"
    )
    bright_weight: float = Field(
        4.0, ge=0, description="extra weight in the loss of a pixel one network unit above the sky; 0 as published"
    )
    crop: int | None = Field(
        None,
        ge=16,
        description="side in pixels of the part of a pair that a step sees, such as 32: more objects a second where "
        "most of a pair is sky; finish with whole pairs, of which the network else makes too much (default: all of it)",
    )
    rescale: float = Field(
        0.0,
        ge=0,
        description="width in dex of a random factor with which the values of each pair are multiplied at every step, "
        "where the problem states their scaling: the unit of density of clouds without gravity is free (default: none)",
    )
    validation: int | None = Field(
        None,
        ge=1,
        description="number of pairs kept for validation: of those that the store holds back, else from its end "
        "(default: 128, or as many as are held back)",
    )
    limit: int | None = Field(
        None, ge=4, description="number of pairs to use, those for validation included (default: all)"
    )
    hold_back: float = Field(0.1, gt=0, lt=1, description="share of the sky that --store holds back for validation")
    hold_back_order: int | None = Field(
        None, ge=2, le=27, description="HEALPix order of its cells (default: of cells 8 to 16 windows wide)"
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
    from surveybridge.jobs.training.card import asked_problem, end_share_of, make_card, next_card, plot_loss, start_of
    from surveybridge.jobs.training.claim import FILE, check_folder, stated
    from surveybridge.jobs.training.data import check_crop, check_start, split_of
    from surveybridge.jobs.training.generators import fit_generation
    from surveybridge.jobs.training.images import joined_ranges, ranges_of
    from surveybridge.jobs.training.memory import worker_bytes
    from surveybridge.jobs.training.outcome import finished, summary
    from surveybridge.jobs.training.worker import make_recipe, read_log, train_loop
    from surveybridge.storage.objectstore import Folder, configured
    from surveybridge.storage.pairs import read_all_conditions, read_pairs, states_conditions

    _check(config)
    start = start_of(config.checkpoint, config.model_dump(include=config.model_fields_set))
    out = Folder.at(config.out)
    settings = config.model_dump() | {"out": out.url}
    settings["learning_rate"] = config.learning_rate or (RATE if start is None else FURTHER_RATE)
    if "seeing" in (config.bridge, start and start.card.bridge.kind) or config.generate:
        settings["bright_weight"] = 0.0  # the loss follows the light already, or nothing is observed that would tell
    if config.generate:
        settings["noise_known"] = True  # a generator of earlier versions had to learn the sky, and cannot go on here
    if start is not None:
        settings["checkpoint"] = f"{start.card.name}-{start.sha256[:12]}"
    source = None if config.store is None else _source(config, start)
    url = out.file_url(PAIRS) if source is not None else Folder.at(str(config.pairs)).url
    # pairs that are cut here state the conditions of each
    told = (source is not None or states_conditions(url)) if config.conditions is None else config.conditions
    told = not config.generate and (told or (start is not None and start.card.network.conditions))
    settings |= {
        "pairs": url,
        "conditions": told,
        "end_share": end_share_of(config.end_share, config.objective, start, told=told),
    }
    if source is None:
        settings |= split_of(url, config.limit, config.validation, config.shards)
    # a setting that is younger than a run is not in its name, where it is left at its default
    identity = {key: value for key, value in settings.items() if key not in FREE and LATER.get(key, ...) != value}
    if source is not None:
        # which pairs these are follows from the tiles and the settings
        identity = {key: value for key, value in identity.items() if key != "pairs"} | source.identity
    # Ray Train trains nothing in a finished run of the same name, so a new budget is a new run
    budget = f"{config.minutes}m" if config.minutes else f"{config.steps}s"
    name = hashlib.sha256(json.dumps([identity, budget], sort_keys=True).encode()).hexdigest()[:12]
    if (end := finished(out, config.name, name)) is not None:
        print(summary(out, config.name, end))
        return 0
    check_folder(out, identity, config.name)
    if source is not None:
        _cut(config, source, url)
        settings |= split_of(url, None, config.validation, config.shards)
    problem = asked_problem(config.problem, config.to, url) if start is None else start.card.problem
    _check_rescale(config, problem)
    available = settings["available"]
    probe = read_pairs(url, config.grid, stop=min(FIT_PAIRS, available), problem=problem.table, conditions=told)
    recipe = {key: value for key, value in asdict(make_recipe(settings)).items() if LATER.get(key, ...) != value}
    if start is None:
        generation = None
        if config.generate:
            training = available - settings["validation"]
            generation = fit_generation(problem, config.generate, config.properties, probe, url, training)
        card = make_card(settings, problem, probe, recipe, generation)
    else:
        check_start(start, probe)
        card = next_card(settings, start, probe, recipe)
    check_crop(config.crop, card, probe)
    if told:
        seen = ranges_of(card.problem, read_all_conditions(url, config.grid, available, problem.table))
        # a network that was told them before still knows the others
        before = start.card.conditions if start is not None and start.card.network.conditions else None
        card = replace(card, conditions=joined_ranges(before, seen))
    workers = (min(config.workers), max(config.workers))
    started = start_ray(workers[1] * config.threads)
    try:
        out.put_json(stated(identity), FILE)
        checkpoint = fit(
            # credentials go along with the loop: Ray shows the settings in its dashboard
            functools.partial(train_loop, configured()),
            settings | {"card": card.to_json(), "start": from_anywhere(config.checkpoint)},
            storage_path=out.path("ray"),
            filesystem=None if out.is_local else out.filesystem,
            name=name,
            scaling=Scaling(
                workers,
                config.threads,
                torch.cuda.is_available(),
                memory=worker_bytes(card, settings, probe.ends[problem.endpoints[0].name].shape[-1], workers[0]),
            ),
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
    print(summary(out, config.name, rows[-1]))
    return 0


def _check_rescale(config: Config, problem: Problem) -> None:
    """Refuse to multiply pairs of a problem that does not say how its ends scale."""
    fixed = [end.name for end in problem.endpoints if not end.scaling]
    if config.rescale and fixed:
        raise RequestError(
            f"--rescale {config.rescale:g}, but problem {problem.name} does not state the scaling of "
            f"{' and '.join(fixed)}; state it in the problem's file, or leave --rescale out"
        )


def _source(config: Config, start: Model | None) -> Source:
    """Open the tile store to train on; refuse one that does not fit the problem or the checkpoint."""
    from surveybridge.jobs.cutting.cut import open_source
    from surveybridge.storage.problems import read_problem

    if config.grid != "mosaic":
        raise RequestError(f"--grid is {config.grid}, but {config.store} holds tiles of the mosaic grid; give that")
    if start is None:
        return open_source(str(config.store), None if config.problem is None else read_problem(config.problem))
    source = open_source(str(config.store), start.card.problem.table)
    for end in start.card.problem.endpoints:
        end.check(end.bands, end.image_unit, source.scale, what=source.store.url, model=start.card.name)
    return source


def _cut(config: Config, source: Source, url: str) -> None:
    """Cut the pairs of a training."""
    from surveybridge.jobs.cutting.cut import cut_pairs
    from surveybridge.jobs.cutting.windows import Cutting
    from surveybridge.jobs.running.progress import progress
    from surveybridge.storage.held_back import HeldBack, order_of

    order = config.hold_back_order or order_of(Cutting.size * source.scale)
    how = Cutting(HeldBack(config.hold_back, order, config.seed), count=config.limit, seed=config.seed)
    least = config.shards, config.validation or 1
    cut_pairs(source, url, how, least, lambda items, what, _: progress(items, what, unit="parts"))


def from_anywhere(checkpoint: str | None) -> str | None:
    """Return a checkpoint's name or path for workers, which run in folders of their own."""
    from surveybridge.bridge_core.checkpoint import shipped_checkpoints

    if checkpoint is None or checkpoint in shipped_checkpoints():
        return checkpoint
    return str(Path(checkpoint).absolute())


def _check(config: Config) -> None:
    """Refuse settings that contradict each other."""
    from surveybridge.jobs.training.asked import check_generator

    if (config.pairs is None) == (config.store is None):
        raise RequestError(f"give either --pairs or --store (pairs={config.pairs}, store={config.store})")
    if (config.minutes is None) == (config.steps is None):
        raise RequestError(f"give either --minutes or --steps (minutes={config.minutes}, steps={config.steps})")
    if config.bridge == "regression" and config.objective != "grad":
        raise RequestError(
            f"--bridge regression has one step and no noise, but --objective {config.objective} predicts noise or "
            "scales by it; give --objective grad"
        )
    if (config.bridge == "seeing") != (config.objective == "wiener"):
        raise RequestError(
            f"--bridge {config.bridge} with --objective {config.objective}: what seeing leaves to learn is the part "
            "beyond the Wiener filter, and nothing else has that; give --bridge seeing --objective wiener, or neither"
        )
    if config.bridge == "seeing" and (config.crop is not None or config.rescale):
        which = f"--crop {config.crop}" if config.crop is not None else f"--rescale {config.rescale:g}"
        raise RequestError(f"{which}, but skies of --bridge seeing are seen whole and in their own units; leave it out")
    check_generator(config.model_dump())
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
    if config.objective == "edm" or config.bridge == "diffusion":
        # edm takes the bridge's end out of the state that the network sees, and a diffusion does not lead to it
        which = "--objective edm" if config.objective == "edm" else "--bridge diffusion"
        if not config.clean_input:
            raise RequestError(
                f"--no-clean-input, but with {which} the network's other input has nothing of the observed image; "
                "leave one of them out"
            )
        if config.end_noise:
            raise RequestError(
                f"--end-noise {config.end_noise:g}, but with {which} the network sees nothing of the bridge's end; "
                "leave one of them out"
            )
    if config.shards % config.accumulate:
        raise RequestError(
            f"--accumulate {config.accumulate} does not divide the {config.shards} shards; give a divisor of "
            f"{config.shards}"
        )
