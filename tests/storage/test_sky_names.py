"""Names of objects follow the IAU's rule: coordinates are cut off, never rounded up."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import Angle

from surveybridge.storage.sky import sky_name


@pytest.mark.parametrize(
    ("position", "name"),
    [
        ((359.999996, 45.0), "SB J235959.99+450000.0"),
        ((359.9999999999, 45.0), "SB J235959.99+450000.0"),
        ((0.0, -0.0), "SB J000000.00+000000.0"),
        ((360.0, -0.00001), "SB J000000.00-000000.0"),
        ((187.70593, 12.391123), "SB J123049.42+122328.0"),
        ((14.99999, -0.000027), "SB J005959.99-000000.0"),
        ((75.25, 89.9999999), "SB J050100.00+895959.9"),
        ((75.25, -90.0), "SB J050100.00-900000.0"),
        ((150.1, 2.2), "SB J100024.00+021200.0"),  # neither is a binary number
        ((150.1 - 1e-7, 2.2 - 1e-7), "SB J100023.99+021159.9"),
    ],
)
def test_names_are_truncated(position, name):
    assert sky_name(*position) == name


def test_a_name_never_lies_beyond_its_object():
    rng = np.random.default_rng(8)
    for ra, dec in zip(rng.uniform(0, 360, 300), rng.uniform(-90, 90, 300), strict=True):
        name = sky_name(ra, dec).removeprefix("SB J")
        named = Angle(f"{name[:2]}h{name[2:4]}m{name[4:9]}s").deg, Angle(f"{name[9:12]}d{name[12:14]}m{name[14:]}s").deg
        assert 0 <= ra - named[0] < 0.15 / 3600 + 1e-9
        assert 0 <= abs(dec) - abs(named[1]) < 0.1 / 3600 + 1e-9
