"""The page of a report: everything a run folder says, gathered and put into `page.html`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from surveybridge.jobs.reporting.calibration import calibration_plot
from surveybridge.jobs.reporting.cards import DETECTED, cards
from surveybridge.jobs.reporting.scores import scores_plot
from surveybridge.jobs.reporting.sky import finest_pixel, sky_plot, tile_grid
from surveybridge.jobs.reporting.state import run_status
from surveybridge.jobs.reporting.timeline import timeline_plot
from surveybridge.jobs.translating.candidates import APERTURE_ARCSEC
from surveybridge.storage.problems import shown_ends
from surveybridge.storage.published import standing_rows
from surveybridge.storage.query import query
from surveybridge.storage.thumbnails import with_thumbnails
from surveybridge.storage.tiles import TileStore
from surveybridge.version import __version__

if TYPE_CHECKING:
    from surveybridge.storage.runs import RunFolder

FAILURES_SHOWN = 40
"""Groups of failures in the table; a run with more is better asked by `surveybridge query --sql`."""


def page(run: RunFolder, top: int, evaluation: Mapping[str, Any] | None = None) -> str:
    """The HTML of a run's report.

    Parameters
    ----------
    run : RunFolder
        In any state.
    top : int
        Candidates shown.
    evaluation : mapping, optional
        The metrics.json of `surveybridge evaluate` for the same checkpoint.
    """
    status = run_status(run)
    ledger = run.ledger()
    manifest = TileStore.open(status["store"]).manifest() if status["store_trouble"] is None else None
    rows = ledger if manifest is None else standing_rows(manifest, ledger)
    problem = run.problem
    ranked = found = None
    if not run.maps_only:
        ranked = query(run.url, thumbnails=False, grades=True, storage_options=run.folder.storage_options)
        found = with_thumbnails(run, ranked.slice(0, min(top, ranked.num_rows)))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of objects and tiles, and reasons, are anybody's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        status=status,
        summary=summary(status, run.run_json),
        failures=status["failures"][:FAILURES_SHOWN],
        more_failures=len(status["failures"]) - FAILURES_SHOWN,
        plots=[
            sky_plot(manifest, status["store_trouble"], rows, tile_grid(run, rows), found, finest_pixel(problem)),
            timeline_plot(ledger),
            *([] if ranked is None else [scores_plot(ranked)]),
            calibration_plot(run, rows, evaluation),
        ],
        cards=None if found is None else cards(found, problem),
        objects=shown_ends(problem)[1]["title"],
        aperture=APERTURE_ARCSEC,
        detected=DETECTED,
        made=datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00"),
        version=__version__,
    )


def summary(status: Mapping[str, Any], run_json: Mapping[str, Any]) -> dict[str, str]:
    """Return what a reader wants to know first, as one text per name."""
    rate, published = status["tiles_per_minute"], status["published"]
    return {
        "state": status["state"] + _driver(status),
        "direction": str(status["direction"]),
        "model": f"{status['model']} ({str(run_json.get('checkpoint_sha256'))[:12]})",
        "sampling": f"{run_json.get('samples')} samples of {run_json.get('steps')} steps; scores from "
        f"{run_json.get('score_samples')} of {run_json.get('score_steps')}; {run_json.get('precision')}, "
        f"seed {run_json.get('seed')}",
        "rate": "–" if rate["overall"] is None else f"{rate['overall']:.3g} tiles a minute",
        "seconds a tile": ", ".join(
            f"{stage} {numbers['median']:.3g}" for stage, numbers in status["seconds"].items() if numbers["median"]
        )
        or "–",
        "last tile": str(status["last_finished_at"] or "–"),
        "published": "nothing" if published is None else f"{published['path']}, {published['published_at']}",
        "run": f"{status['run']} ({status['run_id']})",
        "tile store": str(status["store"]),
        "version": f"surveybridge {status['code_version']}",
    }


def _driver(status: Mapping[str, Any]) -> str:
    holder, eta = status["holder"], status["eta_seconds"]
    if holder is None:
        return ""
    done = "" if eta is None else f", done in about {datetime.timedelta(seconds=round(eta))}"
    return f" on {holder['host']} since {holder['since']}{done}"
