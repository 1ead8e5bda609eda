"""How fast the grading page is with very many candidates, in a real browser; it also draws the picture for docs/vet.md.

    python -m benchmarks.vetting --candidates 1000000 --out benchmarks/results/vetting.json
    python -m benchmarks.vetting --picture runs/demo docs/vet.png      # does not change the run

The run is as `translate` leaves it after compaction: tiles of 50 candidates, each a row group, with 50 tiles per
segment. Tiles that are looked at have noisy thumbnails, which hardly compress; tiles that nobody looks at have none,
so that a million candidates take 2 GB and not 100. Chromium must be installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

EACH, TILES_A_SEGMENT = 50, 50

FIRST = """() => (document.querySelector('#single:not([hidden]) img') ?? document.querySelector('.crop img'))?.src"""
"""Address of the first picture."""

VISIBLE = """() => [...document.querySelectorAll('.crop img')].filter(image => {
  const box = image.parentElement.getBoundingClientRect();
  return box.width && box.top < innerHeight && box.bottom > 0;
}).every(image => image.complete && image.naturalWidth)"""
"""Whether every picture on the screen is there."""


def main() -> None:
    """Make the run, open its page, print and write the times; or only draw the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, help="folder for the run, or of an existing one (default: temporary)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", nargs=2, metavar=("RUN", "PNG"))
    arguments = parser.parse_args()
    if arguments.picture:
        draw(*arguments.picture)
        return
    work = arguments.work or Path(tempfile.mkdtemp(prefix="vetting"))
    try:
        if not (work / "run" / "run.json").exists():
            make_run(work / "run", arguments.candidates)
        report = {"candidates": arguments.candidates, "machine": platform.machine(), "cpus": os.cpu_count()}
        report["load_before"] = [round(load, 1) for load in os.getloadavg()]
        report |= measure(str(work / "run"))
    finally:
        if not arguments.work:
            shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(run: str) -> dict[str, Any]:
    """Return the seconds until the server is up, and until what was asked for is on the screen."""
    start = time.monotonic()
    with server(run) as (url, process), chromium() as browser:
        report: dict[str, Any] = {"start_seconds": round(time.monotonic() - start, 2)}
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(f"{url}static/icon.svg")  # the browser is there already
        time.sleep(2)
        asked = {
            "first_view": lambda: page.goto(url),
            "first_view_shuffled": lambda: page.goto(f"{url}?again#sort=shuffle&seed=7"),
            "next_page": lambda: page.keyboard.press("PageDown"),
        }
        for name, ask in asked.items():
            before = cpu_seconds(process.pid)
            report[f"{name}_seconds"] = seen(page, ask)
            report[f"{name}_server_cpu_seconds"] = round(cpu_seconds(process.pid) - before, 2)
            time.sleep(3)  # the next page is read ahead
        page.keyboard.press("Enter")
        singles = [seen(page, lambda: page.keyboard.press("ArrowRight")) for _ in range(15)]
        report["next_candidate_seconds"] = round(statistics.median(singles), 3)
        for name, query in {
            "sort": "sort=brightest",
            "filter": "signal=100&top=500000&show=ungraded",
            "find": "text=t00019",
            "deep": "offset=600000",
        }.items():
            begin = time.monotonic()
            page.request.get(f"{url}api/candidates?grader=ann&{query}").json()
            report[f"{name}_seconds"] = round(time.monotonic() - begin, 3)
        grades = []
        for _ in range(30):
            begin = time.monotonic()
            page.keyboard.press("x")
            page.locator("#saved", has_text="saved").wait_for()
            grades.append(time.monotonic() - begin)
        report["grade_saved_seconds"] = round(statistics.median(grades), 3)
        status = Path(f"/proc/{process.pid}/status").read_text()
        report["server_memory_mib"] = int(status.split("VmRSS:")[1].split()[0]) // 1024
    return report


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seen(page: Any, ask: Any) -> float:
    """Return the seconds from asking until every picture on the screen is decoded."""
    before = page.evaluate(FIRST)
    begin = time.monotonic()
    ask()
    while page.evaluate(FIRST) in (None, before) or not page.evaluate(VISIBLE):
        time.sleep(0.005)
    return round(time.monotonic() - begin, 3)


def draw(run: str, png: str) -> None:
    """Write the page over a copy of a run, with some candidates graded, as a small PNG."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as work:
        copy = shutil.copytree(run, Path(work) / Path(run).name)
        shutil.rmtree(copy / "grades", ignore_errors=True)
        with server(str(copy), "--grader", "Ada") as (url, _), chromium() as browser:
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            page.goto(url)
            page.wait_for_selector(".card")
            for key in "aabbx":
                page.keyboard.press(key)
            page.wait_for_load_state("networkidle")
            page.locator("#saved", has_text="saved").wait_for()
            page.evaluate(f"() => document.getElementById('run').textContent = {json.dumps(Path(run).name)}")
            page.screenshot(path=png)
    # Half of the colours of a noisy picture are noise; the octree keeps the few strong ones.
    Image.open(png).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE).save(png, optimize=True)


@contextmanager
def server(run: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `surveybridge vet` on a free port, and yield once it answers."""
    words = [
        sys.executable,
        "-m",
        "surveybridge",
        "vet",
        "--run",
        run,
        "--port",
        "0",
        *(arguments or ("--grader", "ann")),
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


def make_run(path: Path, count: int) -> None:
    """Write a compacted run of `count` candidates in tiles of `EACH`."""
    from surveybridge.jobs.vetting.listing import shuffle_keys
    from surveybridge.storage.compaction import _name
    from surveybridge.storage.parquet import parquet_bytes, parquet_writer
    from surveybridge.storage.runs import RunFolder
    from surveybridge.storage.schema import CANDIDATES, CELL, LEDGER, THUMBNAILS, stamps, table_from_rows
    from surveybridge.storage.sky import healpix_29
    from tests.storage.test_runs import RUN

    run = RunFolder.open_or_create(path, {**RUN, "run_id": "million"})
    rng = np.random.default_rng(0)
    tiles = count // EACH
    ra, dec = rng.uniform(50, 60, count), rng.uniform(-30, -20, count)
    score, sky = rng.gumbel(0, 1, count), healpix_29(ra, dec)
    order = np.concatenate([np.argsort(-score)[:150], np.argsort(shuffle_keys(sky, 7))[:250]])
    first = np.unique(order // EACH)
    tile_order = np.concatenate([first, np.setdiff1d(np.arange(tiles), first)])
    looked_at = -(-len(first) // TILES_A_SEGMENT) * TILES_A_SEGMENT
    plain = [field for field in CANDIDATES if field.name not in THUMBNAILS]
    for begin in range(0, tiles, TILES_A_SEGMENT):
        some = tile_order[begin : begin + TILES_A_SEGMENT]
        schema = CANDIDATES if begin < looked_at else pa.schema(plain)
        file = f"candidates/segments/{hashlib.sha256(str(begin).encode()).hexdigest()[:20]}.parquet"
        target = Path(run.folder.path(file))
        target.parent.mkdir(parents=True, exist_ok=True)
        with parquet_writer(target, schema, {"object_id": 24, "tile_id": 8, "model_id": 8, "run_id": 8}) as writer:
            for tile in some:
                mine = slice(tile * EACH, (tile + 1) * EACH)
                columns: dict[str, Any] = {
                    "object_id": [f"SB J{k:07d}.20-482528.4" for k in range(mine.start, mine.stop)],
                    "ra": ra[mine], "dec": dec[mine], "_healpix_29": sky[mine], "tile_id": [f"t{tile:06d}"] * EACH,
                    "score": score[mine], "model_id": ["mosaic"] * EACH, "run_id": ["million"] * EACH,
                    "flux_VIS": rng.lognormal(6, 1, EACH), "snr_VIS": rng.lognormal(4, 1, EACH),
                }  # fmt: skip
                for name in THUMBNAILS if schema is CANDIDATES else ():
                    bands = CANDIDATES.field(name).type.list_size // CELL**2
                    columns[name] = stamps(name, rng.normal(0, 3, (EACH, bands, CELL, CELL)))
                arrays = [
                    pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(EACH, field.type)
                    for field in schema
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        rows = [
            {"tile_id": f"t{tile:06d}", "status": "ok", "attempt": 1, "n_candidates": EACH, "candidates_path": file}
            for tile in some
        ]
        ledger = table_from_rows(rows, LEDGER, "rows")
        run.folder.put(parquet_bytes(ledger), f"ledger/segments/0-{len(rows)}-{_name(ledger)}.parquet")


if __name__ == "__main__":
    main()
