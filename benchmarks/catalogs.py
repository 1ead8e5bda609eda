"""How much time and memory a catalog of very many candidates costs: publishing, the best of the list, cones, SQL.

    python -m benchmarks.catalogs [--rows 1000000 3000000] [--folder DIR] [--out FILE]

This writes a run of tiles without pictures (no thumbnails, mosaics of one cell), publishes it in a process of its own,
whose peak resident memory is printed, and queries it. Everything is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.high_water import high_water
from surveybridge.storage.catalogs import Catalog
from surveybridge.storage.parquet import parquet_bytes
from surveybridge.storage.publishing import publish
from surveybridge.storage.query import query, select
from surveybridge.storage.regions import Cone
from surveybridge.storage.runs import FINGERPRINT_KEYS, RunFolder, candidates_path
from surveybridge.storage.schema import CATALOG, conform
from surveybridge.storage.sky import healpix_29

TILE_DEG = 0.05

Floats = NDArray[np.float64]


def main() -> None:
    """Make the runs, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = [measure(rows, args.folder) for rows in args.rows]
    print(json.dumps(results, indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def measure(rows: int, folder: Path | None, *asked: str) -> dict[str, Any]:
    """Return all measurements for a run of so many rows, with a thousand rows per tile; of queries, those `asked`."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        make_run(f"{place}/run", rows, max(1, rows // 1000))
        published = in_process(publish_and_measure, f"{place}/run", f"{place}/catalog")
        return {"rows": rows, **published, **in_process(ask, f"{place}/catalog", *asked)}


def make_run(where: str, rows: int, tiles: int) -> None:
    """Write a run of `tiles` square tiles around RA 0 with `rows` candidates in all."""
    run = RunFolder.open_or_create(where, dict.fromkeys(FINGERPRINT_KEYS[1:], "benchmark") | {"run_id": "benchmark"})
    side = int(np.ceil(np.sqrt(tiles)))
    each = rows // tiles
    for number in range(tiles):
        rng = np.random.default_rng(number)
        row, column = divmod(number, side)
        ra = (column - side / 2 + rng.random(each)) * TILE_DEG % 360
        dec = (row - side / 2 + rng.random(each)) * TILE_DEG
        write_tile(run, f"t{number:06d}", ra, dec, [f"SB J{number:06d}.{i:05d}" for i in range(each)])


def write_tile(run: RunFolder, tile_id: str, ra: Floats, dec: Floats, names: list[str], **ledger: Any) -> None:
    """Write a tile's candidates at (ra, dec) deg, with any values, and its ledger row."""
    each = len(ra)
    rng = np.random.default_rng(zlib.crc32(tile_id.encode()))
    columns: dict[str, Any] = {
        name: rng.lognormal(3, 1, each).astype(np.float32)
        for name in CATALOG.names
        if name.startswith(("flux", "snr")) or name in ("a", "b", "theta")
    }
    columns |= {
        name: rng.normal(size=each) for name in ("score", "score_std", "false_alarm", "score_asbridge", "x", "y")
    }
    columns |= {"ra": ra, "dec": dec, "_healpix_29": healpix_29(ra, dec), "object_id": names}
    columns["flags"] = rng.integers(0, 4, each, np.int32)
    texts = {"tile_id": tile_id, "model_id": "benchmark-0123456789ab", "run_id": run.run_json["run_id"]}
    columns |= {name: [text] * each for name, text in texts.items()}
    table = conform(pa.table(columns), CATALOG, "benchmark")
    run.folder.put(parquet_bytes(table), candidates_path(tile_id))
    run.folder.put(b"", f"mosaics/{tile_id}.parquet")
    run.commit({"tile_id": tile_id, "status": "ok", "n_candidates": each, **ledger})


def publish_and_measure(run: str, catalog: str) -> dict[str, Any]:
    """Publish twice, where the second time there is nothing to do; return times (s) and memory (MB)."""
    before = high_water()
    begin = time.perf_counter()
    published = publish([run], catalog)
    middle = time.perf_counter()
    publish([run], catalog)
    return {
        "publish_s": middle - begin,
        "publish_again_s": time.perf_counter() - middle,
        "rss_before_mb": before / 2**20,
        "peak_rss_mb": high_water() / 2**20,
        **{name: published.facts[name] for name in ("partitions", "margin_rows", "bytes")},
    }


def ask(catalog: str, *asked: str) -> dict[str, Any]:
    """Time some queries, by default all, first cold, then as the median of several repetitions."""
    table = f"{Catalog.open(catalog).table_url}/dataset/**/*.parquet"
    questions: dict[str, Callable[[], Any]] = {
        "top_100": lambda: query(catalog, top=100, thumbnails=False),
        "cone_30arcsec": lambda: query(catalog, Cone(0.0, 0.0, 30.0), thumbnails=False),
        "cone_5arcmin": lambda: query(catalog, Cone(0.4, 0.3, 300.0), thumbnails=False),
        "sql_count": lambda: select(catalog, "SELECT count(*) FROM candidates WHERE flux_VIS > 20"),
        "sql_top_100": lambda: select(catalog, "SELECT * FROM candidates ORDER BY rank LIMIT 100"),
        "duckdb_top_100": lambda: duckdb.execute(f"SELECT * FROM '{table}' ORDER BY rank LIMIT 100").fetchall(),
    }
    measured = {}
    for name in asked or questions:
        times = []
        for _ in range(6):
            begin = time.perf_counter()
            questions[name]()
            times.append(time.perf_counter() - begin)
        measured[f"{name}_s"] = {"cold": times[0], "warm": statistics.median(times[1:])}
    return measured


def in_process(function: Callable[..., dict[str, Any]], *arguments: str) -> dict[str, Any]:
    """Return the result of a function that runs in a new process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()
