"""What the engine costs beside the model: a store of very many tiny tiles, translated by a model that does nothing.

    python -m benchmarks.scale --tiles 10000 100000 --out benchmarks/results/scale.json    # the engine alone
    python -m benchmarks.scale --tiles 10000 --pixels                                      # tiles are read as well

Every step is the job itself (`jobs.translate`, in a process of its own), with two stages replaced: the model returns
zeros at once, and without --pixels the reader opens no tile. Mosaics, candidates, ledger, lease, compaction and resume
are real. All tiles of the store are one tile under many names (symbolic links), so that making it takes seconds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 64
"""Pixels of a tile's core; no halo."""
LEFT = 0.01
"""Share of the tiles that the resumed run has to do."""


def main() -> None:
    """Make the store, run, resume, ask for the status; print and write what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[10_000])
    parser.add_argument("--pixels", action="store_true", help="read every tile's pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where store and runs go (default: a temporary folder)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--null", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--drive", nargs=3, metavar=("STORE", "RUN", "CHECKPOINT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        print(json.dumps(drive(*arguments.drive, arguments.workers, arguments.pixels)))
        return
    if arguments.null:
        print(json.dumps(null_stream(arguments.null, arguments.workers)))
        return
    work = arguments.work or Path(tempfile.mkdtemp(prefix="scale"))
    try:
        rows = [measure(work / f"{count}", count, arguments.workers, arguments.pixels) for count in arguments.tiles]
    finally:
        if not arguments.work:
            shutil.rmtree(work, ignore_errors=True)
    bare = child("--workers", str(arguments.workers), "--null", str(max(arguments.tiles)))
    report = {
        "stream_alone": bare,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "pixels": arguments.pixels,
        "runs": rows,
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(work: Path, count: int, workers: int, pixels: bool) -> dict[str, Any]:
    """Return all measurements of one size: the run, its resume with `LEFT` to do, the status."""
    from tests import tiny

    work.mkdir(parents=True)
    checkpoint = tiny.write_checkpoint(work)
    store, run = work / "tiles", work / "run"
    first = count - round(LEFT * count)
    write_store(store, first)
    whole = driver(store, run, checkpoint, workers, pixels)
    write_store(store, count)
    resumed = driver(store, run, checkpoint, workers, pixels)
    start = time.monotonic()
    status = subprocess.run(
        [sys.executable, "-m", "surveybridge", "status", "--run", str(run)], capture_output=True, text=True, check=True
    )
    files = {
        part: sum(len(names) for _, _, names in os.walk(run / part)) for part in ("ledger", "candidates", "mosaics")
    }
    return {
        "tiles": count,
        "first": whole,
        "resumed": resumed,
        "status_seconds": round(time.monotonic() - start, 2),
        "status": status.stdout.splitlines(),
        "files": files,
    }


def write_store(path: Path, count: int) -> None:
    """Make or extend a store of `count` tiles, all of which are the first under other names."""
    from surveybridge.storage.ingest import cut_tile, tile_boxes
    from surveybridge.storage.tiles import TileStore
    from tests import tiny

    name = functools.partial(str.format, "t{:08d}")
    made = path.exists()
    if made:
        store = TileStore.open(path)
        row = store.manifest().slice(0, 1).to_pylist()[0]
    else:
        field = tiny.make_field()
        store = TileStore.create(path)
        tile = cut_tile(field, next(iter(tile_boxes((SIDE, SIDE), SIDE, 0))))
        row = store.write_tile(replace(tile, tile_id=name(0)))
    for k in range(store.manifest().num_rows if made else 1, count):
        (path / "tiles" / name(k)).symlink_to(name(0))
    store.write_manifest([row | {"tile_id": name(k)} for k in range(count)])


def driver(store: Path, run: Path, checkpoint: str, workers: int, pixels: bool) -> dict[str, Any]:
    """Run `drive` in a process of its own, so that its memory is that of the driver alone."""
    paths = (str(store), str(run), checkpoint)
    return child("--workers", str(workers), "--drive", *paths, *(["--pixels"] if pixels else []))


def child(*arguments: str) -> dict[str, Any]:
    """Run this module again with other arguments; return what it prints last."""
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def null_stream(count: int, workers: int) -> dict[str, Any]:
    """Measure stages that do nothing, without files: the cost of Ray Data, attempts and receipts."""
    from surveybridge.cluster.connect import start_ray, stop_ray
    from surveybridge.cluster.stages import Stages
    from surveybridge.cluster.stream import Stream

    stages = Stages(
        make_read=lambda: lambda item: item,
        make_model=lambda: lambda item, value: value,
        make_write=lambda: lambda outcome: {"tile_id": outcome.item, "status": "ok"},
    )
    start_ray(workers)
    times = [time.monotonic() for _ in Stream([f"t{k:08d}" for k in range(count)], stages, workers=(1, workers))]
    stop_ray()
    return {"items": len(times), "items_per_second": round(len(times) / (times[-1] - times[0]), 1)}


def drive(store: str, run: str, checkpoint: str, workers: int, pixels: bool) -> dict[str, Any]:
    """Translate with stages that do nothing; return seconds, rate and memory."""
    from surveybridge.jobs.running.progress import setup_logging
    from surveybridge.jobs.translating.config import Config
    from surveybridge.jobs.translating.engine import translate
    from surveybridge.jobs.translating.request import check

    setup_logging()
    memory: list[tuple[float, float]] = []
    threading.Thread(target=sample_memory, args=(memory,), daemon=True).start()
    start = time.monotonic()
    config = Config(store=store, run=run, checkpoint=checkpoint, workers=workers, samples=2, steps=1)
    request = check(config)
    tally = translate(request, functools.partial(null_stages, pixels=pixels))
    total = time.monotonic() - start
    done = sum(tally.statuses.values())
    private = [own for own, _ in memory]
    return {
        "tiles": done,
        "ok": tally.total("ok"),
        "seconds": round(total, 1),
        "planning_seconds": round(tally.first - start, 1),
        "tiles_per_second": round(done / (tally.last - tally.first), 1),
        "seconds_by_stage": {stage: round(seconds, 1) for stage, seconds in tally.seconds.items()},
        # after Ray has started, in the middle, and at most; without the pages of Ray's object store that it has read
        "driver_private_mib": [
            round(private[len(private) // 10]),
            round(private[len(private) // 2]),
            round(max(private)),
        ],
        "driver_resident_mib_peak": round(max(resident for _, resident in memory)),
    }


def null_stages(settings: Any, *, pixels: bool) -> Any:
    """Return the stages of a run whose model gives zeros, and whose reader opens tiles only with `pixels`."""
    from surveybridge.cluster.stages import Stages
    from surveybridge.jobs.translating.stages import TileReader, TileWriter

    return Stages(
        make_read=functools.partial(TileReader, settings) if pixels else functools.partial(FirstTile, settings),
        make_model=lambda: zeros,
        make_write=functools.partial(TileWriter, settings),
    )


class FirstTile:
    """A reader that gives every tile the pixels of the first, which is read once per process."""

    def __init__(self, settings: Any) -> None:
        from surveybridge.jobs.translating.stages import TileReader

        self.tile = TileReader(settings)("t00000000")

    def __call__(self, tile_id: str) -> Any:
        """Return the first tile under another name."""
        return replace(self.tile, tile_id=tile_id)


def zeros(tile_id: str, tile: Any) -> Any:
    """Return a translation without light and without objects."""
    from surveybridge.jobs.translating.stages import Translation
    from surveybridge.storage.mosaics import TileMosaic
    from surveybridge.storage.schema import CANDIDATES
    from surveybridge.storage.tiles import tile_content

    height, width = tile.core_shape
    nothing = np.zeros((1, height, width), np.float32)
    return Translation(
        tile_id=tile_id,
        content=tile_content(tile),
        mosaic=TileMosaic(
            tile_id=tile_id,
            wcs_header=next(iter(tile.images.values())).wcs_header,  # without a halo the core is the tile
            bands=("VIS",),
            mean=nothing,
            std=nothing,
            coverage=nothing[0],
            core_origin=tile.core_origin,
            grid_id=tile.grid_id,
        ),
        windows=1,
        candidates=CANDIDATES.empty_table(),
        seconds_score=0.0,
    )


def sample_memory(memory: list[tuple[float, float]]) -> None:
    """Append this process's private and its resident memory, MiB, every second."""
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    while True:
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        memory.append(((resident - shared) * page, resident * page))
        time.sleep(1)


if __name__ == "__main__":
    main()
