"""How well the model does under other observing conditions: one at a time, and under those of two years of a survey.

    python -m benchmarks.skies                                  # all conditions, some 40 minutes of one core
    python -m benchmarks.skies --only training,seeing-0.9       # some
    python -m benchmarks.skies --homogenise off                 # images with the PSFs that they have
    python -m benchmarks.skies --cosmic-rays --only cosmic-rays # rays of VIS found and masked, as by `ingest`
    python -m benchmarks.skies --checkpoint mosaic-v2 --seed 9

The same fields, from seeds, are simulated under each of the shipped skies (`simulate --sky`), written as FITS, read,
co-registered, aligned, translated and scored with the product's own functions; only the windows with a galaxy to
i = 24.5 or a star to i = 23 are translated. As in a run, a model is told the conditions where its card takes them, and
images are brought to the PSF of training where its card states one. Conditions that are in the results already, with
the same settings, are left out, so that a run may be stopped and goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.sky_measures import FIRST, SAMPLES, Sums, measure, summary
from surveybridge.bridge_core.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.settings import WHOLE, PatchGrid, Scoring, windows_of
from surveybridge.jobs.simulating.field import SimulatedField, noise_stream
from surveybridge.jobs.simulating.files import to_hdus
from surveybridge.jobs.simulating.observing import Instrument, Observing, Registration, StarCounts
from surveybridge.jobs.simulating.population import concatenate
from surveybridge.jobs.simulating.shipped_skies import shipped
from surveybridge.jobs.simulating.sky import observe
from surveybridge.jobs.translating.alignment import aligned
from surveybridge.jobs.translating.candidates import RunFacts, find_candidates
from surveybridge.jobs.translating.config import NOISE_BOUND
from surveybridge.jobs.translating.homogenising import Homogenisation
from surveybridge.jobs.translating.scene import prepared
from surveybridge.storage.field_images import open_field
from surveybridge.storage.ingest import TileBox, cut_tile
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import Tile

FIELDS, SIZE, LENSES, ROTATION = 6, 1024, 4, -4.5
"""Number of fields, their side in pixels of 0.1 arcsec, lenses in each, and the rotation of LSST's grid, degrees."""
SCORING = Scoring(reconstruct=0.0)
"""The lens score, without what the catalog needs besides."""
LEFT_OUT = ("ideal",)
"""Of the shipped skies: the same as `stars`, with other stars."""


def main() -> None:
    """Measure the conditions that are not measured yet; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="shipped name, or path")
    parser.add_argument("--only", help="names of skies, joined by commas (default: all that ship)")
    parser.add_argument("--seed", type=int, default=100, help="of the first field; the others follow")
    parser.add_argument("--fields", type=int, default=FIELDS)
    parser.add_argument("--homogenise", choices=("auto", "off"), default="auto", help="as of `translate`")
    parser.add_argument(
        "--patch",
        choices=("tile", "64", "128"),
        default="64",
        help="what the network sees at once, as of `translate`; tile translates whole fields, in ten times the time",
    )
    parser.add_argument("--cosmic-rays", action="store_true", help="as `ingest --cosmic-rays euclid.VIS`")
    parser.add_argument(
        "--out", type=Path, help="JSON (default: benchmarks/results/skies-CHECKPOINT[-off][-tile][-rays].json)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(arguments.checkpoint).to("cpu", "bfloat16")
    homogenisation = Homogenisation.of_card(model.card, NOISE_BOUND) if arguments.homogenise == "auto" else None
    patch = windows_of(arguments.patch).stated
    file = f"skies-{model.card.name}{'-off' * (arguments.homogenise == 'off')}{'-tile' * (patch == WHOLE)}"
    file += f"{'-rays' * arguments.cosmic_rays}.json"
    out = arguments.out or Path(__file__).with_name("results") / file
    settings = {
        "checkpoint_sha256": model.sha256, "seed": arguments.seed, "fields": arguments.fields, "size": SIZE,
        "lenses_a_field": LENSES, "samples": SAMPLES,
        "homogenisation": homogenisation and homogenisation.document,
        **({} if patch == PatchGrid.size else {"patch": patch}),
        **({"cosmic_rays": "sought"} if arguments.cosmic_rays else {}),
    }  # fmt: skip
    report = earlier(out, settings)
    skies = chosen(arguments.only)
    for name, sky in skies.items():
        if name in report["skies"]:
            continue
        started = time.process_time()
        sums = Sums.joined(
            [
                measure_field(model, homogenisation, sky, arguments.seed + k, patch, arguments.cosmic_rays)
                for k in range(arguments.fields)
            ]
        )
        report["skies"][name] = summary(sums) | {"processor_seconds": round(time.process_time() - started, 1)}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rounded(report), indent=1) + "\n")
        print(line(name, report["skies"][name]), flush=True)
    print("\n" + table({name: report["skies"][name] for name in skies}))
    minutes = sum(row["processor_seconds"] for row in report["skies"].values()) / 60
    print(f"\n{minutes:.1f} minutes of one core for {len(report['skies'])} conditions")


def chosen(only: str | None) -> dict[str, Observing]:
    """The skies of `--only`, or all."""
    skies = {name: sky for name, sky in shipped().items() if name not in LEFT_OUT}
    if only is None:
        return skies
    unknown = sorted(set(only.split(",")) - set(skies))
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: not among {', '.join(skies)}")
    return {name: skies[name] for name in only.split(",")}


def earlier(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same settings has found."""
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["settings"] == settings:
            return found
    return {"settings": settings, "skies": {}}


def measure_field(
    model: Model,
    homogenisation: Homogenisation | None,
    sky: Observing,
    seed: int,
    patch: int | str | None = None,
    cosmic_rays: bool = False,
) -> Sums:
    """Simulate, read, with or without a search for cosmic rays, translate, score and measure one field."""
    drawn = field(seed, sky.stars)
    with tempfile.TemporaryDirectory() as folder:
        tile = observed_tile(Path(folder), sky, seed, cosmic_rays)
    tile = prepared(model.card, tile)
    if homogenisation is not None:
        tile = homogenisation.applied(tile, None)
    rows = find_candidates(model, tile, SCORING, RunFacts("skies"), torch.device("cpu"))
    table = rows.rows.select(["system_id", "score", "false_alarm", "kind", "x", "y"]).to_pandas()
    truth = images(seed, sky.band("VIS"), sky.registration, sky.stars)
    return measure(model, tile, drawn, truth, table, patch)


def observed_tile(folder: Path, sky: Observing, seed: int, cosmic_rays: bool = False) -> Tile:
    """The whole field as one tile, by way of FITS files, of which rays in VIS are masked if asked."""
    drawn = field(seed, sky.stars)
    paths: dict[str, str] = {}
    for instrument in sky.instruments:
        model = images(seed, instrument, sky.registration, sky.stars)
        planes = observe(model, instrument, noise_stream(seed, instrument))
        paths[instrument.band] = str(folder / f"{instrument.band}.fits")
        to_hdus(drawn.frame(instrument), instrument, planes, LENSES, seed, sky).writeto(paths[instrument.band])
    files = {"lsst": {band: paths[band] for band in "gri"}, "euclid": {"VIS": paths["VIS"]}}
    # a PSF that no profile describes is given as an image
    stamps = {"VIS": f"{paths['VIS']}[PSF]"} if sky.band("VIS").psf_kind == "optical" else {}
    sought = {"euclid": {"VIS": True}} if cosmic_rays else {}
    opened = open_field(default_problem(), files, "euclid", numbers={"psf": {"euclid": stamps}, "cosmic_rays": sought})
    whole = (0, SIZE, 0, SIZE)
    return cut_tile(aligned(opened).strip(0, SIZE), TileBox("t0000", whole, whole))


@functools.lru_cache(maxsize=64)
def field(seed: int, stars: StarCounts | None) -> SimulatedField:
    """Objects of a field."""
    return SimulatedField.draw(SIZE, ROTATION, LENSES, seed, stars)


def images(seed: int, instrument: Instrument, registration: Registration, stars: StarCounts | None) -> NDArray[Any]:
    """Noise-free image of a band; drawn once for all conditions that change neither PSF nor registration."""
    if instrument.survey == "Euclid":
        registration = Registration()
    optics = Instrument(
        instrument.survey, instrument.band, instrument.pixel_scale, instrument.psf_fwhm, 1.0, 1.0, np.inf,
        instrument.psf_kind, instrument.psf_beta,
    )  # fmt: skip
    image = _galaxies(seed, optics, registration)
    return image if stars is None else image + _stars(seed, optics, registration, stars)


@functools.lru_cache(maxsize=8 * FIELDS)
def _galaxies(seed: int, optics: Instrument, registration: Registration) -> NDArray[Any]:
    drawn = field(seed, None)
    return drawn.model(optics, registration, concatenate(drawn.galaxies, drawn.lenses))


@functools.lru_cache(maxsize=8)
def _stars(seed: int, optics: Instrument, registration: Registration, stars: StarCounts) -> NDArray[Any]:
    drawn = field(seed, stars)
    return drawn.model(optics, registration, drawn.stars)


COLUMNS = (
    ("flux", "flux", "{:.2f}"),
    ("inside_68", "68% holds", "{:.0%}"),
    ("spread_skill", "spread/skill", "{:.2f}"),
    ("false_per_thousand", "false", "{:.0f}"),
    ("lenses_first", f"lenses in the first {FIRST:.0%}", "{:.0f}"),
)
"""Keys of `sky_measures.summary`, their names in the table, and how they are written."""


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each condition, with 95% intervals."""
    heads = ["condition", *(head for _, head, _ in COLUMNS), "star flux i = 17, 19, 21", "stars first", "sources"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(line(name, row) for name, row in rows.items())])


def line(name: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [_with_interval(row[key], form) for key, _, form in COLUMNS]
    cells[-1] += f" of {row['lenses']}"
    stars = [row["stars_flux"].get(bin_) for bin_ in ("17-18", "19-20", "21-22")]
    cells.append(", ".join(f"{star['value']:.2f}" if star else "-" for star in stars))
    return f"| {' | '.join([name, *cells, str(row['stars_first']), str(row['sources'])])} |"


def _with_interval(found: dict[str, Any], form: str) -> str:
    if found["value"] is None:
        return "-"
    low, high = (form.format(edge) for edge in found["interval"])
    return f"{form.format(found['value'])} [{low}, {high}]"


def rounded(value: Any) -> Any:
    """JSON with four significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
