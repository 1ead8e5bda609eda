"""Runs of many tiles around RA 0 without pictures in them, to publish and to query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from surveybridge.storage.mosaics import TileMosaic
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.schema import stamps
from tests.storage.test_runs import RUN, make_header, make_planes

TILE_DEG = 0.02


def make_run(
    where: str | Path,
    *,
    side: int = 8,
    rows: int = 40,
    centre: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
    storage_options: dict[str, Any] | None = None,
    **run_json: Any,
) -> RunFolder:
    """A run of `side` x `side` tiles that touch each other, with `rows` candidates each, around `centre`."""
    document = RUN | {"run_id": f"run{seed}", "model": "tiny", "code_version": "0", "seed": seed} | run_json
    run = RunFolder.open_or_create(where, document, storage_options)
    for number in range(side * side):
        write_tile(run, number, side, rows, centre, seed)
    return run


def write_tile(run: RunFolder, number: int, side: int, rows: int, centre: tuple[float, float], seed: int) -> None:
    """One of the tiles: a mosaic of one cell, its candidates, its ledger row."""
    rng = np.random.default_rng([seed, number])
    row, column = divmod(number, side)
    tile_id = f"t{number:04d}"
    ra = (centre[0] + (column - side / 2 + rng.random(rows)) * TILE_DEG) % 360
    dec = centre[1] + (row - side / 2 + rng.random(rows)) * TILE_DEG
    stamp = np.zeros((rows, 1, 64, 64), np.float32)
    stamp[:, 0, 32, 32] = np.arange(rows)
    table = pa.table(
        {
            "object_id": [f"SB {a:.6f}{d:+.6f}" for a, d in zip(ra, dec, strict=True)],
            "ra": ra,
            "dec": dec,
            "score": np.where(rng.random(rows) < 0.02, np.nan, rng.normal(size=rows)),
            "flux_VIS": rng.lognormal(5, 1, rows).astype(np.float32),
            "snr_VIS": rng.lognormal(3, 1, rows).astype(np.float32),
            "flags": rng.integers(0, 4, rows).astype(np.int32),
            "model_id": ["tiny-c0ffee"] * rows,
            "run_id": [run.run_json["run_id"]] * rows,
            "domain": ["in"] * rows,
            "thumbnail_euclid": stamps("thumbnail_euclid", stamp),
        }
    )
    mean, std, coverage = make_planes((64, 64), seed=number)
    run.write_mosaic(TileMosaic(tile_id, make_header(64 * row, 64 * column), ("VIS",), mean, std, coverage,
                     (64 * row, 64 * column), "grid"))  # fmt: skip
    run.write_candidates(tile_id, table)
    run.commit({"tile_id": tile_id, "status": "ok", "n_candidates": rows, "content": f"pixels of {number}",
                "catalogued": True})  # fmt: skip
