"""Naive on the CPU against Triton on the GPU: run with TRITON_INTERPRET=0 where there is one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.kernels.accumulate import accumulate
from surveybridge.kernels.blend import blend
from surveybridge.kernels.bridge_step import StepCoefficients, StepTable, bridge_step
from surveybridge.kernels.conv3x3 import Norm, Rest, conv3x3, upsampling_weight
from surveybridge.kernels.pixel_norm import pixel_norm_silu
from surveybridge.kernels.sky_noise import SkyNoise, sky_noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs TRITON_INTERPRET=0: it interprets"),
]
SHAPES = [(1, 1, 1, 1), (3, 3, 23, 41), (16, 3, 64, 64), (2, 4, 301, 517), (70000, 1, 2, 3)]
K = StepCoefficients(p=1.3, q=-0.53, r=0.217, h=0.117, a=0.33, b=0.41, c=0.23, d=0.31)


def sky(n: int) -> SkyNoise:
    return SkyNoise(2**63 + 5, 2**31 + 3, torch.arange(n) % 65536, torch.arange(n) * 40 - 7, 2**31 - torch.arange(n))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_noise_on_the_gpu_has_the_bits_of_the_cpu(shape, impl):
    n, c, h, w = shape
    on_cpu = sky_noise(sky(n), 40000, (c, h, w), impl="naive")
    on_gpu = sky_noise(sky(n).to("cuda"), 40000, (c, h, w), impl=impl)
    assert on_gpu.is_cuda
    assert torch.equal(on_cpu.view(torch.int32), on_gpu.cpu().view(torch.int32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_step_on_the_gpu_equals_the_naive_one_on_the_cpu(shape, second, dtype):
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(1)
    x_t, x1, prev, z = (torch.randn(shape, generator=generator) for _ in range(4))
    pred = torch.randn((n, 2 * c, h, w), generator=generator).to(dtype)[:, c:]
    x1 = x1.to(memory_format=torch.channels_last)
    rows = [K if second else K._replace(h=0.0)] * 4
    for noise in (z, sky(n)):
        expected = bridge_step(
            x_t, pred, x1, StepTable.of(rows), 3, noise=noise, clamp=(-1, 1), x0_prev=prev, impl="naive"
        )
        found = bridge_step(
            x_t.cuda(), pred.cuda(), x1.cuda(), StepTable.of(rows, "cuda"), 3,
            noise=noise.to("cuda"), clamp=(-1, 1), x0_prev=prev.cuda(),
        )  # fmt: skip
        for a, b in zip(expected, found, strict=True):
            assert torch.allclose(a, b.cpu(), rtol=0, atol=1e-6)
            assert not b.isnan().any()


def test_a_fused_step_is_captured_in_a_cuda_graph_without_a_host_sync():
    x, noise = torch.randn(16, 3, 64, 64, device="cuda"), sky(16).to("cuda")
    table = StepTable.of([K._replace(h=0.0)] * 4, "cuda")
    expected = bridge_step(x, x, x, table, 3, noise=noise)  # compiles too
    noise32 = SkyNoise(noise.seed, noise.stream, noise.sample.int(), noise.y0.int(), noise.x0.int())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = bridge_step(x, x, x, table, 3, noise=noise32)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured[0], expected[0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 8, 3, 23, 41), (169, 8, 1, 64, 64)], ids=str)
def test_moments_on_the_gpu_have_the_bits_of_the_cpu(shape):
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 30 + 500
    target = samples[:, 0] + 1
    expected = accumulate(samples, target, impl="naive")
    for a, b in zip(expected, accumulate(samples.cuda(), target.cuda()), strict=True):
        assert a is not None and b is not None
        assert b.is_cuda and torch.equal(a, b.cpu())


def test_a_blend_on_the_gpu_has_the_bits_of_the_cpu():
    corners = [(y, x) for y in range(-40, 240, 40) for x in range(0, 320, 40)][::-1]
    generator = torch.Generator().manual_seed(1)
    mean, variance = (torch.randn((len(corners), 3, 64, 64), generator=generator).abs() for _ in range(2))
    taper = torch.linspace(0, 1, 33, dtype=torch.float64)[:32]
    taper = torch.cat([taper, taper.flip(0)])
    box = (-20, 201, 7, 300)
    expected = blend(mean, variance, corners, taper, box, stride=40, impl="naive")
    for a, b in zip(expected, blend(mean.cuda(), variance.cuda(), corners, taper, box, stride=40), strict=True):
        assert b.is_cuda and torch.equal(a.nan_to_num(-1), b.cpu().nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 64])
@pytest.mark.parametrize("channels", [8, 20, 24, 32, 64, 96, 128, 192, 256])
def test_a_norm_on_the_gpu_is_near_float32_on_the_cpu_and_the_same_bits_in_every_batch(channels, rows, dtype):
    generator = torch.Generator().manual_seed(channels)
    x = (3 * torch.randn((64, channels, 7, 9), generator=generator) + 1).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(channels, generator=generator).to(dtype) for _ in range(2))
    film = torch.randn((rows, 2 * channels), generator=generator).to(dtype) if rows else None
    expected = pixel_norm_silu(x.float(), weight.float(), bias.float(), None if film is None else film.float())

    def on_gpu(part: torch.Tensor, first: int) -> torch.Tensor:
        row = film if film is None or rows == 1 else film[first : first + len(part)]
        return pixel_norm_silu(part.cuda(), weight.cuda(), bias.cuda(), None if row is None else row.cuda()).cpu()

    whole = on_gpu(x, 0)
    tolerance = 1e-5 * expected.abs().amax()
    if dtype == torch.bfloat16:
        tolerance = torch.exp2(expected.abs().clamp(min=2.0**-126).log2().floor() - 7) + 0.1 * tolerance
    assert ((whole.float() - expected).abs() <= tolerance).all()
    for batch in (1, 3, 16):
        assert torch.equal(on_gpu(x[64 - batch :], 64 - batch), whole[64 - batch :])
    assert torch.equal(on_gpu(x[..., 1:6, 2:7], 0), whole[..., 1:6, 2:7])


@pytest.mark.parametrize(
    ("cx", "c", "how"),
    [
        (60, 32, {"unshuffle": 2}),
        (32, 32, {"rest": 32}),
        (96, 32, {"film": True}),
        (32, 64, {"stride": 2}),
        (64, 64, {"rest": 192}),
        (128, 128, {"rest": 128}),
        (64, 64, {"doubled": True}),
        (128, 128, {"doubled": True}),
        (16, 16, {"film": True}),
        (32, 12, {"shuffle": 2}),
    ],
    ids=str,
)
def test_a_convolution_on_the_gpu_is_near_float32_on_the_cpu_and_the_same_bits_in_every_batch(cx, c, how):
    n, side, generator = 66, 8, torch.Generator().manual_seed(c)  # as many as there are channels nowhere

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        drawn = (scale * torch.randn(shape, generator=generator)).bfloat16()
        return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn

    before, after = how.get("stride", 1) * how.get("unshuffle", 1), 1 + how.get("doubled", False)
    weight, cr = normal(c, cx, 3, 3, scale=(9 * cx) ** -0.5), how.get("rest", 0)
    weight = upsampling_weight(weight) if "doubled" in how else weight
    x = normal(n, cx // how.get("unshuffle", 1) ** 2, side * before, side * before)
    skip = (normal(c, cr, 1, 1, scale=cr**-0.5), normal(c)) if cr not in (0, c) else ()
    rest = Rest(normal(n, cr, side * after, side * after), *skip) if cr else None
    norm = Norm(normal(c), normal(c), normal(n, 2 * c) if "film" in how else None) if "shuffle" not in how else None
    sizes = {name: value for name, value in how.items() if name in ("stride", "unshuffle", "shuffle")}
    given = {"x": x, "weight": weight, "bias": normal(c), "rest": rest, "norm": norm}

    def on(device: str, part: slice, dtype: torch.dtype) -> tuple[Any, Any]:
        def of(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return (value[part] if len(value) == n else value).to(device, dtype)
            return type(value)(*map(of, value)) if value is not None else None

        return conv3x3(**{name: of(value) for name, value in given.items()}, **sizes)

    expected, whole = on("cpu", slice(0, n), torch.float32), on("cuda", slice(0, n), torch.bfloat16)
    for wanted, found in zip(expected, whole, strict=True):
        if wanted is None or found is None:
            continue
        unit = torch.exp2(wanted.abs().clamp(min=2.0**-126).log2().floor() - 7)
        assert ((found.cpu().float() - wanted).abs() <= unit + 1e-4 * wanted.abs().amax()).all()
    for batch in (1, 3, 16, 64):
        few = on("cuda", slice(n - batch, n), torch.bfloat16)
        assert all(b is None or torch.equal(a, b[n - batch :]) for a, b in zip(few, whole, strict=True))


def test_the_network_on_the_gpu_is_near_float32_on_the_cpu_and_the_same_bits_in_every_batch_and_crop():
    model = load_checkpoint("mosaic-v2")
    direction, (high, wide) = model.card.problem.directions[-1], (64, 384)
    generator = torch.Generator().manual_seed(2)
    x, x1 = (torch.randn((66, 3, 16, 16), generator=generator) for _ in range(2))
    long = torch.randn((1, 3, high, wide), generator=generator)
    expected = model.predict(x, x1, 100, direction)
    model.to("cuda", "bfloat16")

    def on_gpu(some: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return model.predict(some.cuda(), seen.cuda(), 100, direction, "bfloat16").cpu().float()

    whole = on_gpu(x, x1)
    assert (whole - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()
    for batch in (1, 3, 16, 64):
        assert torch.equal(on_gpu(x[66 - batch :], x1[66 - batch :]), whole[66 - batch :])
    left, reach = 160, model.card.network.reach
    cropped, longer = on_gpu(long[..., left:], long[..., left:]), on_gpu(long, long)
    assert torch.equal(cropped[..., reach:], longer[..., left + reach :])
