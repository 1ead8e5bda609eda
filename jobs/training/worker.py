"""One worker of a training: the shards it owns, its part of every step, and its reports.

The pairs are cut into V virtual shards, and every step takes batch/V pairs of each. A rank owns the shards v with
v mod world = rank, reads no others, and draws everything random from (seed, step, shard): the same pairs and the same
noise at every step, however many workers there are.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surveybridge.bridge_core.metrics import patch_energy_score
from surveybridge.bridge_core.model import Card, Model, start_weights
from surveybridge.bridge_core.network import UNet, channels_last
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.sharpening import PAD, SkyBatch, sky_loss, tables
from surveybridge.bridge_core.training import (
    Batch,
    Recipe,
    TrainState,
    augment,
    bridge_loss,
    filled,
    observed_pixels,
    rescaled,
    step_generator,
    wanted_of,
)
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.training.generators import joint_batch, joint_energy, properties_of
from surveybridge.jobs.training.images import Images
from surveybridge.jobs.training.skies import Observations, turned
from surveybridge.jobs.translating.request import read_model
from surveybridge.storage.objectstore import configure
from surveybridge.storage.pairs import read_pairs

if TYPE_CHECKING:
    from surveybridge.cluster.training import Session

logger = logging.getLogger(__name__)

LOSS_COLUMNS = (
    *("step", "seconds", "pairs", "loss", "validation_loss", "validation_energy", "ema_width", "learning_rate"),
    *("gradient_norm", "workers", "pairs_per_second", "data_seconds"),
)
"""Columns of loss.csv. ``ema_width``: of the average with the lowest validation loss, to which both validation columns
belong; ``validation_energy``: energy score of patches, network units; ``data_seconds``: waiting for data since the row
before, mean of the workers."""

FURTHER_WARMUP = 30
"""Steps in which the learning rate rises where a training goes on from a checkpoint, instead of `Recipe`'s."""

VALIDATION_SEED = 1
VALIDATION_BATCH = 64
ENERGY_PAIRS = 8
"""Number of validation pairs that are sampled at every report, if there are that many."""
ENERGY_SAMPLING = Sampling(samples=4, steps=8, seed=VALIDATION_SEED)


def train_loop(storage: Mapping[str, Mapping[str, Any]], session: Session, config: dict[str, Any]) -> None:
    """Read, step, report until the budget is used; run by every worker, with the driver's storage options."""
    configure(storage)
    card, recipe = Card.from_json(config["card"]), make_recipe(config)
    shards = [read_shard(config, card, index) for index in session.shards(recipe.shards)]
    torch.manual_seed(config["seed"])
    network = UNet(card.network)
    if config.get("start") is not None:
        network.load_state_dict(start_weights(read_model(config["start"]), card.network))
    network = channels_last(network.to(session.device))
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
        return 1.0 if out_of_patience(log, config["patience"]) else max(by_time, by_step)

    together = recipe.shards // config["accumulate"]

    def draw_passes(step: int) -> list[Batch] | list[SkyBatch]:
        firsts = range(0, len(shards), together)
        if card.bridge.kind == "seeing":
            seen = [shard.observe(card, recipe, step) for shard in shards]
            return [SkyBatch.join(seen[first : first + together]) for first in firsts]
        drawn = [shard.draw(card, recipe, step) for shard in shards]
        return [Batch.join(drawn[first : first + together]) for first in firsts]

    since = Interval(state)
    clock = reported = time.monotonic()
    with ThreadPoolExecutor(1, "data") as thread:
        coming = thread.submit(draw_passes, state.step)
        while progress() < 1:
            waiting = time.monotonic()
            passes = [batch.to(session.device) for batch in coming.result()]
            since.data_seconds += time.monotonic() - waiting
            coming = thread.submit(draw_passes, state.step + 1)
            for index, batch in enumerate(passes):
                with session.gather(model, last=index == len(passes) - 1):
                    # workers may own unequal numbers of shards; the exchange takes the mean over workers
                    share = len(batch) * session.world_size / recipe.batch_size
                    loss = share * loss_of(model, card, batch, recipe.bright_weight)
                    loss.backward()
                since.loss += float(loss.detach())
            norm = state.update(progress())
            now = time.monotonic()
            late = now - reported > config["report_seconds"]
            state.seconds, due = session.agree([state.seconds + now - clock, float(late)])
            clock = now
            if not (due or progress() >= 1 or (config["report_steps"] and state.step % config["report_steps"] == 0)):
                continue
            loss_sum, waited = session.total([since.loss, since.data_seconds])
            steps = state.step - since.step
            losses = {
                width: validation_loss(average, card, shards, session, recipe.bright_weight)
                for width, average in state.averages.items()
            }
            best = min(losses, key=losses.__getitem__)
            row = {
                "step": state.step,
                "seconds": round(state.seconds, 1),
                "pairs": state.step * recipe.batch_size,
                "loss": round(loss_sum / session.world_size / steps, 7),
                "validation_loss": round(losses[best], 7),
                "validation_energy": round(
                    validation_energy(state.averages[best], card, shards, session, recipe.shards), 7
                ),
                "ema_width": best,
                "learning_rate": recipe.learning_rate_at(state.step, progress()),
                "gradient_norm": round(norm, 4),
                "workers": session.world_size,
                "pairs_per_second": round(steps * recipe.batch_size / (state.seconds - since.seconds), 2),
                "data_seconds": round(waited / session.world_size, 3),
            }
            log.append(row)

            def save(folder: Path) -> None:
                state.save(folder)
                with (folder / "loss.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, LOSS_COLUMNS)
                    writer.writeheader()
                    writer.writerows(log)

            session.report({k: float(v) for k, v in row.items()}, save)
            if session.rank == 0:
                logger.info(" ".join(f"{k}={v}" for k, v in row.items()))
            # validation and saving are not training time
            since = Interval(state)
            clock = reported = time.monotonic()


class Interval:
    """The quantities that add up between two reports, and the state at the start."""

    def __init__(self, state: TrainState) -> None:
        self.step, self.seconds = state.step, state.seconds
        self.loss = self.data_seconds = 0.0


def loss_of(network: nn.Module, card: Card, batch: Batch | SkyBatch, bright_weight: float) -> Tensor:
    """The loss of a batch, a scalar."""
    if isinstance(batch, SkyBatch):
        return sky_loss(network, card, batch)
    return bridge_loss(network, card, batch, bright_weight)


@dataclass
class Shard:
    """A range of the training pairs, and its part of those kept for validation."""

    index: int
    seed: int
    training: Images
    validation: Images
    observations: Observations | None = None
    """Of a bridge of seeing."""
    _order: tuple[int, NDArray[np.int64]] | None = field(default=None, repr=False)

    def rows(self, step: int, count: int) -> Tensor:
        """Rows of one step, int64 [count]: endless epochs, each a permutation of its own."""
        epochs, places = np.divmod(np.arange(step * count, (step + 1) * count), len(self.training))
        return torch.from_numpy(np.concatenate([self._epoch(e)[places[epochs == e]] for e in np.unique(epochs)]))

    def skies(self, card: Card, images: Images, rows: Tensor | slice) -> Tensor:
        """Sharp skies of some rows in the channels of the network, float32 [N, C, H, W]."""
        direction = card.problem.directions[0]
        return direction.wanted.shown(images.planes[direction.index][rows], card.network.image_channels)

    def observe(self, card: Card, recipe: Recipe, step: int) -> SkyBatch:
        """Draw its part of one step of a bridge of seeing."""
        assert self.observations is not None
        generator = step_generator(self.seed, step, self.index)
        count = recipe.batch_size // recipe.shards
        sky = turned(self.skies(card, self.training, self.rows(step, count)), generator)
        return SkyBatch.draw(card, sky, self.observations.draw(count, generator), generator)

    def draw(self, card: Card, recipe: Recipe, step: int) -> Batch:
        """Draw its part of one step."""
        generator = step_generator(self.seed, step, self.index)
        count = recipe.batch_size // recipe.shards
        if card.generation is not None:
            return joint_batch(card, self.training, self.rows(step, count), generator, varied=True)
        ends, told = self.training.rows(card, self.rows(step, count))
        channels = card.network.image_channels
        planes = ends if told is None else tuple(torch.cat(both, 1) for both in zip(ends, told.noise, strict=True))
        first, second = augment(
            (planes[0], planes[1]), card.problem, generator, roll=card.grid == "mosaic", crop=recipe.crop
        )
        ends, wanted = (first[:, :channels], second[:, :channels]), wanted_of(card.problem, count)
        ends = rescaled(ends, card.problem, generator, recipe.rescale) if recipe.rescale else ends
        if told is not None:
            told = replace(told, noise=(first[:, channels:], second[:, channels:])).dropped(generator)
        context = None if told is None else told.context(card.problem, wanted, observed_pixels(ends, wanted))
        return Batch.draw(card, ends, wanted, generator, context)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, self.index, int(epoch))).permutation(len(self.training))
            self._order = int(epoch), order
        return self._order[1]


def read_shard(config: dict[str, Any], card: Card, index: int) -> Shard:
    """Read one shard and nothing else; the pairs kept for validation are divided in the same way."""
    seeing, wanted = card.bridge.kind == "seeing", card.problem.directions[0].index

    def read(start: int, stop: int) -> Images:
        first, last = shard_range(start, stop, index, config["shards"])
        # of skies that are observed here, it is not needed how others observed them
        told = card.network.conditions and not seeing
        pairs = read_pairs(config["pairs"], config["grid"], first, last, problem=card.problem.table, conditions=told)
        images = Images.of(card, pairs)
        if card.generation is not None:
            return replace(images, properties=properties_of(card.generation, config["pairs"], first, last))
        if not seeing:
            return images
        planes = list(images.planes)
        planes[1 - wanted] = planes[1 - wanted][:, :0].clone()
        return Images((planes[0], planes[1]))

    training = config["available"] - config["validation"]
    validation = config.get("validation_start", training)
    shard = Shard(index, config["seed"], read(0, training), read(validation, validation + config["validation"]))
    if seeing:
        side = shard.training.planes[wanted].shape[-1]
        shard.observations = Observations(card, side, (config["seed"], index))
    return shard


def shard_range(start: int, stop: int, index: int, shards: int) -> tuple[int, int]:
    """Rows of one of `shards` contiguous parts, equal to within one row."""
    count = stop - start
    return start + count * index // shards, start + count * (index + 1) // shards


def validation_loss(
    weights: dict[str, Tensor], card: Card, shards: list[Shard], session: Session, bright_weight: float
) -> float:
    """Loss of the averaged weights on the held-out pairs, both ways, with noise that is the same at every call."""
    network = channels_last(UNet(card.network).to(session.device))
    network.load_state_dict(weights)
    network.eval()
    loss = count = 0.0
    with torch.inference_mode():
        for shard in shards:
            generator = step_generator(VALIDATION_SEED, 0, shard.index)
            for first in range(0, len(shard.validation), VALIDATION_BATCH):
                if shard.observations is not None:
                    sky = shard.skies(card, shard.validation, slice(first, first + VALIDATION_BATCH))
                    drawn = SkyBatch.draw(card, sky, shard.observations.draw(len(sky), generator), generator)
                    loss += float(sky_loss(network, card, drawn.to(session.device))) * len(sky)
                    count += len(sky)
                    continue
                if card.generation is not None:
                    some = torch.arange(len(shard.validation))[first : first + VALIDATION_BATCH]
                    drawn_together = joint_batch(card, shard.validation, some, generator, varied=False)
                    loss += float(bridge_loss(network, card, drawn_together.to(session.device))) * len(some)
                    count += len(some)
                    continue
                ends, told = shard.validation.rows(card, slice(first, first + VALIDATION_BATCH))
                for direction in card.problem.directions:
                    ways = torch.full((len(ends[0]),), direction.index)
                    known = observed_pixels(ends, ways)
                    context = None if told is None else told.context(card.problem, ways, known)
                    batch = Batch.draw(card, ends, ways, generator, context).to(session.device)
                    loss += float(bridge_loss(network, card, batch, bright_weight)) * len(batch)
                    count += len(batch)
    loss, count = session.total([loss, count])
    return loss / count


def validation_energy(
    weights: dict[str, Tensor], card: Card, shards: list[Shard], session: Session, of_all: int
) -> float:
    """Energy score of samples of some held-out pairs, both ways: mean over patches at four scales, network units."""
    network = channels_last(UNet(card.network).to(session.device))
    network.load_state_dict(weights)
    model = Model(card, network.eval(), "")
    # what predicts the noise cannot begin at the table's end
    how = replace(ENERGY_SAMPLING, from_end=card.objective.name in ("edm", "i2sb"))
    score = count = 0.0
    for shard in shards:
        some = slice(0, max(1, ENERGY_PAIRS // of_all))
        if shard.observations is not None:
            sky, generator = shard.skies(card, shard.validation, some), step_generator(VALIDATION_SEED, 1, shard.index)
            if len(sky):
                seen = SkyBatch.draw(card, sky, shard.observations.draw(len(sky), generator), generator)
                score += sky_energy(model, card, seen.to(session.device), shard.index, how)
                count += len(sky)
            continue
        if card.generation is not None:
            score += joint_energy(model, shard.validation, some, shard.index, how)
            count += len(shard.validation.planes[0][some])
            continue
        images, told = shard.validation.rows(card, some)
        size = images[0].shape[-1]
        corners = [(size * shard.index, size * k) for k in range(len(images[0]))]
        for direction in card.problem.directions if corners else ():
            wanted = direction.wanted
            observed = filled(images[1 - direction.index]).to(session.device)
            ways = torch.full((len(corners),), direction.index)
            known = observed_pixels(images, ways)
            context = None if told is None else told.context(card.problem, ways, known).to(session.device)
            values = window_samples(model, direction, observed, corners, how, context=context).cpu()
            truth = wanted.planes_in(images[direction.index])
            known = torch.isfinite(truth)
            drawn = wanted.fitted.forward(values.transpose(0, 1), wanted.bands).where(known, 0.0)
            score += float(torch.stack(patch_energy_score(drawn, truth.where(known, 0.0))).mean(0).sum())
            count += len(truth)
    score, count = session.total([score, count])
    return score / count


def sky_energy(model: Model, card: Card, batch: SkyBatch, row: int, how: Sampling) -> float:
    """Sum of the energy scores of samples of skies, each observed as its context says, network units."""
    direction = card.problem.directions[0]
    observed = batch.state(tables(card, batch.context)[0], card.bridge.num_steps - 1)
    corners = [(observed.shape[-1] * row, observed.shape[-1] * k) for k in range(len(batch))]
    values = window_samples(model, direction, observed, corners, how, context=batch.context)
    drawn = direction.wanted.forward(values, card.network.image_channels).transpose(0, 1).cpu()
    truth = batch.sky[..., PAD:-PAD, PAD:-PAD].cpu()
    return float(torch.stack(patch_energy_score(drawn, truth)).mean(0).sum())


def out_of_patience(log: list[dict[str, Any]], patience: int | None) -> bool:
    """Return whether the last `patience` reports have not lowered the validation energy."""
    energies = [float(row["validation_energy"]) for row in log]
    return patience is not None and len(energies) > patience and min(energies[-patience:]) >= min(energies[:-patience])


def read_log(folder: Path) -> list[dict[str, str]]:
    """Rows of `loss.csv`."""
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def make_recipe(config: dict[str, Any]) -> Recipe:
    """The recipe that the arguments ask for."""
    names = ("learning_rate", "batch_size", "shards", "bright_weight", "crop", "rescale", "seed")
    recipe = Recipe(**{name: config[name] for name in names})
    return recipe if config.get("checkpoint") is None else replace(recipe, warmup_steps=FURTHER_WARMUP)
