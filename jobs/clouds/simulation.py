"""One simulation of a plan: its snapshots as cubes, and each of them as pairs of maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from surveybridge.jobs.clouds.driving import Driving
from surveybridge.jobs.clouds.evolution import Progress, evolve
from surveybridge.jobs.clouds.fractional import fractional_cube
from surveybridge.jobs.clouds.gravity import resolved_density
from surveybridge.jobs.clouds.projection import AXES, cube_of, physical_maps, project, random_rotation, turn
from surveybridge.jobs.clouds.state import State, uniform
from surveybridge.jobs.clouds.suites import VIEWS, Plan
from surveybridge.jobs.clouds.telescope import BEAMS, Telescope
from surveybridge.jobs.clouds.transport import Rates, rates
from surveybridge.jobs.clouds.units import CloudUnits, with_gravity

DENSITIES = (2.3, 3.7)
"""Least and greatest log10 of the density unit in cm^-3 where nothing fixes it: without gravity."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Maps of a snapshot from one side, and what it is of.

    Attributes
    ----------
    maps : mapping of str to Tensor [n, n] float
        Those of `storage.map_names.CLOUD_MAPS`, in their units.
    labels : mapping of str to str or float
        The row of the table of pairs.
    """

    maps: dict[str, Tensor]
    labels: dict[str, str | float | int]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A cube at a time, in L / c_s, and what the way there took."""

    time: float
    cube: Tensor
    progress: Progress


def pairs_of(plan: Plan, cells: int, device: str, changes: Rates = rates) -> Iterator[Pair]:
    """Simulate, and yield the pairs of all snapshots and views."""
    resolved = resolved_density(cells, plan.g4) if plan.g4 else math.inf
    for number, snapshot in enumerate(snapshots(plan, cells, device, changes)):
        density, velocity, field = snapshot.cube[0], snapshot.cube[1:4], snapshot.cube[4:]
        speed = float(torch.sqrt((density * velocity.square().sum(0)).mean() / density.mean()))
        alfven = float(torch.sqrt((field.square().sum(0)).mean() / density.mean()))
        measured = {
            "time": snapshot.time,
            "rms_mach": speed,
            "alfven_mach": speed / alfven,
            "steps": snapshot.progress.steps,
            "floored": snapshot.progress.floored,
        }
        for view in range(VIEWS):
            rng = np.random.default_rng((*plan.seed, 2, number, view))
            rotation = AXES[view] if view < len(AXES) else random_rotation(rng)
            units = with_gravity(plan.g4) if plan.g4 else CloudUnits(10 ** float(rng.uniform(*DENSITIES)))
            telescope = Telescope(float(rng.uniform(*BEAMS)), rng)
            sums = project(turn(snapshot.cube, rotation))
            observed = telescope.observe(sums, units)
            maps = physical_maps(sums, units, resolved) | {f"{name}_observed": v for name, v in observed.items()}
            yield Pair(
                maps,
                {
                    "id": f"{plan.name}-t{number}-v{view}",
                    "simulation": plan.name,
                    "snapshot": number,
                    "view": view,
                    "sight_x": float(rotation[2, 0]),
                    "sight_y": float(rotation[2, 1]),
                    "sight_z": float(rotation[2, 2]),
                    **measured,
                    "mach": plan.mach,
                    "field": plan.field,
                    "solenoidal": plan.solenoidal,
                    "virial": plan.virial,
                    "stream": plan.stream,
                    "density_unit": units.density,
                    "beam": telescope.beam,
                },
            )


def snapshots(plan: Plan, cells: int, device: str, changes: Rates = rates) -> Iterator[Snapshot]:
    """Simulate, and yield what there is at each of the plan's times."""
    like = torch.zeros((), dtype=torch.float32, device=device)
    if plan.fractional:
        seed = int(np.random.default_rng((*plan.seed, 1)).integers(2**63))
        whole = like.expand(cells, cells, cells)
        yield Snapshot(0.0, fractional_cube(plan.mach, plan.mean_field, plan.tail, whole, seed), Progress(0, 0))
        return
    driving = Driving(plan.mach, plan.solenoidal, np.random.default_rng((*plan.seed, 1)))
    state = uniform((cells, cells, cells), plan.mean_field, like)
    state, progress = evolve(state, plan.before, driving, changes=changes)
    steps, floored, now = progress.steps, progress.floored, 0.0
    if plan.stream:
        state = collide(state, plan.stream)
    for time in plan.snapshots:
        state, progress = evolve(state, time - now, None if plan.stream else driving, plan.g4, changes)
        steps, floored, now = steps + progress.steps, floored + progress.floored, time
        yield Snapshot(plan.before + time, cube_of(state), Progress(steps, floored))


def collide(state: State, speed: float) -> State:
    """Gas whose halves run into each other along x, each with a speed."""
    n = state.gas.shape[1]
    towards = torch.where(torch.arange(n, device=state.gas.device) < n // 2, speed, -speed)[:, None, None]
    gas = state.gas.clone()
    gas[1] += state.density * towards
    return State(gas, state.field)
