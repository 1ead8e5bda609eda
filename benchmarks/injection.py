"""How many lenses at known places in whole fields the catalog of `translate` has at its top.

    python -m benchmarks.injection --out benchmarks/results

Arcs are put around bright red galaxies of the shared field (a few rounds, with other arcs and galaxies each time) into
the FITS files, before anything is co-registered; and whole fields are simulated with lenses in them. Everything is then
treated like any data: ingest, translate, catalog. A row of the catalog belongs to a lens if it lies within 1.3 Einstein
radii of the deflector. Completeness is the share of lenses with a row among the first N, and purity the share of those
rows that belong to a lens, where N is a share of all sources; both also by Einstein radius and by S/N at N = 5%.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surveybridge.jobs import ingest, simulate, translate
from surveybridge.jobs.simulating.injection import draw_lens
from surveybridge.jobs.simulating.lenses import Arc
from surveybridge.jobs.simulating.observing import INSTRUMENTS
from surveybridge.jobs.simulating.population import columns
from surveybridge.jobs.simulating.sky import Frame, render
from surveybridge.storage.query import query

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "field"
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1)
"""N as a share of all sources."""
AT = 0.05
APART = 10.0
"""Distance of injected lenses from each other, from lenses that are there and from the edge, arcsec."""
NO_OBJECT = {"u": np.zeros(0), "v": np.zeros(0)}


@dataclass(frozen=True)
class Searched:
    """A field after translation: its catalog by rank, and its lenses (ra, dec, theta_E, arc_snr, injected)."""

    catalog: pd.DataFrame
    lenses: pd.DataFrame


def main() -> None:
    """Make the fields, search and count; print a table, and write injection.json and injection.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the shared field")
    parser.add_argument("--work", type=Path, default=Path("runs/injection"), help="fields, stores and runs go here")
    parser.add_argument("--rounds", type=int, default=4, help="number of times that arcs are put into the shared field")
    parser.add_argument("--hosts", type=int, default=8, help="largest number of lenses per round")
    parser.add_argument("--fields", type=int, default=3, help="simulated fields")
    parser.add_argument("--lenses", type=int, default=20, help="lenses in each of them")
    parser.add_argument("--checkpoint")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kinds: dict[str, list[Searched]] = {"shared field, injected": [], "simulated fields": []}
    for number in range(arguments.rounds):
        folder = arguments.work / f"injected-{number}"
        lenses = inject_field(arguments.data, folder, number, arguments.hosts)
        kinds["shared field, injected"].append(Searched(catalog_of(folder, "field_", arguments.checkpoint), lenses))
    for number in range(arguments.fields):
        folder = arguments.work / f"simulated-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        simulate.run(simulate.Config(out=str(folder), size=2048, lenses=arguments.lenses, seed=100 + number))
        truth = pd.read_parquet(folder / "truth.parquet")
        lenses = truth[truth.kind == "lens"].rename(columns={"arc_snr_vis": "arc_snr"})
        kinds["simulated fields"].append(Searched(catalog_of(folder, "", arguments.checkpoint), lenses))
    found = {kind: measure(fields) for kind, fields in kinds.items() if fields}
    for kind, numbers in found.items():
        print(f"{kind}: {numbers['lenses']} lenses among {numbers['sources']} sources")
        for share, row in numbers["top"].items():
            print(
                f"  first {float(share):5.1%}: {row['complete']:.0%} of the lenses, {row['pure']:.0%} of the rows; "
                f"by chance {float(share):.1%} and {row['chance']:.1%}; by i flux {row['by_flux']:.0%} of the lenses"
            )
        for name in ("theta_E", "arc_snr"):
            bins = ", ".join(f"{b['low']:.3g}-{b['high']:.3g}: {b['found']}/{b['lenses']}" for b in numbers[name])
            print(f"  first {AT:.0%}, by {name}: {bins}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "injection.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, arguments.out / "injection.png")


def inject_field(data: Path, folder: Path, seed: int, count: int) -> pd.DataFrame:
    """Copy the field's files with arcs around some of its galaxies; return all lenses in them, old and new."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    truth = pd.read_parquet(data / "field_truth.parquet")
    rng = np.random.default_rng(seed)
    hosts = choose_hosts(truth, rng, count)
    drawn = [draw_lens(rng) for _ in range(len(hosts))]
    places = (hosts.ra.to_numpy(), hosts.dec.to_numpy())
    for instrument in INSTRUMENTS:
        name = f"field_{'euclid_vis' if instrument.survey == 'Euclid' else f'lsst_{instrument.band}'}.fits"
        with fits.open(data / name) as hdus:
            image = hdus["IMAGE"]
            frame = Frame(WCS(image.header), image.data.shape)
            arcs = [Arc(0.0, 0.0, lens.images.shape, lens.images.flux) for lens in drawn]
            nothing = (np.zeros(0), np.zeros(0))
            light = render(frame, instrument, columns("galaxy", NO_OBJECT), arcs, nothing, places)
            added = rng.poisson(light * instrument.gain) / instrument.gain
            image.data = (image.data + added).astype(np.float32)
            hdus["VARIANCE"].data = (hdus["VARIANCE"].data + light / instrument.gain).astype(np.float32)
            hdus.writeto(folder / name)
    new = pd.DataFrame(
        {
            "ra": places[0],
            "dec": places[1],
            "theta_E": [lens.theta_e for lens in drawn],
            "arc_snr": [lens.images.snr for lens in drawn],
            "injected": True,
        }
    )
    old = truth[truth.kind == "lens"].rename(columns={"arc_snr_vis": "arc_snr"})
    return pd.concat([new, old[["ra", "dec", "theta_E", "arc_snr"]].assign(injected=False)], ignore_index=True)


def choose_hosts(truth: pd.DataFrame, rng: np.random.Generator, count: int) -> pd.DataFrame:
    """Choose bright red galaxies, as deflectors are, away from each other, from lenses and from the edge."""
    scale = 0.1  # arcsec a pixel of VIS
    galaxies = truth[(truth.kind == "galaxy") & truth.red & (truth.mag_i < 23.0)]
    edge = APART / scale
    inside = galaxies.x_vis.between(edge, 2047 - edge) & galaxies.y_vis.between(edge, 2047 - edge)
    taken = truth[truth.kind == "lens"][["x_vis", "y_vis"]].to_numpy().tolist()
    chosen = []
    for row in rng.permutation(np.flatnonzero(inside)):
        x, y = galaxies.iloc[row][["x_vis", "y_vis"]]
        if len(chosen) < count and all(np.hypot(x - a, y - b) * scale > APART for a, b in taken):
            taken.append([x, y])
            chosen.append(row)
    return galaxies.iloc[chosen]


def catalog_of(folder: Path, prefix: str, checkpoint: str | None) -> pd.DataFrame:
    """Ingest and translate the field in a folder; return its candidates by rank, without thumbnails.

    The mosaic is not looked at, so it is drawn with the fewest samples and steps; the lens score does not depend on it.
    """
    store, run = folder / "tiles.zarr", folder / "run"
    bands = tuple(str(folder / f"{prefix}lsst_{band}.fits") for band in "gri")
    code = ingest.run(ingest.Config(euclid=str(folder / f"{prefix}euclid_vis.fits"), lsst=bands, store=str(store)))
    few = {"samples": 2, "steps": 1, "score_samples": 2, "score_steps": 1}
    config = translate.Config(store=str(store), run=str(run), checkpoint=checkpoint, executor="serial", **few)
    code = code or translate.run(config)
    if code:
        raise RuntimeError(f"{folder}: exit code {code}")
    return query(str(run)).to_pandas().sort_values("rank")


def measure(fields: list[Searched]) -> dict[str, Any]:
    """Measure completeness and purity over all fields, each searched to the same share of its sources."""
    sources = sum(len(field.catalog) for field in fields)
    lenses = pd.concat([field.lenses for field in fields], ignore_index=True)
    rank = np.concatenate([best_share(field, "score") for field in fields])
    by_flux = np.concatenate([best_share(field, "flux_i") for field in fields])
    top = {}
    rows = [near(field).any(0)[np.argsort(-scores(field, "score"), kind="stable")] for field in fields]
    for share in SHARES:
        first = np.concatenate([of[: max(1, round(share * len(of)))] for of in rows])
        top[str(share)] = {
            "complete": float((rank <= share).mean()),
            "pure": float(first.mean()),
            "chance": float(np.concatenate(rows).mean()),
            "by_flux": float((by_flux <= share).mean()),
        }
    found: dict[str, Any] = {"lenses": len(lenses), "sources": sources, "fields": len(fields), "top": top}
    for name, edges in (("theta_E", (0.5, 0.8, 1.1, 1.5, 2.2)), ("arc_snr", (25.0, 35.0, 50.0, 80.0, 1000.0))):
        found[name] = []
        for low, high in itertools.pairwise(edges):
            inside = lenses[name].between(low, high, inclusive="left").to_numpy()
            found[name].append(
                {"low": low, "high": high, "lenses": int(inside.sum()), "found": int((rank[inside] <= AT).sum())}
            )
    return found


def scores(field: Searched, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column as a score, with unknown values last."""
    return np.nan_to_num(field.catalog[column].to_numpy(np.float64), nan=-np.inf)


def best_share(field: Searched, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the share of the sources to look at until each lens turns up, float [lenses]; 2 if a lens has no row."""
    place = np.empty(len(field.catalog))
    place[np.argsort(-scores(field, column), kind="stable")] = np.arange(1, len(place) + 1)
    return np.asarray(np.where(near(field), place, 2.0 * len(place)).min(1) / len(place))


def near(field: Searched) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows of the catalog lie within 1.3 Einstein radii of which lens, bool [lenses, rows]."""
    lenses = SkyCoord(field.lenses.ra.to_numpy(), field.lenses.dec.to_numpy(), unit="deg")
    rows = SkyCoord(field.catalog.ra.to_numpy(), field.catalog.dec.to_numpy(), unit="deg")
    return np.asarray(lenses[:, None].separation(rows[None]).arcsec < 1.3 * field.lenses.theta_E.to_numpy()[:, None])


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw completeness and purity against N, and the share found by Einstein radius and S/N."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for colour, (kind, numbers) in zip(("tab:blue", "tab:orange"), found.items(), strict=False):
        shares = [float(share) for share in numbers["top"]]
        left.plot(shares, [row["complete"] for row in numbers["top"].values()], "o-", c=colour, label=kind)
        left.plot(shares, [row["pure"] for row in numbers["top"].values()], "s--", c=colour)
        left.plot(shares, [row["by_flux"] for row in numbers["top"].values()], "x:", c=colour, lw=1)
        for axis, name in ((middle, "theta_E"), (right, "arc_snr")):
            filled = [b for b in numbers[name] if b["lenses"]]
            share = np.array([b["found"] / b["lenses"] for b in filled])
            error = np.sqrt(np.maximum(share * (1 - share), 0.01) / [b["lenses"] for b in filled])
            labels = [f"{b['low']:g}-{b['high']:g}" for b in numbers[name]]
            places = [k for k, b in enumerate(numbers[name]) if b["lenses"]]
            axis.errorbar(places, share, error, fmt="o-", c=colour, capsize=3)
            axis.set_xticks(range(len(labels)), labels, fontsize=8)
    left.set(xscale="log", xlabel="N, share of all sources", ylabel="share", ylim=(0, 1.02))
    left.set_title("complete (line), pure (dashed), by i flux (dotted)", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    for axis, label in ((middle, "Einstein radius [arcsec]"), (right, "S/N of the arcs in VIS")):
        axis.set(xlabel=label, ylim=(0, 1.02))
        axis.set_title(f"lenses found in the first {AT:.0%}", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
