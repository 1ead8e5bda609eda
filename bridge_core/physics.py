"""Physics that carries one state of a field into another: the drift of a diffusion that is run backward.

An operator moves a state on by a time. Where it is linear and the same everywhere it multiplies every Fourier mode by
exp(dt log_transfer(k)), which `bridge_core.spectral` makes into the table of a bridge; `bridge_core.smdp` needs
`forward` alone. States are float [..., H, W] with opposite sides as neighbours, but for the toy, of any shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surveybridge.bridge_core.errors import BridgeError

FAINTEST = 1e-6
"""Least transfer of a mode: what seeing leaves less of is lost in any noise, and its logarithm is not known."""

SHARPER = 0.02
"""By so much the transfer of the wider PSF may exceed that of the sharper one, where both are above `TOLD`."""
TOLD = 0.1

Shape = tuple[int, int]
"""Height and width of a field."""


class Operator(Protocol):
    """The deterministic part of dx = P(x) dt + g dW."""

    def forward(self, x: Tensor, dt: float | Tensor) -> Tensor:
        """Return the state after a time dt; of a negative one the state before, if the solver can."""
        ...

    def log_transfer(self, shape: Shape) -> Tensor | None:
        """Logarithm of the factor of every mode in a unit of time, [H, W // 2 + 1] as `torch.fft.rfft2` has them.

        Real or complex float64; None if the operator is not linear.
        """
        ...


class Psf(Protocol):
    """A point-spread function, such as those of `storage.psf`."""

    def transfer(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[Any]:
        """Transfer function at frequencies [1, M] and [N, 1] along x and y, cycles per arcsec; 1 at 0."""
        ...


class LinearOperator(ABC):
    """An operator that multiplies every Fourier mode."""

    @abstractmethod
    def log_transfer(self, shape: Shape) -> Tensor:
        """See `Operator`."""

    def forward(self, x: Tensor, dt: float | Tensor) -> Tensor:
        """See `Operator`; exact for any dt, though a negative one enlarges rounding errors as it does the state."""
        return filtered(x, (dt * self.log_transfer((x.shape[-2], x.shape[-1]))).exp())


@dataclass(frozen=True)
class Heat(LinearOperator):
    """The heat equation du/dt = diffusivity Laplace(u), on points a distance `spacing` apart."""

    diffusivity: float = 1.0
    spacing: float = 1.0

    def log_transfer(self, shape: Shape) -> Tensor:
        """-diffusivity |k|^2, k in rad per unit of length."""
        ky, kx = (2 * math.pi / self.spacing * f for f in frequencies(shape))
        return -self.diffusivity * (ky**2 + kx**2)


@dataclass(frozen=True)
class Quadratic:
    """The toy of SMDP (Holzschuh et al. 2023): dx/dt = -rate sign(x) x^2, with two states that end at the same place.

    It has the solution x / (1 + rate |x| t), and a negative time is possible before the state runs away.
    """

    rate: float = 7.0

    def forward(self, x: Tensor, dt: float | Tensor) -> Tensor:
        """See `Operator`; dt may be a number for each state."""
        return x / (1 + self.rate * dt * x.abs())

    def log_transfer(self, shape: Shape) -> None:
        """Nothing: it is not linear."""
        return


@dataclass(frozen=True)
class Seeing(LinearOperator):
    """What happens to an image between a sharp PSF and a wide one, in one unit of time: A(k)^t of the sharp image.

    A is the ratio of the transfer functions with that of the pixels. Of two Gaussians it is the heat equation with
    diffusivity 1/2 over the time s^2, the difference of their variances; of Kolmogorov's seeing a fractional Laplacian.

    Parameters
    ----------
    sharp, wide
        PSFs without the pixel; `sharp` may be None, for a sky that nothing has blurred.
    pixel_scale
        Of the grid, arcsec.
    pixels
        Sides of the pixels over which the sharp and the wide image were averaged, arcsec: those of the detector, where
        an image was resampled. (0, 0) for none, or the same.

    Raises
    ------
    BridgeError
        By `log_transfer`, if the wide PSF is sharper than the sharp one.
    """

    sharp: Psf | None
    wide: Psf
    pixel_scale: float
    pixels: tuple[float, float] = (0.0, 0.0)

    def log_transfer(self, shape: Shape) -> Tensor:
        """ln A, complex128 where a PSF has no point symmetry; no mode grows, and none falls below `FAINTEST`."""
        sharp, wide = (
            response(psf, pixel, self.pixel_scale, shape)
            for psf, pixel in zip((self.sharp, self.wide), self.pixels, strict=True)
        )
        excess = np.where(np.abs(wide) > TOLD, np.abs(wide) - np.abs(sharp), 0.0)
        if excess.max() > SHARPER:
            raise BridgeError(
                f"seeing from PSF {self.sharp} to {self.wide}: the second passes {excess.max():.2g} more of some "
                "frequencies than the first; give a wider one, or go the other way"
            )
        return log_ratio(torch.from_numpy(sharp), torch.from_numpy(wide))


def response(psf: Psf | None, pixel: float, pixel_scale: float, shape: Shape) -> NDArray[Any]:
    """Transfer function of a PSF, or of none, and of square pixels of a side: [H, W // 2 + 1]; sides in arcsec."""
    v, u = (f.numpy() / pixel_scale for f in frequencies(shape))
    return np.asarray((1.0 if psf is None else psf.transfer(u, v)) * np.sinc(u * pixel) * np.sinc(v * pixel))


def log_ratio(sharp: Tensor, wide: Tensor) -> Tensor:
    """ln (wide / sharp) of transfer functions that broadcast, float64 or complex128.

    Between ln `FAINTEST` and 0; what the sharp image does not have either counts as lost in the wide one.
    """
    ratio = torch.where(sharp.abs() > FAINTEST, wide / torch.where(sharp.abs() > FAINTEST, sharp, 1.0), 0.0)
    size = ratio.abs().clamp(FAINTEST, 1.0).log()
    if not ratio.is_complex():
        return size
    phase = torch.where(ratio.abs() > FAINTEST, ratio.angle(), 0.0)
    return torch.complex(size, phase) if bool((phase.abs() > 1e-9).any()) else size


def frequencies(shape: Shape) -> tuple[Tensor, Tensor]:
    """Frequencies of `torch.fft.rfft2` in cycles per pixel, float64 [H, 1] and [1, W // 2 + 1]."""
    height, width = shape
    return (
        torch.fft.fftfreq(height, dtype=torch.float64)[:, None],
        torch.fft.rfftfreq(width, dtype=torch.float64)[None, :],
    )


def filtered(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the modes of x [..., H, W] by a factor [..., H, W // 2 + 1]; real, of the type of x."""
    real = torch.complex64 if x.dtype == torch.float32 else torch.complex128
    modes = torch.fft.rfft2(x) * factor.to(device=x.device, dtype=real)
    return torch.fft.irfft2(modes, s=(x.shape[-2], x.shape[-1]))
