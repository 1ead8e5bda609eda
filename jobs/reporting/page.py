"""The page of a report: everything that run folders say, gathered and put into `page.html`."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from surveybridge.jobs.reporting.calibration import HEADING as CALIBRATION
from surveybridge.jobs.reporting.calibration import calibration_plot
from surveybridge.jobs.reporting.cards import DETECTED, Directions, cards
from surveybridge.jobs.reporting.scores import scores_plot
from surveybridge.jobs.reporting.sky import Mapped, finest_pixel, sky_plot
from surveybridge.jobs.reporting.state import run_manifest, run_status
from surveybridge.jobs.reporting.timeline import timeline_plot
from surveybridge.jobs.translating.candidates import APERTURE_ARCSEC
from surveybridge.jobs.translating.homogenising import say_words
from surveybridge.storage.catalog_sources import run_id, run_of
from surveybridge.storage.domain import say_domains
from surveybridge.storage.orientation import RunGrids
from surveybridge.storage.problems import shown_ends
from surveybridge.storage.published import standing_rows
from surveybridge.storage.query import Listing, query
from surveybridge.storage.runs import LATER_KEYS, RunFolder
from surveybridge.storage.systems import leading
from surveybridge.storage.views import Urls, open_views, runs_at
from surveybridge.version import __version__

FAILURES_SHOWN = 40
"""Groups of failures in the table; a run with more is better asked by `surveybridge query --sql`."""


@dataclass(frozen=True)
class Reported:
    """A run in any state: what `run_status` says, its ledger, and of that the rows that stand, with their tiles."""

    run: RunFolder
    status: Mapping[str, Any]
    ledger: pa.Table
    mapped: Mapped

    @classmethod
    def of(cls, run: RunFolder) -> Reported:
        """Read a run."""
        status = run_status(run)
        ledger = run.ledger()
        manifest, trouble = run_manifest(run, ledger)
        rows = ledger if manifest is None else standing_rows(manifest, ledger)
        return cls(run, status, ledger, Mapped(run, manifest, trouble, rows))


def page(urls: Urls, top: int, evaluation: Mapping[str, Any] | None = None) -> str:
    """The HTML of a report on runs or a published catalog.

    Parameters
    ----------
    urls : str or sequence of str
        Run folders, or one catalog; of a catalog its runs are reported, and its own candidates.
    top : int
        Candidates shown.
    evaluation : mapping, optional
        The metrics.json of `surveybridge evaluate` for the same checkpoint.
    """
    name, runs = runs_at(urls)
    reported = [Reported.of(run) for run in runs]
    status = together(name, [one.status for one in reported])
    problem = runs[0].problem
    ranked = found = None
    if not any(run.maps_only for run in runs):
        ranked = query(urls, thumbnails=False, listing=Listing("all", members=True, grades=True))
        found = open_views(urls).thumbnails(leading(ranked).slice(0, top))
        status["candidates"] = ranked.num_rows
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of objects and tiles, and reasons, are anybody's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        status=status,
        summaries={one.status["run_id"] or one.run.url: summary(one.status, one.run.run_json) for one in reported},
        failures=status["failures"][:FAILURES_SHOWN],
        more_failures=len(status["failures"]) - FAILURES_SHOWN,
        plots=[
            sky_plot([one.mapped for one in reported], found, finest_pixel(problem)),
            timeline_plot(pa.concat_tables(one.ledger for one in reported)),
            *([] if ranked is None else [scores_plot(ranked)]),
            *(calibration_plot(one.run, one.mapped.rows, evaluation, _calibration(one, runs)) for one in reported),
        ],
        cards=None if found is None else cards(found, problem, _directions(runs)),
        objects=shown_ends(problem)[1]["title"],
        aperture=APERTURE_ARCSEC,
        detected=DETECTED,
        made=datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00"),
        version=__version__,
    )


def _directions(runs: Sequence[RunFolder]) -> Directions:
    grids = functools.cache(RunGrids)
    return lambda row: grids(run_of(runs, row["run_id"])).directions(row["tile_id"], row["ra"], row["dec"])


def together(name: str, statuses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page says about all runs: the status of a run alone, or sums over several."""
    if len(statuses) == 1:
        return dict(statuses[0])
    models, directions = (dict.fromkeys(str(one[key]) for one in statuses) for key in ("model", "direction"))
    tiles = {
        key: None if any(one["tiles"][key] is None for one in statuses) else sum(one["tiles"][key] for one in statuses)
        for key in statuses[0]["tiles"]
    }
    failures = [group for one in statuses for group in one["failures"]]
    return {
        "run": name,
        "run_id": None,
        "model": ", ".join(models),
        "direction": ", ".join(directions),
        "tiles": tiles,
        "candidates": sum(one["candidates"] for one in statuses),
        "failures": sorted(failures, key=lambda group: -group["count"]),
    }


def _calibration(one: Reported, runs: Sequence[RunFolder]) -> str:
    return CALIBRATION if len(runs) == 1 else f"{CALIBRATION} of run {run_id(one.run)}"


def _chosen(run_json: Mapping[str, Any]) -> str:
    """Which sources were reconstructed, where it is not all of them."""
    most = run_json.get("score_reconstruct", LATER_KEYS["score_reconstruct"])
    return "" if most == 1 else f" for sources with a false-alarm rate of at most {most:g}"


def _drawn(run_json: Mapping[str, Any]) -> str:
    """How mean and standard deviation were found."""
    if run_json.get("samples") == 0:
        return "maps from one evaluation, without samples"
    return f"{run_json.get('samples')} samples of {run_json.get('steps')} steps"


def summary(status: Mapping[str, Any], run_json: Mapping[str, Any]) -> dict[str, str]:
    """Return what a reader wants to know first, as one text per name."""
    rate, published = status["tiles_per_minute"], status["published"]
    return {
        "state": status["state"] + _driver(status),
        "direction": str(status["direction"]),
        "model": f"{status['model']} ({str(run_json.get('checkpoint_sha256'))[:12]})",
        "sampling": f"{_drawn(run_json)}; scores from "
        f"{run_json.get('score_samples')} of {run_json.get('score_steps')}{_chosen(run_json)}; "
        f"{run_json.get('precision')}, "
        f"seed {run_json.get('seed')}",
        **_recalibration(run_json),
        "rate": "–" if rate["overall"] is None else f"{rate['overall']:.3g} tiles a minute",
        "seconds a tile": ", ".join(
            f"{stage} {numbers['median']:.3g}" for stage, numbers in status["seconds"].items() if numbers["median"]
        )
        or "–",
        "last tile": str(status["last_finished_at"] or "–"),
        "published": "nothing" if published is None else f"{published['path']}, {published['published_at']}",
        "run": f"{status['run']} ({status['run_id']})",
        "tile store": str(status["store"]),
        "domain": say_domains(status["domains"]) or "–",
        "PSF": say_words(status["psfs"]) or "–",
        "version": f"surveybridge {status['code_version']}",
    }


def _recalibration(run_json: Mapping[str, Any]) -> dict[str, str]:
    """Say what a calibrated run was calibrated by; nothing of a run that is not."""
    said = run_json.get("recalibration")
    if said is None:
        return {}
    factors = "; ".join(
        f"{band} by {min(scale['factor']):.2f} to {max(scale['factor']):.2f}" for band, scale in said["bands"].items()
    )
    rates = f", false-alarm rates by {said['objects']} objects" if said["false_alarms"] else ""
    sky = f"{said['tiles']} tiles of {said['store']}" if "store" in said else f"{said['skies']} simulated skies"
    return {
        "calibrated": f"std of {factors}{rates}: {sky} with {said['checkpoint']} ({said['checkpoint_sha256'][:12]})"
    }


def _driver(status: Mapping[str, Any]) -> str:
    holder, eta = status["holder"], status["eta_seconds"]
    if holder is None:
        return ""
    done = "" if eta is None else f", done in about {datetime.timedelta(seconds=round(eta))}"
    return f" on {holder['host']} since {holder['since']}{done}"
