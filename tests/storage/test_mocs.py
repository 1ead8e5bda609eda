"""MOCs of every form as mocpy reads them, and what is none, or not of the sky in ICRS, refused in one line."""

from __future__ import annotations

import gzip

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Latitude, Longitude
from astropy.io import fits
from astropy.time import Time
from mocpy import MOC, STMOC, FrequencyMOC, TimeMOC

from surveybridge.storage.errors import StorageError
from surveybridge.storage.mocs import read_moc


@pytest.fixture(scope="module")
def moc():
    return MOC.from_cone(Longitude(211.3 * u.deg), Latitude(-54.2 * u.deg), radius=0.7 * u.deg, max_depth=12)


def cells(moc: MOC) -> list[list[int]]:
    return [[int(first), int(end) - 1] for first, end in moc.to_depth29_ranges]


def table(column: fits.Column, **cards: object) -> fits.HDUList:
    hdu = fits.BinTableHDU.from_columns([column])
    hdu.header.update({"PIXTYPE": "HEALPIX", "COORDSYS": "C"} | cards)
    return fits.HDUList([fits.PrimaryHDU(), hdu])


def nuniq(moc: MOC) -> np.ndarray:
    numbers = (4 ** (int(order) + 1) + np.array(listed) for order, listed in moc.serialize("json").items())
    return np.concatenate(list(numbers))


def forms(moc: MOC, folder) -> dict[str, str]:
    moc.save(folder / "v2.fits", format="fits")
    moc.save(folder / "a.json", format="json")
    moc.save(folder / "a.txt", format="ascii")
    text = (folder / "a.txt").read_text()
    unique = nuniq(moc)
    (folder / "v2.fits.gz").write_bytes(gzip.compress((folder / "v2.fits").read_bytes()))
    table(fits.Column("NPIX", "J", array=unique), ORDERING="NUNIQ", MOCORDER=12).writeto(folder / "v1.fits")
    table(fits.Column("UNIQ", "K", array=unique[::-1]), ORDERING="nuniq ", MOCORDER=12).writeto(folder / "long.fits")
    ranges = np.asarray(moc.to_depth29_ranges, np.int64).ravel() >> 32
    table(fits.Column("RANGE", "J", array=ranges), ORDERING="RANGE", MOCDIM="SPACE").writeto(folder / "short.fits")
    (folder / "bom.txt").write_text("# MOCORDER 12\n" + text.replace(" ", ","), "utf-8-sig")
    names = ("v2.fits", "v2.fits.gz", "v1.fits", "long.fits", "short.fits", "a.json", "a.txt", "bom.txt")
    return {name: str(folder / name) for name in names} | {"cells": text, "letter": f"s{text} 29/"}


def test_every_form_is_the_same_coverage(moc, tmp_path):
    wanted = cells(moc)
    assert len(wanted) > 20
    given = forms(moc, tmp_path)
    assert {name: read_moc(where).cells.tolist() for name, where in given.items()} == dict.fromkeys(given, wanted)


def test_cells_of_the_finest_order_keep_their_number(tmp_path):
    last = 12 * 4**29 - 1
    table(fits.Column("UNIQ", "K", array=[4**30 + last, 4**30 + 5]), ORDERING="NUNIQ").writeto(tmp_path / "m.fits")
    assert (
        read_moc(tmp_path / "m.fits").cells.tolist()
        == read_moc(f"29/5 {last}").cells.tolist()
        == [[5, 5], [last, last]]
    )


TIMES = Time([58849.0], format="mjd"), Time([58850.0], format="mjd")
NUMBERS = fits.Column("UNIQ", "K", array=[4 * 4**3 + 7])


def test_mocs_of_time_and_frequency_are_refused(moc, tmp_path):
    made = {
        "TIME": TimeMOC.from_time_ranges(*TIMES, delta_t=TIMES[1][0] - TIMES[0][0]),
        "TIME.SPACE": STMOC.from_spatial_coverages(*TIMES, [moc]),
        "FREQUENCY": FrequencyMOC.from_frequencies(8, [1.4e9] * u.Hz),
    }
    for dimension, other in made.items():
        other.save(tmp_path / f"{dimension}.fits", format="fits")
        with pytest.raises(StorageError, match=f"is a MOC of {dimension}, not of SPACE alone; give"):
            read_moc(tmp_path / f"{dimension}.fits")
    made["TIME.SPACE"].save(tmp_path / "st.json", format="json")
    made["TIME.SPACE"].save(tmp_path / "st.txt", format="ascii")
    for where in (tmp_path / "st.json", tmp_path / "st.txt", "t61/3 s 3/7", "t20/5", "f10/3", '{"t": {"20": [5]}}'):
        with pytest.raises(StorageError, match="not of SPACE alone"):
            read_moc(where)


@pytest.mark.parametrize("frame", ["G", "E", "GALACTIC"])
def test_other_frames_are_refused(tmp_path, frame):
    table(NUMBERS, ORDERING="NUNIQ", COORDSYS=frame).writeto(tmp_path / "m.fits")
    (tmp_path / "m.json").write_text(f'{{"COORDSYS": "{frame}", "3": [7]}}')
    (tmp_path / "m.txt").write_text(f"#COORDSYS={frame}\n3/7\n")
    for name in ("m.fits", "m.json", "m.txt"):
        with pytest.raises(StorageError, match=f"is in the frame {frame}, not ICRS") as error:
            read_moc(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, complaint",
    [
        ("", "neither a file"), ("deep.fits", "neither a file"), ("5/1 x", "neither a file"), ("17", "neither a file"),
        ("5/-3", "neither a file"), ('{"5": [1.5]}', "neither a file"), ('{"5": 1}', "neither a file"),
        ("5/", "covers nothing"), ("{}", "covers nothing"), ('{"5": []}', "covers nothing"),
        ("5/12288", "5/12288-12288; cells of order 5 ascend within 0..12287"), ("5/9-7", "5/9-7; cells of order 5"),
        ("30/1", "order 30, above 29"), ('{"5": [-1]}', "cells of order 5"),
    ],
)  # fmt: skip
def test_text_that_is_no_moc_is_refused(given, complaint):
    with pytest.raises(StorageError, match=complaint) as error:
        read_moc(given)
    assert "\n" not in str(error.value)


def fits_that_are_none() -> dict[str, fits.HDUList]:
    sky = fits.BinTableHDU.from_columns([NUMBERS, fits.Column("PROBDENSITY", "D", array=[1.0])])
    sky.header.update(ORDERING="NUNIQ", COORDSYS="C")
    return {
        "columns UNIQ, PROBDENSITY": fits.HDUList([fits.PrimaryHDU(), sky]),
        "ORDERING = NESTED": table(fits.Column("T", "E", array=np.ones(12)), ORDERING="NESTED"),
        "ORDERING = nothing": table(NUMBERS),
        "covers nothing": table(fits.Column("UNIQ", "K", array=np.zeros(0, np.int64)), ORDERING="NUNIQ"),
        "3 ends of ranges": table(fits.Column("RANGE", "K", array=[1, 2, 3]), ORDERING="RANGE"),
        "end before they begin": table(fits.Column("RANGE", "K", array=[9, 2]), ORDERING="RANGE"),
        "NUNIQ cell 3": table(fits.Column("UNIQ", "K", array=[3]), ORDERING="NUNIQ"),
        "outside the sky": table(fits.Column("RANGE", "K", array=[0, 12 * 4**29 + 1]), ORDERING="RANGE"),
        "has no table": fits.HDUList([fits.PrimaryHDU(np.zeros((3, 3)))]),
    }


@pytest.mark.parametrize("complaint", fits_that_are_none())
def test_fits_that_is_no_moc_is_refused(tmp_path, complaint):
    fits_that_are_none()[complaint].writeto(tmp_path / "m.fits")
    with pytest.raises(StorageError, match=complaint) as error:
        read_moc(tmp_path / "m.fits")
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused(moc, tmp_path):
    moc.save(tmp_path / "m.fits", format="fits")
    whole = (tmp_path / "m.fits").read_bytes()
    file = tmp_path / ("deep" * 20) / "cut.fits"  # the name of a file is never cut short
    file.parent.mkdir()
    for data in (whole[: len(whole) // 3], gzip.compress(whole)[:-40]):
        file.write_bytes(data)
        with pytest.raises(StorageError, match=r"cut.fits'? (cannot be read|has)") as error:
            read_moc(file)
        assert "\n" not in str(error.value)
