"""Observing conditions of a simulated sky: files show the PSF, noise, registration and defects that they state."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import galsim
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.simulate import FILES, Config, run
from surveybridge.jobs.simulating.noise import correlated
from surveybridge.jobs.simulating.observing import INSTRUMENTS, Marks, Registration, StarCounts
from surveybridge.jobs.simulating.point_spread import draw_star, profile_of
from surveybridge.jobs.simulating.population import draw_stars
from surveybridge.jobs.simulating.shipped_skies import shipped
from surveybridge.jobs.simulating.sky import COSMIC_RAY, displaced, lsst_frame, observe
from surveybridge.jobs.simulating.sky_files import sky_of
from surveybridge.storage.field_images import read_field
from surveybridge.storage.problems import default_problem

pytestmark = pytest.mark.long

G_BAND, R_BAND, I_BAND, VIS = INSTRUMENTS


def star(instrument, flux=1.0, half=200, at=(0.23, -0.41)):
    """Image [2 half + 1, 2 half + 1] of a star near its middle."""
    image = np.zeros((2 * half + 1, 2 * half + 1))
    jacobian = galsim.JacobianWCS(0, instrument.pixel_scale, -instrument.pixel_scale, 0)
    draw_star(image, half + at[0], half + at[1], flux, instrument, jacobian)
    return image


def within(image, radius, half=200, at=(0.23, -0.41)):
    """Share of the light within a radius, pixels, on a grid of 5 x 5 points a pixel."""
    y, x = np.mgrid[: 5 * len(image), : 5 * len(image)] / 5 - 0.4
    inside = np.hypot(x - half - at[0], y - half - at[1]) < radius
    weight = inside.reshape(len(image), 5, len(image), 5).mean((1, 3))
    return float((image * weight).sum())


@pytest.mark.parametrize("fwhm", [0.16, 0.45, 1.3])
@pytest.mark.parametrize(("kind", "beta"), [("gaussian", math.nan), ("moffat", 2.2), ("kolmogorov", 0), ("optical", 0)])
def test_the_psf_has_the_stated_width(kind, beta, fwhm):
    psf = profile_of(replace(VIS, psf_kind=kind, psf_beta=beta, psf_fwhm=fwhm))
    assert psf.flux == pytest.approx(1, abs=1e-3)
    assert psf.calculateFWHM(scale=fwhm / 20, size=128) == pytest.approx(fwhm, rel=0.01)


def test_wings_of_a_star_hold_what_its_moffat_profile_does():
    beta, fwhm = 2.8, 0.9
    faint = star(replace(R_BAND, psf_kind="moffat", psf_beta=beta, psf_fwhm=fwhm), flux=1e6) / 1e6
    scale_radius = fwhm / 2 / math.sqrt(2 ** (1 / beta) - 1)
    for radius in (2.0, 4.0, 8.0):
        # of the profile without the pixel, which does not matter so far out
        expected = 1 - (1 + (radius / scale_radius) ** 2) ** (1 - beta)
        assert within(faint, radius / 0.2) == pytest.approx(expected, abs=2e-3)


def test_an_optical_star_has_rings_spikes_and_all_of_its_light():
    image = star(replace(VIS, psf_kind="optical"), flux=1e7)
    assert image.sum() / 1e7 == pytest.approx(1, abs=0.012)
    gaussian = star(VIS, flux=1e7)
    assert within(image, 10) < within(gaussian, 10) - 0.02 * 1e7
    y, x = np.mgrid[-200:201, -200:201]
    ring = (np.hypot(x, y) > 30) & (np.hypot(x, y) < 40)
    assert image[ring].max() > 3 * np.median(image[ring])


@pytest.mark.parametrize("kind", ["gaussian", "moffat", "kolmogorov", "optical"])
def test_saturated_stars_do_not_ring(kind):
    instrument = replace(I_BAND, psf_kind=kind, psf_beta=3.0)
    image = star(instrument, flux=1e7)
    assert image.min() > -0.05 * instrument.sky_sigma


@pytest.mark.parametrize("lag_1", [0.05, 0.23, 0.6, 0.85])
def test_correlated_noise_has_the_stated_correlation_and_its_amplitude(lag_1):
    noise = correlated(np.random.default_rng(4).normal(size=(900, 700)), lag_1)
    assert noise.std() == pytest.approx(1, rel=0.02)
    for axis in (0, 1):
        one, other = (np.moveaxis(noise, axis, 0)[part] for part in (np.s_[1:], np.s_[:-1]))
        assert (one * other).mean() / noise.var() == pytest.approx(lag_1, abs=0.012)


def test_noise_of_sources_is_correlated_too_and_the_sky_is_where_it_was_left():
    instrument = replace(VIS, correlation=0.4, sky_residual=-0.25)
    flux, variance, mask = observe(np.full((500, 600), 400.0), instrument, np.random.default_rng(2))
    good = np.where(mask == 0, flux - 400.0 + 0.25 * instrument.sky_sigma, np.nan)
    expected = instrument.sky_sigma**2 + 400 / instrument.gain
    assert np.nanmean(good) == pytest.approx(0, abs=0.05)
    assert np.nanvar(good) == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(variance[mask == 0], expected, rtol=1e-5)
    assert np.nanmean(good[1:] * good[:-1]) / expected == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_cosmic_rays_are_there_and_masked_if_asked(masked):
    rng = (np.random.default_rng(7) for _ in range(2))
    clean, _, _ = observe(np.zeros((600, 600)), VIS, next(rng))
    hit, _, mask = observe(np.zeros((600, 600)), replace(VIS, cosmic_rays=Marks(30.0, masked)), next(rng))
    light = np.nan_to_num(hit - clean)
    assert light.min() >= 0 and (light > 5 * VIS.sky_sigma).sum() > 100
    assert ((mask & COSMIC_RAY) > 0).any() == masked
    if masked:
        assert light[(mask & COSMIC_RAY) == 0].max() <= 0.6 * VIS.sky_sigma


def test_a_trail_crosses_the_whole_image():
    rng = (np.random.default_rng(11) for _ in range(2))
    clean, _, _ = observe(np.zeros((400, 400)), I_BAND, next(rng))
    crossed, _, mask = observe(np.zeros((400, 400)), replace(I_BAND, trails=Marks(4.0, masked=True)), next(rng))
    bright = np.nan_to_num(crossed - clean) > I_BAND.sky_sigma
    assert max(np.ptp(np.nonzero(bright)[axis]) for axis in (0, 1)) > 300
    assert (mask[bright] != 0).all()


@pytest.mark.parametrize("off", [Registration(0.3, -0.2), Registration(rotation=0.8), Registration(-0.1, 0.4, -0.5)])
def test_objects_stand_off_their_wcs_positions_by_the_registration(off):
    stated = lsst_frame((61.0, -48.0), 800, -4.5, (3.7, -2.9))
    ny, nx = stated.shape
    x, y = np.array([nx / 2 - 0.5, 40.0, nx - 50.0]), np.array([ny / 2 - 0.5, ny - 60.0, 30.0])
    ra, dec = stated.wcs.pixel_to_world_values(x, y)  # where a reader believes that they are
    ra_true, dec_true = displaced(stated, off).wcs.pixel_to_world_values(x, y)
    cos = np.cos(np.deg2rad(-48.0))
    east, north = ((ra - ra_true) * 3600 * cos, (dec - dec_true) * 3600)
    ra0, dec0 = stated.wcs.wcs.crval
    x_east, y_north = (ra_true - ra0) * 3600 * cos, (dec_true - dec0) * 3600
    angle = np.deg2rad(off.rotation)  # from north to east
    turned_east = np.cos(angle) * x_east + np.sin(angle) * y_north - x_east
    turned_north = np.cos(angle) * y_north - np.sin(angle) * x_east - y_north
    np.testing.assert_allclose(east[0], off.east, atol=0.005)
    np.testing.assert_allclose(north[0], off.north, atol=0.005)
    np.testing.assert_allclose(east, off.east + turned_east, atol=0.02)
    np.testing.assert_allclose(north, off.north + turned_north, atol=0.02)


def test_stars_follow_the_counts_that_are_asked_for():
    counts = StarCounts(density=20.0, brightest=15.0, faintest=25.0, slope=0.2, showpieces=False)
    stars = draw_stars(np.random.default_rng(0), 300.0, 200.0, np.zeros((0, 2)), counts)
    assert len(stars["u"]) == pytest.approx(2000, rel=0.1)
    assert stars["mag_i"].min() >= 15 and stars["mag_i"].max() <= 25
    share = (10 ** (0.2 * 8) - 1) / (10 ** (0.2 * 10) - 1)
    assert (stars["mag_i"] < 23).mean() == pytest.approx(share, abs=0.04)


def test_shipped_skies_differ_from_training_in_what_their_name_says():
    skies = shipped()
    training = skies["training"]
    for name, sky in skies.items():
        assert sky.name == name
        with pytest.raises(FrozenInstanceError):
            sky.name = "other"  # type: ignore[misc]
    assert skies["ideal"].instruments == training.instruments and training.stars is None
    for name, band in (("seeing-0.9", R_BAND), ("seeing-1.1", G_BAND), ("i-seeing-1.1", I_BAND)):
        assert skies[name].band(band.band) == replace(band, psf_fwhm=float(name[-3:]))
    assert skies["i-seeing-1.1"].band("r") == R_BAND
    assert skies["moffat-2.5"].band("g").beta == 2.5
    assert skies["lsst-noise-3"].band("r").sky_sigma == pytest.approx(3 * R_BAND.sky_sigma)
    assert math.hypot(skies["offset-0.10"].registration.east, skies["offset-0.10"].registration.north) == (
        pytest.approx(0.1)
    )
    one, ten = skies["year1"], skies["year10"]
    assert one.band("i").sky_sigma == pytest.approx(math.sqrt(10) * ten.band("i").sky_sigma)
    assert ten.stars and ten.band("VIS").psf_kind == "optical" and ten.band("g").correlation > 0


@pytest.fixture(scope="module")
def own_sky(tmp_path_factory):
    """A field under a user's conditions, and the same field under ideal ones."""
    folder = tmp_path_factory.mktemp("skies")
    (folder / "mine.toml").write_text(
        'like = "year1"\n'
        "[lsst]\npsf = 'moffat'\nbeta = 3.2\nnoise = 2.5\n[g]\nfwhm = 1.23\n[r]\ncorrelation = 0.45\n"
        "[VIS]\nfwhm = 0.19\nsky = 0.2\ncosmic_rays = 20\n[stars]\ndensity = 25\nbrightest = 17\nfaintest = 20.5\n"
        "[registration]\neast = 0.5\nnorth = -0.4\n"
    )
    for name, sky in (("mine", str(folder / "mine.toml")), ("ideal", "ideal")):
        assert run(Config(out=folder / name, size=512, lenses=1, seed=21, sky=sky)) == 0
    return folder


def test_the_files_state_the_conditions_of_the_users_own_sky(own_sky):
    headers = {band: fits.getheader(own_sky / "mine" / name) for band, name in FILES.items()}
    assert [headers[band]["PSFFWHM"] for band in ("g", "r", "VIS")] == [1.23, 1.0, 0.19]
    assert headers["g"]["PSFKIND"] == "moffat" and headers["g"]["PSFBETA"] == 3.2
    assert headers["VIS"]["PSFKIND"] == "optical" and "PSFBETA" not in headers["VIS"]
    assert [headers[band]["SKYCORR"] for band in ("g", "r", "VIS")] == [0.2, 0.45, 0.23]
    assert (headers["g"]["SKYSIG"], headers["VIS"]["SKYLEVEL"], headers["r"]["REGEAST"]) == (2.5, 0.2, 0.5)
    assert headers["r"]["SKYNAME"] == "mine"
    assert "PSFKIND" not in fits.getheader(own_sky / "ideal" / FILES["g"])


def test_galaxies_and_lenses_are_the_same_under_all_conditions(own_sky):
    mine, ideal = (pq.read_table(own_sky / name / "truth.parquet").to_pandas() for name in ("mine", "ideal"))
    for kind in ("galaxy", "lens"):
        one, other = (each[each.kind == kind].drop(columns="id").reset_index(drop=True) for each in (mine, ideal))
        assert one.equals(other) and len(one)
    assert mine[mine.kind == "star"].mag_i.between(17, 20.5).all() and (mine.kind == "star").any()


def test_ingest_reads_the_conditions_and_the_objects_stand_off(own_sky):
    folder, lsst = own_sky / "mine", {band: str(own_sky / "mine" / FILES[band]) for band in "gri"}
    images = {"lsst": lsst, "euclid": {"VIS": str(folder / FILES["VIS"])}}
    field = read_field(default_problem(), images, "euclid")
    assert field.images["lsst"].psf_fwhm[0] == 1.23
    assert field.images["euclid"].noise_correlation[0] == pytest.approx(0.23, abs=0.06)
    told = {"psf": {"euclid": {"VIS": f"{folder / FILES['VIS']}[PSF]"}}}
    seen = read_field(default_problem(), images, "euclid", numbers=told).images["euclid"]
    assert seen.psf_fwhm[0] == pytest.approx(0.19, rel=0.05) and 0 < seen.psf_wing[0] < 1
    truth = pq.read_table(folder / "truth.parquet").to_pandas()
    stars = truth[(truth.kind == "star") & truth.x_vis.between(40, 470) & truth.y_vis.between(40, 470)]
    for survey, off in (("lsst", (0.5, -0.4)), ("euclid", (0.0, 0.0))):
        shifts = []
        for row in stars.itertuples():
            x, y = round(row.x_vis), round(row.y_vis)
            stamp = np.nan_to_num(field.images[survey].flux[-1, y - 12 : y + 13, x - 12 : x + 13])
            v, u = np.mgrid[-12:13, -12:13]
            at = np.zeros(2)
            for _ in range(20):
                weight = stamp * np.exp(-0.5 * ((u - at[0]) ** 2 + (v - at[1]) ** 2) / 4**2)
                at = at + 2 * (np.array([(weight * (u - at[0])).sum(), (weight * (v - at[1])).sum()]) / weight.sum())
            shifts.append((-0.1 * (x + at[0] - row.x_vis), 0.1 * (y + at[1] - row.y_vis)))  # x points west
        np.testing.assert_allclose(np.median(shifts, axis=0), off, atol=0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("like = 'yaer1'", ("yaer1", "year1")),
        ("[lsst]\nfwhm = 9.0", ("lsst.fwhm", "9.0", "5")),
        ("[g]\nfhwm = 1.0", ("g.fhwm", "fwhm")),
        ("[i]\npsf = 'airy'", ("i.psf", "airy", "optical")),
        ("[r]\npsf = 'moffat'", ("band r", "beta")),
        ("[u]\nfwhm = 1", ("unknown", "u")),
        ("stars = 3", ("stars", "3")),
        ("[stars]\nbrightest = 22\nfaintest = 20", ("22", "20")),
        ("[VIS]\ncorrelation = 1.5", ("VIS.correlation", "1.5", "0.9")),
        ("[registration]\nwest = 1", ("registration.west", "east")),
        ("like = ", ("bad.toml", "Invalid value")),
    ],
)
def test_a_sky_that_is_none_is_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(RequestError) as refusal:
        run(Config(out=tmp_path / "sky", size=300, lenses=0, sky=str(tmp_path / "bad.toml")))
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "sky").exists()


def test_a_misspelt_name_is_answered_with_the_nearest_and_a_missing_file_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"moffat-3\.0.*did you mean moffat-3\.5"):
        sky_of("moffat-3.0")
    with pytest.raises(RequestError, match=r"none\.toml"):
        sky_of(str(tmp_path / "none.toml"))
