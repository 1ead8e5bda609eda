"""Lists of known stars: read from any table, limited to the tiles, and matched with objects."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from surveybridge.storage.errors import StorageError
from surveybridge.storage.star_lists import StarList, read_stars
from surveybridge.storage.tiles import TileStore
from tests import tiny
from tests.storage.fits_files import tan_wcs

WCS = tan_wcs((200, 200), 0.1)


def stars_at(places, magnitude=None, radius=0.4):
    """Listed stars at (x, y)."""
    x, y = np.array(places, float).T
    ra, dec = WCS.all_pix2world(x, y, 0)
    return StarList(ra, dec, np.full(len(ra), np.nan) if magnitude is None else np.array(magnitude), radius)


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "parquet", "vot", "csv.gz"])
def test_tables_of_any_kind_are_read_with_a_magnitude_if_there_is_one(tmp_path, ending):
    table = Table({"RA_ICRS": [53.2, 53.1, np.nan], "DE_ICRS": [-28.0, -28.1, -28.0], "Gmag": [14.5, np.nan, 17.0]})
    path = tmp_path / f"list.{ending}"
    if ending == "csv.gz":
        import gzip

        table.write(tmp_path / "list.csv")
        path.write_bytes(gzip.compress((tmp_path / "list.csv").read_bytes()))
    else:
        table.write(path, **({"format": "votable"} if ending == "vot" else {}))
    found = read_stars(path, 0.7)
    assert found.ra.tolist() == [53.1, 53.2] and found.dec.tolist() == [-28.1, -28.0] and found.radius == 0.7
    assert np.isnan(found.magnitude[0]) and found.magnitude[1] == 14.5


def test_the_digest_follows_what_is_matched_and_not_the_order_or_the_file(tmp_path):
    for name, rows in {"a.csv": [0, 1], "b.ecsv": [1, 0]}.items():
        Table({"ra": [10.0, 11.0], "dec": [1.0, 2.0], "mag": [15.0, 16.0]})[rows].write(tmp_path / name)
    first, second = (read_stars(tmp_path / name, 0.5) for name in ("a.csv", "b.ecsv"))
    assert first.digest == second.digest != read_stars(tmp_path / "a.csv", 0.6).digest
    assert not np.isnan(first.magnitude).any()


def test_what_is_no_list_of_stars_is_refused(tmp_path):
    Table({"ra": [np.nan], "dec": [1.0]}).write(tmp_path / "empty.csv")
    Table({"ra": [10.0], "dec": [1.0], "mag": ["bright"]}).write(tmp_path / "words.csv")
    Table({"flux": [10.0]}).write(tmp_path / "flux.csv")
    for name, reason in (
        ("empty.csv", "0 rows have a position"),
        ("words.csv", "column mag holds string"),
        ("flux.csv", "flux.csv"),
    ):
        with pytest.raises(StorageError, match=reason):
            read_stars(tmp_path / name, 0.5)


def test_each_star_is_the_object_nearest_to_it_within_the_radius():
    stars = stars_at([(50.0, 50.0), (120.0, 80.0), (150.0, 150.0), (195.0, 20.0)], [22.0, 19.0, np.nan, 12.0])
    x, y = np.array([52.0, 53.5, 120.5, 146.0, 30.0]), np.array([50.0, 50.0, 80.2, 152.0, 30.0])
    found = stars.match(WCS, x, y, (0, 160, 0, 160))
    assert found.matched.tolist() == [True, False, True, False, False]  # 0.4" are four pixels; the third is 4.5 away
    assert found.in_core == 3
    assert found.bright_x == pytest.approx([120.0, 195.0], abs=1e-6) and found.bright_y == pytest.approx([80.0, 20.0])
    nothing = stars.match(WCS, np.zeros(0), np.zeros(0), (0, 160, 0, 160))
    assert nothing.in_core == 3 and not len(nothing.matched)


def test_stars_elsewhere_on_the_sky_are_left_out_also_those_behind_the_projection():
    here = stars_at([(50.0, 50.0)])
    far = StarList(
        np.array([here.ra[0], here.ra[0] + 180, 0.0]), np.array([here.dec[0], -here.dec[0], 89.0]), np.ones(3), 0.5
    )
    found = far.match(WCS, np.array([50.0]), np.array([50.0]), (0, 200, 0, 200))
    assert found.matched.all() and found.in_core == 1


def test_only_stars_in_or_around_the_tiles_are_kept(tmp_path):
    store = TileStore.open(tiny.write_store(tmp_path / "tiles"))
    image = store.read_tile("t0000").images["euclid"]
    x = np.array([10.0, 100.0, -40.0, 5000.0])
    ra, dec = image.wcs.all_pix2world(x, np.full(4, 20.0), 0)
    listed = StarList(ra, dec, np.arange(4.0), 0.5)
    assert listed.near(store.manifest()).magnitude.tolist()[:2] == [0.0, 1.0]
    assert 3.0 not in listed.near(store.manifest()).magnitude
