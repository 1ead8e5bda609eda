"""Trainings as a person runs them: the command, what it leaves behind, how far it is."""

from __future__ import annotations

import csv
import multiprocessing
import pickle
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import Checkpoint
from safetensors.numpy import load
from torch.multiprocessing.spawn import start_processes

from surveybridge.cluster.training import Session
from surveybridge.jobs.train import Config
from surveybridge.jobs.training import worker
from surveybridge.jobs.training.card import asked_problem, make_card
from surveybridge.jobs.training.worker import make_recipe, train_loop
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.pairs import read_pairs
from tests import warm
from tests.jobs.held_training import QUICK_ENERGIES, Hold

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
SIZES = {"base": 8, "batch_size": 4, "shards": 2, "validation": 4, "learning_rate": 0.002}
SIZES |= {"steps": STEPS, "report_steps": 10}
SMALL = [word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
SNAPSHOT = "checkpoint_manager_snapshot.json"
TOLERANCE = 2e-3
"""Largest relative difference of two curves that differ in the order of sums; measured in docs/notes."""


def command(pairs: str, out: str, hold: Hold, *more: str) -> list[str]:
    """The training that is killed in tests: the command, which waits for that."""
    held = [hold.folder, ",".join(map(str, hold.steps))]
    words = ["train", "--pairs", pairs, "--out", out, *SMALL, *more]
    return [warm.python(), "-m", "tests.jobs.held_training", *held, *words]


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


def wait_for_hold(hold: Hold, step: int, out: str | Path, driver: subprocess.Popen[bytes]) -> int:
    """The worker that waits after the report of a step, as soon as it does and the checkpoint of that step counts."""
    held = int(wait_for(lambda: hold.note(step).exists() and hold.note(step).read_text(), driver, f"step {step}"))
    assert wait_for_checkpoint(out, driver, step) == step
    return held


def wait_for(what: Callable[[], Any], driver: subprocess.Popen[bytes], name: str, seconds: float = 240) -> Any:
    """What `what` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        assert driver.poll() is None, f"the driver ended before its {name}"
        time.sleep(0.3)  # a look at object storage takes 50 ms of a core
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


# ---- without Ray: ranks are processes of this machine that exchange over gloo, as Ray Train's do


def settings_of(pairs: str, available: int, **sizes: Any) -> dict[str, Any]:
    """What the job hands to its workers."""
    config = Config(pairs=pairs, out="out", report_seconds=1e6, **sizes)
    numbers = config.model_dump() | {"available": available}
    card = make_card(numbers, asked_problem(None, None, pairs), read_pairs(pairs, stop=4), asdict(make_recipe(numbers)))
    return numbers | {"card": card.to_json()}


@dataclass(frozen=True)
class LocalSession(Session):
    """A session without Ray: checkpoints are folders named by their step."""

    folder: Path

    @contextmanager
    def restore(self) -> Iterator[Path | None]:
        yield max(self.folder.glob("*"), default=None)

    def prepare(self, network: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(network) if self.world_size > 1 else network

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        if self.rank == 0 and save is not None:
            target = self.folder / f"{int(metrics['step']):06d}"
            target.mkdir(parents=True)
            save(target)


@contextmanager
def quick_energies() -> Iterator[None]:
    """Let the energy scores of reports, which take longer than a small training, come from two samples of one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "ENERGY_SAMPLING", QUICK_ENERGIES)
        yield


def run_rank(rank: int, world: int, folder: Path, config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        meeting = folder.with_name(f"{folder.name}.meeting{world}")
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        with quick_energies():
            train_loop({}, LocalSession(rank, world, torch.device("cpu"), folder), config)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


@contextmanager
def without_ray() -> Iterator[None]:
    """Let `surveybridge train` take its steps in this process: all of it but Ray Train, which needs 20 s to begin.

    The worker is given what has travelled, as a worker of Ray Train is.
    """

    def fit(loop: Callable[..., None], config: dict[str, Any], *, storage_path: str, name: str, **_: Any) -> Checkpoint:
        folder = Path(storage_path, name)
        loop(LocalSession(0, 1, torch.device("cpu"), folder), pickle.loads(pickle.dumps(config)))
        return Checkpoint.from_directory(str(max(folder.glob("*"))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surveybridge.cluster.connect.start_ray", lambda slots: False)
        patch.setattr("surveybridge.cluster.training.fit", fit)
        yield


def train(world: int, folder: Path, config: dict[str, Any]) -> list[dict[str, float]]:
    """Train on so many ranks and return the loss curve."""
    if world == 1:
        run_rank(0, 1, folder, config)
    else:
        # ranks are forked from a process that has imported all this once, instead of six seconds each; optimisers
        # import the compiler when they are made
        multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
        start_processes(run_rank, (world, folder, config), nprocs=world, start_method="forkserver")
    return rows((max(folder.glob("*")) / "loss.csv").read_bytes())
