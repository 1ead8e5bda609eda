"""Whether generated galaxies have the shapes, spectra and colours of true ones, and are new.

    python -m benchmarks.galaxies --source pairs/train_regular.zarr --test pairs/test_regular.zarr
        --made diffusion=made.zarr [NAME=STORE ...] [--asked faint.zarr ...] [--limit N] [--halves 40]
        [--out benchmarks/results/galaxies.json]

Prints distances of statistics as Holzschuh et al. 2022 define them (`bridge_core.likeness`): each of as many generated
stamps as half of the source are, against that half, beside the floor, which is that of the other half, and beside the
ceiling, Gaussian random fields of the source's mean power spectrum. Brackets hold 95% of random halves. Shapes and
spectra are those of VIS, colours are g - i. Then how near the stamps are to those of the training, beside how near
those of the test set are to them; and what stamps are like of which properties were asked for, beside the stamps of
the source whose own are nearest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.clouds_rivals import named
from surveybridge.bridge_core.fitting import fit_endpoint
from surveybridge.bridge_core.light import colour
from surveybridge.bridge_core.likeness import Measured, gaussian_fields, halves, interval, measure, nearest
from surveybridge.bridge_core.morphology import shapes
from surveybridge.bridge_core.problem import Problem
from surveybridge.storage.pair_properties import read_properties
from surveybridge.storage.pair_store import open_store
from surveybridge.storage.pairs import Pairs, problem_of_pairs, read_pairs

QUANTILES = (0.0, 0.01, 0.1, 0.5)
"""Of distances to the nearest stamp of the training; the first is the smallest."""
SEED = 0
ZERO_POINT = 31.4
"""AB, of a flux in nJy."""


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="pair store of the training")
    parser.add_argument("--test", required=True, help="pair store that no training has seen, of the same population")
    parser.add_argument("--made", nargs="+", required=True, metavar="NAME=STORE")
    parser.add_argument("--asked", nargs="*", default=[], metavar="STORE", help="made with properties")
    parser.add_argument("--limit", type=int, help="pairs of each store")
    parser.add_argument("--halves", type=int, default=40, help="random halves of the source")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source, test = (read_pairs(url, stop=arguments.limit) for url in (arguments.source, arguments.test))
    made = {name: read_pairs(url, stop=arguments.limit) for name, url in map(named, arguments.made)}
    rows = likeness(source, made, arguments.halves)
    print("\n".join(lines_of(rows)))
    stretch = fit_endpoint(
        Problem.from_table(problem_of_pairs(arguments.source))["euclid"], vis(source), source.noise["euclid"]
    )
    near = {"test": test} | made
    distances = {
        name: nearest(stretch.forward(vis(pairs), 1)[:, 0], stretch.forward(vis(source), 1)[:, 0])
        for name, pairs in near.items()
    }
    memory = memorised(distances)
    print("\n".join(memory_lines(memory)))
    obeyed = [obedience(arguments.source, source, url) for url in arguments.asked]
    print("\n".join(obedience_lines(obeyed)))
    if arguments.out:
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"asked": asked, "rows": rows, "nearest": memory, "asked for": obeyed}, indent=1) + "\n"
        )


def vis(pairs: Pairs) -> Tensor:
    """Stamps of VIS, float32 [N, 1, H, W], nJy."""
    return torch.from_numpy(pairs.ends["euclid"])


def measured(pairs: Pairs) -> Measured:
    """What is measured on pairs: shapes and spectra of VIS, colours g - i."""
    lsst = torch.from_numpy(pairs.ends["lsst"])
    return measure(vis(pairs)[:, 0], pairs.pixel_scale["euclid"], lsst[:, 0], lsst[:, -1])


def of_fields(source: Pairs) -> Measured:
    """What is measured on Gaussian random fields of the same mean power spectrum."""
    planes = torch.cat([torch.from_numpy(source.ends["lsst"]), vis(source)], 1)
    fields = gaussian_fields(planes, SEED)
    return measure(fields[:, -1], source.pixel_scale["euclid"], fields[:, 0], fields[:, -2])


def likeness(source: Pairs, made: Mapping[str, Pairs], count: int) -> list[dict[str, Any]]:
    """Rows of the table, one a statistic: its floor, then the distance of each set and of the ceiling."""
    of_source = measured(source)
    sets = {name: measured(pairs) for name, pairs in made.items()} | {"Gaussian fields": of_fields(source)}
    drawn = {name: list(halves(one, of_source, count, SEED)) for name, one in sets.items()}
    first = next(iter(drawn.values()))
    rows: list[dict[str, Any]] = []
    for name in first[0][1]:
        if name not in first[0][0]:
            continue
        row: dict[str, Any] = {"statistic": name, "floor": _summary([floor[name] for _, floor in first])}
        for label, pairs in drawn.items():
            row[label] = _summary([one[name] for one, _ in pairs])
            row[f"{label} / floor"] = row[label]["mean"] / row["floor"]["mean"] if row[label] and row["floor"] else None
        rows.append(row)
    return rows


def _summary(values: list[float]) -> dict[str, Any] | None:
    """Mean and central 95% of some values; None where they are not known, as colours of types that a set lacks."""
    if not np.isfinite(values).all():
        return None
    return {"mean": float(np.mean(values)), "interval": interval(values)}


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """The table as Markdown, in hundredths."""
    labels = [key for key in rows[0] if key not in ("statistic", "floor") and not key.endswith(" / floor")]
    lines = ["| x 0.01 | floor | " + " | ".join(f"{label} | of the floor" for label in labels) + " |"]
    lines += ["|---|---|" + "---|---|" * len(labels)]
    for row in rows:
        cells = [row["statistic"], _cell(row["floor"])]
        for label in labels:
            ratio = row[f"{label} / floor"]
            cells += [_cell(row[label]), "-" if ratio is None else f"{ratio:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(found: Mapping[str, Any] | None) -> str:
    """A mean and its interval, in hundredths; a dash where there is none."""
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{100 * found['mean']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def memorised(distances: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Rows: quantiles of distances to the training, and the share below that which a hundredth of the test is below."""
    limit = float(distances["test"].quantile(0.01))
    return [
        {
            "set": name,
            "quantiles": [float(values.quantile(q)) for q in QUANTILES],
            "nearer": float((values < limit).float().mean()),
        }
        for name, values in distances.items()
    ]


def memory_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table of distances to the training as Markdown, network units."""
    lines = [
        "| distance to the training | nearest | 1% | 10% | median | nearer than 99% of the test |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = " | ".join(f"{value:.4f}" for value in row["quantiles"])
        lines.append(f"| {row['set']} | {numbers} | {100 * row['nearer']:.1f}% |")
    return lines


def obedience(source_url: str, source: Pairs, url: str) -> dict[str, Any]:
    """What stamps are like that were made with properties, and as many of the source whose properties are nearest.

    Medians of the VIS magnitude and g - i within 1", and of the size of the weighted moments in arcsec.
    """
    given: dict[str, float] = dict(open_store(url, None).attributes["given"])
    made = read_pairs(url)
    known = read_properties(source_url, tuple(given), 0, len(source))
    away = ((known - np.array(list(given.values()))) / np.nanstd(known, 0)) ** 2
    order = np.argsort(np.where(np.isfinite(away), away, np.inf).sum(1), kind="stable")[: len(made)]
    return {"given": given, "made": _medians(made), "source": _medians(source.rows(order.tolist()))}


def _medians(pairs: Pairs) -> dict[str, float]:
    """Median magnitude, size and colour of stamps."""
    image, scale = vis(pairs)[:, 0], pairs.pixel_scale["euclid"]
    lsst = torch.from_numpy(pairs.ends["lsst"])
    # a magnitude is a colour against an image of 1 nJy in the circle
    one = torch.zeros_like(image)
    one[..., image.shape[-2] // 2, image.shape[-1] // 2] = 1.0
    found = {
        "magnitude": ZERO_POINT + colour(image, one, scale),
        "size": shapes(image, scale)["size"],
        "colour": colour(lsst[:, 0], lsst[:, -1], scale),
    }
    return {name: float(np.nanmedian(values.numpy())) for name, values in found.items()}


def obedience_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table of what was asked for as Markdown."""
    if not rows:
        return []
    names = list(rows[0]["made"])
    lines = [
        "| asked for | " + " | ".join(f"{name}: made, source" for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for row in rows:
        asked = ", ".join(f"{name} {value:g}" for name, value in row["given"].items())
        cells = [f"{row['made'][name]:.2f}, {row['source'][name]:.2f}" for name in names]
        lines.append(f"| {asked} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
