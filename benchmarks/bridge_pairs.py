"""Pairs of which one end is a sample of a bridge: generated stamps whose partner was observed.

    python -m benchmarks.bridge_pairs --pairs ../shared/data/pairs/test_regular.zarr --out runs/galaxies/bridge.zarr
        [--checkpoint mosaic-v2] [--to euclid] [--start 0] [--count N] [--evaluations 8]

Writes a pair store that `benchmarks.galaxies` and `benchmarks.downstream` take like one of `surveybridge generate`: the
observed end as it is in the store, on the grid of the network, and one sample of the wanted end for each. The sampler
is `dbim2` of `benchmarks.samplers`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.samplers import SAMPLERS, draws
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.model import Model
from surveybridge.storage.objectstore import Folder
from surveybridge.storage.pair_writer import PairLayout, PairWriter, store_name
from surveybridge.storage.pairs import Pairs, read_ids, read_pairs

SAMPLER = next(one for one in SAMPLERS if one.name == "dbim2")


def main() -> None:
    """Write the store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="pair store whose stamps are observed")
    parser.add_argument("--out", required=True, help="pair store to write")
    parser.add_argument("--checkpoint", default="mosaic-v2", help="one that is told no conditions")
    parser.add_argument("--to", default="euclid", help="end that is sampled")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, help="pairs (default: all)")
    parser.add_argument("--evaluations", type=int, default=8, help="of the network, a sample")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    stop = None if arguments.count is None else arguments.start + arguments.count
    pairs = read_pairs(arguments.pairs, start=arguments.start, stop=stop, problem=model.card.problem.table)
    started = time.process_time()
    made = sampled(model, pairs, arguments.to, arguments.evaluations)
    rate = len(made) / (time.process_time() - started)
    ids = read_ids(arguments.pairs, arguments.start, stop)
    write(arguments.out, model, made, ids, f"{arguments.to} of {arguments.pairs}")
    print(f"{arguments.out}: {len(made)} pairs, {rate:.1f} a second of a core")


def sampled(model: Model, pairs: Pairs, to: str, evaluations: int) -> Pairs:
    """The same pairs with a sample of the bridge in place of one end."""
    direction = model.card.problem.to(to)
    drawn = draws(model, pairs, direction, 1, SAMPLER.at(model, direction, evaluations))[0]
    return Pairs(**(vars(pairs) | {"ends": {**pairs.ends, direction.wanted.name: drawn.numpy()}}))


def write(url: str, model: Model, made: Pairs, ids: list[str], what: str) -> None:
    """Write pairs on the grid of the network as a store; refused where another one is."""
    first = model.card.problem.endpoints[0].name
    layout = PairLayout(
        model.card.problem.table,
        len(made),
        made.ends[first].shape[-2:],
        made.pixel_scale[first],
        store_name(url),
        conditions=False,
        noise=made.noise,
        attributes={"generated": what, "checkpoint": f"{model.card.name}-{model.sha256[:12]}"},
    )
    writer = PairWriter.open(Folder.at(url).url, layout)
    for block in range(layout.blocks):
        rows = list(layout.rows(block))
        arrays = {
            name: np.ascontiguousarray(images[rows].transpose(0, 2, 3, 1).reshape(len(rows), *layout.arrays[name]))
            for name, images in made.ends.items()
        }
        writer.write(block, [ids[row] for row in rows], arrays)
    writer.finish()


if __name__ == "__main__":
    main()
