"""The same fields through the bridge between surveys and through a bridge of seeing: who should take which.

    python -m benchmarks.two_bridges                 # some 6 minutes of one core
    python -m benchmarks.two_bridges --fields 1 --seeing 0.7,1.1

Fields of `benchmarks.skies` without stars, seen by LSST through Gaussian PSFs of each seeing at the depth of ten years.
`mosaic-v3` predicts the image of VIS with its noise, `seeing-v1` the sky without noise in g, r and i; each is held
against the truth of what it predicts, in the same windows. Fluxes are those within 0.5 arcsec of galaxies to i = 24.5;
bright pixels have a predicted mean above three times the noise, of VIS there, and of LSST's image on the same pixels
here; std is as a run gives it, and beside it by the recalibration of the card, where there is one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.skies import field, images, observed_tile
from benchmarks.sky_measures import (
    GALAXY_ARCSEC,
    SAMPLES,
    away_from_lenses,
    covering,
    drawn_windows,
    flux_ratios,
    known_pixels,
    pixel_sums,
    places_of,
    seen_by_vis,
    share_inside,
    spread_over_error,
)
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.settings import Sampling
from surveybridge.bridge_core.stretch import Stretch
from surveybridge.bridge_core.translate import recalibrated_samples
from surveybridge.jobs.simulating.observing import REGISTERED, Instrument
from surveybridge.jobs.simulating.shipped_skies import TRAINING
from surveybridge.jobs.translating.config import NOISE_BOUND
from surveybridge.jobs.translating.homogenising import Homogenisation
from surveybridge.jobs.translating.scene import prepared
from surveybridge.jobs.translating.windows import halo_of_tile, windows_for
from surveybridge.storage.images import sky_noise
from surveybridge.storage.pairs import WHITE
from surveybridge.storage.psf import parse_psf
from surveybridge.storage.tiles import Tile

RESULTS = Path(__file__).parent / "results" / "two_bridges.json"
SEEING = (0.5, 0.7, 0.9, 1.1, 1.2)
"""FWHM, arcsec, in all bands."""
FIELDS, SEED = 3, 100
PIXEL = 0.1

Floats = NDArray[np.float64]


def main() -> None:
    """Measure each seeing, print a line for each band, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", default=f"{DEFAULT_CHECKPOINT},seeing-v1", help="joined by commas")
    parser.add_argument("--seeing", default=",".join(map(str, SEEING)), help="FWHM in arcsec, joined by commas")
    parser.add_argument("--fields", type=int, default=FIELDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = [load_checkpoint(name).to("cpu", "bfloat16") for name in arguments.checkpoints.split(",")]
    seeds = range(SEED, SEED + arguments.fields)
    rows: list[dict[str, Any]] = []
    for fwhm in map(float, arguments.seeing.split(",")):
        tiles = [tile_at(fwhm, seed) for seed in seeds]
        for model in models:
            started = time.process_time()
            found = measured(model, tiles, seeds)
            minutes = (time.process_time() - started) / 60
            for band, measures in found.items():
                rows.append({"seeing": fwhm, "checkpoint": model.card.name, "band": band, **measures})
                print(rows[-1], f"{minutes:.1f} min", flush=True)
    shas = {model.card.name: model.sha256 for model in models}
    arguments.out.write_text(json.dumps({"checkpoints": shas, "samples": SAMPLES, "rows": rows}, indent=1) + "\n")


def tile_at(fwhm: float, seed: int) -> Tile:
    """A field as one tile, seen by LSST through a Gaussian PSF."""
    sky = TRAINING.changed("LSST", lambda instrument: replace(instrument, psf_fwhm=fwhm))
    with tempfile.TemporaryDirectory() as folder:
        return observed_tile(Path(folder), sky, seed)


def measured(model: Model, tiles: list[Tile], seeds: range) -> dict[str, dict[str, Any]]:
    """Measures by band, over all fields."""
    direction = direction_of(model)
    parts = [measure_field(model, direction, tile, seed) for tile, seed in zip(tiles, seeds, strict=True)]
    return {
        band: summary(*(np.concatenate([part[band][n] for part in parts]) for n in range(3)))
        for band in direction.wanted.bands
    }


def direction_of(model: Model) -> Direction:
    """From LSST to what is wanted of it."""
    problem = model.card.problem
    return next(one for one in problem.directions if one.observed.name == "lsst")


def measure_field(
    model: Model, direction: Direction, tile: Tile, seed: int
) -> dict[str, tuple[Floats, Floats, Floats]]:
    """By band: flux ratios of galaxies [N], and `pixel_sums` [W, 4] by the samples and by the recalibrated ones."""
    tile, drawn = prepared(model.card, tile), field(seed, TRAINING.stars)
    if (homogenisation := Homogenisation.of_card(model.card, NOISE_BOUND)) is not None:
        tile = homogenisation.applied(tile, None)
    known = known_pixels(tile)
    places = places_of(drawn.galaxies, "galaxy", drawn, known)
    centres, owner = covering(places[:, 1:])
    how = Sampling(samples=SAMPLES, patches=windows_for(model.card, None, halo_of_tile(tile)))
    raw = drawn_windows(model, direction, tile, centres, how)
    sure = raw if model.card.recalibration is None else recalibrated(model, direction, raw)
    countable = away_from_lenses(known, drawn)
    found = {}
    for plane, band in enumerate(direction.wanted.bands):
        instrument = wanted_instrument(model, band)
        clean = images(seed, instrument, REGISTERED, TRAINING.stars)
        truth, sigma = seen_by_vis(tile) if band == "VIS" else (clean, sky_noise(tile.shown["lsst"])[plane])
        white, side = WHITE[band]
        display = Stretch.asbridge({band: sigma}, {band: white * (PIXEL / side) ** 2})
        ratios = flux_ratios(raw[:, :, plane].mean(1), centres, owner, places, clean, GALAXY_ARCSEC)[:, 1]
        sums, recalibrated_sums = (
            pixel_sums(samples[:, :, plane], centres, truth, sigma, countable, display) for samples in (raw, sure)
        )
        found[band] = ratios, sums, recalibrated_sums
    return found


def recalibrated(model: Model, direction: Direction, drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples [W, K, B, S, S] as the recalibration in the card stretches them."""
    windows = torch.from_numpy(drawn)
    return torch.stack([recalibrated_samples(model, direction, one.mean(0), one) for one in windows]).numpy()


def wanted_instrument(model: Model, band: str) -> Instrument:
    """What would see the noise-free image of a wanted band."""
    if band == "VIS":
        return TRAINING.band(band)
    sharp = parse_psf(model.card.bridge.parameters["sharp"])
    return replace(TRAINING.band(band), survey="Euclid", pixel_scale=PIXEL, psf_fwhm=sharp.fwhm)


def summary(ratios: Floats, raw: Floats, sure: Floats) -> dict[str, Any]:
    """Median flux ratio; share in the 68% interval, and spread over error in the display, raw and recalibrated."""
    measures: dict[str, Any] = {"flux": round(float(np.median(ratios)), 4), "galaxies": len(ratios)}
    for name, sums in (("", raw), ("_calibrated", sure)):
        measures["inside_68" + name] = round(share_inside(sums), 4)
        measures["spread_skill" + name] = round(spread_over_error(sums), 3)
    return measures | {"pixels": int(raw[:, 0].sum())}


if __name__ == "__main__":
    main()
