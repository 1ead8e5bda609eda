"""Make the files of a version that must open for ever: `python -m tests.kept.make`, run by the code of that version.

A checkpoint, a tile store, a pair store and a run folder of which one tile is left to do, all as small as can be; the
tests copy them and read, query, export and resume them. Those of version 1 were made by commit 0c8de24, whose code is
that of 29d18a7. This makes those of the version of today, and never touches an earlier one's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import zarr

from surveybridge.__main__ import main
from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.checkpoint import save_checkpoint
from surveybridge.bridge_core.model import CARD_VERSION, Card
from surveybridge.bridge_core.network import NetworkConfig, UNet
from surveybridge.bridge_core.objective import Objective
from surveybridge.storage.ingest import Field, cut_tile, tile_boxes
from surveybridge.storage.tiles import TileStore
from tests.tiny import PROBLEM, SURVEY_BANDS, fitted, make_image, write_pairs

HERE = Path(__file__).parent
SIDE, TILE, LEFT = 144, 72, "t0003"
"""Pixels of the field and of a tile's core, and the tile that the run has not done."""
MADE_IN = "/kept/v{}"
"""What stands in the files of a version for the folder that they lie in."""


def make(folder: Path) -> None:
    """Write everything below an empty folder."""
    torch.manual_seed(0)
    network = NetworkConfig(base=8, multipliers=(1, 2), blocks=1, time_dim=16, stem=2, norm="pixel")
    card = Card(
        name="kept",
        grid="mosaic",
        problem=PROBLEM.with_endpoints([fitted(end) for end in PROBLEM.endpoints]),
        bridge=Bridge.brownian(m_min=1e-4),
        network=network,
        objective=Objective("edm", sigma_data=0.3, log_sigma_mean=-1.2, log_sigma_std=1.4),
        provenance={"pairs": "none: random weights"},
    )
    save_checkpoint(card, UNet(network).state_dict(), folder / "kept")
    field = Field({name: make_image(name, SIDE) for name in SURVEY_BANDS}, onto="euclid")
    store = TileStore.create(str(folder / "tiles"))
    store.write_manifest([store.write_tile(cut_tile(field, box)) for box in tile_boxes(field.shape, TILE, 0)])
    write_pairs(folder / "pairs.zarr", 4)
    arguments = ["--store", str(folder / "tiles"), "--run", str(folder / "run"), "--checkpoint", str(folder / "kept")]
    fast = ["--samples", "2", "--steps", "2", "--score-samples", "2", "--score-steps", "2"]
    assert main(["translate", *arguments, *fast, "--precision", "float32", "--executor", "serial"]) == 0
    for part in ("ledger", "mosaics", "candidates"):
        (folder / "run" / part / f"{LEFT}.parquet").unlink()
    (folder / "run" / "lease.json").unlink(missing_ok=True)
    run_json = folder / "run" / "run.json"
    run_json.write_text(run_json.read_text().replace(str(folder), MADE_IN.format(CARD_VERSION)))


if __name__ == "__main__":
    there = HERE / f"v{CARD_VERSION}"
    there.mkdir()
    make(there)
    print(json.dumps({"numpy": np.__version__, "torch": torch.__version__, "zarr": zarr.__version__}))
