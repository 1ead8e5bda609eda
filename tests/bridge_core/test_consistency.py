"""Flux consistency: a network's light is brought to agree with what was observed, and else left as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint, save_checkpoint
from surveybridge.bridge_core.consistency import LIMITS, BandOptics, Consistency, consistency_of
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.maps import MapsHead, map_tile
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.objective import Objective
from surveybridge.bridge_core.problem import Direction
from surveybridge.bridge_core.redraw import redraw_tile
from surveybridge.bridge_core.scene import Scene, look
from surveybridge.bridge_core.settings import PatchGrid, Sampling, WholeTile
from surveybridge.bridge_core.translate import grown, translate_tile, whole_samples
from surveybridge.storage.psf import Gaussian, Moffat, Psf
from tests.bridge_core.models import PROBLEM, TO_EUCLID, TO_LSST, make_card, random_model

SCALE, SIDE, MARGIN_FWHM = 0.1, 200, 0.8
Psfs = Mapping[str, tuple[Psf, ...]]
RELATION = LightRelation(
    "VIS", {"g": 0.2, "r": -0.1, "i": 0.9}, scatter=0.04, error={"lsst->euclid": 0.15, "euclid->lsst": 0.12}
)
ROUND = {"lsst": (Gaussian(0.8), Gaussian(0.75), Gaussian(0.7)), "euclid": (Gaussian(0.17),)}
WINGED = {"lsst": (Moffat(0.9, 3.0), Moffat(0.8, 3.0), Moffat(0.7, 2.5)), "euclid": (Moffat(0.17, 2.5),)}
COLOURS = torch.tensor([[0.3, 0.6, 1.0 + 0.1], [0.8, 0.9, 1.0], [0.2, 0.5, 1.1]])
"""Fluxes in g, r, i of three kinds of sources, before they are scaled so that the relation gives 1 in VIS."""


def optics(psfs: Psfs) -> dict[str, list[BandOptics]]:
    return {name: [BandOptics(psf, psf.fwhm, SCALE) for psf in of] for name, of in psfs.items()}


def made(
    direction: Direction,
    psfs: Psfs = ROUND,
    core: tuple[int, int] = (SIDE, SIDE),
    noise: float = 0.5,
    halo: int = 30,
) -> Consistency:
    white = [(noise, lambda shape: np.ones((shape[0], shape[1] // 2 + 1)))] * len(direction.observed.bands)
    return consistency_of(RELATION, PROBLEM, direction, optics(psfs), white, SCALE, core, halo)


def image(psf: Psf, sources: Sequence[tuple[float, float, float]], shape: tuple[int, int]) -> Tensor:
    """Point sources (y, x, flux), float64 [H, W], as a PSF shows them on pixels."""
    high, wide = shape[0] + 256, shape[1] + 256  # so far around that nothing comes in on the other side
    v = np.asarray(np.fft.fftfreq(high, SCALE), np.float64)[:, None]
    u = np.asarray(np.fft.rfftfreq(wide, SCALE), np.float64)[None]
    modes = sum(flux * np.exp(-2j * np.pi * SCALE * (u * x + v * y)) for y, x, flux in sources)
    blurred = np.fft.irfft2(modes * psf.transfer(u, v) * np.sinc(u * SCALE) * np.sinc(v * SCALE), (high, wide))
    return torch.from_numpy(np.roll(blurred, (128, 128), (0, 1))[128:-128, 128:-128].copy())


class Sky:
    """Sources of known colours as both ends see them, with some pixels around a core."""

    def __init__(self, psfs: Psfs, margin: int, said: Sequence[float], flux: float = 2e4) -> None:
        """`said` is how much of its light a network sees of each source."""
        side = SIDE + 2 * margin
        weights = torch.tensor(list(RELATION.weights.values()))
        colours = COLOURS / (COLOURS @ weights)[:, None]
        places = [(margin + 40.0 + 60 * (n % 3), margin + 40.0 + 60 * (n // 3)) for n in range(len(said))]
        self.places = [(int(y) - margin, int(x) - margin) for y, x in places]
        self.lsst = torch.stack(
            [
                image(psf, [(*at, flux * float(colours[n % 3, band])) for n, at in enumerate(places)], (side, side))
                for band, psf in enumerate(psfs["lsst"])
            ]
        )
        self.euclid = image(psfs["euclid"][0], [(*at, flux) for at in places], (side, side))[None]
        pixels = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
        self.nearest = torch.cdist(pixels, torch.tensor(places, dtype=torch.float64)).argmin(1).view(side, side)
        self.said = said

    def ends(self, direction: Direction) -> tuple[Tensor, Tensor]:
        """What is observed, and what a network says, float32."""
        both = (self.lsst, self.euclid) if direction is TO_EUCLID else (self.euclid, self.lsst)
        return both[0].float(), (both[1] * torch.tensor(self.said, dtype=torch.float64)[self.nearest]).float()


def frame(flux: Tensor, consistency: Consistency, valid: Tensor | None = None) -> Scene:
    margin = consistency.margin
    core = (margin, flux.shape[-2] - margin, margin, flux.shape[-1] - margin)
    return Scene(flux, torch.ones_like(flux, dtype=torch.bool) if valid is None else valid, (0, 0), core, 8.0)


def factor_of(consistency: Consistency, told: Tensor, observed: Tensor, valid: Tensor | None = None) -> Tensor:
    """By what a mean is multiplied, [h, w]."""
    return consistency.observe(frame(observed, consistency, valid)).factor(told)[0].clamp(*LIMITS)


@pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)
@pytest.mark.parametrize("psfs", [ROUND, WINGED], ids=["round", "winged"])
def test_light_that_agrees_stays_and_light_that_does_not_is_brought_to_agree(direction, psfs):
    said = (1.0, 0.4, 3.0, 1.0, 1.5, 0.8)
    consistency = made(direction, psfs)
    sky = Sky(psfs, consistency.margin, said)
    observed, told = sky.ends(direction)
    factor = factor_of(consistency, told, observed)
    assert factor.shape == (SIDE, SIDE)
    for (y, x), share in zip(sky.places, said, strict=True):
        # what colours might explain is not believed to the full
        assert float(factor[y, x]) * share == pytest.approx(1, abs=0.01 if share == 1 else 0.05), share
        around = factor[y - 3 : y + 4, x - 3 : x + 4]
        assert float(around.max() - around.min()) < 0.05
    assert float(factor[0, 0]) == pytest.approx(1, abs=0.01)


def factors_of_two(
    psfs: Psfs, places: Sequence[tuple[int, int]], fluxes: Sequence[float], said: Sequence[float]
) -> list[float]:
    """Factors at point sources of the same colours, by their light and how much of it a network sees."""
    consistency = made(TO_EUCLID, psfs, halo=40)
    margin, side = consistency.margin, SIDE + 2 * consistency.margin
    colours = (COLOURS[0] / (COLOURS[0] @ torch.tensor(list(RELATION.weights.values())))).tolist()
    at = [(y + margin, x + margin) for y, x in places]

    def shown(psf: Psf, shares: Sequence[float]) -> Tensor:
        sources = [(*place, flux * share) for place, flux, share in zip(at, fluxes, shares, strict=True)]
        return image(psf, sources, (side, side)).float()

    observed = torch.stack([colours[band] * shown(psf, (1.0, 1.0)) for band, psf in enumerate(psfs["lsst"])])
    factor = factor_of(consistency, shown(psfs["euclid"][0], said)[None], observed)
    return [float(factor[place]) for place in places]


def test_wings_of_a_bright_source_are_no_light_of_a_faint_one_far_off():
    bright, faint = factors_of_two(WINGED, [(100, 100), (100, 128)], [2e5, 300.0], [1.0, 1.0])
    assert bright == pytest.approx(1, abs=0.01) and faint == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("apart", "close"), [(6, 0.06), (8, 0.02), (12, 0.02)])
def test_a_source_beside_one_of_wrong_light_keeps_its_own(apart, close):
    wrong, right = factors_of_two(ROUND, [(100, 100), (100, 100 + apart)], [2e4, 2e4], [2.0, 1.0])
    assert wrong == pytest.approx(0.5, abs=close) and right == pytest.approx(1, abs=close)


def test_noise_and_what_colours_explain_draw_it_to_one():
    consistency = made(TO_EUCLID)
    bright, faint = (Sky(ROUND, consistency.margin, (0.5,) * 2, flux) for flux in (2e4, 20.0))
    factors = []
    for sky in (bright, faint):
        observed, told = sky.ends(TO_EUCLID)
        factors.append(float(factor_of(consistency, told, observed)[sky.places[0]]))
    assert factors[0] > 1.9 and 1 < factors[1] < 1.1
    observed, told = Sky(ROUND, consistency.margin, (0.97,) * 2).ends(TO_EUCLID)
    corrections = [
        float(factor_of(replace(consistency, scatter=scatter), told, observed)[40, 40]) - 1
        for scatter in (0.0, 0.15, 1.0)
    ]
    assert corrections[0] == pytest.approx(1 / 0.97 - 1, rel=0.1)
    assert corrections[1] == pytest.approx(corrections[0] / 2, rel=0.1) and abs(corrections[2]) < 0.002


def test_noise_alone_is_hardly_changed():
    consistency, generator = made(TO_EUCLID, noise=1.0), torch.Generator().manual_seed(4)
    side = SIDE + 2 * consistency.margin
    observed, told = (torch.randn(bands, side, side, generator=generator) for bands in (3, 1))
    factor = factor_of(consistency, 0.1 * told, observed)
    assert float((factor - 1).abs().max()) < 0.05


def test_the_noise_is_that_of_the_light_which_is_compared():
    consistency, generator = made(TO_EUCLID, noise=2.0), torch.Generator().manual_seed(5)
    side = SIDE + 2 * consistency.margin
    noise = 2 * torch.randn(3, side, side, generator=generator)
    light = torch.fft.irfft2((torch.fft.rfft2(noise) * consistency.observed).sum(0), s=noise.shape[-2:])
    assert float(light.std()) == pytest.approx(consistency.noise, rel=0.05)


def test_where_pixels_are_not_known_light_stays_as_it_is():
    consistency = made(TO_EUCLID)
    sky = Sky(ROUND, consistency.margin, (2.0,) * 6)
    observed, told = sky.ends(TO_EUCLID)
    valid = torch.ones_like(observed, dtype=torch.bool)
    (y, x), other = sky.places[1], sky.places[4]
    hole = np.s_[
        y + consistency.margin - 3 : y + consistency.margin + 4, x + consistency.margin - 3 : x + consistency.margin + 4
    ]
    valid[1][hole] = False  # one band is enough
    lost = torch.where(valid, observed, torch.nan)
    factor = factor_of(consistency, told, lost, valid)
    assert factor.isfinite().all()
    assert float(factor[y, x]) > 0.9 and float(factor[other]) == pytest.approx(0.5, abs=0.05)


def test_it_stays_within_limits():
    consistency = made(TO_EUCLID)
    sky = Sky(ROUND, consistency.margin, (100.0, 0.01))
    observed, told = sky.ends(TO_EUCLID)
    factor = factor_of(consistency, told, observed)
    assert (float(factor.min()), float(factor.max())) == pytest.approx(LIMITS)


def test_neighbouring_cores_have_the_same_factor_where_they_see_the_same():
    consistency = made(TO_EUCLID, halo=60)
    observed, told = Sky(WINGED, consistency.margin, (1.0, 0.4, 3.0, 2.0, 1.5, 0.8)).ends(TO_EUCLID)
    whole = factor_of(consistency, told, observed)
    part = made(TO_EUCLID, core=(90, 76), halo=60)
    m, high, wide = consistency.margin, 90, 76
    cut = np.s_[..., 30 : 30 + high + 2 * m, 50 : 50 + wide + 2 * m]
    assert part.margin == m
    found = factor_of(part, told[cut].contiguous(), observed[cut].contiguous())
    torch.testing.assert_close(found, whole[30 : 30 + high, 50 : 50 + wide], rtol=1e-4, atol=1e-4)


# ---- in a translation

HOW = Sampling(samples=3, steps=2, seed=7, batch=2, precision="float32", patches=WholeTile())
CORE = (64, 120, 64, 104)


def shining() -> Model:
    """A network that says there is light everywhere."""
    model = random_model(replace(make_card(), objective=Objective("edm", sigma_data=0.3, end_share=0.1)))
    torch.nn.init.normal_(model.network.final_conv.weight, std=0.01)
    bias = model.network.final_conv.bias
    assert bias is not None
    torch.nn.init.constant_(bias, 0.5)
    return model


def tile(direction: Direction) -> tuple[Scene, Consistency]:
    flux = 5 * torch.randn(len(direction.observed.bands), 184, 168, generator=torch.Generator().manual_seed(2))
    flux += torch.linspace(0, 40, 168)
    valid = torch.ones(flux.shape, dtype=torch.bool)
    valid[:, 80:90, 70:80] = False
    consistency = made(direction, core=(CORE[1] - CORE[0], CORE[3] - CORE[2]))
    return Scene(flux, valid, (300, -77), CORE, 8.0), consistency


@pytest.mark.parametrize("direction", [TO_EUCLID, TO_LSST], ids=str)
def test_what_is_written_are_the_moments_of_samples_that_agree(direction):
    view, consistency = tile(direction)
    model, margin = shining(), consistency.margin
    found = translate_tile(model, direction, view, HOW, consistency=consistency)
    plain = translate_tile(model, direction, view, HOW)
    torch.testing.assert_close(found.coverage, plain.coverage)
    known = found.coverage > 0
    assert float((found.mean / plain.mean - 1)[:, known].abs().max()) > 0.1
    seen = look(model, direction, view, HOW)
    larger = seen._replace(box=grown(seen.box, margin))
    samples = torch.cat(list(whole_samples(model, direction, larger, HOW)), 1)[0]
    agreeing = consistency.observe(view.framed(larger.box)).samples(samples, 0, HOW.seed, direction.index)
    torch.testing.assert_close(found.mean[:, known], agreeing.mean(0)[:, known], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.std[:, known], agreeing.std(0)[:, known], rtol=1e-4, atol=1e-4)


def test_samples_scatter_as_the_light_does_that_is_not_known():
    consistency, generator = made(TO_EUCLID), torch.Generator().manual_seed(8)
    number, scatter, error = 24, RELATION.scatter, RELATION.error["lsst->euclid"]
    sources = 9
    off = 1 + error * torch.randn(number, sources, generator=generator)
    sky = Sky(ROUND, consistency.margin, [1.0] * sources)
    observed, true = sky.ends(TO_EUCLID)
    told = torch.stack([true * of[sky.nearest] for of in off])
    agreement = consistency.observe(frame(observed, consistency))
    found, margin = agreement.samples(told, 0, 5, 1), consistency.margin
    light = [
        (found[:, 0, y, x] / told[:, 0, y + margin, x + margin] * off[:, n]) for n, (y, x) in enumerate(sky.places)
    ]
    shares = torch.stack(light)  # of the true light, by source and sample
    assert float(shares.mean()) == pytest.approx(1, abs=3 * scatter / math.sqrt(number * sources))
    expected = error * scatter / math.hypot(error, scatter)
    assert float(shares.std(1).square().mean().sqrt()) == pytest.approx(expected, rel=0.2)
    # and as maps without samples say
    _, left = agreement.factor(true)
    at = torch.tensor([float(left[place]) for place in sky.places])
    assert float(at.mean().sqrt()) * error == pytest.approx(expected, rel=0.1)
    parts = [agreement.samples(told[k : k + 5], k, 5, 1) for k in range(0, number, 5)]
    assert torch.equal(torch.cat(parts), found)
    assert not torch.equal(agreement.samples(told[:1], 0, 6, 1), found[:1])


def test_errors_of_the_light_are_of_the_sky_and_opposite_in_two_samples():
    wide = made(TO_EUCLID, noise=0.5)
    side, m = SIDE + 2 * wide.margin, wide.margin
    told = torch.full((1, side, side), 50.0)
    light = torch.full((3, side, side), 50.0)
    whole = wide.observe(frame(light, wide))
    both = whole.samples(torch.stack([told] * 4), 0, 3, 1)[:, 0] / 50
    # the sky is even, so that what is left of the factor is the error
    torch.testing.assert_close(both[0] + both[1], both[2] + both[3], rtol=1e-3, atol=1e-3)
    inner = np.s_[m:-m, m:-m]
    errors = (both[::2] - both[1::2])[:, *inner] / 2
    assert float(errors.std()) == pytest.approx(RELATION.scatter, rel=0.25)
    assert abs(float(torch.corrcoef(errors.flatten(1))[0, 1])) < 0.3
    part = made(TO_EUCLID, core=(90, 76))
    view = replace(frame(light[..., : 90 + 2 * m, : 76 + 2 * m], part), origin=(30, 50))
    found = part.observe(view).samples(told[None, ..., : 90 + 2 * m, : 76 + 2 * m], 0, 3, 1)[0, 0] / 50
    there = np.s_[30 + m : 30 + 90 - m, 50 + m : 50 + 76 - m]
    torch.testing.assert_close(found[m:-m, m:-m], both[0][there], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("region", [CORE, (70, 95, 66, 90)])
def test_samples_drawn_again_are_multiplied_too_to_the_bit(region):
    view, consistency = tile(TO_EUCLID)
    model = shining()
    whole = translate_tile(model, TO_EUCLID, view, HOW, consistency=consistency)
    part, samples = redraw_tile(model, TO_EUCLID, view, HOW, region, consistency=consistency)
    y0, y1, x0, x1 = region
    there = np.s_[:, y0 - CORE[0] : y1 - CORE[0], x0 - CORE[2] : x1 - CORE[2]]
    for name in ("mean", "std"):
        assert torch.equal(getattr(part, name).nan_to_num(-1), getattr(whole, name)[there].nan_to_num(-1)), name
    known = part.coverage > 0
    torch.testing.assert_close(samples.mean(0)[:, known], part.mean[:, known], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(samples.std(0)[:, known], part.std[:, known], rtol=1e-4, atol=1e-4)


def test_maps_without_samples_are_multiplied_too():
    model = shining()
    head = MapsHead(model.card.network).requires_grad_(False)
    view, consistency = tile(TO_EUCLID)
    plain = map_tile(model, head, TO_EUCLID, view, HOW)
    found = map_tile(model, head, TO_EUCLID, view, HOW, consistency=consistency)
    known = found.coverage > 0
    factor = (found.mean / plain.mean)[:, known]
    assert float((factor - 1).abs().max()) > 0.01
    kept = (found.std / plain.std)[:, known] / factor
    assert float(kept.min()) >= 0.5**0.5 - 1e-5 and float(kept.max()) <= 1 + 1e-5 and float(kept.median()) < 0.99


def test_patches_and_windows_that_reach_less_far_are_refused():
    view, consistency = tile(TO_EUCLID)
    for patches, why in (
        (PatchGrid(), "in whole tiles, not in patches"),
        (WholeTile(8), f"needs {consistency.margin} pixels around a core, and a window has 8"),
    ):
        with pytest.raises(BridgeError, match=why):
            translate_tile(random_model(), TO_EUCLID, view, replace(HOW, patches=patches), consistency=consistency)


# ---- the relation


def test_a_relation_is_read_back_from_a_card_and_is_no_part_of_the_identity(tmp_path):
    model = random_model()
    card = replace(model.card, consistency=replace(RELATION, provenance={"pairs": ["made-up"]}))
    one, other = (
        load_checkpoint(save_checkpoint(of, model.network.state_dict(), tmp_path / name))
        for of, name in ((card, "with"), (replace(card, consistency=None), "without"))
    )
    assert one.sha256 == other.sha256 and one.card.consistency == card.consistency and other.card.consistency is None
    assert RELATION.weights_of(PROBLEM, "euclid") == [1.0]
    assert RELATION.weights_of(PROBLEM, "lsst") == [0.2, -0.1, 0.9]


def test_a_relation_of_another_version_is_refused():
    with pytest.raises(BridgeError, match="flux consistency of version 7 but this code knows 2"):
        LightRelation.from_card(RELATION.card | {"version": 7})


def test_the_margin_grows_with_the_seeing():
    sharp, blurred = (made(TO_EUCLID, {**ROUND, "lsst": (Gaussian(fwhm),) * 3}) for fwhm in (0.5, 1.3))
    assert sharp.margin < blurred.margin < 40
    assert math.isclose(blurred.smoothing / sharp.smoothing, math.hypot(1.3, 0.17) / math.hypot(0.5, 0.17))
