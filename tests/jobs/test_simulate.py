"""The simulated field: what is in the files is what the truth table says, with the stated instruments and defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from surveybridge.jobs.config import RequestError
from surveybridge.jobs.simulate import FILES, Config, run
from surveybridge.jobs.simulating import lenses as simulated_lenses
from surveybridge.jobs.simulating import sky as simulated_sky
from surveybridge.jobs.simulating.field import CENTRE, OFFSET
from surveybridge.jobs.simulating.files import truth_table
from surveybridge.jobs.simulating.observing import INSTRUMENTS, Instrument
from surveybridge.jobs.simulating.population import columns, draw_galaxies

BANDS = {instrument.band: instrument for instrument in INSTRUMENTS}


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A small field: folder, truth, and {band: (image, variance, mask, WCS)}."""
    folder = tmp_path_factory.mktemp("field") / "sky"
    assert run(Config(out=folder, size=1024, lenses=2, seed=2)) == 0
    truth = pq.read_table(folder / "truth.parquet").to_pandas()
    planes = {}
    for band, name in FILES.items():
        with fits.open(folder / name) as hdus:
            arrays = [np.array(hdus[k].data) for k in ("IMAGE", "VARIANCE", "MASK")]
            planes[band] = (*arrays, WCS(hdus["IMAGE"].header))
    return folder, truth, planes


def isolated(truth, band, shape, faint_limit, margin=25):
    """Unsaturated stars and galaxies inside the image with nothing that matters within 2.5 arcsec."""
    prefix = "vis" if band == "VIS" else "lsst"
    x, y = truth[f"x_{prefix}"], truth[f"y_{prefix}"]
    bright = (truth.mag_i > 18.6) & (truth[f"mag_{band}"] < faint_limit) & (truth.kind != "lens")
    inside = (x > margin) & (y > margin) & (x < shape[1] - margin) & (y < shape[0] - margin)
    chosen = []
    for k in np.flatnonzero(inside & bright):
        separation = np.hypot(truth.x_vis - truth.x_vis[k], truth.y_vis - truth.y_vis[k]) * 0.1
        crowd = (separation < 2.5 + 2 * truth.re.fillna(0)) & (truth.index != k)
        # a lens brings arcs along, whatever the magnitude of its deflector
        if not (crowd & ((truth.mag_i < truth.mag_i[k] + 4) | (truth.kind == "lens"))).any():
            chosen.append(k)
    return chosen


def test_files_have_the_layout_of_the_shared_field(field, shared_data):
    folder, _, _ = field
    for band, name in FILES.items():
        reference = shared_data / "field" / f"field_{name}"
        with fits.open(folder / name) as mine, fits.open(reference) as theirs:
            assert [hdu.name for hdu in mine] == [hdu.name for hdu in theirs]
            for own, other in zip(mine, theirs, strict=True):
                assert set(other.header) - {"CHECKSUM", "DATASUM"} <= set(own.header)
                for key in ("BUNIT", "MAGZERO", "TELESCOP", "FILTER", "CTYPE1", "MP_BAD", "MP_SAT", "MP_NODAT"):
                    assert own.header.get(key) == other.header.get(key), (band, own.name, key)
                if own.data is not None:
                    assert own.data.dtype == other.data.dtype
    with fits.open(folder / "lsst_g.fits", disable_image_compression=True) as hdus:
        assert hdus[1].header["ZCMPTYPE"] == "RICE_1"


def test_headers_state_the_instruments_of_the_trained_domain(shared_data):
    for band, name in FILES.items():
        header = fits.getheader(shared_data / "field" / f"field_{name}")
        mine = BANDS[band]
        assert (mine.pixel_scale, mine.psf_fwhm) == (header["PIXSCALE"], header["PSFFWHM"])
        for value, key in ((mine.sky_sigma, "SKYSIG"), (mine.gain, "GAIN"), (mine.saturation, "SATLEVEL")):
            assert value == pytest.approx(header[key], rel=1e-3)


def test_truth_pixels_are_the_wcs_of_the_files(field):
    _, truth, planes = field
    for band, (_, _, _, wcs) in planes.items():
        prefix = "vis" if band == "VIS" else "lsst"
        x, y = wcs.world_to_pixel_values(truth.ra, truth.dec)
        np.testing.assert_allclose(x, truth[f"x_{prefix}"], atol=1e-5)
        np.testing.assert_allclose(y, truth[f"y_{prefix}"], atol=1e-5)


@pytest.mark.parametrize("band", list(FILES))
def test_bright_objects_lie_where_the_truth_says(field, band):
    _, truth, planes = field
    image, _, mask, _ = planes[band]
    prefix, radius = ("vis", 7) if band == "VIS" else ("lsst", 6)
    seen = 0
    for k in isolated(truth, band, image.shape, 22.3):
        x, y = truth[f"x_{prefix}"][k], truth[f"y_{prefix}"][k]
        x0, y0 = round(x) - radius, round(y) - radius
        window = np.s_[y0 : y0 + 2 * radius + 1, x0 : x0 + 2 * radius + 1]
        if mask[window].any():
            continue
        v, u = np.mgrid[window]
        at = np.array([x, y]) + 0.3  # start off the place, so that the weight does not pin the answer
        for _ in range(30):  # Gaussian-weighted centroid, iterated
            weight = np.exp(-((u - at[0]) ** 2 + (v - at[1]) ** 2) / (2 * (radius / 3) ** 2)) * image[window]
            at = at + 2 * np.array([np.sum(weight * (u - at[0])), np.sum(weight * (v - at[1]))]) / weight.sum()
        assert np.hypot(*(at - [x, y])) * BANDS[band].pixel_scale < 0.02, truth.id[k]
        seen += 1
    assert seen >= 3


@pytest.mark.parametrize("band", list(FILES))
def test_aperture_flux_of_isolated_stars_is_the_truth(field, band):
    _, truth, planes = field
    image, _, mask, _ = planes[band]
    prefix, radius = ("vis", 8.0) if band == "VIS" else ("lsst", 7.0)
    seen = 0
    for k in isolated(truth, band, image.shape, 22.5):
        x, y = truth[f"x_{prefix}"][k], truth[f"y_{prefix}"][k]
        v, u = np.mgrid[: image.shape[0], : image.shape[1]]
        aperture = np.hypot(u - x, v - y) < radius
        if truth.kind[k] != "star" or mask[aperture].any():
            continue
        assert image[aperture].sum() == pytest.approx(truth[f"flux_{band}"][k], rel=0.02), truth.id[k]
        seen += 1
    assert seen >= 1


@pytest.mark.parametrize("band", list(FILES))
@pytest.mark.parametrize(
    "shape",
    [
        {"sersic_n": 1.0, "q": 0.3, "re": 0.4},
        {"sersic_n": 4.5, "q": 0.9, "re": 0.6},
        {"sersic_n": 1.0, "q": 0.6, "re": 0.8, "bulge_fraction": 0.4, "bulge_re": 0.2},
    ],
)
def test_a_drawn_galaxy_has_the_flux_of_the_truth_and_its_place(band, shape):
    frame = simulated_sky.euclid_frame(CENTRE, 500)
    if band != "VIS":
        frame = simulated_sky.lsst_frame(CENTRE, 500, 20.0, OFFSET)
    rows = {"u": 3.1, "v": -2.3, "angle": 0.7, "main_re": shape["re"], "bulge_fraction": 0.0}
    rows |= shape | {f"mag_{b}": 20.0 for b in BANDS}
    galaxy = columns("galaxy", {name: np.array([value]) for name, value in rows.items()})
    sky = simulated_sky.sky_positions(simulated_sky.euclid_frame(CENTRE, 500), galaxy["u"], galaxy["v"])
    nothing = (np.zeros(0), np.zeros(0))
    model = simulated_sky.render(frame, BANDS[band], galaxy, [], sky, nothing)
    assert model.sum() == pytest.approx(10 ** ((31.4 - 20.0) / 2.5), rel=0.005)
    y, x = np.mgrid[: model.shape[0], : model.shape[1]]
    centre = np.array([(model * x).sum(), (model * y).sum()]) / model.sum()
    np.testing.assert_allclose(centre, np.concatenate(frame.pixels(*sky)), atol=0.03)


def test_position_angle_runs_from_north_to_east():
    catalogue = columns("galaxy", {"u": np.zeros(1), "v": np.zeros(1), "q": np.array([0.3]), "angle": np.array([2.0])})
    euclid = simulated_sky.euclid_frame(CENTRE, 300)
    sky = simulated_sky.sky_positions(euclid, catalogue["u"], catalogue["v"])
    angle = np.deg2rad(truth_table(catalogue, sky, euclid, euclid)["pa_deg"][0].as_py())
    east, north = np.sin(angle), np.cos(angle)  # u is west
    assert abs(-east * np.cos(2.0) + north * np.sin(2.0)) == pytest.approx(1.0)


def test_half_light_radius_of_bulge_and_disc_holds_half_the_light():
    drawn = draw_galaxies(np.random.default_rng(3), 60.0)
    k = int(np.argmax(np.nan_to_num(drawn["bulge_fraction"])))
    grow = 2.0 / drawn["re"][k]  # large against the PSF, so that the image shows the profile itself
    rows = {name: np.array([drawn[name][k]]) for name in drawn if name not in ("kind", "u", "v")}
    rows |= {name: rows[name] * grow for name in ("re", "main_re", "bulge_re")}
    rows |= {"u": np.zeros(1), "v": np.zeros(1), "q": np.ones(1)}
    frame = simulated_sky.euclid_frame(CENTRE, 801)
    sky = simulated_sky.sky_positions(frame, rows["u"], rows["v"])
    wide = Instrument("Euclid", "i", 0.1, 0.16, 1.0, 1.0, 1e9)
    model = simulated_sky.render(frame, wide, columns("galaxy", rows), [], sky, (np.zeros(0), np.zeros(0)))
    y, x = np.mgrid[:801, :801] - 400
    assert rows["bulge_fraction"][0] > 0.3
    assert model[np.hypot(x, y) < 20].sum() / model.sum() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("band", list(FILES))
def test_noise_is_the_stated_sky_and_the_photons_of_the_sources(band):
    instrument = BANDS[band]
    rng = np.random.default_rng(1)
    for level in (0.0, 3000.0):
        flux, variance, mask = simulated_sky.observe(np.full((400, 400), level), instrument, rng)
        expected = instrument.sky_sigma**2 + level / instrument.gain
        good = mask == 0
        assert np.var(flux[good]) == pytest.approx(expected, rel=0.02)
        assert np.mean(flux[good]) == pytest.approx(level, abs=5 * np.sqrt(expected / good.sum()))
        np.testing.assert_allclose(variance[good], expected, rtol=1e-5)


@pytest.mark.parametrize("band", list(FILES))
def test_noise_in_the_files_survives_compression(field, band):
    _, _, planes = field
    image, variance, mask, _ = planes[band]
    blank = (mask == 0) & (variance < 1.0005 * BANDS[band].sky_sigma ** 2)
    deviation = np.median(np.abs(image[blank] - np.median(image[blank]))) * 1.4826
    assert deviation == pytest.approx(BANDS[band].sky_sigma, rel=0.03)


def test_masks_mark_missing_saturated_and_bad_pixels(field):
    _, _, planes = field
    for band, (image, variance, mask, _) in planes.items():
        missing = mask == simulated_sky.NO_DATA
        assert missing.any()
        np.testing.assert_array_equal(np.isnan(image), missing)
        np.testing.assert_array_equal(np.isnan(variance), missing)
        bad = ((mask & simulated_sky.BAD) > 0) | missing
        assert bad.all(axis=0).any()
        saturated = mask == simulated_sky.SATURATED
        assert saturated.any(), band
        np.testing.assert_allclose(image[saturated], BANDS[band].saturation, rtol=1e-3)
        assert image[mask == 0].max() < 1.05 * BANDS[band].saturation


@pytest.mark.parametrize("rotation", [0.0, -4.5, 30.0])
@pytest.mark.parametrize("size", [300, 1024])
def test_lsst_covers_the_euclid_field_with_data_and_margin(rotation, size):
    lsst = simulated_sky.lsst_frame(CENTRE, size, rotation, OFFSET)
    euclid = simulated_sky.euclid_frame(CENTRE, size)
    edge = np.array([-50.0, size + 49.0])  # 5 arcsec beyond
    x, y = (corner.ravel() for corner in np.meshgrid(edge, edge))
    x, y = lsst.pixels(*euclid.wcs.pixel_to_world_values(x, y))
    for along, n in ((x, lsst.shape[1]), (y, lsst.shape[0])):
        assert along.min() > -0.5 and along.max() < n - 0.5
    _, _, mask = simulated_sky.observe(np.zeros(lsst.shape), BANDS["g"], np.random.default_rng(0))
    yy, xx = np.nonzero(mask == simulated_sky.NO_DATA)
    x, y = euclid.pixels(*lsst.wcs.pixel_to_world_values(xx, yy))
    assert not ((x > -0.5) & (y > -0.5) & (x < size - 0.5) & (y < size - 0.5)).any()
    assert np.rad2deg(np.arctan2(lsst.wcs.wcs.cd[1, 0], lsst.wcs.wcs.cd[1, 1])) == pytest.approx(rotation)


def test_same_seed_same_bytes_and_another_seed_another_sky(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(Config(out=tmp_path / name, size=300, lenses=1, seed=seed))
    for name in (*FILES.values(), "truth.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_total_magnification_of_a_small_source_behind_a_singular_isothermal_sphere():
    lens = {"theta_E": 1.2, "q": 0.9999, "angle": 0.0, "gamma1": 0.0, "gamma2": 0.0}
    beta = 0.4
    source = {"beta_u": beta, "beta_v": 0.0, "re": 0.06, "q": 1.0, "angle": 0.0}
    light = simulated_lenses.shoot(lens, source, 4.0) * simulated_lenses.RAY_SPACING**2
    assert light.sum() == pytest.approx(2 * 1.2 / beta, rel=0.03)  # SIS: mu = 2 theta_E / beta inside the cut
    brightest = np.unravel_index(np.argmax(light), light.shape)
    assert (brightest[1] - len(light) // 2) * simulated_lenses.RAY_SPACING == pytest.approx(beta + 1.2, abs=0.03)


def test_arcs_are_in_the_vis_image_beyond_the_deflector(field):
    _, truth, planes = field
    image, variance, mask, _ = planes["VIS"]
    lenses = truth[truth.kind == "lens"].reset_index(drop=True)
    assert len(lenses) == 2
    assert lenses.theta_E.between(0.8, 2.0).all()
    assert (lenses.n_images >= 2).all()
    frame = simulated_sky.euclid_frame(CENTRE, 1024)
    for _, lens in lenses.iterrows():
        rows = {name: np.array([lens[name]]) for name in ("re", "sersic_n", "q", "bulge_fraction")}
        rows |= {f"mag_{b}": np.array([lens[f"mag_{b}"]]) for b in BANDS}
        rows |= {"u": np.zeros(1), "v": np.zeros(1), "main_re": rows["re"], "angle": np.deg2rad([lens.pa_deg + 90])}
        sky = (np.array([lens.ra]), np.array([lens.dec]))
        deflector = simulated_sky.render(
            frame, BANDS["VIS"], columns("lens", rows), [], sky, (np.zeros(0), np.zeros(0))
        )
        y, x = np.mgrid[:1024, :1024]
        radius = np.hypot(x - lens.x_vis, y - lens.y_vis) * 0.1
        annulus = (radius > 0.3 * lens.theta_E) & (radius < 2.0 * lens.theta_E) & (mask == 0)
        excess = (image - deflector)[annulus]
        assert excess.sum() / np.sqrt(variance[annulus].sum()) > 15
        assert excess.sum() == pytest.approx(lens.lensed_flux_VIS, rel=0.25)  # neighbours may stand in the annulus
        ring = (radius > 0.6 * lens.theta_E) & (radius < 1.6 * lens.theta_E) & (mask == 0)
        assert (image - deflector)[ring].sum() > 0.6 * lens.lensed_flux_VIS
    assert (lenses.lensed_mag_g - lenses.lensed_mag_i < lenses.mag_g - lenses.mag_i).all()


def test_arcs_carry_the_flux_of_the_truth_in_every_band():
    catalogue, arcs = simulated_lenses.draw_lenses(np.random.default_rng(2), 1, 5.0)
    euclid = simulated_sky.euclid_frame(CENTRE, 400)
    sky = simulated_sky.sky_positions(euclid, catalogue["u"], catalogue["v"])
    for band, instrument in BANDS.items():
        frame = euclid if band == "VIS" else simulated_sky.lsst_frame(CENTRE, 400, -4.5, OFFSET)
        with_arcs = simulated_sky.render(frame, instrument, catalogue, arcs, sky, sky)
        without = simulated_sky.render(frame, instrument, catalogue, [], sky, (np.zeros(0), np.zeros(0)))
        expected = 10 ** ((31.4 - catalogue[f"lensed_mag_{band}"][0]) / 2.5)
        assert (with_arcs - without).sum() == pytest.approx(expected, rel=0.01)


def test_population_is_that_of_the_shared_field(shared_data):
    reference = pq.read_table(shared_data / "field" / "field_truth.parquet").to_pandas()
    reference = reference[(reference.kind == "galaxy") & reference.mag_i.between(22, 26)]
    drawn = draw_galaxies(np.random.default_rng(0), 300.0)
    faint = drawn["mag_i"] > 22
    assert faint.sum() / 100 == pytest.approx(len(reference) / (2328 / 600) ** 2, rel=0.1)
    for low in (22, 23, 24, 25):
        mine = (drawn["mag_i"] > low) & (drawn["mag_i"] <= low + 1)
        theirs = reference[reference.mag_i.between(low, low + 1)]
        assert mine.sum() / faint.sum() == pytest.approx(len(theirs) / len(reference), rel=0.3)
        assert np.median(drawn["re"][mine]) == pytest.approx(theirs.re.median(), rel=0.15)
        for blue, red in (("g", "r"), ("r", "i"), ("VIS", "i")):
            colour = np.median(drawn[f"mag_{blue}"][mine] - drawn[f"mag_{red}"][mine])
            assert colour == pytest.approx((theirs[f"mag_{blue}"] - theirs[f"mag_{red}"]).median(), abs=0.12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": -5}, ("-5", "300")),
        ({"size": 100_000}, ("100000", "8192")),
        ({"lenses": -1}, ("-1", "0")),
        ({"lenses": 500, "size": 512}, ("500", "512")),
        ({"rotation": 90.0}, ("90", "45")),
        ({"seed": -1}, ("-1", "0")),
    ],
)
def test_an_impossible_request_names_both_values_and_writes_nothing(tmp_path: Path, settings, words):
    with pytest.raises(RequestError) as refusal:
        run(Config(out=tmp_path / "sky", **settings))
    assert all(word in str(refusal.value) for word in words)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "sky").exists()


def test_a_folder_that_holds_something_is_kept_unless_overwriting(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"notes\.txt.*--overwrite"):
        run(Config(out=tmp_path, size=300, lenses=0))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert run(Config(out=tmp_path, size=300, lenses=0, overwrite=True)) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    truth = pq.read_table(tmp_path / "truth.parquet").to_pandas()
    assert not (truth.kind == "lens").any()
