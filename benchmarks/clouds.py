"""What simulated clouds cost, and how far their suites are from each other.

    python -m benchmarks.clouds [--cells 32] [--suites id null] [--number 1] [--compile]
        [--out benchmarks/results/clouds.json]

One simulation of each suite runs in one thread of this process. Its line says the processor seconds and the steps, the
final Mach and Alfven Mach numbers, the standard deviations of log10 column and log10 density in units of the mean over
all its pairs, and the share of pixels without a density because a core is not resolved.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from surveybridge.jobs.clouds.simulation import pairs_of
from surveybridge.jobs.clouds.state import uniform
from surveybridge.jobs.clouds.suites import SUITES, plan_of
from surveybridge.jobs.clouds.transport import compiled, rates
from surveybridge.jobs.clouds.units import CloudUnits


def main() -> None:
    """Measure; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--number", type=int, default=1, help="of the simulation in its suite")
    parser.add_argument("--compile", action="store_true", help="the compiled solver; compiling does not count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for suite in arguments.suites:
        rows.append(
            {
                "suite": suite,
                **row_of(suite, arguments.seed, arguments.number, arguments.cells, compile=arguments.compile),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"cells": arguments.cells, "rows": rows}, indent=2) + "\n")


def row_of(suite: str, seed: int, number: int, cells: int, *, compile: bool = False) -> dict[str, Any]:
    """Simulate, and measure the pairs."""
    plan, changes = plan_of(suite, seed, number), rates
    if compile:
        changes = compiled()
        changes(uniform((cells, cells, cells), (1.0, 0.0, 0.0), torch.zeros(())))
    begun, load = time.process_time(), os.getloadavg()[0]
    pairs = list(pairs_of(plan, cells, "cpu", changes))
    seconds = time.process_time() - begun
    units = [CloudUnits(float(pair.labels["density_unit"])) for pair in pairs]
    column = torch.stack([(pair.maps["column"] / unit.column).log10() for pair, unit in zip(pairs, units, strict=True)])
    density = torch.stack(
        [(pair.maps["density"] / unit.density).log10() for pair, unit in zip(pairs, units, strict=True)]
    )
    there = torch.isfinite(density)
    last = pairs[-1].labels
    return {
        "simulation": plan.name,
        "pairs": len(pairs),
        "cpu_seconds": round(seconds, 1),
        "load": round(load, 1),
        "steps": last["steps"],
        "microseconds_a_cell_and_step": round(1e6 * seconds / max(int(last["steps"]), 1) / cells**3, 2),
        "rms_mach": round(float(last["rms_mach"]), 2),
        "alfven_mach": round(float(last["alfven_mach"]), 2),
        "floored": last["floored"],
        "column_dex": round(float(column.std()), 3),
        "density_dex": round(float(density[there].std()), 3),
        "unresolved": round(float(1 - there.double().mean()), 4),
    }


if __name__ == "__main__":
    main()
