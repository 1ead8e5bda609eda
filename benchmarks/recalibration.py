"""What a calibration on one field does for another field under the same conditions: coverage and false alarms.

    python -m benchmarks.recalibration --sky seeing-0.9 --size 1536 --out benchmarks/results

Two fields are simulated and ingested. The checkpoint is calibrated on the first; the second is translated with
`--calibrated`, from which the checkpoint's own numbers follow too: the standard deviation divided by its factor, and
the rate of the score by the table in the card. False alarms are the sources of the second field that are neither
simulated lenses nor within 3" of one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.jobs import calibrate, ingest, simulate, translate
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import TileStore

REGIONS = ((-np.inf, 1.5), (1.5, 3.0), (3.0, 10.0), (10.0, 30.0), (30.0, np.inf), (3.0, np.inf), (-np.inf, np.inf))
"""Predicted S/N: posterior mean over the sky noise."""
LENS_ARCSEC = 3.0
RATES = (0.01, 0.05, 0.2, 0.5)


def main() -> None:
    """Simulate, calibrate, translate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sky", default="seeing-0.9", help="as `simulate --sky` takes it")
    parser.add_argument("--size", type=int, default=1536, help="side of a field, pixels of 0.1 arcsec")
    parser.add_argument("--lenses", type=int, default=4, help="simulated lenses of a field")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="shipped name, or path")
    parser.add_argument("--samples", type=int, default=4, help="K")
    parser.add_argument("--seeds", type=int, nargs=2, default=(101, 102), help="of the two fields")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recalibration-") as work:
        stores = [make_store(Path(work), arguments, seed) for seed in arguments.seeds]
        begin = time.monotonic()
        done = calibrate.run(
            calibrate.Config(
                store=stores[0],
                checkpoint=arguments.checkpoint,
                out=f"{work}/models",
                to="euclid",
                samples=arguments.samples,
                tiles=1000,
            )
        )
        seconds = time.monotonic() - begin
        assert done == 0, "a tile of a simulated field failed"
        name = load_checkpoint(arguments.checkpoint).card.name
        translate.run(
            translate.Config(
                store=stores[1],
                run=f"{work}/run",
                checkpoint=f"{work}/models/{name}",
                to="euclid",
                samples=arguments.samples,
                executor="serial",
                calibrated=True,
            )
        )
        run, truth = RunFolder.open(f"{work}/run"), pq.read_table(f"{work}/{arguments.seeds[1]}/truth.parquet")
        found = {
            "sky": arguments.sky,
            "seconds": seconds,
            "coverage": coverage(run, TileStore.open(stores[1]), f"{work}/models/{name}"),
            "false_alarms": false_alarms(run, truth, f"{work}/models/{name}"),
        }
    print(f"{arguments.sky}: calibrated in {seconds:.0f} s on one field, judged on another")
    for line in found["coverage"]:
        print("  S/N {low:>5} to {high:<5} {before:6.1%} {after:6.1%}  {pixels} pixels".format(**line))
    for line in found["false_alarms"]:
        print(
            "  rate below {rate:<5} {before:7.2%} {after:7.2%}  of {objects} sources that are no lenses".format(**line)
        )
    if arguments.out is not None:
        (arguments.out / f"recalibration-{arguments.sky}.json").write_text(json.dumps(found, indent=1) + "\n")


def make_store(work: Path, arguments: argparse.Namespace, seed: int) -> str:
    """Simulate a field and ingest it."""
    images, store = work / str(seed), str(work / f"{seed}.zarr")
    request = {"size": arguments.size, "lenses": arguments.lenses, "seed": seed, "sky": arguments.sky}
    simulate.run(simulate.Config(out=images, **request))
    bands = tuple(str(images / f"lsst_{band}.fits") for band in "gri")
    ingest.run(ingest.Config(euclid=str(images / "euclid_vis.fits"), lsst=bands, store=store))
    return store


def coverage(run: RunFolder, store: TileStore, checkpoint: str) -> list[dict[str, Any]]:
    """Share of observed pixels in the 68% interval before and after, by predicted S/N."""
    recalibration = load_checkpoint(checkpoint).card.recalibration
    assert recalibration is not None, "it was just made"
    scale = recalibration.intervals["lsst->euclid"]["VIS"]
    parts = []
    for tile_id in run.ok_tiles():
        mosaic, image = run.read_tile_mosaic(tile_id), store.read_tile(tile_id, halo=0).images["euclid"]
        here = image.valid[0] & np.isfinite(mosaic.std[0])
        mean, std = mosaic.mean[0][here], mosaic.std[0][here]
        parts.append(np.stack([mean, np.abs(image.flux[0][here] - mean) / std, scale.of(mean)]))
    mean, pull, factor = np.concatenate(parts, 1)
    width = interval_width(0.68, int(run.run_json["samples"]))
    lines = []
    for low, high in REGIONS:
        here = (mean / scale.noise > low) & (mean / scale.noise <= high)
        shares = [float((sizes[here] <= width).mean()) for sizes in (pull * factor, pull)]
        lines.append({"low": low, "high": high, "before": shares[0], "after": shares[1], "pixels": int(here.sum())})
    return lines


def false_alarms(run: RunFolder, truth: Any, checkpoint: str) -> list[dict[str, Any]]:
    """Share of ordinary sources below some rates of false alarms before and after."""
    discriminant = load_checkpoint(checkpoint).card.discriminant
    assert discriminant is not None, "shipped checkpoints have one"
    lens = truth.filter(np.array(truth["kind"].to_pylist()) == "lens")
    scores, rates = [], []
    for tile_id in run.ok_tiles():
        table = run.read_candidates(tile_id)
        ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
        east = (ra[:, None] - lens["ra"].to_numpy()) * np.cos(np.deg2rad(dec[:, None]))
        apart = 3600 * np.hypot(east, dec[:, None] - lens["dec"].to_numpy()).min(1, initial=np.inf)
        ordinary = (apart > LENS_ARCSEC) & (np.array(table["kind"].to_pylist()) == "object")
        ordinary &= np.isfinite(table["score"].to_numpy())
        scores.append(table["score"].to_numpy()[ordinary])
        rates.append(table["false_alarm"].to_numpy()[ordinary])
    score, after = np.concatenate(scores), np.concatenate(rates)
    before = discriminant.false_alarm(score)
    return [
        {
            "rate": rate,
            "before": float((before < rate).mean()),
            "after": float((after < rate).mean()),
            "objects": len(score),
        }
        for rate in RATES
    ]


if __name__ == "__main__":
    main()
