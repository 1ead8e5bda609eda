"""How fast streaming is against a bare loop: patches per second of `translate` on Ray, and memory over a long run.

    python -m benchmarks.stream --tiles 12 --out benchmarks/results/stream.json

The bare loop is the model stage alone over the same tiles, which were read before, in a process that does nothing else.
Both use one thread, the same batches and the same checkpoint, and take turns, because the machine may be shared. The
timeline of the last streamed run (PNG) shows reading, model and writing side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.engine import translate
from surveybridge.jobs.translating.request import check, settings_of
from surveybridge.jobs.translating.stages import TileReader, TileTranslator, tile_stages

STAGES = ("read", "model", "write")


def main() -> None:
    """Run both in turns; print and write the numbers, and draw the timeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--longer", type=int, default=10, help="for memory, another run with this many times the tiles; 0 for none"
    )
    parser.add_argument("--side", type=int, default=128, help="pixels of a tile's core")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON to write; the timeline goes beside it as PNG")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "STORE", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, store, run = arguments.child
        print(json.dumps((bare if what == "bare" else streamed)(store, run, arguments.steps)))
        return
    with tempfile.TemporaryDirectory(prefix="stream") as folder:
        report = compare(Path(folder), arguments)
    timeline = report.pop("timeline")
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
        draw(timeline, arguments.out.with_suffix(".png"))


def compare(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the rates of both in every round, their medians, and the memory of a short and a long run."""
    short = write_store(work / "short", arguments.tiles, arguments.side)
    rates: dict[str, list[float]] = {"bare": [], "streamed": []}
    busy: list[float] = []
    for k in range(arguments.rounds):
        for what in rates:
            result = child(what, short, work / f"run{k}", arguments.steps)
            rates[what].append(result["patches_per_second"])
        busy.append(result["busy"])
    report = {
        "tiles": arguments.tiles,
        "patches": result["patches"],
        "patches_per_second": rates,
        "ratio_of_medians": round(statistics.median(rates["streamed"]) / statistics.median(rates["bare"]), 3),
        "share_of_time_that_the_model_works": busy,
        "memory_mib": {"short": result["memory_mib"]},
        "timeline": result["timeline"],
    }
    if arguments.longer:
        long = write_store(work / "long", arguments.tiles * arguments.longer, arguments.side)
        report["memory_mib"]["long"] = child("streamed", long, work / "long_run", arguments.steps)["memory_mib"]
    return report


def write_store(path: Path, count: int, side: int) -> Path:
    """Write a store of `count` tiles with a field of galaxies of the right size, the same in every tile."""
    from dataclasses import replace

    from surveybridge.storage.ingest import cut_tile, tile_boxes
    from surveybridge.storage.tiles import TileStore
    from tests import tiny

    field = tiny.make_field()
    store = TileStore.create(path)
    tile = cut_tile(field, next(iter(tile_boxes((side, side), side, 0))))
    store.write_manifest([store.write_tile(replace(tile, tile_id=f"t{k:05d}")) for k in range(count)])
    return path


def child(what: str, store: Path, run: Path, steps: int) -> dict[str, Any]:
    """Run one of the two in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.stream", "--steps", str(steps), "--child", what, str(store), str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def config_of(store: str, run: str, steps: int) -> Config:
    """Return the settings that run: the shipped checkpoint, and few samples."""
    return Config(store=store, run=run, samples=2, steps=steps, score_samples=2, score_steps=2)


def bare(store: str, run: str, steps: int) -> dict[str, Any]:
    """Return the patches per second of the model stage alone, over tiles that were read before."""
    request = check(config_of(store, run, steps))
    settings = settings_of(request, attempts={})
    read, model = TileReader(settings), TileTranslator(settings)
    names = request.manifest["tile_id"].to_pylist()
    tiles = {name: read(name) for name in names}
    model(names[0], tiles[names[0]])  # the first call of a network is slow, there as here
    start = time.monotonic()
    patches = sum(model(name, tile).windows for name, tile in tiles.items())
    return {"patches_per_second": round(patches / (time.monotonic() - start), 2)}


def streamed(store: str, run: str, steps: int) -> dict[str, Any]:
    """Return patches per second of `translate` on Ray from the second tile on, intervals of all stages, and memory."""
    memory: dict[str, list[float]] = {"driver": [], "model": []}
    receipts: list[dict[str, Any]] = []
    threading.Thread(target=sample_memory, args=(memory, receipts), daemon=True).start()
    translate(check(config_of(store, run, steps)), tile_stages, receipts.append)
    receipts.sort(key=lambda receipt: receipt["intervals"]["model"]["start"])
    begun, ended = receipts[0]["intervals"]["model"]["end"], receipts[-1]["intervals"]["model"]["end"]
    patches = sum(receipt["n_patches"] for receipt in receipts)
    busy = sum(
        receipt["intervals"]["model"]["end"] - receipt["intervals"]["model"]["start"] for receipt in receipts[1:]
    )
    return {
        "patches": patches,
        "busy": round(busy / (ended - begun), 3),
        "patches_per_second": round((patches - receipts[0]["n_patches"]) / (ended - begun), 2),
        "memory_mib": {who: summary_of(values) for who, values in memory.items()},
        "timeline": [receipt["intervals"] for receipt in receipts],
    }


def summary_of(values: list[float]) -> list[int]:
    """Return the highest memory in each tenth of the run."""
    lived = [value for value in values if value > 0]  # of a process that has ended it is 0
    return [round(max(lived[len(lived) * k // 10 : len(lived) * (k + 1) // 10] or [0])) for k in range(10)]


def sample_memory(memory: dict[str, list[float]], receipts: list[dict[str, Any]]) -> None:
    """Append the private memory, MiB, of this process and of the model's worker, every half second.

    Without shared pages: a worker that reads tiles from Ray's object store has touched more and more of that, up to
    its whole size, which is there once for all of the node.
    """
    while True:
        time.sleep(0.5)
        if receipts:
            worker = receipts[0]["intervals"]["model"]["worker"].rsplit(":", 1)[-1]
            for who, pid in (("driver", "self"), ("model", worker)):
                resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
                memory[who].append((resident - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20)


def draw(timeline: list[dict[str, Any]], path: Path) -> None:
    """Draw one bar for each stage of each tile; bars that overlap were done at the same time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    origin = min(stages["read"]["start"] for stages in timeline)
    for line, (stage, colour) in enumerate(zip(STAGES, ("tab:blue", "tab:orange", "tab:green"), strict=True)):
        bars = [(s[stage]["start"] - origin, max(s[stage]["end"] - s[stage]["start"], 0.02)) for s in timeline]
        edge = "white" if stage == "model" else colour  # the others are thinner than a line
        axes.broken_barh(bars, (len(STAGES) - line - 0.9, 0.8), facecolor=colour, edgecolor=edge, linewidth=0.8)
    axes.set_yticks([len(STAGES) - line - 0.5 for line in range(len(STAGES))], STAGES)
    axes.set_xlabel("seconds since the first read")
    axes.set_title("One bar a tile and stage: reading and writing go on while the model works")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
