"""The state of a run, from its folder alone: tiles done and left, rate, failures by reason, stragglers."""

from __future__ import annotations

import datetime
import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.jobs.translating.tally import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from surveybridge.storage.lease import Holder
    from surveybridge.storage.runs import RunFolder

RECENT = 600.0
"""Seconds that the recent rate looks back."""

FEWEST, SHORTEST = 5, 10.0
"""A rate is said of so many tiles in so many seconds, or of all that happened in `RECENT`: the first tiles come in
bursts, after workers that took seconds to start."""

PAUSE = 900.0
"""Seconds without a finished tile that count as a pause between two drivers, unless tiles take as long as that."""

STRAGGLING = 3.0
"""A tile straggles if its stage takes so many times the median."""

SLOWEST = 5


def run_status(run: RunFolder) -> dict[str, Any]:
    """Return everything that the command prints, for JSON; seconds, tiles per minute, times in UTC."""
    from surveybridge.jobs.translating.homogenising import count_words
    from surveybridge.storage.domain import count_domains
    from surveybridge.storage.lease import read_holder
    from surveybridge.storage.published import standing_rows

    now = time.time()
    holder = read_holder(run.folder)  # before the ledger: what is in flight now may be done a moment later
    ledger = run.ledger()
    manifest, trouble = run_manifest(run, ledger)
    rows = ledger if manifest is None else standing_rows(manifest, ledger)
    left = None if manifest is None else manifest.num_rows - rows.num_rows
    counts = {entry["values"]: entry["counts"] for entry in rows["status"].value_counts().to_pylist()}
    finished = np.sort(_epoch_seconds(ledger))
    seconds = {stage: rows[f"seconds_{stage}"].to_numpy() for stage in STAGES}
    medians = {stage: _quantile(values, 0.5) for stage, values in seconds.items()}
    progress = {} if holder is None else holder.progress
    rate = _rate(finished, now, None if holder is None else holder.started)
    in_flight = progress.get("in_flight", [])
    return {
        "run": run.url,
        **{key: run.run_json.get(key) for key in ("run_id", "model", "direction", "code_version")},
        "store": run.store_url,
        "state": _state(holder, left),
        "holder": None
        if holder is None
        else {
            "host": holder.host,
            "pid": holder.pid,
            "note": holder.note,
            "since": _utc(holder.started),
            "until": _utc(holder.expires_at),
        },
        "tiles": {
            "manifest": None if manifest is None else manifest.num_rows,
            **{status: counts.get(status, 0) for status in ("ok", "failed", "quarantined")},
            "left": left,
        },
        "store_trouble": trouble,
        "candidates": _sum(rows["n_candidates"]),
        "fields": len(rows["grid_id"].drop_null().unique()),
        "domains": count_domains(rows),
        "psfs": count_words(rows),
        "tiles_per_minute": rate,
        "eta_seconds": _eta(left, progress, rate) if holder is not None else None,
        "seconds": {
            stage: {"median": medians[stage], "p95": _quantile(values, 0.95)} for stage, values in seconds.items()
        },
        "failures": _failures(rows),
        "in_flight": len(in_flight),
        "stragglers": {"in_flight": _straggling(in_flight, medians), "finished": _slowest(rows, seconds)},
        "last_finished_at": _utc(finished[-1]) if len(finished) else None,
        "published": _published(run),
    }


def _state(holder: Holder | None, left: int | None) -> str:
    """Return "running", or how the run ended; "ended" if the store does not say whether tiles are left."""
    if holder is not None:
        return "running"
    return "ended" if left is None else "interrupted" if left else "finished"


def run_manifest(run: RunFolder, ledger: pa.Table) -> tuple[pa.Table | None, str | None]:
    """The tiles of the run's store that are its work, as the store is now; or None, and why they are not known."""
    from surveybridge.storage.manifests import tiles_with
    from surveybridge.storage.resuming import check_store
    from surveybridge.storage.tiles import TileStore

    try:
        url = run.store_url
        manifest = tiles_with(TileStore.open(url).manifest(), str(run.run_json["direction"]).partition("->")[0])
        check_store(run, manifest, url, ledger)
        return manifest, None
    except Exception as error:  # whatever is wrong there, the run's own folder still says a lot
        return None, " ".join(f"{type(error).__name__}: {error}".split())


def _rate(finished: NDArray[np.float64], now: float, started: float | None) -> dict[str, float | None]:
    """Tiles a minute, lately and over all the time that somebody worked; None for too few tiles or seconds."""
    if not len(finished):
        return {"recent": None, "overall": None}
    end = finished[-1] if started is None else now
    begin = max(end - RECENT, finished[0] if started is None else started)
    gaps = np.diff(finished)
    worked = gaps[gaps <= max(PAUSE, 20 * float(np.median(gaps)))] if len(gaps) else gaps
    return {
        "recent": _per_minute(int(np.count_nonzero(finished > begin)), end - begin),
        "overall": _per_minute(len(worked), float(worked.sum())),
    }


def _per_minute(tiles: int, seconds: float) -> float | None:
    known = seconds >= RECENT or (tiles >= FEWEST and seconds >= SHORTEST)
    return tiles / seconds * 60 if known else None


def _eta(left: int | None, progress: Mapping[str, Any], rate: dict[str, float | None]) -> float | None:
    """Return the seconds until the driver will be done, by its own count, which includes tiles that it repeats."""
    todo = progress["todo"] - sum(progress["done"].values()) if progress else left
    pace = rate["recent"] or rate["overall"]
    return None if todo is None or not pace else max(todo, 0) / pace * 60


def _failures(rows: pa.Table) -> list[dict[str, Any]]:
    """Tiles that have no result, grouped by stage, traceback and the pattern of their reason; most first."""
    import pyarrow.compute as pc

    failed = rows.filter(pc.not_equal(rows["status"], "ok"))
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in failed.select(["tile_id", "status", "stage", "reason", "traceback_hash"]).to_pylist():
        pattern = reason_pattern(row["reason"] or "", row["tile_id"])
        key = (row["status"], row["stage"], row["traceback_hash"], pattern)
        names = ("status", "stage", "traceback_hash", "pattern")
        group = groups.setdefault(
            key, {**dict(zip(names, key, strict=True)), "count": 0, "tile": row["tile_id"], "reason": row["reason"]}
        )
        group["count"] += 1
    return sorted(groups.values(), key=lambda group: (-group["count"], group["tile"]))


def reason_pattern(reason: str, tile_id: str) -> str:
    """A reason without what differs from tile to tile: its id, hexadecimal strings, numbers."""
    general = reason.replace(tile_id, "<tile>") if tile_id else reason
    return re.sub(r"\b0x[0-9a-fA-F]+\b|\b(?=\w*\d)[0-9a-f]{8,}\b|\d+(?:\.\d+)?(?:e[+-]?\d+)?", "#", general)


def _straggling(in_flight: list[dict[str, Any]], medians: dict[str, float | None]) -> list[dict[str, Any]]:
    # the driver's model stage is the network and the score together
    usual = {**medians, "model": (medians["model"] or 0.0) + (medians["score"] or 0.0)}
    slow = []
    for item in in_flight:
        median = usual.get(item["stage"])
        if median and item["seconds"] > STRAGGLING * median:
            slow.append({**item, "median": median})
    return sorted(slow, key=lambda item: -item["seconds"])


def _slowest(rows: pa.Table, seconds: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """The finished tiles that took longest."""
    by_stage = np.nan_to_num(np.stack(list(seconds.values())).astype(float))
    total = by_stage.sum(axis=0)
    places = np.argsort(-total, kind="stable")[:SLOWEST]
    return [
        {
            "tile": rows["tile_id"][int(place)].as_py(),
            "seconds": float(total[place]),
            "stage": STAGES[int(by_stage[:, place].argmax())],
            "host": rows["host"][int(place)].as_py(),
        }
        for place in places
    ]


def _published(run: RunFolder) -> dict[str, Any] | None:
    """The run's latest snapshot in the folder that holds it, if that is a folder of runs."""
    from surveybridge.storage.errors import StorageError
    from surveybridge.storage.objectstore import Folder
    from surveybridge.storage.published import published

    root = Folder.at(run.url.rpartition("/")[0], run.folder.storage_options)
    try:
        snapshot = published(root, run.run_json.get("run_id", ""))
    except (OSError, StorageError):  # the folder above need not be ours, nor readable
        return None
    if snapshot is None:
        return None
    return {key: snapshot[key] for key in ("sequence", "path", "published_at", "tiles")}


def _epoch_seconds(ledger: pa.Table) -> NDArray[np.float64]:
    import pyarrow as pa

    microseconds = ledger["finished_at"].drop_null().cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return np.asarray(microseconds.to_numpy(), np.float64) / 1e6


def _quantile(values: NDArray[np.float64], q: float) -> float | None:
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(np.quantile(known, q)) if len(known) else None


def _sum(column: pa.ChunkedArray) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(column).as_py() or 0)


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def text(status: dict[str, Any]) -> str:
    """The status in lines."""
    from surveybridge.jobs.translating.homogenising import say_words
    from surveybridge.storage.domain import say_domains

    tiles, rate, holder = status["tiles"], status["tiles_per_minute"], status["holder"]
    known = "" if tiles["manifest"] is None else f" of {tiles['manifest']}"
    left = "" if tiles["left"] is None else f", {tiles['left']} left"
    lines = [
        f"{status['run']}: {status['state']}"
        + (f" on {holder['host']}, pid {holder['pid']}, since {holder['since']}" if holder else ""),
        f"what      {status['direction']} with {status['model']}, run {status['run_id']}, "
        f"version {status['code_version']}",
        f"store     {status['store']}"
        + (f" does not say what is left: {status['store_trouble']}" if tiles["left"] is None else ""),
        f"tiles     {tiles['ok']}{known} ok, {tiles['failed']} failed, {tiles['quarantined']} quarantined{left}; "
        f"{status['candidates']} sources scored"
        + (f" in {status['fields']} fields, where these overlap in each" if status["fields"] > 1 else ""),
        *([f"domain    {said}"] if (said := say_domains(status["domains"])) else []),
        *([f"PSF       {said}"] if (said := say_words(status["psfs"])) else []),
        (
            f"rate      {_number(rate['recent'])} tiles/min over the last minutes, {_number(rate['overall'])} overall"
            if any(value is not None for value in rate.values())
            else f"rate      not known before {FEWEST} tiles in {SHORTEST:g} s"
        )
        + ("" if status["eta_seconds"] is None else f"; done in about {_duration(status['eta_seconds'])}"),
        "seconds   "
        + ", ".join(
            f"{stage} {_number(numbers['median'])} (p95 {_number(numbers['p95'])})"
            for stage, numbers in status["seconds"].items()
        ),
    ]
    if holder:
        slow = status["stragglers"]["in_flight"]
        lines.append(f"in flight {status['in_flight']}, {len(slow)} of them over {STRAGGLING:g} x the median")
        lines += [
            f"  {item['item']}: {item['stage']} for {item['seconds']:.1f} s, median {item['median']:.2f} s, "
            f"on {item['node']} pid {item['pid']}"
            for item in slow
        ]
    if status["stragglers"]["finished"]:
        slowest = (
            f"{item['tile']} {item['seconds']:.1f} s (mostly {item['stage']}, {item['host']})"
            for item in status["stragglers"]["finished"]
        )
        lines.append(f"slowest   {', '.join(slowest)}")
    for group in status["failures"]:
        lines.append(
            f"{group['status']:<9} {group['count']} in {group['stage']}: {group['pattern']} "
            f"[{group['traceback_hash']}; for one, tile {group['tile']}: {group['reason']}]"
        )
    lines.append(f"last      {status['last_finished_at'] or 'no tile'} finished")
    published = status["published"]
    if published:
        lines.append(
            f"published {published['path']} at {published['published_at']}: {published['tiles']['ok']} tiles ok"
        )
    else:
        lines.append("published nothing")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
