"""A tile as one window: what windows say of it, whatever the batch, the extent of its arrays and how it is masked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core import translate as core
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.redraw import redraw_tile
from surveybridge.bridge_core.sampler import sample
from surveybridge.bridge_core.scene import Scene, look
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile, windows_of
from surveybridge.bridge_core.translate import Posterior, translate_tile
from tests.bridge_core import test_clouds_bridge as clouds
from tests.bridge_core import test_context as told
from tests.bridge_core.models import TINY, TO_EUCLID, TO_LSST, make_card, random_model

pytestmark = pytest.mark.long

HOW = Sampling(samples=3, steps=2, seed=7, batch=4, precision="float32", patches=WholeTile())


def sky(bands: int, height: int, width: int, seed: int = 1) -> Tensor:
    """Blobs of some tens of nJy on noise."""
    generator = torch.Generator().manual_seed(seed)
    flux = torch.randn(bands, height, width, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for _ in range(height * width // 2000):
        peak, yc, xc, s = (torch.rand(4, generator=generator) * torch.tensor([80.0, height, width, 4.0])).tolist()
        flux += peak * torch.exp(-((y - yc) ** 2 + (x - xc) ** 2) / (2 * (s + 1) ** 2))
    return flux


def scene(flux: Tensor, cores: tuple[int, int, int, int], origin: tuple[int, int] = (0, 0), **more) -> Scene:
    return Scene(flux, torch.ones_like(flux, dtype=torch.bool), origin, cores, 5.0, **more)


def same(a: Posterior, b: Posterior) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in ("mean", "std", "coverage"))
    return all(torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)) for one, other in pairs)


def assert_close(a: Posterior, b: Posterior) -> None:
    for name in ("mean", "std", "coverage"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), equal_nan=True, rtol=2e-5, atol=2e-5)


# ---- the window


@pytest.mark.parametrize("core_box", [(0, 96, 512, 608), (-37, -20, 5, 300), (1003, 1004, -9, -2)])
@pytest.mark.parametrize(("halo", "multiple"), [(64, 8), (30, 16), (0, 4)])
def test_a_window_is_the_core_with_its_halo_on_multiples_of_global_pixels(core_box, halo, multiple):
    box = WholeTile(halo, multiple).box(core_box)
    assert all(edge % multiple == 0 for edge in box)
    beyond = [core_box[0] - box[0], box[1] - core_box[1], core_box[2] - box[2], box[3] - core_box[3]]
    assert all(halo <= pixels < halo + multiple for pixels in beyond)
    windows, pixels = WholeTile(halo, multiple).count(core_box)
    assert (windows, pixels) == (1, (box[1] - box[0]) * (box[3] - box[2]))


@pytest.mark.parametrize("grid", [WholeTile(), WholeTile(16, 4), PatchGrid(), PatchGrid(32, 13, 4)])
def test_windows_and_pixels_of_many_cores_are_those_of_each(grid):
    y, x = np.array([0, 40, -300]), np.array([7, 96, 1000])
    height, width = np.array([96, 50, 3]), np.array([96, 64, 200])
    windows, pixels = grid.count((y, y + height, x, x + width))
    for n in range(3):
        core_box = tuple(int(edge[n]) for edge in (y, y + height, x, x + width))
        assert (windows[n], pixels[n]) == grid.count(core_box)
        if isinstance(grid, PatchGrid):
            shape = (int(height[n]), int(width[n]))
            corners = grid.windows(shape, (core_box[0], core_box[2]), (0, shape[0], 0, shape[1]))
            assert windows[n] == len(corners) and pixels[n] == windows[n] * grid.size**2


def test_a_core_for_some_pixels_has_about_as_many():
    for grid in (WholeTile(), PatchGrid(), PatchGrid.of(128)):
        side = grid.core_side(2e6)
        assert 0.8 < grid.count((0, side, 0, side))[1] / 2e6 < 1.2
        assert grid.core_side(1.0) == (64 if isinstance(grid, WholeTile) else grid.stride)


def test_runs_state_their_windows_and_read_them_back():
    for grid in (PatchGrid(), PatchGrid.of(128), WholeTile()):
        assert windows_of(grid.stated) == grid
    assert windows_of("tile", 16) == WholeTile(64, 16)
    assert (PatchGrid.of(128).stated, WholeTile().stated) == (128, "tile")
    with pytest.raises(BridgeError, match="'tile and 16 px' are neither 'tile' nor the side"):
        windows_of(WholeTile(16).stated)


def test_another_extent_of_the_arrays_holds_the_same_sky_and_masks_the_rest():
    whole = scene(sky(3, 40, 50), (10, 30, 20, 30), (100, -60), sigma=torch.rand(3, 40, 50))
    framed = whole.framed((96, 136, -72, -20))
    assert framed.core_box == whole.core_box and framed.origin == (96, -72)
    assert framed.sigma is not None and whole.sigma is not None
    assert framed.flux.shape == framed.sigma.shape == framed.valid.shape == (3, 40, 52)
    assert torch.equal(framed.flux[:, 4:, 12:], whole.flux[:, :36, :40])
    assert torch.equal(framed.sigma[:, 4:, 12:], whole.sigma[:, :36, :40])
    assert framed.valid[:, 4:, 12:].all() and not framed.valid[:, :4].any() and not framed.valid[..., :12].any()
    with pytest.raises(BridgeError, match=r"core \(10, 30, 20, 60\) is not inside an array of 40 x 50"):
        replace(whole, core=(10, 30, 20, 60)).framed((96, 136, -72, 0))


# ---- what it says


@pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)
def test_beyond_the_reach_of_the_steps_it_is_what_patches_with_such_a_margin_say(direction):
    model, steps = random_model(), 1
    margin = steps * (TINY.reach + 1)
    flux = sky(len(direction.observed.bands), 200, 224)
    flux[:, 90:94, 100:120] = 900.0
    view = replace(scene(flux, (80, 120, 90, 130), (1003, -520)))
    view.valid[:, 100:103, 95:140] = False
    how = replace(HOW, steps=steps)
    whole = translate_tile(model, direction, view, replace(how, patches=WholeTile(margin)))
    patches = translate_tile(model, direction, view, replace(how, patches=PatchGrid(2 * margin + 24, 24, margin)))
    assert (whole.windows, patches.windows > 1) == (1, True)
    assert_close(whole, patches)
    assert whole.std[:, whole.coverage > 0].min() > 0


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_checkpoint().to("cpu", "bfloat16")


USUAL = Sampling(samples=4, steps=6, seed=3, patches=WholeTile())


def off(one: Tensor, other: Tensor, std: Tensor) -> float:
    """Root mean square of the difference, in standard deviations of the posterior."""
    return float(((one - other) / std).square().mean().sqrt())


def test_seams_between_neighbours_are_small_and_it_agrees_with_patches(shipped):
    """Tiles as one window show each other's sky to 64 pixels beyond the seam, of the hundreds that all steps see."""
    flux, direction = sky(3, 192, 288, seed=5), TO_EUCLID
    direction = shipped.card.problem.direction(str(direction))

    def translated(left: int, right: int, grid: PatchGrid | WholeTile) -> Posterior:
        # each from arrays that end 64 pixels beyond its core, as a store has them
        part = scene(flux[..., left - 64 : right + 64], (64, 128, 64, 64 + right - left), (0, left - 64))
        return translate_tile(shipped, direction, part, replace(USUAL, patches=grid))

    whole = translated(96, 192, WholeTile())
    tiles = [translated(96, 144, WholeTile()), translated(144, 192, WholeTile())]
    both = torch.cat([tile.mean for tile in tiles], -1)
    seam = slice(44, 52)
    assert off(both[..., seam], whole.mean[..., seam], whole.std[..., seam]) < 0.05
    patches = translated(96, 192, PatchGrid())
    assert off(patches.mean, whole.mean, whole.std) < 0.2
    assert float(patches.std.mean() / whole.std.mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("batch", [1, 40, 1000])
def test_the_batch_does_not_matter(batch):
    model, view = random_model(), scene(sky(3, 160, 152), (64, 96, 64, 88))
    one = translate_tile(model, TO_EUCLID, view, HOW)
    assert_close(one, translate_tile(model, TO_EUCLID, view, replace(HOW, batch=batch)))


def test_a_call_takes_as_many_samples_as_make_a_batch_of_pixels_whatever_their_number(monkeypatch):
    calls: list[tuple[int, ...]] = []

    def record(model, x1, *arguments, **named):
        calls.append(tuple(x1.shape))
        return sample(model, x1, *arguments, **named)

    monkeypatch.setattr(core, "sample", record)
    model, view = random_model(), scene(sky(3, 160, 152), (64, 96, 64, 88))
    for samples, batch, expected in ((5, 4, [1] * 5), (5, 12, [2, 2, 1]), (2, 100, [2])):
        calls.clear()
        translate_tile(model, TO_EUCLID, view, replace(HOW, samples=samples, batch=batch))
        assert calls == [(n, 3, 160, 152) for n in expected]


def test_first_samples_stay_when_more_are_drawn():
    model, view = random_model(), scene(sky(3, 160, 152), (64, 96, 64, 88))
    _, three = redraw_tile(model, TO_EUCLID, view, HOW, view.core)
    _, five = redraw_tile(model, TO_EUCLID, view, replace(HOW, samples=5), view.core)
    assert torch.equal(three, five[:3]) and not torch.allclose(five[3], five[4], atol=1e-2)


# ---- the extent of the arrays


def test_what_a_tile_does_not_hold_is_masked_sky_and_what_it_holds_beyond_is_not_seen():
    model, flux = random_model(), sky(3, 400, 400)
    alone = scene(flux[:, 200:231, 200:245], (0, 31, 0, 45), (200, 200))
    found = translate_tile(model, TO_EUCLID, alone, HOW)
    assert found.mean.isfinite().all()
    for top, bottom, left, right in ((100, 300, 120, 310), (200, 400, 0, 245)):
        padded = scene(
            torch.full((3, bottom - top, right - left), torch.nan),
            (200 - top, 231 - top, 200 - left, 245 - left),
            (top, left),
        )
        padded.valid[:] = False
        here = (slice(200 - top, 231 - top), slice(200 - left, 245 - left))
        padded.flux[:, *here], padded.valid[:, *here] = alone.flux, True
        assert same(found, translate_tile(model, TO_EUCLID, padded, HOW))
    held = scene(flux[:, 136:295, 136:309], (64, 95, 64, 109), (136, 136))
    window = WholeTile().box(held.core_box)
    seen = scene(flux[:, window[0] : window[1], window[2] : window[3]], (0, 1, 0, 1), (window[0], window[2]))
    seen = replace(seen, core=(200 - window[0], 231 - window[0], 200 - window[2], 245 - window[2]))
    changed = flux.clone()
    outside = torch.ones(400, 400, dtype=torch.bool)
    outside[window[0] : window[1], window[2] : window[3]] = False
    changed[:, outside] = 50.0
    full = scene(changed, (200, 231, 200, 245))
    assert same(translate_tile(model, TO_EUCLID, seen, HOW), translate_tile(model, TO_EUCLID, full, HOW))
    assert not same(found, translate_tile(model, TO_EUCLID, held, HOW))


def test_tiles_of_one_size_have_windows_of_one_size_at_the_edge_of_a_field_too():
    model, flux = random_model(), sky(3, 96, 96)
    middle = scene(sky(3, 160, 160), (64, 96, 64, 96), (32, 32))
    corner = scene(flux, (0, 32, 0, 32))
    shapes = [look(model, TO_EUCLID, view, HOW).x1.shape for view in (middle, corner)]
    assert shapes == [(3, 160, 160)] * 2


@pytest.mark.parametrize("core_shape", [(1, 1), (10, 7), (3, 100)])
def test_cores_smaller_than_the_halo(core_shape):
    height, width = core_shape
    view = scene(sky(1, height + 20, width + 6), (12, 12 + height, 1, 1 + width), (-5, 77))
    found = translate_tile(random_model(), TO_LSST, view, HOW)
    assert found.mean.shape == (3, height, width)
    assert found.mean.isfinite().all() and (found.std > 0).all() and found.windows == 1


# ---- masks


def test_masked_pixels_are_not_used_and_not_invented():
    model, view = random_model(), scene(sky(3, 160, 160), (64, 96, 64, 96))
    view.valid[:, 70:80, 60:75] = False
    view.valid[1, 90, :] = False
    clean = translate_tile(model, TO_EUCLID, view, HOW)
    for garbage in (torch.nan, 1e30):
        other = replace(view, flux=view.flux.masked_fill(~view.valid, garbage))
        assert same(clean, translate_tile(model, TO_EUCLID, other, HOW))
    hole = ~view.valid.all(0)[64:96, 64:96]
    for image in (clean.mean, clean.std):
        assert image[:, hole].isnan().all() and image[:, ~hole].isfinite().all()


def test_a_core_that_nobody_observed_costs_no_call_of_the_network(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("the network was called")

    monkeypatch.setattr(core, "sample", refuse)
    model, view = random_model(), scene(sky(3, 160, 160), (64, 96, 64, 96))
    view.valid[:, 64:96, 64:96] = False  # its halo was
    found = translate_tile(model, TO_EUCLID, view, HOW)
    assert found.windows == 0 and found.mean.isnan().all() and (found.coverage == 0).all()
    posterior, samples = redraw_tile(model, TO_EUCLID, view, HOW, (70, 80, 64, 70))
    assert samples.shape == (3, 1, 10, 6) and samples.isnan().all() and posterior.windows == 0


# ---- other problems and networks


def test_a_problem_that_goes_one_way_with_several_quantities_and_a_noisy_end():
    model = random_model(clouds.card_of(end_noise=0.2))
    generator = torch.Generator().manual_seed(4)
    log = torch.randn(2, 150, 140, generator=generator)
    view = scene(torch.stack([10 ** (22 + 0.3 * log[0]), log[1]]), (60, 90, 56, 80), (8, 16))
    direction: Direction = model.card.problem.to("field")
    margin = TINY.reach + 1
    how = replace(HOW, steps=1)
    whole = translate_tile(model, direction, view, replace(how, patches=WholeTile(margin)))
    patches = translate_tile(model, direction, view, replace(how, patches=PatchGrid(2 * margin + 40, 40, margin)))
    assert whole.mean.shape == (1, 30, 24) and (whole.mean > 0).all()
    torch.testing.assert_close(whole.mean, patches.mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(whole.std, patches.std, rtol=1e-3, atol=0)


def test_a_network_is_told_the_noise_and_the_mask_of_the_whole_window():
    model = told.told_model()
    view = told.scene((32, 64, 40, 64), conditions=told.SEEN[told.FIRST.name])
    wanted = told.SEEN[told.SECOND.name]
    seen = look(model, told.THERE, view, HOW, wanted=wanted)
    assert seen.context is not None
    noise, known = seen.context.maps[0].split(3)
    y, x = seen.origin
    assert (y, x) == (-32, -24) and noise.shape == (3, 160, 152)
    assert known[:, 32:128, 24:120].all() and noise[:, 32:128, 24:120].all()
    assert not known[:, :32].any() and not known[..., :24].any() and not noise[..., 120:].any()
    # what is told far from the core matters as far as the network sees
    margin = TINY.reach + 1
    how = replace(HOW, steps=1)
    sigma = 0.3 + torch.rand(3, 150, 160, generator=torch.Generator().manual_seed(5))
    view = scene(sky(3, 150, 160), (60, 90, 60, 90), sigma=sigma, conditions=told.SEEN[told.FIRST.name])
    whole = translate_tile(model, told.THERE, view, replace(how, patches=WholeTile(margin)), wanted=wanted)
    grid = PatchGrid(2 * margin + 24, 24, margin)
    assert_close(whole, translate_tile(model, told.THERE, view, replace(how, patches=grid), wanted=wanted))
    noisier = replace(view, sigma=sigma * torch.linspace(1, 3, 160))
    other = translate_tile(model, told.THERE, noisier, replace(how, patches=WholeTile(margin)), wanted=wanted)
    assert not torch.allclose(whole.mean, other.mean, atol=1e-3)


def test_a_network_with_statistics_of_its_window_is_refused():
    model = random_model(make_card(network=replace(TINY, norm="group")))
    with pytest.raises(BridgeError, match=r"takes statistics of a window \(norm group\); use patches of 64$"):
        translate_tile(model, TO_EUCLID, scene(sky(3, 96, 96), (10, 20, 10, 20)), HOW)


# ---- samples drawn again


@pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)
def test_samples_drawn_again_have_the_moments_of_the_translation_to_the_bit(direction):
    model, view = random_model(), scene(sky(len(direction.observed.bands), 200, 170), (64, 130, 64, 110), (40, -24))
    view.valid[:, 70:80, 60:75] = False
    whole = translate_tile(model, direction, view, HOW)
    posterior, samples = redraw_tile(model, direction, view, HOW, view.core)
    assert same(whole, posterior)
    assert samples.shape == (3, *whole.mean.shape)
    region = (90, 100, 64, 71)
    there = (slice(26, 36), slice(0, 7))
    part, cut = redraw_tile(model, direction, view, HOW, region)
    assert torch.equal(cut, samples[:, :, *there])
    assert torch.equal(part.mean, whole.mean[:, *there]) and torch.equal(part.std, whole.std[:, *there])
