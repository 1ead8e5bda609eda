"""The fused norm: a program holds whole pixels in registers, so that each value is read once and written once."""

# mypy: disable-error-code="no-untyped-def"
# (a jitted function's arguments are Triton's blocks, pointers and scalars, which have no static types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from surveybridge.kernels.dispatch import LAUNCH, check_launch
from surveybridge.kernels.pixel_norm.naive import EPS

BLOCK = 2048  # values a program: 16 a thread, two 128-bit loads in bfloat16
ACCESS = 16  # bytes of the widest load


def pixel_norm_silu_triton(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None) -> Tensor:
    """Return [N, C, H, W] in the type of x and in channels-last memory, with one launch.

    What is compiled, and with it the order of a pixel's sums, depends only on the number of channels and the types:
    where its memory is not as the kernel needs it, x is copied first.
    """
    check_launch(pixel_norm_kernel, x.device)
    n, c, h, w = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not out.numel():
        return out
    wide = ACCESS // x.element_size()
    unit = wide if c % wide == 0 else 1
    if not _fits(x, unit):
        x = x.clone(memory_format=torch.channels_last)
    weight, bias = weight.contiguous(), bias.contiguous()
    rows = "none" if film is None else "one" if len(film) == 1 else "each"
    film = weight if film is None else film.contiguous()  # weight: a placeholder, which the kernel does not read
    sizes = block_sizes(c)
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on that of its tensors
        pixel_norm_kernel[(n * triton.cdiv(h * w, sizes["PIXELS"]),)](
            out, x, weight, bias, film, x.stride(0) // unit, h * w,
            C=c, STRIDE=x.stride(3), UNIT=unit, FILM=rows, EPS=EPS, **sizes, **LAUNCH,
        )  # fmt: skip
    return out


def block_sizes(channels: int) -> dict[str, int]:
    """Return how many pixels and channels, powers of two, one program holds."""
    wide = triton.next_power_of_2(channels)
    return {"PIXELS": max(1, BLOCK // wide), "CHANNELS": wide}


def _fits(x: Tensor, unit: int) -> bool:
    """Whether channels are neighbours, pixels have one stride, and every pixel is aligned if dense pixels are."""
    plane = x.stride(1) == 1 and x.stride(2) == x.shape[3] * x.stride(3)
    aligned = x.stride(0) % unit == x.stride(3) % unit == 0 and x.data_ptr() % (unit * x.element_size()) == 0
    return plane and aligned


@triton.jit(do_not_specialize=["x_n", "HW"])
def pixel_norm_kernel(
    p_out, p_x, p_weight, p_bias, p_film, x_n, HW,
    C: tl.constexpr, STRIDE: tl.constexpr, UNIT: tl.constexpr, FILM: tl.constexpr, EPS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Normalise PIXELS pixels of one sample: the work of one program. `x_n` counts in UNIT values, STRIDE in values."""
    i_n = (tl.program_id(0) // tl.cdiv(HW, PIXELS)).to(tl.int64)
    o_i = (tl.program_id(0) % tl.cdiv(HW, PIXELS)).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    o_c = tl.arange(0, CHANNELS)
    m_c = o_c < C
    m_x = (o_i < HW)[:, None] & m_c[None, :]
    o_x = (i_n * x_n * UNIT + o_i * STRIDE)[:, None] + o_c[None, :]
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_x, 1) * (1.0 / C)
    b_x = tl.where(m_c[None, :], b_x - b_mean[:, None], 0.0)
    b_variance = tl.sum(b_x * b_x, 1) * (1.0 / C)
    b_weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_y = b_x * tl.rsqrt(b_variance + EPS)[:, None] * b_weight[None, :] + b_bias[None, :]
    if FILM != "none":
        p_row = p_film
        if FILM == "each":
            p_row += i_n * (2 * C)
        b_scale = tl.load(p_row + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_shift = tl.load(p_row + C + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_y = b_y * (1.0 + b_scale)[None, :] + b_shift[None, :]
    b_y = b_y / (1.0 + tl.exp(-b_y))
    o_out = ((i_n * HW + o_i) * C)[:, None] + o_c[None, :]
    tl.store(p_out + o_out, b_y.to(p_out.dtype.element_ty), mask=m_x)
