"""Pairs of windows for training, cut out of simulated scenes that both surveys observe.

A scene is a square of sky with galaxies and stars (`galaxies`), drawn once for each survey (`drawing`) and observed
under conditions of its own (`training_skies`, `exposures`). Everything follows from the seed and the scene's number; on
a CPU to the last bit, with one thread. Only torch and numpy are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.jobs.simulating.components import Components, components_of
from surveybridge.jobs.simulating.drawing import Grid, images, spectra
from surveybridge.jobs.simulating.exposures import (
    LSST_SCALE,
    VIS_SCALE,
    add_cosmic_rays,
    add_trails,
    expose,
    lsst_windows,
    own_windows,
)
from surveybridge.jobs.simulating.galaxies import draw_objects
from surveybridge.jobs.simulating.optics import Psf, transfer_functions
from surveybridge.jobs.simulating.population import Catalogue
from surveybridge.jobs.simulating.spirals import with_arms
from surveybridge.jobs.simulating.training_skies import Observation, draw_crowd, draw_observation, for_stamps

ROLES = {"system": 0.36, "deflector": 0.1, "bright": 0.08, "star": 0.14, "field": 0.1, "": 0.22}
"""What windows are centred on, and how often; none is a random place."""

MARGIN = 30
"""VIS pixels that windows of a scene keep from its edge where the grids are turned: there, neighbours are not."""


@dataclass(frozen=True)
class SceneSpec:
    """What is drawn.

    Attributes
    ----------
    size : int
        Side of a window, pixels.
    windows : int
        Windows of each scene.
    side : float
        Of a scene, arcsec: a power of 2 times 0.05.
    grid : str
        ``mosaic``: windows of both on the pixels of VIS; ``cutout``: complete stamps on each survey's own pixels;
        ``sharp``: windows of LSST on the pixels of VIS and, instead of VIS, of the sky in LSST's bands, without noise.
    """

    size: int = 64
    windows: int = 8
    side: float = 51.2
    grid: Literal["mosaic", "cutout", "sharp"] = "mosaic"


LSST, VIS = slice(0, 3), slice(3, 4)
"""Which of `population.BANDS` are theirs."""

PLANES = ("lsst", "euclid", "lsst_sigma", "euclid_sigma")
"""Arrays of pixels of `ScenePairs`."""


@dataclass(frozen=True)
class ScenePairs:
    """Windows of one or more scenes; conditions are those of `storage.pair_store`.

    Attributes
    ----------
    lsst, euclid : Tensor [N, B, H, W] float32
        nJy per pixel; NaN where masked.
    lsst_sigma, euclid_sigma : Tensor [N, B, H, W] float32
        Noise of the sky in each pixel. LSST's depends on how near the centre of one of its own pixels is.
    conditions : dict of Tensor [N, B] float32
        `<end>_noise`, `_fwhm`, `_wing`, `_correlation`, `_gain`; and `registration` [N].
    labels : dict of ndarray [N]
        `scene`, `role` and the magnitudes of the object in the middle (NaN without one), and `nominal`.
    """

    lsst: Tensor
    euclid: Tensor
    lsst_sigma: Tensor
    euclid_sigma: Tensor
    conditions: dict[str, Tensor]
    labels: dict[str, NDArray[np.generic]]


def draw_pairs(
    spec: SceneSpec, seed: int, index: int | Sequence[int], device: torch.device | str = "cpu"
) -> ScenePairs:
    """Draw scenes and cut windows out of them.

    Parameters
    ----------
    spec : SceneSpec
    seed : int
        Of all scenes.
    index : int or sequence of int
        Numbers of scenes; on a GPU dozens at a time are drawn fastest.
    device : torch.device or str

    Returns
    -------
    ScenePairs
        `spec.windows` rows a scene, in the order of the numbers.
    """
    device = torch.device(device)
    numbers = [index] if isinstance(index, int) else list(index)
    at_once = 1 if device.type == "cpu" else len(numbers)  # so that not a bit depends on the company
    parts: list[ScenePairs] = []
    for first in range(0, len(numbers), at_once):
        drawn = [Scene.draw(spec, seed, number) for number in numbers[first : first + at_once]]
        lsst, euclid = render(drawn, device)
        parts += [scene.observe(spec, models, device) for scene, *models in zip(drawn, lsst, euclid, strict=True)]
    return ScenePairs(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in PLANES},
        conditions={key: torch.cat([part.conditions[key] for part in parts]) for key in parts[0].conditions},
        labels={key: np.concatenate([part.labels[key] for part in parts]) for key in parts[0].labels},
    )


@dataclass(frozen=True)
class Scene:
    """A scene before it is drawn."""

    number: int
    observation: Observation
    catalogue: Catalogue
    components: Components
    rng: np.random.Generator
    noise_seed: int
    side: float = SceneSpec.side

    @classmethod
    def draw(cls, spec: SceneSpec, seed: int, number: int) -> Scene:
        """Draw conditions and objects."""
        rng = np.random.default_rng([seed, number])
        observation = draw_observation(rng)
        if spec.grid == "cutout":
            observation = for_stamps(observation)
        crowd = draw_crowd(rng, spec.side, nominal=observation.nominal)
        catalogue, arms = with_arms(rng, draw_objects(rng, crowd), often=0.0 if observation.nominal else 0.6)
        components = Components.join(components_of(catalogue), arms)
        return cls(number, observation, catalogue, components, rng, int(rng.integers(2**62)), spec.side)

    def places(self, side: float, *, lsst: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres [N, 2] from the first pixel's centre, arcsec, and covariances [N, 3], on the grid of a survey."""
        c, o = self.components, self.observation
        at = np.stack([c.u, c.v], -1)
        if not lsst:
            return at, c.covariance
        angle = o.turn + o.grid_turn
        turned = (at - side / 2) @ _rotation(o.turn).T + o.offset
        moved = turned @ _rotation(o.grid_turn).T + side / 2
        moved -= np.array(o.grid_offset) + (LSST_SCALE - VIS_SCALE) / 2
        turn = _rotation(angle)
        full = np.stack([c.covariance[:, [0, 1]], c.covariance[:, [1, 2]]], 1)
        full = turn @ full @ turn.T
        return moved, np.stack([full[:, 0, 0], full[:, 0, 1], full[:, 1, 1]], -1)

    def observe(self, spec: SceneSpec, models: Sequence[Tensor], device: torch.device) -> ScenePairs:
        """Observe noise-free images of LSST and of VIS, and cut windows out."""
        o, rng = self.observation, self.rng
        noise = torch.Generator(device).manual_seed(self.noise_seed)
        lsst = expose(models[0], LSST, o, rng, noise)
        euclid = expose(models[1], VIS, o, rng, noise)
        add_trails(lsst, o, rng)
        add_cosmic_rays(euclid, o, rng)
        starts, chosen = self._stamps(spec) if spec.grid == "cutout" else self.windows(spec)
        ends = {"euclid": own_windows(euclid, starts, spec.size, VIS, o)}
        if spec.grid == "cutout":  # of twice the side, about the same place
            ends["lsst"] = own_windows(lsst, starts // 2 - spec.size // 4, spec.size, LSST, o)
        else:
            ends["lsst"] = lsst_windows(lsst, starts, spec.size, o)
        _cut_edges(rng, o.edges, ends["lsst"].flux, ends["euclid"].flux)
        count = len(starts)
        conditions = {"registration": torch.full((count,), o.registration, device=device)}
        for end, bands in (("lsst", LSST), ("euclid", VIS)):
            windows = ends[end]
            numbers = {
                "fwhm": [p.fwhm for p in o.psfs[bands]],
                "wing": [p.wing for p in o.psfs[bands]],
                "correlation": windows.correlation,
            }
            conditions |= {
                f"{end}_{name}": torch.tensor(values, dtype=torch.float32, device=device).repeat(count, 1)
                for name, values in numbers.items()
            }
            conditions[f"{end}_gain"] = windows.gain
            conditions[f"{end}_noise"] = windows.sigma.flatten(2).median(-1).values
        labels = self.labels(chosen)
        return ScenePairs(
            ends["lsst"].flux, ends["euclid"].flux, ends["lsst"].sigma, ends["euclid"].sigma, conditions, labels
        )

    def labels(self, chosen: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Labels of windows by the objects in their middle, -1 for none; see `ScenePairs`."""
        count, there = len(chosen), chosen >= 0
        labels: dict[str, NDArray[np.generic]] = {
            "scene": np.full(count, self.number),
            "role": np.where(there, self.catalogue["role"][chosen], "sky"),
            "nominal": np.full(count, self.observation.nominal),
        }
        return labels | {
            name: np.where(there, self.catalogue[name][chosen], np.nan)
            for name in ("mag_g", "mag_r", "mag_i", "mag_VIS", "re", "sersic_n")
        }

    def _stamps(self, spec: SceneSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `windows`, each about an object as well as LSST's pixels allow; first pixels are even."""
        rng, size, n = self.rng, spec.size, round(spec.side / VIS_SCALE)
        role = self.catalogue["role"]
        shares = np.array([ROLES[str(name)] for name in role])
        shares /= np.array([(role == name).sum() for name in role])
        at = np.stack([self.catalogue["u"], self.catalogue["v"]], -1) / VIS_SCALE - (size - 1) / 2
        starts = 2 * np.round(at / 2).astype(np.int64)
        inside = ((starts >= size // 2) & (starts <= n - size - size // 2)).all(-1)
        shares *= inside & (self.catalogue["mag_i"] < np.where(role == "star", 26.0, 24.5))
        # a scene has dozens of objects; one that has fewer than are wanted shows some of them again
        few = bool(np.count_nonzero(shares) < spec.windows)
        chosen = rng.choice(len(role), spec.windows, replace=few, p=shares / shares.sum())
        return starts[chosen], chosen

    def windows(self, spec: SceneSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First pixels [W, 2] of the windows on the grid of VIS, and the objects in their middle (-1: none)."""
        rng, size, n = self.rng, spec.size, round(spec.side / VIS_SCALE)
        margin = MARGIN if self.observation.grid_turn else 0
        at = np.stack([self.catalogue["u"], self.catalogue["v"]], -1) / VIS_SCALE - (size - 1) / 2
        inside = ((at > margin + 3) & (at < n - size - margin - 3)).all(-1)
        inside &= (self.catalogue["mag_i"] < 24.5) | (self.catalogue["role"] != "field")
        starts, chosen = np.empty((spec.windows, 2), np.int64), np.full(spec.windows, -1)
        left = {
            role: list(rng.permutation(np.flatnonzero(inside & (self.catalogue["role"] == role)))) for role in ROLES
        }
        for k in range(spec.windows):
            shares = np.array([share if left[role] or not role else 0.0 for role, share in ROLES.items()])
            role = str(rng.choice(list(ROLES), p=shares / shares.sum()))
            if left[role]:
                chosen[k] = left[role].pop()
                # most of them as in cutouts, centred to a pixel, the others anywhere near the middle
                jitter = rng.uniform(-1, 1, 2) * (1.0 if rng.random() < 0.6 else 0.35 * size)
                starts[k] = np.clip(np.round(at[chosen[k]] + jitter), margin, n - size - margin)
            else:
                starts[k] = rng.integers(margin, n - size - margin + 1, 2)
        return starts, chosen


def render(drawn: Sequence[Scene], device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise-free images [scenes, B, n, n] of LSST and of VIS, each on its own pixels, nJy per pixel."""
    nodes = round(drawn[0].side / VIS_SCALE)
    return (
        render_bands(drawn, Grid(len(drawn), nodes, LSST_SCALE / 2), LSST, device),
        render_bands(drawn, Grid(len(drawn), 2 * nodes, VIS_SCALE / 2), VIS, device),
    )


def render_bands(
    drawn: Sequence[Scene], grid: Grid, bands: slice, device: torch.device, psf: Psf | None = None
) -> Tensor:
    """Noise-free images [scenes, B, n, n] of some bands, nJy per pixel.

    They are on the pixels of their survey, with its PSF; with a `psf` on the pixels of VIS.
    """
    lsst = bands.start == 0 and psf is None
    placed = [scene.places(grid.side, lsst=lsst) for scene in drawn]

    def tensor(values: list[NDArray[np.float64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(values)).float().to(device)

    which = torch.from_numpy(np.repeat(np.arange(len(drawn)), [len(s.components) for s in drawn])).to(device)
    flux = tensor([scene.components.flux[:, bands] for scene in drawn])
    spectrum = spectra(grid, which, tensor([p[0] for p in placed]), tensor([p[1] for p in placed]), flux)
    psfs = [psf or own for scene in drawn for own in scene.observation.psfs[bands]]
    transfer = transfer_functions(psfs, grid.nodes, grid.spacing, 2 * grid.spacing, device)
    return images(spectrum, transfer.view(spectrum.shape), grid, every=2)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _cut_edges(rng: np.random.Generator, share: float, *ends: Tensor) -> None:
    """Take a part of some windows away from one survey, in place: beyond the edge of its footprint."""
    size = ends[0].shape[-1]
    axis = torch.arange(size, device=ends[0].device) - (size - 1) / 2
    for row in np.flatnonzero(rng.random(len(ends[0])) < share):
        angle, end = rng.uniform(0, 2 * np.pi), int(rng.integers(2))
        distance = axis * float(np.cos(angle)) + axis[:, None] * float(np.sin(angle))
        ends[end][row, :, distance > float(rng.uniform(-0.1, 0.45)) * size] = torch.nan
