"""Settings of sampling and scoring that a person may choose; without torch, so that every process can hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from surveybridge.bridge_core.errors import BridgeError

Precision = Literal["bfloat16", "float32"]
"""Arithmetic of the network."""

DEFAULT_BATCH = {"cpu": 16, "cuda": 512}
"""Numbers of windows in one call of the network that keep a device busy; 512 hold 2 GB of activations."""

WINDOW_PIXELS = 64**2
"""Pixels of one of them; larger windows count as several."""

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
    def stated(self) -> int:
        """How a run states it."""
        return self.size

    @property
    def reach(self) -> int:
        """The number of pixels beyond a core that its windows can show to the network."""
        return self.size - self.margin - 1

    def count(self, core: tuple[_Pixel, _Pixel, _Pixel, _Pixel]) -> tuple[_Pixel, _Pixel]:
        """Return the number of windows of a core (y0, y1, x0, x1 in global pixels), and of all their pixels.

        Arrays give arrays.
        """
        (top, bottom), (left, right) = self.span(core[0], core[1]), self.span(core[2], core[3])
        windows = (bottom - top + 1) * (right - left + 1)
        return windows, windows * self.size**2

    def core_side(self, pixels: float) -> int:
        """Return the side of a core whose windows have about so many pixels; at least one stride."""
        return max(self.stride, int(self.stride * math.sqrt(pixels / self.size**2)) - self.stride)

    def windows(
        self, shape: tuple[int, int], origin: tuple[int, int], core: tuple[int, int, int, int]
    ) -> list[tuple[int, int]]:
        """Return global (y, x) corners of all windows whose used part touches the core, row by row.

        Parameters
        ----------
        shape
            Height and width of the tile's arrays (unused beyond `check_core`).
        origin
            Global pixel of the arrays' first pixel.
        core
            (y0, y1, x0, x1) in array pixels.
        """
        check_core(core, shape)
        y0, y1, x0, x1 = core
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
class WholeTile:
    """A tile as one window: its core with a halo around it, for networks without statistics of the window.

    What the tile does not hold of it counts as masked, and what it holds beyond is not looked at: the result depends on
    nothing else. Tiles whose cores are equally large have equally large windows, those at the edge of a field too.

    Parameters
    ----------
    halo
        Pixels around the core; 64 leave seams of hundredths of the posterior's deviation (docs/performance.md).
    multiple
        Windows begin and end at multiples of it in global pixels, so that a network which halves them down from that
        (`NetworkConfig.window_multiple`) forms the same blocks of pixels in neighbouring tiles.
    """

    halo: int = 64
    multiple: int = 8

    @property
    def stated(self) -> str:
        """How a run states it."""
        return WHOLE if self.halo == WholeTile.halo else f"{WHOLE} and {self.halo} px"

    @property
    def reach(self) -> int:
        """The number of pixels beyond a core that a store should hold."""
        return self.halo

    def box(self, core: tuple[_Pixel, _Pixel, _Pixel, _Pixel]) -> tuple[_Pixel, _Pixel, _Pixel, _Pixel]:
        """Return the window of a core, both (y0, y1, x0, x1) in global pixels; arrays give arrays."""
        (y0, y1), (x0, x1) = self._span(core[0], core[1]), self._span(core[2], core[3])
        return y0, y1, x0, x1

    def count(self, core: tuple[_Pixel, _Pixel, _Pixel, _Pixel]) -> tuple[_Pixel, _Pixel]:
        """Return the number of windows of a core, which is 1, and of their pixels; as `PatchGrid.count`."""
        y0, y1, x0, x1 = self.box(core)
        pixels = (y1 - y0) * (x1 - x0)
        return pixels // pixels, pixels

    def core_side(self, pixels: float) -> int:
        """Return the side of a core whose window has about so many pixels; at least a halo."""
        return max(self.halo, int(math.sqrt(pixels)) - 2 * self.halo)

    def _span(self, start: _Pixel, stop: _Pixel) -> tuple[_Pixel, _Pixel]:
        return (start - self.halo) // self.multiple * self.multiple, -(
            -(stop + self.halo) // self.multiple
        ) * self.multiple


def check_core(core: tuple[int, int, int, int], shape: tuple[int, int]) -> None:
    """Refuse a core (y0, y1, x0, x1) that does not lie inside arrays of some height and width."""
    y0, y1, x0, x1 = core
    if not (0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]):
        raise BridgeError(f"core {core} is not inside an array of {shape[0]} x {shape[1]} pixels")


WHOLE = "tile"
"""What runs state that translate tiles as one window each."""

Windows = PatchGrid | WholeTile


def windows_of(stated: int | str, multiple: int = WholeTile.multiple) -> Windows:
    """Return the windows that a run states: the side of a patch, or `WHOLE`; `multiple` is that of `WholeTile`."""
    if stated == WHOLE:
        return WholeTile(multiple=multiple)
    if not str(stated).isdigit():
        raise BridgeError(f"windows {stated!r} are neither {WHOLE!r} nor the side of a patch; use a newer surveybridge")
    return PatchGrid.of(int(stated))


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling of a posterior.

    Parameters
    ----------
    samples
        K, posterior draws per window; at least 2, or 0 for mean and deviation from one evaluation (`maps`).
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
    patches
        The windows through which the network sees a tile.
    shared_start
        All samples of a window begin with the noise of the first, so that the network sees the start once a window;
        only where the first transition forgets it (`translate.shares_start`).
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
    patches: Windows = field(default_factory=PatchGrid)
    shared_start: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that cannot give a standard deviation."""
        if self.samples < 0 or self.samples == 1 or self.steps < 1 or self.batch < 1:
            raise BridgeError(
                f"samples {self.samples}, steps {self.steps}, batch {self.batch}: need at least 2 (or 0, for maps from "
                "one evaluation), 1 and 1"
            )

    @property
    def group(self) -> int:
        """The number of patches whose samples are held at a time: four batches, so that memory does not grow with K."""
        if isinstance(self.patches, WholeTile):
            return 1
        return max(1, 4 * self.windows_a_call(self.patches.size**2) // max(1, self.samples))

    def windows_a_call(self, pixels: int) -> int:
        """Return the number of windows of this size in one call of the network."""
        return max(1, self.batch * WINDOW_PIXELS // pixels)

    def evaluations(self, steps: int) -> int:
        """Return the number of network evaluations of a window, of samples that take so many steps."""
        if self.samples == 0:
            return 1
        return self.samples * (steps - 1) + 1 if self.shared_start else self.samples * steps


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
