"""How many seconds `ingest` takes on one core, step by step, and how four fields scale from one core to two.

    python -m benchmarks.ingest --field ../shared/data/field --out benchmarks/results/ingest.json

The field is 2048 x 2048 Euclid pixels, with a rotated LSST. Every process is pinned to a core of its own, with one
thread for each library. Times are elapsed (which other users of the machine lengthen) and CPU seconds, as medians of
rounds that go through everything in turn. The scaling means something on two idle cores only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

from surveybridge.storage.coregister import coregister
from surveybridge.storage.fits_images import read_image
from surveybridge.storage.fits_planes import Noise
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.ingest import Field, cut_tile, ingest_field, tile_boxes
from surveybridge.storage.photometry import sky_statistics
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import TileStore

LSST, EUCLID = "lsst", "euclid"
NOISE: dict[str, Noise] = {LSST: "auto", EUCLID: "file"}
"""By default of the command."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS")
FIELDS = 4
STEPS = ("read FITS", "sky statistics", "co-register", "write", "all of them", "ingest")


def main() -> None:
    """Print a table and write ingest.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--field", type=Path, required=True, help="folder of field_euclid_vis.fits, field_lsst_*.fits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0))[:2])
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="ingest") as folder:
        context = multiprocessing.get_context("spawn")
        pools = {core: stack.enter_context(_pool(context, core)) for core in arguments.cores}
        for pool in pools.values():  # libraries are loaded, files are in the page cache
            pool.submit(ingest, arguments.field, Path(folder, "warm")).result()
        rounds = [
            {
                "steps": next(iter(pools.values())).submit(steps, arguments.field, Path(folder, "steps")).result(),
                "one": _fields(list(pools.values())[:1], arguments.field, Path(folder)),
                "all": _fields(list(pools.values()), arguments.field, Path(folder)),
            }
            for _ in range(arguments.rounds)
        ]
    report = _summary(rounds, arguments.cores)
    _print(report)
    if arguments.out:
        from surveybridge.jobs.diagnosing.machine import described_machine

        document = {"machine": described_machine(), "rounds": arguments.rounds, **report}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def steps(field: Path, store: Path) -> dict[str, tuple[float, float]]:
    """Return wall and CPU seconds of each of `STEPS`; they are done as in `ingest_field`, and then by it."""
    paths, ends = files(field), default_problem()["endpoints"]
    taken: dict[str, tuple[float, float]] = {}

    def read() -> dict[str, SurveyImage]:
        return {end["name"]: read_image(end, paths[end["name"]], noise=NOISE[end["name"]]) for end in ends}

    images = _timed(taken, "read FITS", read)
    planes = [(image.flux[k], image.mask[k] == 0) for image in images.values() for k in range(len(image.bands))]
    _timed(taken, "sky statistics", lambda: [sky_statistics(*plane) for plane in planes])
    lsst, euclid = images[LSST], images[EUCLID]
    shape = euclid.flux.shape[1], euclid.flux.shape[2]
    both = _timed(
        taken,
        "co-register",
        lambda: Field({LSST: coregister(lsst, euclid.wcs_header, shape), EUCLID: euclid}, EUCLID),
    )

    def write() -> None:
        tiles = TileStore.create(str(store))
        tiles.write_manifest([tiles.write_tile(cut_tile(both, box)) for box in tile_boxes(both.shape, 512, 64)])

    _timed(taken, "write", write)
    # reading takes the statistics of what it has read
    taken["all of them"] = _sum(taken["read FITS"], taken["co-register"], taken["write"])
    taken["read FITS"] = _sum(taken["read FITS"], tuple(-t for t in taken["sky statistics"]))
    _timed(taken, "ingest", lambda: ingest(field, store))
    return taken


def ingest(field: Path, store: Path) -> None:
    """Run the whole of it, with the defaults of the command."""
    ingest_field(default_problem(), files(field), EUCLID, str(store), noise=NOISE)


def files(field: Path) -> dict[str, dict[str, str]]:
    """Return files by survey and band."""
    lsst = {band: str(field / f"field_lsst_{band}.fits") for band in "gri"}
    return {LSST: lsst, EUCLID: {"VIS": str(field / "field_euclid_vis.fits")}}


def _timed(taken: dict[str, tuple[float, float]], name: str, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    taken[name] = time.perf_counter() - wall, time.process_time() - cpu
    return result


def _sum(*times: tuple[float, ...]) -> tuple[float, float]:
    wall, cpu = (sum(values) for values in zip(*times, strict=True))
    return wall, cpu


def _pool(context: SpawnContext, core: int) -> ProcessPoolExecutor:
    """Return one process that is pinned to a core."""
    return ProcessPoolExecutor(1, mp_context=context, initializer=os.sched_setaffinity, initargs=(0, {core}))


def _fields(pools: list[ProcessPoolExecutor], field: Path, folder: Path) -> float:
    """Return the seconds in which some processes together bring `FIELDS` fields into stores of their own."""
    began = time.perf_counter()
    waiting = [pools[k % len(pools)].submit(ingest, field, folder / f"store{k}") for k in range(FIELDS)]
    for one in waiting:
        one.result()
    return time.perf_counter() - began


def _summary(rounds: list[dict[str, Any]], cores: list[int]) -> dict[str, Any]:
    """Return medians over rounds; the scaling is the median of the rounds' ratios."""
    return {
        "seconds": {step: statistics.median(r["steps"][step][0] for r in rounds) for step in STEPS},
        "cpu_seconds": {step: statistics.median(r["steps"][step][1] for r in rounds) for step in STEPS},
        "fields": FIELDS,
        "cores": cores,
        "fields_seconds": {which: statistics.median(r[which] for r in rounds) for which in ("one", "all")},
        "scaling": statistics.median(r["one"] / r["all"] for r in rounds),
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{'on one core':16}{'seconds':>9}{'CPU':>9}")
    for step in STEPS:
        print(f"{step:16}{report['seconds'][step]:9.2f}{report['cpu_seconds'][step]:9.2f}")
    one, every = report["fields_seconds"].values()
    count = len(report["cores"])
    print(f"{FIELDS} fields: {one:.1f} s on one core, {every:.1f} s on {count}: {report['scaling']:.2f} times as fast")


if __name__ == "__main__":
    main()
