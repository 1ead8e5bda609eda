"""A pair store of simulated clouds: a block of it is one simulation."""

from __future__ import annotations

import pyarrow as pa
import torch

from surveybridge.jobs.clouds.simulation import Pair, pairs_of
from surveybridge.jobs.clouds.suites import SUITES, VIEWS, plan_of
from surveybridge.jobs.clouds.transport import compiled, rates
from surveybridge.jobs.clouds.units import BOX
from surveybridge.jobs.running.blocks import one_thread
from surveybridge.storage.block_labels import write_block_labels
from surveybridge.storage.map_names import CLOUD_MAPS
from surveybridge.storage.pair_writer import PairLayout, PairWriter, store_name
from surveybridge.storage.problems import ProblemTable, read_problem

EDITION = 1
"""Of what a seed makes: a store that was begun by another edition is not gone on with."""


def clouds_problem() -> ProblemTable:
    """Volume density from column density, one way, on a grid of parsecs: that of `clouds-density`."""
    problem = read_problem("clouds-density")
    # as stores that were begun before there was a file, or a scaling in it, say: these are gone on with
    problem["name"] = "clouds"
    for end in problem["endpoints"]:
        end.pop("scaling", None)
    return problem


def begin(
    url: str, suite: str, simulations: int, cells: int, seed: int, device: str, *, compiled: bool = False
) -> PairWriter:
    """Begin a store, or go on with it; StorageError if there is anything else."""
    family, problem = SUITES[suite], clouds_problem()
    each = family.snapshots * VIEWS
    ends = {end["name"] for end in problem["endpoints"]}
    layout = PairLayout(
        problem=problem,
        count=simulations * each,
        shape=(cells, cells),
        pixel_arcsec=0.0,
        name=store_name(url),
        held_back=int(simulations * family.held_back) * each,
        attributes={
            "simulated": "surveybridge simulate-clouds",
            "suite": suite,
            "seed": seed,
            "edition": EDITION,
            "device": device,
            "pixel_pc": BOX / cells,
            **({"compiled": True} if compiled else {}),
        },
        maps={name: unit for name, unit in CLOUD_MAPS.items() if name not in ends},
        conditions=False,
        simulations=True,
        block=each,
    )
    return PairWriter.open(url, layout)


def write_block(writer: PairWriter, number: int) -> int:
    """Simulate the cloud of a number and write its pairs with their labels; returns how many these are."""
    said = writer.layout.attributes
    plan = plan_of(said["suite"], said["seed"], number)
    with one_thread():
        changes = compiled() if said.get("compiled") else rates
        pairs = list(pairs_of(plan, writer.layout.shape[0], said["device"], changes))
    arrays = {
        name: torch.stack([pair.maps[name] for pair in pairs]).cpu().numpy().reshape(-1, *shape)
        for name, shape in writer.layout.arrays.items()
    }
    write_block_labels(writer, number, _table(pairs))
    ids = [str(pair.labels["id"]) for pair in pairs]
    writer.write(number, ids, arrays, [plan.name] * len(ids))
    return len(ids)


def _table(pairs: list[Pair]) -> pa.Table:
    """One row a pair; units are in the metadata of the columns."""
    units = {"time": "L/c_s", "density_unit": "cm-3", "beam": "pix", "stream": "c_s"}
    columns = {name: pa.array([pair.labels[name] for pair in pairs]) for name in pairs[0].labels}
    fields = [
        pa.field(name, values.type, metadata={"unit": units[name]} if name in units else None)
        for name, values in columns.items()
    ]
    return pa.table(list(columns.values()), schema=pa.schema(fields))
