"""The results of a training that has ended: whether they are there, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surveybridge.storage.objectstore import Folder


def finished(out: Folder, checkpoint: str, run: str) -> dict[str, str] | None:
    """Return the last row of the log of a run whose results are all in `out`; None if something is left to do."""
    results = (f"{checkpoint}.safetensors", f"{checkpoint}.json", "loss.csv", "loss.png")
    if not all(out.exists(name) for name in results):
        return None
    provenance = json.loads(out.read(f"{checkpoint}.json"))["provenance"]
    end: dict[str, str] | None = provenance["log_end"] if provenance.get("run") == run else None
    return end


def summary(out: Folder, checkpoint: str, end: Mapping[str, str]) -> str:
    """Return what the last row of its log says of a run."""
    return (
        f"{out.file_url(f'{checkpoint}.safetensors')}: {end['step']} steps, {float(end['seconds']) / 60:.1f} minutes, "
        f"loss {end['loss']}, validation {end['validation_loss']}, energy {end['validation_energy']}"
    )
