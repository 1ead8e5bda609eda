"""nJy <-> network units."""

from __future__ import annotations

import json

import pytest
import torch

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.stretch import Stretch

SIGMA = 0.35
STRETCH = Stretch({"g": 2 * SIGMA, "r": 0.9, "VIS": 4.0})


def test_round_trip_from_minus_ten_sigma_to_a_saturated_star():
    flux = torch.cat([torch.linspace(-10 * SIGMA, 10 * SIGMA, 2001), torch.logspace(0, 6, 2001)])
    image = flux.view(1, 1, -1).expand(2, 1, -1)
    back = STRETCH.inverse(STRETCH.forward(image, ("g", "r")), ("g", "r"))
    assert back.dtype == torch.float32
    # u / scale is at most 15.4 and sinh turns its rounding, 2^-24 relative, into so much relative error of flux
    torch.testing.assert_close(back, image, rtol=16 * 2**-23, atol=1e-6 * SIGMA)


def test_round_trip_in_double_is_exact():
    image = torch.logspace(-3, 6, 500, dtype=torch.float64).view(1, 1, -1)
    torch.testing.assert_close(STRETCH.inverse(STRETCH.forward(image, ("g",)), ("g",)), image, rtol=1e-13, atol=0)


def test_sky_is_zero_and_the_sign_is_kept():
    assert (STRETCH.forward(torch.zeros(2, 3, 3), ("g", "VIS")) == 0).all()
    assert (STRETCH.inverse(torch.zeros(2, 3, 3), ("g", "VIS")) == 0).all()
    flux = torch.randn(1, 5, 5) * 1e3
    # negative fluxes as precise as positive ones (asinh by its logarithm loses them)
    torch.testing.assert_close(STRETCH.forward(-flux, ("g",)), -STRETCH.forward(flux, ("g",)), rtol=1e-6, atol=0)


def test_brighter_is_higher():
    flux = torch.cat([-torch.logspace(3, -3, 300), torch.logspace(-3, 6, 600)]).view(1, 1, -1)
    assert (STRETCH.forward(flux, ("VIS",)).diff() > 0).all()


def test_every_band_has_its_own_softening():
    u = STRETCH.forward(torch.tensor([2 * SIGMA, 4.0]).view(2, 1, 1), ("g", "VIS"))
    assert float(u[0]) == pytest.approx(float(u[1]), rel=1e-6)
    assert float(u[0]) == pytest.approx(STRETCH.unit(1.0, "g"), rel=1e-6)


def test_bands_follow_the_order_asked_for_and_leading_axes_pass_through():
    flux = torch.rand(4, 2, 3, 3) * 10
    u = STRETCH.forward(flux, ("g", "VIS"))
    torch.testing.assert_close(STRETCH.forward(flux.flip(1), ("VIS", "g")), u.flip(1), rtol=0, atol=0)


def test_unknown_band_is_refused_with_those_that_are_known():
    with pytest.raises(BridgeError, match=r"\['z'\].*\['VIS', 'g', 'r'\]"):
        STRETCH.forward(torch.zeros(2, 1, 1), ("g", "z"))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_softening_that_cannot_be_inverted_is_refused(value):
    with pytest.raises(BridgeError, match="band g"):
        Stretch({"g": value})


def test_card_goes_through_json():
    assert Stretch.from_card(json.loads(json.dumps(STRETCH.card))) == STRETCH
