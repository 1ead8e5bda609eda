"""Acceptance on the shared field: flux and position of isolated objects survive ingest in every band."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from surveybridge.storage.images import MASK_PLANES
from surveybridge.storage.ingest import ingest_field
from surveybridge.storage.photometry import flux_from_magnitude
from surveybridge.storage.problems import default_problem
from surveybridge.storage.tiles import TileStore
from tests.storage.fits_files import read_mer, read_rubin

sep = pytest.importorskip("sep")
galsim = pytest.importorskip("galsim")

pytestmark = pytest.mark.long  # where the shared field has been read already

RADIUS = 2.0
"""Aperture radius, arcsec."""

BANDS = ("g", "r", "i", "VIS")


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "field"


@pytest.fixture(scope="module")
def paths(shared_field_files):
    return shared_field_files


@pytest.fixture(scope="module")
def field(shared_field):
    return shared_field


@pytest.fixture(scope="module")
def native(paths):
    return {"lsst": read_rubin(paths["lsst"]), "euclid": read_mer(paths["euclid"]["VIS"])}


@pytest.fixture(scope="module")
def objects(folder, field, native):
    """Isolated stars and galaxies, one row per object and band, with their aperture fluxes and windowed centroids.

    Isolated: nothing masked within 3.5", neighbours within 5" together below 0.4% of the flux, aperture S/N > 60.
    """
    truth = pd.read_parquet(folder / "field_truth.parquet")
    rows = []
    for band in BANDS:
        survey = "euclid" if band == "VIS" else "lsst"
        k = native[survey].bands.index(band)
        flux = flux_from_magnitude(truth[f"mag_{band}"])
        lensed = truth[f"lensed_mag_{band}"].to_numpy()
        total = flux + np.where(np.isfinite(lensed), flux_from_magnitude(lensed), 0.0)
        pixels = np.pi * (RADIUS / native[survey].pixel_scale) ** 2
        bright = flux > 60 * np.sqrt(pixels * np.nanmedian(native[survey].variance[k]))
        for n in np.flatnonzero(bright & (truth.kind != "lens")):
            ra, dec = truth.ra[n], truth.dec[n]
            away = 3600 * np.hypot((truth.ra - ra) * np.cos(np.radians(dec)), truth.dec - dec)
            if total[(away > 0) & (away < 5)].sum() > 0.004 * flux[n]:
                continue
            grids = {"mosaic": field.images[survey], "native": native[survey]}
            row = {
                "band": band,
                "kind": truth.kind[n],
                "flux": flux[n],
                "fraction": aperture_fraction(truth.loc[n], grids["native"].psf_fwhm[k]),
            }
            for name, image in grids.items():
                x, y = (float(v) for v in image.wcs.all_world2pix(ra, dec, 0))
                row |= {f"{name}_{key}": value for key, value in measure(image, k, x, y).items()}
            rows.append(row)
    table = pd.DataFrame(rows)
    return table[(table.mosaic_masked == 0) & (table.native_masked == 0)]


def aperture_fraction(row, psf_fwhm):
    """Share of the light of a truth row inside the aperture, from a noiseless GalSim image."""
    profile = galsim.Gaussian(fwhm=psf_fwhm)
    if row.kind == "galaxy":
        sersic = galsim.Sersic(n=row.sersic_n, half_light_radius=row.re)
        profile = galsim.Convolve(sersic.shear(q=row.q, beta=row.pa_deg * galsim.degrees), profile)
    stamp = profile.drawImage(nx=121, ny=121, scale=0.1).array.astype(np.float32)
    return float(sep.sum_circle(stamp, [60], [60], RADIUS / 0.1, subpix=0)[0][0])


def measure(image, k, x, y):
    """Aperture flux and its sigma, distance of the windowed centroid from (x, y) in arcsec, masked pixels around."""
    scale = image.pixel_scale
    reach = round(3.5 / scale)
    box = np.s_[round(y) - reach : round(y) + reach + 1, round(x) - reach : round(x) + reach + 1]
    inside = min(x, y) > reach + 1 and max(x, y) < min(image.mask.shape[1:]) - reach - 1
    if not inside or image.mask[k][box].any():
        return {"masked": 1, "flux": np.nan, "sigma": np.nan, "offset": np.nan}
    flux = np.ascontiguousarray(image.flux[k][box])
    x, y = x - (round(x) - reach), y - (round(y) - reach)
    value = sep.sum_circle(flux, [x], [y], RADIUS / scale, subpix=0)[0][0]
    variance = sep.sum_circle(np.ascontiguousarray(image.variance[k][box]), [x], [y], RADIUS / scale, subpix=0)[0][0]
    wx, wy, _ = sep.winpos(flux, [x], [y], [image.psf_fwhm[k] / 2.3548 / scale])
    offset = scale * np.hypot(wx[0] - x, wy[0] - y)
    return {"masked": 0, "flux": value, "sigma": np.sqrt(variance), "offset": offset}


@pytest.mark.parametrize("band", BANDS)
def test_flux_of_isolated_objects_is_that_of_the_input_image(objects, band):
    rows = objects[objects.band == band]
    assert len(rows) >= 4
    ratio = rows.mosaic_flux / rows.native_flux
    assert np.abs(ratio - 1).max() < 0.002


@pytest.mark.parametrize("band", BANDS)
def test_flux_of_isolated_objects_is_that_of_the_truth_within_1_percent(objects, band):
    rows = objects[objects.band == band]
    ratio = (rows.mosaic_flux / (rows.flux * rows.fraction)).to_numpy()
    sigma = (rows.native_sigma / rows.flux).to_numpy()  # of the native image, where pixels are independent
    # each object within 1%, its own photon noise (3 sigma) apart
    assert (np.abs(ratio - 1) < 0.01 + 3 * sigma).all()
    weight = 1 / (sigma**2 + 0.003**2)
    assert abs((ratio * weight).sum() / weight.sum() - 1) < 0.01
    assert abs(np.median(ratio) - 1) < 0.01


@pytest.mark.parametrize("band", BANDS)
def test_position_of_isolated_objects_is_that_of_the_truth_within_20_mas(objects, band):
    rows = objects[objects.band == band]
    # the centroid is that of the input image for all of them, photon noise and neighbours included ...
    assert np.abs(rows.mosaic_offset - rows.native_offset).max() < 0.001
    # ... and that of the truth where photon noise is far below 20 mas
    bright = rows[rows.native_flux > 80 * rows.native_sigma]
    assert len(bright) >= 4
    assert bright.mosaic_offset.max() < 0.02


def test_masks_and_noise_of_the_field_are_carried(field, native):
    for survey, image in field.images.items():
        for plane in ("BAD", "SAT", "NO_DATA"):
            assert (native[survey].mask & MASK_PLANES[plane]).any()
            assert (image.mask & MASK_PLANES[plane]).any()
        assert 0.9 < image.valid.mean() < 1
        for k in range(len(image.bands)):
            good = image.flux[k][image.valid[k]]
            assert np.isfinite(good).all()
            measured = 1.4826 * np.median(np.abs(good - np.median(good)))
            # sources widen the distribution by some per cent
            assert measured == pytest.approx(np.sqrt(np.median(image.variance[k][image.valid[k]])), rel=0.08)
    assert field.images["lsst"].noise_correlation == pytest.approx((0.686,) * 3, abs=0.01)
    assert max(field.images["euclid"].noise_correlation) < 0.02
    assert field.images["lsst"].psf_fwhm == (0.77, 0.73, 0.71)
    assert field.images["lsst"].provenance["domain"] == "in"


def test_the_field_becomes_a_tile_store(paths, field, tmp_path):
    rows = ingest_field(default_problem(), paths, "euclid", str(tmp_path / "store"))
    assert [row["tile_id"] for row in rows] == [f"t{n:04d}" for n in range(16)]
    assert all(list(row["surveys"]) == ["lsst", "euclid"] for row in rows)
    store = TileStore.open(str(tmp_path / "store"))
    tile = store.read_tile("t0005")
    assert tile.shape == (640, 640) and tile.core == (64, 576, 64, 576) and tile.origin == (448, 448)
    np.testing.assert_array_equal(tile.images["lsst"].flux, field.images["lsst"].flux[:, 448:1088, 448:1088])
