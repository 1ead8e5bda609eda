"""Report on runs: one HTML page with their state, failures, plots and top candidates, that opens without a network.

Works on running, interrupted and finished runs. Several runs, or a published catalog, have one list of candidates. The
page, `report.html`, holds its pictures and its style, and forbids itself to load anything else: mail it, or put it on
any web server. With --evaluation, the calibration plot also shows what `surveybridge evaluate` found for the same
checkpoint.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError, Texts

if TYPE_CHECKING:
    from surveybridge.storage.runs import RunFolder

EXAMPLES = """
  surveybridge report --run runs/field --out reports/field
  surveybridge report --run s3://survey/runs/dr1 --out s3://survey/reports/dr1 --top 100
  surveybridge report --run runs/north runs/south --out reports/both
  surveybridge report --run s3://survey/catalog --out reports/catalog
  surveybridge report --run runs/field --out reports/field --evaluation evaluation
"""

PAGE = "report.html"


class Config(JobConfig):
    """Settings of `surveybridge report`."""

    writes = ("out",)

    run: Texts = Field(min_length=1, description="run folders, or one published catalog: paths or s3:// URLs")
    out: str = Field(description=f"folder for {PAGE}, local path or URL; an earlier report there is replaced")
    top: int = Field(30, ge=0, description="candidates shown, highest score first")
    evaluation: str | None = Field(
        None, description="folder that `surveybridge evaluate` wrote for the same checkpoint"
    )


def run(config: Config) -> int:
    """Write the page; 0 whatever the state of the runs is."""
    from surveybridge.jobs.reporting.page import page
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.views import runs_at

    out = Folder.at(config.out)
    if out.is_local and os.path.isfile(out.path()):
        raise RequestError(f"--out {config.out} is a file; give a folder")
    _, runs = runs_at(config.run)
    evaluation = None
    for run in runs if config.evaluation is not None else ():
        evaluation = read_evaluation(str(config.evaluation), run)
    content = page(config.run, config.top, evaluation).encode()
    out.put(content, PAGE)
    print(f"{out.file_url(PAGE)}: {len(content) / 1e6:.1f} MB, opens in any browser")
    return 0


def read_evaluation(url: str, run: RunFolder) -> dict[str, Any]:
    """The metrics.json of an evaluation; RequestError if there is none, or it is of another checkpoint."""
    from surveybridge.storage.objectstore import Folder

    folder = Folder.at(url)
    try:
        document: dict[str, Any] = json.loads(folder.read("metrics.json"))
        name, sha256 = document["checkpoint"]["name"], document["checkpoint"]["sha256"]
        directions = list(document["coverage"])
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(
            f"--evaluation {url}: found {folder.describe()}, no metrics.json; give what `surveybridge evaluate` wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"--evaluation {folder.file_url('metrics.json')} is no evaluation ({type(error).__name__}: {error}); "
            "give what `surveybridge evaluate` wrote"
        ) from None
    if sha256 != run.run_json["checkpoint_sha256"]:
        raise RequestError(
            f"--evaluation {url} is of checkpoint {name} {sha256[:12]} but the run's is {run.run_json.get('model')} "
            f"{run.run_json['checkpoint_sha256'][:12]}; evaluate that one"
        )
    if run.run_json["direction"] not in directions:
        raise RequestError(
            f"--evaluation {url} is of {', '.join(directions)} but the run of {run.run_json['direction']}; evaluate "
            "with --direction both"
        )
    return document
