"""One tile from reading to its ledger row: what `translate` runs in every actor, or in its own process."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jobs.candidates import find_candidates
from jobs.config import RequestError

if TYPE_CHECKING:
    from bridge_core.checkpoint import Model
    from storage.images import SurveyImage
    from storage.tiles import Tile


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know, resolved: everything that decides the pixels, and where they go."""

    store: str
    run: str
    checkpoint: str | None
    direction: str
    samples: int
    steps: int
    score_samples: int
    score_steps: int
    seed: int
    batch: int
    precision: Literal["bfloat16", "float32"]
    run_id: str
    threads: int
    attempts: Mapping[str, int]


class TileWorker:
    """Does whole tiles: read, translate, score, write, commit. Its failures become ledger rows."""

    def __init__(self, settings: Settings) -> None:
        import torch

        from bridge_core.checkpoint import load_checkpoint
        from storage.runs import RunFolder
        from storage.tiles import TileStore

        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_checkpoint(settings.checkpoint).to(self.device, settings.precision)
        self.store = TileStore.open(settings.store)
        self.folder = RunFolder.open(settings.run)

    def __call__(self, tile_id: str) -> dict[str, Any]:
        """Do one tile and commit its ledger row, which is also returned."""
        row: dict[str, Any] = {"tile_id": tile_id, "attempt": self.settings.attempts.get(tile_id, 0) + 1}
        try:
            self._translate(tile_id, row)
            row["status"] = "ok"
        except Exception as error:
            frames = [f"{frame.name}:{frame.line}" for frame in traceback.extract_tb(error.__traceback__)]
            row |= {
                "status": "failed",
                "reason": " ".join(f"{type(error).__name__}: {error}".split()),
                "traceback_hash": hashlib.sha256("\n".join(frames).encode()).hexdigest()[:12],
            }
        self.folder.commit(row)
        return row

    def _translate(self, tile_id: str, row: dict[str, Any]) -> None:
        import torch

        from bridge_core.anomaly import Scoring
        from bridge_core.translate import Sampling, translate_tile

        settings, direction = self.settings, self.settings.direction
        with _clock(row, "seconds_read"):
            tile = self.store.read_tile(tile_id)
        observed, wanted = direction.split("->")
        if observed not in tile.images:
            raise RequestError(f"tile {tile_id} has no {observed}, which {direction} needs")
        for image in tile.images.values():
            check_image(self.model, image, tile_id)
        image = tile.images[observed]
        usable = image.valid.all(axis=0)  # the network needs all bands of a pixel
        if not usable.any():
            raise RequestError(
                f"tile {tile_id}: 0 of {usable.size} {observed} pixels are usable in all of {','.join(image.bands)}"
            )
        with _clock(row, "seconds_model"):
            posterior = translate_tile(
                self.model,
                direction,
                torch.from_numpy(image.flux).to(self.device),
                torch.from_numpy(image.valid).to(self.device),
                origin=tile.origin,
                core=tile.core,
                psf_fwhm=seeing(image) / image.pixel_scale,
                how=Sampling(
                    samples=settings.samples,
                    steps=settings.steps,
                    seed=settings.seed,
                    batch=settings.batch,
                    precision=settings.precision,
                ),
            )
        with _clock(row, "seconds_score"):
            how = Scoring(
                samples=settings.score_samples,
                steps=settings.score_steps,
                seed=settings.seed,
                batch=settings.batch,
                precision=settings.precision,
            )
            candidates = find_candidates(self.model, tile, how, settings.run_id, self.device)
        with _clock(row, "seconds_write"):
            self.folder.write_mosaic(
                tile_id,
                core_header(tile),
                self.model.card.bands[wanted],
                posterior.mean.numpy(),
                posterior.std.numpy(),
                posterior.coverage.numpy(),
                core_origin=tile.core_origin,
                grid_id=tile.grid_id,
            )
            self.folder.write_candidates(tile_id, candidates)
        row |= {"n_candidates": candidates.num_rows, "n_patches": posterior.windows}


def check_image(model: Model, image: SurveyImage, tile_id: str) -> None:
    """Refuse an image whose pixels or bands the checkpoint does not know."""
    card = model.card
    expected = card.pixel_scale[image.survey]
    if abs(image.pixel_scale / expected - 1) > 0.01:
        raise RequestError(
            f'tile {tile_id}: {image.survey} pixel scale {image.pixel_scale:.3f}" but checkpoint {card.name} expects '
            f'{expected:.3f}"; re-ingest onto that grid or choose another checkpoint'
        )
    if image.bands != card.bands[image.survey]:
        raise RequestError(
            f"tile {tile_id}: {image.survey} bands {','.join(image.bands)} but checkpoint {card.name} expects "
            f"{','.join(card.bands[image.survey])}; re-ingest with those bands"
        )


def seeing(image: SurveyImage) -> float:
    """Widest PSF FWHM of the bands, arcsec; the pixel scale where no band's is known."""
    known = [fwhm for fwhm in image.psf_fwhm if fwhm == fwhm]  # NaN is unknown
    return max(known, default=image.pixel_scale)


def core_header(tile: Tile) -> str:
    """WCS header of the tile's core."""
    from storage.grids import shifted_header

    image = next(iter(tile.images.values()))
    return shifted_header(image.wcs_header, tile.core[0], tile.core[2])


@contextmanager
def _clock(row: dict[str, Any], column: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        row[column] = time.monotonic() - start
