"""Maps of simulated clouds: projections, views, beams and noise, units, and the plans of the suites."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from surveybridge.jobs.clouds.fractional import fractional_cube
from surveybridge.jobs.clouds.gravity import strength
from surveybridge.jobs.clouds.projection import AXES, angle, physical_maps, project, random_rotation, turn
from surveybridge.jobs.clouds.simulation import collide
from surveybridge.jobs.clouds.state import divergence, rms_velocity, uniform
from surveybridge.jobs.clouds.suites import SUITES, plan_of
from surveybridge.jobs.clouds.telescope import COLUMN_FLOOR, COLUMN_SHARE, STOKES_SHARE, Telescope, smooth
from surveybridge.jobs.clouds.units import CloudUnits, with_gravity
from surveybridge.storage.map_names import CLOUD_MAPS

UNITS = CloudUnits(500.0)


def some_cube(n: int = 16, tail: bool = True) -> Tensor:
    return fractional_cube(3.0, (1.0, 0.5, -2.0), tail, torch.zeros(n, n, n, dtype=torch.float64), 3)


def maps_of(cube: Tensor) -> dict[str, Tensor]:
    return physical_maps(project(cube), UNITS)


def test_gas_that_is_the_same_everywhere_has_the_maps_of_its_numbers():
    cube = torch.ones(7, 8, 8, 8, dtype=torch.float64)
    cube[0] = 2.0
    cube[3, ..., ::2] = -3.0  # half of it comes, half goes
    cube[3, ..., 1::2] = 1.0
    cube[4:] = torch.tensor([1.5, 2.0, 6.0], dtype=torch.float64)[:, None, None, None]
    expected = {
        "column": 2 * 500 * 4 * 3.0857e18,
        "density": 1000.0,
        "psi": math.atan2(1.5, 2.0),
        "sigma_v": 2 * 1.9e4,
        "field": 2.5 * 1e6 * math.sqrt(4 * math.pi * 2.34e-24 * 500) * 1.9e4,
        "field_total": 6.5 * UNITS.field,
    }
    found = maps_of(cube)
    assert found.keys() == expected.keys() and {*found} == {
        name for name in CLOUD_MAPS if not name.endswith("_observed")
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9)
    assert CloudUnits(1000.0).field == pytest.approx(3.26, abs=0.01)
    assert CloudUnits(1000.0).column == pytest.approx(1.23e22, rel=0.01)


def test_lines_of_sight_weigh_by_mass():
    cube = torch.zeros(7, 8, 8, 8, dtype=torch.float64)
    cube[0], cube[4] = 1.0, 1.0
    cube[0, ..., 0] = 9.0
    cube[4, ..., 0] = 5.0
    found = maps_of(cube)
    np.testing.assert_allclose(found["column"], 2.0 * UNITS.column)
    np.testing.assert_allclose(found["density"], (81 + 7) / 16 * 500)
    np.testing.assert_allclose(found["field"], (9 * 5 + 7) / 16 * UNITS.field)


def test_what_is_not_resolved_is_no_data_of_what_is_wanted():
    cube = some_cube()
    limit = float(cube[0].max()) * 0.9
    found = physical_maps(project(cube), UNITS, limit)
    missing = torch.isnan(found["density"])
    torch.testing.assert_close(missing, cube[0].amax(-1) > limit)
    assert missing.any() and not missing.all() and bool((torch.isnan(found["field"]) == missing).all())
    assert all(bool(torch.isfinite(found[name]).all()) for name in ("column", "psi", "sigma_v"))


@pytest.mark.parametrize("view", range(3))
def test_views_along_axes_are_the_cube_as_it_is(view):
    cube = some_cube()
    turned = turn(cube, AXES[view])
    order = [int(np.argmax(row)) for row in AXES[view]]
    expected = torch.cat([cube[:1], cube[1:4][order], cube[4:][order]]).permute(0, *[1 + axis for axis in order])
    torch.testing.assert_close(turned, expected)
    assert np.linalg.det(AXES[view]) == pytest.approx(1)  # no mirror
    assert {int(np.argmax(rotation[2])) for rotation in AXES} == {0, 1, 2}


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_maps_of_a_turned_cube_are_the_turned_maps_with_turned_angles(quarters):
    cube = some_cube()
    turning = np.rint(Rotation.from_euler("z", 90 * quarters, degrees=True).as_matrix())
    before, after = maps_of(cube), maps_of(turn(cube, turning))
    first = torch.rot90(before["column"], quarters)
    way = quarters if torch.allclose(after["column"], first) else -quarters
    for name in before:
        expected = torch.rot90(before[name], way)
        if name == "psi":
            # angles from columns towards rows grow by what the picture turns by, which is read modulo pi
            for part in (torch.cos, torch.sin):
                torch.testing.assert_close(part(2 * after[name]), part(2 * (expected + quarters * math.pi / 2)))
        else:
            torch.testing.assert_close(after[name], expected)


@pytest.mark.parametrize("degrees", [20.0, -50.0])
def test_a_turn_by_any_angle_turns_maps_and_angles(degrees):
    """About the line of sight; in the middle, where the corners that come in from the other side do not show."""
    n, turned_by = 32, math.radians(degrees)
    at = torch.stack(torch.meshgrid(*[(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n] * 3, indexing="ij"))
    cube = torch.ones(7, n, n, n, dtype=torch.float64)
    cube[0] += 3 * torch.exp(-((at[0] - 0.1) ** 2 + 2 * at[1] ** 2 + at[2] ** 2) / 0.04)
    cube[4], cube[5], cube[6] = 1 + at[0], 0.5 - at[1], 0.3
    rotation = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    before, after = maps_of(cube), maps_of(turn(cube, rotation))
    # pixel r of the turned map shows what is at rotation^T r
    for row, column in ((16, 16), (20, 13), (12, 19)):
        place = rotation[:2, :2].T @ (np.array([row, column]) - (n - 1) / 2) + (n - 1) / 2
        for name in ("column", "density", "field"):
            assert float(after[name][row, column]) == pytest.approx(_between(before[name], place), rel=0.02)
        # vectors get the components R v: rows are x, so a positive turn takes psi (from columns to rows) down
        there = _between(before["psi"], place) - turned_by
        there += math.pi * round((float(after["psi"][row, column]) - there) / math.pi)
        assert float(after["psi"][row, column]) == pytest.approx(there, abs=0.02)


def _between(plane: Tensor, place: Any) -> float:
    row, column = (int(p) for p in place)
    y, x = place[0] - row, place[1] - column
    four = plane[row : row + 2, column : column + 2].numpy()
    return float(np.array([1 - y, y]) @ four @ np.array([1 - x, x]))


def test_random_views_turn_and_do_not_prefer_a_direction():
    rng = np.random.default_rng(1)
    rotations = np.stack([random_rotation(rng) for _ in range(400)])
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (400, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    assert np.abs(rotations.mean(0)).max() < 0.12
    cube = some_cube()
    seen = turn(cube, rotations[0])
    # strengths do not depend on the view, where interpolation does not blur them
    assert float(seen[4:].mean((1, 2, 3)).norm()) == pytest.approx(float(cube[4:].mean((1, 2, 3)).norm()), rel=0.25)


# -- telescopes --


def test_a_beam_keeps_light_and_has_its_width():
    point = torch.zeros(1, 41, 41, dtype=torch.float64)
    point[0, 20, 20] = 1.0
    seen = smooth(point, 3.0)[0]
    assert float(seen.sum()) == pytest.approx(1)
    steps = torch.arange(41, dtype=torch.float64) - 20
    assert float((seen.sum(0) * steps**2).sum()) == pytest.approx((3 / 2.3548) ** 2, rel=0.01)
    torch.testing.assert_close(smooth(torch.full((2, 16, 16), 3.0), 2.0), torch.full((2, 16, 16), 3.0))


def test_noise_has_the_stated_sizes():
    cube = torch.ones(7, 96, 96, 2, dtype=torch.float64)
    cube[3, ..., 1] = -1.0
    sums = project(cube)
    seen = Telescope(1.5, np.random.default_rng(2)).observe(sums, UNITS)
    column = UNITS.column
    assert float(seen["column"].std()) == pytest.approx(math.hypot(COLUMN_SHARE * column, COLUMN_FLOOR), rel=0.05)
    # B is the same in both directions of the sky, so psi is 45 degrees; its noise is half that of Q over P
    assert float(seen["psi"].mean()) == pytest.approx(math.pi / 4, abs=0.002)
    assert float(seen["psi"].std()) == pytest.approx(STOKES_SHARE / 2, rel=0.05)
    assert float(seen["sigma_v"].log().std()) == pytest.approx(0.05, rel=0.05)


def test_a_beam_widens_lines_where_velocities_change():
    cube = torch.ones(7, 32, 32, 2, dtype=torch.float64)
    cube[3] = torch.linspace(-6, 6, 32, dtype=torch.float64)[:, None, None]
    sums = project(cube)
    assert float(physical_maps(sums, UNITS)["sigma_v"].max()) < 1.0  # cm/s
    seen = Telescope(3.0, np.random.default_rng(2)).observe(sums, UNITS)["sigma_v"][16]
    assert float(seen.mean()) == pytest.approx(12 / 31 * 3 / 2.3548 * 1.9e4, rel=0.05)
    assert float(angle(torch.zeros(1), torch.ones(1))) == pytest.approx(math.pi / 4)


# -- fractional Brownian cubes --


def test_a_fractional_cube_has_its_mach_number_and_no_divergence():
    cube = some_cube(tail=False)
    assert float(cube[0].mean()) == pytest.approx(1) and float(cube[0].min()) > 0
    assert float(cube[1:4].square().sum(0).mean().sqrt()) == pytest.approx(3)
    np.testing.assert_allclose(cube[4:].mean((1, 2, 3)), [1, 0.5, -2], atol=1e-12)
    spread = math.sqrt(math.log(1 + 1.2**2))
    assert float(cube[0].log().std()) == pytest.approx(spread)
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(16, 1 / 16, dtype=torch.float64)] * 3, indexing="ij"))
    inside = (k.abs() < 8).all(0)  # the highest frequencies have no sign
    flow = (torch.fft.fftn(cube[4:], dim=(1, 2, 3)) * k).sum(0)
    assert float(flow[inside].abs().max()) < 1e-9
    assert float(some_cube(tail=True)[0].max()) > 1.5 * float(cube[0].max())


# -- plans --


@pytest.mark.parametrize("suite", SUITES)
def test_simulations_of_a_suite_have_names_and_seeds_of_their_own(suite):
    plans = [plan_of(suite, seed, number) for seed in (0, 1) for number in range(SUITES[suite].simulations)]
    assert len({plan.name for plan in plans}) == len({plan.seed for plan in plans}) == len(plans)
    assert all(len(plan.snapshots) == SUITES[suite].snapshots for plan in plans)
    assert all(np.linalg.norm(plan.direction) == pytest.approx(1) for plan in plans)
    others = {plan_of(other, 0, number).seed for other in SUITES if other != suite for number in range(4)}
    assert not others & {plan.seed for plan in plans}


def test_training_and_validation_see_the_same_kinds_of_clouds():
    plans = [plan_of("id", 5, number) for number in range(30)]
    kinds = [Counter((plan.mach, plan.field) for plan in part) for part in (plans[:24], plans[24:])]
    assert set(kinds[0].values()) == {4} and set(kinds[1].values()) == {1} and kinds[0].keys() == kinds[1].keys()
    assert all(0.3 <= plan.solenoidal <= 1 and not plan.g4 and plan.before == 1 / plan.mach for plan in plans)


def test_shifted_suites_differ_in_what_they_are_named_for():
    fields = {plan_of("ood-field", 0, number).field for number in range(4)}
    assert fields == {9.0, 0.3}
    falling = plan_of("ood-gravity", 0, 0)
    assert falling.g4 == strength(5.0, 0.5) and falling.snapshots[-1] == pytest.approx(0.4 * 0.0841, rel=0.01)
    # the density unit of a box of 4 pc at 10 K follows from the strength of gravity
    assert with_gravity(falling.g4).density == pytest.approx(632, rel=0.01)
    assert [plan_of("ood-collision", 0, n).direction[0] for n in (0, 1)] == [1.0, 0.0]


def test_streams_run_into_each_other_with_their_speed():
    gas = collide(uniform((8, 8, 8), (2.0, 0.0, 0.0), torch.zeros(1)), 5.0)
    assert gas.velocity[0, :4].unique().tolist() == [5.0] and gas.velocity[0, 4:].unique().tolist() == [-5.0]
    assert rms_velocity(gas) == pytest.approx(5) and float(divergence(gas).abs().max()) == 0
