"""Isothermal magnetohydrodynamics of `jobs.clouds`: exact waves and jumps, and what must stay what it was."""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from surveybridge.jobs.clouds.driving import MODES, Driving
from surveybridge.jobs.clouds.evolution import evolve, step, time_step
from surveybridge.jobs.clouds.gravity import acceleration, free_fall, resolved_density, strength
from surveybridge.jobs.clouds.riemann import flux, hlld
from surveybridge.jobs.clouds.state import State, centred_field, divergence, rms_velocity, uniform
from surveybridge.jobs.clouds.transport import compiled, rates

DOUBLE = torch.zeros(1, dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- a wave that is exact --


def alfven_wave(cells: int) -> State:
    """A circularly polarised Alfven wave along the diagonal of a flat box, of amplitude 0.1; its speed is 1."""
    corner = torch.arange(cells, dtype=torch.float64) / cells
    centre = corner + 0.5 / cells
    potential = 0.1 * torch.cos(2 * math.pi * (corner[:, None] + corner)) / (2 * math.pi * math.sqrt(2))
    phase = 2 * math.pi * (centre[:, None] + centre)
    # the field through faces is the curl of a potential on edges: its divergence is zero exactly
    x = (torch.roll(potential, -1, 1) - potential) * cells + math.sqrt(0.5)
    y = (potential - torch.roll(potential, -1, 0)) * cells + math.sqrt(0.5)
    z = 0.1 * torch.cos(phase)
    across = -0.1 * torch.sin(phase)
    gas = torch.stack([torch.ones_like(x), -across * math.sqrt(0.5), across * math.sqrt(0.5), -z])
    return State(gas[..., None], torch.stack([x, y, z])[..., None])


def test_an_alfven_wave_across_the_grid_converges():
    errors = []
    for cells in (16, 32, 64):
        begin = alfven_wave(cells)
        end, _ = evolve(begin, math.sqrt(0.5))  # one period
        error = centred_field(end.field) - centred_field(begin.field)
        errors.append(float(error.square().mean().sqrt()) / 0.1)
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert errors[0] < 0.12 and orders[0] > 1.4 and orders[1] > 1.8, (errors, orders)


# -- jumps that are exact --


@dataclass(frozen=True)
class Side:
    """Uniform gas: density, velocity and field, the first components along the tube."""

    density: float
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    field: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def column(self) -> Tensor:
        """All of it, [7, 1]."""
        return torch.tensor([self.density, *self.velocity, *self.field], dtype=torch.float64)[:, None]


def tube(left: Side, right: Side, cells: int, duration: float, axis: int = 0) -> Tensor:
    """Density, velocity and field [7, cells] after a wall at 3/4 was opened; `left` fills the half before it.

    The tube is 1 long, lies along an axis of the grid, and is four cells wide.
    """
    inside = torch.zeros(cells, dtype=torch.bool)
    inside[cells // 4 : 3 * cells // 4] = True
    values = torch.where(inside, left.column(), right.column())
    order = [(component - axis) % 3 for component in range(3)]
    shape = [4, 4, 4]
    shape[axis] = cells
    spread = [-1 if n == axis else 1 for n in range(3)]
    gas = torch.cat([values[:1], values[0] * values[1:4][order]]).reshape(4, *spread).expand(4, *shape).clone()
    field = values[4:][order].reshape(3, *spread).expand(3, *shape).clone()
    # the unit of length is the box along its first axis
    state, _ = evolve(State(gas, field), duration * cells / shape[0])
    found = torch.cat([state.density[None], state.velocity, centred_field(state.field)]).movedim(1 + axis, 1)
    assert torch.equal(found, found[:, :, :1, :1].expand_as(found))
    back = [(component + axis) % 3 for component in range(3)]
    return torch.cat([found[:1], found[1:4][back], found[4:][back]])[:, :, 0, 0]


def rarefaction_and_shock(left: float, right: float, b: float) -> tuple[float, float, float]:
    """Density and velocity between the waves, and the shock's speed; gas at rest with a field b rho across the tube."""

    def pressure(density: float) -> float:
        return density + (b * density) ** 2 / 2

    def behind_rarefaction(density: float) -> float:
        return quad(lambda x: math.sqrt(1 + b * b * x) / x, density, left)[0]

    def behind_shock(density: float) -> float:
        return math.sqrt((pressure(density) - pressure(right)) * (1 / right - 1 / density))

    density = brentq(lambda x: behind_rarefaction(x) - behind_shock(x), right * 1.0001, left * 0.9999)
    speed = behind_shock(density)
    return density, speed, density * speed / (density - right)


@pytest.mark.parametrize(("left", "right", "b", "axis"), [(4.0, 1.0, 0.8, 0), (6.0, 0.5, 0.0, 1), (3.0, 1.0, 1.5, 2)])
def test_a_shock_tube_has_the_jumps_of_the_exact_solution(left, right, b, axis):
    cells, duration = 200, 0.05
    found = tube(Side(left, field=(0, b * left, 0)), Side(right, field=(0, b * right, 0)), cells, duration, axis)
    density, speed, shock = rarefaction_and_shock(left, right, b)
    place = 0.75 + shock * duration
    between = slice(round((0.75 + speed * duration / 2) * cells), round(place * cells) - 4)
    assert between.stop - between.start > 3
    np.testing.assert_allclose(found[0, between], density, rtol=0.01)
    np.testing.assert_allclose(found[1, between], speed, rtol=0.01)
    np.testing.assert_allclose(found[5, between], b * density, rtol=0.01, atol=1e-12)
    steepest = int((found[0, between.start : 190] - found[0, between.start + 1 : 191]).argmax()) + between.start + 1
    assert abs(steepest / cells - place) <= 1.5 / cells


def oblique_shock(ratio: float, normal: float, across: float) -> tuple[float, Side]:
    """Speed of a fast shock into gas of density 1 at rest, and the gas behind it, by Rankine and Hugoniot."""

    def behind(mass: float) -> float:
        return across * (mass - normal**2 / mass) / (mass / ratio - normal**2 / mass)

    def excess(mass: float) -> float:
        return mass**2 * (1 - 1 / ratio) - (ratio - 1) - (behind(mass) ** 2 - across**2) / 2

    mass = brentq(excess, 1.01 * normal * math.sqrt(ratio), 40)  # beyond the Alfven speed behind it: a fast shock
    field = behind(mass)
    velocity = (mass - mass / ratio, -normal * (field - across) / mass, 0.0)
    return mass, Side(ratio, velocity, (normal, field, 0.0))


@pytest.mark.parametrize(("ratio", "normal", "across", "axis"), [(2.0, 1.5, 1.0, 0), (3.0, 0.7, 0.6, 1)])
def test_an_oblique_fast_shock_stays_one_jump(ratio, normal, across, axis):
    speed, behind = oblique_shock(ratio, normal, across)
    cells, duration = 200, 0.1 / speed
    found = tube(behind, Side(1.0, field=(normal, across, 0)), cells, duration, axis)
    ahead, after = slice(175, 190), slice(152, 166)
    for part, side in ((ahead, Side(1.0, field=(normal, across, 0))), (after, behind)):
        np.testing.assert_allclose(found[:, part], side.column().expand_as(found[:, part]), rtol=0.03, atol=0.03)
    steepest = int((found[0, 160:189] - found[0, 161:190]).argmax()) + 161
    assert abs(steepest / cells - 0.85) <= 1.5 / cells


def test_a_turn_of_the_field_travels_at_the_alfven_speed():
    angle, normal, cells = 1.1, 2.0, 200
    turned = Side(1.0, (0, 1 - math.cos(angle), -math.sin(angle)), (normal, math.cos(angle), math.sin(angle)))
    found = tube(turned, Side(1.0, field=(normal, 1, 0)), cells, 0.06)
    assert float((found[0, 152:190] - 1).abs().max()) < 0.06  # nothing is compressed
    assert found[5, 155:168].numpy() == pytest.approx(math.cos(angle), abs=0.02)
    middle = int((found[5, 155:190] - (1 + math.cos(angle)) / 2).abs().argmin()) + 155
    assert abs((middle + 0.5) / cells - (0.75 + 0.06 * normal)) < 2.5 / cells


def test_the_flux_between_equal_states_is_that_of_the_state():
    rng = torch.Generator().manual_seed(4)
    state = torch.randn(6, 500, generator=rng, dtype=torch.float64)
    state[0] = state[0].exp()
    normal = 2 * torch.randn(500, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(hlld(state, state.clone(), normal), flux(state, normal, normal.square()))


def test_the_flux_is_the_same_from_both_sides_of_a_mirror():
    rng = torch.Generator().manual_seed(5)
    left, right = torch.randn(2, 6, 2000, generator=rng, dtype=torch.float64)
    left[0], right[0] = left[0].exp(), right[0].exp()
    normal = torch.randn(2000, generator=rng, dtype=torch.float64)
    flip = torch.tensor([1.0, -1, 1, 1, 1, 1], dtype=torch.float64)[:, None]
    # along the other axis densities and fields across are carried with the opposite sign, momentum along with the same
    carried = torch.tensor([-1.0, 1, -1, -1, -1, -1], dtype=torch.float64)[:, None]
    mirrored = hlld(right * flip, left * flip, -normal)
    torch.testing.assert_close(mirrored * carried, hlld(left, right, normal), rtol=1e-9, atol=1e-9)


# -- what stays --


def driven(dtype: torch.dtype, cells: int = 16, duration: float = 0.15) -> State:
    gas = uniform((cells,) * 3, (0.3, 0.0, 2.0), torch.zeros(1, dtype=dtype))
    return evolve(gas, duration, Driving(4.0, 0.6, np.random.default_rng(8)), strength(4.0, 1.0))[0]


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-7), (torch.float64, 3e-16)])
def test_mass_momentum_flux_and_divergence_stay_to_rounding(dtype, rounding):
    state = driven(dtype)
    assert float(state.density.max()) > 3  # there were shocks
    assert abs(float(state.density.double().mean()) - 1) < 2 * rounding
    assert float(state.gas[1:].double().mean((1, 2, 3)).abs().max()) < 50 * rounding
    begin = torch.tensor([0.3, 0.0, 2.0], dtype=dtype).double()
    assert float((state.field.double().mean((1, 2, 3)) - begin).abs().max()) < 50 * rounding
    assert float(divergence(state).abs().max()) * state.cell / float(state.field.abs().max()) < 50 * rounding


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # of its compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_compiled_solver_differs_by_rounding_and_conserves_as_much():
    driving = Driving(3.0, 0.6, np.random.default_rng(8))
    state, _ = evolve(uniform((8, 8, 8), (1.2, -0.4, 0.7), torch.zeros(())), 0.2, driving)
    both = [evolve(state, 0.02, changes=changes)[0] for changes in (rates, compiled())]
    for one, other in zip(*((state.gas, state.field) for state in both), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
    for found in both:
        assert float(found.gas[0].double().mean()) == pytest.approx(1, abs=1e-6)
        assert float(divergence(found).abs().max()) * found.cell < 1e-5 * float(found.field.abs().max())


def test_axes_are_alike():
    """The box turned about its diagonal evolves like the box."""
    begin = driven(torch.float64, 12, 0.05)
    turned = State(_turned(begin.gas), _turned(begin.field))
    for _ in range(3):
        dt = time_step(begin)
        begin, turned = step(begin, dt)[0], step(turned, dt)[0]
    torch.testing.assert_close(turned.gas, _turned(begin.gas))
    torch.testing.assert_close(turned.field, _turned(begin.field))


def _turned(values: Tensor) -> Tensor:
    """Axis and component x take the place of y, y of z, and z of x."""
    moved = values.permute(0, 3, 1, 2)
    return torch.cat([moved[:-3], moved[-3:].roll(1, 0)]).contiguous()


def test_no_tensor_is_made_on_another_device_than_the_gas():
    """Whatever does not say where it is made would be on the default device, and could not be added to the gas."""
    gas = uniform((8, 8, 8), (0.0, 0.0, 1.0), torch.zeros(1))
    torch.set_default_device("meta")
    try:
        state, _ = evolve(gas, 0.02, Driving(3.0, 0.5, np.random.default_rng(1)), 50.0)
    finally:
        torch.set_default_device(None)
    assert state.gas.device.type == "cpu" and bool(torch.isfinite(state.gas).all())


# -- driving and gravity --


@pytest.mark.parametrize(("solenoidal", "divergent"), [(1.0, False), (0.0, True)])
def test_driving_is_free_of_divergence_or_of_curl(solenoidal, divergent):
    pattern = Driving(5.0, solenoidal, np.random.default_rng(2)).pattern(torch.zeros(16, 16, 16, dtype=torch.float64))
    assert float(pattern.square().mean()) == pytest.approx(1)
    spectrum = torch.fft.fftn(pattern, dim=(1, 2, 3))
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(16, 1 / 16, dtype=torch.float64)] * 3, indexing="ij"))
    assert float((spectrum * k).sum(0).abs().max() < 1e-6) == (not divergent)
    assert float(torch.linalg.cross(k.to(spectrum), spectrum, dim=0).abs().max() < 1e-6) == divergent
    inside = (k.square().sum(0) >= 1) & (k.square().sum(0) <= 4)
    assert float(spectrum[:, ~inside].abs().max()) < 1e-6 and len(MODES) * 2 == int(inside.sum())


def test_driving_remembers_for_half_a_crossing_time():
    driving = Driving(4.0, 0.5, np.random.default_rng(3))
    like = torch.zeros(8, 8, 8, dtype=torch.float64)
    patterns = []
    for _ in range(400):
        patterns.append(driving.pattern(like).flatten())
        driving.advance()
    series = torch.stack(patterns)
    correlation = [float((series[lag:] * series[: len(series) - lag]).mean()) for lag in (1, 20, 100)]
    assert correlation[0] == pytest.approx(math.exp(-1 / 20), abs=0.02)
    assert correlation[1] == pytest.approx(math.exp(-1), abs=0.12) and abs(correlation[2]) < 0.15
    assert driving.interval * 20 == pytest.approx(1 / 8)


def test_turbulence_settles_near_the_wanted_velocity():
    gas = uniform((16, 16, 16), (0.0, 0.0, 1.0), torch.zeros(1))
    driving, speeds = Driving(4.0, 0.6, np.random.default_rng(5)), []
    for _ in range(4):
        gas, _ = evolve(gas, 0.1, driving)
        speeds.append(rms_velocity(gas))
    assert 3.2 < np.mean(speeds[1:]) < 4.6, speeds


def test_small_waves_grow_or_oscillate_as_jeans_found():
    """Density 1 + a cos kx with omega^2 = k^2 - G4: it grows as cosh where that is negative."""
    cells, k = 64, 2 * math.pi
    places = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    for g4 in (3 * k**2, 0.5 * k**2):
        gas = uniform((cells, 4, 4), (0.0, 0.0, 0.0), DOUBLE)
        gas.gas[0] += 1e-3 * torch.cos(k * places)[:, None, None]
        duration = 0.1
        end, _ = evolve(gas, duration, None, g4)
        amplitude = 2 * float((end.density[:, 0, 0] * torch.cos(k * places)).mean())
        rate = g4 - k**2
        root = math.sqrt(abs(rate)) * duration
        assert amplitude == pytest.approx(1e-3 * (math.cosh(root) if rate > 0 else math.cos(root)), rel=0.02)


def test_constants_of_gravity_are_those_of_the_definition():
    cells = 12
    places = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    density = (1 + 0.3 * torch.sin(2 * math.pi * places))[None, :, None].expand(cells, cells, cells)
    pull = acceleration(density, 7.0)
    # phi = -7 (rho - 1) / k^2
    expected = 7.0 * 0.3 / (2 * math.pi) * torch.cos(2 * math.pi * places)
    torch.testing.assert_close(pull[1, 3, :, 5], expected)
    assert float(pull[[0, 2]].abs().max()) < 1e-12
    assert strength(5.0, 0.5) == pytest.approx(10.47 * 25 / 0.5, rel=1e-3)
    assert free_fall(strength(5.0, 0.5)) == pytest.approx(0.084, abs=5e-4)
    assert [round(resolved_density(n, strength(5.0, 0.5))) for n in (48, 64, 128)] == [11, 19, 77]
