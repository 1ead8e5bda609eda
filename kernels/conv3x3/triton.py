"""The fused convolution: a program holds all output channels of its pixels, so that what follows needs no memory.

It is a matrix product (Chetlur et al. 2014, implicit GEMM): a row for each output pixel, a column for each output
channel, and a sum over nine neighbours times input channels that are gathered from channels-last memory.
"""

# mypy: disable-error-code="no-untyped-def"
# (a jitted function's arguments are Triton's blocks, pointers and scalars, which have no static types)

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from surveybridge.kernels.conv3x3.naive import Norm, Rest
from surveybridge.kernels.dispatch import LAUNCH, check_launch
from surveybridge.kernels.pixel_norm.naive import EPS

UNIT = 8  # values of bfloat16 in the widest load


def conv3x3_triton(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, unshuffle: int, shuffle: int,
    rest: Rest | None, norm: Norm | None, out: Tensor | None, keep: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Return sum and activation in bfloat16, with one launch; the sum in channels-last memory unless it is shuffled.

    What is compiled, and with it the order of a pixel's sums, depends on channels and strides of pixels, not on the
    number of samples or their size. A tensor whose memory is not as the kernel needs it is copied first.
    """
    check_launch(conv3x3_kernel, x.device)
    up = weight.ndim == 5
    (n, _, high, wide), (c, cx) = x.shape, weight.shape[-4:-2]
    high, wide = high // (unshuffle * stride), wide // (unshuffle * stride)
    shape = (n, c, high * (1 + up), wide * (1 + up))
    shuffled = (n, c // shuffle**2, shape[2] * shuffle, shape[3] * shuffle)
    if out is not None and not is_dense(out):
        raise ValueError(f"conv3x3: out has strides {out.stride()} but must be channels-last, with aligned pixels")
    if out is None and keep:
        last = torch.channels_last if shuffle == 1 else torch.contiguous_format
        out = torch.empty(shuffled, dtype=x.dtype, device=x.device, memory_format=last)
    act = None if norm is None else torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )  # fmt: skip
    if not n:
        return out, act
    x, weight = dense(x), by_input(weight)
    added, skip, skip_bias = (None, None, None) if rest is None else (dense(rest.x), *rest[1:])
    scale, shift, film = (None, None, None) if norm is None else norm
    if film is not None and (film.stride(0) % UNIT or film.stride(1) != 1 or not is_aligned(film)):
        film = film.clone(memory_format=torch.contiguous_format)
    vectors = [None if t is None else t.contiguous() for t in (skip_bias, scale, shift)]
    film_n = 0 if film is None or len(film) == 1 else film.stride(0) // UNIT
    sizes = tile_sizes(c)
    pixels = n * high * wide  # of the sums or, doubled, of x: memory for 2^31 of them is on no device
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on that of its tensors
        conv3x3_kernel[(-(-pixels // sizes["PIXELS"]), 4 if up else 1)](
            out, act, x, weight, bias.contiguous(), added, skip if skip is None else by_input(skip),
            *vectors, film, pixels, high, wide, film_n,
            CX=cx, C=c, CR=0 if skip is None else skip.shape[1], XS=x.stride(3),
            RS=0 if added is None else added.stride(3), OS=0 if out is None else out.stride(3),
            SIDE=weight.shape[-1], STRIDE=stride, UNIT=UNIT,
            UNSHUFFLE=unshuffle, SHUFFLE=shuffle, EPS=EPS, BX=chunk(cx), BR=chunk(0 if skip is None else skip.shape[1]),
            WIDEN=not isinstance(conv3x3_kernel, JITFunction), **sizes, **launch_options(c),
        )  # fmt: skip
    return out, act


@cache
def tile_sizes(channels: int) -> dict[str, int]:
    """Return how many pixels and channels, powers of two, one program holds."""
    return {"PIXELS": 64 if channels > 64 else 128, "WIDTH": max(16, triton.next_power_of_2(channels))}


@cache
def launch_options(channels: int) -> dict[str, int | bool]:
    """Return Triton's options for so many output channels."""
    return LAUNCH | {"num_warps": 8 if channels > 32 else 4}


@cache
def chunk(channels: int) -> int:
    """Return how many input channels are multiplied at once: a power of two that divides them if one does."""
    return next((size for size in (64, 32, 16) if channels % size == 0), 16)


def dense(x: Tensor) -> Tensor:
    """Return x if channels are neighbours and pixels, aligned, follow each other with one stride; else a copy."""
    return x if is_dense(x) else x.clone(memory_format=torch.channels_last)


def is_dense(x: Tensor) -> bool:
    """Whether the kernel can reach x as it is; pixels of few channels need not be aligned."""
    _, _, high, wide = x.shape
    pixel = x.stride(3)
    follow = x.stride() == (high * wide * pixel, 1, wide * pixel, pixel)
    return follow and (x.shape[1] % 16 != 0 or (pixel % UNIT == 0 and is_aligned(x)))


def is_aligned(tensor: Tensor) -> bool:
    """Whether the widest load may begin where the tensor does."""
    return tensor.data_ptr() % (2 * UNIT) == 0


def by_input(weight: Tensor) -> Tensor:
    """Return the weight with its input channels as neighbours in memory, which channels-last weights have already."""
    return weight.movedim(-3, -1).contiguous().movedim(-1, -3)


@triton.jit(do_not_specialize=["M", "H", "W", "film_n"])
def conv3x3_kernel(
    p_out, p_act, p_x, p_weight, p_bias, p_rest, p_skip, p_skip_bias, p_scale, p_shift, p_film, M, H, W, film_n,
    CX: tl.constexpr, C: tl.constexpr, CR: tl.constexpr, XS: tl.constexpr, RS: tl.constexpr, OS: tl.constexpr,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, UNSHUFFLE: tl.constexpr, SHUFFLE: tl.constexpr,
    EPS: tl.constexpr, UNIT: tl.constexpr, BX: tl.constexpr, BR: tl.constexpr, WIDEN: tl.constexpr,
    PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Convolve PIXELS pixels: the work of one program, whose second index is the phase after doubling.

    Strides of pixels are XS, RS and OS (x, rest, out) in values, film_n in UNIT values. CX, C and CR are channels of x,
    of the result and of what a 1 x 1 convolution adds; of inputs, BX and BR are multiplied at once.
    """
    i_m = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    m_m = i_m < M
    i_n = (i_m // (H * W)).to(tl.int64)
    i_y, i_x = i_m // W % H, i_m % W
    i_phase = tl.program_id(1)
    o_c = tl.arange(0, WIDTH)
    m_c = o_c < C
    o_pixel = i_m.to(tl.int64)
    if SIDE == 2:
        o_pixel = (i_n * (2 * H) + 2 * i_y + i_phase // 2) * (2 * W) + 2 * i_x + i_phase % 2

    o_y, o_x = i_y * STRIDE - 1 + i_phase // 2, i_x * STRIDE - 1 + i_phase % 2  # of the first neighbour
    row = W * (STRIDE * UNSHUFFLE)
    o_first = ((i_n * (H * STRIDE) + o_y) * UNSHUFFLE * row + o_x * UNSHUFFLE) * XS
    p_w = p_weight + i_phase * (C * SIDE * SIDE * CX) + o_c[None, :] * (SIDE * SIDE * CX)
    b_sum = tl.zeros((PIXELS, WIDTH), tl.float32)
    parts: tl.constexpr = (CX + BX - 1) // BX
    for k in range(SIDE * SIDE * parts):
        i_tap = k // parts
        o_k = k % parts * BX + tl.arange(0, BX)
        i_ky, i_kx = i_tap // SIDE, i_tap % SIDE
        m_y = (o_y + i_ky >= 0) & (o_y + i_ky < H * STRIDE)
        m_x = m_m & m_y & (o_x + i_kx >= 0) & (o_x + i_kx < W * STRIDE)
        o_in = o_k
        if UNSHUFFLE > 1:
            o_in = (o_k // UNSHUFFLE % UNSHUFFLE * row + o_k % UNSHUFFLE) * XS + o_k // (UNSHUFFLE * UNSHUFFLE)
        o_in += (i_ky * row + i_kx) * UNSHUFFLE * XS
        m_in, m_w = m_x[:, None], m_c[None, :]
        if CX % BX > 0:
            m_in, m_w = m_in & (o_k < CX)[None, :], m_w & (o_k < CX)[:, None]
        b_x = tl.load(p_x + o_first[:, None] + o_in[None, :], mask=m_in, other=0.0)
        b_w = tl.load(p_w + (i_tap * CX + o_k)[:, None], mask=m_w, other=0.0)
        if WIDEN:  # Triton's interpreter would multiply the bits of bfloat16 as integers
            b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
        b_sum = tl.dot(b_x, b_w, b_sum)

    m_out = m_m[:, None] & m_c[None, :]
    b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    if CR > 0:
        b_bias += tl.load(p_skip_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
        for k in range(CR // BR):
            o_k = k * BR + tl.arange(0, BR)
            b_x = tl.load(p_rest + (o_pixel * RS)[:, None] + o_k[None, :], mask=m_m[:, None], other=0.0)
            b_w = tl.load(p_skip + o_c[None, :] * CR + o_k[:, None], mask=m_c[None, :], other=0.0)
            if WIDEN:
                b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
            b_sum = tl.dot(b_x, b_w, b_sum)
    b_sum += b_bias[None, :]
    if CR == 0 and p_rest is not None:
        b_sum += tl.load(p_rest + (o_pixel * RS)[:, None] + o_c[None, :], mask=m_out, other=0.0).to(tl.float32)

    if p_out is not None:
        if SHUFFLE > 1:
            o_row = (i_y * SHUFFLE)[:, None] + (o_c // SHUFFLE % SHUFFLE)[None, :]
            o_plane = i_n[:, None] * (C // (SHUFFLE * SHUFFLE)) + (o_c // (SHUFFLE * SHUFFLE))[None, :]
            o_out = (
                (o_plane * (H * SHUFFLE) + o_row) * (W * SHUFFLE) + (i_x * SHUFFLE)[:, None] + (o_c % SHUFFLE)[None, :]
            )
        else:
            o_out = (o_pixel * OS)[:, None] + o_c[None, :]
        tl.store(p_out + o_out, b_sum.to(p_out.dtype.element_ty), mask=m_out)
    if p_act is not None:
        b_mean = tl.sum(b_sum, 1) * (1.0 / C)
        b_y = tl.where(m_c[None, :], b_sum - b_mean[:, None], 0.0)
        b_variance = tl.sum(b_y * b_y, 1) * (1.0 / C)
        b_scale = tl.load(p_scale + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_shift = tl.load(p_shift + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_y = b_y * tl.rsqrt(b_variance + EPS)[:, None] * b_scale[None, :] + b_shift[None, :]
        if p_film is not None:
            o_film = (i_n * film_n * UNIT)[:, None] + o_c[None, :]
            b_scale = tl.load(p_film + o_film, mask=m_out, other=0.0).to(tl.float32)
            b_shift = tl.load(p_film + C + o_film, mask=m_out, other=0.0).to(tl.float32)
            b_y = b_y * (1.0 + b_scale) + b_shift
        b_y = b_y / (1.0 + tl.exp(-b_y))
        tl.store(p_act + (o_pixel * C)[:, None] + o_c[None, :], b_y.to(p_act.dtype.element_ty), mask=m_out)
