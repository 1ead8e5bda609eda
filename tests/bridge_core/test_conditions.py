"""What a model was trained on, and which observing conditions lie outside of it."""

import json
import math

import pytest

from surveybridge.bridge_core.conditions import ConditionRanges, Conditions

BANDS = {"sky": ("u", "w"), "eye": ("broad",)}
UNITS = {"sky": "nJy", "eye": "uJy"}
RANGES = ConditionRanges(
    {
        "sky": {"fwhm": {"u": (0.5, 1.4), "w": (0.45, 1.3)}, "noise": {"u": (0.3, 1.2)}},
        "eye": {"wing": {"broad": (0.0, 0.25)}},
    },
    {"sky": {"fwhm": {"u": 0.8, "w": 0.7}}},
)


def seen(**values: tuple[float, ...]) -> Conditions:
    """Conditions of two bands, of which all others are unknown."""
    unknown = (math.nan, math.nan)
    noise, fwhm, wing, correlation = (values.get(n, unknown) for n in ("noise", "fwhm", "wing", "correlation"))
    return Conditions(noise, fwhm, wing, correlation)


def test_conditions_outside_of_the_training_are_named_with_both_numbers() -> None:
    reasons = RANGES.outside({"sky": seen(fwhm=(1.8, 0.7), noise=(0.1, 5.0))}, BANDS, UNITS)
    assert reasons == [
        "sky u noise 0.1 nJy (trained on 0.3 nJy to 1.2 nJy)",
        'sky u seeing 1.8" (trained on 0.5" to 1.4")',
    ]


@pytest.mark.parametrize("fwhm", [0.5, 1.4, 1.42, 0.495, math.nan])
def test_what_is_inside_or_unknown_is_not_named(fwhm: float) -> None:
    assert RANGES.outside({"sky": seen(fwhm=(fwhm, math.nan))}, BANDS, UNITS) == []


def test_wings_of_a_gaussian_are_zero_and_may_be_out_too() -> None:
    of_one = Conditions((math.nan,), (math.nan,), (0.4,), (math.nan,))
    assert RANGES.outside({"eye": of_one}, BANDS, UNITS) == ["eye broad PSF wings (1/beta) 0.4 (trained on 0 to 0.25)"]


def test_ranges_survive_json() -> None:
    again = ConditionRanges.from_card(json.loads(json.dumps(RANGES.card)))
    assert again == RANGES


def test_the_nominal_conditions_of_an_end_leave_open_what_was_not_stated() -> None:
    nominal = RANGES.nominal_of("sky", ("u", "w"))
    assert nominal.fwhm == (0.8, 0.7)
    assert all(math.isnan(value) for value in (*nominal.noise, *nominal.wing, *nominal.correlation))


def test_the_nominal_value_of_a_single_one_seen_in_training_is_that_one() -> None:
    single = ConditionRanges({"sky": {"fwhm": {"u": (0.7, 0.7), "w": (0.6, 0.9)}}})
    nominal = single.nominal_of("sky", ("u", "w"))
    assert nominal.fwhm[0] == 0.7 and math.isnan(nominal.fwhm[1])


@pytest.mark.parametrize("value", [0.729, 0.733, 0.7, 0.766])
def test_a_single_value_is_matched_within_a_twentieth(value: float) -> None:
    single = ConditionRanges({"sky": {"fwhm": {"u": (0.73, 0.73)}, "noise": {"u": (0.6, 0.6)}}})
    assert single.outside({"sky": seen(fwhm=(value, 1.0), noise=(0.7, 1.0))}, BANDS, UNITS) == []
    assert single.outside({"sky": seen(fwhm=(0.81, 1.0), noise=(0.4, 1.0))}, BANDS, UNITS) == [
        "sky u noise 0.4 nJy (trained on 0.6 nJy)",
        'sky u seeing 0.81" (trained on 0.73")',
    ]
