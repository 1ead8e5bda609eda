"""Detectors among the rivals: DeCo-Diff, CFM, their features; what they learn, their seeds and their files."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F

from surveybridge.bridge_core.comparators.budget import Budget
from surveybridge.bridge_core.comparators.crossmodal import CrossModal, chosen_tokens, known_tokens
from surveybridge.bridge_core.comparators.decodiff import REVERSE, DecoDiff, alpha_bar, noised
from surveybridge.bridge_core.comparators.detectors import (
    CrossModalDetector,
    DecoDiffDetector,
    sky_noise,
    sky_sigma,
    train_decodiff,
    train_encoder,
    train_maps,
)
from surveybridge.bridge_core.comparators.features import EfficientNetFeatures, SelfTaught, vicreg, view
from surveybridge.bridge_core.comparators.fit import load_weights, save_weights
from surveybridge.bridge_core.errors import BridgeError
from tests.bridge_core.test_comparators import DISPLAYED, NOISE, pairs

pytestmark = pytest.mark.long

LSST, EUCLID = DISPLAYED.endpoints
WITH_WEIGHTS = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason="features of EfficientNet come with the extra `comparators`",
)


def test_the_schedule_of_decodiff_is_the_squared_cosine():
    left = alpha_bar()
    t = torch.arange(1, 11) / 10
    expected = (
        torch.cos((t + 0.008) / 1.008 * torch.pi / 2) / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2))
    ) ** 2
    torch.testing.assert_close(left[:9], expected[:9])
    assert 0 < left[9] < 1e-4  # the last beta is clipped at 0.999
    assert REVERSE[0] == 8


def test_the_deviation_leads_back_to_the_image_and_is_zero_where_nothing_was_noised():
    x0 = torch.randn(16, 4, 8, 8)
    left = torch.full((16, 1, 1, 1), 0.3)
    x_t, deviation = noised(x0, left, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x_t - (1 - left).sqrt() * deviation, x0)
    changed = (x_t != x0).any(1)
    assert 0.1 < changed.float().mean() < 0.6
    assert not deviation.movedim(1, -1)[~changed].any()


def test_some_of_the_noise_of_decodiff_is_taken_from_other_images():
    x0 = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 4, 8, 8) * 100  # each image has a value of its own
    left = torch.full((64, 1, 1, 1), 0.5)
    _, deviation = noised(x0, left, torch.Generator().manual_seed(1))
    c = (1 - left.sqrt()) / (1 - left).sqrt()
    noise = (deviation + c * x0)[deviation != 0]
    dealt = noise.abs() > 50
    assert 0.03 < dealt.float().mean() < 0.3
    torch.testing.assert_close(noise[dealt] / 100, (noise[dealt] / 100).round(), atol=1e-3, rtol=0)


class Corrector(DecoDiff):
    """One that takes every image back to a known one."""

    def __init__(self, right):
        super().__init__(1, base=8)
        self.right = F.pixel_unshuffle(right, 2)

    def forward(self, blocks, t):
        return (blocks - self.right) / (1 - self.alpha_bar[t].view(-1, 1, 1, 1)).sqrt()


def test_decodiff_marks_what_is_corrected_where_it_is():
    right = torch.full((2, 1, 16, 16), -1.0)
    images = right.clone()
    images[1, 0, 10:12, 4:6] += 0.5
    network = Corrector(right)
    torch.testing.assert_close(network.corrected(images), right)
    sigma = torch.tensor([0.02])
    found = network.anomaly_map(images, sigma)
    assert found[0].abs().max() < 1e-3
    peak = divmod(int(found[1].argmax()), 16)
    assert 9 <= peak[0] <= 12 and 3 <= peak[1] <= 6
    assert network.score(images, sigma)[1] > 10 * network.score(images, sigma)[0]


def test_decodiff_learns_a_few_images_and_the_same_seed_gives_the_same_scores():
    ends = pairs()
    draws = torch.Generator().manual_seed(9)
    networks = [train_decodiff(EUCLID, ends[1], Budget(steps=steps, seed=2), base=8) for steps in (1, 25, 25)]
    with torch.no_grad():
        losses = [float(network.loss(ends[1][:, :1], draws.manual_seed(9))) for network in networks]
    assert losses[1] < 0.95 * losses[0] and losses[2] == losses[1]
    detectors = [DecoDiffDetector(DISPLAYED, {"euclid": network}) for network in networks[1:]]
    one, other = (detector.score(ends[0], ends[1], 0) for detector in detectors)
    assert one.shape == (8,) and torch.equal(one, other) and len(one.unique()) == 8


def test_decodiff_on_both_ends_adds_the_scores_of_each():
    ends = pairs(3)
    networks = {end.name: DecoDiff(end.planes, base=8).eval() for end in DISPLAYED.endpoints}
    both = DecoDiffDetector(DISPLAYED, networks).score(ends[0], ends[1], 0)
    each = [DecoDiffDetector(DISPLAYED, {name: one}).score(ends[0], ends[1], 0) for name, one in networks.items()]
    torch.testing.assert_close(both, each[0] + each[1])


def test_the_noise_follows_from_the_display():
    assert sky_noise(LSST).flatten().tolist() == pytest.approx([NOISE[band] for band in "gri"])
    flux = torch.tensor([NOISE["VIS"]]).view(1, 1, 1)
    assert float(sky_sigma(EUCLID)) == pytest.approx(float(EUCLID.forward(flux, 1) + 1), rel=1e-4)


def test_vicreg_wants_views_alike_and_spread_out():
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    white = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    assert float(vicreg(white, white)) < 0.1
    assert float(vicreg(white, white.roll(1, 0))) > 25  # not alike
    assert float(vicreg(0 * white, 0 * white)) == pytest.approx(25 * 0.99, rel=1e-3)  # not spread
    together = white[:, :1].expand(-1, 8)
    assert float(vicreg(together, together)) == pytest.approx(2 * 7, rel=0.1)  # all channels the same


def test_a_view_keeps_the_flux_within_a_tenth():
    images = torch.rand(16, 3, 16, 16)
    seen = view(images, 0.0, torch.Generator().manual_seed(0))
    ratio = seen.sum((1, 2, 3)) / images.sum((1, 2, 3))
    assert 0.9 < ratio.min() < 0.95 and 1.05 < ratio.max() < 1.1
    assert not torch.equal(seen[0] / ratio[0], images[0])


def test_an_encoder_teaches_itself_and_the_same_seed_gives_the_same():
    images = pairs(32)[0]
    unit = (images.clamp(-1, 1) + 1) / 2
    encoders = [train_encoder(LSST, images, Budget(steps=steps)) for steps in (1, 15, 15)]
    with torch.no_grad():
        losses = [float(e.loss(unit, 0.0, torch.Generator().manual_seed(5))) for e in encoders]
    assert losses[1] < 0.95 * losses[0] and losses[1] == losses[2]
    assert encoders[0](unit).shape == (32, SelfTaught.width, 8, 8)


class Pooled(torch.nn.Module):
    """Features of tests: the pixels of a token."""

    width = 12

    def forward(self, images):
        return F.pixel_unshuffle(images, 2)


def test_maps_between_features_are_learnt_and_find_the_pair_that_was_swapped():
    ends = pairs(32)
    encoders = (Pooled(), Pooled())
    maps = [train_maps(DISPLAYED, encoders, ends, Budget(steps=steps)) for steps in (1, 150, 150)]
    detector = CrossModalDetector(DISPLAYED, encoders, maps[1])
    again = CrossModalDetector(DISPLAYED, encoders, maps[2])
    swapped = ends[1].clone()
    swapped[0] = swapped[0].flip(-1).roll(5, -1)
    found = detector.score(ends[0], swapped, 0)
    assert torch.equal(found, again.score(ends[0], swapped, 0))
    assert found.argmax() == 0 and found[0] > detector.score(ends[0], ends[1], 0)[0]


def test_tokens_of_sky_are_not_looked_at():
    first, second = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    first[0, 1, 2, 3] = 5.0
    second[1, 0, 7, 7] = 2.5
    known = known_tokens(first, second)
    assert known.nonzero().tolist() == [[0, 1, 1], [1, 3, 3]]
    chosen = chosen_tokens(known, torch.Generator().manual_seed(0))
    assert chosen.tolist() == [[0, 1, 1], [1, 3, 3]]
    maps = CrossModal(4, 4).eval()
    found = maps.anomaly_map(torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool))
    assert not found.any()


def test_no_more_tokens_are_drawn_from_a_pair_than_its_share():
    chosen = chosen_tokens(torch.ones(2, 32, 32, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert torch.bincount(chosen[:, 0]).tolist() == [128, 128]
    assert len({tuple(row) for row in chosen.tolist()}) == 256


def test_pairs_of_nothing_but_sky_are_refused():
    sky = torch.full((4, 3, 16, 16), -1.0)
    with pytest.raises(BridgeError, match="none of 4 pairs holds more than sky"):
        train_maps(DISPLAYED, (Pooled(), Pooled()), (sky, sky), Budget(steps=1))


def test_weights_are_read_as_they_were_written(tmp_path):
    network, other = CrossModal(4, 6), CrossModal(4, 6)
    save_weights(network, {"steps": 3}, tmp_path / "maps")
    assert load_weights(other, tmp_path / "maps") == {"steps": 3}
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    with pytest.raises(BridgeError, match="the weights are of another network"):
        load_weights(CrossModal(5, 6), tmp_path / "maps")
    with pytest.raises(BridgeError, match=r"none.safetensors does not exist"):
        load_weights(other, tmp_path / "none")


@WITH_WEIGHTS
def test_features_of_efficientnet_see_where_something_is():
    images = torch.zeros(2, 3, 32, 32)
    images[1, :, 20:24, 8:12] = 1.0
    found = EfficientNetFeatures()(images)
    assert found.shape == (2, 176, 16, 16)
    difference = (found[1] - found[0]).square().sum(0)
    row, column = divmod(int(difference.argmax()), 16)
    assert 8 <= row <= 13 and 2 <= column <= 7
    assert not any(p.requires_grad for p in EfficientNetFeatures().parameters())


def test_features_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(BridgeError, match="need efficientnet_lite_pytorch, which is not installed; pip install"):
        EfficientNetFeatures()
