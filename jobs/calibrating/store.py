"""Calibration on the sky of a tile store: which tiles, the work on them, and what follows from what they found."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.bridge_core.false_alarms import FEWEST, FalseAlarms, fit_false_alarms, held_out_rates
from surveybridge.bridge_core.pulls import KNOTS, PullCounts, fit_scale, held_out_coverage
from surveybridge.bridge_core.recalibration import Recalibration, StdScale
from surveybridge.bridge_core.settings import WINDOW_PIXELS, PatchGrid, Sampling, Scoring
from surveybridge.bridge_core.translate import sampler_steps, with_shared_start
from surveybridge.jobs.calibrating.stages import Counts, Settings, calibration_stages, noise_of, parts, read_counts
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.running.progress import progress
from surveybridge.jobs.running.threads import threads
from surveybridge.jobs.translating.config import NOISE_BOUND
from surveybridge.jobs.translating.homogenising import Homogenisation
from surveybridge.jobs.translating.request import check_request
from surveybridge.jobs.translating.windows import halo_of_store, windows_for
from surveybridge.storage.celestial import celestial_wcs
from surveybridge.storage.crossmatch import Targets, read_targets
from surveybridge.storage.held_back import HeldBack, cell_arcsec, order_of
from surveybridge.storage.manifests import fields_of, store_id_of, tiles_with
from surveybridge.storage.objectstore import Folder, configured
from surveybridge.storage.parquet import read_parquet
from surveybridge.storage.runs import without_secrets
from surveybridge.storage.star_lists import near_tiles
from surveybridge.storage.tiles import TileStore

if TYPE_CHECKING:
    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.bridge_core.problem import Direction

log = logging.getLogger(__name__)

FALSE_ALARM = 0.01
"""Rate at which the summary counts objects and lenses."""
SAMPLED = 16
"""Pixels between the positions by which a tile is taken to show sky that is held back."""
BANDS = ("g", "r", "i", "VIS")
"""Bands in which arcs are simulated."""


@dataclass(frozen=True)
class Asked:
    """A calibration as it was asked for: `tiles` is the largest number, `lenses` that of arcs in a tile.

    With `hold_back` only sky counts that a training with this share held back. Objects within `known_lenses_radius`
    arcsec of what the table `known_lenses` lists are no ordinary ones.
    """

    store: str
    checkpoint: str | None
    out: str
    to: str | None
    tiles: int
    lenses: int
    hold_back: float | None
    hold_back_order: int | None
    known_lenses: str | None
    known_lenses_radius: float
    sampling: Sampling
    patch: int | str | None
    """Windows of the tiles; None for those of the card."""
    batch: int | None
    executor: Literal["ray", "serial"]
    workers: int


@dataclass(frozen=True)
class Gathered:
    """What all tiles found: counts by direction and band, and the tables of ordinary objects and of lenses."""

    counts: Counts
    ordinary: pa.Table | None
    lenses: pa.Table | None


def calibrate_on_store(model: Model, asked: Asked) -> tuple[Card | None, int]:
    """Translate tiles, compare with what was observed, and print what follows.

    Returns
    -------
    Card or None
        That of the model with its recalibration, and with the windows through which it was measured; None if no tile
        could be done.
    int
        Number of tiles that failed, which are left out.
    """
    store = TileStore.open(asked.store)
    manifest = store.manifest()
    held_back = None if asked.hold_back is None else held_back_of(model, asked)
    tiles, directions = check(model, store, manifest, held_back, asked)
    settings = settings_of(model, store, tiles, directions, held_back, asked)
    say_cost(model, manifest, tiles, settings)
    out = Folder.at(asked.out)
    failed = {one["tile_id"]: one["reason"] for one in _receipts(tiles, settings, asked) if one["status"] != "ok"}
    for tile, reason in failed.items():
        log.error("tile %s: %s", tile, reason)
    done = [tile for tile in tiles if tile not in failed]
    gathered = gather(out, done)
    out.delete_many([file for tile in tiles for file in parts(tile).values()])
    if not done:
        return None, len(failed)
    intervals = {
        direction: {
            band: fit_scale(counts, settings.noise[direction][band], settings.sampling.samples)
            for band, counts in bands.items()
        }
        for direction, bands in gathered.counts.items()
    }
    for direction, bands in intervals.items():
        for band, scale in bands.items():
            print_scale(f"{direction} {band}", gathered.counts[direction][band], scale, settings.sampling.samples)
    false_alarms = rates_of(gathered)
    rows = manifest.filter(pc.is_in(manifest["tile_id"], pa.array(done, pa.string())))
    provenance = {
        "checkpoint": model.card.name,
        "checkpoint_sha256": model.sha256,
        "store": without_secrets(store.url),
        "store_id": store_id_of(manifest),
        "fields": sorted(rows["field"].unique().to_pylist()),
        "tiles": len(done),
        "samples": settings.sampling.samples,
        "steps": settings.sampling.steps,
        "seed": settings.sampling.seed,
        "held_back": None if held_back is None else held_back.document,
        "objects": false_alarms.objects if false_alarms else 0,
        "known_lenses": 0 if settings.known_lenses is None else len(settings.known_lenses.ra),
    }
    found = Recalibration(intervals, false_alarms, provenance)
    return replace(model.card, recalibration=found, patch=settings.sampling.patches.stated), len(failed)


def held_back_of(model: Model, asked: Asked) -> HeldBack:
    """Return the part of the sky that a training holds back, by the width of its windows where no order is given."""
    scale = model.card.problem.endpoints[0].pixel_scale
    order = asked.hold_back_order or order_of(PatchGrid.size * scale)
    return HeldBack(float(asked.hold_back or 0), order, asked.sampling.seed)


def check(
    model: Model, store: TileStore, manifest: pa.Table, held_back: HeldBack | None, asked: Asked
) -> tuple[list[str], list[Direction]]:
    """Tiles to look at, spread over the store, and directions; refuse what cannot be calibrated."""
    problem = model.card.problem
    directions = [problem.to(asked.to)] if asked.to else list(problem.directions)
    for direction in directions:
        check_request(model, store, manifest, direction, asked.patch)
    first, second = (end.name for end in problem.endpoints)
    both = tiles_with(tiles_with(manifest, first), second)
    if both.num_rows == 0:
        raise RequestError(
            f"{store.url}: none of its {manifest.num_rows} tiles has both {first} and {second}, by which predictions "
            "are judged; ingest both"
        )
    if held_back is not None:
        both = both.filter(pa.array(has_held_sky(both, held_back)))
        if both.num_rows == 0:
            raise RequestError(
                f"{store.url}: none of its tiles shows any of the {held_back.share:.0%} of the sky that are held back "
                f'in cells of {cell_arcsec(held_back.order):.0f}"; give --hold-back and --hold-back-order as in the '
                "training, or leave them out"
            )
    order = both.sort_by("_healpix_29")["tile_id"].to_pylist()
    tiles = sorted({order[k] for k in np.linspace(0, len(order) - 1, asked.tiles).round().astype(int)})
    if asked.lenses and problem.scored is not None and model.card.discriminant is not None:
        _check_simulator()
        others = [band for end in problem.endpoints for band in end.bands if band not in BANDS]
        if others:
            raise RequestError(
                f"arcs are simulated in {', '.join(BANDS)}, but problem {problem.name} has {', '.join(others)}; give "
                "--no-arcs"
            )
    return tiles, directions


def has_held_sky(tiles: pa.Table, held_back: HeldBack) -> NDArray[np.bool_]:
    """Return whether tiles show sky that is held back, by positions `SAMPLED` pixels apart in their cores."""
    grids = {name: celestial_wcs(field.wcs_header) for name, field in fields_of(tiles).items()}
    found = []
    for row in tiles.select(["field", "core_y0", "core_x0", "core_height", "core_width"]).to_pylist():
        y, x = np.mgrid[0 : row["core_height"] : SAMPLED, 0 : row["core_width"] : SAMPLED]
        ra, dec = grids[row["field"]].all_pix2world(x.ravel() + row["core_x0"], y.ravel() + row["core_y0"], 0)
        found.append(bool(held_back.at(ra, dec).any()))
    return np.array(found, bool)


def _check_simulator() -> None:
    """Refuse arcs where the simulator's packages lack."""
    try:
        import surveybridge.jobs.simulating.injection  # noqa: F401
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"arcs need the package {missing.name}, which is not installed; pip install 'surveybridge[sim]', or give "
            "--no-arcs"
        ) from None


def settings_of(
    model: Model,
    store: TileStore,
    tiles: Sequence[str],
    directions: Sequence[Direction],
    held_back: HeldBack | None,
    asked: Asked,
) -> Settings:
    """The settings of the stages; the noise is that of the first tile."""
    tile = store.read_tile(tiles[0], halo=0)
    windows = windows_for(model.card, asked.patch, halo_of_store(store.manifest()))
    scored = model.card.problem.scored is not None and model.card.discriminant is not None
    return Settings(
        store=asked.store,
        checkpoint=asked.checkpoint,
        out=asked.out,
        noise={str(one): noise_of(one.wanted, tile.images[one.wanted.name]) for one in directions},
        sampling=with_shared_start(model.card, replace(asked.sampling, patches=windows)),
        # the catalog's other score, which nobody looks at here, is not made
        scoring=Scoring(seed=asked.sampling.seed, reconstruct=0.0) if scored else None,
        homogenisation=Homogenisation.of_card(model.card, NOISE_BOUND),
        lenses=asked.lenses,
        held_back=held_back,
        known_lenses=known_lenses_of(store.manifest(), asked),
        batch=asked.batch,
        threads=threads(asked.workers),
        fields=fields_of(store.manifest()),
        filesystems=configured(),
    )


def known_lenses_of(manifest: pa.Table, asked: Asked) -> Targets | None:
    """Known lenses in or around the tiles of a store; RequestError if a table is given, and none of its rows is."""
    if asked.known_lenses is None:
        return None
    listed = read_targets(asked.known_lenses, asked.known_lenses_radius)
    near = near_tiles(manifest, listed.ra, listed.dec) if len(listed.ra) else np.zeros(0, np.bool_)
    if not near.any():
        raise RequestError(
            f"--known-lenses {asked.known_lenses}: 0 of {len(near)} lenses lie in or around the {manifest.num_rows} "
            "tiles; give a table of this part of the sky, in degrees, or leave it out"
        )
    log.info("%s: %d of %d lenses lie in or around the tiles", asked.known_lenses, near.sum(), len(near))
    return Targets(listed.ra[near], listed.dec[near], pa.table({}), listed.radius)


def say_cost(model: Model, manifest: pa.Table, tiles: Sequence[str], settings: Settings) -> None:
    """Log what the calibration will take, before it begins."""
    how = settings.sampling
    rows = manifest.filter(pc.is_in(manifest["tile_id"], pa.array(tiles, pa.string())))
    y, x, height, width = (
        rows[name].to_numpy().astype(np.int64) for name in ("core_y0", "core_x0", "core_height", "core_width")
    )
    windows, pixels = (len(settings.noise) * n.sum() for n in how.patches.count((y, y + height, x, x + width)))
    steps = len(sampler_steps(model.card, how))
    scored = ""
    if settings.scoring is not None and model.card.discriminant is not None:
        each = 2 * model.card.discriminant.draws + settings.scoring.samples * settings.scoring.steps
        scored = (
            f", and {each} for each object, with arcs and without" if settings.lenses else f", and {each} an object"
        )
    log.info(
        "%s: %d of %d tiles, %s: %d windows, %d network evaluations of 64 x 64 pixels%s",
        settings.store,
        len(tiles),
        manifest.num_rows,
        " and ".join(settings.noise),
        windows,
        round(pixels / WINDOW_PIXELS) * how.evaluations(steps),
        scored,
    )


def gather(out: Folder, tiles: Sequence[str]) -> Gathered:
    """Add up what the tiles left, in their order."""
    found = out.read_existing([file for tile in tiles for file in parts(tile).values()])
    counts: Counts = {}
    for tile in tiles:
        for direction, bands in read_counts(found[parts(tile)["counts"]]).items():
            whole = counts.setdefault(direction, {})
            for band, part in bands.items():
                whole[band] = whole.get(band, PullCounts.zero()) + part
    tables = {}
    for what in ("ordinary", "lenses"):
        files = [found[name] for tile in tiles if (name := parts(tile)[what]) in found]
        tables[what] = pa.concat_tables([read_parquet(data) for data in files]) if files else None
    return Gathered(counts, tables["ordinary"], tables["lenses"])


def print_scale(what: str, counts: PullCounts, scale: StdScale, samples: int, least: float = 0.0) -> None:
    """Print the factors of a band, none below `least`, and the coverage before and after by predicted S/N."""
    before, after = counts.coverage(samples), held_out_coverage(counts, scale.noise, samples, least)
    print(f"{what}: share of pixels in the 68% interval; after: each half of the sky by the factors of the other")
    print("  S/N predicted       before   after   pixels")
    edges = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(KNOTS)]
    for edge, one, other, pixels in zip(edges, before.shares, after.shares, before.pixels, strict=True):
        if pixels:
            print(f"  {edge:18} {one:7.1%} {other:7.1%} {int(pixels):8d}")
    for name, low in (("all", KNOTS[0]), ("above 3", 3.0)):
        shares = (one.between(low, KNOTS[-1]) for one in (before, after))
        print("  {:18} {:7.1%} {:7.1%}".format(name, *shares))
    knots = zip(scale.snr, scale.factor, scale.error, scale.blocks, strict=True)
    print("  factor of std: " + ", ".join(f"{f:.3f} at {s:.3g} (±{e:.1%}, {b} blocks)" for s, f, e, b in knots))


def rates_of(gathered: Gathered) -> FalseAlarms | None:
    """Learn the rates of false alarms, and print them before and after; None where there are too few objects."""
    if gathered.ordinary is None:
        return None
    table = gathered.ordinary
    if table.num_rows < FEWEST:
        log.warning(
            "%d ordinary objects in these tiles, but rates of false alarms need %d; they stay as they are, give more "
            "--tiles",
            table.num_rows,
            FEWEST,
        )
        return None
    inputs, groups = _inputs(table), pc.dictionary_encode(table["system_id"]).combine_chunks().indices.to_numpy()
    found = fit_false_alarms(*inputs, groups.astype(np.int64))
    before = table["false_alarm"].to_numpy()
    after = held_out_rates(*inputs, groups.astype(np.int64))
    print(
        f"{table.num_rows} ordinary objects: {(before < FALSE_ALARM).mean():.2%} of them have a rate of false alarms "
        f"below {FALSE_ALARM:g}, {(after < FALSE_ALARM).mean():.2%} after calibration on others"
    )
    if gathered.lenses is not None:
        score, flux, colour, conditions = _inputs(gathered.lenses)
        lenses = found.rate(score, flux, colour, np.stack(list(conditions.values()), -1))
        before = gathered.lenses["false_alarm"].to_numpy()
        print(
            f"{len(score)} of them with simulated arcs: {(before < FALSE_ALARM).mean():.1%} below {FALSE_ALARM:g}, "
            f"{(lenses < FALSE_ALARM).mean():.1%} after"
        )
    return found


Floats = np.ndarray[Any, np.dtype[np.float64]]


def _inputs(table: pa.Table) -> tuple[Floats, Floats, Floats, dict[str, Floats]]:
    """Score, flux, colour, and conditions by name."""
    names = [name for name in table.column_names if name.endswith((" fwhm", " noise"))]
    score, flux, colour = (table[name].to_numpy() for name in ("score", "flux", "colour"))
    return score, flux, colour, {name: table[name].to_numpy() for name in names}


def _receipts(tiles: Sequence[str], settings: Settings, asked: Asked) -> Iterator[dict[str, Any]]:
    """Receipts of all tiles; each has left its files."""
    from surveybridge.cluster.stages import serially

    stages = calibration_stages(settings)
    if asked.executor == "serial":
        yield from progress(serially(tiles, stages), "calibrate", total=len(tiles))
        return
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.stream import Stream

    started = start_ray(asked.workers)
    try:
        stream = Stream(list(tiles), stages, workers=(1, asked.workers))
        yield from progress(iter(stream), "calibrate", total=len(tiles))
    finally:
        if started:
            stop_ray()
