"""Rivals on suites of clouds: each judged on the same pixels, by the measures of `surveybridge evaluate`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from surveybridge.bridge_core.dex import DexSums
from surveybridge.jobs.evaluating.dex_summary import measures_of
from surveybridge.jobs.evaluating.ranking import Floats, number
from surveybridge.jobs.evaluating.rivals.closed_forms import PolarisationRival
from surveybridge.jobs.evaluating.rivals.maps import CloudMaps, Rival
from surveybridge.jobs.evaluating.summary import in_words, percent
from surveybridge.storage.pair_maps import read_maps
from surveybridge.storage.pair_store import held_back_of, open_store
from surveybridge.storage.pairs import read_ids, read_simulations

VALUES = 2**20
"""Values of samples that are drawn and judged at a time."""


@dataclass(frozen=True)
class Suite:
    """Pairs to judge on.

    Parameters
    ----------
    name
        What tables call them.
    url
        Of their pair store.
    start, stop
        Rows; of a store that holds pairs back those, else all.
    """

    name: str
    url: str
    start: int
    stop: int

    @classmethod
    def of(cls, name: str, url: str, limit: int | None = None) -> Suite:
        """The pairs of a store to judge on, the first `limit` of them at most."""
        store = open_store(url, None)
        start = store.count - held_back_of(store) if held_back_of(store) else 0
        return cls(name, url, start, store.count if limit is None else min(store.count, start + limit))


def judge(rival: Rival, suite: Suite, names: Sequence[str], wanted: str, samples: int) -> dict[str, Any]:
    """Measures of a rival on a suite.

    Parameters
    ----------
    names
        Observed maps that must have data for a pixel to count, the same for all rivals of a table.
    wanted
        Map to predict, above 0 where it has data.
    samples
        K.

    Returns
    -------
    dict
        As `measures_of`, with the seconds of one core a map and sample, network evaluations, and, of the method that
        needs it, the share of pixels whose angles scatter by more than 25 degrees.
    """
    parts: list[Mapping[str, Floats]] = []
    seconds, beyond, angles = 0.0, 0.0, 0.0
    height, width = read_maps(suite.url, [wanted], suite.start, suite.start + 1)[wanted].shape[1:]
    some = max(1, VALUES // (samples * height * width))
    for first in range(suite.start, suite.stop, some):
        stop = min(first + some, suite.stop)
        seen = CloudMaps.read(suite.url, tuple(names), first, stop)
        truth = torch.from_numpy(read_maps(suite.url, [wanted], first, stop)[wanted])
        begun = time.process_time()
        drawn = rival.predict(seen, samples)
        seconds += time.process_time() - begun
        if isinstance(rival, PolarisationRival):
            more, of = rival.beyond(seen)
            beyond, angles = beyond + more, angles + of
        valid = seen.known & torch.isfinite(truth) & (truth > 0)
        parts.append(DexSums.of(drawn[:, :, None], truth[:, None], valid[:, None]).arrays())
    sums = {name: np.concatenate([part[name] for part in parts])[:, 0] for name in parts[0]}
    simulations = read_simulations(suite.url, suite.start, suite.stop)
    groups = simulations or read_ids(suite.url, suite.start, suite.stop)
    return {
        "rival": rival.name,
        "suite": suite.name,
        "pairs": suite.stop - suite.start,
        "simulations": None if simulations is None else len(set(simulations)),
        "calls": rival.calls,
        "milliseconds": number(1e3 * seconds / (suite.stop - suite.start) / samples),
        **({"beyond_25_degrees": number(beyond / angles)} if angles else {}),
        **measures_of(sums, groups),
    }


def lines_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table in Markdown, by suite: the errors of one sample and of the median, and what K samples are worth."""
    heads = ["suite", "rival", "r of one sample: mean", "std", "core std", "r of the median: std", "within a factor 2"]
    heads += ["relative error: mean", "std", "CRPS (dex)", "68% holds", "calls", "ms a sample"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        single, median = row["estimates"]["single"], row["estimates"]["median"]
        cells = [row["suite"], row["rival"], *(in_words(single[name]) for name in ("bias", "scatter", "core_scatter"))]
        cells += [in_words(median["scatter"]), percent(median["factor_two"]["value"])]
        cells += [in_words(single[name]) for name in ("relative_bias", "relative_scatter")]
        cells += [in_words(row["crps"]), percent(row["coverage"]["0.68"]["value"])]
        lines.append("| " + " | ".join([*cells, str(row["calls"]), f"{row['milliseconds']:.3g}"]) + " |")
    return lines
