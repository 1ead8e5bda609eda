"""Calibrate a network that is told conditions: its lens score is that of what each pair, and each tile, is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import galsim
import numpy as np
import pytest
import torch
import zarr

from surveybridge.bridge_core.conditions import QUANTITIES
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.network import UNet
from surveybridge.bridge_core.residuals import Asked
from surveybridge.bridge_core.settings import Sampling
from surveybridge.jobs.calibrating.pairs import measure_pairs, objects_in_the_middle, stated_conditions, thirds
from surveybridge.jobs.calibrating.stages import Settings, TileMeasurer
from surveybridge.jobs.evaluating.cutouts import pair_cutouts
from surveybridge.jobs.simulating.injection import ArcLight, draw_lens, inject, moffat, pair_view, vis_noise
from surveybridge.jobs.simulating.observing import INSTRUMENTS
from surveybridge.jobs.training.images import views_of
from surveybridge.jobs.translating.homogenising import Homogenisation, words
from surveybridge.storage.manifests import fields_of
from surveybridge.storage.pairs import Pairs, on_mosaic_grid, read_pairs
from surveybridge.storage.tiles import Tile, TileStore
from tests import tiny
from tests.bridge_core.models import TINY, AnalyticModel, gaussian_denoiser, make_card

ASKED = Asked(2.0, 1, batch=4, precision="float32")
SEEING = (0.5, 0.7, 0.9, 1.1, 1.3, 0.6)


@dataclass(frozen=True, eq=False)
class Listening(AnalyticModel):
    """A model that keeps what it is told, by direction."""

    told: dict[int, list[Context | None]] = field(default_factory=dict)

    def predictor(self, x1, direction, times, precision, context=None) -> Any:
        self.told.setdefault(direction.index, []).append(context)
        assert torch.isfinite(x1).all()
        return super().predictor(x1, direction, times, precision)


def listening() -> Listening:
    network = replace(TINY, conditions=True)
    return Listening(make_card(network=network), UNet(network), "0" * 64, gaussian_denoiser(0.7, 0.1, 0.5))


@pytest.fixture
def pairs(tmp_path) -> Pairs:
    """Six pairs on their own pixels, of other seeing, noise and gain each."""
    path = tiny.write_pairs(tmp_path / "told.zarr", len(SEEING))
    group = zarr.open_group(path, mode="a")
    seeing = np.array(SEEING, np.float32)[:, None]
    group.create_array("lsst_fwhm", data=np.repeat(seeing, 3, 1))
    group.create_array("lsst_gain", data=np.full((len(SEEING), 3), 200.0, np.float32))
    group.create_array("euclid_noise", data=2 * seeing)
    group.create_array("euclid_wing", data=np.full((len(SEEING), 1), 0.3, np.float32))
    return read_pairs(path, "cutout", conditions=True)


def same(one: list[Context | None], other: Context) -> bool:
    maps, vector = (torch.cat([getattr(part, name) for part in one]) for name in ("maps", "vector"))
    return torch.equal(maps, other.maps) and torch.equal(vector, other.vector)


# -- pairs --


def test_ordinary_pairs_and_those_with_arcs_are_measured_with_what_they_are_told(pairs):
    lenses, _, origin = inject(pairs, [4, 1, 3], seed=2)
    assert lenses.conditions is not None
    assert lenses.conditions.ends["lsst"].fwhm[:, 0] == pytest.approx([SEEING[row] for row in origin])
    for some in (pairs, lenses):
        model = listening()
        measure_pairs(model, some, 0, ASKED)
        expected = views_of(model.card, on_mosaic_grid(some))
        assert expected is not None
        for index in (0, 1):
            assert same(model.told[index], expected[index])
        assert len(torch.unique(expected.second.vector, dim=0)) == len(some)  # each is told something of its own


def test_residuals_come_with_what_the_network_was_told(pairs):
    measured = measure_pairs(listening(), pairs, 0, ASKED)
    ends = {"lsst": "gri", "euclid": ("VIS",)}
    names = [f"{end} {band} {what}" for end, bands in ends.items() for what in QUANTITIES for band in bands]
    assert list(measured.conditions) == [*names, "registration"]
    seeing = measured.conditions["lsst i fwhm"]
    assert seeing == pytest.approx(np.log(np.array(SEEING) / 0.1) - 1.2, abs=1e-5)
    steps = np.diff(measured.conditions["euclid VIS noise"]) / np.diff(np.log(SEEING))
    assert steps == pytest.approx(1.0, abs=1e-4)
    assert np.isnan(measured.conditions["registration"]).all()
    assert np.ptp(measured.conditions["euclid VIS wing"]) == 0


def test_pixels_without_data_are_filled_said_and_left_out(pairs):
    holes = {name: stamps.copy() for name, stamps in on_mosaic_grid(pairs).ends.items()}
    holes["lsst"][2, 1, :, 40:44] = np.nan
    holes["euclid"][5, 0, 10] = np.nan
    masked = replace(on_mosaic_grid(pairs), ends=holes)
    model = listening()
    found = pair_cutouts(model, masked, [(0, 64 * k) for k in range(len(masked))], torch.device("cpu"))
    assert (~found.valid).sum((1, 2, 3)).tolist() == [0, 0, 64 * 4, 0, 0, 64]
    assert torch.isfinite(found.x1).all() and torch.isfinite(found.x0).all()
    assert found.views is not None
    known = found.views.second.maps[:, 3:]  # of LSST
    assert known[2, 1].min() == 0 and known[2, 0].min() == 1
    measured = measure_pairs(model, masked, 0, ASKED)
    assert np.isfinite(measured.features).all() and np.isfinite(measured.flux).all()


def test_arcs_are_seen_as_each_pair_was_observed(pairs):
    rng, band = np.random.default_rng(8), INSTRUMENTS[2]
    images, width = draw_lens(rng).images, []
    for row in (0, 4):
        view = pair_view(pairs, row, band)
        assert view.gain == 200.0
        stamp = ArcLight.of(images).expected(view, 120, (0.0, 0.0))
        assert stamp.sum() == pytest.approx(images.flux["i"], rel=0.03)
        width.append((stamp**2).sum())
    assert width[0] > 1.5 * width[1]
    assert vis_noise(pairs, 3) == pytest.approx(2 * SEEING[3])
    assert pair_view(replace(pairs, conditions=None), 4, band).gain == band.gain


def test_arcs_can_be_seen_through_the_widest_wings_of_a_telescope():
    """An endless Moffat profile of beta 1.25 would need an image of 10^5 pixels a side."""
    psf = moffat(0.17, 0.8)
    assert psf.fwhm == pytest.approx(0.17, rel=1e-6)
    stamp = galsim.Convolve(psf, galsim.Gaussian(fwhm=0.3)).drawImage(galsim.ImageD(64, 64, scale=0.1)).array
    assert float(stamp.sum()) == pytest.approx(1, abs=0.01)


def test_arcs_on_finer_pixels_bring_the_same_flux(pairs):
    fine = on_mosaic_grid(pairs)
    lenses, drawn, origin = inject(fine, range(6), seed=3)
    for k, row in enumerate(origin):
        for end, bands in fine.bands.items():
            added = (lenses.ends[end][k] - fine.ends[end][row]).sum((1, 2))
            assert added == pytest.approx([drawn[k].images.flux[band] for band in bands], rel=0.1)


def test_only_galaxies_that_a_catalog_would_have_scores_of_are_ordinary(pairs):
    """Not stars, empty sky or objects off the middle, nor those that are masked; a hole beside one is no harm."""
    stamps = {name: one.copy() for name, one in on_mosaic_grid(pairs).ends.items()}
    stamps["euclid"][1] = np.roll(stamps["euclid"][1], 9, -1)  # 0.9" beside the middle
    stamps["lsst"][2, 0, 20:44, 26:] = np.nan
    stamps["euclid"][3, 0, 4:10] = np.nan
    stamps["lsst"][4, :, :, :53] = np.nan
    shown = replace(on_mosaic_grid(pairs), ends=stamps)
    classes = ["deflector_like", "field_galaxy", "field_galaxy", None, "field_galaxy", "star"]
    assert objects_in_the_middle(shown, classes, "euclid") == [0, 3]
    assert objects_in_the_middle(pairs, ["none", *[None] * 5], "euclid") == [1, 2, 3, 4, 5]


def test_rates_are_compared_by_thirds_of_what_varies(pairs):
    rng = np.random.default_rng(4)
    many = pairs.rows(list(rng.integers(0, 6, 600)))
    assert many.conditions is not None
    seeing = many.conditions.ends["lsst"].fwhm[:, 2]
    found = thirds(stated_conditions(many), rng.normal(size=600) + 3.0 * (seeing > 1.0))
    assert set(found) == {"lsst g fwhm", "lsst r fwhm", "lsst i fwhm", "euclid VIS noise"}  # nothing else varies
    lowest, _, highest = found["lsst i fwhm"]
    assert lowest == [0.0, 0.0] and highest == pytest.approx([0.15, 0.06], abs=0.02)
    assert thirds(stated_conditions(replace(many, conditions=None)), rng.normal(size=600)) == {}
    partly = {"seeing": np.where(np.arange(600) < 300, np.nan, seeing), "unknown": np.full(600, np.nan)}
    found = thirds(partly, np.where(np.arange(600) < 300, 9.0, seeing))
    assert set(found) == {"seeing"} and found["seeing"] == [[0.0, 0.0]] * 3, "those beyond are of unknown seeing"


# -- tiles --


def test_a_calibration_is_shown_the_tiles_that_a_translation_is_shown(tmp_path):
    """How far the tiles of a field reach is said by the store; the last ones by themselves seem to reach farther."""
    how = Homogenisation({"lsst": dict.fromkeys("gri", "gaussian:0.75")}, 3.0)

    def sharp(tile: Tile) -> Tile:
        return tiny.with_images(tile, lsst=replace(tile.images["lsst"], psf_fwhm=(0.6,) * 3, psf_wing=(0.0,) * 3))

    store = TileStore.open(tiny.write_store(tmp_path / "tiles", tile_size=tiny.SIDE - 4, halo=64, edit=sharp))
    manifest = store.manifest()
    settings = Settings(
        store=store.url,
        checkpoint=tiny.write_checkpoint(tmp_path),
        out=str(tmp_path / "out"),
        noise={},
        sampling=Sampling(samples=2, steps=1),
        scoring=None,
        homogenisation=how,
        lenses=0,
        held_back=None,
        known_lenses=None,
        batch=None,
        threads=1,
        fields=fields_of(manifest),
        filesystems={},
    )
    for tile_id in manifest["tile_id"].to_pylist():
        tile = store.read_tile(tile_id)
        shown = TileMeasurer(settings).shown(tile)
        assert words(shown) == words(how.applied(tile, fields_of(manifest)[tile.field]))
    assert "as it is" in str(words(shown)) and "as it is" not in str(words(how.applied(tile, None)))
