"""A block of pairs from reading to its judged rows, in the three stages of `cluster.stages`; each block is one item."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from surveybridge.cluster.stages import Outcome, Stages
from surveybridge.jobs.evaluating.blocks import PARTS, Block, Settings, corners
from surveybridge.jobs.running.progress import start_worker
from surveybridge.jobs.translating.request import read_model

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.stretch import Stretch
    from surveybridge.storage.pairs import Pairs
    from surveybridge.storage.problems import ProblemTable

WHITE_SIGMAS = 1000.0
"""Noise levels at which a band is shown white, where AS-Bridge names no flux."""


def evaluation_stages(settings: Settings) -> Stages:
    """The three stages of an evaluation."""
    return Stages(
        make_read=functools.partial(BlockReader, settings),
        make_model=functools.partial(BlockJudge, settings),
        make_write=functools.partial(BlockWriter, settings),
    )


class BlockReader:
    """Reads blocks of pairs."""

    def __init__(self, settings: Settings) -> None:
        from surveybridge.storage.pairs import read_labels

        start_worker(settings.filesystems)
        self.settings = settings
        self.labels = {which: read_labels(settings.url(which)) for which in settings.counts}

    def __call__(self, item: str) -> Block:
        """Pairs, names and labels of one item."""
        from surveybridge.storage.pairs import read_ids, read_pairs, read_simulations

        which, first, stop = self.settings.rows(item)
        url = self.settings.url(which)
        ids = read_ids(url, first, stop, self.settings.problem)
        pairs = read_pairs(
            url, self.settings.grid, first, stop, problem=self.settings.problem, eight_bit=True, conditions=True
        )
        labels: list[Mapping[str, Any]] = [self.labels[which].get(name, {}) for name in ids]
        return Block(which, first, pairs, ids, labels, read_simulations(url, first, stop, self.settings.problem))


class BlockJudge:
    """Samples, scores and judges the pairs of a block: the stage that holds the network."""

    def __init__(self, settings: Settings) -> None:
        import torch

        start_worker(settings.filesystems)
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = with_display(read_model(settings.checkpoint), settings.display)
        self.model = model.to(self.device, settings.sampling.precision)

    def __call__(self, item: str, block: Block) -> dict[str, pa.Table]:
        """Rows by table: images and pixels of pairs, scores of pairs and anomalies."""
        from surveybridge.jobs.evaluating.densities import dex_rows

        settings = self.settings
        tables: dict[str, pa.Table] = {}
        if block.which == "pairs" and settings.directions:
            tables |= self._translations(self.model, block)
        if block.which == "pairs" and settings.densities:
            tables["dex"] = dex_rows(self.model, block, settings, self.device)
        if settings.anomalies is not None:
            tables["scores"] = self._scores(self.model, block)
        return tables

    def _translations(self, model: Model, block: Block) -> dict[str, pa.Table]:
        import pyarrow as pa
        import torch

        from surveybridge.bridge_core.evaluation import (
            PIXEL_SUMS,
            REGIONS,
            PixelSums,
            image_scores,
            morphology,
            photometry,
        )
        from surveybridge.bridge_core.translate import recalibrated_samples
        from surveybridge.jobs.evaluating.densities import drawn_samples
        from surveybridge.storage.evaluation_schemas import EVALUATED_PIXELS, evaluated_images_schema
        from surveybridge.storage.problems import described
        from surveybridge.storage.schema import conform

        settings, pairs = self.settings, block.pairs
        table = described(model.card.problem.table)
        schema = evaluated_images_schema(table)
        image_rows, pixel_rows = [], []
        for direction in map(model.card.problem.direction, settings.directions):
            wanted = direction.wanted
            bands, scale = wanted.bands, pairs.pixel_scale[wanted.name]
            truth = torch.from_numpy(pairs.ends[wanted.name])
            samples = drawn_samples(model, direction, block, settings.sampling, self.device)
            if settings.calibrated:
                samples = torch.stack(
                    [recalibrated_samples(model, direction, one.mean(0), one) for one in samples.unbind(1)], 1
                )
            display = settings.display[wanted.name]
            columns = image_scores(samples, truth, bands, display)
            columns |= named_columns(photometry(samples, truth, bands, scale), table, wanted.name)
            stated = pairs.noise[wanted.name]
            # of which nothing is stated is judged by the scatter that its display is made of
            noises = [stated[band] if math.isfinite(stated[band]) else display.softening[band] / 3 for band in bands]
            sigma = torch.tensor(noises)
            columns |= morphology(samples, truth, sigma, scale)
            named: dict[str, list[Any]] = {"object_id": block.ids, "direction": [str(direction)] * len(truth)}
            for label in (name for name in schema.names if name.startswith("blended_")):
                named[label] = [row.get(label) for row in block.labels]
            image_rows.append(_table(named | columns))
            sums = PixelSums.of(samples, truth, sigma, bands, display)
            names = [(name, band, region) for name in block.ids for band in bands for region in REGIONS]
            pixel_rows.append(
                pa.table(
                    {
                        "object_id": [name for name, _, _ in names],
                        "direction": [str(direction)] * len(names),
                        "band": [band for _, band, _ in names],
                        "region": [region for _, _, region in names],
                        **{name: getattr(sums, name).flatten().tolist() for name in PIXEL_SUMS},
                        **{name: getattr(sums, name).flatten(0, 2).tolist() for name in ("within", "ranks")},
                    }
                )
            )
        return {
            "images": pa.concat_tables([conform(t, schema, "image scores") for t in image_rows]),
            "pixels": pa.concat_tables([conform(t, EVALUATED_PIXELS, "pixel sums") for t in pixel_rows]),
        }

    def _scores(self, model: Model, block: Block) -> pa.Table:
        import torch

        from surveybridge.bridge_core.anomaly import score_windows, scored_direction
        from surveybridge.bridge_core.evaluation import trivial_scores
        from surveybridge.jobs.evaluating.cutouts import pair_cutouts
        from surveybridge.storage.evaluation_schemas import evaluated_scores_schema
        from surveybridge.storage.problems import described
        from surveybridge.storage.schema import conform

        settings, pairs = self.settings, block.pairs
        direction = scored_direction(model)
        observed, wanted = (torch.from_numpy(pairs.ends[end.name]) for end in (direction.observed, direction.wanted))
        scores = score_windows(model, pair_cutouts(model, pairs, corners(block), self.device), settings.scoring)
        columns = {
            "object_id": block.ids,
            "anomalous": [block.which == "anomalies"] * len(block.ids),
            "central_class": [row.get("central_class") for row in block.labels],
            "score": scores.score.numpy(),
            "score_std": scores.score_std.numpy(),
            "false_alarm": scores.false_alarm.numpy(),
            "score_asbridge": scores.published.numpy(),
        }
        noise = pairs.noise[direction.wanted.name][direction.wanted.bands[0]]
        columns |= trivial_scores(observed, wanted, pairs.pixel_scale[direction.observed.name], noise)
        schema = evaluated_scores_schema(described(model.card.problem.table))
        return conform(_table(columns), schema, "anomaly scores")


class BlockWriter:
    """Writes a block's rows as Parquet files of its own."""

    def __init__(self, settings: Settings) -> None:
        from surveybridge.storage.objectstore import Folder

        start_worker(settings.filesystems)
        self.folder = Folder.at(settings.out)

    def __call__(self, outcome: Outcome) -> dict[str, Any]:
        """Receipt: tile_id (the item), status, reason."""
        from surveybridge.storage.parquet import parquet_bytes

        if outcome.failure is not None:
            return {"tile_id": outcome.item, "status": "failed", "reason": outcome.failure.reason}
        for name, table in outcome.value.items():
            self.folder.put(parquet_bytes(table), PARTS, f"{outcome.item}.{name}.parquet")
        return {"tile_id": outcome.item, "status": "ok"}


def with_display(model: Model, display: Mapping[str, Stretch]) -> Model:
    """The model; AS-Bridge's does not say what its [-1, 1] means, and takes the display of the pairs."""
    if model.card.physical:
        return model
    problem = model.card.problem
    ends = [replace(end, stretch=display[end.name]) for end in problem.endpoints]
    return replace(model, card=replace(model.card, problem=problem.with_endpoints(ends)))


def display_stretch(pairs: Pairs) -> dict[str, Stretch]:
    """The display of these pairs, by end, in which energy scores are taken: AS-Bridge's, where its bands are.

    Their white is the flux of `WHITE` on its own pixels, scaled to those of the pairs by area; all others are white at
    `WHITE_SIGMAS` times their noise, or their scatter where no noise is stated.
    """
    import numpy as np

    from surveybridge.bridge_core.stretch import Stretch
    from surveybridge.storage.pairs import WHITE

    found = {}
    for end, bands in pairs.bands.items():
        noise: dict[str, float] = {}
        top: dict[str, float] = {}
        for k, band in enumerate(bands):
            sigma = pairs.noise[end][band]
            noise[band] = sigma if np.isfinite(sigma) else float(np.nanstd(pairs.ends[end][:, k]))
            if band in WHITE and pairs.units[end] == "nJy":
                flux, arcsec = WHITE[band]
                top[band] = flux * (pairs.pixel_scale[end] / arcsec) ** 2
            else:
                top[band] = WHITE_SIGMAS * noise[band]
        found[end] = Stretch.asbridge(noise, top)
    return found


def named_columns(columns: Mapping[str, Any], problem: ProblemTable, end: str) -> dict[str, Any]:
    """Photometry of an end under the columns of its problem, which name the end where both have a band."""
    from surveybridge.storage.evaluation_schemas import colour_columns
    from surveybridge.storage.problems import band_columns

    names = {f"flux_{band}": f"flux_{column}" for (of, band), column in band_columns(problem).items() if of == end}
    names |= {f"colour_{b}{r}": column for (of, b, r), column in colour_columns(problem).items() if of == end}
    renamed = {}
    for name, values in columns.items():
        found = [one for one in names if name == one or name.startswith(f"{one}_")]
        if found:
            base = max(found, key=len)
            renamed[names[base] + name.removeprefix(base)] = values
    return renamed


def _table(columns: Mapping[str, Any]) -> pa.Table:
    import pyarrow as pa

    return pa.table({name: list(values) for name, values in columns.items()})
