"""Settings of sampling and scoring that a person may choose; without torch, so that every process can hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.errors import BridgeError

Precision = Literal["bfloat16", "float32"]
"""Arithmetic of the network."""

DEFAULT_BATCH = {"cpu": 16, "cuda": 512}
"""Numbers of windows in one call of the network that keep a device busy; 512 hold 2 GB of activations."""

_Pixel = TypeVar("_Pixel", int, NDArray[np.int64])


@dataclass(frozen=True)
class PatchGrid:
    """The grid of windows.

    Parameters
    ----------
    size
        Side of a window in pixels.
    stride
        Distance of neighbouring windows.
    margin
        Outer pixels of a window that serve as context and are not used; beyond them the weight ramps up linearly over
        the overlap.
    """

    size: int = 64
    stride: int = 40
    margin: int = 8

    def __post_init__(self) -> None:
        """Refuse a grid that leaves gaps."""
        if not 0 < self.stride <= self.size - 2 * self.margin:
            raise BridgeError(
                f"stride {self.stride} leaves gaps between windows that use {self.size - 2 * self.margin} pixels "
                f"({self.size} less a margin of {self.margin} on each side)"
            )

    @classmethod
    def of(cls, size: int) -> PatchGrid:
        """Return the grid for a size of windows, with default margin and overlap: 40 pixels apart at 64, 104 at 128."""
        return cls(size, size - (cls.size - cls.stride), cls.margin)

    @property
    def reach(self) -> int:
        """The number of pixels beyond a core that its windows can show to the network."""
        return self.size - self.margin - 1

    def windows(
        self, shape: tuple[int, int], origin: tuple[int, int], core: tuple[int, int, int, int]
    ) -> list[tuple[int, int]]:
        """Return global (y, x) corners of all windows whose used part touches the core, row by row.

        Parameters
        ----------
        shape
            Height and width of the tile's arrays (unused beyond a check that the core lies inside).
        origin
            Global pixel of the arrays' first pixel.
        core
            (y0, y1, x0, x1) in array pixels.
        """
        y0, y1, x0, x1 = core
        if not (0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]):
            raise BridgeError(f"core {core} is not inside an array of {shape[0]} x {shape[1]} pixels")
        rows = self._corners(origin[0] + y0, origin[0] + y1)
        return [(y, x) for y in rows for x in self._corners(origin[1] + x0, origin[1] + x1)]

    def span(self, start: _Pixel, stop: _Pixel) -> tuple[_Pixel, _Pixel]:
        """Return the first and last n of windows along one axis whose used part touches pixels `start` .. `stop` - 1.

        Window n has its corner at n x stride, so last - first + 1 windows touch. Arrays give arrays.
        """
        # used pixels of the window at corner c are c + margin .. c + size - margin - 1
        first = (start - (self.size - self.margin) + 1 + self.stride - 1) // self.stride
        last = (stop - 1 - self.margin) // self.stride
        return first, last

    def _corners(self, start: int, stop: int) -> list[int]:
        first, last = self.span(start, stop)
        return [n * self.stride for n in range(first, last + 1)]


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling of a posterior.

    Parameters
    ----------
    samples
        K, posterior draws per window; at least 2.
    steps
        Network evaluations a draw.
    sigma_max
        Highest noise level of the steps; with `from_end` one more step stands before them, at the table's end.
    from_end
        Begin at the table's end. What predicts the noise (AS-Bridge's `eps`) is useless there, since x0 then is the
        difference of two large numbers; without it the observed image stands for the unknown one at `sigma_max`.
    order, eta
        Of the sampler: 1 or 2, and 0 (deterministic from its start) .. 1 (new noise at every step).
    seed
        Key of the noise generator.
    batch
        Windows of 64 x 64 pixels in one call of the network, or as many pixels in larger windows; formed within one
        tile only.
    precision
        Of the network.
    """

    samples: int = 8
    steps: int = 6
    sigma_max: float = 2.0
    from_end: bool = True
    order: int = 2
    eta: float = 0.0
    seed: int = 0
    batch: int = 16
    precision: Precision = "bfloat16"
    patches: PatchGrid = field(default_factory=PatchGrid)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot give a standard deviation."""
        if self.samples < 2 or self.steps < 1 or self.batch < 1:
            raise BridgeError(
                f"samples {self.samples}, steps {self.steps}, batch {self.batch}: need at least 2, 1 and 1"
            )

    @property
    def group(self) -> int:
        """The number of windows whose samples are held at a time: four batches, so that memory does not grow with K."""
        return max(1, 4 * self.windows_a_call(self.patches.size**2) // self.samples)

    def windows_a_call(self, pixels: int) -> int:
        """Return the number of windows of this size in one call of the network."""
        return max(1, self.batch * 64**2 // pixels)


@dataclass(frozen=True)
class Scoring:
    """Settings of scoring: K reconstructions from noise level `midpoint` in `steps` network evaluations.

    Sources are reconstructed whose false-alarm rate is `reconstruct` or less, by the checkpoint's lens score alone: 0.1
    is about the best tenth, 1 all, 0 none. All are, if the checkpoint has no lens score. The published settings are
    samples 5, midpoint 0.7089 (step 200 of its table), steps 40, eta 1 and first order; the second-order deterministic
    sampler needs fewer steps.
    """

    samples: int = 5
    midpoint: float = 0.7089
    steps: int = 8
    eta: float = 0.0
    order: int = 2
    seed: int = 0
    batch: int = 16
    size: int = 64
    precision: Precision = "bfloat16"
    reconstruct: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers that cannot give a jackknife, and what is no rate."""
        if self.samples < 2 or self.steps < 1 or self.batch < 1:
            raise BridgeError(
                f"score samples {self.samples}, steps {self.steps}, batch {self.batch}: need at least 2, 1 and 1"
            )
        if not 0 <= self.reconstruct <= 1:
            raise BridgeError(f"score reconstruct {self.reconstruct} is no rate; give 0 (none) to 1 (all)")
