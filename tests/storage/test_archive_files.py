"""Headers of real archive files: their WCS as GalSim reads it, and their zero points as they say."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from tests.storage.archive_files import HEADINGS, IMAGES, hdu_row, icrs_of, images, row

EXPECTED = {
    "afw_exposure-noversion.fits[1]": ("RA---TAN", "icrs", 0.2, "FLUXMAG0 15 of the primary header"),
    "galsim_pole.fits[0]": ("RA---TAN-SIP", "icrs", 1.223, "BUNIT MJy/sr"),
    "galsim_razero.fits[0]": ("RA---TAN-SIP", "icrs", 1.223, "BUNIT MJy/sr"),
    "galsim_sipsample.fits[0]": ("RA---TAN-SIP", "icrs", 1.223, "BUNIT MJy/sr"),
    "galsim_tanflip.fits[0]": ("DEC--TAN", "icrs", 0.2626, "BUNIT absent and no zero point"),
    "galsim_tpv.fits.gz[0]": ("RA---TPV", "icrs", 0.2717, "BUNIT absent and no zero point"),
    "galsim_zpx.fits[0]": ("RA---ZPX", "fk5", 0.2619, "BUNIT absent and no zero point"),
    "kbmod_small_0.fits[1]": ("RA---TAN-SIP", "icrs; CTYPE1 RA---TAN-SIP without", 0.2631, "BUNIT absent and no zero"),
    "legacy4_z.fits[1]": ("RA---TPV", "icrs; RADESYS and RADECSYS are", 0.2644, "MAGZERO 29.915 of the primary header"),
    "profound_mystery_VIKING_Z.fits[0]": ("RA---TAN", "icrs", 0.339, "BUNIT absent and no zero point"),
}
"""CTYPE1, frame, arcsec per pixel, and where the zero point comes from or why there is none."""

NOT_BY_GALSIM = ("galsim_zpx.fits[0]",)
"""A polynomial of IRAF (ZPX) that GalSim takes for a plain grid of pixels."""


@pytest.fixture(scope="module")
def files(shared_data):
    """By name the table's row, the WCS and the shape."""
    folder = shared_data / "files"
    return {image[0]: (row(*image), icrs_of(*image), image[1].shape) for image in images(folder)}


def test_every_file_is_read_as_its_header_says(files):
    assert set(files) == set(EXPECTED)
    for name, (ctype, frame, scale, source) in EXPECTED.items():
        found = dict(zip(HEADINGS, files[name][0], strict=True))
        assert found["WCS"].startswith(f"{ctype} ") and found["frame"].startswith(frame), name
        assert float(found["scale"].rstrip('"')) == pytest.approx(scale, abs=6e-4), name
        assert found["where from"].startswith(source), name
        assert found["checksum"].startswith("DATASUM is" if name == "galsim_tpv.fits.gz[0]" else "none"), name


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in NOT_BY_GALSIM])
def test_positions_are_those_of_galsim(files, shared_data, name):
    galsim = pytest.importorskip("galsim")
    columns, wcs, shape = files[name]
    file, number = name.removesuffix("]").split("[")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = galsim.FitsWCS(str(shared_data / "files" / file), hdu=int(number))
    y, x = (v.ravel() for v in np.meshgrid(*(np.linspace(0, n - 1, 9) for n in shape), indexing="ij"))
    ra, dec = theirs.xyToradec(x + 1, y + 1, units="deg")
    here = wcs.all_pix2world(x, y, 0)
    aside, up = ((here[0] - ra + 180) % 360 - 180) * np.cos(np.radians(dec)), here[1] - dec
    scale = float(columns[3].rstrip('"'))
    assert np.hypot(aside, up).max() * 3600 / scale < 1e-6


def test_iraf_polynomials_in_fk5_become_icrs(files, shared_data):
    columns, wcs, shape = files[NOT_BY_GALSIM[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = WCS(fits.getheader(shared_data / "files" / "galsim_zpx.fits"))
    y, x = (v.ravel() for v in np.meshgrid(*(np.linspace(0, n - 1, 9) for n in shape), indexing="ij"))
    there = SkyCoord(*theirs.all_pix2world(x, y, 0), unit="deg", frame="fk5").icrs
    here = SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg")
    assert here.separation(there).arcsec.max() / float(columns[3].rstrip('"')) < 1e-6


READ_AS = {
    "files/afw_exposure-noversion.fits": ("1 unnamed (10", "2 unnamed", "3 unnamed", "noise HDU 3; sky 1.779e+08"),
    "files/galsim_pole.fits": ("0 unnamed (256", "none", "none", "noise sky MAD; sky 1.661e+04 nJy = +0.96 sigma"),
    "files/galsim_razero.fits": ("0 unnamed (256", "none", "none", "noise sky MAD; sky 1.67e+04 nJy = +0.96 sigma"),
    "files/galsim_sipsample.fits": ("0 unnamed (256", "none", "none", "noise sky MAD; sky 1.67e+04 nJy = +0.96 sigma"),
    "files/galsim_tanflip.fits": ("0 unnamed (512", "none", "none", "refused: BUNIT absent and no zero point"),
    "files/galsim_tpv.fits.gz": ("0 unnamed (512", "none", "none", "refused: DATASUM is 4227224104 but"),
    "files/galsim_zpx.fits": ("0 unnamed (512", "none", "none", "refused: BUNIT absent and no zero point"),
    "files/kbmod_small_0.fits": ("1 unnamed (64", "2 unnamed", "3 unnamed", "zero point 27 given; noise HDU 3; sky"),
    "files/legacy4_z.fits": ("1 N2 (251", "none", "none", "refused: the level of its sky is 1.245e+04 nJy"),
    "files/profound_mystery_VIKING_Z.fits": ("0 unnamed (356", "none", "none", "zero point 30 given; noise sky MAD"),
    "field/field_lsst_g.fits": ("1 IMAGE (1024", "3 MASK", "2 VARIANCE", "noise VARIANCE; sky 0 nJy"),
    "real/102018665_NEG570040238507752998.fits": ("7 VIS_BGSUB", "none", "9 VIS_RMS", "noise sky MAD; sky 0.05691 nJy"),
    "real/102018665_NEG570040238507752998.fits[DES_R_BGSUB]": ("4 DES_R_BGSUB", "none", "6 DES_R_RMS", "noise"),
    "real/102018665_NEG570040238507752998_300px.fits": ("1 VIS_FLUX", "none", "3 VIS_RMS", "noise sky MAD; sky -0.005"),
    "real/102018665_NEG570040238507752998_300px.fits[NIR_H_FLUX]": ("10 NIR_H_FLUX", "none", "12 NIR_H_RMS", "noise"),
    "real/102020057_NEG582019329494705421_300px.fits": ("1 VIS_FLUX", "none", "3 VIS_RMS", "noise sky MAD"),
    "real/EUCLJ174517.55+655612.5.fits": ("10 VIS_FLUX", "none", "12 VIS_RMS", "noise sky MAD; sky 0.593 nJy = +0.53"),
    "real/EUCLJ174517.55+655612.5.fits[HSC_G_FLUX]": ("4 HSC_G_FLUX", "none", "6 HSC_G_RMS", "noise sky MAD; sky 0.11"),
    "real/EUCLJ174517.55+655612.5.fits[NIR_J_FLUX]": ("19 NIR_J_FLUX", "none", "21 NIR_J_RMS", "noise sky MAD"),
}  # fmt: skip
"""What flux, mask and noise are of each image, and what becomes of it (the start of each)."""


@pytest.mark.parametrize("name", IMAGES)
def test_hdus_masks_and_noise_of_real_files(shared_data, name):
    found = hdu_row(name, shared_data)
    assert found[0] == name and len(found) == 5
    for cell, start in zip(found[1:], READ_AS[name], strict=True):
        assert cell.startswith(start) and "\n" not in cell
