from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.stats
import torch

from surveybridge.kernels.sky_noise import SkyNoise, naive, sky_noise
from surveybridge.kernels.sky_noise.naive import philox4x32

MASK = 0xFFFFFFFF
ODD = (3, 23, 41)


def philox_of_the_paper(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Salmon et al. 2011, section 3.3, in Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def numpy_normals(words: np.ndarray) -> np.ndarray:
    """The portable Box-Muller of words [4, P] in NumPy's float32, written once more from its definition."""
    f32 = np.float32
    deviates = []
    for w_r, w_a in (words[:2], words[2:]):
        u = (w_r >> 9).astype(f32) * f32(2**-23) + f32(2**-24)
        mantissa, exponent = np.frexp(u)
        low = mantissa < np.array(naive.SQRT_HALF_BITS, np.int32).view(f32)
        f = np.where(low, mantissa * f32(2), mantissa) - f32(1)
        e = (exponent - low).astype(f32)
        tail = horner(f, naive.LOG_POLY) * f * (f * f)
        log = tail + e * f32(naive.LN2_LO) + f * f * f32(-0.5) + f + e * f32(naive.LN2_HI)
        radius = np.sqrt(log * f32(-2))
        a = (((w_a >> 7) & 0x7FFFFF).astype(f32) * f32(2**-23) - f32(0.5 - 2**-24)) * f32(np.pi / 2)
        sine = horner(a * a, naive.SIN_POLY) * (a * a) * a + a
        cosine = horner(a * a, naive.COS_POLY) * (a * a) * (a * a) + a * a * f32(-0.5) + f32(1)
        along = np.where(w_a >> 30 & 1, -cosine, cosine) * radius
        across = sine * radius
        swap = w_a >> 31 == 1
        deviates += [np.where(swap, across, along), np.where(swap, along, across)]
    return np.stack(deviates)


def horner(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    y = np.float32(coefficients[0]) * x
    for coefficient in coefficients[1:-1]:
        y = (y + np.float32(coefficient)) * x
    return y + np.float32(coefficients[-1])


def box_muller_float64(words: np.ndarray) -> np.ndarray:
    """What the portable transform approximates, by NumPy's own log, sin and cos in float64."""
    deviates = []
    for w_r, w_a in (words[:2], words[2:]):
        radius = np.sqrt(-2 * np.log(((w_r >> 9) + 0.5) / 2**23))
        a = (((w_a >> 7 & 0x7FFFFF) + 0.5) / 2**23 - 0.5) * np.pi / 2
        along, across = radius * np.cos(a) * (1 - 2.0 * (w_a >> 30 & 1)), radius * np.sin(a)
        swap = w_a >> 31 == 1
        deviates += [np.where(swap, across, along), np.where(swap, along, across)]
    return np.stack(deviates)


def windows(*corners: tuple[int, int], seed: int = 11, stream: int = 0, sample: int | list[int] = 0) -> SkyNoise:
    samples = torch.tensor([sample] * len(corners) if isinstance(sample, int) else sample)
    y0, x0 = torch.tensor(corners).T
    return SkyNoise(seed, stream, samples, y0, x0)


WILD = SkyNoise(
    0xFEDCBA9876543210,
    0xDEADBEEF,
    torch.tensor([0, 65535, 30000]),
    torch.tensor([0, -7, 2**31 - 10]),
    torch.tensor([-3, 2**31 - 1, 2**40 + 7]),
)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123 1.14, philox4x32-10
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    c, k, known = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert philox_of_the_paper(tuple(c), (k[0], k[1])) == tuple(known)
    c0, c1, c2, c3 = (torch.tensor([word]) for word in c)
    assert [int(word) for word in philox4x32((c0, c1, c2, c3), (k[0], k[1]))] == known
    assert [int(word) for word in philox4x32((c0, c1, c2, c3), (k[0], k[1]), pairs=1)] == known[:2]


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_key_and_counter_are_seed_pixel_step_sample_and_stream(impl):
    step, (bands, height, width) = 40000, ODD
    z = sky_noise(WILD, step, ODD, impl=impl)
    key = WILD.seed & MASK, WILD.seed >> 32
    for i_n, y, x in product(range(3), (0, 9, height - 1), (0, 30, width - 1)):
        pixel = int(WILD.x0[i_n] + x) % 2**32, int(WILD.y0[i_n] + y) % 2**32
        counter = (*pixel, step | int(WILD.sample[i_n]) << 16, WILD.stream)
        words = np.array(philox_of_the_paper(counter, key))
        expected = numpy_normals(words[:, None])[:bands, 0]
        assert z[i_n, :, y, x].numpy().tobytes() == expected.tobytes(), (i_n, y, x)


@pytest.mark.long
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # by inductor's imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_ten_million_deviates_have_the_same_bits_in_numpy_eager_and_compiled_and_many_interpreted():
    bands, side = 4, 1584
    noise = SkyNoise(0x0123456789ABCDEF, 3, torch.tensor([9]), torch.tensor([-40]), torch.tensor([2**31 - 100]))
    eager = sky_noise(noise, 77, (bands, side, side), impl="naive")[0]
    assert eager.numel() > 10_000_000
    y, x = torch.meshgrid(torch.arange(side) - 40, torch.arange(side) + 2**31 - 100, indexing="ij")
    counter = (x & MASK, y & MASK, torch.full_like(x, 9 << 16 | 77), torch.full_like(x, 3))
    words = torch.stack(philox4x32(counter, (noise.seed & MASK, noise.seed >> 32)))
    in_numpy = numpy_normals(words.flatten(1).numpy())
    assert eager.numpy().tobytes() == in_numpy.tobytes()
    compiled = torch.compile(naive.box_muller, fullgraph=True)
    pairs = [compiled(words[0], words[1]), compiled(words[2], words[3])]
    assert torch.stack([z for pair in pairs for z in pair]).numpy().tobytes() == in_numpy.tobytes()
    rows = 16  # the interpreter takes 17 s for a million deviates
    interpreted = sky_noise(noise, 77, (bands, rows, side), impl="triton")[0]
    assert torch.equal(interpreted.view(torch.int32), eager[:, :rows].contiguous().view(torch.int32))
    assert scipy.stats.kstest(in_numpy.ravel()[::10], "norm").pvalue > 1e-3


def test_portable_box_muller_has_the_same_bits_in_numpy_and_lies_close_to_float64():
    extremes = [0, 1, 2**7 - 1, 2**9, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1, 0xB504F333, 0xB504F400]
    corners = np.array(list(product(extremes, extremes))).T
    random = np.random.default_rng(5).integers(0, 2**32, (4, 1_000_000))
    words = np.concatenate([np.concatenate([corners, corners]), random], axis=1)
    w = torch.from_numpy(words)
    torch_pairs = torch.stack([*naive.box_muller(w[0], w[1]), *naive.box_muller(w[2], w[3])]).numpy()
    assert torch_pairs.tobytes() == numpy_normals(words).tobytes()
    error = np.abs(torch_pairs - box_muller_float64(words))
    print(f"portable Box-Muller: largest error against float64 {error.max():.2e}")
    assert error.max() < 1.6e-6
    assert np.abs(torch_pairs).max() <= np.sqrt(48 * np.log(2))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 23, 41), (2, 5, 513), (3, 23, 41), (4, 16, 32), (5, 9, 13), (9, 4, 7)]
)
def test_interpreted_triton_draws_the_same_bits(shape):
    noise = WILD if shape[0] <= 4 else replace(WILD, stream=0xBEEF)
    naive_z = sky_noise(noise, 7, shape, impl="naive")
    triton_z = sky_noise(noise, 7, shape, impl="triton")
    assert naive_z.shape == (3, *shape)
    assert torch.equal(naive_z.view(torch.int32), triton_z.view(torch.int32))


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_many_bands_are_those_of_few_and_then_of_streams_of_their_own(impl):
    noise = windows((5, 9), (-3, 40), stream=3)
    ten = sky_noise(noise, 2, (10, 16, 16), impl=impl)
    assert torch.equal(ten[:, :4], sky_noise(noise, 2, (4, 16, 16), impl=impl))
    assert torch.equal(ten[:, 4:8], sky_noise(replace(noise, stream=3 + 2**24), 2, (4, 16, 16), impl=impl))
    assert torch.equal(ten[:, 8:], sky_noise(replace(noise, stream=3 + 2**25), 2, (2, 16, 16), impl=impl))
    correlation = np.corrcoef(ten.transpose(0, 1).flatten(1).numpy()) - np.eye(10)
    assert np.abs(correlation).max() < 0.2


@pytest.mark.parametrize("impl", ["naive", "triton"])
def test_overlapping_windows_share_their_noise_bit_for_bit(impl):
    z = sky_noise(windows((100, 200), (110, 195)), 3, ODD, impl=impl)
    assert torch.equal(z[0, :, 10:, : 41 - 5], z[1, :, : 23 - 10, 5:])


def test_a_window_is_a_cut_of_the_whole_tile():
    tile = sky_noise(windows((-50, -60)), 3, (4, 300, 301))
    cut = sky_noise(windows((70, 77)), 3, (4, 64, 64))
    assert torch.equal(tile[0, :, 120:184, 137:201], cut[0])


def test_pixels_wrap_modulo_2_to_the_32():
    corners = windows((2**32 - 5, -8), (-5, 2**32 - 8), (2**33 - 5, -8 - 2**32))
    for impl in ("naive", "triton"):
        z = sky_noise(corners, 3, (2, 11, 17), impl=impl)
        assert torch.equal(z[0], z[1])
        assert torch.equal(z[0], z[2])
    assert torch.equal(z[0, :, 5:, 8:], sky_noise(windows((0, 0)), 3, (2, 6, 9))[0])


def test_batch_order_and_batch_size_change_nothing():
    noise = windows((0, 0), (5, 900), (77, -3), sample=[4, 0, 9])
    z = sky_noise(noise, 12, ODD)
    for i in range(3):
        alone = SkyNoise(11, 0, noise.sample[i : i + 1], noise.y0[i : i + 1], noise.x0[i : i + 1])
        assert torch.equal(sky_noise(alone, 12, ODD)[0], z[i])


@pytest.mark.parametrize("chunk", [16, 41 * 10, 41 * 23 * 2])
def test_the_size_of_a_chunk_changes_nothing(chunk, monkeypatch):
    direct = sky_noise(WILD, 1, ODD)
    monkeypatch.setattr(naive, "_CHUNK", chunk)
    assert len(list(naive._chunks(3 * 23, 41))) > 1
    assert torch.equal(sky_noise(WILD, 1, ODD), direct)


def test_fewer_bands_are_the_first_of_more():
    four = sky_noise(WILD, 1, (4, 23, 41))
    for bands in (1, 2, 3):
        assert torch.equal(sky_noise(WILD, 1, (bands, 23, 41)), four[:, :bands])


@pytest.mark.parametrize("change", [{"seed": 12}, {"seed": 11 + 2**32}, {"stream": 1}, {"sample": 1}, {"step": 1}])
def test_another_seed_stream_sample_or_step_is_another_field(change):
    def draw(step: int = 0, **kwargs: int) -> torch.Tensor:
        return sky_noise(windows((0, 0), **kwargs), step, (4, 128, 128)).flatten()

    a, b = draw(), draw(**change)
    assert (a == b).float().mean() < 1e-4
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 4 / a.numel() ** 0.5


def test_empty_requests_give_empty_results():
    for impl in ("naive", "triton"):
        assert sky_noise(windows((0, 0)), 0, (2, 0, 5), impl=impl).shape == (1, 2, 0, 5)
        none = torch.empty(0, dtype=torch.int32)
        assert sky_noise(SkyNoise(1, 0, none, none, none), 0, (2, 4, 5), impl=impl).shape == (0, 2, 4, 5)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: sky_noise(WILD, 65536, ODD), "step is 65536 but must be in [0, 65536)"),
        (lambda: sky_noise(WILD, -1, ODD), "step is -1 but"),
        (lambda: sky_noise(WILD, 0, (1025, 8, 8)), "1025 bands but a stream has 1024"),
        (lambda: sky_noise(replace(WILD, stream=2**24), 0, (5, 8, 8)), "5 bands of stream 16777216, but only streams"),
        (lambda: sky_noise(WILD, 0, (1, -8, 8)), "shape is (1, -8, 8)"),
        (
            lambda: sky_noise(WILD, 0, ODD, impl="cuda"),  # type: ignore[arg-type]
            "impl is 'cuda' but must be one of 'auto', 'naive', 'triton'",
        ),
        (lambda: windows((0, 0), sample=65536), "sample spans 65536 to 65536 but must be in [0, 65536)"),
        (lambda: windows((0, 0), sample=-1), "sample spans -1 to -1"),
        (lambda: windows((0, 0), seed=2**64), f"seed is {2**64} but must be in [0, 2^64)"),
        (lambda: windows((0, 0), stream=-1), "stream is -1 but must be in [0, 2^32)"),
        (lambda: windows((0, 0), sample=[1, 2]), "y0 is torch.int64 [1] but must be an integer [N] with N = 2"),
        (lambda: SkyNoise(0, 0, torch.zeros(1), torch.zeros(1), torch.zeros(1)), "sample is torch.float32 [1] but"),
    ],
)
def test_a_request_out_of_range_is_refused_with_both_numbers(request_, message):
    with pytest.raises(ValueError) as refused:
        request_()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
