"""What flux consistency buys: fluxes, intervals and errors of the same tiles with and without it, under other skies.

    python -m benchmarks.consistency                                 # all conditions, maps without samples
    python -m benchmarks.consistency --only stars,year10 --samples 4 # some, with samples

The fields are those of `benchmarks.skies`, simulated, read, co-registered and aligned, and translated as one tile each,
LSST to VIS, twice: with light as the network has it ("alone"), and brought to agree with LSST ("agreeing"). Measured
against the truth, 96 pixels and more from the edge:

    flux        median of translated over true flux within 0.5" of galaxies to i = 24.5, and half the range of the
                middle 68% of these ratios
    stars       median of the same within 0.2" of stars of i = 16 to 20, and of i = 20 to 23, where there are any
    68% holds   share of the pixels whose mean is above 3 sigma of VIS, away from lenses, in the 68% interval
    error       rms error of pixels whose true S/N is 3 to 30, and above 30, over that of "alone"

At the end it says by what a star of true light is multiplied where the PSF of LSST is told wrong. Conditions that are
in the results already, with the same settings, are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sep
import torch
from numpy.typing import NDArray

from benchmarks.skies import chosen, earlier, field, images, observed_tile, rounded
from benchmarks.sky_measures import (
    BRIGHT_SIGMAS,
    GALAXY_ARCSEC,
    STAR_ARCSEC,
    away_from_lenses,
    known_pixels,
    places_of,
    seen_by_vis,
)
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, head_file, load_checkpoint
from surveybridge.bridge_core.consistency import BandOptics, consistency_of
from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.maps import MapsHead, load_head, map_tile
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Problem
from surveybridge.bridge_core.scene import Scene, look
from surveybridge.bridge_core.settings import Sampling, WholeTile
from surveybridge.bridge_core.translate import (
    Posterior,
    agreement_of,
    grown,
    whole_samples,
    with_shared_start,
)
from surveybridge.jobs.calibrating.light import half_range
from surveybridge.jobs.simulating.observing import Observing
from surveybridge.jobs.translating.light import compared_light, relation_for
from surveybridge.jobs.translating.scene import prepared, scene_of, wanted_conditions
from surveybridge.storage.psf import Gaussian, Moffat, Psf
from surveybridge.storage.tiles import Tile

FIELDS = 3
EDGE = 96
"""Pixels from the edge of a field within which nothing is measured."""
STARS = {"16-20": (16.0, 20.0), "20-23": (20.0, 23.0)}
"""i magnitudes."""
SIGNAL = {"3-30": (3.0, 30.0), "30 up": (30.0, np.inf)}
"""True flux of a pixel over the noise of VIS."""
WAYS = ("alone", "agreeing")

Floats = NDArray[np.float64]


@dataclass
class Found:
    """What the fields of a condition gave in one way.

    galaxies: [N], translated over true flux; stars: [M, 2], i magnitude and the same; inside: number of bright pixels,
    and of those in the interval; errors: [S, 2], number of pixels and sum of squared errors by `SIGNAL`.
    """

    galaxies: Floats
    stars: Floats
    inside: Floats
    errors: Floats

    def plus(self, other: Found) -> Found:
        """Put fields together."""
        return Found(
            np.concatenate([self.galaxies, other.galaxies]),
            np.concatenate([self.stars, other.stars]),
            self.inside + other.inside,
            self.errors + other.errors,
        )


def main() -> None:
    """Measure what is not measured yet; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="shipped name, or path")
    parser.add_argument("--only", help="names of skies, joined by commas (default: all that ship)")
    parser.add_argument("--seed", type=int, default=100, help="of the first field; the others follow")
    parser.add_argument("--fields", type=int, default=FIELDS)
    parser.add_argument("--samples", type=int, default=0, help="0 for maps from one evaluation")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/consistency[-samples-K].json)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint)
    head = None if arguments.samples else load_head(model, head_file(arguments.checkpoint))
    model = model.to("cpu", arguments.precision)
    relation = relation_for(model.card, model.card.problem.to("euclid"), WholeTile())
    if relation is None:
        raise SystemExit(f"checkpoint {model.card.name} says nothing of light; `surveybridge calibrate --consistency`")
    settings = {
        "checkpoint_sha256": model.sha256, "consistency": relation.card, "seed": arguments.seed,
        "fields": arguments.fields, "samples": arguments.samples, "precision": arguments.precision,
    }  # fmt: skip
    file = f"consistency{f'-samples-{arguments.samples}' if arguments.samples else ''}.json"
    out = arguments.out or Path(__file__).with_name("results") / file
    report = earlier(out, settings)
    skies = chosen(arguments.only)
    for name, sky in skies.items():
        if name in report["skies"]:
            continue
        started = time.process_time()
        found: dict[str, Found] = {}
        for k in range(arguments.fields):
            of_field = measure_field(model, head, sky, arguments.seed + k, arguments.samples, arguments.precision)
            found = {way: found[way].plus(part) if way in found else part for way, part in of_field.items()}
        report["skies"][name] = summary(found, arguments.samples)
        report["skies"][name]["processor_seconds"] = time.process_time() - started
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rounded(report), indent=1) + "\n")
        print(line(name, report["skies"][name]), flush=True)
    print("\n" + table({name: report["skies"][name] for name in skies}))
    report["wrong_psf"] = wrong_psfs(relation, model.card.problem)
    out.write_text(json.dumps(rounded(report), indent=1) + "\n")
    for name, factor in report["wrong_psf"].items():
        print(f"a star of true light, {name}: multiplied by {factor:.3f}")


TOLD = {
    "its PSF told as it is": (Moffat(0.8, 3.5), Moffat(0.8, 3.5)),
    "FWHM told 1% too wide": (Moffat(0.8, 3.5), Moffat(0.808, 3.5)),
    "FWHM told 3% too wide": (Moffat(0.8, 3.5), Moffat(0.824, 3.5)),
    "Moffat beta of 3.5 told as 4.5": (Moffat(0.8, 3.5), Moffat(0.8, 4.5)),
    "Moffat beta of 3.5 told as Gaussian": (Moffat(0.8, 3.5), Gaussian(0.8)),
}
"""PSF of LSST as it is, and as it is told."""


def wrong_psfs(relation: LightRelation, problem: Problem) -> dict[str, float]:
    """By what a bright star is multiplied that has its true light, where the PSF of LSST is told wrong."""
    direction, side, scale, vis = problem.to("euclid"), 64, 0.1, Gaussian(0.16)
    found = {}
    for name, (true, told) in TOLD.items():
        optics = {
            "lsst": [BandOptics(told, told.fwhm, scale)] * len(direction.observed.bands),
            "euclid": [BandOptics(vis, vis.fwhm, scale)],
        }
        white = [(0.5, lambda shape: np.ones((shape[0], shape[1] // 2 + 1)))] * len(direction.observed.bands)
        how = consistency_of(relation, problem, direction, optics, white, scale, (side, side), halo=64)
        wide = side + 2 * how.margin
        observed, said = (_star(psf, wide, scale) for psf in (true, vis))
        observed = observed / sum(relation.weights.values())
        scene = Scene(
            observed.expand(len(direction.observed.bands), -1, -1),
            torch.ones((len(direction.observed.bands), wide, wide), dtype=torch.bool),
            (0, 0), (how.margin, wide - how.margin, how.margin, wide - how.margin), 8.0,
        )  # fmt: skip
        found[name] = float(how.observe(scene).factor(said)[0][side // 2, side // 2])
    return found


def _star(psf: Psf, side: int, scale: float) -> torch.Tensor:
    """A star of 10^5 units in the middle of [1, side, side], float32."""
    around = 512  # so many pixels that nothing of the wings comes in again
    v = np.asarray(np.fft.fftfreq(around, scale), np.float64)[:, None]
    u = np.asarray(np.fft.rfftfreq(around, scale), np.float64)[None]
    image = np.fft.fftshift(np.fft.irfft2(psf.transfer(u, v) * np.sinc(u * scale) * np.sinc(v * scale)))
    first = around // 2 - side // 2
    return torch.from_numpy(1e5 * image[None, first : first + side, first : first + side]).float()


def measure_field(
    model: Model, head: MapsHead | None, sky: Observing, seed: int, samples: int, precision: Any
) -> dict[str, Found]:
    """Simulate, read, translate and measure one field in both ways."""
    with tempfile.TemporaryDirectory() as folder:
        tile = prepared(model.card, observed_tile(Path(folder), sky, seed))
    drawn = field(seed, sky.stars)
    truth = images(seed, sky.band("VIS"), sky.registration, sky.stars)
    known = known_pixels(tile)
    countable = away_from_lenses(known, drawn)
    places = {
        kind: places_of(objects, kind, drawn, known)
        for kind, objects in (("galaxy", drawn.galaxies), ("star", drawn.stars))
    }
    return {
        way: measured(posterior, tile, truth, countable, places, samples)
        for way, posterior in translated(model, head, tile, samples, precision).items()
    }


def translated(model: Model, head: MapsHead | None, tile: Tile, samples: int, precision: Any) -> dict[str, Posterior]:
    """The tile in both ways."""
    direction = model.card.problem.to("euclid")
    scene = scene_of(tile, "lsst", torch.device("cpu"), model.card)
    wanted = wanted_conditions(model.card, tile, direction)
    windows = WholeTile(multiple=model.card.network.window_multiple)
    how = with_shared_start(model.card, Sampling(samples=samples, precision=precision, patches=windows))
    relation = relation_for(model.card, direction, windows)
    agreeing, why = compared_light(model.card, relation, tile, direction, wanted, windows)
    if agreeing is None:
        raise SystemExit(why)
    with torch.inference_mode():
        if head is not None:
            ways = ((way, of) for way, of in zip(WAYS, (None, agreeing), strict=True))
            return {way: map_tile(model, head, direction, scene, how, wanted, of) for way, of in ways}
        # the samples of a core that is larger by the margin, drawn once, are those of both ways
        seen = look(model, direction, scene, how, wanted=wanted)
        agreement = agreement_of(seen, how, agreeing, scene)
        assert agreement is not None
        frame = seen._replace(box=grown(seen.box, agreeing.margin))
        drawn = torch.cat(list(whole_samples(model, direction, frame, how)), dim=1)[0]
        inner = slice(agreeing.margin, -agreeing.margin)
        both = (drawn[..., inner, inner], agreement.samples(drawn, 0, how.seed, direction.index))
    return {way: Posterior.of(of.mean(0), of.std(0), seen.coverage, 1) for way, of in zip(WAYS, both, strict=True)}


def measured(
    posterior: Posterior,
    tile: Tile,
    truth: Floats,
    countable: NDArray[np.bool_],
    places: dict[str, Floats],
    samples: int,
) -> Found:
    """Compare a translation with the truth."""
    mean, std = posterior.mean[0].double().numpy(), posterior.std[0].double().numpy()
    observed, sigma = seen_by_vis(tile)
    inner = np.zeros_like(countable)
    inner[EDGE:-EDGE, EDGE:-EDGE] = True
    counted = countable & inner & np.isfinite(mean)
    off = np.where(counted, observed - mean, 0.0)
    bright = counted & (mean > BRIGHT_SIGMAS * sigma)
    width = interval_width(0.68, samples or 10**6)
    of_signal = [counted & (truth > low * sigma) & (truth <= high * sigma) for low, high in SIGNAL.values()]
    return Found(
        galaxies=flux_ratios(mean, truth, places["galaxy"], GALAXY_ARCSEC)[:, 1],
        stars=flux_ratios(mean, truth, places["star"], STAR_ARCSEC),
        inside=np.array([bright.sum(), (np.abs(off) <= width * std)[bright].sum()], np.float64),
        errors=np.array([[pixels.sum(), np.square(off[pixels]).sum()] for pixels in of_signal], np.float64),
    )


def flux_ratios(mean: Floats, truth: Floats, places: Floats, arcsec: float) -> Floats:
    """I magnitude, and translated over true flux within a radius, of places (i, x, y): [N, 2]; NaN where unknown."""
    height, width = mean.shape
    inside = (
        (places[:, 1] > EDGE) & (places[:, 1] < width - EDGE) & (places[:, 2] > EDGE) & (places[:, 2] < height - EDGE)
    )
    some = places[inside]
    fluxes = [sep.sum_circle(np.ascontiguousarray(of), some[:, 1], some[:, 2], arcsec / 0.1)[0] for of in (mean, truth)]
    ratios = np.stack([some[:, 0], fluxes[0] / fluxes[1]], axis=1)
    return ratios[np.isfinite(ratios[:, 1])]


def summary(found: dict[str, Found], samples: int) -> dict[str, Any]:
    """All numbers of a condition."""
    result: dict[str, Any] = {}
    for way, of in found.items():
        result[way] = {
            "flux": float(np.median(of.galaxies)),
            "flux_scatter": half_range(of.galaxies),
            "stars": {
                name: {"flux": float(np.median(some)), "number": len(some)}
                for name, (bright, faint) in STARS.items()
                if len(some := of.stars[(of.stars[:, 0] >= bright) & (of.stars[:, 0] < faint), 1])
            },
            "inside_68": float(of.inside[1] / of.inside[0]),
        }
    errors = {way: np.sqrt(of.errors[:, 1] / of.errors[:, 0]) for way, of in found.items()}
    result["error"] = dict(zip(SIGNAL, (errors["agreeing"] / errors["alone"]).tolist(), strict=True))
    result["galaxies"] = len(found["alone"].galaxies)
    return result


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each condition, "alone" before "agreeing"."""
    heads = [
        "condition", "flux", "its scatter", *(f"stars i = {name}" for name in STARS), "68% holds",
        *(f"error at S/N {name}" for name in SIGNAL), "galaxies",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(line(name, row) for name, row in rows.items())])


def line(name: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    alone, agreeing = (row[way] for way in WAYS)

    def both(key: str, form: str) -> str:
        return f"{alone[key]:{form}} → {agreeing[key]:{form}}"

    stars = [
        f"{alone['stars'][bin_]['flux']:.2f} → {agreeing['stars'][bin_]['flux']:.2f} ({alone['stars'][bin_]['number']})"
        if bin_ in alone["stars"]
        else "-"
        for bin_ in STARS
    ]
    errors = [f"{value:.2f}" for value in row["error"].values()]
    cells = [name, both("flux", ".2f"), both("flux_scatter", ".3f"), *stars, both("inside_68", ".0%"), *errors]
    return f"| {' | '.join([*cells, str(row['galaxies'])])} |"


if __name__ == "__main__":
    main()
