"""The domain of a problem's models: whether images are like those on which they are trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from surveybridge.storage.images import SurveyImage
from surveybridge.storage.problems import ProblemTable

PIXEL_PC = "pixel_pc"
"""Key under which the provenance of an image says the side of its pixels in pc, where a distance was given."""

SAME_PIXELS = 0.05
"""Share by which pixels may be larger or smaller than those of the training images."""


def of_other_pixels(side: float, trained: float | None) -> bool:
    """Return whether pixels are not those of training images; False where either side is not known (None, 0, NaN)."""
    return trained is not None and trained != 0 and abs(side / trained - 1) > SAME_PIXELS


def describe_domain(problem: ProblemTable, images: Mapping[str, Sequence[SurveyImage]]) -> str:
    """Say whether images are what the problem's models are trained on: "in", or "out: " and what stands in for what.

    Parameters
    ----------
    problem : ProblemTable
        What is expected.
    images : mapping of endpoint to sequence of SurveyImage
        On their own pixels, from `read_images`.
    """
    reasons = []
    for end in problem["endpoints"]:
        parts = images.get(end["name"], [])
        # a file that states no filter is taken at its word
        strange = [
            f"{reading.filter} as {reading.band}"
            for part in parts
            for reading in part.readings
            if reading.filter != "not stated" and not is_filter_of(reading.filter, end["name"], reading.band)
        ]
        if strange:
            reasons.append(f"{end['name']}{_OTHER_FILTERS}{', '.join(strange)}")
        native = end["pixel_scale"]
        if parts and of_other_pixels(parts[0].pixel_scale, native):
            reasons.append(f'{end["name"]} pixels are {parts[0].pixel_scale:.3g}", not {native:g}"')
    return "out: " + "; ".join(reasons) if reasons else "in"


def other_filters(domain: str | None) -> list[str]:
    """Return the reasons, of what is said of a domain, by which images are taken through other filters."""
    return [reason for reason in (domain or "").removeprefix("out: ").split("; ") if _OTHER_FILTERS in reason]


_OTHER_FILTERS = " bands are "


def with_reasons(domain: str | None, reasons: Sequence[str], *, known: bool) -> str | None:
    """Return what is said of a domain with more reasons why it is left.

    Parameters
    ----------
    domain : str or None
        "in", or "out: " and reasons; None where nothing is said.
    reasons : sequence of str
        None of them: it is not left by what they are about.
    known : bool
        Whether it is known what they are about; if not, and nothing is said, nothing is said.
    """
    if reasons:
        before = [] if domain in (None, "in") else [str(domain).removeprefix("out: ")]
        return "out: " + "; ".join([*before, *reasons])
    return "in" if domain is None and known else domain


def is_filter_of(filter_name: str, endpoint: str, band: str) -> bool:
    """Return whether a FILTER is a band of an endpoint: `g`, `lsst_g`, and Rubin's physical filters g_6, r_57, i_39."""
    return filter_name.lower().removeprefix(f"{endpoint.lower()}_").split("_")[0] == band.lower()


def count_domains(tiles: pa.Table) -> dict[str, int]:
    """Return the number of tiles by what their column `domain` says, most first; those that do not say are left out.

    Parameters
    ----------
    tiles : pyarrow.Table
        Rows of a manifest or a ledger; of earlier versions they may have no such column.
    """
    if "domain" not in tiles.column_names:
        return {}
    counts = {entry["values"]: entry["counts"] for entry in tiles["domain"].drop_null().value_counts().to_pylist()}
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def say_domains(counts: Mapping[str, int]) -> str:
    """Return in words how many tiles are out of the domain, and why; "" if none says.

    Reasons that differ by their value alone are one, with the lowest and the highest value.
    """
    out = {domain.removeprefix("out: "): tiles for domain, tiles in counts.items() if domain != "in"}
    if not out:
        return f"{sum(counts.values())} tiles in" if counts else ""
    tiles_of: dict[tuple[str, ...], int] = {}
    values: dict[tuple[str, ...], list[str]] = {}
    for domain, tiles in out.items():
        for reason in domain.split("; "):
            parts = _VALUE.fullmatch(reason)
            key: tuple[str, ...] = (reason,)
            if parts is not None:
                key = (parts["what"], parts["unit"], parts["trained"])
            tiles_of[key] = tiles_of.get(key, 0) + tiles
            values.setdefault(key, []).append("" if parts is None else parts["value"])
    said = []
    for named, tiles in sorted(tiles_of.items(), key=lambda entry: -entry[1]):
        if len(named) == 1:
            said.append(f"{tiles}: {named[0]}")
            continue
        what, unit, trained = named
        low, high = min(values[named], key=float), max(values[named], key=float)
        span = f"{low}{unit}" if low == high else f"{low}{unit} to {high}{unit}"
        said.append(f"{tiles}: {what} {span} {trained}")
    return f"{sum(out.values())} of {sum(counts.values())} tiles out ({'; '.join(said)})"


_VALUE = re.compile(
    r"(?P<what>.+) (?P<value>-?[\d.]+(?:e[+-]?\d+)?)(?P<unit>\"| [^ ]+|) (?P<trained>\(trained on .+\))"
)
"""A reason as the ranges of a card give it: what, its value, its unit, and what it should be."""
