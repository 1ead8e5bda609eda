"""The memory that the stages of a translation need, by arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surveybridge.bridge_core.network import bfloat16_is_fast
from surveybridge.bridge_core.settings import WINDOW_PIXELS, WholeTile
from surveybridge.cluster.stages import GROUP_BYTES
from surveybridge.jobs.translating.homogenising import Homogenisation
from surveybridge.jobs.translating.light import relation_for
from surveybridge.jobs.translating.request import asked_direction

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.model import Card, Model
    from surveybridge.bridge_core.network import NetworkConfig
    from surveybridge.bridge_core.problem import Direction, Problem
    from surveybridge.jobs.translating.config import Config

SOURCES_PER_PIXEL = 1 / 1500
"""Density of sources for which memory is projected: 240 per square arcminute of 0.1" pixels, a deep field."""

PROCESS_BYTES = 450 << 20
"""Memory of a worker that has loaded Ray Data, torch, astropy, zarr and pyarrow, and done nothing yet."""

GPU_PROCESS_BYTES = 3 << 30
"""Host memory of a process with a GPU for CUDA's context, libraries and staging buffers (an estimate)."""

READ_COPIES = 3.4
"""Copies of a tile while it is read: decoded, being checked, pickled, and in Ray's block."""

MODEL_COPIES = 2.8
"""Copies of a tile while it is translated in patches, or its sources are scored: in Ray's block, and as arrays."""

WHOLE_COPIES = 1.0
"""Copies of a tile while it is translated as one window: in Ray's block. The window is counted with the network."""

CATALOG_COPIES = 3.2
"""Copies of the candidates while they are made: scores, thumbnails, columns, pickled."""

RECONSTRUCTION_COPIES = 10
"""Copies of a group's reconstructions while they are compared, most of them in the jackknife."""

_LIGHT_MARGIN = 56
"""Pixels around a core with which its light is compared, in a seeing of 1.1 arcsec, where a halo has so many."""

SAMPLER_PLANES = 8
"""Images in network units that are alive for a sample while the network works: its input counts as two (measured)."""

MALLOC_HOLDS = 32 << 20
"""Arrays below glibc's largest threshold for a mapping of their own."""

WRITE_COPIES = 1.9
"""Copies of a result while it is written: in Ray's block, and as arrays or as the file."""

ROW_GROUP = 1024
"""Candidates that Parquet encodes at a time."""

THUMBNAIL_BYTES = 4 * 64 * 64
"""A plane of a thumbnail; a row of the catalog has one for each band, and two more for each of the catalog's end."""

ROW_BYTES = 4 << 10
"""All else in a row of the catalog."""


def stage_memory(model: Model, manifest: pa.Table, config: Config, gpus: float | None = None) -> dict[str, int]:
    """Largest heap of a worker of each stage, bytes: "read", "model", "write".

    `gpus` is what a model will have; by default one where torch finds any on this machine.

    The constants are measured by `benchmarks/memory.py`, which shows projected and measured side by side. A stage
    holds one tile at a time: the sum of the process itself, copies of what comes in, what the stage makes, and copies
    of what goes out. The largest tile of the manifest decides, with `SOURCES_PER_PIXEL` sources in its core.
    """
    import torch

    tile, pixels, core = (_largest(manifest, *names) for names in (("bytes",), ("height", "width"), _CORE))
    direction = asked_direction(model, config)
    wanted = direction.wanted.planes
    seen = pixels * _HOMOGENISED_BYTES * _homogenised_bands(model.card, config)
    has_gpu = torch.cuda.is_available() if gpus is None else gpus
    reading = float(pixels * (_CONVOLVING_BYTES if seen else 0))
    if has_gpu:
        reading += pixels * _PREPARING_BYTES + _CUT_COPIES * core * SOURCES_PER_PIXEL * _cut_bytes(model.card.problem)
    image, tile = max(tile, GROUP_BYTES), max(tile + seen, GROUP_BYTES)
    row = candidate_bytes(model.card.problem)
    catalog = core * SOURCES_PER_PIXEL * row
    result = max(core * 4 * (2 * wanted + 1) + catalog, GROUP_BYTES)
    weights = sum(p.numel() * p.element_size() for p in model.network.parameters())  # twice while they are loaded
    height, width = _largest(manifest, "core_height"), _largest(manifest, "core_width")
    copies = WHOLE_COPIES if isinstance(config.sampling.patches, WholeTile) else MODEL_COPIES
    working = max(
        copies * tile + _translating_bytes(pixels, (height, width), direction, model.card, config),
        MODEL_COPIES * image + seen + _scoring_bytes(pixels, core, direction, model.card, config),
    )
    return {
        "read": PROCESS_BYTES + round(READ_COPIES * tile + reading),
        "model": PROCESS_BYTES + (GPU_PROCESS_BYTES if has_gpu else 0) + 2 * weights + round(working),
        "write": PROCESS_BYTES + round(WRITE_COPIES * result + 0.7 * min(catalog, ROW_GROUP * row)),
    }


def activation_bytes(network: NetworkConfig, pixels: int, config: Config) -> float:
    """The activations of one call of the network on so many pixels, as if on a CPU."""
    # measured: so many planes of the first stage's width are alive at the widest place of the network
    alive = 20 if _sums_in_float32(config) else 12
    return pixels / network.stem**2 * 4 * network.base * alive


def whole_activation_bytes(network: NetworkConfig, pixels: int, config: Config) -> float:
    """The activations of a call on a whole tile: malloc gives large ones back at once, and holds others longer."""
    plane = pixels / network.stem**2 * 4 * network.base  # the first stage's width in float32
    single = _sums_in_float32(config)
    stage = plane if single else plane / 2  # what a layer of the first stage makes, twice that of the second
    # measured with cores of 768 to 2048 pixels, by which stages malloc holds
    held = 3.2 * (stage / 2 < MALLOC_HOLDS) + 3.7 * (stage < MALLOC_HOLDS)
    return ((9.4 if single else 5.1) + held) * plane


def _sums_in_float32(config: Config) -> bool:
    """Whether convolutions hold float32: where it is asked for, or this processor has no instructions for bfloat16."""
    return config.precision == "float32" or not bfloat16_is_fast()


def candidate_bytes(problem: Problem) -> int:
    """A row of the catalog; 0 where only maps are made."""
    if problem.scored is None:
        return 0
    return _cut_bytes(problem) + 2 * len(problem.scored.wanted.bands) * THUMBNAIL_BYTES + ROW_BYTES


def _cut_bytes(problem: Problem) -> int:
    """The thumbnails of a row that are cut out of the images; 0 where only maps are made."""
    return 0 if problem.scored is None else sum(len(end.bands) for end in problem.endpoints) * THUMBNAIL_BYTES


def _translating_bytes(
    pixels: int, core_shape: tuple[int, int], direction: Direction, card: Card, config: Config
) -> float:
    """Return what the model stage needs to translate a tile, without weights and the tile itself."""
    from surveybridge.bridge_core.translate import shares_start

    channels, observed, wanted = card.network.image_channels, direction.observed.planes, direction.wanted.planes
    how, (height, width) = config.sampling, core_shape
    core = height * width
    if isinstance(how.patches, WholeTile):
        window = how.patches.count((0, height, 0, width))[1]
        call = how.windows_a_call(window) * window
        told = 4 * 2 * channels if card.network.conditions else 0  # maps, once for the tile and once for a call
        answer = (4 if config.precision == "float32" else 2) * channels if shares_start(card, how) else 0
        pixel = 4 * channels + 9 * observed  # the input, and of the window flux, noise and mask
        seen = window * (pixel + told + answer)
        drawn = call * (SAMPLER_PLANES * 4 * channels + told)
        found = core * 4 * (4 * wanted + 1)  # mean and scatter so far and anew, coverage
        if config.consistency != "off" and relation_for(card, direction, how.patches) is not None:
            # what is observed and said, each in modes and convolved, with the kernels; while no network works
            margin = min(_LIGHT_MARGIN, how.patches.halo)
            frame = (height + 2 * margin) * (width + 2 * margin)
            found += frame * 4 * (3 * (observed + wanted) + 14)
        return whole_activation_bytes(card.network, call, config) + seen + drawn + found
    size = how.patches.size**2
    images = pixels * 4 * channels  # in network units, float32
    windows = core / how.patches.stride**2 * size * 8 * wanted  # mean and variance of each, in parts and together
    blending = core * 8 * (2 + 4 * wanted)  # float64 sums, and what is made of them
    call = how.windows_a_call(size) * size
    return activation_bytes(card.network, call, config) + images * (1 + observed / channels) + 2 * windows + blending


def _scoring_bytes(pixels: int, core: int, direction: Direction, card: Card, config: Config) -> float:
    """Return what the model stage needs to score the sources of a tile, as `_translating_bytes`."""
    from surveybridge.bridge_core.anomaly import GROUP

    channels, sources = card.network.image_channels, core * SOURCES_PER_PIXEL
    planes = core * 4 * (2 * direction.wanted.planes + 1)  # mean, standard deviation, coverage
    batch = config.scoring.batch
    group = min(max(GROUP, batch), sources + 8) * config.score_samples * channels * WINDOW_PIXELS * 4
    catalog = CATALOG_COPIES * sources * candidate_bytes(card.problem)
    arrays = pixels * 4 * channels + RECONSTRUCTION_COPIES * group + catalog + 2 * planes
    return activation_bytes(card.network, batch * WINDOW_PIXELS, config) + arrays


_HOMOGENISED_BYTES = 9
"""A pixel of a band, beside the image itself: flux, variance and mask."""

_CONVOLVING_BYTES = 96
"""Of a pixel while a band is convolved: a dozen planes of float64, padded."""


_PREPARING_BYTES = 32
"""Of a pixel while objects are found and measured, which readers do beside GPUs (measured)."""

_CUT_COPIES = 2.8
"""Copies of the thumbnails that readers cut out: as they are, pickled, and in Ray's block (measured)."""


def _homogenised_bands(card: Card, config: Config) -> int:
    """Largest number of bands of an end that are homogenised."""
    how = None if config.homogenise == "off" else Homogenisation.of_card(card, config.psf_noise)
    return max(map(len, how.psfs.values())) if how else 0


_CORE = ("core_height", "core_width")


def _largest(manifest: pa.Table, *columns: str) -> int:
    """Largest product of some columns."""
    return int(np.prod([manifest[name].to_numpy().astype(np.int64) for name in columns], axis=0).max())
