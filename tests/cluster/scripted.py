"""Stages that keep a journal of what they do, and raise, die or take their time where the script says so."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from surveybridge.cluster.stages import Outcome, Stages


@dataclass(frozen=True)
class Script:
    folder: Path
    """Of the journal."""
    raising: Mapping[str, str] = field(default_factory=dict)
    """item -> stage that raises."""
    dying: Mapping[str, str] = field(default_factory=dict)
    """item -> stage that ends its process, each time."""
    dying_once: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What a stage takes."""
    size: int = 0
    """Bytes of a value that was read."""

    def stages(self) -> Stages:
        return Stages(*(partial(self._make, stage) for stage in ("read", "model", "write")))

    def journal(self) -> Counter[tuple[str, str]]:
        """How often (stage, item) was begun."""
        lines = [line for path in self.folder.glob("journal-*") for line in path.read_text().splitlines()]
        return Counter((stage, item) for stage, item in (line.split() for line in lines))

    def repeated(self) -> dict[tuple[str, str], int]:
        return {key: count for key, count in self.journal().items() if count > 1}

    def _make(self, stage: str) -> Any:
        self._note(f"make_{stage}", str(os.getpid()))
        return {"read": self._read, "model": self._model, "write": self._write}[stage]

    def _read(self, item: str) -> dict[str, Any]:
        self._step("read", item)
        return {"read": item, "bytes": b"x" * self.size}

    def _model(self, item: str, value: dict[str, Any]) -> dict[str, Any]:
        self._step("model", item)
        return {"read": value["read"], "model": item}

    def _write(self, outcome: Outcome) -> dict[str, Any]:
        row = {"tile_id": outcome.item, "status": "ok", "value": outcome.value}
        if outcome.failure is None:
            self._step("write", outcome.item)
        else:
            status = "quarantined" if outcome.failure.quarantined else "failed"
            row |= {"status": status, "stage": outcome.failure.stage, "reason": outcome.failure.reason}
        (self.folder / f"{outcome.item}.row").write_text(str(row["status"]))
        return row

    def _step(self, stage: str, item: str) -> None:
        self._note(stage, item)
        time.sleep(self.seconds.get(stage, 0))
        if self.raising.get(item) == stage:
            raise RuntimeError(f"no {stage} of {item}")
        if self.dying.get(item) == stage:
            os._exit(1)
        marker = self.folder / f"{item}.died"
        if self.dying_once.get(item) == stage and not marker.exists():
            marker.touch()
            os._exit(1)

    def _note(self, stage: str, item: str) -> None:
        with open(self.folder / f"journal-{os.getpid()}", "a", encoding="utf-8") as file:
            file.write(f"{stage} {item}\n")
