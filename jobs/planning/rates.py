"""Rates of a translation on this machine: the stages themselves, run on a few tiles or parts of them."""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from surveybridge.bridge_core.anomaly import SOURCES
from surveybridge.bridge_core.settings import WINDOW_PIXELS
from surveybridge.bridge_core.spans import listening
from surveybridge.cluster.stages import Failure, Outcome, model_outcome, read_outcome, write_outcome
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running.progress import quiet
from surveybridge.jobs.translating.sources import find_sources
from surveybridge.jobs.translating.stages import tile_stages
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.runs import RunFolder, candidates_path, ledger_path, mosaic_path
from surveybridge.storage.schema import CANDIDATES, SCHEMA_VERSION
from surveybridge.storage.tiles import part_of

if TYPE_CHECKING:
    from surveybridge.jobs.translating.stages import Settings
    from surveybridge.storage.tiles import Tile, TileStore

FAILURES_ALLOWED = 20
"""So many damaged tiles are passed over before calibration gives up."""

FIRST_SIDE = 40
"""Core of the part that warms up and tells how much may be done in the time, pixels."""

USUAL_SOURCES = 10
"""So many sources are taken to be reconstructed as often as is usual, so that a few that were seen do not decide."""

PARTS = 4
"""Number of parts of a tile for which the time must be enough, if tiles are larger."""


@dataclass(frozen=True)
class Rates:
    """Measured rates per unit of work. Seconds, bytes; an `evaluation` is 64 x 64 pixels through the network once.

    Parameters
    ----------
    tiles, tile_side
        Tiles looked at, and the side of what was translated of each (root of the mean area), pixels.
    read
        Seconds a byte of the tile uncompressed.
    translate, score
        Seconds an evaluation.
    detect
        Seconds a pixel of a tile with both ends, its halo included, until its sources are scored.
    write_tile, write_pixel
        Seconds a tile, and more for each pixel of its core.
    load
        Seconds until the first tile: checkpoint and stores.
    live
        Share of the windows that have a usable pixel, by their pixels.
    sources_per_pixel
        Sources by pixel of the core.
    stored
        Bytes in storage by byte uncompressed.
    mosaic_bytes, candidates_bytes, source_bytes, ledger_bytes
        Written: by pixel, tile, source and tile.
    gpu_bytes
        Largest use of the GPU's memory, None without one.
    reconstructed
        Share of the sources that are reconstructed.
    """

    device: str
    gpus: int
    threads: int
    tiles: int
    tile_side: float
    seconds: float
    load: float
    read: float
    translate: float
    score: float
    detect: float
    write_tile: float
    write_pixel: float
    live: float
    sources_per_pixel: float
    stored: float
    mosaic_bytes: float
    candidates_bytes: float
    source_bytes: float
    ledger_bytes: float
    gpu_bytes: int | None
    reconstructed: float = 1.0


def calibrate(
    store: TileStore,
    todo: Sequence[str],
    settings: Settings,
    run_json: Mapping[str, Any],
    each: Mapping[str, int],
    seconds: float,
) -> tuple[Rates, Tile]:
    """Read, translate and write as a worker would, into a temporary folder.

    Parameters
    ----------
    store, todo
        The tiles; a few of `todo`, spread over it, are taken.
    settings
        Of the run.
    run_json
        As for `RunFolder.open_or_create`.
    each
        Evaluations of a window ("translate"), of a source ("score"), and more of one that is reconstructed.
    seconds
        How long it may take; one tile or part of it is always done.

    Returns
    -------
    tuple of Rates and Tile
        The rates, and a tile of the store as it was read.

    Raises
    ------
    RequestError
        If none of the first tiles can be translated.
    """
    with tempfile.TemporaryDirectory(prefix="surveybridge-plan-") as folder, quiet("surveybridge.jobs", logging.ERROR):
        return _Calibration(store, replace(settings, run=folder), run_json, each).go(spread(todo), seconds)


def spread(items: Sequence[str]) -> list[str]:
    """The items in an order of which every beginning is spread evenly over them (van der Corput's)."""
    bits = max(1, (len(items) - 1).bit_length())
    order = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(min(1 << bits, 4096)))
    places = dict.fromkeys(min(n * len(items) >> bits, len(items) - 1) for n in order)
    return [items[place] for place in places]


class _Stopwatch:
    """Listener that adds up the seconds of the spans of one name."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds = name, 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        if name == self.name:
            self.seconds += time.monotonic() - start


class _Calibration:
    def __init__(
        self, store: TileStore, settings: Settings, run_json: Mapping[str, Any], each: Mapping[str, int]
    ) -> None:
        begin = time.monotonic()
        self.store = store
        self.settings = settings
        self.each = each
        self.folder = RunFolder.open_or_create(settings.run, run_json)
        stages = tile_stages(settings)
        self.read, self.model, self.write = stages.make_read(), stages.make_model(), stages.make_write()
        self.catalog = self.folder.problem["catalog"]
        self.load = time.monotonic() - begin
        self.sum: defaultdict[str, float] = defaultdict(float)

    def go(self, tiles: Sequence[str], seconds: float) -> tuple[Rates, Tile]:
        """Measure tile by tile until the time is over."""
        begin = time.monotonic()
        failures: list[str] = []
        side, seen = 0, None
        for tile_id in tiles:
            outcome = read_outcome(self.read, tile_id)
            if outcome.failure is None and side == 0:
                side = self._warm_up(outcome, seconds / PARTS)
                outcome = read_outcome(self.read, tile_id)  # once more, now that everything is loaded
                begin = time.monotonic()
            failure = outcome.failure or self._measure(outcome, side)
            if failure is None:
                seen = outcome.value
            else:
                failures.append(f"tile {tile_id}: {failure.reason}")
            if len(failures) >= FAILURES_ALLOWED or (seen and time.monotonic() - begin > seconds):
                break
        if seen is None:
            raise RequestError(
                f"{self.store.url}: 0 of {len(failures)} tiles tried can be translated; {failures[0]}; ingest it again"
            )
        return self._rates(time.monotonic() - begin), seen

    def _warm_up(self, outcome: Outcome, seconds: float) -> int:
        """Side of the core that there is time for, from a small part done twice: the first loads and compiles."""
        small = replace(outcome, value=part_of(outcome.value, FIRST_SIDE))
        self._try(small)
        trial = self._try(small)
        if isinstance(trial, Failure):
            return FIRST_SIDE
        self.sum["write_tile"] = trial["write"]
        spent = trial["translate"] + trial["detect"] + trial["score"]
        one = spent / max(trial["evaluations"] + trial["score_evaluations"], 1)
        evaluations = seconds / max(one * self.each["translate"], 1e-9)
        return max(FIRST_SIDE, self.settings.sampling.patches.core_side(evaluations * WINDOW_PIXELS))

    def _measure(self, outcome: Outcome, side: int) -> Failure | None:
        """Add one tile, or why it cannot be translated."""
        tile: Tile = outcome.value
        trial = self._try(replace(outcome, value=part_of(tile, side)))
        if isinstance(trial, Failure):
            return trial
        for name, value in trial.items():
            self.sum[name] += value
        if self.catalog is not None and len(tile.images) == 2:
            # with the halo, whose sources are as many by pixel: an object cut by the core's border counts once
            found_on = tile.images[self.catalog]
            self.sum["sources"] += len(
                find_sources(found_on, (0, tile.shape[0], 0, tile.shape[1]), SCHEMA_VERSION).sources
            )
            self.sum["scored_pixels"] += math.prod(tile.shape)
        self.sum["tiles"] += 1
        self.sum["read"] += outcome.seconds["read"]
        self.sum["bytes"] += sum(a.nbytes for i in tile.images.values() for a in (i.flux, i.variance, i.mask))
        place = self.store.folder.path("tiles", tile.tile_id)
        self.sum["stored_bytes"] += int(self.store.folder.filesystem.du(place))
        return None

    def _try(self, outcome: Outcome) -> dict[str, float] | Failure:
        """Translate and write what was read; return how long that took."""
        tile: Tile = outcome.value
        watch = _Stopwatch(SOURCES)
        with listening(watch):
            done = model_outcome(self.model, outcome)
        if done.failure is not None:
            return done.failure
        start = time.monotonic()
        row = write_outcome(self.write, done)
        write = time.monotonic() - start
        if row["status"] != "ok":
            return Failure("write", str(row["reason"]), "")
        rows = done.value.candidates.rows
        (y, x), (height, width) = tile.core_origin, tile.core_shape
        windows, pixels = self.settings.sampling.patches.count((y, y + height, x, x + width))
        live = pixels * done.value.windows / windows
        found = rows.num_rows
        reconstructed = len(rows["score_asbridge"].drop_null()) if found else 0
        paths = {
            "mosaic_bytes": mosaic_path(tile.tile_id),
            "candidates_bytes": candidates_path(tile.tile_id),
            "ledger_bytes": ledger_path(tile.tile_id),
        }
        written = self.folder.folder.read_existing(list(paths.values()))  # a run of maps only has no candidates
        sizes = {name: len(written.get(path, b"")) for name, path in paths.items()}
        return {
            "seen": pixels,
            "live": live,
            "evaluations": live / WINDOW_PIXELS * self.each["translate"],
            "score_evaluations": found * self.each["score"] + reconstructed * self.each["reconstruct"],
            "translate": done.seconds["model"] - done.value.seconds_score,
            "score": watch.seconds,
            "detect": done.value.seconds_score - watch.seconds,
            "detect_pixels": math.prod(tile.shape) if len(tile.images) == 2 else 0,
            "write": write,
            "pixels": done.value.mosaic.coverage.size,
            "found": found,
            "reconstructed": reconstructed,
            **sizes,
        }

    def _rates(self, seconds: float) -> Rates:
        total = self.sum
        tiles = int(total["tiles"])
        none = len(parquet_bytes(CANDIDATES.empty_table(), votable=True)) if total["candidates_bytes"] else 0
        translate = total["translate"] / max(total["evaluations"], 1)
        gpus = torch.cuda.device_count()
        usual = self.settings.scoring.reconstruct if self.each["score"] else 1.0
        return Rates(
            device=torch.cuda.get_device_name() if gpus else f"CPU ({platform.machine()})",
            gpus=gpus,
            threads=self.settings.threads,
            tiles=tiles,
            tile_side=math.sqrt(total["pixels"] / tiles),
            seconds=seconds,
            load=self.load,
            read=total["read"] / total["bytes"],
            translate=translate,
            # without a source in any part an evaluation costs as much
            score=total["score"] / total["score_evaluations"] if total["score_evaluations"] else translate,
            detect=total["detect"] / max(total["detect_pixels"], 1),
            write_tile=total["write_tile"],
            write_pixel=max(total["write"] - tiles * total["write_tile"], 0.0) / total["pixels"],
            live=total["live"] / total["seen"],
            sources_per_pixel=total["sources"] / max(total["scored_pixels"], 1),
            stored=total["stored_bytes"] / total["bytes"],
            mosaic_bytes=total["mosaic_bytes"] / total["pixels"],
            candidates_bytes=none,
            source_bytes=max(total["candidates_bytes"] - tiles * none, 0) / max(total["found"], 1),
            ledger_bytes=total["ledger_bytes"] / tiles,
            gpu_bytes=torch.cuda.max_memory_allocated() if gpus else None,
            reconstructed=(total["reconstructed"] + USUAL_SOURCES * usual) / (total["found"] + USUAL_SOURCES),
        )
