"""How well a shared field is translated: FITS in, both directions, numbers out (JSON, and a PNG of the seams).

    python -m benchmarks.field --out benchmarks/results/field.json                  # all of it, some CPU hours
    python -m benchmarks.field --work runs/look --tiles 2 --samples 4 --steps 6     # a quick look
    python -m benchmarks.field --store field.zarr --run runs/done                   # measure an existing run

Both translations resume, so a long run may be done in parts: finished tiles are kept when it is stopped.
`surveybridge translate` does the work, serially, in this process; none of its code is repeated here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.field_measures import (
    Field,
    by_phase,
    coverages,
    flux_ratios,
    ideal_coverage,
    isolated_galaxies,
    read_field,
    seams,
)
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.settings import PatchGrid
from surveybridge.jobs import ingest, translate
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "field"
GRID = PatchGrid()


def main() -> None:
    """Make or read the runs, and print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of field_euclid_vis.fits and its companions")
    parser.add_argument("--work", type=Path, default=Path("runs/field"), help="store and runs are made here")
    parser.add_argument("--out", type=Path, help="JSON to write; the seams go beside it as PNG")
    parser.add_argument("--store", help="measure only: the store of --run")
    parser.add_argument("--run", action="append", default=[], help="measure only: an existing run (repeatable)")
    parser.add_argument("--directions", nargs="+", help="such as 'lsst->euclid' (default: all of the checkpoint's)")
    parser.add_argument("--tiles", type=int, help="number of tiles, from the middle of the field (default: all)")
    parser.add_argument("--checkpoint")
    for name in ("samples", "steps", "seed", "batch"):
        parser.add_argument(f"--{name}", type=int, default=translate.Config.model_fields[name].default)
    parser.add_argument("--precision", default=translate.Config.model_fields["precision"].default)
    arguments = parser.parse_args()
    store = arguments.store or make_store(arguments.data, arguments.work, arguments.tiles)
    runs = arguments.run or [translate_store(store, direction, arguments) for direction in asked_directions(arguments)]
    truth = pd.read_parquet(arguments.data / "field_truth.parquet")
    report: dict[str, Any] = {}
    for run in runs:
        direction = str(RunFolder.open(run).run_json["direction"])
        field = read_field(run, store)
        report[direction] = measure(field, truth) | {"run": settings(run)}
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            draw_seams(field, arguments.out.with_name(f"{arguments.out.stem}-seams-{direction.replace('->', '-')}.png"))
    text = json.dumps(rounded(report), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def asked_directions(arguments: argparse.Namespace) -> list[str]:
    """Return the directions that were asked for, else all that the checkpoint has."""
    if arguments.directions:
        return list(arguments.directions)
    return [str(direction) for direction in load_checkpoint(arguments.checkpoint).card.problem.directions[::-1]]


def make_store(data: Path, work: Path, tiles: int | None) -> str:
    """Ingest the field, unless that was done; with `tiles`, copy so many from its middle to another store."""
    whole = work / "field.zarr"
    if not (whole / "manifest.parquet").is_file():
        lsst = tuple(str(data / f"field_lsst_{band}.fits") for band in "gri")
        ingest.run(ingest.Config(euclid=str(data / "field_euclid_vis.fits"), lsst=lsst, store=str(whole)))
    if tiles is None:
        return str(whole)
    part = work / f"field-{tiles}.zarr"
    if not (part / "manifest.parquet").is_file():
        copy_tiles(str(whole), str(part), middle_tiles(str(whole), tiles))
    return str(part)


def middle_tiles(store: str, count: int) -> list[str]:
    """Return the ids of the `count` tiles nearest to the centre of the field; these adjoin each other."""
    rows = TileStore.open(store).manifest().to_pandas()
    off = np.hypot((rows.ra - rows.ra.mean()) * np.cos(np.radians(rows.dec)), rows.dec - rows.dec.mean())
    return [str(tile) for tile in rows.tile_id.iloc[np.argsort(off.to_numpy(), kind="stable")[:count]]]


def copy_tiles(source: str, target: str, tiles: list[str]) -> None:
    """Copy some tiles of a store, and their part of the manifest, to another store."""
    whole = TileStore.open(source)
    part = TileStore.create(target)
    part.write_manifest([part.write_tile(whole.read_tile(tile)) for tile in tiles])


def translate_store(store: str, direction: str, arguments: argparse.Namespace) -> str:
    """Run `surveybridge translate` in this process; it resumes. Few scores are drawn, since they are not measured."""
    run = f"{store.removesuffix('.zarr')}-{direction.replace('->', '-')}"
    config = translate.Config(
        store=store, run=run, checkpoint=arguments.checkpoint, direction=direction, samples=arguments.samples,
        steps=arguments.steps, seed=arguments.seed, batch=arguments.batch, precision=arguments.precision,
        score_samples=2, score_steps=2, executor="serial",
    )  # fmt: skip
    start = time.monotonic()
    code = translate.run(config)
    print(f"{direction}: exit code {code}, {time.monotonic() - start:.0f} s")
    return run


def measure(field: Field, truth: pd.DataFrame) -> dict[str, Any]:
    """Return all measurements of one direction."""
    galaxies = isolated_galaxies(truth, field.known, field.wcs)
    return {
        "flux_ratio_aperture_diameter_2arcsec": flux_ratios(field, galaxies, 2.0),
        "flux_ratio_aperture_radius_2arcsec": flux_ratios(field, galaxies, 4.0),
        "within": coverages(field),
        "within_if_perfect_with_these_samples": ideal_coverage(field.samples),
        "seams": seams(field, GRID),
        "known_share": float(field.known.mean()),
    }


def settings(run: str) -> dict[str, Any]:
    """Return the settings that ran, and how long the run took."""
    folder = RunFolder.open(run)
    ledger = folder.ledger().to_pandas()
    ok = ledger[ledger.status == "ok"]
    names = ("model", "checkpoint_sha256", "direction", "samples", "steps", "seed")
    return {name: folder.run_json[name] for name in names} | {
        "tiles_ok": len(ok),
        "tiles_failed": len(ledger) - len(ok),
        "windows": int(ok.n_patches.sum()),
        "seconds_model": float(ok.seconds_model.sum()),
    }


def draw_seams(field: Field, path: Path) -> None:
    """Draw steps and std by place in the window grid, and std and mean around the corner of a tile, enlarged."""
    phases = by_phase(field, GRID)
    figure = Figure(figsize=(15, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    profile, mean_view, std_view = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    for name, label in (("step", "rms step to the next pixel"), ("std", "posterior std")):
        profile.plot(phases[name] / np.median(phases[name]), "o-", ms=3, label=label)
    overlap = GRID.size - 2 * GRID.margin - GRID.stride
    profile.axvspan(0, overlap, color="0.9", zorder=0, label="overlap of two windows")
    profile.set(xlabel="pixel in the window grid", ylabel="over its median", ylim=(0.9, 1.1))
    profile.set_title("sky pixels, both axes", loc="left")
    profile.legend(frameon=False, fontsize=9)
    y, x = corner(field)
    half = min(90, *(side // 2 for side in field.known.shape))
    y, x = (int(np.clip(place, half, side - half)) for place, side in zip((y, x), field.known.shape, strict=True))
    there = np.s_[y - half : y + half, x - half : x + half]
    views = ((mean_view, field.mean[0], "posterior mean", "gray"), (std_view, field.std[0], "posterior std", "magma"))
    for axes, plane, title, colours in views:
        part = plane[there]
        low, high = np.nanpercentile(part, [1, 99])
        drawn = axes.imshow(part, origin="lower", cmap=colours, vmin=low, vmax=high)
        ticks = [np.arange(half * 2)[(np.arange(half * 2) + start - half + off - GRID.margin) % GRID.stride == 0]
                 for start, off in ((x, field.origin[1]), (y, field.origin[0]))]  # fmt: skip
        axes.set(xticks=ticks[0], yticks=ticks[1], xticklabels=[], yticklabels=[])
        axes.set_title(f"{title}, {field.bands[0]}; ticks: window borders; centre: tile corner", loc="left", fontsize=9)
        figure.colorbar(drawn, ax=axes, label="nJy / pixel", shrink=0.85)
    figure.savefig(path, metadata={"Software": "surveybridge"})


def corner(field: Field) -> tuple[int, int]:
    """Return the corner (y, x) of tiles nearest to the middle of the field, or the middle if there is one tile."""
    places = []
    for axis, side in enumerate(field.known.shape):
        inner = sorted({edge[2 * axis] for edge in field.edges} - {0}) or [side // 2]
        places.append(inner[int(np.argmin(np.abs(np.array(inner) - side / 2)))])
    return places[0], places[1]


def rounded(value: Any) -> Any:
    """Return JSON values with four significant digits, and null in place of NaN."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
