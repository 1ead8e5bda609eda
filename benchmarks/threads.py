"""How many threads a network should have: seconds of a tile, alone and while another process computes.

    GOMP_SPINCOUNT=3000 python -m benchmarks.threads --store tiles --out benchmarks/results/threads-3000.json

A part of a tile is translated with one thread, and with one for each core, in turns, first with nothing beside it and
then beside a process that keeps one core busy. Seconds are medians of the rounds. How long threads wait for each other
is OpenMP's setting GOMP_SPINCOUNT, 300000 unless it is given here, and 3000 in the commands of SurveyBridge.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from surveybridge.bridge_core.settings import Sampling, WholeTile
from surveybridge.bridge_core.translate import translate_tile
from surveybridge.jobs.diagnosing.machine import described_machine
from surveybridge.jobs.translating.scene import scene_of
from surveybridge.storage.tiles import TileStore, part_of


@contextmanager
def busy() -> Iterator[None]:
    """Keep a core busy with products of matrices, in another process."""
    process = multiprocessing.get_context("spawn").Process(target=_compute, daemon=True)
    process.start()
    time.sleep(5)  # it imports torch first
    try:
        yield
    finally:
        process.kill()
        process.join()


def _compute() -> None:
    torch.set_num_threads(1)
    matrix = torch.ones(512, 512)
    while True:
        torch.mm(matrix, matrix)


def main() -> None:
    """Print a row for each number of threads, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="tiles with the observed endpoint")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="shipped name, or path")
    parser.add_argument("--side", type=int, default=256, help="core of the part of a tile, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    direction = model.card.problem.scored or model.card.problem.directions[0]
    store = TileStore.open(arguments.store)
    names = [row["tile_id"] for row in store.manifest().to_pylist() if direction.observed.name in row["surveys"]]
    tile = part_of(store.read_tile(names[len(names) // 2]), arguments.side)
    scene = scene_of(tile, direction.observed.name, torch.device("cpu"), model.card)
    how = Sampling(samples=2, patches=WholeTile(multiple=model.card.network.window_multiple))
    cores = os.cpu_count() or 1
    seconds: dict[str, dict[int, list[float]]] = {}
    for beside, company in (("alone", nullcontext()), ("beside a busy process", busy())):
        times: dict[int, list[float]] = {threads: [] for threads in sorted({1, cores})}
        with company:
            for number in range(arguments.rounds + 1):
                for threads, taken in times.items():
                    torch.set_num_threads(threads)
                    began = time.perf_counter()
                    translate_tile(model, direction, scene, how)
                    if number:  # the first round loads
                        taken.append(time.perf_counter() - began)
        seconds[beside] = times
    rows: list[dict[str, Any]] = [
        {"company": beside, "threads": threads, "seconds": statistics.median(taken)}
        for beside, times in seconds.items()
        for threads, taken in times.items()
    ]
    for row in rows:
        print(f"{row['company']:24}{row['threads']:4d} threads{row['seconds']:9.2f} s")
    if arguments.out:
        document = {"machine": described_machine(), "side": arguments.side, "rows": rows}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
