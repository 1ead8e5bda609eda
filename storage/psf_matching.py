"""The kernel that brings an image from its PSF to another one, as far as the noise allows.

It is the kernel k of a given support, with sum 1, that makes

    sum over frequencies of |T_s K - T_t|^2 P^2 / sum of |T_t P|^2  +  mu * (variance of a pixel after / before)

smallest (Alard & Lupton 1998 with pixels as the basis, and a Wiener filter's term for the noise): T are the transfer
functions of the two PSFs, P that of the pixel. In Fourier space it would be conj(T_s) T_t / (|T_s|^2 + mu N / P^2) with
the power spectrum N of the noise, which rings as far as the image goes. mu is as large as an exact result allows; where
the noise would then grow by more than a bound, mu is so large that it grows by just that, and the PSF that is reached
is wider.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from surveybridge.storage.psf import Psf, PsfImage

NOISE_BOUND = 1.5
"""Factor by which homogenisation may enlarge the noise of a pixel, by default."""

SAME_WIDTH, SAME_WING = 0.02, 0.02
"""PSFs agree if their FWHM differ by less than this share, and 1 / beta by less than this."""

SIDE = 256
"""Pixels of the grid of frequencies: far more than a kernel has."""

SUPPORT, LEAST_REACH, MOST_REACH = 2.0, 4, 20
"""Half the side of a kernel in FWHM of the wider PSF, and its limits in pixels."""

EXACT = 0.01
"""Of its peak, by which the PSF that is reached may differ from the wanted one and still be called that."""

LEAST_MU, MOST_MU = 1e-6, 1.0
"""Of the term for the noise."""

WHITE_FLOOR = 0.3
"""Share of white noise in the power spectrum, so that nothing is made up at frequencies that an image does not have."""


@dataclass(frozen=True, eq=False)
class Matching:
    """How an image is brought from one PSF to another.

    Parameters
    ----------
    kernel : float64 [2 reach + 1, 2 reach + 1]
        With which the image is convolved; its sum is 1.
    noise : float
        Noise of a pixel after, in units of that before.
    variance_kernel : float64, of the kernel's shape
        With which the variance is convolved: the kernel times itself convolved with the correlation of the noise, which
        is exact where noise is white, or its level the same within the kernel.
    correlation : float
        Of the noise of neighbouring pixels (lag 1) after.
    reached : Psf
        The PSF after: the wanted one, or an image of what is reached within the bound.
    off : float
        Largest difference from the wanted PSF in the image, in units of its peak.
    """

    kernel: NDArray[np.float64]
    noise: float
    variance_kernel: NDArray[np.float64]
    correlation: float
    reached: Psf
    off: float

    @property
    def reach(self) -> int:
        """Pixels to each side that the kernel has."""
        return len(self.kernel) // 2

    @property
    def limited(self) -> bool:
        """Whether the bound of the noise, or the size of kernels, keeps the PSF from being the wanted one."""
        return self.off > EXACT

    def radius(self, share: float) -> int:
        """Pixels beyond which lies less than a share of the kernel's squared weight."""
        distance = np.hypot(*(np.indices(self.kernel.shape) - self.reach))
        order = np.argsort(distance, axis=None)
        beyond = 1 - np.cumsum(self.kernel.ravel()[order] ** 2) / np.sum(self.kernel**2)
        return int(np.ceil(distance.ravel()[order][np.argmax(beyond < share)]))


def agree(one: Psf, other: Psf) -> bool:
    """Whether two PSFs are the same for all that is done here; unknown wings (NaN) agree with none."""
    return abs(one.fwhm / other.fwhm - 1) <= SAME_WIDTH and abs(one.wing - other.wing) <= SAME_WING


@functools.lru_cache(maxsize=64)
def matching(
    source: Psf, target: Psf, pixel_scale: float, noise_lags: tuple[float, ...] = (1.0,), bound: float = NOISE_BOUND
) -> Matching:
    """Find the kernel from one PSF to another.

    Parameters
    ----------
    source, target : Psf
        Of the image, and the wanted one.
    pixel_scale : float
        arcsec per pixel of the image.
    noise_lags : tuple of float
        Correlation of the noise at 0, 1, 2, ... pixels along an axis, the first being 1; that along both axes is the
        product. White noise by default.
    bound : float
        Factor by which the noise of a pixel may grow.
    """
    frequency = np.asarray(np.fft.fftfreq(SIDE, pixel_scale), np.float64)
    u, v = frequency[None, :], frequency[:, None]
    pixel = np.sinc(u * pixel_scale) * np.sinc(v * pixel_scale)
    of_source, of_target = source.transfer(u, v) * pixel, target.transfer(u, v) * pixel
    power = noise_power(noise_lags)
    wanted = np.fft.ifft2(of_target).real
    reach = min(max(math.ceil(SUPPORT * max(source.fwhm, target.fwhm) / pixel_scale), LEAST_REACH), MOST_REACH)
    problem = _LeastSquares.of(of_source, of_target, power, reach)

    def judged(mu: float) -> tuple[NDArray[np.float64], float, float]:
        """Kernel, its growth of the noise, and how far the PSF is off."""
        kernel = problem.kernel(mu)
        spectrum = _spectrum(kernel)
        growth = math.sqrt(float((np.abs(spectrum) ** 2 * power).mean()))
        return kernel, growth, float(np.abs(np.fft.ifft2(of_source * spectrum).real - wanted).max() / wanted.max())

    mu = _largest(lambda mu: judged(mu)[2] <= EXACT / 2, LEAST_MU, MOST_MU)
    if judged(mu)[1] > bound:
        mu = MOST_MU if judged(MOST_MU)[1] > bound else _root(lambda mu: judged(mu)[1] - bound, mu, MOST_MU)
    kernel, growth, off = judged(mu)
    spectrum = _spectrum(kernel)
    covariance = np.fft.ifft2(np.abs(spectrum) ** 2 * power).real
    shared = np.fft.fftshift(np.fft.ifft2(spectrum * power).real)[_middle(reach)]
    reached: Psf = target
    if off > EXACT:
        image = np.fft.fftshift(np.fft.ifft2(of_source * spectrum).real)
        reached = PsfImage.of(image[_middle(3 * MOST_REACH)], pixel_scale, "the PSF that is reached")
    return Matching(
        kernel=kernel,
        noise=growth,
        variance_kernel=kernel * shared,
        correlation=float((covariance[0, 1] + covariance[1, 0]) / 2 / covariance[0, 0]),
        reached=reached,
        off=off,
    )


@dataclass(frozen=True, eq=False)
class _LeastSquares:
    """The normal equations of a kernel; pixels that are equal by symmetry are one unknown where both PSFs are round."""

    disc: NDArray[np.bool_]
    """Which pixels of [2 reach + 1, 2 reach + 1] are the support."""
    unknown: NDArray[np.intp]
    """Number of the unknown of each of them."""
    normal: NDArray[np.float64]
    noise: NDArray[np.float64]
    right: NDArray[np.float64]
    count: NDArray[np.float64]

    @classmethod
    def of(
        cls, source: NDArray[np.generic], target: NDArray[np.generic], power: NDArray[np.float64], reach: int
    ) -> _LeastSquares:
        square = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disc = np.hypot(*square) <= reach + 0.5
        y, x = square[:, disc]
        larger, smaller = np.maximum(np.abs(y), np.abs(x)), np.minimum(np.abs(y), np.abs(x))
        is_round = not (np.iscomplexobj(source) or np.iscomplexobj(target))
        key = larger * SIDE + smaller if is_round else np.arange(len(y))
        _, first, unknown, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        scale = (np.abs(target) ** 2).mean()

        def normal(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
            """Sum over the pixels of two unknowns of a covariance that depends on their distance."""
            values = np.fft.ifft2(spectrum).real[y[first][:, None] - y, x[first][:, None] - x]
            summed = [np.bincount(unknown, line, len(first)) for line in values]
            return np.asarray(np.stack(summed) * count[:, None], np.float64)

        cross = np.fft.ifft2(target * np.conj(source) / scale).real[y, x]
        return cls(
            disc,
            unknown,
            normal(np.abs(source) ** 2 / scale),
            normal(power + WHITE_FLOOR),
            np.asarray(np.bincount(unknown, cross, len(first)), np.float64),
            count.astype(np.float64),
        )

    def kernel(self, mu: float) -> NDArray[np.float64]:
        """The kernel, sum 1, for a weight of the noise."""
        both = np.stack([self.right, self.count], axis=1)
        found = scipy.linalg.solve(self.normal + mu * self.noise, both, assume_a="pos")
        free, of_sum = found.T
        kernel = np.zeros(self.disc.shape)
        kernel[self.disc] = (free + of_sum * (1 - self.count @ free) / (self.count @ of_sum))[self.unknown]
        return kernel


def noise_power(lags: tuple[float, ...], shape: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.float64]:
    """Power spectrum, mean 1, of noise with a correlation by lag along each axis; [H, W] as `np.fft.fft2` has it."""

    def along(side: int) -> NDArray[np.float64]:
        line, reach = np.zeros(side), min(len(lags), side // 2)
        line[:reach] = lags[:reach]
        line[side - reach + 1 :] = line[reach - 1 : 0 : -1]
        # of a covariance that was cut off, some may be a little below 0
        power = np.maximum(np.fft.fft(line).real, 0)
        return np.asarray(power / power.mean())

    return np.asarray(along(shape[0])[:, None] * along(shape[1]))


def _largest(is_so: Callable[[float], bool], least: float, most: float) -> float:
    """The largest value up to which something is so, to a tenth; the least where it never is."""
    if is_so(most):
        return most
    while most / least > 1.1:
        middle = math.sqrt(least * most)
        least, most = (middle, most) if is_so(middle) else (least, middle)
    return least


def _root(excess: Callable[[float], float], least: float, most: float) -> float:
    """Where something that falls passes 0, to a percent, on the side below 0."""
    log = scipy.optimize.brentq(lambda log: excess(math.exp(log)), math.log(least), math.log(most), xtol=1e-2)
    return math.exp(log + 1e-2)


def _spectrum(kernel: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Transfer function of a kernel on the grid of frequencies."""
    reach = len(kernel) // 2
    padded = np.zeros((SIDE, SIDE))
    padded[: len(kernel), : len(kernel)] = kernel
    return np.fft.fft2(np.roll(padded, (-reach, -reach), (0, 1)))


def _middle(reach: int) -> tuple[slice, slice]:
    """The pixels up to some distance from the middle of the grid."""
    line = slice(SIDE // 2 - reach, SIDE // 2 + reach + 1)
    return line, line
