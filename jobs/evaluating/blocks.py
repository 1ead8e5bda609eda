"""Blocks of pairs, the items of an evaluation: what is asked of each, and what it holds. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surveybridge.bridge_core.settings import Sampling, Scoring
    from surveybridge.bridge_core.stretch import Stretch
    from surveybridge.storage.pairs import Pairs
    from surveybridge.storage.problems import ProblemTable

PARTS = "evaluate-parts"
TABLES = ("images", "pixels", "scores", "dex")


@dataclass(frozen=True)
class Settings:
    """The settings of the stages."""

    pairs: str
    anomalies: str | None
    checkpoint: str | None
    grid: str
    problem: ProblemTable
    """That of the checkpoint."""
    directions: tuple[str, ...]
    """Those to images of objects."""
    densities: tuple[str, ...]
    """Those to quantities that are judged in dex."""
    sampling: Sampling
    scoring: Scoring
    out: str
    threads: int
    start: int
    """First row of each store."""
    counts: Mapping[str, int]
    block: int
    """Pairs of an item; noise belongs to the pair, so the number changes rounding, memory and overhead only."""
    display: Mapping[str, Stretch]
    """AS-Bridge's display of the pairs, in which energy scores are taken and its checkpoints see the world."""
    calibrated: bool
    """Whether samples are stretched by the recalibration in the card."""
    filesystems: Mapping[str, Mapping[str, Any]] = field(repr=False)  # fsspec's options by protocol: secrets

    @property
    def tables(self) -> tuple[str, ...]:
        """Those of `TABLES` that there will be."""
        there = {
            "images": bool(self.directions),
            "pixels": bool(self.directions),
            "scores": self.anomalies is not None,
            "dex": bool(self.densities),
        }
        return tuple(name for name in TABLES if there[name])

    def blocks(self) -> list[str]:
        """Items, named by store and first row: pairs-00000000, pairs-00000064, ..., anomalies-00000000, ..."""
        return [
            f"{which}-{self.start + first:08d}"
            for which, count in self.counts.items()
            for first in range(0, count, self.block)
        ]

    def parts(self, name: str) -> list[str]:
        """Files of a table, one a block, relative to `out`."""
        return [f"{PARTS}/{block}.{name}.parquet" for block in self.blocks()]

    def rows(self, item: str) -> tuple[str, int, int]:
        """Store and range of rows of an item."""
        which, _, first = item.partition("-")
        return which, int(first), min(int(first) + self.block, self.start + self.counts[which])

    def url(self, which: str) -> str:
        """URL of the store of pairs or of anomalies."""
        return self.pairs if which == "pairs" else str(self.anomalies)


@dataclass(frozen=True)
class Block:
    """Some pairs with their names and labels."""

    which: str
    first: int
    pairs: Pairs
    ids: list[str]
    labels: list[Mapping[str, Any]]
    """Rows of the table beside the store; empty where there is none."""
    simulations: list[str] | None
    """What each pair was cut from; None where the store does not say."""

    def rows(self, some: slice) -> Block:
        """Some of the pairs."""
        return replace(
            self,
            first=self.first + (some.start or 0),
            pairs=self.pairs.rows(some),
            ids=self.ids[some],
            labels=self.labels[some],
            simulations=None if self.simulations is None else self.simulations[some],
        )


def corners(block: Block) -> list[tuple[int, int]]:
    """A place for each pair in the noise's pixels, which no other pair shares."""
    size = next(iter(block.pairs.ends.values())).shape[-1]
    row = 0 if block.which == "pairs" else size
    return [(row, size * (block.first + k)) for k in range(len(block.ids))]
