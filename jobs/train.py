"""Train a bridge on a pair store, on Ray Train; resumes from its last checkpoint when run again."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    import torch

    from bridge_core.checkpoint import Card
    from cluster.training import Session
    from storage.pairs import Pairs

EXAMPLES = """\
surveybridge train --pairs pairs/train.zarr --out runs/mosaic --minutes 90
surveybridge train --pairs pairs/train.zarr --out runs/quick --steps 200 --base 16
surveybridge train --pairs s3://bucket/train.zarr --out runs/two --workers 2 --minutes 60"""

LOSS_COLUMNS = ("step", "seconds", "pairs", "loss", "validation_loss", "learning_rate", "gradient_norm")


class Config(JobConfig):
    """Arguments of `surveybridge train`."""

    pairs: str = Field(description="pair store (Zarr group), local path or URL")
    out: str = Field(description="folder for the checkpoint, loss.csv, loss.png and the run's own state")
    name: str = Field("bridge", description="name of the checkpoint")
    grid: Literal["mosaic", "cutout"] = Field("mosaic", description="pixel grid the network works on")
    minutes: float | None = Field(None, gt=0, description="training time, minutes; over all resumes together")
    steps: int | None = Field(None, gt=0, description="training steps, alternative to minutes")
    workers: int = Field(1, ge=1, description="Ray Train workers")
    threads: int = Field(1, ge=1, description="CPUs of each worker")
    base: int = Field(32, ge=8, description="channels of the first stage of the U-Net")
    stem: int = Field(2, ge=1, description="pixel block taken together by the network (space to depth); 1 as published")
    norm: Literal["group", "pixel"] = Field("pixel", description="normalisation; group as published")
    objective: Literal["eps", "grad", "maxnll", "edm"] = Field("edm", description="what the network predicts")
    bridge: Literal["brownian", "schrodinger", "diffusion"] = Field("brownian", description="forward process")
    batch_size: int = Field(32, ge=2, description="pairs a step, over all workers")
    learning_rate: float = Field(4e-4, gt=0, description="peak learning rate")
    validation: int = Field(128, ge=1, description="pairs at the end of the store kept for validation")
    limit: int | None = Field(None, ge=4, description="use only the first so many pairs")
    report_seconds: float = Field(120.0, gt=0, description="seconds between checkpoints")
    seed: int = Field(0, ge=0, description="seed of initialisation, order and noise")


def run(config: Config) -> int:
    """Train, then write NAME.safetensors, NAME.json, loss.csv and loss.png into `out`."""
    import torch

    from bridge_core.checkpoint import save_checkpoint
    from bridge_core.network import UNet
    from bridge_core.training import TrainState
    from cluster.connect import start_ray, stop_ray
    from cluster.training import fit
    from storage.pairs import read_pairs

    if (config.minutes is None) == (config.steps is None):
        raise RequestError(f"give either --minutes or --steps (minutes={config.minutes}, steps={config.steps})")
    if config.batch_size % config.workers or config.batch_size < 2 * config.workers:
        raise RequestError(
            f"batch size {config.batch_size} does not divide over {config.workers} workers into 2 pairs or more each; "
            "give a multiple"
        )
    probe = read_pairs(config.pairs, config.grid, limit=4)
    available = min(probe.stored, config.limit or probe.stored)
    if available <= config.validation:
        raise RequestError(
            f"{config.pairs}: {available} pairs to use, but {config.validation} are kept for validation; "
            "give a smaller --validation or more pairs"
        )
    out = Path(config.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    settings = config.model_dump() | {"pairs": _absolute(config.pairs), "out": str(out)}
    # these may change between resumes, everything else makes another run
    identity = {
        k: v for k, v in settings.items() if k not in ("minutes", "steps", "report_seconds", "workers", "threads")
    }
    # Ray Train trains nothing in a finished run of the same name, so a new budget is a new run
    budget = f"{config.minutes}m" if config.minutes else f"{config.steps}s"
    name = hashlib.sha256(json.dumps([identity, budget], sort_keys=True).encode()).hexdigest()[:12]
    started = start_ray(config.workers * config.threads)
    try:
        folder = fit(
            train_loop,
            settings,
            storage_path=str(out / "ray"),
            name=name,
            workers=config.workers,
            cpus_per_worker=config.threads,
            use_gpu=torch.cuda.is_available(),
        )
    finally:
        if started:
            stop_ray()
    if folder is None:
        raise RuntimeError(f"training left no checkpoint under {out / 'ray' / name}")
    rows = read_log(folder)
    card = make_card(settings, probe, {"log_end": rows[-1]})
    state = TrainState(UNet(card.network), make_recipe(settings))
    state.load(folder)
    weights = save_checkpoint(card, state.ema, out / config.name)
    (out / "loss.csv").write_text((folder / "loss.csv").read_text())
    _plot(rows, out / "loss.png")
    print(
        f"{weights}: {state.step} steps, {state.seconds / 60:.1f} minutes, loss {rows[-1]['loss']}, "
        f"validation {rows[-1]['validation_loss']}"
    )
    return 0


def train_loop(session: Session, config: dict[str, Any]) -> None:
    """One worker: read, step, report. Every rank takes its share of each batch."""
    import torch

    from bridge_core.network import UNet, channels_last
    from bridge_core.training import TrainState, augment, bridge_loss, step_generator
    from storage.pairs import read_pairs

    pairs = read_pairs(config["pairs"], config["grid"], config["limit"])
    card, recipe = make_card(config, pairs, {}), make_recipe(config)
    assert card.stretch is not None
    c = card.network.image_channels
    lsst = card.stretch.forward(torch.from_numpy(pairs.lsst), card.bands["lsst"])
    euclid = card.stretch.forward(torch.from_numpy(pairs.euclid), card.bands["euclid"]).expand(-1, c, -1, -1)
    count = len(lsst) - config["validation"]

    torch.manual_seed(config["seed"])
    network = channels_last(UNet(card.network).to(session.device))
    state = TrainState(network, recipe)
    log: list[dict[str, Any]] = []
    with session.restore() as folder:
        if folder is not None:
            state.load(folder)
            log = list(read_log(folder))
    model = session.prepare(network)

    def progress() -> float:
        by_time = state.seconds / (60 * config["minutes"]) if config["minutes"] else 0.0
        by_step = state.step / config["steps"] if config["steps"] else 0.0
        return max(by_time, by_step)

    share = recipe.batch_size // session.world_size
    recent: list[float] = []
    norm, clock, reported = 0.0, time.monotonic(), time.monotonic()
    while progress() < 1:
        generator = step_generator(recipe.seed, state.step, session.rank)
        rows = batch_indices(count, recipe.batch_size, state.step, recipe.seed)
        rows = rows[session.rank * share : (session.rank + 1) * share]
        x, y = augment(lsst[rows], euclid[rows], generator)
        loss = bridge_loss(model, card, x.to(session.device), y.to(session.device), generator)
        norm = state.update(loss, progress())
        recent.append(float(loss.detach()))
        now = time.monotonic()
        state.seconds = session.agree(state.seconds + now - clock)
        clock = now
        due = session.agree(float(now - reported > config["report_seconds"])) > 0
        if due or progress() >= 1:
            row = {
                "step": state.step,
                "seconds": round(state.seconds, 1),
                "pairs": state.step * recipe.batch_size,
                "loss": round(sum(recent) / len(recent), 5),
                "validation_loss": round(validation_loss(state.ema, card, lsst[count:], euclid[count:], session), 5),
                "learning_rate": recipe.learning_rate_at(state.step, progress()),
                "gradient_norm": round(norm, 4),
            }
            log.append(row)
            recent = []

            def save(folder: Path) -> None:
                state.save(folder)
                with (folder / "loss.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, LOSS_COLUMNS)
                    writer.writeheader()
                    writer.writerows(log)

            session.report({k: float(v) for k, v in row.items()}, save)
            if session.rank == 0:
                print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
            # validation and saving are not training time
            clock = reported = time.monotonic()


def read_log(folder: Path) -> list[dict[str, str]]:
    """Rows of `loss.csv`."""
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
    """Rows of one global batch, int64 [batch_size]: endless epochs, each a permutation of its own."""
    import torch

    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    rows = torch.empty_like(positions)
    for epoch in (positions // count).unique().tolist():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        inside = positions // count == epoch
        rows[inside] = order[positions[inside] % count]
    return rows


def validation_loss(
    weights: dict[str, torch.Tensor], card: Card, lsst: torch.Tensor, euclid: torch.Tensor, session: Session
) -> float:
    """Loss of the averaged weights on the held-out pairs with noise that is the same at every call."""
    import torch

    from bridge_core.network import UNet, channels_last
    from bridge_core.training import bridge_loss

    network = channels_last(UNet(card.network).to(session.device))
    network.load_state_dict(weights)
    network.eval()
    generator = torch.Generator().manual_seed(1)
    losses = []
    with torch.inference_mode():
        # the same pairs in both directions: reversing a chunk moves each pair to the other half
        for x, y in zip(lsst.split(64), euclid.split(64), strict=True):
            for a, b in ((x, y), (x.flip(0), y.flip(0))):
                losses.append(float(bridge_loss(network, card, a.to(session.device), b.to(session.device), generator)))
    return sum(losses) / len(losses)


def make_recipe(config: dict[str, Any]) -> Any:
    """The recipe that the arguments ask for."""
    from bridge_core.training import Recipe

    return Recipe(learning_rate=config["learning_rate"], batch_size=config["batch_size"], seed=config["seed"])


def make_card(config: dict[str, Any], pairs: Pairs, outcome: dict[str, Any]) -> Card:
    """Card of the checkpoint to be: bridge, network and stretch as asked, softening twice the noise of the pairs."""
    from dataclasses import asdict

    from bridge_core.bridge import Bridge
    from bridge_core.checkpoint import Card
    from bridge_core.network import NetworkConfig
    from bridge_core.objective import Objective
    from bridge_core.stretch import Stretch

    # from sigma 0.014 (an eighth of the noise of a pixel in network units) instead of the published 0.045
    m_min = 1e-4 if config["objective"] == "edm" else 1e-3
    bridge = {
        "brownian": lambda: Bridge.brownian(m_min=m_min),
        "schrodinger": Bridge.schrodinger,
        "diffusion": Bridge.diffusion,
    }[config["bridge"]]()
    return Card(
        name=config["name"],
        grid=config["grid"],
        bridge=bridge,
        network=NetworkConfig(base=config["base"], stem=config["stem"], norm=config["norm"]),
        objective=Objective(config["objective"], sigma_data=0.3, log_sigma_mean=-1.2, log_sigma_std=1.4),
        stretch=Stretch({band: 2 * sigma for band, sigma in pairs.noise.items()}),
        bands={"lsst": ("g", "r", "i"), "euclid": ("VIS",)},
        pixel_scale=pairs.pixel_scale,
        provenance={
            "command": shlex.join(["surveybridge", "train", *sys.argv[2:]]),
            "pairs": pairs.name,
            "recipe": asdict(make_recipe(config)),
            **outcome,
        },
    )


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).resolve())


def _plot(rows: list[dict[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    minutes = [float(r["seconds"]) / 60 for r in rows]
    axes.plot(minutes, [float(r["loss"]) for r in rows], label="training (raw weights)", lw=1)
    axes.plot(minutes, [float(r["validation_loss"]) for r in rows], label="validation (averaged weights)", lw=1.5)
    axes.set(xlabel="training time [min]", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
