"""Write FITS images of a small field as the two surveys would deliver it, with its truth table.

Euclid VIS (0.1 arcsec, north up) and LSST g, r, i (0.2 arcsec, rotated and shifted), each with the HDUs IMAGE,
VARIANCE and MASK, RICE-compressed; galaxies in blends, stars, strong lenses; NaN edges, bad columns and saturated
stars. The same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """\
surveybridge simulate --out sky
surveybridge simulate --out sky --size 2048 --lenses 8 --seed 7
surveybridge simulate --out sky --rotation 12 --overwrite
"""

CENTRE = (61.241, -48.423)
"""ra, dec of the field, degrees: where the Euclid Deep Field South is."""
OFFSET = (3.7, -2.9)
"""Offset of the LSST grid's centre towards east and north, arcsec."""
MIN_SIZE, MAX_SIZE, MAX_ROTATION = 300, 8192, 45.0
FILES = {"VIS": "euclid_vis.fits", "g": "lsst_g.fits", "r": "lsst_r.fits", "i": "lsst_i.fits"}

log = logging.getLogger(__name__)


class Config(JobConfig):
    """Settings of `surveybridge simulate`."""

    writes = ("out",)

    out: Path = Field(description="folder for euclid_vis.fits, lsst_{g,r,i}.fits and truth.parquet")
    size: int = Field(1024, description="side of the Euclid image in pixels of 0.1 arcsec, 300 to 8192")
    lenses: int = Field(4, description="number of strong lenses with visible arcs, at least 12 arcsec apart")
    seed: int = Field(1, description="seed of everything that is drawn")
    rotation: float = Field(-4.5, description="rotation of the LSST grid on the sky, degrees")
    overwrite: bool = Field(False, description="write into a folder that already holds these files")


def run(config: Config) -> int:
    """Draw the sky, observe it with both surveys, write the files.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    RequestError
        If the request is impossible; nothing has been written then.
    """
    _check(config)
    try:
        from surveybridge.jobs.simulating import sky as simulated_sky
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"simulate needs the package {missing.name}, which is not installed; pip install 'surveybridge[sim]'"
        ) from None
    import numpy as np
    import pyarrow.parquet as pq

    from surveybridge.jobs.simulating.files import half_of, to_hdus, truth_table
    from surveybridge.jobs.simulating.lenses import draw_lenses
    from surveybridge.jobs.simulating.population import concatenate, draw_galaxies, draw_stars, take

    started = time.perf_counter()
    euclid = simulated_sky.euclid_frame(CENTRE, config.size)
    lsst = simulated_sky.lsst_frame(CENTRE, config.size, config.rotation, OFFSET)
    half = 0.05 * config.size
    reach = half_of(lsst) + max(map(abs, OFFSET)) + 4.0

    lenses, arcs = draw_lenses(_stream(config.seed, 0), config.lenses, half - _LENS_MARGIN)
    places = np.stack([lenses["u"], lenses["v"]], axis=-1)
    galaxies = draw_galaxies(_stream(config.seed, 1), reach)
    for u, v in places:  # no bright galaxy on top of a lens: the deflector is one already
        near = np.hypot(galaxies["u"] - u, galaxies["v"] - v) < 2.5
        galaxies = take(galaxies, ~(near & (galaxies["mag_i"] < 23.0)))
    stars = draw_stars(_stream(config.seed, 2), reach, 0.9 * half, places)
    catalogue = concatenate(galaxies, stars, lenses)
    sky = simulated_sky.sky_positions(euclid, catalogue["u"], catalogue["v"])
    arcs_sky = simulated_sky.sky_positions(euclid, lenses["u"], lenses["v"])
    log.info("%d galaxies, %d stars, %d lenses", len(galaxies["u"]), len(stars["u"]), len(arcs))

    config.out.mkdir(parents=True, exist_ok=True)
    for number, instrument in enumerate(simulated_sky.INSTRUMENTS):
        frame = euclid if instrument.survey == "Euclid" else lsst
        model = simulated_sky.render(frame, instrument, catalogue, arcs, sky, arcs_sky)
        planes = simulated_sky.observe(model, instrument, _stream(config.seed, 3 + number))
        path = config.out / FILES[instrument.band]
        to_hdus(frame, instrument, planes, config.lenses, config.seed).writeto(path, overwrite=True)
        log.info("%s: %d x %d pixels", path, *frame.shape[::-1])
    pq.write_table(truth_table(catalogue, sky, euclid, lsst), config.out / "truth.parquet", compression="zstd")
    log.info("%s: %d objects, %.1f s in all", config.out / "truth.parquet", len(sky[0]), time.perf_counter() - started)
    return 0


_LENS_MARGIN = 10.0
"""Lenses stay this far inside the Euclid frame, arcsec: clear of its edge and of the part without data."""


def _check(config: Config) -> None:
    """Refuse what cannot be done, before anything is written."""
    from surveybridge.jobs.simulating.lenses import room_for_lenses

    if not MIN_SIZE <= config.size <= MAX_SIZE:
        raise RequestError(f"--size {config.size} pixels is outside {MIN_SIZE} to {MAX_SIZE}; choose one within")
    if abs(config.rotation) > MAX_ROTATION:
        raise RequestError(f"--rotation {config.rotation} deg exceeds {MAX_ROTATION:.0f} either way; choose less")
    if config.seed < 0:
        raise RequestError(f"--seed {config.seed} is below 0; choose 0 or more")
    room = room_for_lenses(0.05 * config.size - _LENS_MARGIN)
    if not 0 <= config.lenses <= room:
        raise RequestError(
            f"--lenses {config.lenses} is outside 0 to {room}, what {config.size} x {config.size} pixels hold "
            "12 arcsec apart; ask for fewer or enlarge --size"
        )
    if config.out.exists() and not config.out.is_dir():
        raise RequestError(f"--out {config.out} is a file, but must be a folder; choose another path")
    there = sorted(p.name for p in config.out.iterdir()) if config.out.is_dir() else []
    if there and not config.overwrite:
        raise RequestError(
            f"--out {config.out} holds {len(there)} entries ({there[0]}, ...), 0 expected; choose an empty folder or "
            "give --overwrite"
        )


def _stream(seed: int, number: int) -> np.random.Generator:
    """An independent generator for each thing that is drawn, so that more lenses leave the galaxies as they were."""
    import numpy as np

    return np.random.default_rng([seed, number])
