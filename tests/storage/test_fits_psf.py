"""PSFs from headers, from PSF HDUs and from the command line, to the tiles of a store."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.__main__ import main
from surveybridge.storage.errors import StorageError
from surveybridge.storage.psf import Gaussian, Kolmogorov, Moffat, PsfImage
from surveybridge.storage.tiles import TileStore
from tests.storage.fits_files import gaussians, read_mer, read_rubin, tan_wcs, write_mer_file, write_survey_file

SHAPE = (96, 96)


def rubin_files(tmp_path, *headers, rotation: float = 0.0, shape=SHAPE) -> dict[str, str]:
    noise = np.random.default_rng(3).normal(0, 1, (3, *shape)).astype(np.float32)
    return {
        band: write_survey_file(
            tmp_path / f"{band}.fits",
            noise[k],
            tan_wcs(shape, 0.2, rotation=rotation),
            header={"BUNIT": "nJy", **header},
        )
        for k, (band, header) in enumerate(zip("gri", headers, strict=True))
    }


def mer_file(tmp_path, psf=None, name: str = "mer.fits") -> str:
    noise = np.random.default_rng(4).normal(0, 1, (192, 192)).astype(np.float32)
    band = {"flux": noise, "rms": np.ones_like(noise), "magzero": 31.4}
    return write_mer_file(
        tmp_path / name, {"VIS": band | ({} if psf is None else {"psf": psf})}, tan_wcs((192, 192), 0.1)
    )


def test_headers_state_gaussian_moffat_and_kolmogorov(tmp_path):
    image = read_rubin(
        rubin_files(
            tmp_path,
            {"PSFFWHM": 0.81, "PSFKIND": "Gaussian"},
            {"PSFFWHM": 0.74, "PSFBETA": 3.2},
            {"PSFFWHM": 0.69, "PSFKIND": "KOLMOGOROV"},
        )
    )
    assert image.psf_model == (Gaussian(0.81), Moffat(0.74, 3.2), Kolmogorov(0.69))
    assert image.psf_fwhm == (0.81, 0.74, 0.69)
    assert image.psf_wing == pytest.approx((0, 1 / 3.2, 0.2), abs=0.015)
    assert "wings 1/beta 0.31" in image.readings[1].line()
    assert image.provenance["r.psf_fwhm"] == "PSFFWHM and PSFBETA of the header"


def test_a_width_alone_says_nothing_of_the_wings(tmp_path):
    headers: list[dict[str, object]] = [
        {"PSFFWHM": 0.8, "PSFKIND": "optical"},
        {"PSFFWHM": 0.7, "PSFKIND": "moffat"},
        {},
    ]
    image = read_rubin(rubin_files(tmp_path, *headers))
    assert image.psf_model == (None, None, None)
    assert np.isnan(image.psf_wing).all()
    assert "no profile is known for its PSFKIND optical" in image.readings[0].line()
    assert "wings not stated" in image.readings[0].line() and "PSF not stated" in image.readings[2].line()


@pytest.mark.parametrize(
    ("header", "complaint"),
    [({"PSFBETA": 0.9}, "PSFBETA 0.9 of the header"), ({"PSFBETA": "steep"}, "PSFBETA steep of the header")],
)
def test_a_header_with_a_profile_that_there_is_not_is_refused_naming_the_file(tmp_path, header, complaint):
    with pytest.raises(StorageError, match=rf"r\.fits\[IMAGE\]: {complaint}"):
        read_rubin(rubin_files(tmp_path, {}, {"PSFFWHM": 0.8, **header}, {}))


def test_the_beam_of_a_radio_map_is_a_gaussian_unless_the_header_states_more(tmp_path):
    beam = {"BMAJ": 1.2 / 3600, "BMIN": 0.3 / 3600, "BPA": 40.0}
    image = read_rubin(rubin_files(tmp_path, beam, {"BMAJ": 36.0 / 3600}, {"PSFFWHM": 0.7, **beam}))
    assert image.psf_fwhm == pytest.approx((0.6, 36.0, 0.7))
    assert image.psf_wing[:2] == (0, 0) and image.psf_model[2] is None
    assert image.provenance["g.psf_fwhm"] == 'beam of the header, 1.2x0.3"'


@pytest.mark.parametrize("beam", [{"BMAJ": 0.0}, {"BMAJ": 0.01, "BMIN": -1.0}, {"BMAJ": "wide"}])
def test_a_beam_without_a_width_is_refused_naming_the_file(tmp_path, beam):
    with pytest.raises(StorageError, match=rf"r\.fits\[IMAGE\]: BMAJ {beam['BMAJ']} and BMIN"):
        read_rubin(rubin_files(tmp_path, {}, beam, {}))


def test_the_psf_hdu_beside_the_flux_is_read_with_its_wings(tmp_path):
    stamp = gaussians((31, 31), [(15, 15)], 1.9)
    image = read_mer(mer_file(tmp_path, stamp))
    assert isinstance(image.psf_model[0], PsfImage)
    np.testing.assert_allclose(image.psf_model[0].values, stamp / stamp.sum(), rtol=1e-5, atol=1e-9)
    without_pixel = 2.3548 * np.sqrt(0.19**2 - 0.1**2 / 12)
    assert image.psf_fwhm[0] == pytest.approx(without_pixel, rel=0.01)
    assert image.psf_wing[0] == pytest.approx(0, abs=0.01)
    assert "VIS_PSF, without the pixel" in image.readings[0].line()


def test_ingest_keeps_every_kind_of_psf_in_the_tiles(tmp_path):
    files = rubin_files(tmp_path, {}, {}, {}, shape=(120, 120))
    stamp = gaussians((25, 41), [(12, 20)], 3.0)
    fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(stamp, name="A"), fits.ImageHDU(stamp, fits.Header({"PIXSCALE": 0.05}), "B")]
    ).writeto(tmp_path / "psf.fits")
    vis = mer_file(tmp_path, gaussians((21, 21), [(10, 10)], 1.1))
    store = str(tmp_path / "store")
    request = ["ingest", "--euclid", vis, "--lsst", *files.values(), "--store", store, "--tile-size", "128"]
    assert main([*request, "--lsst-psf", "moffat:0.8,3.5", f"{tmp_path}/psf.fits[B]", "kolmogorov:0.66"]) == 0
    lsst = TileStore.open(store).read_tile("t0000").images["lsst"]
    assert lsst.psf_model[0] == Moffat(0.8, 3.5) and lsst.psf_model[2] == Kolmogorov(0.66)
    assert lsst.psf_model[1] == PsfImage.of(stamp[:, :], 0.05, "")
    assert lsst.psf_fwhm[1] == pytest.approx(2.3548 * np.sqrt(0.15**2 - 0.05**2 / 12), rel=0.01)
    assert lsst.psf_wing == pytest.approx((1 / 3.5, 0, 0.2), abs=0.015)
    euclid = TileStore.open(store).read_tile("t0000").images["euclid"]
    assert isinstance(euclid.psf_model[0], PsfImage) and euclid.psf_model[0].pixel_scale == pytest.approx(0.1)


def test_another_psf_is_another_content_of_the_tile(tmp_path):
    vis, store = mer_file(tmp_path), str(tmp_path / "store")
    contents = []
    for psf in ("0.17", "0.19", "gaussian:0.17", "moffat:0.17,3"):
        assert main(["ingest", "--euclid", vis, "--store", store, "--euclid-psf", psf, "--tile-size", "256"]) == 0
        contents.append(TileStore.open(store).manifest()["content"][0].as_py())
    assert contents[0] == contents[1]  # as in stores of earlier versions, which know no more than a width
    assert len(set(contents)) == 3


def test_the_image_of_a_psf_is_turned_onto_the_grid(tmp_path):
    files = rubin_files(tmp_path, {}, {}, {}, rotation=90.0)
    long_in_x = gaussians((41, 41), [(20, 20 + k / 4) for k in range(-16, 17)], 2.0)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(long_in_x, name="PSF")]).writeto(tmp_path / "psf.fits")
    store = str(tmp_path / "store")
    request = ["ingest", "--euclid", mer_file(tmp_path), "--lsst", *files.values(), "--store", store, "--halo", "0"]
    assert main([*request, "--lsst-psf", *[f"{tmp_path}/psf.fits"] * 3]) == 0
    psf = TileStore.open(store).read_tile("t0000").images["lsst"].psf_model[0]
    assert isinstance(psf, PsfImage)
    y, x = np.indices(psf.values.shape)
    spread = [float((psf.values * (axis - axis.mean()) ** 2).sum()) for axis in (y, x)]
    assert spread[0] > 2 * spread[1]


@pytest.mark.parametrize("text", ["-0.8", "nan", "moffat:0.8", "gaussian:0", "gauss"])
def test_a_psf_that_is_none_is_refused_before_any_file_is_opened(tmp_path, capsys, text):
    request = ["ingest", "--lsst", *"abc", "--store", str(tmp_path / "store")]
    assert main([*request, "--lsst-psf", text, "0.7", "0.7"]) == 2
    error = capsys.readouterr().err
    assert "expected a FWHM in arcsec above 0, gaussian:FWHM" in error and error.count("\n") == 1
    assert not (tmp_path / "store").exists()
