"""Which sources are taken for stars, and which are scored: stars, galaxies and lenses under PSFs with wings.

    python -m benchmarks.stars --out benchmarks/results/stars.json

Each field has the simulator's galaxies, compact galaxies (half-light radii of 0.05" to 0.12"), early-type deflectors
with arcs around them, and ten stars of magnitude 16 to 24.5 a square arcminute, drawn by GalSim in VIS with its noise.
A PSF is told by its FWHM, and by its wings or not. Printed by PSF: the share of stars by magnitude that have no score,
the share of detections beside bright stars that are nothing and have none, and the shares of galaxies and lenses that
have one.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import galsim
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from surveybridge.jobs.simulating.population import draw_galaxies, nanojansky
from surveybridge.jobs.simulating.sky import euclid_frame
from surveybridge.jobs.translating.sources import conditions, find_sources, may_be_lenses
from surveybridge.storage.images import SurveyImage
from surveybridge.storage.schema import SCHEMA_VERSION
from surveybridge.storage.tiles import Tile

SIGMA, GAIN, SCALE = 2.022, 12.1, 0.1
"""Noise of a pixel in nJy, electrons per nJy, and arcsec a pixel: those of VIS."""
EDGE = 80
"""Pixels at the border in which there is nothing."""
STAR_BINS = ((16.0, 18.0), (18.0, 20.0), (20.0, 22.0), (22.0, 24.0), (24.0, 24.5))
COMPACT_BINS = ((0.05, 0.07), (0.07, 0.09), (0.09, 0.12))
NEAR_ARCSEC = 0.3
"""A detection within so much of an object is it."""
_GS = galsim.GSParams(maximum_fft_size=16384, folding_threshold=1e-3)


class Case(NamedTuple):
    """A PSF, and what is told of it."""

    name: str
    psf: galsim.GSObject
    fwhm: float
    wing: float = math.nan


def cases() -> list[Case]:
    """The PSFs."""
    optical = galsim.Convolve(
        galsim.OpticalPSF(lam=750, diam=1.2, obscuration=0.3, nstruts=3, strut_thick=0.05), galsim.Gaussian(fwhm=0.1)
    )
    return [
        Case("Gaussian, wings told", galsim.Gaussian(fwhm=0.16), 0.16, 0.0),
        Case("Moffat 3.5, wings told", galsim.Moffat(beta=3.5, fwhm=0.16), 0.16, 1 / 3.5),
        Case("Moffat 2.5, wings told", galsim.Moffat(beta=2.5, fwhm=0.16), 0.16, 0.4),
        Case("Moffat 2.5, wings not told", galsim.Moffat(beta=2.5, fwhm=0.16), 0.16),
        Case('Moffat 3.5 of 0.20", told as 0.18"', galsim.Moffat(beta=3.5, fwhm=0.20), 0.18),
        Case("optical with spikes, wings not told", optical, optical.calculateFWHM(scale=0.005, size=512)),
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="side of a field, pixels")
    parser.add_argument("--fields", type=int, default=2, help="fields by PSF")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    found = {case.name: measure(case, arguments.size, arguments.fields, arguments.seed) for case in cases()}
    for name, shares in found.items():
        print(name)
        for what, (share, count) in shares.items():
            print(f"  {what:<44} {share:7.1%} of {count}")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(case: Case, size: int, fields: int, seed: int) -> dict[str, tuple[float, int]]:
    """Shares, each with the number that it is of."""
    rows: list[dict[str, Any]] = []
    pieces = scored_pieces = 0
    for field in range(fields):
        image, truth = draw(case, size, seed + field)
        tile = Tile("field", {"euclid": image}, (0, size, 0, size), (0, 0), "stars")
        found = find_sources(image, tile.core, SCHEMA_VERSION)
        flags, masked = conditions(tile, found, 1.0)
        scored = may_be_lenses(found, masked, flags)
        kinds = np.array(found.columns["kind"], dtype=str)
        places = np.stack([found.sources.x, found.sources.y], 1)
        distance, nearest = cKDTree(places).query(np.array([[one["x"], one["y"]] for one in truth]))
        for one, apart, index in zip(truth, distance * SCALE, nearest, strict=True):
            if apart <= NEAR_ARCSEC:
                rows.append(one | {"scored": bool(scored[index]), "star": kinds[index] == "star"})
        real, _ = cKDTree(np.array([[one["x"], one["y"]] for one in truth])).query(places)
        bright = np.array([[one["x"], one["y"]] for one in truth if one["kind"] == "star" and one["mag"] < 20])
        beside, _ = cKDTree(bright).query(places)
        piece = (real * SCALE > 2 * NEAR_ARCSEC) & (beside * SCALE < 10)
        pieces += int(piece.sum())
        scored_pieces += int((piece & scored).sum())

    def share(kind: str, key: str, low: float, high: float, *, scored: bool = True) -> tuple[float, int]:
        some = [one["scored"] for one in rows if one["kind"] == kind and low <= one[key] < high]
        return (float(np.mean([one == scored for one in some])) if some else math.nan), len(some)

    shares = {
        f"stars {low:g} to {high:g} without a score": share("star", "mag", low, high, scored=False)
        for low, high in STAR_BINS
    }
    shares['spurious pieces within 10" of stars < 20, unscored'] = (1 - scored_pieces / max(pieces, 1), pieces)
    shares["galaxies < 24.5 with a score"] = share("galaxy", "mag", 0, 24.5)
    shares["galaxies 24.5 to 26 with a score"] = share("galaxy", "mag", 24.5, 26)
    shares |= {
        f'compact galaxies, {low:g}" to {high:g}", with a score': share("compact", "re", low, high)
        for low, high in COMPACT_BINS
    }
    return shares | {"deflectors of lenses with a score": share("lens", "mag", 0, 30)}


def draw(case: Case, size: int, seed: int) -> tuple[SurveyImage, list[dict[str, Any]]]:
    """A field as VIS sees it, and the objects in it: kind, x, y, mag, re."""
    rng = np.random.default_rng(seed)
    area = (size * SCALE / 60) ** 2
    truth: list[dict[str, Any]] = []
    sky = np.zeros((size, size))

    def place() -> tuple[float, float]:
        x, y = rng.uniform(EDGE, size - EDGE, 2)
        return float(x), float(y)

    galaxies = draw_galaxies(rng, size * SCALE / 2)
    for mag, n, re, q, angle in zip(
        *(galaxies[name] for name in ("mag_VIS", "sersic_n", "re", "q", "angle")), strict=True
    ):
        if mag < 26:
            x, y = place()
            add(sky, case, galaxy(n, re, q, angle), nanojansky(mag), x, y)
            truth.append({"kind": "galaxy", "x": x, "y": y, "mag": float(mag), "re": float(re)})
    for _ in range(round(8 * area)):
        (x, y), n, re, mag = place(), rng.choice([1.0, 2.5, 4.0]), rng.uniform(0.05, 0.12), rng.uniform(20, 24.5)
        add(sky, case, galaxy(n, re, rng.uniform(0.5, 1), rng.uniform(0, np.pi)), nanojansky(mag), x, y)
        truth.append({"kind": "compact", "x": x, "y": y, "mag": float(mag), "re": float(re)})
    for _ in range(round(4 * area)):
        (x, y), mag, re, radius = place(), rng.uniform(18.5, 22), rng.uniform(0.3, 1.0), rng.uniform(0.6, 1.8) / SCALE
        add(sky, case, galaxy(4.0, re, rng.uniform(0.6, 1), rng.uniform(0, np.pi)), nanojansky(mag), x, y)
        start, along = rng.uniform(0, 2 * np.pi), np.linspace(0, rng.uniform(0.6, 2.0), 7)
        for angle in start + along:
            at = x + radius * np.cos(angle), y + radius * np.sin(angle)
            truth.append({"kind": "arc", "x": at[0], "y": at[1], "mag": 25.5, "re": 0.12})
            add(sky, case, galaxy(1.0, 0.12, 1.0, 0.0), nanojansky(25.5), *at)
        truth.append({"kind": "lens", "x": x, "y": y, "mag": float(mag), "re": float(re)})
    for _ in range(round(10 * area)):
        (x, y), mag = place(), rng.uniform(16, 24.5)
        add(sky, case, None, nanojansky(mag), x, y)
        truth.append({"kind": "star", "x": x, "y": y, "mag": float(mag), "re": 0.0})
    variance = SIGMA**2 + np.maximum(sky, 0) / GAIN
    flux = sky + np.sqrt(variance) * rng.normal(size=sky.shape)
    frame = euclid_frame((53.0, -28.0), size)
    planes = flux[None].astype(np.float32), (SIGMA**2 + np.maximum(flux, 0) / GAIN)[None].astype(np.float32)
    image = SurveyImage(
        "euclid",
        ("VIS",),
        *planes,
        np.zeros((1, size, size), np.uint8),
        frame.wcs.to_header_string(),
        SCALE,
        (case.fwhm,),
        31.4,
        (0.0,),
        psf_wing=(case.wing,),
    )
    return image, truth


def galaxy(index: float, half_light: float, axis_ratio: float, angle: float) -> galsim.GSObject:
    """A Sersic profile of unit flux."""
    profile = galsim.Sersic(
        n=float(index), half_light_radius=float(half_light), trunc=8 * float(half_light), gsparams=_GS
    )
    return profile.shear(q=float(axis_ratio), beta=float(angle) * galsim.radians)


def add(sky: NDArray[np.float64], case: Case, profile: galsim.GSObject | None, flux: float, x: float, y: float) -> None:
    """Draw a profile, or a point source, convolved with the PSF and the pixel."""
    whole = case.psf if profile is None else galsim.Convolve(profile, case.psf, gsparams=_GS)
    column, line = round(x), round(y)
    half = 300 if profile is None and flux > nanojansky(19.0) else 60
    stamp = whole.withFlux(float(flux)).drawImage(
        nx=2 * half + 1, ny=2 * half + 1, scale=SCALE, offset=(x - column, y - line), dtype=float
    )
    y0, y1, x0, x1 = max(line - half, 0), line + half + 1, max(column - half, 0), column + half + 1
    part = sky[y0:y1, x0:x1]
    top, left = y0 - (line - half), x0 - (column - half)
    part += stamp.array[top : top + part.shape[0], left : left + part.shape[1]]


if __name__ == "__main__":
    main()
