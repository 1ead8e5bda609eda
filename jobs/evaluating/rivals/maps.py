"""What a rival is given, maps of clouds, and what it must be able to do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from surveybridge.storage.pair_maps import pixel_pc_of, read_maps

OBSERVABLES = ("column", "psi", "sigma_v")
"""Column density (cm^-2), polarisation angle (rad) and velocity dispersion (cm/s); `<name>_observed` through a beam."""


@dataclass(frozen=True, eq=False)
class CloudMaps:
    """Observed maps of some pairs of a store.

    Parameters
    ----------
    values
        By name in the store: float32 [N, H, W], NaN where there is no data.
    pixel_pc
        Side of a pixel, pc; NaN where it is not known.
    first
        Number of the first pair in its store, which places the noise of samples.
    """

    values: Mapping[str, Tensor]
    pixel_pc: float
    first: int = 0

    @classmethod
    def read(cls, url: str, names: tuple[str, ...], start: int, stop: int) -> CloudMaps:
        """Read pairs `start` to `stop` of a store."""
        values = read_maps(url, names, start, stop)
        return cls({name: torch.from_numpy(maps) for name, maps in values.items()}, pixel_pc_of(url), start)

    @property
    def known(self) -> Tensor:
        """Where all maps have data, bool [N, H, W]; a column or a dispersion of 0 or less is none."""
        there = [
            torch.isfinite(maps) & ((maps > 0) | torch.tensor(name.startswith("psi")))
            for name, maps in self.values.items()
        ]
        return torch.stack(there).all(0)


class Rival(Protocol):
    """A way from observed maps to samples of what is wanted."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def calls(self) -> int:
        """Network evaluations a sample."""

    def predict(self, seen: CloudMaps, samples: int) -> Tensor:
        """Draw samples of the wanted quantity, float [K, N, H, W] in its unit; copies where there is one answer."""
