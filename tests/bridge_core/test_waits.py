"""A GPU works through a tile without being waited for: shown without a GPU, by a device that pretends to be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.anomaly import SourceScores, score_sources
from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.consistency import BandOptics, consistency_of
from surveybridge.bridge_core.light_relation import LightRelation
from surveybridge.bridge_core.model import Model
from surveybridge.bridge_core.scene import Scene
from surveybridge.bridge_core.settings import PatchGrid, Sampling, Scoring, WholeTile
from surveybridge.bridge_core.translate import Posterior, translate_tile, with_shared_start
from surveybridge.kernels.transfer import to_device
from surveybridge.storage.psf import Gaussian
from tests.pretended_gpu import GPU, OnGpu, PretendedGpu, pretended_gpu

pytestmark = pytest.mark.long

SIDE, CORE = 64, (24, 40, 24, 40)
CENTRES = [(30, 30), (45, 60)]
HOST = "a tensor is copied to the host"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_checkpoint()


def scene(bands: int, hold: Callable[[Tensor], Tensor] = lambda values: values) -> Scene:
    """A tile of noise with holes, as `hold` puts it somewhere."""
    generator = torch.Generator().manual_seed(bands)
    flux = 10 * torch.randn(bands, SIDE, SIDE, generator=generator)
    valid = torch.rand(bands, SIDE, SIDE, generator=generator) > 0.1
    sigma = 1 + torch.rand(bands, SIDE, SIDE, generator=generator)
    return Scene(hold(flux), hold(valid), origin=(0, 0), core=CORE, psf_fwhm=7.0, sigma=hold(sigma))


@contextmanager
def on_a_gpu(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PretendedGpu, Model]]:
    with pretended_gpu(monkeypatch) as gpu:
        yield gpu, replace(model, network=gpu.carry(model.network))


def translated(model: Model, how: Sampling, hold: Callable[[Tensor], Tensor] = lambda values: values) -> Posterior:
    direction = model.card.problem.directions[-1]
    return translate_tile(model, direction, scene(len(direction.observed.bands), hold), how)


def test_light_that_is_brought_to_agree_is_waited_for_no_more(model, monkeypatch):
    direction = model.card.problem.directions[-1]
    optics = {
        end.name: [BandOptics(Gaussian(fwhm), fwhm, 0.1)] * len(end.bands)
        for end, fwhm in ((direction.observed, 0.4), (direction.wanted, 0.17))
    }
    relation = LightRelation("VIS", {"g": 0.2, "r": 0.1, "i": 0.7}, scatter=0.05, error={str(direction): 0.1})
    noise = [(1.0, lambda shape: np.ones((shape[0], shape[1] // 2 + 1)))] * 3
    agreeing = consistency_of(relation, model.card.problem, direction, optics, noise, 0.1, (16, 16), halo=16)
    how = Sampling(samples=2, batch=1, steps=2, precision="float32", patches=WholeTile(16))
    expected = translate_tile(model, direction, scene(3), how, consistency=agreeing)
    assert not torch.equal(expected.mean, translated(model, how).mean)
    with on_a_gpu(model, monkeypatch) as (gpu, there):
        found = translate_tile(there, direction, scene(3, gpu.hold), how, consistency=agreeing)
    assert [wait.split(":")[:2] for wait in gpu.waits] == [[HOST, f" {file}"] for file in ("scene.py", "translate.py")]
    torch.testing.assert_close(found.mean, expected.mean, equal_nan=True)


def scored(model: Model, batch: int, hold: Callable[[Tensor], Tensor] = lambda values: values) -> SourceScores:
    direction = model.card.problem.directions[-1]
    observed, wanted = (scene(len(end.bands), hold) for end in (direction.observed, direction.wanted))
    how = Scoring(samples=2, steps=2, batch=batch, reconstruct=0.9, precision="float32")
    return score_sources(model, observed, wanted, CENTRES, how)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("patches", "to_see_what_is_live"),
    [(WholeTile(16), ["scene.py"]), (PatchGrid(), ["scene.py", "patches.py"])],
    ids=["whole", "patches"],
)
def test_a_tile_is_waited_for_before_the_network_and_at_its_end_however_many_batches(
    model, monkeypatch, patches, to_see_what_is_live, batch
):
    asked = Sampling(samples=2, batch=batch, steps=2, precision="float32", patches=patches)
    how = with_shared_start(model.card, asked)
    expected = translated(model, how)
    with on_a_gpu(model, monkeypatch) as (gpu, there):
        found = translated(there, how, gpu.hold)
    assert [wait.split(":")[:2] for wait in gpu.waits] == [
        [HOST, f" {file}"] for file in (*to_see_what_is_live, "translate.py")
    ], gpu.waits
    torch.testing.assert_close(found.mean, expected.mean, equal_nan=True)
    torch.testing.assert_close(found.std, expected.std, equal_nan=True)


def test_objects_are_waited_for_when_all_of_a_group_are_done_however_many_batches(model, monkeypatch):
    waits = []
    for batch in (1, 2):
        expected = scored(model, batch)
        assert 0 < expected.reconstructed.sum() < len(CENTRES)
        with on_a_gpu(model, monkeypatch) as (gpu, there):
            found = scored(there, batch, gpu.hold)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)
        waits.append([wait.split(":")[:2] for wait in gpu.waits])
    known, measured, reconstructed = ([HOST, f" {file}"] for file in ("anomaly.py", "residuals.py", "anomaly.py"))
    assert waits[0] == waits[1] == [known, *[measured] * 3, known, *[reconstructed] * 3]


def test_a_tile_goes_to_a_gpu_without_waiting(monkeypatch):
    here = scene(3)
    with pretended_gpu(monkeypatch) as gpu:
        there = here.to(GPU)
        assert not gpu.waits
        for name in ("flux", "valid", "sigma"):
            assert getattr(there, name).device == GPU
            assert torch.equal(getattr(there, name).cpu(), getattr(here, name))


def test_what_waits_for_a_gpu_is_seen_on_one_that_pretends(monkeypatch):
    values = torch.arange(6.0)
    with pretended_gpu(monkeypatch) as gpu:
        there = to_device(values, GPU)
        assert isinstance(there, OnGpu) and there.device == GPU and not gpu.waits
        assert (there * 2 + there.sum()).cpu().tolist() == (values * 2 + values.sum()).tolist()
        assert gpu.waits.pop().startswith(HOST) and not gpu.waits
        ways: dict[str, Callable[[], object]] = {
            "a value is read": lambda: float(there[2]),
            "memory that is not pinned": lambda: values.to(GPU),
            "indices are on the host": lambda: there[torch.tensor([1, 2])],
            "over another that is elsewhere": lambda: there.copy_(values),
        }
        for words, wait in ways.items():
            wait()
            assert words in gpu.waits.pop() and not gpu.waits
        with pytest.raises(AssertionError, match=r"shape \[6\] is on the host"):
            there + values
