"""A block of pairs from reading to its judged rows, in the three stages of `cluster.stages`; each block is one item."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from surveybridge.cluster.stages import Outcome, Stages
from surveybridge.jobs.running.progress import start_worker
from surveybridge.jobs.translating.request import read_model

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.settings import Sampling, Scoring
    from surveybridge.bridge_core.stretch import Stretch
    from surveybridge.storage.pairs import Pairs
    from surveybridge.storage.problems import ProblemTable

PARTS = "evaluate-parts"
TABLES = ("images", "pixels", "scores")
WHITE_SIGMAS = 1000.0
"""Noise levels at which a band is shown white, where AS-Bridge names no flux."""


@dataclass(frozen=True)
class Settings:
    """The settings of the stages."""

    pairs: str
    anomalies: str | None
    checkpoint: str | None
    grid: str
    directions: tuple[str, ...]
    sampling: Sampling
    scoring: Scoring
    out: str
    threads: int
    start: int
    """First row of each store."""
    counts: Mapping[str, int]
    block: int
    """Pairs of an item; noise belongs to the pair, so the number changes rounding, memory and overhead only."""
    display: Mapping[str, Stretch]
    """AS-Bridge's display of the pairs, in which energy scores are taken and its checkpoints see the world."""
    calibrated: bool
    """Whether samples are stretched by the recalibration in the card."""
    filesystems: Mapping[str, Mapping[str, Any]] = field(repr=False)  # fsspec's options by protocol: secrets

    def blocks(self) -> list[str]:
        """Items, named by store and first row: pairs-00000000, pairs-00000064, ..., anomalies-00000000, ..."""
        return [
            f"{which}-{self.start + first:08d}"
            for which, count in self.counts.items()
            for first in range(0, count, self.block)
        ]

    def parts(self, name: str) -> list[str]:
        """Files of a table, one a block, relative to `out`."""
        return [f"{PARTS}/{block}.{name}.parquet" for block in self.blocks()]

    def rows(self, item: str) -> tuple[str, int, int]:
        """Store and range of rows of an item."""
        which, _, first = item.partition("-")
        return which, int(first), min(int(first) + self.block, self.start + self.counts[which])

    def url(self, which: str) -> str:
        """URL of the store of pairs or of anomalies."""
        return self.pairs if which == "pairs" else str(self.anomalies)


@dataclass(frozen=True)
class Block:
    """Some pairs with their names and labels."""

    which: str
    first: int
    pairs: Pairs
    ids: list[str]
    labels: list[Mapping[str, Any]]
    """Rows of the table beside the store; empty where there is none."""


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
        from surveybridge.storage.pairs import read_ids, read_pairs

        which, first, stop = self.settings.rows(item)
        url = self.settings.url(which)
        ids = read_ids(url, first, stop)
        pairs = read_pairs(url, self.settings.grid, first, stop, eight_bit=True, conditions=True)
        return Block(which, first, pairs, ids, [self.labels[which].get(name, {}) for name in ids])


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
        tables: dict[str, pa.Table] = {}
        if block.which == "pairs":
            tables |= self._translations(self.model, block)
        if self.settings.anomalies is not None:
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
        from surveybridge.bridge_core.translate import recalibrated_samples, window_samples
        from surveybridge.jobs.evaluating.cutouts import pair_views, stamp_units, stamps_of
        from surveybridge.storage.evaluation_schemas import EVALUATED_PIXELS, evaluated_images_schema
        from surveybridge.storage.problems import described
        from surveybridge.storage.schema import conform

        settings, pairs = self.settings, block.pairs
        table = described(model.card.problem.table)
        schema = evaluated_images_schema(table)
        views = pair_views(model, pairs, self.device)
        image_rows, pixel_rows = [], []
        for direction in map(model.card.problem.direction, settings.directions):
            observed, wanted = direction.observed, direction.wanted
            bands, scale = wanted.bands, pairs.pixel_scale[wanted.name]
            truth = torch.from_numpy(pairs.ends[wanted.name])
            windows = stamp_units(model, observed, stamps_of(pairs, observed, self.device))
            context = views and views[direction.index]
            drawn = window_samples(model, direction, windows, corners(block), settings.sampling, context=context)
            samples = drawn.cpu().transpose(0, 1).contiguous()
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


def corners(block: Block) -> list[tuple[int, int]]:
    """A place for each pair in the noise's pixels, which no other pair shares."""
    size = next(iter(block.pairs.ends.values())).shape[-1]
    row = 0 if block.which == "pairs" else size
    return [(row, size * (block.first + k)) for k in range(len(block.ids))]


def _table(columns: Mapping[str, Any]) -> pa.Table:
    import pyarrow as pa

    return pa.table({name: list(values) for name, values in columns.items()})
