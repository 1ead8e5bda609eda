"""Windows of LSST beside the same sky without noise, in LSST's bands at Euclid's resolution: skies for `Bridge.seeing`.

They are those of `scenes`, seen without defects: seeing, depth and the correlation of the noise differ from scene to
scene, and nothing else stands between the two images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.jobs.simulating.drawing import Grid
from surveybridge.jobs.simulating.exposures import LSST_SCALE, VIS_SCALE, expose, lsst_windows
from surveybridge.jobs.simulating.optics import Psf
from surveybridge.jobs.simulating.scenes import LSST, Scene, SceneSpec, render_bands
from surveybridge.jobs.simulating.training_skies import REGISTRATION, Observation, for_stamps

SHARP = Psf(0.16)
"""Of VIS, whose pixels these are as well."""


@dataclass(frozen=True)
class SkyWindows:
    """Windows of one or more scenes; conditions and labels as in `scenes.ScenePairs`.

    Attributes
    ----------
    lsst, sharp : Tensor [N, B, H, W] float32
        nJy per pixel.
    lsst_sigma : Tensor [N, B, H, W] float32
        Noise of the sky in each pixel.
    conditions : dict of Tensor [N, B] float32
        Those of `sharp` without a noise.
    labels : dict of ndarray [N]
    """

    lsst: Tensor
    sharp: Tensor
    lsst_sigma: Tensor
    conditions: dict[str, Tensor]
    labels: dict[str, NDArray[np.generic]]


def draw_skies(spec: SceneSpec, seed: int, index: int | Sequence[int]) -> SkyWindows:
    """Draw scenes by their numbers on the CPU, and cut `spec.windows` windows out of each."""
    numbers = [index] if isinstance(index, int) else list(index)
    parts = [_windows(spec, Scene.draw(spec, seed, number)) for number in numbers]
    return SkyWindows(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in ("lsst", "sharp", "lsst_sigma")},
        conditions={key: torch.cat([part.conditions[key] for part in parts]) for key in parts[0].conditions},
        labels={key: np.concatenate([part.labels[key] for part in parts]) for key in parts[0].labels},
    )


def _windows(spec: SceneSpec, scene: Scene) -> SkyWindows:
    """Observe a scene and cut windows out."""
    o, device, nodes = without_defects(scene.observation), torch.device("cpu"), round(spec.side / VIS_SCALE)
    scene = replace(scene, observation=o)
    image = render_bands([scene], Grid(1, nodes, LSST_SCALE / 2), LSST, device)[0]
    sky = render_bands([scene], Grid(1, 2 * nodes, VIS_SCALE / 2), LSST, device, SHARP)[0]
    exposure = expose(image, LSST, o, scene.rng, torch.Generator(device).manual_seed(scene.noise_seed))
    starts, chosen = scene.windows(spec)
    seen, size, count = lsst_windows(exposure, starts, spec.size, o), spec.size, len(starts)
    numbers = {
        "lsst_fwhm": [p.fwhm for p in o.psfs[LSST]],
        "lsst_wing": [p.wing for p in o.psfs[LSST]],
        "lsst_correlation": seen.correlation,
        "sharp_fwhm": [SHARP.fwhm] * 3,
        "sharp_wing": [SHARP.wing] * 3,
        "sharp_correlation": [np.nan] * 3,
        "sharp_noise": [np.nan] * 3,
    }
    conditions = {name: torch.tensor(values, dtype=torch.float32).repeat(count, 1) for name, values in numbers.items()}
    return SkyWindows(
        lsst=seen.flux,
        sharp=torch.stack([sky[:, y : y + size, x : x + size] for x, y in starts.tolist()]),
        lsst_sigma=seen.sigma,
        conditions=conditions
        | {
            "lsst_gain": seen.gain,
            "lsst_noise": seen.sigma.flatten(2).median(-1).values,
            "registration": torch.full((count,), o.registration),
        },
        labels=scene.labels(chosen),
    )


def without_defects(observation: Observation) -> Observation:
    """The same seeing, depth and noise, of an image that lies right, has its sky subtracted, and is complete."""
    nothing = (0.0,) * 4
    return replace(
        for_stamps(observation),
        level=nothing,
        slope=((0.0, 0.0),) * 4,
        registration=REGISTRATION[0],
        offset=(0.0, 0.0),
        turn=0.0,
        grid_offset=observation.grid_offset,
    )
