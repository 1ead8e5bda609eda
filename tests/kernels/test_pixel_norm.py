from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.kernels.pixel_norm import film_silu, pixel_norm_silu
from tests.kernels.guards import guarded, guarded_results

CHANNELS = (8, 24, 32, 64, 96, 128)
CASES = [
    *((2, c, 5, 3) for c in CHANNELS),
    *((1, c, 1, 1) for c in (1, 32)),
    *((3, 20, 2, 7), (2, 7, 1, 4), (2, 32, 9, 15), (1, 192, 3, 5)),
]
"""[N, C, H, W]: the network's widths, single pixels, widths that no wide access divides, and more than one program."""


def last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Channels-last memory within NaN guard bands."""
    n, c, h, w = shape
    return guarded((n, h, w, c), dtype)[0].permute(0, 3, 1, 2)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, weight, bias and FiLM of so many rows, none for 0, all between NaN; pixels of very different brightness."""
    c, generator = shape[1], torch.Generator().manual_seed(shape[1])
    bright = 10 ** (4 * torch.rand((shape[0], 1, *shape[2:]), generator=generator) - 2)
    x = last(shape, dtype).copy_((torch.randn(shape, generator=generator) + 0.5) * bright)
    weight, bias = (guarded((c,), dtype)[0].copy_(torch.randn(c, generator=generator)) for _ in range(2))
    film = guarded((rows, 2 * c), dtype)[0].copy_(torch.randn((rows, 2 * c), generator=generator)) if rows else None
    return x, weight, bias, film


def in_float32(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None) -> Tensor:
    """What the naive reference gives for the same values in float32."""
    return pixel_norm_silu(
        x.float(), weight.float(), bias.float(), None if film is None else film.float(), impl="naive"
    )


def unit_in_the_last_place(value: Tensor) -> Tensor:
    """Of bfloat16, which has eight significant bits."""
    return torch.exp2(value.abs().clamp(min=2.0**-126).log2().floor() - 7)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_overwritten_has_the_bits_of_what_a_gradient_is_wanted_of(dtype, rows):
    x, weight, bias, film = inputs((2, 24, 3, 5), dtype, rows)
    before = x.clone()
    found = pixel_norm_silu(x, weight, bias, film)
    assert torch.equal(bits(x), bits(before))
    wanted = pixel_norm_silu(x, weight.detach().requires_grad_(), bias, film)
    assert wanted.requires_grad and not found.requires_grad
    assert torch.equal(bits(found), bits(wanted.detach())) and found.stride() == wanted.stride()


def test_a_film_of_a_wider_type_is_not_rounded():
    x, _, _, film = inputs((2, 8, 3, 5), torch.bfloat16, 2)
    assert film is not None
    h = x.clone()
    found = film_silu(h, film.float())
    scale, shift = film.float()[:, :, None, None].chunk(2, dim=1)
    assert found.dtype == torch.float32
    assert torch.equal(found, F.silu(x * (1 + scale) + shift)) and torch.equal(bits(h), bits(x))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_naive_in_float32_is_the_formula_in_float64(rows):
    x, weight, bias, film = inputs((2, 24, 3, 5), torch.float32, rows)
    exact = x.double()
    exact = (exact - exact.mean(1, keepdim=True)) / (exact.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    exact = exact * weight.double()[:, None, None] + bias.double()[:, None, None]
    if film is not None:
        exact = exact * (1 + film[:, :24].double())[:, :, None, None] + film[:, 24:].double()[:, :, None, None]
    found = pixel_norm_silu(x, weight, bias, film)
    torch.testing.assert_close(found.double(), exact / (1 + (-exact).exp()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_naive_is_torchs_own_operations_in_their_order_to_the_bit(dtype, rows):
    x, weight, bias, film = inputs((3, 32, 4, 5), dtype, rows)
    norm = nn.LayerNorm(32, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(weight)
    norm.bias.copy_(bias)
    expected = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        expected = expected * (1 + scale) + shift
    assert torch.equal(bits(pixel_norm_silu(x, weight, bias, film)), bits(F.silu(expected)))


@pytest.mark.parametrize("shape", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpreted_triton_is_within_one_unit_of_naive_in_float32_between_nan(shape, dtype):
    for rows in {0, 1, shape[0]}:
        given = inputs(shape, dtype, rows)
        with guarded_results(shape, 1):
            found = pixel_norm_silu(*given, impl="triton")
        expected = in_float32(*given)
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        tolerance = 1e-5 * expected.abs().amax()
        if dtype == torch.bfloat16:
            tolerance = unit_in_the_last_place(expected) + 1e-6 * expected.abs().amax()
        assert ((found.float() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("impl", ["naive", "triton"])
@pytest.mark.parametrize("rows", [1, 64])
def test_a_sample_has_the_same_bits_in_every_batch_and_a_pixel_in_every_window(impl, rows):
    x, weight, bias, film = inputs((64, 24, 3, 6), torch.bfloat16, rows)
    assert film is not None
    whole = pixel_norm_silu(x, weight, bias, film, impl=impl)
    for batch in (1, 3, 16):
        part = slice(50 - batch, 50)
        found = pixel_norm_silu(x[part], weight, bias, film if rows == 1 else film[part], impl=impl)
        assert torch.equal(bits(found), bits(whole[part]))
    cropped = pixel_norm_silu(x[:3, :, 1:, 2:5], weight, bias, film if rows == 1 else film[:3], impl=impl)
    assert torch.equal(bits(cropped), bits(whole[:3, :, 1:, 2:5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout_has_the_bits_of_channels_last_memory(dtype):
    x, weight, bias, film = inputs((2, 32, 4, 6), dtype, 2)
    expected = bits(pixel_norm_silu(x, weight, bias, film, impl="triton"))
    wide = last((2, 72, 4, 6), dtype)
    layouts = {
        "planar": x.contiguous(),
        "some channels of wider pixels": wide[:, 8:40],
        "not aligned": wide[:, 33:65],
        "transposed": last((2, 32, 6, 4), dtype).transpose(2, 3),
        "every second row": last((2, 32, 8, 6), dtype)[:, :, ::2],
    }
    for name, tensor in layouts.items():
        found = pixel_norm_silu(tensor.copy_(x), weight, bias, film, impl="triton")
        assert torch.equal(bits(found), expected), name
    gaps = torch.stack([weight, bias], 1)
    assert torch.equal(bits(pixel_norm_silu(x, gaps[:, 0], gaps[:, 1], film, impl="triton")), expected)


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_nan_stays_in_its_pixel(impl):
    x, weight, bias, film = inputs((2, 24, 5, 7), torch.float32, 1)
    clean = pixel_norm_silu(x, weight, bias, film, impl=impl)
    x[1, 3, 2, 4] = torch.nan
    x[0, :, 0, 0] = torch.nan
    found = pixel_norm_silu(x, weight, bias, film, impl=impl)
    lost = torch.zeros(2, 5, 7, dtype=torch.bool)
    lost[1, 2, 4] = lost[0, 0, 0] = True
    assert torch.equal(found.isnan(), lost[:, None].expand_as(found))
    assert torch.equal(found.permute(0, 2, 3, 1)[~lost], clean.permute(0, 2, 3, 1)[~lost])


def test_weights_in_float32_serve_pixels_in_bfloat16_as_they_are():
    x, weight, bias, _ = inputs((1, 32, 3, 5), torch.bfloat16, 0)
    found = pixel_norm_silu(x, weight.float() + 1e-4, bias.float(), impl="triton")
    expected = in_float32(x, weight.float() + 1e-4, bias, None)
    assert ((found.float() - expected).abs() <= unit_in_the_last_place(expected) + 1e-5).all()


def test_a_gradient_takes_the_naive_path_where_triton_would_be_taken(monkeypatch):
    monkeypatch.setattr("surveybridge.kernels.pixel_norm.choose_impl", lambda impl, device: "triton")  # as on CUDA
    wanted = [tensor.requires_grad_(True) for tensor in inputs((2, 8, 3, 2), torch.float32, 2) if tensor is not None]
    found = torch.autograd.grad(pixel_norm_silu(*wanted).square().sum(), wanted)
    x, weight, bias, film = wanted
    y = F.layer_norm(x.movedim(1, -1), (8,), weight, bias).movedim(-1, 1)
    y = y * (1 + film[:, :8, None, None]) + film[:, 8:, None, None]
    expected = torch.autograd.grad((y * y.sigmoid()).square().sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().amax()))
    with pytest.raises(ValueError, match=r"impl is 'triton' but a gradient is wanted; use impl='auto'"):
        pixel_norm_silu(*wanted, impl="triton")
    with torch.no_grad():
        assert pixel_norm_silu(*wanted).grad_fn is None


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_no_sample_gives_no_result(impl):
    assert pixel_norm_silu(torch.empty(0, 8, 3, 5), torch.ones(8), torch.zeros(8), impl=impl).shape == (0, 8, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8, 3)}, "x has shape [2, 8, 3] but must be [N, C, H, W]"),
        ({"x": torch.zeros(2, 8, 3, 3).half()}, "x is torch.float16 but must be float32 or bfloat16"),
        ({"bias": torch.zeros(8).double()}, "bias is torch.float64 but must be float32 or bfloat16"),
        ({"weight": torch.zeros(4)}, "weight has shape [4] and bias [8] but x has 8 channels; both must be [8]"),
        ({"film": torch.zeros(3, 16)}, "film has shape [3, 16] but 2 samples of 8 channels need [2, 16] or [1, 16]"),
        ({"film": torch.zeros(2, 8)}, "film has shape [2, 8]"),
        ({"weight": torch.zeros(8, device="meta")}, "weight is on meta but x on cpu"),
        ({"impl": "fast"}, "impl is 'fast' but must be one of"),
    ],
)
def test_a_wrong_request_is_refused_with_both_values(change, message):
    right = {"x": torch.zeros(2, 8, 3, 3), "weight": torch.ones(8), "bias": torch.zeros(8), "film": None}
    with pytest.raises(ValueError) as refused:
        pixel_norm_silu(**{**right, **change})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
