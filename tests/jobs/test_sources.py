"""The sources of a tile before they are scored: which count, what they are, and bits that one may cut on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from surveybridge.jobs.translating.sources import conditions, find_sources, may_be_lenses
from surveybridge.storage.flags import BITS, CUTS, in_words
from surveybridge.storage.images import MASK_PLANES, SurveyImage
from surveybridge.storage.tiles import Tile
from tests.storage.fits_files import tan_wcs

SIDE = 400
SIGMA = 2.0
CORE = (0, SIDE, 0, SIDE)


def image_of(objects, *, side: int = SIDE, seed: int = 1, survey: str = "euclid", psf: float = 0.16, **planes):
    """Gaussians (x, y, width in pixels, peak in sigma) in white noise; `planes`: boxes (y0, y1, x0, x1) to mask."""
    rng = np.random.default_rng(seed)
    flux = rng.normal(0, SIGMA, (side, side))
    y, x = np.mgrid[:side, :side]
    for column, line, width, peak in objects:
        flux += SIGMA * peak * np.exp(-((x - column) ** 2 + (y - line) ** 2) / (2 * width**2))
    mask = np.zeros((1, side, side), np.uint8)
    for plane, boxes in planes.items():
        for y0, y1, x0, x1 in boxes:
            mask[0, y0:y1, x0:x1] |= MASK_PLANES[plane]
    seen = np.where(mask & MASK_PLANES["NO_DATA"] != 0, np.nan, flux).astype(np.float32)
    variance = np.where(np.isnan(seen), np.nan, SIGMA**2).astype(np.float32)
    return SurveyImage(
        survey, ("VIS",), seen, variance, mask, tan_wcs((side, side), 0.1).to_header_string(), 0.1, (psf,), 31.4, (0.0,)
    )


def flagged(image: SurveyImage, core=CORE, **others: SurveyImage):
    """What was found, its flags beside those of its shape, and masked shares."""
    tile = Tile("t", {image.survey: image, **others}, core, (0, 0), "grid")
    found = find_sources(image, core, 5)
    flags, masked = conditions(tile, found, 1.0)
    return found, found.sources.flags | flags, masked


def at(found, x: float, y: float) -> int:
    """Index of the source at a place."""
    distance = np.hypot(found.sources.x - x, found.sources.y - y)
    assert distance.min() < 2, (x, y)
    return int(distance.argmin())


PSF = 0.16 / 0.1 / 2.3548
"""Standard deviation of the PSF, pixels; a pixel widens it."""
STAR = float(np.hypot(PSF, 12**-0.5))


def test_an_ordinary_object_alone_has_no_flags_and_a_neighbour_only_informs():
    image = image_of([(100, 120, 3, 60), (250, 250, 4, 90), (261, 250, 3, 70), (300, 100, STAR, 300)])
    found, flags, masked = flagged(image)
    assert flags[at(found, 100, 120)] == 0 and flags[at(found, 300, 100)] == 0 and not masked.any()
    for x in (250, 261):
        bits = flags[at(found, x, 250)]
        assert bits == BITS["MERGED"] and bits & CUTS == 0 and in_words(int(bits)) == "deblended"


def test_masked_saturated_and_missing_pixels_each_have_their_bit():
    objects = [(60, 60, 3, 80), (200, 60, 3, 80), (330, 200, 3, 80), (60, 200, 3, 80), (200, 330, 3, 80)]
    image = image_of(
        objects,
        BAD=[(64, 65, 50, 71)],
        SAT=[(58, 62, 198, 202), (195, 197, 355, 358)],
        NO_DATA=[(180, 220, 84, 90)],
    )
    found, flags, masked = flagged(image)
    expected = {
        (60, 60): BITS["APERTURE_MASKED"],
        (200, 60): BITS["APERTURE_MASKED"] | BITS["SATURATED"] | BITS["BRIGHT_STAR"],
        (330, 200): BITS["BRIGHT_STAR"],
        (60, 200): BITS["EDGE"],
        (200, 330): 0,
    }
    for (x, y), bits in expected.items():
        assert flags[at(found, x, y)] == bits, (x, y)
    inside = sum(
        (x - 60) ** 2 + 16 <= 100 for x in range(50, 71)
    )  # of a row of the aperture, 4 pixels above its middle
    assert masked[at(found, 60, 60)] == pytest.approx(inside / (np.pi * 100), rel=0.1)
    kinds = np.array(found.columns["kind"])
    assert kinds[at(found, 200, 60)] == "saturated" and (np.delete(kinds, at(found, 200, 60)) == "object").all()


def test_the_end_of_the_field_is_an_edge_and_that_of_a_core_is_none():
    image = image_of([(15, 200, 3, 80), (200, 200, 3, 80)])
    found, flags, _ = flagged(image)
    assert flags[at(found, 15, 200)] == BITS["EDGE"] and flags[at(found, 200, 200)] == 0
    found, flags, _ = flagged(image, core=(0, SIDE, 195, SIDE))
    assert len(found.sources) == 1 and flags[at(found, 200, 200)] == 0  # the halo shows what lies beyond


def test_a_mask_of_the_other_end_counts_too():
    image = image_of([(100, 120, 3, 60)])
    other = image_of([], survey="lsst", seed=2, BAD=[(115, 125, 100, 101)])
    _, flags, masked = flagged(image, lsst=other)
    assert flags.tolist() == [BITS["APERTURE_MASKED"]] and 0.02 < masked[0] < 0.05


def test_stars_are_stars_and_bright_ones_are_told_of_to_what_lies_near():
    image = image_of(
        [(100, 100, STAR, 9000), (120, 108, 3, 60), (200, 300, STAR, 60), (216, 300, 3, 40), (300, 90, 3, 70)]
    )
    found, flags, _ = flagged(image)
    places = ((100, 100), (120, 108), (200, 300), (216, 300), (300, 90))
    kinds = [found.columns["kind"][at(found, x, y)] for x, y in places]
    assert kinds == ["star", "object", "star", "object", "object"] and len(found.sources) == 5
    near = [bool(flags[at(found, x, y)] & BITS["BRIGHT_STAR"]) for x, y in ((100, 100), (120, 108), (216, 300))]
    assert near == [False, True, False]


def test_what_lies_around_a_saturated_source_goes_with_it():
    image = image_of([(200, 200, 2, 9000), (221, 200, 2, 60), (300, 300, 3, 60)], SAT=[(198, 203, 198, 203)])
    found, _, _ = flagged(image)
    kinds = [found.columns["kind"][at(found, x, y)] for x, y in ((221, 200), (300, 300))]
    assert kinds == ["saturated", "object"]
    head = at(found, 221, 200)
    assert np.hypot(found.head_x[head] - 200, found.head_y[head] - 200) < 6


def test_a_system_across_a_border_has_one_name_from_both_sides():
    objects = [(196, 150, 3, 200), (212, 160, 2, 60), (182, 138, 2, 40), (207, 290, 4, 120), (193, 290, 2, 50)]
    image = image_of(objects)
    heads = {}
    for x0, x1 in ((0, 200), (200, 400)):
        box = (0, SIDE, max(x0 - 64, 0), min(x1 + 64, SIDE))
        part = Tile("t", {"euclid": image}, CORE, (0, 0), "grid").crop(box).images["euclid"]
        found = find_sources(part, (0, SIDE, x0 - box[2], x1 - box[2]), 5)
        for x, y, column, line in zip(found.sources.x, found.sources.y, found.head_x, found.head_y, strict=True):
            heads[round(float(x) + box[2]), round(float(y))] = (column + box[2], line)
    assert len(heads) == 5
    places = np.array(list(heads.values()))
    systems = [places[np.array([y < 220 for _, y in heads])], places[np.array([y > 220 for _, y in heads])]]
    for system, (x, y) in zip(systems, ((196, 150), (207, 290)), strict=True):
        assert np.ptp(system, axis=0).max() < 1e-6  # 0.1 micro-arcsec: the same name
        assert np.hypot(*(system[0] - (x, y))) < 1


@pytest.mark.parametrize("correlated", [False, True])
def test_a_field_of_noise_has_no_candidates_and_a_run_of_the_third_version_keeps_what_it_had(correlated):
    from scipy.ndimage import gaussian_filter

    from surveybridge.storage.photometry import sky_statistics

    image = image_of([], side=1024, seed=8)
    if correlated:
        smooth = gaussian_filter(image.flux[0], 0.7)
        flux = (smooth * SIGMA / smooth.std())[None]
        known = np.ones(flux[0].shape, bool)
        image = replace(image, flux=flux, noise_correlation=(sky_statistics(flux[0], known).correlation,))
    assert len(find_sources(image, (0, 1024, 0, 1024), 4).sources) == 0
    assert len(find_sources(image, (0, 1024, 0, 1024), 3).sources) > (100 if correlated else 0)


def star_field(beta: float, seed: int):
    """(x, y, kind) of stars of magnitude 16 to 24 under a Moffat PSF, discs and compact galaxies, and their image."""
    rng = np.random.default_rng(seed)
    side = 640
    flux = np.zeros((side, side))
    alpha2 = (1.6 / 2) ** 2 / (2 ** (1 / beta) - 1)
    truth = []
    for place in range(36):
        x, y = (80 + 96 * n + rng.uniform(-9, 9) for n in (place % 6, place // 6))
        kind = ("star", "disc", "compact")[place % 3]
        total = 10 ** ((31.4 - np.linspace(16, 24, 12)[place // 3]) / 2.5) if kind == "star" else 4000.0
        half = 75
        first = round(y) - half, round(x) - half
        fine = (np.arange((2 * half + 1) * 5) + 0.5) / 5 - 0.5
        rows, columns = fine[:, None] + first[0] - y, fine + first[1] - x
        width = {"star": 0.0, "disc": 2.5, "compact": 0.8}[kind]
        if kind == "star":
            profile = (beta - 1) / (np.pi * alpha2) * (1 + (rows**2 + columns**2) / alpha2) ** -beta
        else:  # of the convolved profile only the width matters
            s2 = width**2 + (1.6 / 2.3548) ** 2
            profile = np.exp(-(rows**2 + columns**2) / (2 * s2)) / (2 * np.pi * s2)
        stamp = total * profile.reshape(2 * half + 1, 5, 2 * half + 1, 5).mean((1, 3))
        y0, x0 = max(first[0], 0), max(first[1], 0)
        part = flux[y0 : first[0] + 2 * half + 1, x0 : first[1] + 2 * half + 1]
        part += stamp[y0 - first[0] : y0 - first[0] + part.shape[0], x0 - first[1] : x0 - first[1] + part.shape[1]]
        truth.append((x, y, kind))
    variance = SIGMA**2 + flux / 12.1
    seen = flux + np.sqrt(variance) * rng.normal(size=flux.shape)
    image = image_of([], side=side)
    planes = {"flux": seen[None].astype(np.float32), "variance": variance[None].astype(np.float32)}
    return truth, replace(image, **planes)


@pytest.mark.parametrize(("beta", "wing"), [(2.5, 0.4), (2.5, np.nan), (3.4, np.nan), (3.4, 1 / 3.4)])
def test_no_star_of_magnitude_16_to_24_is_scored_under_a_psf_with_wings_and_every_galaxy_is(beta, wing):
    truth, image = star_field(beta, 4)
    image = replace(image, psf_wing=(wing,))
    tile = Tile("t", {"euclid": image}, (0, 640, 0, 640), (0, 0), "grid")
    found = find_sources(image, tile.core, 5)
    flags, masked = conditions(tile, found, 1.0)
    scored = may_be_lenses(found, masked, flags)
    for x, y, kind in truth:
        assert scored[at(found, x, y)] == (kind != "star"), (x, y, kind)
    assert scored.sum() <= 24  # nothing else is made of their wings


def test_largely_masked_and_saturated_sources_are_not_scored_and_a_bad_column_costs_nothing():
    image = image_of(
        [(60, 60, 3, 80), (200, 60, 3, 80), (60, 200, 3, 80), (200, 200, 3, 80)], SAT=[(199, 202, 199, 202)]
    )
    # a bad column of the other end, as wide as its kernel makes it, and one half and almost all of an aperture
    other = image_of([], survey="lsst", seed=2, BAD=[(0, 400, 56, 66), (55, 75, 190, 210), (190, 210, 52, 57)])
    tile = Tile("t", {"euclid": image, "lsst": other}, CORE, (0, 0), "grid")
    found = find_sources(image, CORE, 5)
    flags, masked = conditions(tile, found, 1.0)
    scored = may_be_lenses(found, masked, flags)
    of_places = {place: bool(scored[at(found, *place)]) for place in ((60, 60), (200, 60), (60, 200))}
    assert of_places == {(60, 60): True, (200, 60): False, (60, 200): False}
    assert 0.55 < masked[at(found, 60, 60)] < 2 / 3 < masked[at(found, 200, 60)]
    assert not scored[np.hypot(found.sources.x - 200, found.sources.y - 200) < 8].any()


def test_a_star_is_a_system_of_its_own_and_what_lies_near_is_none_of_it():
    image = image_of([(200, 200, STAR, 900), (214, 205, 3, 60), (230, 205, 3, 40)])
    found, _, _ = flagged(image)
    star, near, other = (at(found, *place) for place in ((200, 200), (214, 205), (230, 205)))
    assert found.columns["kind"][star] == "star"
    assert np.hypot(found.head_x[star] - 200, found.head_y[star] - 200) < 1
    for one in (near, other):
        assert np.hypot(found.head_x[one] - 214, found.head_y[one] - 205) < 1
