"""Fits to the training data before the first step: each endpoint's stretch, and the scale of the objective.

A problem's file may state the objective's numbers; what it leaves out is measured here, on the first pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Endpoint, Problem
from surveybridge.bridge_core.stretch import AxialStretch, LinearStretch, Log10Stretch, MixedStretch, Stretch

SOFTENING_SIGMAS = 2.0
"""A flux stretch turns from linear to logarithmic at this many standard deviations of the sky."""
SPREAD = 0.5
"""Standard deviation in network units to which the logarithm of a density is scaled."""
BELOW_SMALLEST = 0.1
"""The floor of a logarithm, as a share of the smallest positive value in the data."""
RADIANS = {"rad": 1.0, "deg": math.pi / 180}


def fit_endpoint(end: Endpoint, values: Tensor, noise: Mapping[str, float]) -> Endpoint:
    """Fit the stretch of an endpoint to some of its data.

    Parameters
    ----------
    end
        Its kind says which stretch.
    values
        float32 [N, B, H, W] in its unit, NaN where there is no data.
    noise
        Standard deviation of the sky by band where it is known, NaN where it is not; only a flux asks for it.

    Raises
    ------
    BridgeError
        If the data do not fit the stretch: no value is positive, an angle is in a unit that is none, all is one value.
    """
    if end.kind == "mixed":
        parts = zip(end.quantities, values.split(1, 1), strict=True)
        fitted = {one.bands[0]: fit_endpoint(one, part, noise).fitted for one, part in parts}
        return replace(end, stretch=MixedStretch(fitted))
    by_band = {band: values[:, b][torch.isfinite(values[:, b])].double() for b, band in enumerate(end.bands)}
    for band, seen in by_band.items():
        if seen.numel() == 0:
            raise BridgeError(f"{end.name}: band {band} has no data in the first {len(values)} pairs; give other pairs")
    if end.kind in ("asinh", "linear"):
        sigma = {band: noise.get(band, math.nan) for band in end.bands}
        known = {b: s if math.isfinite(s) else _robust_sigma(by_band[b], end.name, b) for b, s in sigma.items()}
        units = {band: SOFTENING_SIGMAS * s for band, s in known.items()}
        return replace(end, stretch=Stretch(units) if end.kind == "asinh" else LinearStretch(units))
    if end.kind == "axial":
        if end.unit not in RADIANS:
            raise BridgeError(
                f"{end.name}: angles in {end.unit}, but an axial end is in {' or '.join(RADIANS)}; convert"
            )
        return replace(end, stretch=AxialStretch(RADIANS[end.unit]))
    logs = {}
    for band, seen in by_band.items():
        if not bool((seen > 0).any()):
            raise BridgeError(
                f"{end.name}: no value of band {band} is positive in the first {len(values)} pairs, so it has no "
                'logarithm; give it stretch = "asinh"'
            )
        logs[band] = seen[seen > 0].log10()
    return replace(
        end,
        stretch=Log10Stretch(
            offset={band: round(float(log.mean()), 4) for band, log in logs.items()},
            scale={band: round(SPREAD / max(float(log.std()), 1e-3), 4) for band, log in logs.items()},
            floor={band: BELOW_SMALLEST * 10 ** float(log.min()) for band, log in logs.items()},
        ),
    )


def fit_objective(name: str, problem: Problem, ends: Sequence[Tensor]) -> Objective:
    """Scale an objective to the data: use the numbers that the problem states, and measure the others.

    Parameters
    ----------
    name
        As `Objective` has it.
    problem
        With fitted endpoints.
    ends
        float32 [N, B, H, W] by endpoint, in their units, NaN where there is no data.
    """
    stated = dict(problem.objective)
    if len(stated) < 3:
        wanted = [d.wanted.forward(ends[d.index], problem.channels).double().flatten() for d in problem.directions]
        spread = torch.cat([values[torch.isfinite(values)] for values in wanted]).std()
        sigma_data = stated.get("sigma_data", max(round(float(spread), 3), 0.01))
        # a little below the scale of the data, a factor e^1.5 to each side: the noise levels that shape the result
        measured = {
            "sigma_data": sigma_data,
            "log_sigma_mean": round(math.log(sigma_data) - 0.2, 3),
            "log_sigma_std": 1.5,
        }
        stated = measured | stated
    return Objective(name, stated["sigma_data"], stated["log_sigma_mean"], stated["log_sigma_std"])


def _robust_sigma(values: Tensor, end: str, band: str) -> float:
    """Return the standard deviation of the bulk of the values, from their median absolute deviation."""
    sigma = 1.4826 * float((values - values.median()).abs().median()) or float(values.std())
    if not sigma > 0:
        raise BridgeError(f"{end}: all values of band {band} are {float(values[0]):g}; give pairs that differ")
    return sigma
