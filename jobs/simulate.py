"""Write FITS images of a small field as the two surveys would deliver it, with its truth table.

Euclid VIS (0.1 arcsec, north up) and LSST g, r, i (0.2 arcsec, rotated and shifted), each with the HDUs IMAGE,
VARIANCE and MASK, RICE-compressed; galaxies in blends, stars, strong lenses; NaN edges, bad columns and saturated
stars. `--sky` chooses the observing conditions: PSF, noise, registration, stars, cosmic rays and trails. The same seed
gives the same objects under all of them, and the same files, byte for byte.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pydantic import Field

from surveybridge.jobs.config import JobConfig, RequestError

EXAMPLES = """\
surveybridge simulate --out sky
surveybridge simulate --out sky --size 2048 --lenses 8 --seed 7
surveybridge simulate --out sky --rotation 12 --overwrite
surveybridge simulate --out year10 --sky year10
"""

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
    sky: str = Field(
        "ideal",
        description="observing conditions: ideal, training, year10, year1, seeing-0.9, moffat-2.5, stars, ... or a "
        "TOML file",
    )
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
    from surveybridge.jobs.simulating.sky_files import sky_of

    _check(config)
    observing = sky_of(config.sky)
    try:
        from surveybridge.jobs.simulating.field import SimulatedField, noise_stream
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"simulate needs the package {missing.name}, which is not installed; pip install 'surveybridge[sim]'"
        ) from None
    import pyarrow.parquet as pq

    from surveybridge.jobs.simulating.files import to_hdus, truth_table
    from surveybridge.jobs.simulating.sky import observe

    started = time.perf_counter()
    field = SimulatedField.draw(config.size, config.rotation, config.lenses, config.seed, observing.stars)
    log.info(
        "%d galaxies, %d stars, %d lenses", *(len(each["u"]) for each in (field.galaxies, field.stars, field.lenses))
    )
    config.out.mkdir(parents=True, exist_ok=True)
    for instrument in observing.instruments:
        frame = field.frame(instrument)
        planes = observe(
            field.model(instrument, observing.registration), instrument, noise_stream(config.seed, instrument)
        )
        path = config.out / FILES[instrument.band]
        hdus = to_hdus(frame, instrument, planes, config.lenses, config.seed, observing)
        hdus.writeto(path, overwrite=True)
        log.info("%s: %d x %d pixels", path, *frame.shape[::-1])
    catalogue = field.catalogue
    truth = truth_table(catalogue, field.sky(catalogue), field.euclid, field.lsst)
    pq.write_table(truth, config.out / "truth.parquet", compression="zstd")
    log.info("%s: %d objects, %.1f s in all", config.out / "truth.parquet", len(truth), time.perf_counter() - started)
    return 0


def _check(config: Config) -> None:
    """Refuse what cannot be done, before anything is written."""
    from surveybridge.jobs.simulating.lenses import LENS_MARGIN, room_for_lenses

    if not MIN_SIZE <= config.size <= MAX_SIZE:
        raise RequestError(f"--size {config.size} pixels is outside {MIN_SIZE} to {MAX_SIZE}; choose one within")
    if abs(config.rotation) > MAX_ROTATION:
        raise RequestError(f"--rotation {config.rotation} deg exceeds {MAX_ROTATION:.0f} either way; choose less")
    if config.seed < 0:
        raise RequestError(f"--seed {config.seed} is below 0; choose 0 or more")
    room = room_for_lenses(0.05 * config.size - LENS_MARGIN)
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
