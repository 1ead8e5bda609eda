"""What every test starts from: an environment set before anything is imported, seeds, shared data, one Ray cluster."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os

# Of what tests are collected from nothing becomes unused, and to look for it takes a third of the time.
gc.disable()

# Before anything imports torch, triton or ray. Kernels run in Triton's interpreter; a GPU lane sets TRITON_INTERPRET=0.
ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "OMP_NUM_THREADS": "1",
    # where a test takes two threads, the second would keep its core busy between operations
    "OMP_WAIT_POLICY": "passive",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # hats and lsdb compile loops that run over a dozen partitions here, for 7 s.
    "NUMBA_DISABLE_JIT": "1",
    "MPLBACKEND": "Agg",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray gives its workers the lowest priority but four; beside other lanes they would hardly run.
    "RAY_worker_niceness": "0",
    # A process of each training that asks whether a cloud is about to take a node back; here none is.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # moto accepts any key; without one botocore looks for an instance's metadata server and waits.
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

import pickle
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import warm
from tests.lanes import LANES, lane_of, may_hold
from tests.once import MADE_ONCE, once
from tests.processor import PerTest
from tests.sharing import LEFT_OUT, Sharing

if TYPE_CHECKING:
    from surveybridge.storage.ingest import Field
    from surveybridge.storage.runs import RunFolder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of simulated pairs, FITS fields and golden arrays; beside the repository, never in it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared test data in ../shared/data, which is not here")
    return folder


@pytest.fixture(scope="session")
def shared_field_files(shared_data: Path) -> dict[str, dict[str, str]]:
    """Images of the shared field, by survey and band."""
    folder = shared_data / "field"
    lsst = {band: str(folder / f"field_lsst_{band}.fits") for band in "gri"}
    return {"lsst": lsst, "euclid": {"VIS": str(folder / "field_euclid_vis.fits")}}


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what the processes of a run make for each other, by `once`; of this process where it is alone."""
    return Path(os.environ.get(MADE_ONCE) or tmp_path_factory.mktemp("once"))


@pytest.fixture(scope="session")
def shared_field(shared_field_files: dict[str, dict[str, str]], made_once: Path) -> Field:
    """The shared field as `ingest` reads it, both surveys on Euclid's grid; that takes 8 s."""
    from surveybridge.storage.ingest import read_field
    from surveybridge.storage.problems import default_problem

    def make(folder: Path) -> None:
        with (folder / "field").open("wb") as file:
            pickle.dump(read_field(default_problem(), shared_field_files, "euclid"), file, protocol=5)

    field: Field = pickle.loads((once(made_once / "field", make) / "field").read_bytes())
    return field


@pytest.fixture(scope="session")
def shared_field_run(request: pytest.FixtureRequest, made_once: Path) -> RunFolder:
    """A run of 16 tiles with the candidates of the shared field, scored by the shipped checkpoint, and empty mosaics.

    What reads candidates asks for no more, and to score takes half a minute.
    """
    import torch

    from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint, shipped_checkpoints
    from surveybridge.bridge_core.settings import Scoring
    from surveybridge.jobs.translating.candidates import RunFacts, find_candidates
    from surveybridge.storage.ingest import cut_tile, tile_boxes
    from surveybridge.storage.mosaics import TileMosaic
    from surveybridge.storage.runs import RunFolder
    from surveybridge.storage.tiles import core_header
    from tests.storage.test_runs import RUN

    if DEFAULT_CHECKPOINT not in shipped_checkpoints():
        pytest.skip("no checkpoint ships with this tree")

    def make(folder: Path) -> None:
        shared_field: Field = request.getfixturevalue("shared_field")
        model, how, cpu = load_checkpoint(None), Scoring(samples=2, steps=1, reconstruct=0.1), torch.device("cpu")
        run = RunFolder.open_or_create(folder / "run", RUN | {"run_id": "field"})
        for box in tile_boxes(shared_field.shape, 512, 64):
            tile = cut_tile(shared_field, box)
            rows = find_candidates(model, tile, how, RunFacts("field"), cpu).rows
            nothing = np.zeros((1, *tile.core_shape), np.float32)
            header = core_header(tile)
            empty = TileMosaic(
                tile.tile_id, header, ("VIS",), nothing, nothing, nothing[0], (box.core[0], box.core[2]), tile.grid_id
            )
            run.write_mosaic(empty)
            run.write_candidates(tile.tile_id, rows)
            run.commit({"tile_id": tile.tile_id, "status": "ok", "n_candidates": rows.num_rows})

    return RunFolder.open(once(made_once / "scored", make) / "run")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start every test from the same state of the global generators (no code of ours draws from them)."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the global state itself is what is pinned
    torch = sys.modules.get("torch")
    if torch is not None:
        # torch.manual_seed keeps a list of its callers for devices that nobody has used yet, for 1 ms
        torch.manual_seed(0) if torch.cuda.is_initialized() else torch.default_generator.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster of 4 logical CPUs for the whole session; starting one takes 5-9 s."""
    with ray_of(cpus=4):
        yield


@contextlib.contextmanager
def ray_of(cpus: int, gpus: int = 0) -> Iterator[None]:
    """A Ray cluster of so many logical CPUs and GPUs, which need not be there, on this machine.

    A stream has one reader and one writer for a model: each takes two seconds of a core to start.
    """
    import ray

    from surveybridge.cluster import stream

    # Unix socket paths hold 107 characters, so Ray's folder must be short.
    folder = tempfile.mkdtemp(prefix="sb", dir="/tmp")
    with warm.executable():
        ray.init(
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=150_000_000,
            _temp_dir=folder,
            log_to_driver=False,
            configure_logging=False,
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "IO_PER_MODEL", 1)
        yield
    processes = [info.process for infos in ray._private.worker._global_node.all_processes.values() for info in infos]
    ray.shutdown()
    for process in processes:  # Ray kills them, and on a busy machine forgets some before they have ended
        process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--lane NAME`: the tests of one lane of tests/lanes.py; `--processor FILE`: what each test costs."""
    parser.addoption(
        "--lane", choices=tuple(LANES.keys() - {"lint"}), help="run the tests of this lane only; see tests/lanes.py"
    )
    parser.addoption("--processor", metavar="FILE", help="add a line a test to FILE: processor seconds, and its name")
    parser.addoption("--processes", type=int, default=1, help="let so many forks of this process share the tests")


def pytest_configure(config: pytest.Config) -> None:
    """Let several processes share the tests, and count processor time, where that is asked for."""
    if (processes := config.getoption("processes")) > 1:
        config.pluginmanager.register(Sharing(processes, _count))
    else:
        _count(config)


def _count(config: pytest.Config) -> None:
    if file := config.getoption("processor"):
        config.pluginmanager.register(PerTest(file))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without a test of the lane, before they are imported."""
    lane = config.getoption("lane")
    if lane is None or not collection_path.match("test_*.py"):
        return None
    return None if may_hold(lane, collection_path, collection_path.read_text()) else True


def pytest_collection_finish() -> None:
    """Look for unused objects again, but not among modules and tests: they are a million objects, and stay."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Tell apart that tests have failed and that some were not run; end the process without its modules.

    It ends when its `atexit` functions have: to take a million objects apart takes Python 4 s.
    """
    if session.shouldfail or session.stash.get(LEFT_OUT, False):
        session.exitstatus = exitstatus = pytest.ExitCode.INTERRUPTED
    _exit_status.append(int(exitstatus))


@atexit.register  # before what tests register, so that it comes after that
def _leave_the_objects_to_the_kernel() -> None:
    if _exit_status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status[-1])


_exit_status: list[int] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the lane; skip what is marked gpu where there is none, or where kernels are interpreted."""
    _select(config, items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _gpu_lane():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and TRITON_INTERPRET=0"))


def _select(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("lane")
    if chosen is None:
        return
    texts = {path: path.read_text() for path in {item.path for item in items}}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        markers = {marker.name for marker in item.iter_markers()}
        lane = lane_of(item.path, texts[item.path], markers, getattr(item, "fixturenames", ()))
        (kept if lane == chosen else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def _gpu_lane() -> bool:
    if os.environ["TRITON_INTERPRET"] != "0":
        return False
    import torch

    return torch.cuda.is_available()
