"""Trainings as a person runs them: the command, what it leaves behind, how far it is."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from surveybridge.storage.objectstore import Folder

ROOT = Path(__file__).resolve().parents[2]
STEPS = 80
SMALL = ["--base", "8", "--batch-size", "4", "--shards", "2", "--validation", "8", "--learning-rate", "0.002"]
SMALL += ["--steps", str(STEPS), "--report-steps", "10"]
SNAPSHOT = "checkpoint_manager_snapshot.json"
TOLERANCE = 2e-3
"""Largest relative difference of two curves that differ in the order of sums; measured in docs/notes."""


def command(pairs: str, out: str, *more: str) -> list[str]:
    """The training that every test here does."""
    return [sys.executable, "-m", "surveybridge", "train", "--pairs", pairs, "--out", out, *SMALL, *more]


def begin(arguments: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start it; what it says goes to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def rows(text: bytes) -> list[dict[str, float]]:
    """Rows of a loss.csv."""
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(text.decode().splitlines())]


def losses(out: str | Path) -> list[dict[str, float]]:
    """The curve of a finished run."""
    return rows(Folder.at(out).read("loss.csv"))


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Of the losses of two curves with rows at the same steps, relative."""
    assert [row["step"] for row in one] == [row["step"] for row in other]
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in ("loss", "validation_loss")]
    return max(abs(a - b) / a for a, b in pairs)


def same_weights(one: str | Path, other: str | Path) -> bool:
    """Whether two runs ended with the same weights, bit by bit."""
    first, second = (load(Folder.at(out).read("bridge.safetensors")) for out in (one, other))
    assert set(first) == set(second) and len(first) > 50
    return all(np.array_equal(first[name], second[name]) for name in first)


def wait_for_checkpoint(out: str | Path, driver: subprocess.Popen[bytes], step: int = 1) -> int:
    """Step of the newest committed checkpoint, as soon as there is one at `step` or later."""
    committed = wait_for(lambda: _committed(Folder.at(out), step), driver, "checkpoint")
    return int(committed)


def wait_for(what: Callable[[], Any], driver: subprocess.Popen[bytes], name: str, seconds: float = 240) -> Any:
    """What `what` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        assert driver.poll() is None, f"the driver ended before its {name}"
        time.sleep(0.05)
    raise AssertionError(f"no {name} within {seconds:.0f} s")


def _committed(out: Folder, step: int) -> int:
    for run in out.names("ray"):
        names = out.names("ray", run)
        if SNAPSHOT not in names:
            continue
        # a checkpoint that is uploaded counts once Ray Train's controller has looked, every two seconds
        snapshot = out.read("ray", run, SNAPSHOT).decode()
        for name in reversed(names):
            if name.startswith("checkpoint_") and name in snapshot:
                found = int(rows(out.read("ray", run, name, "loss.csv"))[-1]["step"])
                if found >= step:
                    return found
    return 0
