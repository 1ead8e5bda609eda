"""Windows, fill, coverage and blend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.patches import FILL_REACH, blend, cut, fill_masked, local_coverage, taper
from surveybridge.bridge_core.settings import PatchGrid

GRIDS = [PatchGrid(), PatchGrid(64, 48, 8), PatchGrid(32, 9, 4), PatchGrid(16, 16, 0)]
CORES = [((0, 0), (64, 192, 64, 192)), ((-513, 7), (3, 90, 11, 12)), ((12345, -98765), (0, 50, 1, 128))]


def used_count(grid: PatchGrid, corners: list[tuple[int, int]], box: tuple[int, int, int, int]) -> Tensor:
    """How many windows use each pixel of a global box, counted one window at a time."""
    y0, y1, x0, x1 = box
    count = torch.zeros(y1 - y0, x1 - x0)
    for y, x in corners:
        rows = torch.arange(y0, y1)
        cols = torch.arange(x0, x1)
        inside_y = (rows >= y + grid.margin) & (rows < y + grid.size - grid.margin)
        inside_x = (cols >= x + grid.margin) & (cols < x + grid.size - grid.margin)
        count += (inside_y[:, None] & inside_x[None, :]).float()
    return count


def weight_of(grid: PatchGrid) -> Tensor:
    return taper(grid)[:, None] * taper(grid)[None, :]


# ---- where windows lie


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("origin", "core"), CORES)
def test_every_core_pixel_is_used_and_every_window_is_needed(grid, origin, core):
    corners = grid.windows((256, 256), origin, core)
    box = (origin[0] + core[0], origin[0] + core[1], origin[1] + core[2], origin[1] + core[3])
    count = used_count(grid, corners, box)
    assert (count >= 1).all()
    assert all(used_count(grid, [corner], box).any() for corner in corners)
    assert len(set(corners)) == len(corners)
    assert corners == sorted(corners)


@pytest.mark.parametrize("grid", GRIDS)
def test_span_of_many_tiles_at_once_is_that_of_each(grid):
    starts = np.arange(-100, 100)
    first, last = grid.span(starts, starts + 70)
    for i, start in enumerate(starts.tolist()):
        corners = sorted({y for y, _ in grid.windows((70, 70), (start, start), (0, 70, 0, 70))})
        assert [n * grid.stride for n in range(first[i], last[i] + 1)] == corners


@pytest.mark.parametrize("grid", GRIDS[:3])
def test_neighbouring_tiles_cut_the_same_windows_of_the_sky(grid):
    # two tiles whose cores meet at global x = 128, and one tile that holds both
    whole = grid.windows((256, 384), (-64, -64), (64, 192, 64, 320))
    left = grid.windows((256, 256), (-64, -64), (64, 192, 64, 192))
    right = grid.windows((256, 256), (-64, 64), (64, 192, 64, 192))
    assert sorted({*left, *right}) == whole
    assert {*left} & {*right}  # and the seam is inside windows of both
    assert all(y % grid.stride == 0 and x % grid.stride == 0 for y, x in whole)


def test_halo_of_64_holds_every_window_and_what_its_fill_reads():
    grid = PatchGrid()
    for start in range(-200, 200, 7):
        for y, x in grid.windows((256, 256), (start - 64, start - 64), (64, 192, 64, 192)):
            assert start - 64 <= min(y, x) - FILL_REACH
            assert max(y, x) + grid.size + FILL_REACH <= start + 192


def test_grid_with_gaps_and_core_outside_the_array_are_refused():
    with pytest.raises(BridgeError, match=r"stride 50 leaves gaps .* 48 pixels"):
        PatchGrid(64, 50, 8)
    with pytest.raises(BridgeError, match="256 x 256"):
        PatchGrid().windows((256, 256), (0, 0), (0, 257, 0, 256))


# ---- weights


@pytest.mark.parametrize("grid", GRIDS)
def test_weight_is_positive_on_the_used_part_only_and_symmetric(grid):
    weight, m = weight_of(grid), grid.margin
    used = weight[m : grid.size - m, m : grid.size - m]
    assert weight.dtype == torch.float64
    assert (used > 0).all()
    assert float(weight.sum() - used.sum()) == 0
    assert torch.equal(weight, weight.flip(0))
    assert torch.equal(weight, weight.T)
    assert float(weight.max()) <= 1


@pytest.mark.parametrize("grid", [PatchGrid(), PatchGrid(64, 48, 8), PatchGrid(16, 16, 0)])
def test_weights_of_all_windows_sum_to_one_everywhere(grid):
    corners = grid.windows((200, 200), (0, 0), (0, 200, 0, 200))
    total = torch.zeros(400, 400, dtype=torch.float64)
    for y, x in corners:
        total[y + 100 : y + 100 + grid.size, x + 100 : x + 100 + grid.size] += weight_of(grid)
    torch.testing.assert_close(total[100:300, 100:300], torch.ones(200, 200, dtype=torch.float64))


# ---- cut


def test_cut_takes_global_pixels_and_is_empty_sky_beyond_the_array():
    image = torch.arange(1.0, 101.0).view(1, 10, 10)
    assert torch.equal(cut(image, [(-5 + 2, 20 + 3)], (-5, 20), 4)[0], image[:, 2:6, 3:7])
    corner = cut(image, [(-8, 28)], (-5, 20), 6)[0]
    assert torch.equal(corner[:, 3:, :2], image[:, :3, 8:])
    assert float(corner.sum()) == float(image[:, :3, 8:].sum())
    assert (cut(image, [(500, 500)], (-5, 20), 4) == 0).all()
    assert not cut(torch.ones(1, 4, 4, dtype=torch.bool), [(9, 9)], (0, 0), 4).any()


# ---- fill


def scene() -> tuple[Tensor, Tensor]:
    image = torch.randn(3, 40, 40) + 5
    valid = torch.rand(3, 40, 40) > 0.2
    valid[1, 10:35, 10:35] = False  # wider than the fill reaches
    return image, valid


def test_fill_never_reads_masked_pixels():
    image, valid = scene()
    clean = fill_masked(image, valid)
    for garbage in (torch.nan, torch.inf, 1e30, -3.0):
        assert torch.equal(fill_masked(image.masked_fill(~valid, garbage), valid), clean)
    assert clean.isfinite().all()


def test_fill_keeps_valid_pixels_and_stays_within_their_neighbours():
    image, valid = scene()
    filled = fill_masked(image, valid)
    assert torch.equal(filled[valid], image[valid])
    assert float(filled.min()) >= min(0.0, float(image[valid].min()))
    assert float(filled.max()) <= float(image[valid].max()) + 1e-5
    assert float(filled[1, 22, 22]) == 0  # nothing within 8 pixels
    flat = fill_masked(torch.full((1, 20, 20), 7.0), torch.rand(1, 20, 20) > 0.3)
    torch.testing.assert_close(flat, torch.full((1, 20, 20), 7.0), rtol=1e-5, atol=0)


def test_fill_is_the_gaussian_mean_of_what_is_known_nearby():
    image, valid = torch.randn(1, 30, 30), torch.ones(1, 30, 30, dtype=torch.bool)
    valid[0, 14:17, 12:15] = False
    y, x = torch.meshgrid(torch.arange(30), torch.arange(30), indexing="ij")
    weight = torch.exp(-((y - 15) ** 2 + (x - 13) ** 2) / 18.0) * ((y - 15).abs() <= 8) * ((x - 13).abs() <= 8)
    weight = weight * valid[0]
    expected = float((weight * image[0]).sum() / weight.sum())
    assert float(fill_masked(image, valid)[0, 15, 13]) == pytest.approx(expected, rel=1e-4)


def test_bands_are_filled_on_their_own():
    image, valid = scene()
    together = fill_masked(image, valid)
    for band in range(3):
        alone = fill_masked(image[band : band + 1], valid[band : band + 1])
        torch.testing.assert_close(together[band : band + 1], alone, rtol=1e-5, atol=1e-5)


# ---- coverage


def test_coverage_is_one_inside_zero_on_masks_and_between_beside_them():
    valid = torch.ones(3, 60, 60, dtype=torch.bool)
    valid[1, :, 30] = False  # one band is enough
    coverage = local_coverage(valid, fwhm=5.0)
    assert coverage.dtype == torch.float32
    assert coverage.shape == (60, 60)
    assert (coverage[:, 30] == 0).all()
    torch.testing.assert_close(coverage[20:40, 10:20], torch.ones(20, 10), rtol=0, atol=1e-5)
    beside = coverage[30, 31:39]
    assert (beside.diff() >= -1e-6).all()
    assert 0.7 < float(beside[0]) < 0.95
    assert float(coverage.max()) <= 1


def test_beyond_the_array_nothing_is_observed():
    coverage = local_coverage(torch.ones(1, 40, 40, dtype=torch.bool), fwhm=5.0)
    assert 0.4 < float(coverage[20, 0]) < 0.65
    assert 0.2 < float(coverage[0, 0]) < 0.4


def test_wider_seeing_reaches_farther():
    valid = torch.ones(1, 40, 40, dtype=torch.bool)
    valid[0, :, 20] = False
    sharp, broad = local_coverage(valid, 1.5)[20], local_coverage(valid, 7.0)[20]
    assert float(sharp[24]) > float(broad[24])


# ---- blend


def stack(count: int, grid: PatchGrid) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 2, grid.size, grid.size), torch.rand(count, 2, grid.size, grid.size) + 0.1


@pytest.mark.parametrize("grid", GRIDS)
def test_blend_does_not_depend_on_the_order_of_windows_not_even_in_a_bit(grid):
    box = (0, 90, 3, 80)
    corners = grid.windows((100, 100), (0, 0), box)
    mean, variance = stack(len(corners), grid)
    order = torch.randperm(len(corners)).tolist()
    first = blend(corners, mean, variance, grid, box)
    second = blend([corners[i] for i in order], mean[order], variance[order], grid, box)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(x.isfinite().all() for x in first)


def test_windows_that_agree_are_left_as_they_are():
    grid, box, sky = PatchGrid(), (5, 105, -20, 90), torch.randn(2, 300, 300)
    spread = torch.rand(2, 300, 300) + 0.1
    corners = grid.windows((300, 300), (-100, -100), (105, 205, 80, 190))
    mean = cut(sky, corners, (-100, -100), 64)
    variance = cut(spread, corners, (-100, -100), 64)
    got_mean, got_std = blend(corners, mean, variance, grid, box)
    assert got_mean.dtype == torch.float32
    torch.testing.assert_close(got_mean, sky[:, 105:205, 80:190], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got_std, spread[:, 105:205, 80:190].sqrt(), rtol=1e-5, atol=0)


def test_blend_is_the_mixture_and_never_shrinks_the_uncertainty():
    grid, box = PatchGrid(), (0, 80, 0, 80)
    corners = grid.windows((80, 80), (0, 0), box)
    mean, variance = stack(len(corners), grid)
    got_mean, got_std = blend(corners, mean, variance, grid, box)
    # at one pixel, by hand
    y, x, weights, ms, vs = 33, 41, [], [], []
    for (top, left), m, v in zip(corners, mean.double(), variance.double(), strict=True):
        if 0 <= y - top < 64 and 0 <= x - left < 64:
            weights.append(weight_of(grid)[y - top, x - left])
            ms.append(m[:, y - top, x - left])
            vs.append(v[:, y - top, x - left])
    w = (torch.stack(weights) / sum(weights))[:, None]
    m, v = torch.stack(ms), torch.stack(vs)
    expected = (w * m).sum(0)
    torch.testing.assert_close(got_mean[:, y, x].double(), expected, rtol=1e-6, atol=1e-6)
    spread = (w * (v + (m - expected) ** 2)).sum(0)
    torch.testing.assert_close(got_std[:, y, x].double() ** 2, spread, rtol=1e-5, atol=0)
    assert (spread >= (w * v).sum(0)).all()


def test_pixels_that_no_window_uses_are_nan():
    grid = PatchGrid()
    mean, variance = stack(1, grid)
    got_mean, got_std = blend([(0, 0)], mean, variance, grid, (0, 64, 0, 64))
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[8:56, 8:56] = True
    for got in (got_mean, got_std):
        assert got[:, inside].isfinite().all()
        assert got[:, ~inside].isnan().all()


def test_windows_off_the_box_change_nothing():
    grid, box = PatchGrid(), (0, 40, 0, 40)
    corners = grid.windows((40, 40), (0, 0), box)
    far = [(-200, 0), (-80, -80), (0, 40), (400, 400)]
    mean, variance = stack(len(corners) + len(far), grid)
    n = len(corners)
    first = blend(corners, mean[:n], variance[:n], grid, box)
    second = blend(corners + far, mean, variance, grid, box)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_small_variance_on_a_bright_mean_survives_the_subtraction_of_moments():
    grid = PatchGrid()
    mean, variance = torch.full((1, 1, 64, 64), 1e4), torch.full((1, 1, 64, 64), 1e-4)
    _, std = blend([(0, 0)], mean, variance, grid, (20, 30, 20, 30))
    torch.testing.assert_close(std, torch.full((1, 10, 10), 1e-2), rtol=1e-3, atol=0)
