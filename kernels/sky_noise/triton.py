"""Sky noise in Triton: the same float32 operations as in `naive`, in the same order, in registers."""

# mypy: disable-error-code="no-untyped-def"
# (a jitted function's arguments are Triton's blocks, pointers and scalars, which have no static types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from surveybridge.kernels.dispatch import LAUNCH, check_launch
from surveybridge.kernels.sky_noise import naive
from surveybridge.kernels.sky_noise.naive import SkyNoise

BLOCK = 512  # pixels per program: four per thread, hence 128-bit stores

_LOG_POLY = tl.constexpr(naive.LOG_POLY)
_SIN_POLY = tl.constexpr(naive.SIN_POLY)
_COS_POLY = tl.constexpr(naive.COS_POLY)
_LN2_HI = tl.constexpr(naive.LN2_HI)
_LN2_LO = tl.constexpr(naive.LN2_LO)
_HALF_PI = tl.constexpr(naive.HALF_PI)
_SQRT_HALF_BITS = tl.constexpr(naive.SQRT_HALF_BITS)
_ULP23 = tl.constexpr(naive.ULP23)
_ULP24 = tl.constexpr(naive.ULP24)
_LOWEST = tl.constexpr(naive.ULP24 - 0.5)


def sky_noise_triton(noise: SkyNoise, step: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return the deviates of `noise` at `step`, float32 [N, C, H, W], with the same bits as `sky_noise_naive`."""
    check_launch(sky_noise_kernel, device)
    n, (c, h, w) = noise.sample.numel(), shape
    out = torch.empty((n, c, h, w), dtype=torch.float32, device=device)
    if not out.numel():
        return out
    with torch.cuda.device_of(out):  # Triton launches on the current device, not on that of its tensors
        grid = (n * triton.cdiv(h * w, BLOCK),)
        sky_noise_kernel[grid](
            out, *windows(noise, device), *key_words(noise, step), h * w, w, C=c, BLOCK=BLOCK, **LAUNCH
        )
    return out


def windows(noise: SkyNoise, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return sample, y0 and x0 as int32 tensors on `device`, with wider pixels modulo 2^32."""

    def words(t: Tensor) -> Tensor:  # `to` and `contiguous` are operators even where they do nothing
        ready = t.dtype == torch.int32 and t.device == device and t.is_contiguous()
        return t if ready else t.to(device=device, dtype=torch.int32).contiguous()

    return words(noise.sample), words(noise.y0), words(noise.x0)


def key_words(noise: SkyNoise, step: int) -> tuple[int, int, int, int]:
    """Return low and high key, stream and step as *signed* words, so that no value changes a kernel's signature."""
    words = (noise.seed & 0xFFFFFFFF, noise.seed >> 32, noise.stream, step)
    low, high, stream, step = (word - (1 << 32) if word >> 31 else word for word in words)
    return low, high, stream, step


@triton.jit(do_not_specialize=["key_lo", "key_hi", "stream", "step"])
def sky_noise_kernel(
    p_out, p_sample, p_corner_y, p_corner_x, key_lo, key_hi, stream, step, HW, W, C: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Draw BLOCK pixels of one window in all bands: the work of one program."""
    i_n = tl.program_id(0) // tl.cdiv(HW, BLOCK)
    o_i = (tl.program_id(0) % tl.cdiv(HW, BLOCK)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < HW
    for i_c in tl.static_range(C):
        if i_c % 4 == 0:  # a group of bands, naive.GROUP and GROUP_STREAM
            b_z = window_normals(
                p_sample + i_n, p_corner_y + i_n, p_corner_x + i_n, key_lo, key_hi,
                stream + i_c // 4 * 0x1000000, step, o_i.to(tl.int32), W, C - i_c,
            )  # fmt: skip
        tl.store(p_out + (i_n.to(tl.int64) * C + i_c) * HW + o_i, b_z[i_c % 4], mask=m_i)


@triton.jit
def window_normals(p_sample, p_corner_y, p_corner_x, key_lo, key_hi, stream, step, o_i, W, C: tl.constexpr):
    """Return the deviates of a group of bands at the flat pixels `o_i` of one window; those from its C-th on are 0."""
    b_row = o_i // W
    b_x = tl.load(p_corner_x).to(tl.uint32, bitcast=True) + (o_i - b_row * W).to(tl.uint32, bitcast=True)
    b_y = tl.load(p_corner_y).to(tl.uint32, bitcast=True) + b_row.to(tl.uint32, bitcast=True)
    b_draw = (step | (tl.load(p_sample) << 16)).to(tl.uint32, bitcast=True)
    b_zero = tl.zeros_like(b_x)
    w0, w1, w2, w3 = philox4x32(
        b_x, b_y, b_draw + b_zero, stream.to(tl.uint32, bitcast=True) + b_zero,
        key_lo.to(tl.uint32, bitcast=True), key_hi.to(tl.uint32, bitcast=True),
    )  # fmt: skip
    z0, z1 = box_muller(w0, w1)
    if C > 2:
        z2, z3 = box_muller(w2, w3)
    else:
        z2, z3 = tl.zeros_like(z0), tl.zeros_like(z0)
    return z0, z1, z2, z3


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Run Philox4x32-10 on uint32 blocks."""
    for _ in tl.static_range(10):
        b_hi_a, b_hi_b = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        b_lo_a, b_lo_b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = b_hi_b ^ c1 ^ k0, b_lo_b
        c2, c3 = b_hi_a ^ c3 ^ k1, b_lo_a
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def box_muller(b_r, b_a):
    """Return two deviates from two uint32 words; see `naive.box_muller`."""
    b_radius = _radius(b_r)
    a = (((b_a >> 7) & 0x7FFFFF).to(tl.float32) * _ULP23 + _LOWEST) * _HALF_PI
    a2 = a * a
    b_sine = _horner(a2, _SIN_POLY, 3) * a2 * a + a
    b_cosine = _horner(a2, _COS_POLY, 3) * a2 * a2 + a2 * -0.5 + 1.0
    b_sign = (1 - ((b_a >> 29) & 2).to(tl.int32)).to(tl.float32)
    b_across = b_sine * b_radius
    b_along = b_cosine * b_sign * b_radius
    m_swap = b_a >= 0x80000000
    return tl.where(m_swap, b_across, b_along), tl.where(m_swap, b_along, b_across)


@triton.jit
def _radius(b_w):
    b_u = (b_w >> 9).to(tl.float32) * _ULP23 + _ULP24
    b_bits = b_u.to(tl.int32, bitcast=True)
    b_exponent = (b_bits - _SQRT_HALF_BITS) >> 23
    f = (b_bits - (b_exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = b_exponent.to(tl.float32)
    f2 = f * f
    b_log = _horner(f, _LOG_POLY, 9) * f * f2 + e * _LN2_LO + f2 * -0.5 + f + e * _LN2_HI
    return tl.sqrt_rn(b_log * -2.0)


@triton.jit
def _horner(x, poly: tl.constexpr, terms: tl.constexpr):
    y = x * poly[0]
    for i in tl.static_range(1, terms - 1):
        y = (y + poly[i]) * x
    return y + poly[terms - 1]
