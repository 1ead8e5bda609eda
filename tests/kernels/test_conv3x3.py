from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from surveybridge.kernels.conv3x3 import Norm, Rest, conv3x3, upsampling_weight
from tests.kernels.guards import guarded, guarded_results, rounding_to_nearest, sums_without_an_order
from tests.kernels.test_pixel_norm import bits, last, unit_in_the_last_place

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
pytestmark = pytest.mark.long  # products in Triton's interpreter


@pytest.fixture(autouse=True)
def rounding() -> Iterator[None]:
    with rounding_to_nearest(), sums_without_an_order():
        yield


@dataclass(frozen=True)
class Case:
    """A convolution as the network has them; `rest` is the width of what is added by a 1 x 1 convolution, -1: as is."""

    cx: int
    c: int
    stride: int = 1
    unshuffle: int = 1
    shuffle: int = 1
    rest: int = 0
    norm: bool = True
    film: int = 0
    keep: bool = True
    doubled: bool = False


CASES = {
    "first, of 2 x 2 blocks of pixels": Case(36, 32, unshuffle=2),
    "first, of pixels": Case(9, 16),
    "first of a block, one film": Case(32, 64, film=1, keep=False),
    "first of a block, film of each sample": Case(96, 32, film=3, keep=False),
    "second of a block": Case(32, 32, rest=-1),
    "second of a block, wider": Case(16, 64, rest=48),
    "second of a block, of all widths": Case(128, 128, rest=256),
    "second of a block, before a change of resolution": Case(64, 64, rest=-1, norm=False),
    "half the resolution": Case(16, 16, stride=2),
    "twice the resolution": Case(64, 64, doubled=True, norm=False),
    "twice the resolution, normalised": Case(16, 32, doubled=True),
    "last, to 2 x 2 blocks of pixels": Case(32, 12, shuffle=2, norm=False),
    "last, to pixels": Case(16, 3, norm=False),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def convolve(*arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Of what either result is, the tests know."""
    return conv3x3(*arguments, **options)


def result(case: Case, n: int, h: int, w: int) -> tuple[int, int, int, int]:
    """Shape of the sum that is kept."""
    scale = case.shuffle * (1 + case.doubled)
    return n, case.c // case.shuffle**2, h * scale, w * scale


def values(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal bfloat16 values between NaN."""
    return guarded(shape, torch.bfloat16)[0].copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def image(shape: tuple[int, ...], seed: int) -> Tensor:
    """The same in channels-last memory."""
    n, c, h, w = shape
    return last((n, c, h, w), torch.bfloat16).copy_(values(shape, seed))


def inputs(case: Case, n: int, h: int, w: int) -> dict[str, Any]:
    """Arguments of `conv3x3`, all between NaN, for a product of h x w pixels a sample."""
    cx, c, before = case.cx, case.c, case.stride * case.unshuffle
    weight = image((c, cx, 3, 3), 1).mul_((9 * cx) ** -0.5)
    rest = norm = None
    shape = result(case, n, h, w)
    if case.rest < 0:
        rest = Rest(image(shape, 2))
    elif case.rest:
        skip = image((c, case.rest, 1, 1), 3).mul_(case.rest**-0.5)
        rest = Rest(image((n, case.rest, *shape[2:]), 4), skip, values((c,), 5))
    if case.norm:
        film = values((n if case.film > 1 else 1, 2 * c), 6) if case.film else None
        norm = Norm(values((c,), 7), values((c,), 8), film)
    return {
        "x": image((n, cx // case.unshuffle**2, h * before, w * before), 9),
        "weight": upsampling_weight(weight) if case.doubled else weight,
        "bias": values((c,), 10), "rest": rest, "norm": norm,
        "stride": case.stride, "unshuffle": case.unshuffle, "shuffle": case.shuffle, "keep": case.keep,
    }  # fmt: skip


def changed(given: dict[str, Any], change: Any) -> dict[str, Any]:
    """Apply a function to every tensor."""

    def of(value):
        if isinstance(value, Tensor):
            return change(value)
        return type(value)(*map(of, value)) if isinstance(value, Rest | Norm) else value

    return {name: of(value) for name, value in given.items()}


def some_of(given: dict[str, Any], part: Any) -> dict[str, Any]:
    """Take a part of what belongs to samples and pixels."""
    rest, norm = given["rest"], given["norm"]
    if rest is not None:
        rest = rest._replace(x=part(rest.x))
    if norm is not None and norm.film is not None and len(norm.film) > 1:
        norm = norm._replace(film=part(norm.film))
    return given | {"x": part(given["x"]), "rest": rest, "norm": norm}


def of_magnitudes(given: dict[str, Any]) -> Tensor:
    """The sums of the magnitudes of all terms, in float32."""
    magnitudes = changed(given, lambda tensor: tensor.float().abs()) | {"norm": None, "keep": True}
    found: Tensor = convolve(**magnitudes, impl="naive")[0]
    return found


@pytest.mark.parametrize("size", [(2, 5, 9), (3, 1, 3), (1, 13, 17)], ids=str)
@every_case
def test_interpreted_triton_is_half_a_unit_from_naive_in_float32_between_nan(case, size):
    given = inputs(case, *size)
    expected, expected_a = convolve(**changed(given, Tensor.float), impl="naive")
    with guarded_results(result(case, *size), case.keep + case.norm):
        found, found_a = convolve(**given, impl="triton")
    assert (found is not None, found_a is not None) == (case.keep, case.norm)
    if case.keep:
        assert found.shape == expected.shape and found.dtype == torch.bfloat16
        tolerance = unit_in_the_last_place(expected) / 2 + 2**-20 * of_magnitudes(given)
        assert ((found.float() - expected).abs() <= tolerance).all()
    if case.norm:
        assert found_a.is_contiguous(memory_format=torch.channels_last)
        tolerance = unit_in_the_last_place(expected_a) / 2 + 1e-6 * expected_a.abs().amax()
        assert ((found_a.float() - expected_a).abs() <= tolerance).all()


@every_case
def test_a_sample_has_the_same_bits_in_every_batch(case):
    given = inputs(case, 64, 2, 3)
    whole = convolve(**given, impl="triton")
    for batch in (1, 3, 16):
        few = some_of(given, lambda tensor, batch=batch: tensor[64 - batch :])
        for found, expected in zip(convolve(**few, impl="triton"), whole, strict=True):
            assert expected is None or torch.equal(bits(found), bits(expected[64 - batch :]))


@every_case
def test_a_pixel_has_the_same_bits_in_every_window_where_it_sees_no_border(case):
    size = (2, 6, 11)
    given, scale = inputs(case, *size), case.shuffle * (1 + case.doubled)

    def cut(tensor: Tensor) -> Tensor:
        if tensor.ndim != 4:
            return tensor
        high, wide = (tensor.shape[i] // size[i - 1] for i in (2, 3))
        return tensor[..., high : 6 * high, 3 * wide : 8 * wide]

    whole, cropped = convolve(**given, impl="triton"), convolve(**some_of(given, cut), impl="triton")
    for found, expected in zip(cropped, whole, strict=True):
        if expected is not None:  # the crop ends where the window does
            inner = found[..., scale:, scale:-scale]
            assert torch.equal(bits(inner), bits(expected[..., 2 * scale :, 4 * scale : 7 * scale]))


def test_channels_of_wider_pixels_are_read_and_written_in_place():
    given = inputs(CASES["second of a block"], 2, 3, 5)
    expected, expected_a = convolve(**given, impl="triton")
    wide_x, wide_rest, wide_out = (last((2, 96, 3, 5), torch.bfloat16) for _ in range(3))
    given["x"], given["rest"] = wide_x[:, 64:].copy_(given["x"]), Rest(wide_rest[:, :32].copy_(given["rest"].x))
    found, found_a = convolve(**given, out=wide_out[:, 32:64], impl="triton")
    assert found.data_ptr() == wide_out[:, 32:].data_ptr()
    assert torch.equal(bits(wide_out[:, 32:64]), bits(expected)) and torch.equal(bits(found_a), bits(expected_a))
    assert wide_out[:, :32].isnan().all() and wide_out[:, 64:].isnan().all()


def test_any_layout_has_the_bits_of_channels_last_memory():
    given = inputs(CASES["first of a block, film of each sample"], 3, 3, 5)
    _, expected = convolve(**given, impl="triton")
    wide = [last((3, 168, 3, 5), torch.bfloat16) for _ in range(2)]
    planar = {"x": given["x"].contiguous(), "weight": given["weight"].contiguous()}
    for change in (planar, {"x": wide[0][:, 1:97].copy_(given["x"])}, {"x": wide[1][:, 4:100].copy_(given["x"])}):
        assert torch.equal(bits(convolve(**given | change, impl="triton")[1]), bits(expected))
    norm = given["norm"]
    film = torch.zeros(3, 67, dtype=torch.bfloat16)[:, 3:].copy_(norm.film)
    gaps = torch.stack([norm.weight, norm.bias], 1)
    moved = Norm(gaps[:, 0], gaps[:, 1], film)
    assert torch.equal(bits(convolve(**given | {"norm": moved}, impl="triton")[1]), bits(expected))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 6)], ids=str)
def test_the_weight_of_upsampling_is_that_of_a_convolution_after_doubling(size):
    x, weight, bias = torch.randn(2, 5, *size), torch.randn(7, 5, 3, 3), torch.randn(7)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    found, _ = convolve(x, upsampling_weight(weight), bias, impl="naive")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    rounded = upsampling_weight(weight.bfloat16())
    exact = upsampling_weight(weight.bfloat16().float())
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, exact.bfloat16())


@every_case
def test_naive_is_the_networks_own_operations(case):
    given = changed(inputs(case, 2, 3, 5) | {"keep": True}, Tensor.float)
    x, rest, norm = given["x"], given["rest"], given["norm"]
    weight = image((case.c, case.cx, 3, 3), 1).mul_((9 * case.cx) ** -0.5).float()
    x = F.interpolate(x, scale_factor=2.0) if case.doubled else F.pixel_unshuffle(x, case.unshuffle)
    expected = F.conv2d(x, weight, given["bias"], case.stride, padding=1)
    if rest is not None:
        expected = expected + (rest.x if rest.weight is None else F.conv2d(rest.x, rest.weight, rest.bias))
    found, found_a = convolve(**given, impl="naive")
    # sums of four rounded weights are rounded again
    torch.testing.assert_close(
        F.pixel_unshuffle(found, case.shuffle), expected, rtol=1e-4, atol=0.02 if case.doubled else 1e-5
    )
    if norm is not None:
        normal = F.layer_norm(found.movedim(1, -1), (case.c,), norm.weight, norm.bias).movedim(-1, 1)
        if norm.film is not None:
            scale, shift = norm.film[:, :, None, None].chunk(2, dim=1)
            normal = normal * (1 + scale) + shift
        torch.testing.assert_close(found_a, F.silu(normal))


def test_nan_reaches_its_neighbours_alone():
    given = inputs(CASES["second of a block"], 2, 5, 7)
    clean, _ = convolve(**given, impl="triton")
    given["x"][1, 3, 2, 4] = torch.nan
    found, found_a = convolve(**given, impl="triton")
    lost = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    lost[1, :, 1:4, 3:6] = True
    assert torch.equal(found.isnan(), lost.expand_as(found)) and torch.equal(found_a.isnan(), found.isnan())
    assert torch.equal(found.where(~lost, 0), clean.where(~lost, 0))


def test_widths_that_no_program_can_hold_or_normalise_are_refused():
    for case in (Case(16, 48), Case(16, 256, norm=False), Case(16, 32, rest=40)):
        with pytest.raises(ValueError, match=r"48 output|256 output|rest\.x has 40 channels"):
            convolve(**inputs(case, 1, 2, 2), impl="triton")


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_no_sample_gives_no_result(impl):
    given = inputs(CASES["second of a block"], 2, 3, 5)
    found, found_a = convolve(**some_of(given, lambda tensor: tensor[:0]), impl=impl)
    assert found.shape == found_a.shape == (0, 32, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 16, 3, 5)}, "weight has shape [32, 32, 3, 3] but must be (32, 16, 3, 3) or"),
        ({"weight": torch.zeros(32, 32, 5, 5)}, "weight [32, 32, 5, 5] but must be [N, Cx, H, W] and [C, Cx, 3, 3]"),
        ({"bias": torch.zeros(16)}, "bias has shape [16] but must be (32,)"),
        ({"rest": Rest(torch.zeros(2, 32, 3, 4))}, "rest.x has shape [2, 32, 3, 4] but must be (2, 32, 3, 5)"),
        ({"norm": Norm(torch.ones(32), torch.zeros(16))}, "norm.bias has shape [16] but must be (32,)"),
        ({"rest": Rest(torch.zeros(2, 8, 3, 5), torch.zeros(32, 8, 1, 1))}, "rest has a weight without a bias"),
        ({"out": torch.zeros(2, 32, 3, 4)}, "out has shape [2, 32, 3, 4] but must be (2, 32, 3, 5)"),
        ({"stride": 2, "weight": torch.zeros(4, 32, 32, 2, 2)}, "stride is 2 but weight, of shape [4, 32, 32, 2, 2],"),
        ({"bias": torch.zeros(32)}, "bias is torch.float32 but the fused kernel needs bfloat16"),
        ({"bias": torch.zeros(32, device="meta")}, "bias is on meta but x on cpu"),
        ({"stride": 2}, "x has shape [2, 32, 3, 5] but its sides must be multiples of 2"),
        ({"shuffle": 2}, "shuffle is 2, which needs no norm"),
        ({"out": torch.zeros(2, 32, 3, 5).bfloat16()}, "out has strides (480, 15, 5, 1) but must be channels-last"),
        ({"impl": "fast"}, "impl is 'fast' but must be one of"),
    ],
)
def test_a_wrong_request_is_refused_with_both_values(change, message):
    right = inputs(CASES["second of a block"], 2, 3, 5) | {"impl": "triton"}
    with pytest.raises(ValueError) as refused:
        convolve(**right | change)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_gradient_is_refused_where_triton_is_asked_for():
    given = inputs(CASES["second of a block"], 2, 3, 5)
    given["bias"].requires_grad_()
    with pytest.raises(ValueError, match=r"a gradient is wanted of bias; use impl='naive', or torch\.no_grad\(\)"):
        convolve(**given, impl="triton")
    with torch.no_grad():
        assert convolve(**given, impl="triton")[0].isfinite().all()
