"""`ingest --homogenise`: tiles whose images have the PSFs that were asked for, however they are read and cut."""

from __future__ import annotations

import numpy as np
import pytest

from surveybridge.__main__ import main
from surveybridge.storage import ingest
from surveybridge.storage.psf import Gaussian, Moffat, PsfImage
from surveybridge.storage.tiles import TileStore
from tests.storage.fits_files import gaussians, tan_wcs, write_survey_file

SHAPE = (260, 150)
PLACES = [(40.3, 60.2), (125.5, 75.1), (130.2, 90.8), (210.7, 44.4)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """LSST's images of stars with a FWHM of 0.6", 0.7" and 0.8", a masked column and some pixels without data."""
    folder, rng = tmp_path_factory.mktemp("sky"), np.random.default_rng(8)
    found = []
    for band, fwhm in zip("gri", (0.6, 0.7, 0.8), strict=True):
        image = gaussians(SHAPE, PLACES, fwhm / 2.3548 / 0.1) + rng.normal(0, 0.1, SHAPE)
        image[100:104, 20:30] = np.nan
        mask = np.zeros(SHAPE, np.int32)
        mask[:, 110] = 1
        header = {"BUNIT": "nJy", "PSFFWHM": fwhm, "PSFKIND": "gaussian", "FILTER": band}
        path = folder / f"{band}.fits"
        found.append(
            write_survey_file(
                path,
                image,
                tan_wcs(SHAPE, 0.1),
                header=header,
                variance=np.full(SHAPE, 0.01),
                mask=mask,
                mask_header={"MP_BAD": 0},
            )
        )
    return found


def request(files: list[str], store, *more: str) -> list[str]:
    grid = ["--grid", f"{files[0]}[IMAGE]", "--tile-size", "90", "--halo", "32"]
    return ["ingest", "--lsst", *files, "--store", str(store), *grid, *more]


def test_tiles_have_the_psfs_that_were_asked_for(files, tmp_path):
    asked = ["--homogenise", "lsst.g=0.8", "lsst.i=moffat:0.95,3.5"]
    assert main(request(files, tmp_path / "tiles", *asked)) == 0
    assert main(request(files, tmp_path / "plain")) == 0
    image, plain = (TileStore.open(tmp_path / name).read_tile("t0000").images["lsst"] for name in ("tiles", "plain"))
    assert image.psf_model == (Gaussian(0.8), Gaussian(0.7), Moffat(0.95, 3.5))
    assert image.provenance["g.homogenised"].startswith('0.6" to 0.8", noise x 0.')
    np.testing.assert_array_equal(image.flux[1], plain.flux[1])
    seen = PsfImage.of(image.flux[0, 40 - 15 : 40 + 16, 60 - 15 : 60 + 16].astype(float), 0.1, "a star")
    assert seen.fwhm == pytest.approx(0.8, rel=0.03)
    inner = np.s_[30:52, 45:75]
    assert image.flux[0][inner].sum() == pytest.approx(plain.flux[0][inner].sum(), rel=0.02)
    assert image.mask[0, 20, 107] != 0 and plain.mask[0, 20, 107] == 0  # masks grow
    assert image.variance[0, 20, 40] < 0.3 * plain.variance[0, 20, 40]


def test_images_that_are_read_in_strips_give_the_tiles_of_the_whole(files, tmp_path, monkeypatch):
    asked = ["--homogenise", "lsst.g=0.8", "lsst.r=0.85"]
    assert main(request(files, tmp_path / "whole", *asked)) == 0
    monkeypatch.setattr(ingest, "STRIP_PIXELS", 100 * SHAPE[1])
    assert main(request(files, tmp_path / "strips", *asked)) == 0
    stores = [TileStore.open(tmp_path / name) for name in ("whole", "strips")]
    tiles = stores[0].manifest()["tile_id"].to_pylist()
    assert len(tiles) == 6
    for tile in tiles:
        whole, strips = (store.read_tile(tile).images["lsst"] for store in stores)
        np.testing.assert_array_equal(whole.mask, strips.mask)
        np.testing.assert_allclose(whole.flux, strips.flux, atol=1e-5, equal_nan=True)
        np.testing.assert_allclose(whole.variance, strips.variance, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--homogenise", "lsst.g=airy:0.3"], "expected NAME.BAND=PSF, a FWHM in arcsec above 0, gaussian:FWHM"),
        (["--homogenise", "lsst.g=0"], "expected NAME.BAND=PSF, a FWHM in arcsec above 0, gaussian:FWHM"),
        (["--homogenise", "euclid.VIS=0.2"], "PSFs are wanted for euclid VIS, which is not given; there is lsst g,r,i"),
        (["--homogenise", "nowhere"], "nowhere"),
    ],
)
def test_psfs_that_cannot_be_reached_are_refused_before_anything_is_written(files, tmp_path, capsys, asked, complaint):
    assert main(request(files, tmp_path / "tiles", *asked)) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "tiles").exists()


def test_an_unknown_psf_is_refused_with_the_remedy(files, tmp_path, capsys):
    plain = write_survey_file(tmp_path / "g.fits", np.random.default_rng(1).normal(size=SHAPE), tan_wcs(SHAPE, 0.1))
    assert main(request([plain, *files[1:]], tmp_path / "tiles", "--homogenise", "lsst.g=0.8")) == 2
    assert "lsst g: its PSF is not known" in capsys.readouterr().err
    assert not (tmp_path / "tiles").exists()
