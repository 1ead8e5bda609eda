"""How well `plan` predicts the time that `translate` takes: the same request, in turns, on Ray and serially.

    python -m benchmarks.projection --rounds 3 --out benchmarks/results/projection.json

Elapsed times on a shared machine depend on its other users too, so look at the medians, on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stream import write_store
from surveybridge.jobs import plan
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.engine import translate
from surveybridge.jobs.translating.request import check


def main() -> None:
    """Plan and translate in turns; print and write both times and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=128, help="pixels of a tile's core")
    parser.add_argument("--calibrate", type=float, default=10.0, help="seconds that each plan measures")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"tiles": arguments.tiles}
    with tempfile.TemporaryDirectory(prefix="projection") as work:
        store = write_store(Path(work) / "tiles", arguments.tiles, arguments.side)
        for executor in ("serial", "ray"):
            rounds = [
                one_round(store, Path(work) / f"{executor}{k}", executor, arguments.calibrate)
                for k in range(arguments.rounds)
            ]
            ratio = statistics.median(r["took_seconds"] / r["planned_seconds"] for r in rounds)
            report[executor] = {"rounds": rounds, "median_took_over_planned": round(ratio, 3)}
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def one_round(store: Path, run: Path, executor: str, calibrate: float) -> dict[str, float]:
    """Plan a run, then do it; return both times, the second from the first look at the store to the last tile."""
    settings = {"samples": 2, "steps": 4, "score_samples": 2, "score_steps": 2, "executor": executor}
    request = {"store": str(store), "run": str(run), **settings}
    planned = plan.plan(plan.Config(**request, calibrate=calibrate))
    start = time.monotonic()
    translate(check(Config(**request)))
    return {"planned_seconds": round(planned.wall_seconds, 1), "took_seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    main()
