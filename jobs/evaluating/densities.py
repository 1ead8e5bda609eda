"""Pairs of densities, or of other positive quantities, as an evaluation judges them: in dex, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from surveybridge.bridge_core.dex import DexSums
from surveybridge.bridge_core.translate import window_samples
from surveybridge.jobs.evaluating.blocks import Block, Settings, corners
from surveybridge.jobs.evaluating.cutouts import pair_views, stamp_units, stamps_of
from surveybridge.storage.evaluation_schemas import EVALUATED_DEX
from surveybridge.storage.schema import conform

if TYPE_CHECKING:
    import pyarrow as pa

    from surveybridge.bridge_core.model import Model
    from surveybridge.bridge_core.problem import Direction, Endpoint
    from surveybridge.bridge_core.settings import Sampling
    from surveybridge.storage.pairs import Pairs

VALUES = 2**22
"""Values of samples that are judged at a time: 32 MiB in float64, several times in memory."""


def dex_rows(model: Model, block: Block, settings: Settings, device: torch.device) -> pa.Table:
    """Rows of `EVALUATED_DEX`, by pair, for each direction to densities."""
    import pyarrow as pa

    tables = []
    for direction in map(model.card.problem.direction, settings.densities):
        wanted = direction.wanted
        pixels = int(np.prod(block.pairs.ends[wanted.name].shape[1:]))
        some = max(1, VALUES // (settings.sampling.samples * pixels))
        for first in range(0, len(block.ids), some):
            part = block.rows(slice(first, first + some))
            samples = drawn_samples(model, direction, part, settings.sampling, device)
            tables.append(_rows(part, direction, samples))
    return pa.concat_tables(tables)


def drawn_samples(model: Model, direction: Direction, block: Block, how: Sampling, device: torch.device) -> Tensor:
    """Samples [K, N, B, H, W] of the wanted end in its unit, on the CPU.

    Stamps of any size are taken: what the network needs beyond their edge has no data.
    """
    height, width = block.pairs.ends[direction.wanted.name].shape[-2:]
    multiple = model.card.network.window_multiple
    ends = {name: padded(torch.from_numpy(values), multiple).numpy() for name, values in block.pairs.ends.items()}
    pairs = replace(block.pairs, ends=ends)
    block = replace(block, pairs=pairs)
    windows = stamp_units(model, direction.observed, stamps_of(pairs, direction.observed, device))
    views = pair_views(model, pairs, device)
    context = views and views[direction.index]
    drawn = window_samples(model, direction, windows, corners(block), how, context=context)
    return drawn[..., :height, :width].cpu().transpose(0, 1).contiguous()


def judged_pixels(direction: Direction, pairs: Pairs) -> Tensor:
    """Pixels in which both ends have data, bool [N, B, H, W] by band of the wanted end.

    All bands of the observed end have some; where a logarithm is taken, what is not above 0 is none.
    """
    observed, wanted = (_there(end, pairs) for end in (direction.observed, direction.wanted))
    return wanted & observed.all(1, keepdim=True)


def _there(end: Endpoint, pairs: Pairs) -> Tensor:
    values = torch.from_numpy(pairs.ends[end.name])
    positive = torch.tensor([band.kind == "log10" for band in end.quantities])[:, None, None]
    return torch.isfinite(values) & ((values > 0) | ~positive)


def _rows(block: Block, direction: Direction, samples: Tensor) -> pa.Table:
    import pyarrow as pa

    truth = torch.from_numpy(block.pairs.ends[direction.wanted.name])
    sums = DexSums.of(samples, truth, judged_pixels(direction, block.pairs)).arrays()
    bands = direction.wanted.bands
    names: Sequence[str | None] = block.simulations or [None] * len(block.ids)
    columns: dict[str, Any] = {
        "object_id": np.repeat(block.ids, len(bands)).tolist(),
        "simulation": [name for name in names for _ in bands],
        "direction": [str(direction)] * (len(block.ids) * len(bands)),
        "band": list(bands) * len(block.ids),
        "area": [float(truth[0, 0].numel())] * (len(block.ids) * len(bands)),
    }
    for name, values in sums.items():
        rows = values.reshape(len(block.ids) * len(bands), -1)
        flat = rows[:, 0] if values.ndim == 2 else rows
        columns[name] = flat.astype(np.int32).tolist() if name == "histogram" else flat.tolist()
    return conform(pa.table(columns), EVALUATED_DEX, "sums in dex")


def padded(stamps: Tensor, multiple: int) -> Tensor:
    """Stamps [..., H, W] of multiples of so many pixels: no data beyond the right and the lower edge."""
    height, width = stamps.shape[-2:]
    return torch.nn.functional.pad(stamps, (0, -width % multiple, 0, -height % multiple), value=torch.nan)
