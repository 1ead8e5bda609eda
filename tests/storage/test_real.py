"""Real Euclid Q1 cutouts: formats, units and noise; never a metric."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.storage.ingest import ingest_field
from surveybridge.storage.photometry import sky_statistics
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import TileStore
from tests.storage.fits_files import read_mer

HSC_CFIS = "EUCLJ174517.55+655612.5.fits"
DES = "102018665_NEG570040238507752998.fits"
STANDS_IN = {
    HSC_CFIS: ("HSC_G_FLUX", "MEGACAM_R_FLUX", "HSC_Z_FLUX"),
    DES: ("DES_G_BGSUB", "DES_R_BGSUB", "DES_I_BGSUB"),
}


@pytest.fixture(scope="module", params=[HSC_CFIS, DES])
def cutout(request, shared_data, tmp_path_factory):
    """Path of a cutout, and its only tile after ingest."""
    path = str(shared_data / "real" / request.param)
    url = str(tmp_path_factory.mktemp("real") / "store")
    lsst = {b: f"{path}[{e}]" for b, e in zip("gri", STANDS_IN[request.param], strict=True)}
    rows = ingest_field(default_problem(), {"lsst": lsst, "euclid": {"VIS": path}}, "euclid", url)
    assert len(rows) == 1
    return path, TileStore.open(url).read_tile("t0000")


def extension(path, name):
    with fits.open(path) as hdus:
        return hdus[name].data.astype(float), hdus[name].header.get("MAGZERO")


def test_every_band_has_its_own_magzero(cutout):
    path, tile = cutout
    vis = next(name for name in ("VIS_FLUX", "VIS_BGSUB") if name in tile.images["euclid"].provenance["VIS.file"])
    names = {"VIS": vis} | dict(zip("gri", STANDS_IN[path.rsplit("/", 1)[1]], strict=True))
    assert tile.images["euclid"].zero_point == 24.6 and tile.images["lsst"].zero_point == 30.0
    for image in tile.images.values():
        for band, flux in zip(image.bands, image.flux, strict=True):
            counts, zero_point = extension(path, names[band])
            assert zero_point == (24.6 if band == "VIS" else 30.0)
            np.testing.assert_allclose(flux, counts * 10 ** ((31.4 - zero_point) / 2.5), rtol=1e-5, atol=1e-6)


def test_bands_are_said_to_be_stand_ins(cutout):
    _, tile = cutout
    for image in tile.images.values():
        assert image.provenance["domain"].startswith("out: lsst bands are ")


def test_ground_noise_is_that_of_the_image_not_of_the_rms_map(cutout):
    path, tile = cutout
    for k, (band, name) in enumerate(zip("gri", STANDS_IN[path.rsplit("/", 1)[1]], strict=True)):
        sigma = float(np.sqrt(np.median(tile.images["lsst"].variance[k])))
        rms, _ = extension(path, name.rsplit("_", 1)[0] + "_RMS")
        assert 1.5 < np.median(rms) * 10**0.56 / sigma < 6
        assert "not used" in tile.images["lsst"].provenance[f"{band}.noise"]
        assert 0.6 < tile.images["lsst"].noise_correlation[k] < 0.95


def test_vis_variance_is_that_of_the_rms_map_and_its_bad_pixels_are_masked(cutout):
    path, tile = cutout
    rms, _ = extension(path, "VIS_RMS")
    np.testing.assert_array_equal(tile.images["euclid"].mask[0] != 0, rms > 1e15)
    sky = sky_statistics(tile.images["euclid"].flux[0], tile.images["euclid"].valid[0])
    # measured: the RMS map is about 1.5 times the sigma of these pixels; the file does not say why
    assert 1.3 < np.sqrt(np.median(tile.images["euclid"].variance[0])) / sky.sigma < 1.8
    assert 0.1 < tile.images["euclid"].noise_correlation[0] < 0.4
    assert 0.15 < tile.images["euclid"].psf_fwhm[0] < 0.25


def test_larger_cutouts_are_read(shared_data):
    for path in sorted((shared_data / "real").glob("*_300px.fits")):
        image = read_mer(str(path))
        assert image.flux.shape == (1, 300, 300)
        assert image.zero_point == 24.6
        assert image.valid.mean() > 0.98
