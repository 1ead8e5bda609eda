"""The stages of a profiled run: those of any run, with a recorder around the work on each tile."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from surveybridge.cluster.stages import Stages
from surveybridge.jobs.profiling.operators import profile_operators
from surveybridge.jobs.profiling.spans import Profiled, TimedFolder, recorded
from surveybridge.jobs.translating.stages import Around, Settings, TileReader, TileTranslator, TileWriter


def profiled_stages(profiled: Profiled, settings: Settings) -> Stages:
    """The three stages of a run, which leave their spans in the folder of the profile."""
    return Stages(
        make_read=functools.partial(_reader, profiled, settings),
        make_model=functools.partial(_translator, profiled, settings),
        make_write=functools.partial(_writer, profiled, settings),
    )


def _reader(profiled: Profiled, settings: Settings) -> TileReader:
    stage = TileReader(settings)
    stage.store.folder = TimedFolder.of(stage.store.folder)
    stage.around = _recording(stage.around, profiled, "read")
    return stage


def _translator(profiled: Profiled, settings: Settings) -> TileTranslator:
    stage = TileTranslator(settings)
    profile_operators(stage.translate, profiled, settings.store, stage.sampling)
    stage.around = _recording(stage.around, profiled, "model", gpu=stage.device.type == "cuda")
    return stage


def _writer(profiled: Profiled, settings: Settings) -> TileWriter:
    stage = TileWriter(settings)
    stage.folder.folder = TimedFolder.of(stage.folder.folder)
    stage.around = _recording(stage.around, profiled, "write")
    return stage


def _recording(around: Around, profiled: Profiled, stage: str, *, gpu: bool = False) -> Around:
    """Return a context for the work on a tile: the given one, and the recorder inside it."""

    @contextlib.contextmanager
    def both(tile_id: str) -> Iterator[None]:
        with around(tile_id), recorded(profiled, stage, tile_id, gpu=gpu):
            yield

    return both
