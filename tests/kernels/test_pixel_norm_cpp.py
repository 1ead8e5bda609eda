"""The C++ norm of CPUs: the bits of plain torch, which is taken where the library is absent or for another torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.kernels.pixel_norm import build, cpp, pixel_norm_silu
from tests.conftest import ROOT

pytestmark = pytest.mark.long

CHANNELS = (4, 8, 16, 32, 48, 128, 192, 256, 512)
NEEDS = "needs a C++ compiler and a processor with AVX2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where this module's library was built; the modules of a process share the first that is loaded."""
    if shutil.which(os.environ.get("CXX", "c++")) is None or torch.backends.cpu.get_cpu_capability() not in build.FLAGS:
        pytest.skip(NEEDS)
    into = tmp_path_factory.mktemp("norm")
    build.build(into)
    return into


@pytest.fixture
def there(folder, monkeypatch) -> Iterator[None]:
    """The library is found and loaded."""
    found = cpp.library(folder)
    monkeypatch.setattr(cpp, "library", lambda: found)
    monkeypatch.delenv(cpp.SWITCH, raising=False)
    cpp.loaded.cache_clear()
    assert cpp.loaded()
    with torch.inference_mode():
        yield
    cpp.loaded.cache_clear()


@pytest.fixture
def calls(monkeypatch) -> list[torch.dtype]:
    """The types of what the C++ operator was called with."""
    made, real = list[torch.dtype](), cpp.pixel_norm_silu_cpp

    def counted(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None) -> Tensor:
        made.append(x.dtype)
        return real(x, weight, bias, film)

    monkeypatch.setattr(cpp, "pixel_norm_silu_cpp", counted)
    return made


def inputs(
    n: int, c: int, h: int, w: int, dtype: torch.dtype, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(c)
    bright = 10 ** (4 * torch.rand((n, 1, h, w), generator=generator) - 2)
    x = (torch.randn((n, c, h, w), generator=generator) + 0.5) * bright
    weight, bias = (torch.randn(c, generator=generator).to(dtype) for _ in range(2))
    film = torch.randn((rows, 2 * c), generator=generator).to(dtype) if rows else None
    return x.to(dtype).contiguous(memory_format=torch.channels_last), weight, bias, film


def same(found: Tensor, wanted: Tensor) -> bool:
    """Whether all bits but the payload of NaN are equal, and the memory lies alike."""
    kind = torch.int16 if found.dtype == torch.bfloat16 else torch.int32
    equal = found.contiguous().view(kind) == wanted.contiguous().view(kind)
    return found.stride() == wanted.stride() and bool((equal | (found.isnan() & wanted.isnan())).all())


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_bits_are_those_of_plain_torch_on_one_thread_and_on_two(dtype, channels, there, calls):
    shapes = [(1, 1, 1), (1, 5, 3), (2, 7, 9), (3, 33, 31), (5, 32, 16)]
    if channels <= 16:
        shapes.append((4, 64, 64))  # of which two threads take a share, as of wider pixels in the one before
    before = torch.get_num_threads()
    try:
        for n, h, w in shapes:
            x, weight, bias, each = inputs(n, channels, h, w, dtype, n)
            assert each is not None
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for film in (None, each[:1], each)[: 2 + (n > 1)]:
                    given = (x, weight, bias, film)
                    assert same(pixel_norm_silu(*given), pixel_norm_silu(*given, impl="naive")), (n, h, w, threads)
    finally:
        torch.set_num_threads(before)
    lanes = cpp.LANES[dtype]
    assert bool(calls) == (channels % lanes == 0 and channels <= 32 * lanes)
    if dtype == torch.bfloat16 and calls:
        # every shape and film, on each number of threads; in float32 not those that end within a vector
        assert len(calls) == 2 * sum(2 + (n > 1) for n, _, _ in shapes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_extreme_pixels_have_the_bits_of_plain_torch(dtype, rows, there, calls):
    x, weight, bias, film = inputs(3, 32, 8, 8, dtype, rows)
    x[0, :, 0] *= 1e4
    x[0, :, 1] *= 1e-6
    x[0, :, 2] = 3.25
    x[0, :, 3] = 0
    x[0, :, 4] = -0.0
    x[1, 5, 0, 0] = torch.nan
    x[1, 5, 0, 1] = torch.inf
    x[1, 5, 0, 2] = -torch.inf
    x[1, :, 0, 3] = torch.inf
    x[1, :, 1] *= 1e30
    x[1, :, 2] *= 1e-38
    x[2, 7, 0] = torch.finfo(dtype).max
    weight[:4] = torch.tensor([0, -0.0, 1e30, -1e30])
    bias[4:8] = torch.tensor([0, -0.0, 200, -200])
    found, wanted = pixel_norm_silu(x, weight, bias, film), pixel_norm_silu(x, weight, bias, film, impl="naive")
    assert len(calls) == 1 and same(found, wanted)
    assert wanted.isnan().any() and wanted.isfinite().any()


def test_every_bfloat16_is_activated_as_torch_does(there):
    x = torch.zeros(1, 512, 1, 1, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    every = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    for bias in every.view(-1, 512):
        assert same(pixel_norm_silu(x, bias, bias, impl="cpp"), pixel_norm_silu(x, bias, bias, impl="naive"))


def test_bits_depend_neither_on_the_batch_nor_on_the_window(there, calls):
    x, weight, bias, film = inputs(5, 48, 9, 7, torch.bfloat16, 5)
    assert film is not None
    whole = pixel_norm_silu(x, weight, bias, film)
    one = pixel_norm_silu(x[3:4], weight, bias, film[3:4])
    cropped = x[3:4, :, 2:5, 1:6].contiguous(memory_format=torch.channels_last)
    assert torch.equal(one, whole[3:4])
    assert torch.equal(pixel_norm_silu(cropped, weight, bias, film[3:4]), whole[3:4, :, 2:5, 1:6])
    assert len(calls) == 3


@pytest.mark.parametrize(("precision", "norms"), [("bfloat16", 29), ("float32", 28)])  # its first image is planar
def test_a_network_takes_it_everywhere_and_has_the_same_bits(precision, norms, there, calls, monkeypatch):
    model = load_checkpoint("mosaic-v3").to("cpu", precision)
    x1, state = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    direction = model.card.problem.directions[-1]

    def evaluate() -> Tensor:
        predictor = model.predictor(x1, direction, [100], precision)
        predictor.input.copy_(state)
        return predictor(0, state)

    found = evaluate()
    assert len(calls) == norms
    monkeypatch.setenv(cpp.SWITCH, "0")
    cpp.loaded.cache_clear()
    assert torch.equal(found, evaluate())
    assert len(calls) == norms


def test_what_it_cannot_do_is_left_to_plain_torch(there, calls):
    x, weight, bias, film = inputs(2, 32, 8, 8, torch.bfloat16, 2)
    assert film is not None
    planar = x.contiguous()
    wide = pixel_norm_silu(x, weight, bias, film.float())
    assert wide.dtype == torch.float32
    pixel_norm_silu(planar, weight, bias, film)
    pixel_norm_silu(x, weight, bias, film, impl="naive")
    with torch.autocast("cpu", torch.bfloat16):
        pixel_norm_silu(x, weight, bias, film)
    with torch.inference_mode(False):
        learnt = torch.ones(32, dtype=torch.bfloat16, requires_grad=True)
        assert pixel_norm_silu(x.clone(), learnt, torch.zeros(32, dtype=torch.bfloat16)).requires_grad
        with pytest.raises(ValueError, match="impl is 'cpp' but a gradient is wanted"):
            pixel_norm_silu(x.clone(), learnt, torch.zeros(32, dtype=torch.bfloat16), impl="cpp")
    assert calls == []
    with pytest.raises(ValueError, match="impl is 'cpp' but x is not dense channels-last memory; use impl='auto'"):
        pixel_norm_silu(planar, weight, bias, film, impl="cpp")
    meta = [tensor.to("meta") for tensor in (x, weight, bias, film)]
    assert pixel_norm_silu(*meta).shape == x.shape
    assert calls == []


def test_weights_in_float32_are_rounded_as_plain_torch_rounds_them(there, calls):
    x, weight, bias, _ = inputs(2, 32, 8, 8, torch.bfloat16, 0)
    weight, bias = weight.float() + 1e-3, bias.float()
    found = pixel_norm_silu(x, weight, bias)
    assert same(found, pixel_norm_silu(x, weight, bias, impl="naive")) and len(calls) == 1


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder in which the library is looked for."""
    real = cpp.library
    monkeypatch.setattr(cpp, "library", lambda: real(tmp_path))
    monkeypatch.delenv(cpp.SWITCH, raising=False)
    cpp.loaded.cache_clear()
    yield tmp_path
    cpp.loaded.cache_clear()


@pytest.mark.parametrize("change", ["torch", "processor", "source"])
def test_a_library_for_something_else_is_ignored(change, folder, empty, monkeypatch, tmp_path_factory):
    shutil.copy(next(folder.glob("*.so")), empty)
    assert cpp.library().is_file()
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99.0")
    elif change == "processor":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    else:
        other = tmp_path_factory.mktemp("other") / "cpu.cpp"
        other.write_text("// another")
        monkeypatch.setattr(cpp, "SOURCE", other)
    assert not cpp.loaded()


def test_importing_the_kernel_loads_no_library_and_a_broken_one_is_ignored(empty):
    cpp.library().write_bytes(b"no library")
    code = f"""
from pathlib import Path
from surveybridge.kernels.pixel_norm import cpp
print(cpp.loaded.cache_info().misses)
found = Path({str(cpp.library())!r})
cpp.library = lambda: found
print(cpp.loaded())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\nFalse\n"


def test_the_switch_takes_plain_torch(there, monkeypatch):
    monkeypatch.setenv(cpp.SWITCH, "0")
    cpp.loaded.cache_clear()
    x, weight, bias, _ = inputs(1, 32, 8, 8, torch.bfloat16, 0)
    assert cpp.refusal(x, None) == "there is no library for this torch and processor"
    assert same(pixel_norm_silu(x, weight, bias), pixel_norm_silu(x, weight, bias, impl="naive"))


def test_without_a_compiler_the_build_says_so_and_plain_torch_is_taken(empty, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "argv", ["build"])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert build.main() == 0
    assert capsys.readouterr().out == (
        "norm of CPUs: not built, plain torch computes it: there is no C++ compiler (c++) on the PATH\n"
    )
    with torch.inference_mode():
        given = inputs(1, 32, 8, 8, torch.bfloat16, 1)
        assert same(pixel_norm_silu(*given), pixel_norm_silu(*given, impl="naive"))


def test_a_build_that_fails_or_is_wrong_leaves_nothing(folder, empty, monkeypatch, tmp_path_factory):
    with pytest.raises(build.BuildError, match="is not writable"):
        build.build(empty / "absent")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    with pytest.raises(build.BuildError, match="torch finds SVE256 on this processor, not AVX2 or AVX512"):
        build.build(empty)
    monkeypatch.undo()
    monkeypatch.setattr(build, "command", lambda compiler, capability, out: [compiler, str(empty / "absent.cpp")])
    with pytest.raises(build.BuildError, match=r"the compiler failed \(exit code 1: .*absent.cpp"):
        build.build(empty)
    library = next(folder.glob("*.so"))
    broken = "import shutil, sys; open(sys.argv[1], 'w')"
    monkeypatch.setattr(build, "command", lambda compiler, capability, out: [sys.executable, "-c", broken, str(out)])
    with pytest.raises(build.BuildError, match="its bits are not those of plain torch"):
        build.build(empty)
    assert library.is_file() and not list(empty.iterdir())
