"""Experiments of SMDP: a solver of smoke, fields under the heat equation, and that both benchmarks run to their end."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import physics_buoyancy, physics_heat, physics_toy, smoke
from benchmarks.smoke import Smoke, X, Y


@pytest.fixture(scope="module")
def risen():
    """A solver for a disc, and for a box and a disc, and states that have begun to rise there, two in each."""
    generator = torch.Generator().manual_seed(2)
    solver = Smoke.around(smoke.scenes(3, generator)[1:])
    x = smoke.starts(solver, 2, generator)
    assert float(x[:, 0].sum((1, 2)).min()) > 10 and float(x[:, 1:].abs().max()) > 0.1
    return solver, x


@pytest.mark.parametrize("dt", [1.0, -1.0])
def test_no_smoke_is_lost_and_none_goes_into_obstacles(risen, dt):
    solver, x = risen
    fluid = solver.fluid.repeat_interleave(2, 0)
    total = x[:, 0].sum((1, 2))
    for _ in range(20):
        x = solver.forward(x, dt)
    torch.testing.assert_close(x[:, 0].sum((1, 2)), total, rtol=1e-5, atol=0)
    assert float((x[:, :1] * (1 - fluid)).abs().max()) == 0.0
    assert float(x[:, 0].min()) > -1e-5 and float(x[:, 0].max()) < 1.01


def test_nothing_flows_through_walls_or_gathers_anywhere(risen):
    solver, x = risen
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    after = solver.forward(noisy, 1.0)
    u, v = after[:, 1:2], after[:, 2:]
    fluid = solver.fluid.repeat_interleave(2, 0)
    assert float(smoke.divergence(noisy[:, 1:2], noisy[:, 2:]).abs().max()) > 0.1
    assert float((smoke.divergence(u, v) * fluid).abs().max()) < 1e-5
    assert float(u[..., 0].abs().max()) == 0.0 and float(v[..., 0, :].abs().max()) == 0.0
    solid = 1 - fluid
    for velocity, axis in ((u, X), (v, Y)):
        beside = torch.maximum(solid, smoke.before(solid, axis))
        assert float((velocity * beside).abs().max()) == 0.0


def test_pressure_holds_smoke_that_fills_the_box_evenly():
    solver = Smoke.around(torch.ones(1, 1, 32, 32))
    x = torch.zeros(1, 3, 32, 32)
    x[:, 0] = 0.7
    assert float((solver.forward(x, 1.0) - x).abs().max()) < 1e-5
    x[:, 0, :16] = 0.9  # more below than above: lies as it is, but not for long
    x[:, 0, 10, 5] = 1.0
    assert float((solver.forward(x, 1.0) - x)[:, 2].abs().max()) > 1e-3


def test_smoke_rises_and_a_mirrored_scene_does_the_same_mirrored(risen):
    solver, x = risen
    after = solver.forward(solver.forward(x, 1.0), 1.0)
    rows = torch.arange(32.0)[None, :, None]
    height = [(s[:, 0] * rows).sum((1, 2)) / s[:, 0].sum((1, 2)) for s in (x, after)]
    assert float((height[1] - height[0]).min()) > 0.3

    def mirrored(state):
        # a left face becomes a right one, which belongs to the next cell
        u = -torch.roll(state[:, 1:2].flip(X), 1, X)
        return torch.cat([state[:, :1].flip(X), u, state[:, 2:].flip(X)], 1)

    other = Smoke.around(solver.fluid.flip(X))
    found = other.forward(other.forward(mirrored(x), 1.0), 1.0)
    torch.testing.assert_close(found, mirrored(after), rtol=0, atol=2e-3)


def test_negative_time_leads_back_where_a_step_subtracted_runs_away(risen):
    solver, start = risen
    x = start
    for _ in range(24):
        x = solver.forward(x, 1.0)
    back = other = x
    for _ in range(24):
        back, other = solver.forward(back, -1.0), 2 * other - solver.forward(other, 1.0)
    moved, left = ((s - start)[:, 0].square().mean() for s in (x, back))
    assert float(left) < 0.5 * float(moved)
    assert not float(other.abs().max()) < 10


def test_fields_of_the_heat_process_have_the_power_that_the_exact_score_takes():
    generator = torch.Generator().manual_seed(4)
    x0 = physics_heat.fields(100, generator)
    assert float(x0.square().mean()) == pytest.approx(1.0, rel=0.1)
    times = [0.02 * n / 128 for n in range(129)]  # so fine that no mode decays much in a step
    x = physics_heat.PROCESS.simulate(x0, times, generator)[-1]
    s = torch.fft.rfft2(physics_heat.exact_score(x, times[-1]).double())
    k = physics_heat.wavenumbers().round()
    # the mean of -x s(x) is 1 for each mode of a Gaussian
    product = -(torch.fft.rfft2(x.double()).conj() * s).real.mean((0, 1)) / 32**2
    for low, high in ((1, 2), (3, 5), (6, 10), (11, 16)):
        modes = (k >= low) & (k <= high)
        assert float(product[modes].mean()) == pytest.approx(
            1.0, abs=0.06 + 3 * math.sqrt(1 / (100 * int(modes.sum())))
        )


def test_a_draw_from_the_posterior_has_the_power_of_fields_and_explains_what_is_observed():
    generator = torch.Generator().manual_seed(5)
    x0 = physics_heat.fields(100, generator)
    seen = physics_heat.observed(x0, generator)
    mean = physics_heat.posterior(seen, None)
    draw = physics_heat.posterior(seen, torch.randn(x0.shape, generator=generator))
    ratio = (physics_heat.profile(draw).square().mean(0) / physics_heat.profile(x0).square().mean(0)).numpy()
    assert ratio == pytest.approx(1.0, abs=0.2)
    # of the finest of these modes nothing is left to see
    assert float(physics_heat.profile(mean)[:, 7:].max()) < 0.01 * float(physics_heat.profile(x0)[:, 7:].min())
    found = [physics_heat.measured(one, x0) for one in (mean, draw)]
    assert found[1]["error"] == pytest.approx(2 * found[0]["error"], rel=0.1)
    assert found[0]["reconstruction"] < found[1]["reconstruction"] < 0.2 * physics_heat.SEEN_NOISE**2


def rows_of(benchmark, arguments, out, monkeypatch):
    """What a benchmark with windows writes after the shortest training."""
    for name, value in {"WINDOWS": 1, "WINDOW": 4, "SINGLE": 0.5}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr("sys.argv", [benchmark.__name__, "--passes", "12", *arguments, "--out", str(out)])
    benchmark.main()
    return json.loads(out.read_text())["rows"]


@pytest.mark.long
def test_the_heat_equation_is_run_backward_in_all_ways(tmp_path, monkeypatch, capsys):
    for name, value in {"STEPS": (4, 5), "BATCH": 4}.items():
        monkeypatch.setattr(physics_heat, name, value)
    rows = rows_of(physics_heat, ["--fields", "8", "--judged", "2"], tmp_path / "heat.json", monkeypatch)
    assert capsys.readouterr().out.count("'reconstruction'") == len(rows) == 3 + 3 * 2 * 2 + 2
    by_name = {(row["method"], row["steps"]): row for row in rows}
    assert all(0.8 < row["weights"] / by_name["U-Net", 1]["weights"] < 1.25 for row in rows if "weights" in row)


def test_a_window_counts_its_passes_and_has_a_gradient(monkeypatch):
    generator = torch.Generator().manual_seed(6)
    for benchmark in (physics_heat, physics_buoyancy):
        monkeypatch.setattr(benchmark, "BATCH", 4)
        monkeypatch.setattr(benchmark, "WINDOWS", 1)
        monkeypatch.setattr(benchmark, "WINDOW", 5)
    fields, runs = physics_heat.fields(4, generator), physics_buoyancy.simulated(1, 4, seed=6)
    unet, correction = physics_heat.score_network(), physics_buoyancy.Correction()
    some = physics_buoyancy.drawn(runs, 0, generator)
    for share, passes in ((0.0, 4), (1.0, 2 * 4)):  # at last windows of 5 states, each step both ways
        for network, (loss, taken) in (
            (unet, physics_heat.windows(unet, fields, share, generator)),
            (correction, physics_buoyancy.windows(correction, some, share, generator)),
        ):
            assert taken == passes
            slopes = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
            assert all(bool(slope.isfinite().all()) for slope in slopes if slope is not None)
            assert any(bool(slope.any()) for slope in slopes if slope is not None)


@pytest.mark.long
def test_smoke_is_run_backward_in_all_ways(tmp_path, monkeypatch, capsys):
    for name, value in {"STEPS": 4, "TIMES": [float(t) for t in range(5)], "SAMPLES": 2, "BATCH": 2}.items():
        monkeypatch.setattr(physics_buoyancy, name, value)
    rows = rows_of(physics_buoyancy, ["--scenes", "2", "--judged", "1"], tmp_path / "buoyancy.json", monkeypatch)
    assert capsys.readouterr().out.count("'start_smoke'") == len(rows) == 9
    by_name = {row["method"]: row for row in rows}
    assert by_name["physics alone"]["start_smoke"] < by_name["the end itself"]["start_smoke"]
    assert by_name["single steps, SDE, mean of 2"]["spread"] > 0


def test_the_spread_of_samples_that_are_as_good_as_the_truth_is_1():
    runs = physics_buoyancy.simulated(2, 4, seed=3)
    drawn = runs.start + 0.1 * torch.randn(8, *runs.start.shape, generator=torch.Generator().manual_seed(1))
    truth = physics_buoyancy.Runs(runs.solver, runs.states.clone())
    truth.states[0] += 0.1 * torch.randn(truth.states[0].shape, generator=torch.Generator().manual_seed(2))
    assert physics_buoyancy.spread(drawn, truth) == pytest.approx(1.0, abs=0.03)
    assert physics_buoyancy.spread(0.5 * (drawn + drawn.mean(0)), truth) == pytest.approx(0.5, abs=0.03)


def test_the_toy_keeps_the_rows_of_other_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(physics_toy, "RESULTS", tmp_path / "toy.json")
    monkeypatch.setattr(physics_toy, "STEPS", dict.fromkeys(physics_toy.STEPS, 1))
    monkeypatch.setattr(physics_toy, "TIMES", physics_toy.TIMES[:40])
    physics_toy.RESULTS.write_text(
        json.dumps([{"trajectories": 25, "loss": "old"}, {"trajectories": 6, "loss": "old"}])
    )
    monkeypatch.setattr("sys.argv", ["physics_toy", "--trajectories", "6"])
    physics_toy.main()
    rows = json.loads(physics_toy.RESULTS.read_text())
    assert [(row["trajectories"], row["loss"]) for row in rows] == [
        (25, "old"),
        *((6, name) for name in physics_toy.STEPS),
    ]
