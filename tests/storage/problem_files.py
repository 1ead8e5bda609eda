"""Problems beside the default one, as their users write them, and made-up images of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surveybridge.storage.problems import ProblemTable, read_problem
from tests.storage.fits_files import gaussians, tan_wcs, write_survey_file

HSC_HST = """
name = "hsc-hst"
catalog = "hst"

[[endpoints]]
name = "hsc"
title = "HSC"
bands = ["g", "r", "i", "z", "y"]
pixel_scale = 0.168
rgb = ["i", "r", "g"]

[[endpoints]]
name = "hst"
title = "HST"
bands = ["F814W"]
pixel_scale = 0.05
"""

RUBIN_EUCLID = """
name = "rubin-euclid"
catalog = "euclid"

[[endpoints]]
name = "rubin"
bands = ["u", "g", "r", "i", "z", "y"]
pixel_scale = 0.2
unit = "uJy"

[[endpoints]]
name = "euclid"
bands = ["VIS", "Y", "J", "H"]
pixel_scale = 0.1
rgb = ["H", "Y", "VIS"]
"""

CLOUDS = """
name = "clouds"
wanted = "density"

[[endpoints]]
name = "column"
bands = ["NH"]
pixel_scale = 0
unit = "cm-2"

[[endpoints]]
name = "density"
bands = ["nH"]
pixel_scale = 0
unit = "cm-3"
"""

TEXTS = {"hsc-hst": HSC_HST, "rubin-euclid": RUBIN_EUCLID, "clouds": CLOUDS}

SKY_EYE = """
name = "sky-eye"
catalog = "eye"

[[endpoints]]
name = "sky"
bands = ["u", "w"]
pixel_scale = 0.25

[[endpoints]]
name = "eye"
bands = ["broad"]
pixel_scale = 0.08
"""
"""The least that a file must say, for tests of what is filled in and what is refused."""

SKY = np.array([[60.0, 70.0], [30.0, 100.0], [100.0, 40.0]])
"""(y, x) of sources on a grid of 140 x 150 pixels of 0.1 arcsec."""

GRID = (140, 150)


def write_problem(folder: Path, name: str) -> str:
    """The TOML file of a problem."""
    path = folder / f"{name}.toml"
    path.write_text(TEXTS[name])
    return str(path)


def problem(folder: Path, name: str) -> ProblemTable:
    return read_problem(write_problem(folder, name))


def sky_file(path: Path, shape: tuple[int, int], scale: float, flux: float, **how: Any) -> str:
    """The sources of `SKY`, each of this total flux and 0.6 arcsec wide (sigma 0.25), on a grid of another scale."""
    wcs = tan_wcs(shape, scale)
    x, y = wcs.all_world2pix(*tan_wcs(GRID, 0.1).all_pix2world(SKY[:, 1], SKY[:, 0], 0), 0)
    image = gaussians(shape, np.stack([y, x], axis=1), 0.25 / scale, flux)
    image += np.random.default_rng(0).normal(0, 0.01, shape).astype(np.float32)
    return write_survey_file(path, image, wcs, **how)


def rubin_euclid_files(folder: Path) -> dict[str, dict[str, str]]:
    """Six bands at 0.2", VIS at 0.1", and Y, J, H at 0.3", each of these on a grid of its own."""
    rubin = {
        band: sky_file(folder / f"{band}.fits", (75, 80), 0.2, 1000.0 * k, header={"BUNIT": "nJy", "FILTER": band})
        for k, band in enumerate("ugrizy", 1)
    }
    euclid = {"VIS": sky_file(folder / "vis.fits", GRID, 0.1, 500.0)}
    for k, band in enumerate("YJH", 1):
        euclid[band] = sky_file(folder / f"nisp_{band}.fits", (60 + k, 64), 0.3, 700.0 * k)
    return {"rubin": rubin, "euclid": euclid}


def cloud(seed: int, shape: tuple[int, int] = (128, 160)) -> NDArray[np.float64]:
    """A smooth positive field around 1e21."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    waves = sum(rng.normal() * np.sin(rng.normal() * y / 20 + rng.normal() * x / 20 + k) for k in range(4))
    return np.asarray(1e21 * np.exp(waves))
