"""A pair store of generated stamps, block by block, and the table of its pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from surveybridge.bridge_core.generate import generate, generation_of
from surveybridge.bridge_core.generation import LIMIT, PROPERTIES
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.settings import Precision
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.generating.checkpoint import ready_generator
from surveybridge.jobs.running.blocks import one_thread
from surveybridge.storage.block_labels import write_block_labels
from surveybridge.storage.objectstore import file_at
from surveybridge.storage.pair_labels import labels_url
from surveybridge.storage.pair_writer import PairLayout, PairWriter, store_name
from surveybridge.storage.parquet import read_parquet

EDITION = 1
"""Of what a seed draws: a store that was begun by another edition is not gone on with."""

ROWS = 128
"""Pairs of a block."""

COLUMNS = ("id", *PROPERTIES)
"""Of the table beside the store."""

STEP = 16
"""Values are rounded to this part of the noise of their band, as those of simulated pairs, which compresses them."""


@dataclass(frozen=True)
class Asked:
    """What decides every pair beside its number; picklable.

    Parameters
    ----------
    checkpoint, sha256
        Path or shipped name of the generator, and its hash.
    seed, steps, precision
        As `bridge_core.generate.generate` takes them.
    given
        Properties that all pairs are to have, by name, in their units; the others are left to the generator.
    """

    checkpoint: str
    sha256: str
    seed: int
    steps: int
    precision: Precision
    given: Mapping[str, float]


def begin(model: Model, asked: Asked, url: str, count: int) -> PairWriter:
    """Begin a store, or go on with it.

    Raises
    ------
    RequestError
        If a property is asked for that the generator does not know, or is so far from its training that the network
        would be told another; if the place of the table has another table.
    StorageError
        If there is anything else at `url`.
    """
    card, generation = model.card, generation_of(model)
    unknown = sorted(set(asked.given) - set(generation.properties))
    if unknown:
        raise RequestError(
            f"--{unknown[0]} {asked.given[unknown[0]]:g}, but checkpoint {card.name} was trained with "
            f"{', '.join(generation.properties) or 'no properties'}; leave it out, or train with --properties"
        )
    for name, value in asked.given.items():
        least, most = generation.range_of(name)
        if not least <= value <= most:
            raise RequestError(
                f"--{name} {value:g}, but checkpoint {card.name} knows what lies within {LIMIT:g} standard deviations "
                f"of its training, {least:.4g} to {most:.4g}; give a value between them"
            )
    layout = PairLayout(
        problem=card.problem.table,
        count=count,
        shape=(generation.side, generation.side),
        pixel_arcsec=card.problem[generation.ends[0]].pixel_scale,
        name=store_name(url),
        conditions=False,
        block=ROWS,
        noise=generation.noise,
        attributes={
            "generated": "surveybridge generate",
            "checkpoint": f"{card.name}-{model.sha256[:12]}",
            "seed": asked.seed,
            "steps": asked.steps,
            "precision": asked.precision,
            "given": dict(asked.given),
            "edition": EDITION,
        },
    )
    _refuse_other_table(url)
    return PairWriter.open(url, layout)


def _refuse_other_table(url: str) -> None:
    """RequestError if there is a table beside the store that no generator has written."""
    folder, name = file_at(labels_url(url))
    if folder.exists(name) and read_parquet(folder.read(name)).column_names != list(COLUMNS):
        raise RequestError(
            f"--out {url}: its table would replace {folder.url}/{name}, which is another one; give another place, or "
            "move that table"
        )


def write_block(writer: PairWriter, asked: Asked, block: int) -> int:
    """Draw the pairs of a block and write them with their labels; returns their number."""
    model = ready_generator(asked.checkpoint, asked.sha256, asked.precision)
    generation, rows = generation_of(model), writer.layout.rows(block)
    given = [asked.given.get(name, math.nan) for name in generation.properties]
    values = torch.tensor([given] * len(rows), dtype=torch.float32).reshape(len(rows), len(given))
    with one_thread():
        made = generate(model, rows, values, asked.seed, asked.steps, asked.precision)
    arrays = {}
    for end in model.card.problem.endpoints:
        shape = (len(rows), *writer.layout.arrays[end.name])
        if end.name not in made:
            arrays[end.name] = np.full(shape, np.nan, np.float32)
            continue
        stamps = made[end.name].permute(0, 2, 3, 1).double().numpy()
        steps = np.array([generation.noise.get(end.name, {}).get(band, 0.0) / STEP for band in end.bands])
        rounded = np.where(steps > 0, np.round(stamps / np.where(steps > 0, steps, 1.0)) * steps, stamps)
        arrays[end.name] = rounded.astype(np.float32).reshape(shape)
    ids = [f"{writer.layout.name}-{row:07d}" for row in rows]
    columns = {name: pa.array([asked.given.get(name)] * len(rows), pa.float64()) for name in PROPERTIES}
    write_block_labels(writer, block, pa.table({"id": ids, **columns}))
    writer.write(block, ids, arrays)
    return len(rows)
