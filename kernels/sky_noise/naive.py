"""Normal deviates that belong to the sky: a pure function of (seed, stream, sample, step, band, global pixel).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with

    key     = (seed mod 2^32, seed >> 32)
    counter = (global x, global y, step | sample << 16, stream)          pixels modulo 2^32

gives four words per pixel; words (0, 1) make the deviates of bands 0 and 1, and words (2, 3) those of bands 2 and 3.
Bands 4 g to 4 g + 3 are those four of the stream `stream + g 2^24`, so that any number of bands has noise of its own.
The Box-Muller transform uses nothing but IEEE float32 multiplication and addition, integer bit operations and a
correctly rounded square root, in the order written here. Hence PyTorch, NumPy, the Triton interpreter and a GPU give
the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surveybridge.kernels.transfer import to_device

GROUP = 4  # bands that one counter serves
GROUP_STREAM = 1 << 24  # between the streams of two groups of bands
MAX_BANDS = GROUP * 256
_WORD = 0xFFFFFFFF
_CHUNK = 1 << 15  # pixels at a time: so few stay on one PyTorch thread, and their temporaries fit into the caches

_PHILOX_A = 0xD2511F53
_PHILOX_B = 0xCD9E8D57
_WEYL_A = 0x9E3779B9
_WEYL_B = 0xBB67AE85

# Cephes logf, sinf and cosf (Moshier): minimax on [sqrt(1/2), sqrt(2)] - 1 and [-pi/4, pi/4]; highest power first.
LOG_POLY = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
LN2_HI = 0.693359375  # nine bits: its product with an exponent is exact
LN2_LO = -2.12194440e-4
SIN_POLY = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS_POLY = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
HALF_PI = 1.5707963267948966
SQRT_HALF_BITS = 0x3F3504F3  # float32 sqrt(1/2)
ULP23 = 2.0**-23
ULP24 = 2.0**-24


@dataclass(frozen=True, eq=False)
class SkyNoise:
    """The noise of N windows on one pixel grid.

    Parameters
    ----------
    seed : int
        64-bit key of the run and its pixel grid (0 <= seed < 2^64).
    stream : int
        Number of one of 2^32 independent fields (0 <= stream < 2^32), e.g. one per direction or purpose.
    sample : Tensor
        [N] integer, the posterior draw of each window (0 <= sample < 2^16; on a GPU that is not checked).
    y0, x0 : Tensor
        [N] integer, the global pixel of each window's corner, modulo 2^32; so negative ones are well defined, too.

    Raises
    ------
    ValueError
        If a number is out of range, or the tensors are not [N] integers on one device.
    """

    seed: int
    stream: int
    sample: Tensor
    y0: Tensor
    x0: Tensor

    def __post_init__(self) -> None:
        """Check the ranges once, here, and of numbers on a GPU not even once, which would have to be waited for."""
        for name, value, bits in (("seed", self.seed, 64), ("stream", self.stream, 32)):
            if not 0 <= value < 1 << bits:
                raise ValueError(f"sky noise: {name} is {value} but must be in [0, 2^{bits}); take it modulo 2^{bits}")
        for name in ("sample", "y0", "x0"):
            tensor = getattr(self, name)
            if tensor.ndim != 1 or tensor.is_floating_point() or tensor.shape != self.sample.shape:
                raise ValueError(
                    f"sky noise: {name} is {tensor.dtype} {list(tensor.shape)} but must be an integer [N] "
                    f"with N = {self.sample.numel()} like sample; give one number per window"
                )
            if tensor.device != self.sample.device:
                raise ValueError(
                    f"sky noise: {name} is on {tensor.device} but sample on {self.sample.device}; move one of them"
                )
        if (
            self.sample.device.type == "cpu"
            and self.sample.numel()
            and not 0 <= int(self.sample.min()) <= int(self.sample.max()) < 1 << 16
        ):
            raise ValueError(
                f"sky noise: sample spans {int(self.sample.min())} to {int(self.sample.max())} but must be in "
                "[0, 65536); draw further samples under another seed"
            )

    def to(self, device: torch.device | str) -> SkyNoise:
        """Return the same noise with its tensors on `device`."""
        return SkyNoise(self.seed, self.stream, *(to_device(x, device) for x in (self.sample, self.y0, self.x0)))


def sky_noise_naive(noise: SkyNoise, step: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return the deviates of `noise` at `step`, float32 [N, C, H, W], in plain PyTorch.

    Besides the result, this needs a few MB of memory whatever the shape: rows are processed in chunks.
    """
    n, (c, h, w) = noise.sample.numel(), shape
    out = torch.empty((n, c, h, w), dtype=torch.float32, device=device)
    if not out.numel():
        return out
    corner = {name: getattr(noise, name).to(device=device, dtype=torch.int64) for name in ("sample", "y0", "x0")}
    # one line for each row of a window: [N H, 1] against [W]
    y = ((corner["y0"][:, None] + torch.arange(h, device=device)) & _WORD).view(-1, 1)
    draw = (corner["sample"] << 16 | step).repeat_interleave(h).view(-1, 1)
    x0 = corner["x0"].repeat_interleave(h).view(-1, 1)
    columns = torch.arange(w, device=device)
    key = (noise.seed & _WORD, noise.seed >> 32)

    for first in range(0, c, GROUP):
        number = noise.stream + first // GROUP * GROUP_STREAM
        stream = torch.full((1, 1), number, dtype=torch.int64, device=device)
        bands = min(GROUP, c - first)
        for rows, cols in _chunks(n * h, w):
            counter = ((x0[rows] + columns[cols]) & _WORD, y[rows], draw[rows], stream)
            words = philox4x32(counter, key, pairs=(bands + 1) // 2)
            for band in range(0, bands, 2):
                pair = box_muller(words[band], words[band + 1])
                for offset, z in enumerate(pair[: bands - band]):
                    _store(out, first + band + offset, rows, cols, z)
    return out


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int], pairs: int = 2
) -> tuple[Tensor, ...]:
    """Run Philox4x32-10 on broadcastable int64 tensors of 32-bit words; return 2 * `pairs` words of the same kind.

    Broadcasting makes it fast: the first two rounds touch words that are constant along a row.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for i in range(10):
        # Products wrap modulo 2^64. Bits above the word pile up in c1 and c3, and are cut off where they would matter.
        a, b = c0 * _PHILOX_A, c2 * _PHILOX_B
        c0, c1 = ((b >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_WORD), b
        if i == 9 and pairs == 1:
            return c0, c1.bitwise_and_(_WORD)
        c2, c3 = ((a >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_WORD), a
        k0, k1 = (k0 + _WEYL_A) & _WORD, (k1 + _WEYL_B) & _WORD
    return c0, c1.bitwise_and_(_WORD), c2, c3.bitwise_and_(_WORD)


def box_muller(word_r: Tensor, word_a: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent normal deviates, float32, from two 32-bit words in int64 tensors of one shape.

    The radius comes from u = (23 high bits + 1/2) / 2^23 of `word_r`, so |z| <= sqrt(48 ln 2) = 5.77. The angle comes
    from the bits of `word_a`: 31 (swap the axes), 30 (sign of the cosine) and 29..7 (place within the octant pair,
    (-pi/4, pi/4)).
    """
    radius = _radius(word_r)
    bits = word_a.to(torch.int32)  # the same 32 bits, read as signed
    a = (bits >> 7).bitwise_and_(0x7FFFFF).to(torch.float32)
    a.mul_(ULP23).add_(ULP24 - 0.5).mul_(HALF_PI)
    a2 = a * a
    sine = _horner(a2, SIN_POLY).mul_(a2).mul_(a).add_(a)
    cosine = _horner(a2, COS_POLY).mul_(a2).mul_(a2)
    cosine.add_(a2.mul_(-0.5)).add_(1.0)
    cosine.view(torch.int32).bitwise_xor_((bits << 1).bitwise_and_(-(1 << 31)))
    across = sine.mul_(radius)
    along = cosine.mul_(radius)
    swap = bits < 0
    return torch.where(swap, across, along), torch.where(swap, along, across)


def _radius(word: Tensor) -> Tensor:
    """Return sqrt(-2 ln u), where u is the 23-bit uniform number strictly inside (0, 1)."""
    u = (word >> 9).to(torch.int32).to(torch.float32).mul_(ULP23).add_(ULP24)
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS).bitwise_right_shift_(23)  # u = m 2^exponent, m in [sqrt(1/2), sqrt(2))
    f = (bits - (exponent << 23)).view(torch.float32).sub_(1.0)
    e = exponent.to(torch.float32)
    f2 = f * f
    log = _horner(f, LOG_POLY).mul_(f).mul_(f2)
    log.add_(e * LN2_LO).add_(f2.mul_(-0.5)).add_(f).add_(e.mul_(LN2_HI))
    # torch.sqrt in float32 is not correctly rounded on every CPU; by way of float64 it is (53 >= 2 * 24 + 2 bits)
    return log.mul_(-2.0).to(torch.float64).sqrt_().to(torch.float32)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    y = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        y.add_(coefficient).mul_(x)
    return y.add_(coefficients[-1])


def _chunks(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of at most _CHUNK pixels that cover rows x width, with whole rows where they fit."""
    columns = min(width, _CHUNK)
    height = max(1, _CHUNK // columns)
    for row in range(0, rows, height):
        for column in range(0, width, columns):
            yield slice(row, min(row + height, rows)), slice(column, min(column + columns, width))


def _store(out: Tensor, band: int, rows: slice, cols: slice, z: Tensor) -> None:
    """Write rows, which are counted over (window, row), into out[window, band, row]."""
    h, done = out.shape[2], rows.start
    while done < rows.stop:
        window, row = divmod(done, h)
        count = min(h - row, rows.stop - done)
        out[window, band, row : row + count, cols] = z[done - rows.start : done - rows.start + count]
        done += count
