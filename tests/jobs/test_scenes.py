"""Scenes for training: what is drawn, against GalSim; noise, conditions and masks, against what ingest would state."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from surveybridge.jobs.simulating.components import Components, components_of
from surveybridge.jobs.simulating.drawing import Grid, images, spectra
from surveybridge.jobs.simulating.galaxies import COSMOS_DENSITY, Crowd, draw_objects
from surveybridge.jobs.simulating.optics import KOLMOGOROV_WING, Psf, transfer_functions
from surveybridge.jobs.simulating.population import columns
from surveybridge.jobs.simulating.scenes import Scene, SceneSpec, draw_pairs, render
from surveybridge.jobs.simulating.spirals import with_arms
from tests.conftest import ROOT

galsim = pytest.importorskip("galsim")

PSFS = {
    "gaussian": (Psf(0.77), galsim.Gaussian(fwhm=0.77)),
    "moffat 2.5": (Psf(0.62, 1 / 2.5), galsim.Moffat(2.5, fwhm=0.62)),
    "moffat 4.7": (Psf(0.93, 1 / 4.7), galsim.Moffat(4.7, fwhm=0.93)),
    "kolmogorov": (Psf(0.55, KOLMOGOROV_WING, "kolmogorov"), galsim.Kolmogorov(fwhm=0.55)),
    "elliptical": (Psf(0.66, 0.3, ellipticity=0.05, angle=0.7), galsim.Moffat(1 / 0.3, fwhm=0.66).shear(
        g1=0.05 * np.cos(1.4), g2=0.05 * np.sin(1.4))),
}  # fmt: skip


def catalogue(kind: str = "galaxy", **changes: float) -> dict:
    row = {"u": 12.93, "v": 13.07, "sersic_n": 1.0, "q": 0.62, "angle": 0.9, "main_re": 0.37, "re": 0.37}
    row |= {f"mag_{band}": 22.1 for band in ("g", "r", "i", "VIS")} | {"bulge_fraction": 0.0} | changes
    return columns(kind, {name: np.array([value]) for name, value in row.items()})


def drawn(objects: dict, psf: Psf, pixel: float) -> np.ndarray:
    """An image of 25.6 arcsec in the first band."""
    of = components_of(objects)
    grid = Grid(1, round(51.2 / pixel), pixel / 2)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).float()

    places = tensor(np.stack([of.u, of.v], -1))
    spectrum = spectra(
        grid, torch.zeros(len(of), dtype=torch.int64), places, tensor(of.covariance), tensor(of.flux[:, :1])
    )
    transfer = transfer_functions([psf], grid.nodes, grid.spacing, pixel, torch.device("cpu"))
    return images(spectrum, transfer[None], grid, every=2)[0, 0].numpy()


def galsim_drawn(objects: dict, profile: object, psf: object, pixel: float) -> np.ndarray:
    n = round(25.6 / pixel)
    image = galsim.ImageD(n, n, scale=pixel)
    both = psf if profile is None else galsim.Convolve(profile, psf)
    flux = 10 ** ((31.4 - objects["mag_g"][0]) / 2.5)
    at = galsim.PositionD(objects["u"][0] / pixel + 1, objects["v"][0] / pixel + 1)
    (both * flux).drawImage(image, center=at, method="auto")
    return image.array


def check(mine: np.ndarray, theirs: np.ndarray, objects: dict, pixel: float, worst: float) -> None:
    """Fluxes in apertures within 1%, pixels within a share of the peak."""
    n = len(theirs)
    y, x = np.indices((n, n)) * pixel
    radius = np.hypot(x - objects["u"][0], y - objects["v"][0])
    for aperture in (0.5, 1.0, 2.0, 4.0):
        inside = radius < aperture
        assert mine[inside].sum() == pytest.approx(theirs[inside].sum(), rel=0.01), aperture
    assert np.abs(mine - theirs).max() < worst * theirs.max()


@pytest.mark.parametrize("name", PSFS)
@pytest.mark.parametrize("index", [0.5, 1.0, 1.7, 4.0])
def test_galaxies_are_those_of_galsim(name: str, index: float) -> None:
    psf, theirs = PSFS[name]
    objects = catalogue(sersic_n=index)
    profile = galsim.Sersic(index, half_light_radius=0.37, trunc=8 * 0.37) if index > 0.5 else galsim.Gaussian(
        half_light_radius=0.37)  # fmt: skip
    e = (1 - 0.62) / (1 + 0.62)
    profile = profile.shear(g1=e * np.cos(1.8), g2=e * np.sin(1.8))
    check(drawn(objects, psf, 0.2), galsim_drawn(objects, profile, theirs, 0.2), objects, 0.2, worst=0.01)


@pytest.mark.parametrize("name", PSFS)
def test_stars_are_those_of_galsim(name: str) -> None:
    psf, theirs = PSFS[name]
    objects = catalogue("star", u=13.21, v=12.64)
    check(drawn(objects, psf, 0.2), galsim_drawn(objects, None, theirs, 0.2), objects, 0.2, worst=0.003)


@pytest.mark.parametrize("fwhm", [0.14, 0.21])
def test_stars_in_vis_are_those_of_galsim(fwhm: float) -> None:
    objects = catalogue("star", u=13.21, v=12.64)
    check(
        drawn(objects, Psf(fwhm), 0.1),
        galsim_drawn(objects, None, galsim.Gaussian(fwhm=fwhm), 0.1),
        objects,
        0.1,
        worst=0.003,
    )


SPEC = SceneSpec(windows=4)


@pytest.mark.parametrize("telescope", [0, 11, 20])
def test_a_bright_star_has_no_ghosts_far_from_it(telescope: int) -> None:
    """A transfer function that is interpolated badly repeats every star at the distance of its table's period."""
    grid = Grid(1, 1024, 0.05)
    psf = Psf(0.16, 0.5, "optical", telescope=telescope)
    spectrum = spectra(grid, torch.zeros(1).long(), torch.full((1, 2), 25.6), torch.zeros(1, 3), torch.ones(1, 1))
    transfer = transfer_functions([psf], grid.nodes, grid.spacing, 0.1, torch.device("cpu"))
    image = images(spectrum, transfer.view(spectrum.shape), grid, every=2)[0, 0]
    assert float(image.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(image.min()) > -2e-5 * float(image.max())


def test_scenes_follow_from_their_numbers_and_not_from_their_company() -> None:
    alone, together = draw_pairs(SPEC, 5, 3), draw_pairs(SPEC, 5, [1, 3, 2])
    for end in ("lsst", "euclid"):
        mine, theirs = getattr(alone, end).numpy(), getattr(together, end)[4:8].numpy()
        np.testing.assert_array_equal(mine, theirs)
    assert all(torch.equal(values, together.conditions[name][4:8]) for name, values in alone.conditions.items())
    assert not np.array_equal(draw_pairs(SPEC, 6, 3).euclid.numpy(), alone.euclid.numpy())


def test_galaxies_are_as_many_and_of_such_shapes_as_asked() -> None:
    rng = np.random.default_rng(8)
    crowd = Crowd(240.0, nominal=0.0, cosmos=1.0, systems=0, deflectors=0, bright=0, stars=300.0)
    drawn = draw_objects(rng, crowd)
    galaxy = drawn["kind"] == "galaxy"
    assert (galaxy & (drawn["mag_i"] < 26)).sum() == pytest.approx(COSMOS_DENSITY * 16, rel=0.1)
    assert (drawn["kind"] == "star").sum() == pytest.approx(300, rel=0.2)
    assert drawn["mag_i"][galaxy].max() > 27 and not np.isfinite(drawn["theta_E"]).any()
    shown = draw_objects(rng, replace(crowd, cosmos=0.0, systems=40, deflectors=30, bright=5, stars=0.0))
    roles = {role: int((shown["role"] == role).sum()) for role in ("system", "deflector", "bright")}
    assert roles == {"system": 40, "deflector": 30, "bright": 5}
    red = (shown["mag_g"] - shown["mag_i"])[shown["role"] == "deflector"]
    assert np.median(red) > np.median((drawn["mag_g"] - drawn["mag_i"])[galaxy]) + 0.4


def test_arms_take_their_light_from_the_disc() -> None:
    rng = np.random.default_rng(2)
    disc = catalogue(mag_i=19.5, main_re=2.0, re=2.0)
    with_arms_, arms = with_arms(rng, disc, often=1.0)
    whole = Components.join(components_of(with_arms_), arms)
    assert len(arms) >= 3 and arms.flux.sum() > 0.05 * whole.flux.sum()
    np.testing.assert_allclose(whole.flux.sum(0), components_of(disc).flux.sum(0), rtol=1e-6)
    assert arms.flux[:, 0].sum() / arms.flux[:, 2].sum() > whole.flux[:, 0].sum() / whole.flux[:, 2].sum()


def test_several_scenes_together_are_the_same_but_for_rounding() -> None:
    drawn = [Scene.draw(SPEC, 4, number) for number in range(3)]
    together = render(drawn, torch.device("cpu"))
    for k, scene in enumerate(drawn):
        for one, of_three in zip(render([scene], torch.device("cpu")), together, strict=True):
            assert float((one[0] - of_three[k]).abs().max()) < 2e-6 * float(one.abs().max()) + 1e-3


def test_drawing_needs_torch_and_numpy_only() -> None:
    seen: set[str] = set()
    wanted = ["surveybridge.jobs.simulating.scenes"]
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if not name.startswith("surveybridge."):
            continue
        source = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                wanted.append(str(node.module))
            elif isinstance(node, ast.Import):
                wanted += [alias.name for alias in node.names]
    packages = {name.split(".")[0] for name in seen} - set(sys.stdlib_module_names)
    assert packages == {"surveybridge", "torch", "numpy"}
