"""Pictures of an evaluation: calibration, photometry, errors in dex, and the ranking of anomalies; PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from surveybridge.bridge_core.dex import BINS, ESTIMATES, REACH
from surveybridge.bridge_core.evaluation import LEVELS
from surveybridge.jobs.evaluating.ranking import BASELINES, PREVALENCE
from surveybridge.jobs.evaluating.summary import bands_of, lists

REGION_COLOURS = {"sky": "0.55", "bright": "C0"}


def draw(found: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> dict[str, bytes]:
    """Images by file name."""
    images = {}
    if "images" in tables:
        images = {"calibration.png": _png(calibration(found)), "photometry.png": _png(photometry(tables["images"]))}
    if "dex" in tables:
        images["dex.png"] = _png(residuals(found["dex"], tables["dex"]))
    if "scores" in tables:
        images["anomalies.png"] = _png(anomalies(tables["scores"]))
    return images


def calibration(found: Mapping[str, Any]) -> Figure:
    """Rank histogram and coverage of each direction, sky and bright pixels."""
    directions = list(found["coverage"])
    figure = Figure(figsize=(9, 3.4 * len(directions)), layout="constrained")
    axes = figure.subplots(len(directions), 2, squeeze=False)
    for (left, right), direction in zip(axes, directions, strict=True):
        for region, colour in REGION_COLOURS.items():
            shares = [value or 0.0 for value in found["ranks"][direction][region]]
            places = np.arange(len(shares) + 1) / len(shares)
            left.stairs(np.array(shares) * len(shares), places, color=colour, label=f"{region} pixels", lw=1.8)
            held = [found["coverage"][direction][region][f"{level:.2f}"]["value"] for level in LEVELS]
            known = [(level, share) for level, share in zip(LEVELS, held, strict=True) if share is not None]
            if known:
                right.plot(*zip(*known, strict=True), "o-", color=colour, label=f"{region} pixels")
        left.axhline(1, color="k", lw=0.8, ls=":")
        left.set(title=f"{direction}: rank of the truth among the samples", xlabel="rank / (K + 1)", ylabel="density")
        left.set_ylim(bottom=0)
        right.plot([0.45, 1], [0.45, 1], "k:", lw=0.8)
        right.set(title="predictive intervals", xlabel="nominal", ylabel="share of pixels inside")
        right.legend(frameon=False)
    return figure


def residuals(found: Mapping[str, Any], table: pa.Table) -> Figure:
    """Distribution of r, rank histogram and coverage of each quantity that is judged in dex."""
    rows = [(direction, band, row) for direction, of in found.items() for band, row in of["bands"].items()]
    figure = Figure(figsize=(12, 3.4 * len(rows)), layout="constrained")
    edges = np.linspace(-REACH, REACH, BINS + 1)
    for axes, (direction, band, row) in zip(figure.subplots(len(rows), 3, squeeze=False), rows, strict=True):
        some = table.filter(pc.and_(pc.equal(table["direction"], direction), pc.equal(table["band"], band)))
        counts = lists(some, "histogram").sum(0).reshape(len(ESTIMATES), -1)[:, 1:-1]
        wide = max(5 * (row["estimates"]["single"]["half_width"]["value"] or 0), 0.1)
        join = max(1, round(wide / 25 / (edges[1] - edges[0])))  # bins of the picture from those of the table
        for estimate, values in zip(ESTIMATES, counts, strict=True):
            shown = np.add.reduceat(values, np.arange(0, BINS, join))
            places = np.append(edges[:-1:join], edges[-1])
            axes[0].stairs(shown / max(values.sum(), 1) / np.diff(places), places, label=estimate, lw=1.5)
        axes[0].axvline(0, color="k", lw=0.8, ls=":")
        axes[0].set(
            title=f"{direction} {band}", xlabel="log10 (predicted / true)", ylabel="per dex", xlim=(-wide, wide)
        )
        axes[0].legend(frameon=False)
        shares = np.array([share or 0.0 for share in row["pit"]])
        axes[1].stairs(shares * len(shares), np.arange(len(shares) + 1) / len(shares), lw=1.8)
        axes[1].axhline(1, color="k", lw=0.8, ls=":")
        axes[1].set(title="rank of the truth among the samples", xlabel="rank / (K + 1)", ylabel="density")
        axes[1].set_ylim(bottom=0)
        held = [(level, row["coverage"][f"{level:.2f}"]["value"]) for level in LEVELS]
        known = [(level, share) for level, share in held if share is not None]
        if known:
            axes[2].plot(*zip(*known, strict=True), "o-")
        axes[2].plot([0, 1], [0, 1], "k:", lw=0.8)
        axes[2].set(title="predictive intervals", xlabel="nominal", ylabel="share of pixels inside", xlim=(0.45, 1))
        axes[2].set_ylim(0, 1)
    return figure


def photometry(images: pa.Table) -> Figure:
    """Flux of the mean over that of the truth, by true flux and band."""
    bands = [band for band in bands_of(images) if images[f"flux_{band}"].null_count < images.num_rows]
    figure = Figure(figsize=(3.4 * len(bands), 3.2), layout="constrained")
    for axes, band in zip(figure.subplots(1, len(bands), squeeze=False)[0], bands, strict=True):
        rows = images.filter(pc.is_valid(images[f"flux_{band}"]))
        rows = rows.filter(pc.greater(rows[f"flux_{band}"], 0))
        true, mean = (rows[f"flux_{band}{suffix}"].to_numpy() for suffix in ("", "_mean"))
        axes.semilogx(true, mean / true, ".", ms=3, alpha=0.5)
        axes.axhline(1, color="k", lw=0.8, ls=":")
        axes.set(title=band, xlabel='true flux in 1" (nJy)', ylabel="mean of samples / truth", ylim=(0, 2.5))
    return figure


def anomalies(scores: pa.Table) -> Figure:
    """ROC curve, and purity against completeness at the assumed prevalence, of the score and of the trivial ones."""
    scores = scores.filter(pc.is_finite(scores["score"]))
    anomalous = np.asarray(scores["anomalous"].to_numpy(zero_copy_only=False), bool)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("score", *BASELINES):
        order = np.argsort(-scores[name].to_numpy(), kind="stable")
        true = np.cumsum(anomalous[order]) / anomalous.sum()
        false = np.cumsum(~anomalous[order]) / (~anomalous).sum()
        style = {"lw": 2.2, "color": "k"} if name == "score" else {"lw": 1.1}
        left.plot([0, *false], [0, *true], label=name, **style)
        found = true > 0
        purity = true * PREVALENCE / (true * PREVALENCE + false * (1 - PREVALENCE) + 1e-300)
        right.semilogy(true[found], purity[found], label=name, **style)
    left.plot([0, 1], [0, 1], "k:", lw=0.8)
    left.set(xlabel="false alarms among regular objects", ylabel="anomalies found", title="ROC")
    right.axhline(PREVALENCE, color="k", lw=0.8, ls=":")
    right.set(xlabel="completeness", ylabel="purity", title=f"purity where 1 in {1 / PREVALENCE:.0f} is a lens")
    right.legend(frameon=False)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
