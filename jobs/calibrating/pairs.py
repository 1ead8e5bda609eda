"""The lens score of pairs: residuals of ordinary objects and of lenses made of some, and how it tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from surveybridge.bridge_core.anomaly import MIN_VALID, scored_direction
from surveybridge.bridge_core.apertures import aperture
from surveybridge.bridge_core.conditions import QUANTITIES
from surveybridge.bridge_core.detection import detect
from surveybridge.bridge_core.discriminant import NOT_TOLD, Discriminant, Measured, fit, surprise
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.ordinary import VARIES, Floats
from surveybridge.bridge_core.problem import Problem
from surveybridge.bridge_core.ranking import auroc, matched_auroc
from surveybridge.bridge_core.residuals import Asked, columns, measure
from surveybridge.jobs.config import RequestError
from surveybridge.jobs.evaluating.cutouts import pair_cutouts
from surveybridge.jobs.running.progress import progress
from surveybridge.jobs.simulating.injection import inject
from surveybridge.jobs.translating.candidates import APERTURE_ARCSEC
from surveybridge.jobs.translating.sources import MOSTLY_MASKED
from surveybridge.storage.pairs import DEFLECTOR_LIKE, Pairs, on_mosaic_grid, read_ids, read_labels, read_pairs

GROUP = 256
"""Objects measured at a time."""
CENTRED_ARCSEC = 0.35
"""An object so near to the middle of its stamp is in the middle."""
NO_GALAXY = ("star", "none")
"""`central_class` of stamps that no lens is looked for in: stars, which have no score, and empty sky."""
SAID = (0.05, 0.02)
"""Rates of false alarms that are compared under other conditions."""
FEWEST = 50
"""Lenses and regular objects that a calibration needs."""


@dataclass(frozen=True)
class PairRows:
    """Rows of a pair store: `limit` from `start` on, all that follow where it is None."""

    url: str
    start: int
    limit: int | None

    @property
    def stop(self) -> int | None:
        """The row after the last."""
        return None if self.limit is None else self.start + self.limit


def calibrate_on_pairs(model: Model, stores: Sequence[PairRows], asked: Asked) -> Discriminant:
    """Measure, learn from all stores together, and print how well the score tells lenses apart."""
    model.to("cpu", "bfloat16")
    parts, lenses, groups, conditions = list[Measured](), list[NDArray[np.bool_]](), list[NDArray[np.int64]](), []
    for rows in stores:
        pairs, deflectors = ordinary_pairs(model, rows)
        measured, lens, group = measure_all(model, pairs, deflectors, asked)
        parts.append(measured)
        lenses.append(lens)
        groups.append(group + sum(map(len, groups)))
        conditions.append(stated_conditions(pairs))
    measured, lens = Measured.join(parts), np.concatenate(lenses)
    group = np.concatenate(groups)
    discriminant, held_out = fit(measured, lens, group, sigma=asked.sigma)
    print_ranks(model.card.problem, measured, lens, group, held_out, asked.sigma)
    names = [name for name in conditions[0] if all(name in of for of in conditions)]
    print_thirds({name: np.concatenate([of[name] for of in conditions]) for name in names}, held_out[~lens])
    return discriminant


def ordinary_pairs(model: Model, rows: PairRows) -> tuple[Pairs, list[int]]:
    """Pairs with a galaxy in their middle; and which of these are like deflectors, by their number."""
    pairs = read_pairs(rows.url, "cutout", rows.start, rows.stop, problem=model.card.problem.table, conditions=True)
    labels, ids = read_labels(rows.url), read_ids(rows.url, rows.start, rows.stop)
    classes = [labels.get(name, {}).get("central_class") for name in ids]
    kept = objects_in_the_middle(pairs, classes, str(model.card.problem.catalog))
    if len(kept) < len(ids):
        print(f"{len(kept)} of {len(ids)} pairs have a galaxy in their middle, with data; the others are left out")
        pairs, classes = pairs.rows(kept), [classes[k] for k in kept]
    deflectors = [k for k, what in enumerate(classes) if what == DEFLECTOR_LIKE]
    if len(deflectors) < FEWEST or len(kept) - len(deflectors) < FEWEST:
        raise RequestError(
            f"{rows.url}: {len(deflectors)} of {len(kept)} pairs are {DEFLECTOR_LIKE} by the table beside the store, "
            f"but a calibration needs {FEWEST} of them and as many others; give more pairs, or a store with its table"
        )
    return pairs, deflectors


def measure_all(
    model: Model, pairs: Pairs, deflectors: Sequence[int], asked: Asked
) -> tuple[Measured, NDArray[np.bool_], NDArray[np.int64]]:
    """Residuals of regular objects and of lenses made of some; which are lenses; the row each comes from."""
    lenses, _, origin = inject(pairs, deflectors, asked.seed)
    parts = [measure_pairs(model, pairs, 0, asked), measure_pairs(model, lenses, len(pairs), asked)]
    measured = Measured.join(parts)
    is_lens = np.repeat([False, True], [len(pairs), len(origin)])
    return measured, is_lens, np.concatenate([np.arange(len(pairs)), np.array(origin)])


def objects_in_the_middle(pairs: Pairs, classes: Sequence[str | None], catalog: str) -> list[int]:
    """Pairs with an object in their middle that a catalog would have scores of, by their number.

    Left out are those that the table calls a star or empty sky, those around whose middle nothing is detected on the
    end with the catalog, and those whose middle is mostly masked.
    """
    return [k for k, what in enumerate(classes) if what not in NO_GALAXY and is_centred(pairs, k, catalog)]


def is_centred(pairs: Pairs, row: int, catalog: str) -> bool:
    """Return whether a pair has data, and something detected on an end, in its middle."""
    for name, stamps in pairs.ends.items():
        known = np.isfinite(stamps[row]).all(0)
        inside = aperture(known.shape, APERTURE_ARCSEC / pairs.pixel_scale[name]).numpy()
        if known.mean() < MIN_VALID or (inside * ~known).sum() >= MOSTLY_MASKED * inside.sum():
            return False
    flux, scale = pairs.ends[catalog][row, 0], pairs.pixel_scale[catalog]
    noise = pairs.noise[catalog][pairs.bands[catalog][0]]
    if pairs.conditions is not None and pairs.conditions.ends[catalog].noise[row, 0] > 0:  # NaN is unknown
        noise = float(pairs.conditions.ends[catalog].noise[row, 0])
    found = detect(np.nan_to_num(flux), np.full(flux.shape, noise**2, np.float32), np.isfinite(flux))
    middle_y, middle_x = (np.array(flux.shape) - 1) / 2
    return bool((np.hypot(found.y - middle_y, found.x - middle_x) * scale <= CENTRED_ARCSEC).any())


def measure_pairs(model: Model, pairs: Pairs, first: int, asked: Asked) -> Measured:
    """Residuals of pairs on their own pixels; `first` places them in the noise."""
    if model.card.grid == "mosaic":
        pairs = on_mosaic_grid(pairs)
    size = pairs.ends[scored_direction(model).wanted.name].shape[-1]
    found = []
    for begin in progress(range(0, len(pairs), GROUP), "measure", unit="groups"):
        some = pairs.rows(slice(begin, begin + GROUP))
        corners = [(0, size * (first + begin + k)) for k in range(len(some))]
        found.append(measure(model, pair_cutouts(model, some, corners, torch.device("cpu")), asked))
    return Measured.join(found)


def print_ranks(
    problem: Problem, measured: Measured, lens: NDArray[np.bool_], group: NDArray[np.int64], score: Floats, sigma: float
) -> None:
    """Print how well the held-out score, and each part of it alone, tells lenses from ordinary objects."""
    regular = ~lens
    alike = lens | np.isin(group, group[lens])
    print(f"{lens.sum()} lenses made of {alike.sum() - lens.sum()} of {regular.sum()} regular objects; held-out folds:")
    print("                                   AUROC  galaxies without arcs  matched flux  rank corr. with flux")

    def line(name: str, values: Floats) -> None:
        correlation = float(spearmanr(values[regular], measured.flux[regular]).statistic)
        print(
            f"  {name:32s} {auroc(values, lens):.3f}  {auroc(values[alike], lens[alike]):20.3f}  "
            f"{matched_auroc(values, lens, measured.flux):12.3f}  {correlation:20.3f}"
        )

    line("the lens score", score)
    if measured.conditions:
        blind = measured._replace(conditions=NOT_TOLD)
        line("the same, told no conditions", fit(blind, lens, group, sigma=sigma)[1])
    kinds = columns(problem)
    kinds |= {"signed and squared": kinds["signed"] + kinds["squared"]}
    for name, some in kinds.items():
        part = measured._replace(features=measured.features[..., some])
        line(f"of it, {name} alone", fit(part, lens, group, sigma=sigma)[1])
    line("no lens seen: Mahalanobis", surprise(measured, regular))
    plain = measured._replace(features=measured.features[..., kinds["signed and squared"]])
    line("the same, signed and squared", surprise(plain, regular))
    line("central flux alone", measured.flux)


def stated_conditions(pairs: Pairs) -> dict[str, Floats]:
    """Conditions of pairs by name, [N] each, NaN where unknown; none where the store states none."""
    if pairs.conditions is None:
        return {}
    values = {"registration": np.asarray(pairs.conditions.registration, np.float64)}
    for end, of in pairs.conditions.ends.items():
        for name in QUANTITIES:
            for plane, band in enumerate(pairs.bands[end]):
                values[f"{end} {band} {name}"] = getattr(of, name)[:, plane].astype(np.float64)
    return values


def print_thirds(conditions: Mapping[str, Floats], score: Floats) -> None:
    """Print how many ordinary objects lie beyond the scores of two rates, by thirds of each condition that varies."""
    shares = thirds(conditions, score)
    if shares:
        print("ordinary objects beyond the scores of the rates " + " and ".join(f"{rate:.0%}" for rate in SAID))
        print("                           in the lowest, middle and highest third of pairs")
    for name, found in shares.items():
        print(f"  {name:24s} " + "   ".join(" ".join(f"{share:5.1%}" for share in third) for third in found))


def thirds(conditions: Mapping[str, Floats], score: Floats) -> dict[str, list[list[float]]]:
    """By condition: share of pairs beyond the scores of the rates `SAID` among thirds of them, lowest first.

    Pairs of which a condition is not known are left out of its thirds, and so is what varies by less than `VARIES`.
    """
    levels = np.quantile(score, 1 - np.array(SAID))
    found = {}
    for name, values in conditions.items():
        known = np.isfinite(values)
        if known.sum() >= FEWEST and np.ptp(values[known]) > VARIES * np.abs(values[known]).max():
            parts = np.array_split(score[known][np.argsort(values[known], kind="stable")], 3)
            found[name] = [[float((part > level).mean()) for level in levels] for part in parts]
    return found
