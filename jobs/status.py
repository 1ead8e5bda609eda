"""Show what a run is doing, from its folder alone: state, tiles done and left, rate, failures by reason, stragglers.

Works on a running, an interrupted and a finished run, from any machine that reads the run folder; a tile store that
cannot be read costs only the number of tiles left. Exit code 0 whatever is found, failed tiles too: this reports, and
does not judge (`--format json` is for scripts that do); 2 if there is no run folder.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from surveybridge.jobs.config import JobConfig

EXAMPLES = """
  surveybridge status --run runs/field
  surveybridge status --run s3://survey/runs/dr1 --format json
"""


class Config(JobConfig):
    """Settings of `surveybridge status`."""

    run: str = Field(description="run folder, a path or s3:// URL")
    format: Literal["text", "json"] = Field("text", description="lines for a person, or one JSON object")


def run(config: Config) -> int:
    """Print the status; 0 whatever it is."""
    from surveybridge.jobs.reporting.state import run_status, text
    from surveybridge.storage.runs import RunFolder

    status = run_status(RunFolder.open(config.run))
    print(json.dumps(status, indent=1) if config.format == "json" else text(status))
    return 0
