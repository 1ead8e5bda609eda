"""Problems, endpoints and directions, and what the three stretches do to values."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.fitting import fit_endpoint, fit_objective
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Endpoint, Problem, from_channels, to_channels
from surveybridge.bridge_core.stretch import AxialStretch, Log10Stretch, MixedStretch, Stretch, stretch_from_card
from surveybridge.bridge_core.training import augment

SKY = Endpoint("sky", ("u", "w"), 0.25)
EYE = Endpoint("eye", ("broad",), 0.08)
ANGLE = Endpoint("angle", ("psi",), 0.0, "deg", False, "axial", stretch=AxialStretch(math.pi / 180))
DEX = Log10Stretch({"n": 3.0}, {"n": 0.5}, {"n": 1e-2})
DENSITY = Endpoint("density", ("n",), 0.0, "cm-3", False, "log10", stretch=DEX)


def test_a_direction_is_the_index_of_the_wanted_endpoint():
    problem = Problem("sky-eye", (SKY, EYE), catalog="eye")
    assert [(str(d), d.index) for d in problem.directions] == [("eye->sky", 0), ("sky->eye", 1)]
    assert problem.to("eye") == problem.direction("sky->eye") == problem.scored
    assert problem["sky"] is SKY
    assert problem.channels == 2


def test_a_one_way_problem_has_one_direction_and_refuses_the_other():
    problem = Problem("sky-eye", (SKY, EYE), wanted="eye")
    assert list(map(str, problem.directions)) == ["sky->eye"]
    assert problem.scored is None
    with pytest.raises(BridgeError, match=r"sky-eye goes one way, to eye; eye->sky was not trained"):
        problem.to("sky")
    with pytest.raises(BridgeError, match="eye->sky was not trained"):
        problem.direction("eye->sky")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Endpoint("sky", (), 0.2), "endpoint sky has no bands; give at least one"),
        (lambda: Endpoint("sky", ("u", "v", "u"), 0.2), "endpoint sky has the band u twice; give each band once"),
        (lambda: Problem("p", (SKY, SKY)), "both endpoints are named sky"),
        (lambda: Problem("p", (SKY, EYE), catalog="ear"), "catalog ear is not an endpoint; give sky or eye"),
        (lambda: Problem("p", (SKY, EYE), wanted="ear"), "wanted ear is not an endpoint"),
        (lambda: Problem("p", (SKY, EYE))["ear"], "'ear' is not an endpoint of p, which joins sky and eye"),
        (
            lambda: Problem("p", (SKY, EYE)).direction("sky->ear"),
            "direction 'sky->ear' is not one of eye->sky, sky->eye",
        ),
        (lambda: Problem("p", (SKY, EYE)).to("sky").wanted.fitted, "no stretch for sky, so it cannot take nJy"),
        (lambda: stretch_from_card({"kind": "cube"}), "stretch 'cube' is not one of asinh, linear, log10, axial"),
        (lambda: Log10Stretch({"n": 0.0}, {"n": 0.0}, {"n": 1.0}), "must be > 0"),
    ],
)
def test_what_is_no_problem_is_refused_in_one_line(make, said):
    with pytest.raises(BridgeError) as refused:
        make()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_problem_is_what_its_table_and_its_card_say():
    sky = Endpoint("sky", ("u", "w"), 0.25, title="The sky", rgb=("w", "u", "u"), stretch=Stretch({"u": 1.0, "w": 2.0}))
    problem = Problem("p", (sky, DENSITY), wanted="density", objective={"sigma_data": 0.4})
    titled = replace(problem, endpoints=(sky, replace(DENSITY, title="density")))  # a name stands in for a title
    assert Problem.from_table(json.loads(json.dumps(problem.card))) == titled
    bare = Problem.from_table(problem.table)
    assert [end.stretch for end in bare.endpoints] == [None, None]
    assert bare["density"].kind == "log10" and bare["density"].extensive is False


@pytest.mark.parametrize(
    ("planes", "channels", "shown"),
    [(1, 3, [0, 0, 0]), (3, 3, [0, 1, 2]), (4, 6, [0, 0, 1, 2, 2, 3]), (2, 3, [0, 0, 1]), (5, 6, [0, 0, 1, 2, 3, 4])],
)
def test_channel_k_of_c_shows_plane_k_p_over_c_and_comes_back_as_their_mean(planes, channels, shown):
    u = torch.randn(2, planes, 4, 5)
    spread = to_channels(u, channels)
    assert torch.equal(spread, u[:, shown])
    torch.testing.assert_close(from_channels(spread, planes), u)
    noisy = spread + torch.randn_like(spread)
    expected = torch.stack([noisy[:, [k for k, p in enumerate(shown) if p == q]].mean(1) for q in range(planes)], 1)
    torch.testing.assert_close(from_channels(noisy, planes), expected)


def test_log10_is_inverted_and_what_is_not_positive_counts_as_the_floor():
    n = torch.tensor([1e-2, 1.0, 1e3, 1e7]).view(1, 2, 2)
    u = DENSITY.forward(n, 1)
    assert float(u[0, 1, 0]) == 0.0  # 1e3 is the offset
    torch.testing.assert_close(DENSITY.inverse(u), n, rtol=1e-5, atol=0)
    low = DENSITY.forward(torch.tensor([0.0, -5.0, 1e-9, 1e-2]).view(1, 2, 2), 1)
    assert torch.equal(low, low[0, 1, 1].expand(1, 2, 2))


def test_moments_of_column_densities_do_not_overflow_float32():
    stretch = Log10Stretch({"N": 22.0}, {"N": 0.5}, {"N": 1e18})
    samples = 1e22 * (1 + 0.1 * torch.randn(64, 1, 3, 3))
    assert torch.isinf(samples.var(0)).all()
    within = stretch.averaged(samples, ("N",))
    mean, std = stretch.summary(within.mean(0), within.std(0), ("N",))
    torch.testing.assert_close(mean.double(), samples.double().mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(std.double(), samples.double().std(0), rtol=1e-4, atol=0)


def test_angles_are_inverted_and_averaged_over_their_seam():
    psi = torch.tensor([-89.0, -30.0, 0.0, 45.0, 89.0, 12.5]).view(1, 2, 3)
    assert ANGLE.planes == 2
    torch.testing.assert_close(ANGLE.inverse(ANGLE.forward(psi, 2)), psi, rtol=1e-5, atol=1e-4)
    assert torch.equal(to_channels(ANGLE.forward(psi, 2), 4)[0], ANGLE.forward(psi, 4)[1])
    around = torch.tensor([88.0, -88.0, 89.0, -89.0]).view(4, 1, 1, 1)  # +-90 degrees are one direction
    planes = ANGLE.fitted.averaged(around, ANGLE.bands)
    mean, std = ANGLE.fitted.summary(planes.mean(0), planes.std(0), ANGLE.bands)
    assert abs(abs(float(mean)) - 90) < 1e-3
    assert 1.0 < float(std) < 2.5  # of 2, 2, 1, 1 degrees


@pytest.mark.parametrize("seed", range(8))
def test_augmentation_turns_angles_with_the_image(seed):
    # psi = direction of the gradient of a plane-wave-like field, which no rotation changes relative to the image
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    field = x**2 + 0.3 * x * y + 0.1 * y**3 + 0.7 * y
    problem = Problem("p", (Endpoint("map", ("f",), 0.0, stretch=Stretch({"f": 1.0})), ANGLE))

    def angle_of(image):
        dy, dx = torch.gradient(image)
        return torch.rad2deg(torch.atan2(dy, dx))

    ends = (field.expand(1, 2, 16, 16), ANGLE.forward(angle_of(field)[None], 2)[None])
    first, second = augment(ends, problem, torch.Generator().manual_seed(seed), roll=False)
    expected = ANGLE.forward(angle_of(first[0, 0])[None], 2)
    torch.testing.assert_close(second[0][:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=0, atol=1e-3)


# ---- ends of several quantities

SEEN = Endpoint(
    "seen",
    ("N", "psi", "width"),
    0.0,
    "",
    False,
    "mixed",
    units=("cm-2", "rad", "km s-1"),
    kinds=("log10", "axial", "log10"),
)
MAGNET = Endpoint("magnet", ("B",), 0.0, "uG", False, "log10")


def maps_of(generator: torch.Generator, count: int = 24, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns, angles and widths [N, 3, H, W] of very different values, and field strengths [N, 1, H, W]."""
    draw = torch.randn(count, 4, size, size, generator=generator)
    seen = torch.stack([10 ** (21.5 + 0.4 * draw[:, 0]), draw[:, 1], 10 ** (0.3 * draw[:, 2])], 1)
    return seen, 10 ** (1.2 + 0.2 * draw[:, 3:])


@pytest.fixture
def dust() -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """A fitted problem with its maps, in which pixels are missing."""
    seen, magnet = maps_of(torch.Generator().manual_seed(3))
    seen[0, 1, 2, 2] = torch.nan
    ends = (fit_endpoint(SEEN, seen, {}), fit_endpoint(MAGNET, magnet, {}))
    return Problem("dust", ends, wanted="magnet"), seen, magnet


def test_each_quantity_has_its_own_stretch_and_comes_back(dust):
    problem, seen, magnet = dust
    first, second = problem.endpoints
    assert (first.planes, second.planes, problem.channels) == (4, 1, 4)
    assert first.band_of == [0, 1, 1, 2]
    u = first.forward(seen, 4)
    for band, alone in enumerate(SEEN.quantities):
        part = fit_endpoint(alone, seen[:, band : band + 1], {})
        planes = [plane for plane, of in enumerate(first.band_of) if of == band]
        assert torch.equal(u[:, planes].nan_to_num(7.0), part.forward(seen[:, [band]], len(planes)).nan_to_num(7.0))
    assert all(float(u[1:, plane].std()) == pytest.approx(0.5, abs=0.2) for plane in range(4))
    psi = torch.remainder(seen[:, 1], math.pi)
    again = first.inverse(u)
    torch.testing.assert_close(again[1:, ::2], seen[1:, ::2], rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.remainder(again[1:, 1], math.pi), psi[1:], rtol=0, atol=1e-5)
    assert bool(torch.isnan(again[0, 1, 2, 2])) and torch.isfinite(again[0, ::2]).all()
    # the wanted end is shown in as many channels, and comes back as their mean
    spread = second.forward(magnet, 4)
    assert all(torch.equal(spread[:, k], spread[:, 0]) for k in range(4))
    torch.testing.assert_close(second.inverse(spread), magnet, rtol=1e-4, atol=0)


def test_moments_of_each_quantity_are_those_of_its_stretch(dust):
    problem, seen, _ = dust
    stretch, bands = problem["seen"].fitted, SEEN.bands
    within = stretch.averaged(seen[1:], bands)
    mean, std = stretch.summary(within.mean(0), within.std(0), bands)
    for band, alone in enumerate(SEEN.quantities):
        own = fit_endpoint(alone, seen[:, [band]], {}).fitted
        part = own.averaged(seen[1:, [band]], alone.bands)
        expected = own.summary(part.mean(0), part.std(0), alone.bands)
        torch.testing.assert_close(mean[[band]], expected[0])
        torch.testing.assert_close(std[[band]], expected[1])


def test_its_card_and_table_say_units_and_stretches_by_band_and_others_do_not(dust):
    problem, _, _ = dust
    table = problem.table["endpoints"]
    assert table[0]["units"] == {"N": "cm-2", "psi": "rad", "width": "km s-1"}
    assert table[0]["stretches"] == {"N": "log10", "psi": "axial", "width": "log10"}
    assert "units" not in table[1] and "stretches" not in table[1]
    again = Problem.from_table(json.loads(json.dumps(problem.card)))
    assert [end.stretch for end in again.endpoints] == [end.stretch for end in problem.endpoints]
    assert again["seen"].flips(4).tolist() == [0, 1, 2, 0] and again.channels == 4
    with pytest.raises(BridgeError, match="3 bands, 1 units and 0 stretches; give one of each"):
        Endpoint("seen", SEEN.bands, 0.0, "", False, "mixed", units=("cm-2",))
    with pytest.raises(BridgeError, match="band width is not in this checkpoint's stretch"):
        MixedStretch({"N": DEX}).forward(torch.ones(1, 2, 2), ("width",))


@pytest.mark.parametrize("seed", range(8))
def test_augmentation_turns_only_the_angle_of_an_end_of_several_quantities(seed, dust):
    """Maps of a vector field, turned: the angle follows, all other bands are only moved, whatever the turn."""
    problem, _, _ = dust
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    field = x**2 + 0.3 * x * y + 0.1 * y**3 + 0.7 * y

    def maps(image):
        dy, dx = torch.gradient(image)
        steepness = (dx**2 + dy**2).sqrt() + 0.01
        return torch.stack([10 ** (21 + image), torch.atan2(dy, dx), steepness]), 10 * steepness[None]

    seen, magnet = maps(field)
    ends = (problem["seen"].forward(seen[None], 4), problem["magnet"].forward(magnet[None], 4))
    first, second = augment(ends, problem, torch.Generator().manual_seed(seed), roll=False)
    # what the bands should be follows from the turned image alone
    turned = problem["seen"].inverse(first)[0, 0].log10() - 21
    seen, magnet = maps(turned)
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(first[0][inner], problem["seen"].forward(seen, 4)[inner], rtol=0, atol=2e-3)
    torch.testing.assert_close(second[0][inner], problem["magnet"].forward(magnet, 4)[inner], rtol=0, atol=2e-3)


# ---- what training takes from the data


def test_softening_is_twice_the_noise_that_is_stated_and_twice_that_of_the_data_elsewhere():
    values = torch.randn(64, 2, 16, 16) * torch.tensor([3.0, 0.5]).view(2, 1, 1)
    values[:, :, :3] = torch.nan
    fitted = fit_endpoint(SKY, values, {"u": 2.5, "w": math.nan}).stretch
    assert isinstance(fitted, Stretch)
    assert fitted.softening["u"] == 5.0
    assert fitted.softening["w"] == pytest.approx(1.0, rel=0.05)


def test_a_density_is_centred_and_scaled_to_half_a_unit():
    logs = 4.0 + 0.8 * torch.randn(32, 1, 16, 16)
    fitted = fit_endpoint(DENSITY, 10**logs, {})
    u = fitted.forward(10**logs, 1)
    assert float(u.mean()) == pytest.approx(0, abs=0.01)
    assert float(u.std()) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    ("end", "values", "said"),
    [
        (DENSITY, torch.zeros(2, 1, 8, 8), "no value of band n is positive"),
        (DENSITY, torch.full((2, 1, 8, 8), torch.nan), "band n has no data in the first 2 pairs"),
        (EYE, torch.full((2, 1, 8, 8), 7.0), "all values of band broad are 7"),
        (Endpoint("a", ("p",), 0.0, "arcmin", False, "axial"), torch.ones(2, 1, 8, 8), "angles in arcmin"),
    ],
)
def test_data_that_a_stretch_does_not_fit_are_refused(end, values, said):
    with pytest.raises(BridgeError, match=said):
        fit_endpoint(end, values, {})


def test_the_objective_takes_what_the_file_states_and_measures_the_rest():
    first, second = 20 * torch.randn(16, 2, 8, 8), 3 * torch.randn(16, 1, 8, 8)
    ends = (fit_endpoint(SKY, first, {}), fit_endpoint(EYE, second, {}))
    both = fit_objective("edm", Problem("p", ends), (first, second))
    assert both.log_sigma_mean == pytest.approx(math.log(both.sigma_data) - 0.2, abs=1e-3)
    one_way = fit_objective("edm", Problem("p", ends, wanted="eye"), (first, second))
    assert one_way.sigma_data == pytest.approx(float(ends[1].forward(second, 2).std()), rel=0.01)
    stated = {"sigma_data": 0.3, "log_sigma_mean": -1.4, "log_sigma_std": 1.5}
    assert fit_objective("edm", Problem("p", ends, objective=stated), ()) == Objective("edm", 0.3, -1.4, 1.5)
