"""Which HDU is the flux, which are its mask and noise: by name, EXTVER, type, cards, unit, number; or a refusal."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from surveybridge.storage.errors import StorageError
from surveybridge.storage.fits_files import open_fits
from surveybridge.storage.fits_hdus import extensions
from surveybridge.storage.fits_images import read_image
from surveybridge.storage.fits_selection import flux_extension
from surveybridge.storage.problems import default_problem
from tests.storage.fits_files import tan_wcs

SHAPE = (36, 44)
WCS = tan_wcs(SHAPE, 0.2, ra=201.0, dec=11.0)
LSST = default_problem()["endpoints"][0] | {"bands": ["r"], "rgb": None}
RNG = np.random.default_rng(3)
FLUX = RNG.normal(0, 3, SHAPE).astype(np.float32)
OTHER = RNG.normal(0, 7, SHAPE).astype(np.float32)
VARIANCE = (9 + 0.1 * RNG.normal(size=SHAPE)).astype(np.float32)
MASK = np.zeros(SHAPE, np.int32)
MASK[4:9, 10:20] = 1


def hdu(data, name=None, version=None, *, wcs=True, **cards):
    """An image extension with the WCS of the flux."""
    made = fits.ImageHDU(np.asarray(data), WCS.to_header() if wcs else None, name=name)
    if version is not None:
        made.header["EXTVER"] = version
    made.header.update(cards)
    return made


def write(path, *hdus, primary=None, **cards):
    first = primary or fits.PrimaryHDU()
    first.header.update({"MAGZERO": 31.4} | cards)
    fits.HDUList([first, *hdus]).writeto(path, overwrite=True)
    return str(path)


def read(path, **how):
    return read_image(LSST, {"r": path}, **how)


def is_flux(image, expected=FLUX):
    known = image.mask[0] == 0
    np.testing.assert_allclose(image.flux[0][known], expected[known], rtol=1e-6)
    return image


def masked_and_weighted(image):
    """The image has the mask and the variances of this file."""
    is_flux(image)
    assert (image.mask[0] != 0).sum() == 50 and image.mask[0, 4:9, 10:20].all()
    np.testing.assert_allclose(image.variance[0], VARIANCE, rtol=1e-5)
    return image


LAYOUTS = {
    "afw and lsst.images": [hdu(FLUX, "IMAGE"), hdu(MASK, "MASK"), hdu(VARIANCE, "VARIANCE")],
    "mask by its type": [hdu(MASK * 2), hdu(FLUX), hdu(1 / VARIANCE, BUNIT="1/nJy2")],
    "another order": [hdu(VARIANCE, "VARIANCE"), hdu(MASK, "MASK"), hdu(FLUX, "IMAGE")],
    "HST and JWST": [hdu(FLUX, "SCI"), hdu(np.sqrt(VARIANCE), "ERR"), hdu(MASK * 4, "DQ")],
    "DES": [hdu(FLUX, "SCI"), hdu(MASK, "MSK"), hdu(1 / VARIANCE, "WGT")],
    "old afw": [hdu(FLUX, EXTTYPE="IMAGE"), hdu(MASK, EXTTYPE="MASK"), hdu(VARIANCE, EXTTYPE="VARIANCE")],
    "by cards and unit": [hdu(FLUX), hdu(MASK, MP_BAD=0), hdu(VARIANCE, BUNIT="nJy2")],
    "by order, KBMOD": [hdu(FLUX), hdu(MASK.astype(np.float32), wcs=False), hdu(VARIANCE, wcs=False)],
    "stems": [
        hdu(OTHER, "G_FLUX"), hdu(FLUX, "R_FLUX"), hdu(MASK, "R_MASK"), hdu(VARIANCE, "R_VAR"), hdu(MASK, "G_MASK")
    ],
    "one plane of a cube": [
        hdu(FLUX[None, None], "SCI"), hdu(MASK[None], "DQ", wcs=False), hdu(np.sqrt(VARIANCE), "ERR")
    ],
    "parts of a variance beside": [
        hdu(FLUX, "SCI"), hdu(np.sqrt(VARIANCE), "ERR"), hdu(MASK, "DQ"), hdu(VARIANCE / 2, "VAR_POISSON"),
        hdu(VARIANCE, "AREA"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flux_mask_and_noise_of_known_layouts_are_found(tmp_path, layout):
    masked_and_weighted(read(write(tmp_path / "a.fits", *LAYOUTS[layout])))


def test_the_image_may_be_in_the_primary_with_its_maps_beside_it(tmp_path):
    primary = fits.PrimaryHDU(FLUX, WCS.to_header())
    path = write(tmp_path / "a.fits", hdu(MASK, "MASK"), hdu(VARIANCE, "VARIANCE"), primary=primary)
    image = masked_and_weighted(read(path))
    assert image.provenance["r.file"].endswith("a.fits[0]")
    assert image.readings[0].hdu == "0 unnamed (36 x 44 float32)"


@pytest.mark.parametrize("layout", ["HST and JWST", "DES", "one plane of a cube"])
def test_naming_the_flux_keeps_what_is_beside_it(tmp_path, layout):
    image = masked_and_weighted(read(write(tmp_path / "a.fits", *LAYOUTS[layout]) + "[SCI]"))
    assert image.provenance["r.noise"] in ("ERR", "WGT")
    assert image.provenance["r.mask"].startswith(("DQ", "MSK"))


def test_compressed_hdus_are_read_like_plain_ones(tmp_path):
    hdus = [
        fits.CompImageHDU(h.data, h.header, compression_type="GZIP_2", quantize_level=0)
        for h in LAYOUTS["afw and lsst.images"]
    ]
    masked_and_weighted(read(write(tmp_path / "a.fits", *hdus)))


def test_weights_are_inverse_variances_and_zero_is_no_coverage(tmp_path):
    weight = 1 / VARIANCE
    weight[:3] = 0
    image = is_flux(read(write(tmp_path / "a.fits", hdu(FLUX, "SCI"), hdu(weight, "WHT"))))
    np.testing.assert_allclose(image.variance[0][3:], VARIANCE[3:], rtol=1e-5)
    assert image.mask[0, :3].all() and not image.mask[0, 3:].any()
    # relative weights are no variances, but what they leave out stays out
    image = read(write(tmp_path / "b.fits", hdu(FLUX, "SCI"), hdu(weight * 5000, "WHT")))
    assert np.sqrt(image.variance[0, 9, 9]) == pytest.approx(3, rel=0.05) and image.mask[0, :3].all()
    assert "in the file: WHT, not used" in image.provenance["r.noise"]
    # seconds of exposure are no weights
    image = read(write(tmp_path / "c.fits", hdu(FLUX, "SCI"), hdu(weight * 5000, "WHT", BUNIT="s")))
    assert "none in the file" in image.provenance["r.noise"]


CHIPS = [
    hdu(FLUX, "SCI", 1), hdu(np.sqrt(VARIANCE), "ERR", 1), hdu(MASK, "DQ", 1),
    hdu(OTHER, "SCI", 2), hdu(4 * np.sqrt(VARIANCE), "ERR", 2), hdu(1 - MASK, "DQ", 2),
]  # fmt: skip


def test_one_extver_is_used_throughout(tmp_path):
    path = write(tmp_path / "chips.fits", *CHIPS)
    masked_and_weighted(read(f"{path}[SCI,1]"))
    second = is_flux(read(f"{path}[sci, 2]"), OTHER)
    assert (second.mask[0] == 0).sum() == 50
    np.testing.assert_allclose(second.variance[0], 16 * VARIANCE, rtol=1e-5)
    is_flux(read(f"{path}[4]"), OTHER)
    for which in (path, f"{path}[SCI]"):
        with pytest.raises(
            StorageError, match=r"1 SCI \(36 x 44 float32, flux\).*4 SCI,2.*\[EXTNAME,EXTVER\]"
        ) as caught:
            read(which)
        assert "\n" not in str(caught.value)


def test_maps_of_another_extver_are_left_aside_or_asked_for(tmp_path):
    # chip 2 has neither errors nor a mask; those of chip 1 are not its own
    path = write(tmp_path / "chips.fits", *CHIPS[:4])
    image = is_flux(read(f"{path}[SCI,2]"), OTHER)
    assert image.valid.all() and "DQ has another EXTVER" in image.provenance["r.mask"]
    assert "ERR has another EXTVER" in image.provenance["r.notes"]
    # one image, and a mask with a number of its own: whose?
    path = write(tmp_path / "numbered.fits", hdu(FLUX, "SCI", 1), hdu(MASK, "DQ", 2))
    with pytest.raises(StorageError, match=r"EXTVER 1, but DQ has EXTVER 2.*--mask NAME.BAND=.*numbered.fits\[2\]"):
        read(path)
    assert (read(path, maps={"mask": {"r": f"{path}[2]"}}).mask != 0).sum() == 50


def test_a_map_that_may_belong_to_either_of_two_images_is_asked_for(tmp_path):
    path = write(tmp_path / "twice.fits", hdu(FLUX, "IMAGE"), hdu(MASK, "MASK"), hdu(OTHER, "IMAGE"))
    with pytest.raises(StorageError, match=r"MASK .* may also belong to 3 IMAGE.*--mask"):
        read(f"{path}[1]")
    assert (is_flux(read(f"{path}[1]", maps={"mask": {"r": f"{path}[MASK]"}})).mask != 0).sum() == 50


NOT_FLUX = {
    "name": hdu(VARIANCE, "VARIANCE"),
    "stem": hdu(np.sqrt(VARIANCE), "R_RMS"),
    "error": hdu(np.sqrt(VARIANCE), "SCI_ERR"),
    "type": hdu(VARIANCE, EXTTYPE="VARIANCE"),
    "squared unit": hdu(VARIANCE, "N7", BUNIT="adu2"),
    "inverse unit": hdu(VARIANCE, "N7", BUNIT="1/nJy2"),
    "seconds": hdu(VARIANCE, "N7", BUNIT="s"),
    "exposure map": hdu(VARIANCE, "EXPOSURE"),
    "psf": hdu(VARIANCE, "PSF"),
    "cards": hdu(MASK, "N7", MP_SAT=0),
    "new cards": hdu(MASK, "N7", MSKN0000="SATURATED", MSKM0000=1),
    "whole numbers, most of them equal": hdu(MASK, "N7"),
}


@pytest.mark.parametrize("case", NOT_FLUX)
@pytest.mark.parametrize("named", ["", "[1]"])
def test_what_is_no_flux_is_never_read_as_one(tmp_path, case, named):
    path = write(tmp_path / "a.fits", NOT_FLUX[case])
    with pytest.raises(
        StorageError, match=r"a\.fits.*(which HDU is the flux|not flux).* has 1 (unnamed|\w+) \(36 x 44"
    ):
        read(path + named)


UNCLEAR = {
    "two without a name": [hdu(FLUX), hdu(VARIANCE)],
    "three without a name, none of them a mask": [hdu(FLUX), hdu(OTHER), hdu(VARIANCE)],
    "three without a name, the last no variance": [hdu(FLUX), hdu(MASK), hdu(OTHER)],
    "two detectors": [hdu(FLUX, "N2"), hdu(OTHER, "S3")],
    "bands by name": [hdu(FLUX, "G_FLUX"), hdu(OTHER, "I_FLUX")],
    "only another band": [hdu(FLUX, "I_FLUX"), hdu(np.sqrt(VARIANCE), "I_RMS")],
    "image and science": [hdu(FLUX, "IMAGE"), hdu(OTHER, "SCI")],
    "a cube": [hdu(np.stack([FLUX, OTHER]), "SCI")],
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_cannot_be_told_is_refused_with_a_list(tmp_path, case):
    path = write(tmp_path / "a.fits", *UNCLEAR[case])
    with pytest.raises(
        StorageError, match=r"which HDU is the flux of band r\? It has 1 .*\(.*36 x 44 float32"
    ) as caught:
        read(path)
    assert f"{path}[number]" in str(caught.value) and "\n" not in str(caught.value)


def test_hdus_are_named_by_number(tmp_path):
    path = write(tmp_path / "a.fits", *UNCLEAR["two without a name"])
    image = is_flux(read(f"{path}[1]", noise="sky"))
    assert image.provenance["r.notes"] == "HDU 2 unnamed (36 x 44 float32) is not used: nothing says what it is"
    path = write(tmp_path / "b.fits", *UNCLEAR["two detectors"])
    is_flux(read(f"{path}[2]"), OTHER)
    is_flux(read(f"{path}[S3]"), OTHER)
    for wrong in ("[7]", "[0]", "[N9]", "[N2,2]"):
        with pytest.raises(StorageError, match=r"no image extension .*; it has 1 N2 \(36 x 44 float32\); 2 S3"):
            read(path + wrong)


def test_integers_are_a_flux_only_where_nothing_else_can_be_and_they_vary(tmp_path):
    counts = np.round(50 * FLUX).astype(np.int32)
    is_flux(read(write(tmp_path / "a.fits", hdu(counts), MAGZERO=31.4)), counts)
    path = write(tmp_path / "b.fits", hdu(FLUX, "N2"), hdu(counts, "N3"))
    is_flux(read(path))
    with pytest.raises(StorageError, match=r"b\.fits\[N3\]: whole numbers \(int32\).*a mask, not flux"):
        read(f"{path}[N3]")


def test_the_unit_of_the_endpoint_decides_what_a_unit_means(tmp_path):
    path = tmp_path / "column.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(FLUX, fits.Header({"BUNIT": "cm-2"}))]).writeto(path)
    with open_fits(str(path)) as hdus:
        assert flux_extension(extensions(hdus, "cm-2"), str(path), None, "NH").number == 1
        assert [ext.role for ext in extensions(hdus, "nJy")] == ["weight"]


def test_a_map_on_another_grid_in_the_same_file_is_refused(tmp_path):
    away = hdu(VARIANCE, "VARIANCE", wcs=False)
    away.header.update(tan_wcs(SHAPE, 0.2, ra=201.0, dec=11.01).to_header())
    with pytest.raises(StorageError, match=r"VARIANCE\]: its grid is 180 px off .*Dec \+11\.01000.*Dec \+11\.00000"):
        read(write(tmp_path / "a.fits", hdu(FLUX, "IMAGE"), away))


def test_the_name_that_fpack_gives_is_none(tmp_path):
    how = {"name": "COMPRESSED_IMAGE", "compression_type": "GZIP_2", "quantize_level": 0}
    hdus = [fits.CompImageHDU(data, WCS.to_header(), **how) for data in (FLUX, MASK, VARIANCE)]
    masked_and_weighted(read(write(tmp_path / "a.fits", *hdus)))
    is_flux(read(write(tmp_path / "b.fits", hdus[0])))


@pytest.mark.parametrize("name", ["CUTOUT_IMAGE", "DES_R_FLUX", "N2", "STACK_SCI"])
def test_an_image_that_is_alone_needs_no_known_name(tmp_path, name):
    path = write(tmp_path / "a.fits", hdu(FLUX, name), hdu(MASK, "MASK"), hdu(VARIANCE, "VARIANCE"))
    masked_and_weighted(read(path))


def test_a_variance_by_its_place_alone_must_agree_with_the_sky(tmp_path):
    path = write(tmp_path / "a.fits", hdu(FLUX), hdu(MASK), hdu(VARIANCE * 100))
    image = is_flux(read(path))
    assert np.sqrt(image.variance[0, 0, 0]) == pytest.approx(3, rel=0.05) and (image.mask != 0).sum() == 50
    assert "in the file: HDU 3 of the file, not used" in image.provenance["r.noise"]


def test_maps_of_which_it_cannot_be_told_whose_they_are_are_named(tmp_path):
    path = write(tmp_path / "a.fits", hdu(FLUX, "N2"), hdu(OTHER, "S3"), hdu(MASK, "MASK"), hdu(VARIANCE, "VARIANCE"))
    image = is_flux(read(f"{path}[N2]"))
    assert "3 MASK (36 x 44 int32, mask): cannot be told whose" in image.provenance["r.mask"]
    assert "4 VARIANCE (36 x 44 float32, variance): cannot be told whose" in image.provenance["r.notes"]
    # the maps of other images in the file are theirs, and nothing to speak of
    path = write(tmp_path / "b.fits", *LAYOUTS["stems"])
    image = is_flux(read(f"{path}[G_FLUX]", noise="sky"), OTHER)
    assert "r.notes" not in image.provenance


@pytest.mark.parametrize("names", [("G", "R", "I"), ("SCI_G", "SCI_R", "SCI_I"), ("hsc_g", "r_image", "i_image")])
def test_an_hdu_named_by_its_band_is_that_bands_and_no_others(tmp_path, names):
    others = [hdu(OTHER * factor, name) for factor, name in zip((1, 5), (names[0], names[2]), strict=True)]
    path = write(tmp_path / "a.fits", *others, hdu(FLUX, names[1]))
    is_flux(read(path))
    alone = write(tmp_path / "b.fits", hdu(FLUX, names[0]))
    with pytest.raises(StorageError, match=rf"which HDU is the flux of band r\? It has 1 {names[0].upper()}"):
        read(alone)
    is_flux(read(f"{alone}[1]"))


def test_a_number_behind_a_word_is_a_name_not_another_role(tmp_path):
    first = [hdu(FLUX, "SCI7"), hdu(MASK, "DQ7"), hdu(np.sqrt(VARIANCE), "ERR7")]
    second = [hdu(OTHER, "SCI8"), hdu(MASK * 0 + 1, "DQ8"), hdu(VARIANCE, "ERR8")]
    path = write(tmp_path / "two.fits", *second, *first)
    masked_and_weighted(read(f"{path}[SCI7]"))
    with pytest.raises(StorageError, match="which HDU is the flux of band r"):
        read(path)
    alone = write(tmp_path / "one.fits", hdu(MASK, "MASK2"), hdu(VARIANCE, "VAR2"), hdu(FLUX, "CHIP2"))
    masked_and_weighted(read(alone))


def test_exttype_counts_where_the_names_say_nothing(tmp_path):
    types = {"VARIANCE": VARIANCE, "IMAGE": FLUX, "MASK": MASK}
    hdus = [hdu(data, f"part_{n}", EXTTYPE=kind) for n, (kind, data) in enumerate(types.items())]
    masked_and_weighted(read(write(tmp_path / "a.fits", *hdus)))


@pytest.mark.parametrize(
    ("utype", "values"),
    [("StdDevUncertainty", np.sqrt(VARIANCE)), ("VarianceUncertainty", VARIANCE), ("InverseVariance", 1 / VARIANCE)],
)
def test_the_uncertainty_of_ccddata_is_what_its_utype_says(tmp_path, utype, values):
    first = fits.PrimaryHDU(FLUX, WCS.to_header())
    hdus = [hdu(MASK.astype(np.uint8), "MASK", wcs=False), hdu(values, "UNCERT", wcs=False, UTYPE=utype)]
    masked_and_weighted(read(write(tmp_path / "a.fits", *hdus, primary=first)))


@pytest.mark.parametrize("name", ["SIGMA_MAP", "ERROR_ARRAY", "NOISE_MAP"])
def test_words_that_every_map_has_do_not_part_it_from_its_image(tmp_path, name):
    masked_and_weighted(
        read(write(tmp_path / "a.fits", hdu(FLUX, "DATA"), hdu(MASK, "MASK"), hdu(VARIANCE**0.5, name)))
    )


@pytest.mark.parametrize(
    ("name", "right"), [("HSC-G", "g"), ("g DECam SDSS c0001", "g"), ("I", "i"), ("Euclid_VIS", "VIS")]
)
def test_a_filter_of_another_band_is_refused_however_it_is_spelled(tmp_path, name, right):
    path = write(tmp_path / "a.fits", hdu(FLUX, "SCI"), FILTER=name)
    with pytest.raises(StorageError, match=f"its FILTER is {name} but it is given for band r"):
        read(path, filters=("g", "r", "i", "VIS"))
    is_flux(read_image(LSST | {"bands": [right]}, {right: path}, filters=("g", "r", "i", "VIS")))
    is_flux(read(write(tmp_path / "b.fits", hdu(FLUX, "SCI"), FILTER="r.MP9602"), filters=("g", "r", "i", "VIS")))
