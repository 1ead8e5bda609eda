"""What a tile costs before a network sees it, and after: work of readers and writers, for which no GPU waits.

    python -m benchmarks.preparing                           # tiles of 512 and 1024 pixels: half a minute on one core

The tiles are those of `benchmarks.memory`, with a source in every 1500 pixels. Medians of rounds, in processor seconds:
preparing a tile and, of that, each of its parts (objects include their thumbnails); the noise of its sky, which is
part of the others the first time that it is asked for; and, last, the rows of the catalog.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch

from benchmarks.memory import crowded_tile
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_card
from surveybridge.bridge_core.model import Card
from surveybridge.bridge_core.spans import listening
from surveybridge.jobs.translating.candidates import Candidates, RunFacts
from surveybridge.jobs.translating.stages import prepare_tile
from surveybridge.storage.images import sky_noise
from surveybridge.storage.problems import described
from surveybridge.storage.schema import candidates_schema
from surveybridge.storage.tiles import Tile

PARTS = ("registration", "objects", "thumbnails", "digest of the pixels")
"""Spans of `prepare_tile`."""
BESIDE = ("noise of the sky", "rows of the catalog")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024], help="core of the tile, pixels")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    card = load_card(arguments.checkpoint)
    print(f"{'core':>9}{'objects':>9}{'seconds':>9}" + "".join(f"{name:>22}" for name in (*PARTS, *BESIDE)))
    for side in arguments.sides:
        tile = crowded_tile(side, card.problem)
        rounds = [prepared_once(card, tile) for _ in range(1 + arguments.rounds)][1:]  # the first loads modules
        seconds = {name: median(spent[name] for _, spent in rounds) for name in ("all", *PARTS, *BESIDE)}
        parts = "".join(f"{seconds[name]:>22.2f}" for name in (*PARTS, *BESIDE))
        print(f"{side:>6} px{rounds[0][0]:>9}{seconds['all']:>9.2f}{parts}", flush=True)


def prepared_once(card: Card, tile: Tile) -> tuple[int, dict[str, float]]:
    """Prepare a tile; return the number of its objects, and processor seconds of all and of each span."""
    spent: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        spent[name] += time.process_time() - start

    # the same images, of which nothing is known yet
    tile = replace(tile, images={name: replace(image) for name, image in tile.images.items()})
    with listening(timed), timed("all"):
        found = prepare_tile(card, tile, RunFacts("benchmark"))
    with timed("noise of the sky"):
        for image in tile.images.values():
            sky_noise(image)
    assert found.objects is not None
    table = described(card.problem.table)
    schema = candidates_schema(table)
    pictures = {
        f"thumbnail_{what}": found.objects.columns[f"thumbnail_{table['catalog']}"] for what in ("mean", "error")
    }
    with timed("rows of the catalog"):
        assert Candidates(schema, found.objects.columns | pictures).rows.num_rows
    return len(found.objects.asked), spent


if __name__ == "__main__":
    main()
