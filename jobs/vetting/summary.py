"""The state of the grading: progress, agreement, purity of the top of the ranking, and the list for export."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.bridge_core.agreement import MISSING, SCALE, cohen_kappa, consensus, krippendorff_alpha, purity_at

TOPS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)

EXPORTED = ("ra", "dec", "rank", "score", "score_std", "false_alarm")
"""Columns of the graded candidates, before those with their fluxes."""

WRITTEN = ("grades", "comments")
"""Columns with graders' names and comments."""


def ratings(latest: pa.Table) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Grades as numbers.

    Parameters
    ----------
    latest : pyarrow.Table
        From `storage.grades.latest_grades`.

    Returns
    -------
    objects, graders : list of str
        Sorted.
    int64 [objects, graders]
        Places in `bridge_core.agreement.SCALE`, `MISSING` where there is no grade.
    """
    given = latest.filter(pc.is_valid(latest["grade"])).select(["object_id", "grader", "grade"]).to_pylist()
    objects = sorted({row["object_id"] for row in given})
    graders = sorted({row["grader"] for row in given})
    row_of = {name: place for place, name in enumerate(objects)}
    column_of = {name: place for place, name in enumerate(graders)}
    table = np.full((len(objects), len(graders)), MISSING, np.int64)
    for row in given:
        table[row_of[row["object_id"]], column_of[row["grader"]]] = SCALE.index(row["grade"])
    return objects, graders, table


def summary(candidates: pa.Table, latest: pa.Table, grader: str | None = None) -> dict[str, Any]:
    """Return everything that the page's summary shows, for JSON.

    Parameters
    ----------
    candidates : pyarrow.Table
        At least object_id and rank.
    latest : pyarrow.Table
        The grades that count.
    grader : str, optional
        Also the purity by this grader alone.
    """
    objects, graders, given = ratings(latest)
    ranks = _ranks(candidates, objects)
    ranked = ranks > 0
    agreed = consensus(given)
    purity = {"all graders": _purity(candidates.num_rows, ranks[ranked], agreed[ranked])}
    if grader in graders and len(graders) > 1:
        mine = given[:, graders.index(str(grader))]
        purity = {str(grader): _purity(candidates.num_rows, ranks[ranked], mine[ranked])} | purity
    pairs = []
    for first, second in itertools.combinations(range(len(graders)), 2):
        a, b = given[:, first], given[:, second]
        pairs.append(
            {
                "graders": [graders[first], graders[second]],
                "objects": int(np.count_nonzero((a != MISSING) & (b != MISSING))),
                "kappa": _number(cohen_kappa(a, b)),
                "kappa_weighted": _number(cohen_kappa(a, b, "quadratic")),
            }
        )
    return {
        "candidates": candidates.num_rows,
        "graded": len(objects),
        "graders": [
            {"grader": name, **{grade: int((given[:, k] == level).sum()) for level, grade in enumerate(SCALE)}}
            for k, name in enumerate(graders)
        ],
        "shared": int(np.count_nonzero((given != MISSING).sum(axis=1) > 1)),
        "alpha": _number(krippendorff_alpha(given)) if len(graders) > 1 else None,
        "pairs": pairs,
        "purity": purity,
    }


def graded_table(candidates: pa.Table, latest: pa.Table) -> pa.Table:
    """The graded candidates, best first: a row an object.

    Parameters
    ----------
    candidates : pyarrow.Table
        With `EXPORTED` and columns of fluxes; objects that are not in it are left out.
    latest : pyarrow.Table
        The grades that count.

    Returns
    -------
    pyarrow.Table
        object_id, `EXPORTED`, the fluxes, then `consensus` (halves to the worse), `mean_grade` (A = 3 to X = 0), how
        often each grade was given, `grades` and `comments` by grader as text.
    """
    objects, graders, given = ratings(latest)
    place = pc.index_in(pa.array(objects, pa.string()), value_set=candidates["object_id"].combine_chunks())
    known = pc.is_valid(place).to_numpy(zero_copy_only=False)
    objects, given = [name for name, there in zip(objects, known, strict=True) if there], given[known]
    number = (given != MISSING).sum(axis=1)
    comments = {
        (row["object_id"], row["grader"]): row["comment"] for row in latest.to_pylist() if row["comment"] is not None
    }
    every = sorted({*graders, *(grader for _, grader in comments)})
    fluxes = [name for name in candidates.column_names if name.startswith("flux_")]
    columns = {
        "object_id": pa.array(objects, pa.string()),
        **{name: candidates[name].take(place.drop_null()) for name in (*EXPORTED, *fluxes)},
        "consensus": [SCALE[grade] for grade in consensus(given)],
        "mean_grade": np.where(given == MISSING, 0, given).sum(axis=1) / np.maximum(number, 1),
        **{f"n_{grade}": (given == SCALE.index(grade)).sum(axis=1) for grade in reversed(SCALE)},
    }
    texts = {
        "grades": [
            "; ".join(f"{name}: {SCALE[grade]}" for name, grade in zip(graders, row, strict=True) if grade != MISSING)
            for row in given
        ],
        "comments": [
            "; ".join(f"{name}: {comments[key]}" for name in every if (key := (object_id, name)) in comments)
            for object_id in objects
        ],
    }
    columns |= {name: pa.array(texts[name], pa.string()) for name in WRITTEN}
    return pa.table(columns).sort_by([("mean_grade", "descending"), ("rank", "ascending")])


def csv_bytes(table: pa.Table) -> bytes:
    """The graded candidates as CSV; what graders typed is never a formula for the spreadsheet that opens it."""
    import pyarrow.csv

    for name in WRITTEN:
        plain = pc.replace_substring_regex(table[name], "^([=+@\\t\\r-])", "'\\1")
        table = table.set_column(table.column_names.index(name), name, plain)
    with pa.BufferOutputStream() as sink:
        pyarrow.csv.write_csv(table, sink)
        return bytes(sink.getvalue().to_pybytes())


def text(found: dict[str, Any]) -> str:
    """The summary in lines."""
    lines = [f"graded    {found['graded']} of {found['candidates']} candidates"]
    for row in found["graders"]:
        lines.append(f"  {row['grader']}: " + ", ".join(f"{row[grade]} {grade}" for grade in reversed(SCALE)))
    if found["alpha"] is not None:
        lines.append(f"agreement Krippendorff's alpha {found['alpha']:.3f} (ordinal), {found['shared']} objects shared")
    for pair in found["pairs"]:
        if pair["kappa"] is not None:
            lines.append(
                f"  {' and '.join(pair['graders'])}: Cohen's kappa {pair['kappa']:.3f}, "
                f"{pair['kappa_weighted']:.3f} quadratic, {pair['objects']} objects"
            )
    for who, rows in found["purity"].items():
        lines.append(f"purity    A or B of what is graded, by {who}")
        for row in rows:
            share = "-" if row["purity"] is None else f"{row['purity']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            lines.append(f"  top {row['top']}: {share}, {row['lenses']} of {row['graded']} graded")
    return "\n".join(lines)


def _ranks(candidates: pa.Table, objects: list[str]) -> NDArray[np.int64]:
    """Rank of each object now; 0 where it is not among the candidates."""
    place = pc.index_in(pa.array(objects, pa.string()), value_set=candidates["object_id"].combine_chunks())
    return np.asarray(pc.fill_null(candidates["rank"].combine_chunks().take(place), 0), np.int64)


def _purity(total: int, ranks: NDArray[np.int64], grades: NDArray[np.int64]) -> list[dict[str, Any]]:
    tops = [top for top in TOPS if top < total] + [total]
    rows = [purity_at(ranks, grades, top) for top in tops]
    # Beyond the last graded candidate nothing changes.
    last = next((k for k, row in enumerate(rows) if row.graded == rows[-1].graded), len(rows) - 1)
    return [{name: _number(value) for name, value in asdict(row).items()} for row in rows[: last + 1]]


def _number(value: float) -> float | int | None:
    return None if math.isnan(value) else value
