"""One tile from reading to its ledger row, in three stages: what `translate` runs on Ray, or in its own process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from surveybridge.bridge_core.spans import span
from surveybridge.cluster.stages import Outcome, Stages
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running.progress import log_context, start_worker
from surveybridge.jobs.translating.candidates import (
    Candidates,
    Objects,
    RunFacts,
    catalogued_part,
    find_objects,
    score_objects,
)
from surveybridge.jobs.translating.homogenising import Homogenisation, words
from surveybridge.jobs.translating.light import compared_light, unchanged
from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions
from surveybridge.jobs.translating.wishes import Wishes
from surveybridge.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from surveybridge.bridge_core.light_relation import LightRelation
    from surveybridge.bridge_core.maps import MapsHead
    from surveybridge.bridge_core.model import Card
    from surveybridge.bridge_core.settings import Sampling, Scoring
    from surveybridge.storage.fields import FieldGrid
    from surveybridge.storage.mosaics import TileMosaic
    from surveybridge.storage.star_lists import StarList
    from surveybridge.storage.tiles import Tile

Around = Callable[[str], AbstractContextManager[None]]
"""A context around the work on a tile; the default one names the tile in the log, and callers may give others."""


@dataclass(frozen=True)
class Settings:
    """The resolved settings of the stages: everything that decides the pixels, and where they go."""

    store: str
    run: str
    checkpoint: str | None
    direction: str
    observed: str
    sampling: Sampling
    scoring: Scoring
    homogenisation: Homogenisation | None
    """The PSFs to which images are brought; None for none."""
    wishes: Wishes | None
    """What is asked of the wanted end."""
    relation: LightRelation | None
    """By which light is brought to agree with what was observed; None where it stays as the network has it."""
    batch: int | None
    """Windows in one call of the network; None for as many as keep the device busy."""
    calibrated: bool
    """Whether the recalibration in the card is applied."""
    run_id: str
    version: int
    """Schema version of the run: what it keeps as candidates, and what it says of them."""
    threads: int
    early: bool
    """Whether tiles are prepared where they are read, since a GPU must not wait for that. On CPUs somebody has to wait,
    and fewer processes need torch."""
    attempts: Mapping[str, int]
    stars: StarList | None = field(repr=False)
    """Known stars in and around the tiles."""
    filesystems: Mapping[str, Mapping[str, Any]] = field(repr=False)  # fsspec's options by protocol: secrets


@dataclass(frozen=True)
class PreparedTile:
    """A tile, and all that is known of it without a network, so that no GPU waits for this."""

    tile: Tile
    objects: Objects | None
    """Those of its core; None where none are sought."""
    content: str
    place: Mapping[str, Any]
    """Columns of the ledger that say which part of the sky the tile owns, and what its images are."""


@dataclass(frozen=True)
class Translation:
    """The model's results for a tile, ready to be written; without tensors, so that the writer does not need torch."""

    tile_id: str
    content: str
    place: Mapping[str, Any]
    """Columns of the ledger that say which part of the sky the tile owns, and what its images are."""
    mosaic: TileMosaic
    windows: int
    candidates: Candidates
    seconds_score: float


def tile_stages(settings: Settings) -> Stages:
    """The three stages of a run."""
    return Stages(
        make_read=functools.partial(TileReader, settings),
        make_model=functools.partial(TileTranslator, settings),
        make_write=functools.partial(TileWriter, settings),
    )


def facts_of(settings: Settings) -> RunFacts:
    """What the rows of the catalog say of their run."""
    return RunFacts(settings.run_id, settings.version, settings.calibrated, settings.stars)


def log_around(settings: Settings) -> Around:
    """Log lines about a tile name it and the run."""
    return lambda tile_id: log_context(run=settings.run_id, tile=tile_id)


def prepare_tile(card: Card, tile: Tile, run: RunFacts) -> PreparedTile:
    """Do with a tile, or a part of it, all that needs its card, but no network: find and measure objects, and so on."""
    from surveybridge.jobs.translating.domain import tile_domain
    from surveybridge.storage.tiles import tile_content, tile_place

    with span("registration"):
        tile = prepared(card, tile)
    with span("objects"):
        objects = find_objects(card, tile, run)
    with span("digest of the pixels"):
        content = tile_content(tile)
    place = tile_place(tile)
    if run.version >= 5:
        place["domain"] = tile_domain(card, tile)
    return PreparedTile(tile, objects, content, place | catalogued_part(card, tile) | {"psf": words(tile)})


class TileReader:
    """Reads tiles; needs no model and no GPU, and no torch unless it prepares them (`Settings.early`)."""

    def __init__(self, settings: Settings) -> None:
        from surveybridge.storage.tiles import TileStore

        start_worker(settings.filesystems)
        self.settings = settings
        self.store = TileStore.open(settings.store)
        self.around = log_around(settings)

    def __call__(self, tile_id: str) -> Tile | PreparedTile:
        """Core and halo of one tile, with something in it to translate."""
        with self.around(tile_id):
            tile = self.store.read_tile(tile_id)
            observed = self.settings.observed
            if observed not in tile.images:
                raise RequestError(f"tile {tile_id} has no {observed}, which {self.settings.direction} needs")
            image = tile.images[observed]
            usable = image.valid.all(axis=0)  # the network needs all bands of a pixel
            if not usable.any():
                raise RequestError(
                    f"tile {tile_id}: 0 of {usable.size} {observed} pixels are usable in all of {','.join(image.bands)}"
                )
            how = self.settings.homogenisation
            if how is not None:
                with span("homogenisation"):
                    tile = how.applied(tile, self._fields.get(tile.field))
            return prepare_tile(self._card, tile, facts_of(self.settings)) if self.settings.early else tile

    @functools.cached_property
    def _card(self) -> Card:
        from surveybridge.bridge_core.checkpoint import load_card

        return load_card(self.settings.checkpoint)

    @functools.cached_property
    def _fields(self) -> dict[str, FieldGrid]:
        """The fields of the store, which say how far the tiles reach beyond their cores."""
        from surveybridge.storage.manifests import fields_of

        return fields_of(self.store.manifest())


class TileTranslator:
    """Translates and scores tiles: the stage that holds the network, and the GPU where there is one."""

    def __init__(self, settings: Settings) -> None:
        import torch

        from surveybridge.bridge_core.checkpoint import load_checkpoint
        from surveybridge.bridge_core.settings import DEFAULT_BATCH

        start_worker(settings.filesystems)
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_checkpoint(settings.checkpoint)
        self.head: MapsHead | None = None
        if settings.sampling.samples == 0:
            from surveybridge.bridge_core.checkpoint import head_file
            from surveybridge.bridge_core.maps import load_head

            self.head = load_head(model, head_file(settings.checkpoint)).to(self.device)
        self.model = model.to(self.device, settings.sampling.precision)
        batch = settings.batch or DEFAULT_BATCH[self.device.type]
        self.sampling = replace(settings.sampling, batch=batch)
        self.scoring = replace(settings.scoring, batch=batch)
        self.around = log_around(settings)

    def __call__(self, tile_id: str, read: Tile | PreparedTile) -> Translation:
        """Posterior of the unseen survey over the tile's core, and the candidates in it."""
        with self.around(tile_id):
            return self.translate(read)

    def translate(self, read: Tile | PreparedTile) -> Translation:
        """Do the same as a call, without its log context."""
        from surveybridge.bridge_core.maps import map_tile
        from surveybridge.bridge_core.translate import recalibrated, translate_tile
        from surveybridge.storage.mosaics import TileMosaic
        from surveybridge.storage.tiles import core_header

        settings = self.settings
        direction = self.model.card.problem.direction(settings.direction)
        start = time.monotonic()
        known = read if isinstance(read, PreparedTile) else prepare_tile(self.model.card, read, facts_of(settings))
        preparing, tile = time.monotonic() - start, known.tile
        with span("translate"):
            scene = scene_of(tile, direction.observed.name, self.device, self.model.card)
            wanted = wanted_conditions(self.model.card, tile, direction, settings.wishes)
            consistency, why = compared_light(
                self.model.card, settings.relation, tile, direction, wanted, self.sampling.patches
            )
            place = dict(known.place) | ({"psf": unchanged(known.place["psf"], why)} if why else {})
            if self.head is None:
                posterior = translate_tile(
                    self.model, direction, scene, self.sampling, wanted=wanted, consistency=consistency
                )
            else:
                posterior = map_tile(self.model, self.head, direction, scene, self.sampling, wanted, consistency)
        if settings.calibrated:
            posterior = recalibrated(self.model, direction, posterior)
        start = time.monotonic()
        with span("candidates"):
            candidates = score_objects(self.model, tile, known.objects, self.scoring, facts_of(settings), self.device)
        return Translation(
            tile_id=tile.tile_id,
            content=known.content,
            place=place,
            mosaic=TileMosaic(
                tile_id=tile.tile_id,
                wcs_header=core_header(tile),
                bands=direction.wanted.bands,
                mean=posterior.mean.numpy(),
                std=posterior.std.numpy(),
                coverage=posterior.coverage.numpy(),
                core_origin=tile.core_origin,
                grid_id=tile.grid_id,
                unit=direction.wanted.unit,
                recalibration=self.model.card.recalibration_of(direction) if settings.calibrated else None,
                domain=known.place["domain"] if settings.version >= 5 else None,
            ),
            windows=posterior.windows,
            candidates=candidates,
            seconds_score=preparing + time.monotonic() - start,
        )


class TileWriter:
    """Writes a tile's files and, last, the ledger row that makes it count."""

    def __init__(self, settings: Settings) -> None:
        from surveybridge.storage.runs import RunFolder

        start_worker(settings.filesystems)
        self.settings = settings
        self.folder = RunFolder.open(settings.run)
        self.around = log_around(settings)

    def __call__(self, outcome: Outcome) -> dict[str, Any]:
        """Commit the tile, done or failed; returns the ledger row."""
        tile_id = outcome.item
        row: dict[str, Any] = {
            "tile_id": tile_id,
            "attempt": self.settings.attempts.get(tile_id, 0) + 1,
            **{f"seconds_{stage}": seconds for stage, seconds in outcome.seconds.items()},
        }
        with self.around(tile_id):
            if outcome.failure is None:
                start = time.monotonic()
                row |= self._write(outcome.value)
                row["seconds_score"] = outcome.value.seconds_score
                row["seconds_model"] -= outcome.value.seconds_score
                row["seconds_write"] = time.monotonic() - start
            elif outcome.failure.kind == StorageUnavailable.__name__:
                # not the tile's fault: without a ledger row a rerun does it
                return {"tile_id": tile_id, "status": "lost", "reason": outcome.failure.reason}
            else:
                row |= {
                    "status": "quarantined" if outcome.failure.quarantined else "failed",
                    "stage": outcome.failure.stage,
                    "reason": outcome.failure.reason,
                    "traceback_hash": outcome.failure.traceback_hash,
                    **self._listed.get(tile_id, {}),
                }
            with span("ledger row"):
                self.folder.commit(row)
        if outcome.failure is None and self.settings.stars is not None:
            row["stars"] = outcome.value.candidates.listed
        return row

    def _write(self, done: Translation) -> dict[str, Any]:
        with span("mosaic"):
            self.folder.write_mosaic(done.mosaic)
        with span("catalog"):
            self.folder.write_candidates(done.tile_id, done.candidates.rows)
        return {
            "status": "ok",
            "content": done.content,
            **done.place,
            "n_candidates": done.candidates.rows.num_rows,
            "n_patches": done.windows,
        }

    @functools.cached_property
    def _listed(self) -> dict[str, dict[str, Any]]:
        """Content and place of the tiles by the store's manifest: of a tile that failed, nobody has seen the pixels."""
        from surveybridge.storage.tiles import PLACE, TileStore

        rows = TileStore.open(self.settings.store).manifest().select(["tile_id", "content", *PLACE]).to_pylist()
        return {row.pop("tile_id"): row for row in rows}
