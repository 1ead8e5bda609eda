"""The summary of an evaluation in dex, from its table alone, with 95% intervals from drawing simulations anew.

Views of one cloud are not independent, and snapshots of it hardly are: whole simulations are drawn, or pairs where the
store does not say which simulation each is of. An unknown number is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from surveybridge.bridge_core.dex import ESTIMATES, DexMeasures, DexSums
from surveybridge.bridge_core.evaluation import LEVELS
from surveybridge.jobs.evaluating.ranking import Floats, Found, floats, number
from surveybridge.jobs.evaluating.summary import draws, in_words, lists, percent, with_interval

BY_ESTIMATE = (
    *("bias", "scatter", "core_bias", "core_scatter", "middle", "half_width"),
    *("factor_two", "relative_bias", "relative_scatter"),
)
"""Measures of `DexMeasures` that each estimate has."""


def summarise_dex(table: pa.Table, units: Mapping[str, Mapping[str, str]]) -> Found:
    """The measures of metrics.json by direction.

    Parameters
    ----------
    table
        `EVALUATED_DEX`.
    units
        Of each band of the wanted end, by direction.
    """
    found: Found = {}
    for direction in table["direction"].unique().to_pylist():
        rows = table.filter(pc.equal(table["direction"], direction))
        names = rows["simulation"].to_pylist()
        known = all(name is not None for name in names)
        found[direction] = {
            "pairs": len(rows["object_id"].unique()),
            "simulations": len(set(names)) if known else None,
            "resampled": "simulations" if known else "pairs",
            "bands": {},
        }
        for band in rows["band"].unique().to_pylist():
            some = rows.filter(pc.equal(rows["band"], band))
            sums = {field.name: _column(some, field.name) for field in fields(DexSums)}
            groups = some["simulation" if known else "object_id"].to_pylist()
            found[direction]["bands"][band] = {
                "unit": units[direction][band],
                "judged": number(sums["pixels"].sum() / floats(some, "area").sum()),
                **measures_of(sums, groups),
            }
    return found


def measures_of(sums: Mapping[str, Floats], groups: Sequence[str]) -> Found:
    """All measures of pairs, each with its interval.

    Parameters
    ----------
    sums
        By name in `DexSums`, float64 [N, ...].
    groups
        What each pair belongs to: groups are drawn anew as a whole. One group alone has no interval.
    """
    names, group = np.unique(list(groups), return_inverse=True)
    by_group = {name: _added(values, group, len(names)) for name, values in sums.items()}
    whole = DexMeasures.of({name: values.sum(0) for name, values in by_group.items()})
    choices = draws(len(names)) if len(names) > 1 else np.zeros((0, len(names)))
    drawn = DexMeasures.of({name: np.tensordot(choices, values, 1) for name, values in by_group.items()})
    return {
        "pixels": number(by_group["pixels"].sum()),
        "estimates": {
            estimate: {name: with_interval(getattr(whole, name)[e], getattr(drawn, name)[:, e]) for name in BY_ESTIMATE}
            for e, estimate in enumerate(ESTIMATES)
        },
        "crps": with_interval(float(whole.crps), drawn.crps),
        "spread": with_interval(float(whole.spread), drawn.spread),
        "coverage": {
            f"{level:.2f}": with_interval(whole.coverage[j], drawn.coverage[:, j]) for j, level in enumerate(LEVELS)
        },
        "pit": [number(share) for share in whole.pit],
    }


def dex_lines(found: Mapping[str, Any]) -> list[str]:
    """The measures, for a person."""
    lines = []
    for direction, of in found.items():
        many = f"{of['pairs']} pairs" + (f" of {of['simulations']} simulations" if of["simulations"] else "")
        for band, row in of["bands"].items():
            lines.append(
                f"{direction} {band} ({row['unit']}), {many}, {percent(row['judged'])} of the pixels; r = log10 "
                f"(predicted / true), intervals from drawing {of['resampled']} anew"
            )
            for estimate, told in row["estimates"].items():
                value = {name: in_words(told[name]) for name in BY_ESTIMATE}
                lines.append(
                    f"  {estimate:6}: r {value['bias']} mean, {value['scatter']} std; core {value['core_bias']}, "
                    f"{value['core_scatter']}; half of 16-84% {value['half_width']}; within a factor 2 "
                    f"{percent(told['factor_two']['value'])}; relative error {value['relative_bias']} mean, "
                    f"{value['relative_scatter']} std"
                )
            held = ", ".join(
                f"{float(level):.0%} interval holds {percent(share['value'])}"
                for level, share in row["coverage"].items()
            )
            lines.append(f"  CRPS {in_words(row['crps'])} dex, spread {in_words(row['spread'])} dex, {held}")
    return lines


def _column(table: pa.Table, name: str) -> Floats:
    if not pa.types.is_list(table.schema.field(name).type):
        return floats(table, name)
    values = lists(table, name)
    return values.reshape(len(values), len(ESTIMATES), -1) if name == "histogram" else values


def _added(values: Floats, group: NDArray[np.intp], count: int) -> Floats:
    total = np.zeros((count, *values.shape[1:]))
    np.add.at(total, group, values)
    return total
