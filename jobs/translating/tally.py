"""The outcome of a translation: tiles counted by status, where the time went, and the exit code that follows."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surveybridge.cluster.errors import REMEDY
from surveybridge.jobs.running.drain import DRAINED

if TYPE_CHECKING:
    import pyarrow as pa

STAGES = ("read", "model", "score", "write")
"""Stages with a time of their own in the ledger; on Ray the score is part of the model's stage."""

FAILURES_SHOWN = 20


@dataclass
class Tally:
    """The outcome of a run."""

    todo: int
    manifest: int
    statuses: Counter[str] = field(default_factory=Counter)  # of this run's receipts
    earlier: Counter[str] = field(default_factory=Counter)  # of ledger rows that this run has no receipt for
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    candidates: int = 0
    patches: int = 0
    stars: Counter[str] = field(default_factory=Counter)  # of the list that was given: in the tiles, matched, wide
    wall: float = 0.0
    first: float = 0.0  # time.monotonic() of the first receipt and of the last
    last: float = 0.0
    drained: str = ""  # why it ended before its time
    full: bool = False  # whether a disk had no space left

    def add(self, receipt: dict[str, Any]) -> None:
        """Count a receipt."""
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.statuses[receipt["status"]] += 1
        self.candidates += receipt.get("n_candidates") or 0
        self.patches += receipt.get("n_patches") or 0
        self.stars.update(dict(zip(("listed", "matched", "wide"), receipt.get("stars", ()), strict=False)))
        for stage in STAGES:
            self.seconds[stage] += receipt.get(f"seconds_{stage}") or 0.0
        if receipt.get("full"):
            self.full = True
            self.drained = self.drained or receipt["reason"].removesuffix(REMEDY) + REMEDY
        elif receipt["status"] != "ok" and len(self.failures) < FAILURES_SHOWN:
            self.failures.append((receipt["tile_id"], f"{receipt['status']}: {receipt.get('reason')}"))

    def total(self, *statuses: str) -> int:
        """Tiles of the run with one of these statuses."""
        return sum(self.statuses[status] + self.earlier[status] for status in statuses)

    @property
    def exit_code(self) -> int:
        """Return 0 if all is ok; 1 if tiles have no ledger row; 3 if some failed; 143 if SIGTERM left work to do."""
        if self.statuses["lost"]:
            return 1
        if self.drained == "SIGTERM" and sum(self.statuses.values()) < self.todo:
            return DRAINED
        return 3 if self.total("failed", "quarantined") else 0


def tally_of(todo: list[str], manifest: pa.Table, earlier: pa.Table) -> Tally:
    """The tally before the first receipt: what earlier runs left that this one does not do again."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from surveybridge.storage.published import standing_rows

    tally = Tally(todo=len(todo), manifest=manifest.num_rows)
    standing = standing_rows(manifest, earlier)
    standing = standing.filter(pc.invert(pc.is_in(standing["tile_id"], pa.array(todo, pa.string()))))
    tally.earlier.update(standing["status"].to_pylist())
    tally.candidates = pc.sum(standing["n_candidates"]).as_py() or 0
    failed = standing.filter(pc.not_equal(standing["status"], "ok")).slice(0, FAILURES_SHOWN)
    tally.failures = [
        (row["tile_id"], f"{row['status']}: {row['reason']}")
        for row in failed.select(["tile_id", "status", "reason"]).to_pylist()
    ]
    return tally


def summary(url: str, tally: Tally) -> str:
    """Describe what was done and where the time went, for a person."""
    done, failed = tally.total("ok"), tally.total("failed", "quarantined")
    left = tally.manifest - done - failed
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in tally.seconds.items())
    lines = [f"{url}: {done} of {tally.manifest} tiles ok, {failed} failed; {tally.candidates} sources scored"]
    if tally.stars["listed"]:
        lines.append(
            f"stars: {tally.stars['matched']} objects matched the {tally.stars['listed']} listed stars in these tiles; "
            f"{tally.stars['wide']} of them are too wide for stars and are scored"
        )
    if left:
        why = tally.drained or f"{tally.statuses['lost']} could not be committed"
        lines.append(f"{left} tiles are left ({why}): run the same command again")
    lines.append(f"this run: {sum(tally.statuses.values())} tiles in {tally.wall:.1f} s; summed over workers: {spent}")
    return "\n".join(lines)
