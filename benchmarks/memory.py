"""How the projected peak memory of each stage of `translate` compares with the measured one.

    python -m benchmarks.memory                              # three tile sizes, a small network: 3 minutes on one core
    python -m benchmarks.memory --sides 256 --checkpoint mosaic-v2
    python -m benchmarks.memory --early                      # tiles are prepared where they are read, as beside GPUs

Each stage does one tile in a process of its own, as a Ray worker would: its input comes out of a memory map (Ray's
object store), and its output goes into an Arrow column. The largest resident set of the process (VmHWM) is measured.
The tiles hold as many sources as `jobs.translating.memory.SOURCES_PER_PIXEL` allows for.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.high_water import high_water
from surveybridge.bridge_core.checkpoint import load_checkpoint, save_checkpoint
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.network import NetworkConfig, UNet
from surveybridge.bridge_core.problem import Endpoint, Problem
from surveybridge.jobs.translating.config import Config
from surveybridge.jobs.translating.memory import SOURCES_PER_PIXEL, stage_memory
from surveybridge.jobs.translating.request import check, settings_of
from surveybridge.jobs.translating.stages import tile_stages
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.runs import RunFolder
from surveybridge.storage.tiles import Tile, TileStore

STAGES = ("read", "model", "write")
HALO = 64
WCS_CARDS = {
    "WCSAXES": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "CRVAL1": 53.0,
    "CRVAL2": -28.0, "CRPIX1": 1.0, "CRPIX2": 1.0, "CDELT1": -0.1 / 3600, "CDELT2": 0.1 / 3600, "RADESYS": "ICRS",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024, 2048], help="core of the tile, pixels")
    parser.add_argument("--checkpoint", help="default: random weights of a small network, to see the arrays' memory")
    parser.add_argument("--direction", help="such as 'lsst->euclid' (default: the one in which objects are scored)")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--patch", help="windows, as of translate (default: those of the card)")
    parser.add_argument("--early", action="store_true", help="prepare tiles where they are read; this stage alone")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # what a child does, in `--folder`
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(do_stage(arguments.stage, Path(arguments.folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or small_checkpoint(Path(folder) / "small")
        print(f"{'tile':>10} {'stage':<6} {'projected':>11} {'measured':>11} {'ratio':>6}")
        for side in arguments.sides:
            place = Path(folder) / str(side)
            asked = {"direction": arguments.direction, "samples": arguments.samples, "patch": arguments.patch}
            config = prepare(place, side, checkpoint, arguments.early, **asked)
            for stage, numbers in compare(place, config, STAGES[:1] if arguments.early else STAGES).items():
                projected, measured = numbers["projected"] / 2**20, numbers["measured"] / 2**20
                print(
                    f"{side:5d} px   {stage:<6} {projected:7.0f} MiB {measured:7.0f} MiB {projected / measured:6.2f}",
                    flush=True,
                )


def prepare(place: Path, side: int, checkpoint: str, early: bool = False, **settings: Any) -> Config:
    """Write a store of one tile, an empty run folder, and the settings that the children need."""
    store = TileStore.create(place / "tiles")
    store.write_manifest([store.write_tile(crowded_tile(side, load_checkpoint(checkpoint).card.problem))])
    config = Config(
        store=str(place / "tiles"),
        run=str(place / "run"),
        checkpoint=checkpoint,
        **{"steps": 1, "score_steps": 1, "seed": 0} | settings,
    )
    request = check(config)
    RunFolder.open_or_create(config.run, request.document)
    worker = replace(settings_of(request, attempts={}, early=early), threads=1)
    (place / "settings.pickle").write_bytes(pickle.dumps(worker))
    return request.config


def compare(place: Path, config: Config, stages: Sequence[str] = STAGES) -> dict[str, dict[str, int]]:
    """Return projected and measured bytes by stage; a stage that is left out has left its result at the place."""
    model = load_checkpoint(config.checkpoint)
    early = pickle.loads((place / "settings.pickle").read_bytes()).early
    projected = stage_memory(model, TileStore.open(config.store).manifest(), config, 1.0 if early else None)
    found: dict[str, dict[str, int]] = {}
    for stage in stages:
        command = [sys.executable, "-m", "benchmarks.memory", "--stage", stage, "--folder", str(place)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        found[stage] = {"projected": projected[stage], **json.loads(done.stdout.splitlines()[-1])}
    return found


def do_stage(stage: str, place: Path) -> dict[str, int]:
    """Do one stage of the tile in this process, and print the peak memory of the process."""
    import pyarrow as pa
    import ray.data  # noqa: F401  # a worker of Ray Data has it loaded

    from surveybridge.cluster.stages import Outcome, model_outcome, read_outcome, write_outcome

    stages = tile_stages(pickle.loads((place / "settings.pickle").read_bytes()))
    match stage:
        case "read":
            outcome = read_outcome(stages.make_read(), "t0")
        case "model":
            outcome = model_outcome(stages.make_model(), _load(place / "read"))
        case _:
            row = write_outcome(stages.make_write(), _load(place / "model"))
            return {"measured": high_water(), "sources": row["n_candidates"]}
    if isinstance(outcome, Outcome) and outcome.failure:
        raise SystemExit(f"{stage}: {outcome.failure.reason}")
    column = pa.array([pickle.dumps(outcome, protocol=5)], pa.large_binary())
    peak = high_water()
    (place / stage).write_bytes(column[0].as_buffer())
    return {"measured": peak}


def crowded_tile(side: int, problem: Problem) -> Tile:
    """Make a tile of noise and round galaxies, about `SOURCES_PER_PIXEL`."""
    rng = np.random.default_rng(side)
    size = side + 2 * HALO
    pitch = round(SOURCES_PER_PIXEL**-0.5)
    y, x = np.indices((size, size), np.float32)
    squared = ((y % pitch) - pitch // 2) ** 2 + ((x % pitch) - pitch // 2) ** 2
    images = {
        end.name: _image(end, squared, width, rng) for end, width in zip(problem.endpoints, (3.1, 1.5), strict=True)
    }
    core = (HALO, HALO + side, HALO, HALO + side)
    return Tile("t0", images, core=core, origin=(0, 0), grid_id="benchmark")


def _image(end: Endpoint, squared: Any, width: float, rng: np.random.Generator) -> SurveyImage:
    from astropy.io.fits import Header

    sky = 1000 / (2 * np.pi * width**2) * np.exp(-squared / (2 * width**2))
    flux = (sky + rng.normal(size=(len(end.bands), *squared.shape))).astype(np.float32)
    return SurveyImage(
        survey=end.name,
        bands=end.bands,
        flux=flux,
        variance=np.ones_like(flux),
        mask=np.zeros(flux.shape, np.uint8),
        wcs_header=Header(WCS_CARDS).tostring(),
        pixel_scale=end.pixel_scale,
        psf_fwhm=tuple(end.pixel_scale * 2.35 * width for _ in end.bands),
        psf_wing=tuple(0.0 for _ in end.bands),  # known, so that light is compared
        zero_point=31.4,
        noise_correlation=tuple(0.0 for _ in end.bands),
        unit=end.unit,
        extensive=end.extensive,
    )


def small_checkpoint(path: Path) -> str:
    """Write random weights of a small network under the card of the shipped one."""
    card: Card = load_checkpoint().card
    network = NetworkConfig(base=8, stem=2, norm="pixel")
    save_checkpoint(replace(card, network=network), UNet(network).state_dict(), path)
    return str(path)


def _load(path: Path) -> Any:
    with open(path, "rb") as handle:
        return pickle.loads(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))


if __name__ == "__main__":
    main()
