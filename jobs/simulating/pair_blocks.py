"""A pair store of simulated scenes, block by block, and the table of its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from surveybridge.jobs.running.blocks import one_thread
from surveybridge.jobs.simulating.exposures import VIS_SCALE
from surveybridge.jobs.simulating.scenes import PLANES, ScenePairs, SceneSpec, draw_pairs
from surveybridge.jobs.simulating.sharp_skies import SkyWindows, draw_skies
from surveybridge.storage.block_labels import write_block_labels
from surveybridge.storage.pair_writer import PairLayout, PairWriter, store_name
from surveybridge.storage.problems import default_problem, read_problem

SPECS: dict[str, SceneSpec] = {
    "mosaic": SceneSpec(),
    "cutout": SceneSpec(grid="cutout"),
    "sharp": SceneSpec(size=96, windows=12, grid="sharp"),
}
"""What is drawn, by grid."""

LARGEST = round(SceneSpec.side / VIS_SCALE / 2)
"""Side of the largest windows in pixels: half of a scene."""

EDITION = 2
"""Of what a seed draws: a store that was begun by another edition is not gone on with."""

STEP = 16
"""Fluxes are rounded to this part of their noise, as those of the simulated pairs, which compresses them."""

SIGMA_STEP = 0.005
"""Noise maps are rounded to this share."""

CLASSES = {
    "system": "field_galaxy", "field": "field_galaxy", "bright": "bright_galaxy", "deflector": "deflector_like",
    "star": "star", "sky": "none",
}  # fmt: skip
"""`central_class` of a window, by what it was centred on."""


def spec_of(grid: str, size: int | None) -> SceneSpec:
    """What is drawn; windows of `size` pixels a side are as many as would fill the same length if they lay in a row."""
    spec = SPECS[grid]
    return spec if size is None else replace(spec, size=size, windows=max(1, round(spec.windows * spec.size / size)))


def begin(url: str, count: int, seed: int, held_back: int, spec: SceneSpec) -> PairWriter:
    """Begin a store, or go on with it; StorageError if there is anything else."""
    mosaic, ends = spec.grid != "cutout", ("lsst", "sharp" if spec.grid == "sharp" else "euclid")
    noisy = tuple(end for end in ends if end != "sharp")
    layout = PairLayout(
        problem=read_problem("seeing") if spec.grid == "sharp" else default_problem(),
        count=count,
        shape=(spec.size, spec.size),
        pixel_arcsec=0.1 if mosaic else 0.0,
        name=store_name(url),
        held_back=held_back,
        sigma=noisy if mosaic else (),
        gain=noisy,
        registration=True,
        attributes={
            "simulated": "surveybridge simulate-pairs",
            "seed": seed,
            "edition": EDITION,
            "windows_of_a_scene": spec.windows,
        },
        own_pixels={} if mosaic else {"lsst": 0.2, "euclid": 0.1},
    )
    return PairWriter.open(url, layout)


def write_block(writer: PairWriter, seed: int, spec: SceneSpec, block: int) -> int:
    """Draw the pairs of a block and write them with their labels; returns their number."""
    rows = writer.layout.rows(block)
    first, last = rows.start // spec.windows, -(-rows.stop // spec.windows)
    with one_thread():
        draw = draw_skies if spec.grid == "sharp" else draw_pairs
        parts = [draw(spec, seed, number) for number in range(first, last)]
    keep = slice(rows.start - first * spec.windows, rows.stop - first * spec.windows)
    arrays = {name: torch.cat([part.conditions[name] for part in parts])[keep].numpy() for name in parts[0].conditions}
    for name in (plane for plane in (*PLANES, "sharp") if plane in writer.layout.arrays):
        plane = torch.cat([getattr(part, name) for part in parts])[keep].permute(0, 2, 3, 1).numpy()
        if name.endswith("_sigma"):
            arrays[name] = np.exp(np.round(np.log(plane) / SIGMA_STEP) * SIGMA_STEP).astype(np.float32)
        else:
            # a sky without noise is rounded as the image beside it
            step = arrays["lsst_noise" if name == "sharp" else f"{name}_noise"][:, None, None] / STEP
            arrays[name] = (np.round(plane / step) * step).astype(np.float32).reshape(-1, *writer.layout.arrays[name])
    ids = [f"{row // spec.windows:06d}-{row % spec.windows}" for row in rows]
    write_block_labels(writer, block, _table(ids, parts, keep))
    writer.write(block, ids, arrays)
    return len(rows)


def _table(ids: list[str], parts: Sequence[ScenePairs | SkyWindows], keep: slice) -> pa.Table:
    """One row a pair: its scene, whether its conditions are nominal, and the object in its middle."""
    labels = {name: np.concatenate([part.labels[name] for part in parts])[keep] for name in parts[0].labels}
    classes = [CLASSES[str(role)] for role in labels.pop("role")]
    return pa.table({"id": ids, "central_class": classes, **{name: pa.array(v) for name, v in labels.items()}})
