"""What has become of quality since another commit: pairs and a field, by the code of both, with the same checkpoint.

    git worktree add ../before 29d18a7
    python -m benchmarks.since --before ../before --work runs/since --out benchmarks/results/since.json

Both evaluate the shared pairs (`surveybridge evaluate`) and translate tiles from the middle of the shared field, with
their own defaults; this commit sees a tile as one window, as `mosaic-v3` does, and in patches. Intervals are 95% from
drawing pairs, galaxies, or squares of 64 x 64 pixels of the field anew, the same for both, so that differences are of
pairs with themselves. A field keeps mean and std and no samples: its score is the CRPS of a normal distribution of
these, in units of the sky's noise. What is finished in --work is kept if this is stopped; give another folder for other
settings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats

from benchmarks.field_measures import Field, aperture_fluxes, isolated_galaxies, read_field
from surveybridge.bridge_core.evaluation import LEVELS, REGIONS
from surveybridge.bridge_core.metrics import interval_width
from surveybridge.jobs import translate
from surveybridge.jobs.diagnosing.machine import described_machine
from surveybridge.jobs.evaluating.ranking import Floats, floats
from surveybridge.jobs.evaluating.summary import draws, in_words, lists, with_interval

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SETS = ("test_regular", "test_lens")
SIDES = ("before", "after")
DIRECTIONS = ("lsst->euclid", "euclid->lsst")
SQUARE = 64
"""Side of the squares that are drawn anew, pixels: wider than any galaxy but a few."""
LEVEL = 0.68


@dataclass(frozen=True)
class Shares:
    """A measure as a ratio of sums over what is drawn anew, both float64 [N]."""

    part: Floats
    whole: Floats

    @property
    def value(self) -> float:
        """The measure of all of them."""
        return float(self.part.sum() / self.whole.sum())

    def drawn(self) -> Floats:
        """Return the measure of each draw."""
        weights = draws(len(self.part))
        found: Floats = (weights @ self.part) / (weights @ self.whole)
        return found


def main() -> None:
    """Evaluate and translate with both, print a table, and write since.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="working tree of the other commit, such as 29d18a7")
    parser.add_argument("--work", type=Path, default=Path("runs/since"), help="evaluations and runs are made here")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of pairs/ and field/")
    parser.add_argument("--checkpoint", default="mosaic-v2", help="shipped with both (default: mosaic-v2)")
    parser.add_argument("--limit", type=int, help="number of pairs of each set (default: all)")
    parser.add_argument("--tiles", type=int, default=4, help="number of tiles from the middle of the field")
    parser.add_argument(
        "--precision-before", default="bfloat16", choices=("bfloat16", "float32"),
        help="arithmetic of the other commit (29d18a7 takes six times as long in bfloat16 where a CPU has no "
        "instructions for it)",
    )  # fmt: skip
    parser.add_argument(
        "--patches", nargs="+", default=["tile", "64"], help="windows in which this commit sees the field"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows = [*pair_rows(arguments, work), *field_rows(arguments, work)]
    show(rows)
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("work", "data", "out")}
        settings["before"] = commit_of(arguments.before)
        document = {"machine": described_machine(), "settings": settings, "rows": rows}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def commit_of(tree: Path) -> str:
    """Return the commit of a working tree."""
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    return told.stdout.strip()


def pair_rows(arguments: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the sets of pairs."""
    for which in SETS:
        tables = {side: evaluated(side, which, arguments, work) for side in SIDES}
        count = len(tables["after"][0]["object_id"].unique())
        for direction in DIRECTIONS:
            sides = {side: measures_of_pairs(*tables[side], direction) for side in SIDES}
            yield from rows_of(f"{count} of {which}", direction, sides)


def evaluated(side: str, which: str, arguments: argparse.Namespace, work: Path) -> tuple[pa.Table, pa.Table]:
    """Return the tables of images and pixels of an evaluation, made unless they are there."""
    out = work / f"{side}-{which.removeprefix('test_')}"
    if not (out / "metrics.json").is_file():
        store = str((arguments.data / "pairs" / f"{which}.zarr").resolve())
        command = ["evaluate", "--pairs", store, "--checkpoint", arguments.checkpoint, "--out", str(out)]
        run(side, command + ([] if arguments.limit is None else ["--limit", str(arguments.limit)]), arguments)
    return pq.read_table(out / "images.parquet"), pq.read_table(out / "pixels.parquet")


def run(side: str, command: list[str], arguments: argparse.Namespace) -> None:
    """Run a job with the code of one of them."""
    before = side == "before"
    start = [sys.executable, "-m", "jobs", *command, "--precision", arguments.precision_before]
    subprocess.run(
        start if before else [sys.executable, "-m", "surveybridge", *command],
        cwd=arguments.before if before else None,
        check=True,
    )


def measures_of_pairs(images: pa.Table, pixels: pa.Table, direction: str) -> dict[str, Shares]:
    """Return the measures of one direction, by name, over pairs."""
    images, pixels = (table.filter(pc.equal(table["direction"], direction)) for table in (images, pixels))
    energy = floats(images, "energy_score_fair")
    found = {"fair energy score": Shares(energy, np.ones(len(energy)))}
    shape = (len(energy), -1, len(REGIONS))
    count = floats(pixels, "pixels").reshape(shape)
    within = lists(pixels, "within").reshape(*count.shape, len(LEVELS))[..., LEVELS.index(LEVEL)]
    crps = floats(pixels, "crps").reshape(shape)
    for region, name in (("bright_truth", "S/N > 3"), ("sky", "sky")):
        r = REGIONS.index(region)
        whole = count[:, :, r].sum(1)
        found[f"68% holds, {name}"] = Shares(within[:, :, r].sum(1), whole)
        found[f"CRPS, {name}"] = Shares(crps[:, :, r].sum(1), whole)
    return found


def field_rows(arguments: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the field."""
    count, data = arguments.tiles, arguments.data.resolve() / "field"
    truth = pd.read_parquet(data / "field_truth.parquet")
    store = work / f"field-{count}.zarr"
    command = [sys.executable, "-m", "benchmarks.field", "--data", str(data), "--work", str(work)]
    command += ["--tiles", str(count), "--checkpoint", arguments.checkpoint, "--precision", arguments.precision_before]
    subprocess.run(command, cwd=arguments.before, check=True)  # it resumes
    for patch, direction in itertools.product(arguments.patches, DIRECTIONS):
        before = work / f"field-{count}-{direction.replace('->', '-')}"
        after = work / f"after-{patch}-{before.name}"
        # few scores are drawn, as by `benchmarks.field`
        config = translate.Config(
            store=str(store), run=str(after), checkpoint=arguments.checkpoint, direction=direction,
            patch=patch, score_samples=2, score_steps=2, executor="serial",
        )  # fmt: skip
        if translate.run(config) != 0:
            raise SystemExit(f"{after}: tiles failed; see its ledger")
        fields = {side: read_field(str(at), str(store)) for side, at in (("before", before), ("after", after))}
        yield from rows_of(f"{count} tiles, by {patch}", direction, measures_of_fields(fields, truth))


def measures_of_fields(fields: Mapping[str, Field], truth: pd.DataFrame) -> dict[str, dict[str, Shares]]:
    """Return the measures by side and name, over squares of pixels that both know, and over galaxies."""
    known = np.logical_and.reduce([field.known for field in fields.values()])
    wcs = next(iter(fields.values())).wcs
    galaxies = isolated_galaxies(truth, known, wcs)
    square = squares(known.shape)
    found = {}
    for side, field in fields.items():
        width = interval_width(LEVEL, field.samples)
        sums: dict[str, list[Floats]] = {}
        for k in range(len(field.bands)):
            planes = (plane[k].astype(np.float64) for plane in (field.mean, field.std, field.true, field.sigma))
            mean, std, true, sigma = planes
            score = normal_crps((true - mean) / sigma, std / sigma)
            for name, where in (("S/N > 3", true > 3 * sigma), ("sky", np.abs(true) < 3 * sigma)):
                chosen = known & where
                inside = np.abs(true - mean) <= width * std
                values = {"68% holds": inside, "CRPS": score}
                for measure, value in values.items():
                    part = np.bincount(square[chosen], value[chosen], square.max() + 1)
                    whole = np.bincount(square[chosen], minlength=square.max() + 1)
                    sums.setdefault(f"{measure}, {name}", []).append(np.stack([part, whole]))
        found[side] = {name: Shares(*np.sum(parts, axis=0)) for name, parts in sums.items()}
        for band, (drawn, true_flux) in aperture_fluxes(field, galaxies, 2.0).items():
            found[side][f"flux, {band}"] = Shares(drawn, true_flux)
    return found


def squares(shape: tuple[int, int]) -> NDArray[np.intp]:
    """Return the number of the square in which each pixel lies, [H, W]."""
    y, x = (np.arange(side) // SQUARE for side in shape)
    return y[:, None] * (x[-1] + 1) + x


def normal_crps(error: Floats, std: Floats) -> Floats:
    """CRPS of normal distributions by their errors and std (Gneiting & Raftery 2007, eq. (21))."""
    z = error / std
    found: Floats = std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    return found


def rows_of(where: str, direction: str, sides: Mapping[str, Mapping[str, Shares]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each measure: both values and their difference, with intervals."""
    for measure, before in sides["before"].items():
        after = sides["after"][measure]
        old, new = before.drawn(), after.drawn()
        yield {
            "where": where,
            "direction": direction,
            "measure": measure,
            "before": with_interval(before.value, old),
            "after": with_interval(after.value, new),
            "difference": with_interval(after.value - before.value, new - old),
        }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table; a row is marked where the value of now leaves the interval of before."""
    print(f"{'':26}{'direction':14}{'measure':22}{'before':26}{'after':26}difference")
    for row in rows:
        low, high = row["before"]["interval"]
        outside = "" if low <= row["after"]["value"] <= high else "  outside"
        told = [in_words(row[name]) for name in (*SIDES, "difference")]
        print(f"{row['where']:26}{row['direction']:14}{row['measure']:22}{told[0]:26}{told[1]:26}{told[2]}{outside}")


if __name__ == "__main__":
    main()
