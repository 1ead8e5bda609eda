"""From headers of every legal kind to a catalog and a FITS file: whatever is written is where it is on the sky."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from surveybridge.__main__ import main
from surveybridge.storage.query import EVERY_ROW, query
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.storage.fits_files import gaussians, write_survey_file
from tests.storage.wcs_headers import true_sky, unusual

VIS, LSST = (128, 120), (100, 104)
PLACES = np.array([[30.3, 35.2], [60.4, 84.9], [84.8, 40.6], [98.1, 86.3]])
"""(y, x) of the sources on Euclid's grid, apart from each other and from the edges."""

KINDS = {
    "declination first": ((140.0, 33.0), {"swap": True}, {"swap": True}),
    "sip of euclid": ((359.9999, 5.0), {"sip": -1e-6}, {}),
    "fk5 against icrs": ((0.0002, -61.0), {"frame": "FK5"}, {"sip": 2e-6}),
    "galactic against fk5": ((83.0, -5.0), {"frame": "GALACTIC", "swap": True}, {"frame": "FK5"}),
    "pole": ((75.0, 89.9995), {"frame": "FK5"}, {"sip": -2e-6, "swap": True}),
}
"""Place, and what is unusual about Euclid's and LSST's headers."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("places"))


def write_images(folder, place, of_euclid, of_lsst):
    """Files of both surveys with the same sources, and Euclid's WCS with its frame."""
    header, wcs, frame = unusual(VIS, 0.1, place, **of_euclid)
    true = true_sky(wcs, frame, *PLACES.T)
    noise = np.random.default_rng(2).normal(0, 1e-3, VIS)
    vis = gaussians(VIS, PLACES, 1.6) + noise
    files = [write_survey_file(folder / "vis.fits", vis, None, variance=np.full(VIS, 1e-6), header=both(header))]
    header, there, named = unusual(LSST, 0.2, place, rotation=20.0, **of_lsst)
    x, y = (np.array(v) for v in there.all_world2pix(*lon_lat(true.transform_to(named)), 0))
    for band in "gri":
        image = gaussians(LSST, np.stack([y, x], axis=1), 1.7) + np.random.default_rng(3).normal(0, 1e-3, LSST)
        files.append(write_survey_file(folder / f"{band}.fits", image, None, header=both(header)))
    return files, wcs, frame, true


def both(header):
    return {"BUNIT": "nJy", "PSFFWHM": 0.4, **dict(header)}


def lon_lat(places):
    return places.spherical.lon.deg, places.spherical.lat.deg


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_written_is_in_its_place(tmp_path, checkpoint, kind):
    files, wcs, frame, true = write_images(tmp_path, *KINDS[kind])
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    tiling = ["--tile-size", "64", "--halo", "24"]
    assert main(["ingest", "--euclid", files[0], "--lsst", *files[1:], "--store", store, *tiling]) == 0
    stored = TileStore.open(store)
    seen = 0
    for tile_id in stored.manifest()["tile_id"].to_pylist():
        tile = stored.read_tile(tile_id)
        for survey, limit in (("euclid", 1e-3), ("lsst", 5e-3)):
            image = tile.images[survey]
            for v, u in zip(*places_on(image.wcs, true), strict=True):
                rows, columns = (np.arange(round(p) - 12, round(p) + 13) for p in (v, u))
                if min(rows[0], columns[0]) < 0 or rows[-1] >= tile.shape[0] or columns[-1] >= tile.shape[1]:
                    continue
                seen += 1
                flux = image.flux[0][np.ix_(rows, columns)].astype(float)
                off = (flux.sum(axis=1) @ rows / flux.sum() - v, flux.sum(axis=0) @ columns / flux.sum() - u)
                assert np.hypot(*off) < limit, (survey, tile_id)
    assert seen >= 8
    few = ["--steps", "1", "--score-samples", "2", "--score-steps", "1", "--samples", "2", "--executor", "serial"]
    assert main(["translate", "--store", store, "--checkpoint", checkpoint, "--run", run, *few]) == 0
    check_candidates(run, wcs, frame, true)
    assert main(["export", "--run", run, "--out", str(tmp_path / "mosaic.fits")]) == 0
    with fits.open(tmp_path / "mosaic.fits") as hdus:
        header, shape = hdus["MEAN_VIS"].header, hdus["MEAN_VIS"].shape
    assert shape == VIS and header["CTYPE1"].startswith("RA---TAN") and header["RADESYS"] == "ICRS"
    y, x = (v.ravel().astype(float) for v in np.mgrid[0 : VIS[0] : 9, 0 : VIS[1] : 9])
    written = SkyCoord(*WCS(header).all_pix2world(x, y, 0), unit="deg")
    assert written.separation(true_sky(wcs, frame, y, x)).arcsec.max() < 1e-5


def places_on(wcs, true):
    """Pixels (y, x) of the sources on a tile; of those that SIP cannot place there, NaN is left out."""
    x, y = wcs.all_world2pix(true.ra.deg, true.dec.deg, 0, quiet=True)
    return np.array(y), np.array(x)


def check_candidates(run, wcs, frame, true):
    found = query(run, listing=EVERY_ROW)
    assert found.num_rows >= len(PLACES)
    x, y, ra, dec = (found[name].to_numpy() for name in ("x", "y", "ra", "dec"))
    assert ((ra >= 0) & (ra < 360)).all()
    there = SkyCoord(ra, dec, unit="deg")
    assert there.separation(true_sky(wcs, frame, y, x)).arcsec.max() < 1e-5
    index, apart, _ = true.match_to_catalog_sky(there)
    assert len(set(index)) == len(PLACES) and apart.arcsec.max() < 5e-3
    for name, place in zip(found["object_id"].to_pylist(), there, strict=True):
        assert abs(int(name[4:6]) - place.ra.hour) % 23 <= 1
