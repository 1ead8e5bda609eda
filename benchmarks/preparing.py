"""What a tile costs before a network sees it: work that readers do where models have GPUs, which never wait for it.

    python -m benchmarks.preparing                           # tiles of 512 and 1024 pixels: half a minute on one core

The tiles are those of `benchmarks.memory`, with a source in every 1500 pixels. Medians of rounds, in processor seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.memory import crowded_tile
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_card
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.spans import listening
from surveybridge.jobs.translating.candidates import RunFacts
from surveybridge.jobs.translating.stages import prepare_tile
from surveybridge.storage.tiles import Tile

PARTS = ("registration", "objects", "digest of the pixels")
"""Spans of `prepare_tile`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024], help="core of the tile, pixels")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    card = load_card(arguments.checkpoint)
    print(f"{'core':>9}{'objects':>9}{'seconds':>9}" + "".join(f"{name:>22}" for name in PARTS))
    for side in arguments.sides:
        tile = crowded_tile(side, card.problem)
        rounds = [prepared_once(card, tile) for _ in range(1 + arguments.rounds)][1:]  # the first loads modules
        seconds = {name: median(spent[name] for _, spent in rounds) for name in ("all", *PARTS)}
        parts = "".join(f"{seconds[name]:>22.2f}" for name in PARTS)
        print(f"{side:>6} px{rounds[0][0]:>9}{seconds['all']:>9.2f}{parts}", flush=True)


def prepared_once(card: Card, tile: Tile) -> tuple[int, dict[str, float]]:
    """Prepare a tile; return the number of its objects, and processor seconds of all and of each span."""
    spent: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        spent[name] += time.process_time() - start

    with listening(timed), timed("all"):
        found = prepare_tile(card, tile, RunFacts("benchmark"))
    assert found.objects is not None
    return len(found.objects.asked), spent


if __name__ == "__main__":
    main()
