"""Translate a tile store: mosaics, uncertainty maps and anomaly candidates, streamed over Ray; resumes by itself."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs import __version__
from jobs.config import JobConfig, RequestError
from jobs.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

    from bridge_core.checkpoint import Model
    from storage.images import SurveyImage
    from storage.runs import RunFolder
    from storage.tiles import Tile, TileStore

log = logging.getLogger(__name__)

EXAMPLES = """\
surveybridge translate --store field.zarr --run runs/field
surveybridge translate --store field.zarr --run runs/back --direction 'euclid->lsst' --samples 16 --workers 2
surveybridge translate --store s3://bucket/field.zarr --run s3://bucket/runs/field --executor serial"""

APERTURE_ARCSEC = 1.0
SURVEYS = ("lsst", "euclid")


class Config(JobConfig):
    """Arguments of `surveybridge translate`."""

    store: str = Field(description="tile store, local path or URL")
    run: str = Field(description="run folder to write, local path or URL; an unfinished one of the same run is resumed")
    checkpoint: str | None = Field(None, description="checkpoint path or shipped name (default: the shipped one)")
    direction: Literal["lsst->euclid", "euclid->lsst"] = Field("lsst->euclid", description="what becomes what")
    samples: int = Field(8, ge=2, description="posterior samples K of each patch")
    steps: int = Field(8, ge=1, description="network evaluations a sample")
    score_samples: int = Field(5, ge=2, description="reconstructions K of each source for the anomaly score")
    score_steps: int = Field(8, ge=1, description="network evaluations a reconstruction")
    workers: int = Field(1, ge=1, description="actors (each on a GPU where there are any)")
    executor: Literal["ray", "serial"] = Field("ray", description="ray, or serial in this process without Ray")
    seed: int = Field(0, ge=0, description="key of the sky's noise")
    batch: int = Field(16, ge=1, description="patches in one network call")
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="arithmetic of the network")
    retry_failed: bool = Field(False, description="do tiles again that failed before")


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


def run(config: Config) -> int:
    """Translate all tiles that the ledger does not have; 0 all ok, 3 some failed."""
    from storage.runs import RunFolder, pending
    from storage.schema import SCHEMA_VERSION
    from storage.tiles import TileStore

    model = read_model(config.checkpoint)
    store = TileStore.open(config.store)
    manifest = store.manifest()
    check_request(model, store, manifest, config.direction)
    fingerprint = {
        "checkpoint_sha256": model.sha256,
        "direction": config.direction,
        "samples": config.samples,
        "steps": config.steps,
        "seed": config.seed,
        "grid": model.card.grid,
        "code_schema_version": SCHEMA_VERSION,
        "store": store.url,
    }
    folder = RunFolder.open_or_create(
        config.run, fingerprint | {"code_version": __version__, "model": model.card.name, "config": config.model_dump()}
    )
    check_resume(folder, config)
    earlier = folder.ledger()
    todo = pending(manifest, earlier, retry_failed=config.retry_failed)
    log.info(
        "%s: %d of %d tiles to do, %s with %s",
        folder.url,
        len(todo),
        manifest.num_rows,
        config.direction,
        model.card.name,
    )
    settings = Settings(
        **config.model_dump(include=set(Settings.__dataclass_fields__)),
        run_id=hashlib.sha256(repr(sorted(fingerprint.items())).encode()).hexdigest()[:12],
        threads=int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // config.workers)),
        attempts={row["tile_id"]: row["attempt"] for row in earlier.select(["tile_id", "attempt"]).to_pylist()},
    )
    start = time.monotonic()
    rows = list(progress(execute(todo, settings, config), "translate", total=len(todo)))
    wall = time.monotonic() - start
    ledger = folder.ledger().to_pylist()
    failed = [row for row in ledger if row["status"] != "ok"]
    for row in failed:
        log.warning("tile %s failed: %s", row["tile_id"], row["reason"])
    print(summary(folder.url, rows, ledger, wall))
    return 3 if failed else 0


def execute(todo: list[str], settings: Settings, config: Config) -> Iterator[dict[str, Any]]:
    """One ledger row for every tile, from Ray actors or from this process."""
    make_worker = functools.partial(TileWorker, settings)
    if config.executor == "serial":
        worker = make_worker()
        for tile_id in todo:
            yield worker(tile_id)
        return
    from cluster.connect import start_ray, stop_ray
    from cluster.stream import stream

    started = start_ray(config.workers)
    try:
        yield from stream(todo, make_worker, workers=config.workers)
    finally:
        if started:
            stop_ray()


def read_model(path: str | None) -> Model:
    """Load a checkpoint; AS-Bridge's `.pth` is imported, so that `check_request` can say why it does not fit."""
    from bridge_core.checkpoint import import_asbridge, load_checkpoint

    return import_asbridge(path) if path and path.endswith(".pth") else load_checkpoint(path)


def check_resume(folder: RunFolder, config: Config) -> None:
    """Refuse to go on with a run whose candidates were made otherwise; the fingerprint holds what makes the mosaics."""
    before = folder.run_json.get("config", {})
    for key in ("score_samples", "score_steps", "precision"):
        now = getattr(config, key)
        if before.get(key, now) != now:
            raise RequestError(
                f"run folder {folder.url} has {key} {before[key]!r} but this run has {now!r}; give another --run URL "
                f"or --{key.replace('_', '-')} {before[key]}"
            )


def check_request(model: Model, store: TileStore, manifest: pa.Table, direction: str) -> None:
    """Refuse, before anything is written, a store that the checkpoint was not made for."""
    card = model.card
    if card.grid != "mosaic":
        raise RequestError(
            f"checkpoint {card.name} is for the {card.grid} grid but {store.url} holds mosaic tiles; "
            "choose a mosaic checkpoint"
        )
    if manifest.num_rows == 0:
        raise RequestError(f"{store.url} has 0 tiles; ingest some first")
    observed = direction.split("->")[0]
    lacking = [
        row["tile_id"] for row in manifest.select(["tile_id", "surveys"]).to_pylist() if observed not in row["surveys"]
    ]
    if len(lacking) == manifest.num_rows:
        raise RequestError(
            f"{store.url}: none of its {len(lacking)} tiles has {observed}, which {direction} needs; ingest it"
        )
    for tile_id in manifest["tile_id"].to_pylist():
        try:
            tile = store.read_tile(tile_id, halo=0)
        except Exception:
            continue  # whatever is wrong with this tile, it becomes a ledger row later
        for image in tile.images.values():
            check_image(model, image, tile_id)
        return


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
            candidates = find_candidates(self.model, tile, settings, self.device)
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


def find_candidates(model: Model, tile: Tile, settings: Settings, device: Any) -> pa.Table:
    """Detect on Euclid, keep what is centred in the core, score, and make the rows of `CANDIDATES`."""
    import numpy as np
    import torch

    from bridge_core.anomaly import Scoring, score_sources
    from bridge_core.detection import aperture_flux, detect
    from storage.schema import CANDIDATES, stamps
    from storage.sky import healpix_29

    lsst, euclid = tile.lsst, tile.euclid
    if lsst is None or euclid is None:
        return CANDIDATES.empty_table()
    sources = detect(euclid.flux[0], euclid.variance[0], euclid.valid[0])
    y0, y1, x0, x1 = tile.core
    column, line = np.floor(sources.x + 0.5).astype(int), np.floor(sources.y + 0.5).astype(int)
    inside = (column >= x0) & (column < x1) & (line >= y0) & (line < y1)
    sources, column, line = sources.select(inside), column[inside], line[inside]
    if len(sources) == 0:
        return CANDIDATES.empty_table()
    centres = [(tile.origin[0] + int(y), tile.origin[1] + int(x)) for y, x in zip(line, column, strict=True)]
    how = Scoring(
        samples=settings.score_samples,
        steps=settings.score_steps,
        seed=settings.seed,
        batch=settings.batch,
        precision=settings.precision,
    )
    scores = score_sources(
        model,
        (torch.from_numpy(lsst.flux).to(device), torch.from_numpy(lsst.valid).to(device)),
        (torch.from_numpy(euclid.flux).to(device), torch.from_numpy(euclid.valid).to(device)),
        centres,
        tile.origin,
        how,
    )
    ra, dec = euclid.wcs.all_pix2world(sources.x, sources.y, 0)
    columns: dict[str, Any] = {
        "object_id": [sky_name(r, d) for r, d in zip(ra, dec, strict=True)],
        "ra": ra,
        "dec": dec,
        "_healpix_29": healpix_29(ra, dec),
        "tile_id": [tile.tile_id] * len(sources),
        "score": scores.score.numpy(),
        "score_std": scores.score_std.numpy(),
        "flags": sources.flags,
        "x": tile.origin[1] + sources.x,
        "y": tile.origin[0] + sources.y,
        "a": sources.a,
        "b": sources.b,
        "theta": sources.theta,
        "model_id": [f"{model.card.name}-{model.sha256[:12]}"] * len(sources),
        "run_id": [settings.run_id] * len(sources),
        "thumbnail_lsst": stamps("thumbnail_lsst", thumbnails(lsst, column, line)),
        "thumbnail_euclid": stamps("thumbnail_euclid", thumbnails(euclid, column, line)),
        "thumbnail_mean": stamps("thumbnail_mean", scores.mean.numpy()),
        "thumbnail_error": stamps("thumbnail_error", scores.error.numpy()),
    }
    for image in (lsst, euclid):
        radius = APERTURE_ARCSEC / image.pixel_scale
        fluxes, errors = aperture_flux(image.flux, image.variance, image.valid, sources, radius)
        for band, flux, error in zip(image.bands, fluxes, errors, strict=True):
            columns[f"flux_{band}"] = flux
            columns[f"snr_{band}"] = flux / error
    import pyarrow as pa

    return pa.table(columns)


def thumbnails(image: SurveyImage, column: Any, line: Any, size: int = 64) -> Any:
    """Windows [N, C, size, size] around pixels, NaN where masked or beyond the image."""
    import numpy as np

    half = size // 2
    flux = np.where(image.valid, image.flux, np.nan)
    padded = np.pad(flux, ((0, 0), (half, half), (half, half)), constant_values=np.nan)
    return np.stack([padded[:, y : y + size, x : x + size] for y, x in zip(line, column, strict=True)])


def sky_name(ra: float, dec: float) -> str:
    """IAU-style name from the ICRS position, to 0.01 s and 0.1 arcsec."""
    from astropy import units
    from astropy.coordinates import SkyCoord

    place = SkyCoord(ra, dec, unit="deg")
    hours = place.ra.to_string(unit=units.hourangle, sep="", precision=2, pad=True)
    degrees = place.dec.to_string(sep="", precision=1, alwayssign=True, pad=True)
    return f"SB J{hours}{degrees}"


def seeing(image: SurveyImage) -> float:
    """Widest PSF FWHM of the bands, arcsec; the pixel scale where no band's is known."""
    known = [fwhm for fwhm in image.psf_fwhm if fwhm == fwhm]  # NaN is unknown
    return max(known, default=image.pixel_scale)


def core_header(tile: Tile) -> str:
    """WCS header of the tile's core."""
    from storage.grids import shifted_header

    image = next(iter(tile.images.values()))
    return shifted_header(image.wcs_header, tile.core[0], tile.core[2])


def summary(url: str, rows: list[dict[str, Any]], ledger: list[dict[str, Any]], wall: float) -> str:
    """What was done and where the time went, for a person."""
    ok = sum(row["status"] == "ok" for row in ledger)
    stages = {s: sum(row.get(f"seconds_{s}") or 0.0 for row in rows) for s in ("read", "model", "score", "write")}
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())
    found = sum(row["n_candidates"] or 0 for row in ledger)
    return (
        f"{url}: {ok} of {len(ledger)} tiles ok, {len(ledger) - ok} failed; {found} sources scored\n"
        f"this run: {len(rows)} tiles in {wall:.1f} s; summed over workers: {spent}"
    )


@contextmanager
def _clock(row: dict[str, Any], column: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        row[column] = time.monotonic() - start
