"""How much memory a worker of a training takes, projected (`jobs.training.memory`) and measured.

    python -m benchmarks.training_memory [--pairs ../shared/data/pairs/train_regular.zarr] [--rows 1000,4000]

For each number of pairs a process reads all shards and takes two steps, as a single worker does; the peak of its
resident memory is compared with the projection.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def main() -> None:
    """Print a line for each number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default=str(DATA / "pairs" / "train_regular.zarr"))
    parser.add_argument("--rows", default="1000,4000")
    parser.add_argument("--one", type=int, help="measure this process alone")
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(measured(asked.pairs, asked.one)))
        return
    for rows in asked.rows.split(","):
        command = [sys.executable, "-m", "benchmarks.training_memory", "--pairs", asked.pairs, "--one", rows]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print("{rows} pairs: projected {projected:.0f} MB, measured {measured:.0f} MB".format(**found))


def measured(url: str, rows: int) -> dict[str, Any]:
    """Peak of this process, and the projection, MB."""
    import ray.train  # noqa: F401  # as a worker has loaded it
    import torch

    from surveybridge.bridge_core.network import UNet, channels_last
    from surveybridge.bridge_core.training import Batch, TrainState, bridge_loss
    from surveybridge.jobs.train import Config
    from surveybridge.jobs.training.card import asked_problem, make_card
    from surveybridge.jobs.training.memory import worker_bytes
    from surveybridge.jobs.training.worker import make_recipe, read_shard
    from surveybridge.storage.pairs import read_pairs, states_conditions

    told = states_conditions(url)
    config = Config(pairs=url, out="out", steps=2, learning_rate=1e-4).model_dump()
    config |= {"available": rows, "validation": 128, "conditions": told}
    probe = read_pairs(url, stop=256, conditions=told)
    card = make_card(config, asked_problem(None, None, url), probe, asdict(make_recipe(config)))
    recipe = make_recipe(config)
    shards = [read_shard(config, card, index) for index in range(recipe.shards)]
    network = channels_last(UNet(card.network))
    state = TrainState(network, recipe)
    for step in range(2):
        batch = Batch.join([shard.draw(card, recipe, step) for shard in shards])
        bridge_loss(network, card, batch).backward()
        state.update(0.0)
    torch.set_num_threads(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = next(iter(probe.ends.values())).shape[-1]
    return {"rows": rows, "projected": worker_bytes(card, config, size, 1) / 2**20, "measured": peak}


if __name__ == "__main__":
    main()
