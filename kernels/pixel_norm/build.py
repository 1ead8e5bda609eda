"""Compile the norm of CPUs beside its source, for this torch and this processor, if there is a C++ compiler.

    python -m surveybridge.kernels.pixel_norm.build

It takes about 15 seconds and says in one line what it did; whatever is absent, the exit code is 0, because without the
library plain torch computes the same bits. The library is kept only if it gives them in a few comparisons.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from surveybridge.kernels.pixel_norm import cpp
from surveybridge.kernels.pixel_norm.naive import pixel_norm_silu_naive

FLAGS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
}
"""Those with which torch compiles its own operators for a processor."""

PATIENCE_SECONDS = 300


class BuildError(RuntimeError):
    """Why there is no library, in one line."""


def main() -> int:
    """Build beside the source, and say so; with an argument, compare the library at that path and exit with 1 or 0."""
    if len(sys.argv) > 1:
        torch.ops.load_library(sys.argv[1])
        return 0 if same_bits() else 1
    try:
        print(f"norm of CPUs: built {build(cpp.SOURCE.parent)}")
    except BuildError as error:
        print(f"norm of CPUs: not built, plain torch computes it: {error}")
    return 0


def build(folder: Path) -> Path:
    """Compile into a folder, and return the path of the library.

    Raises
    ------
    BuildError
        If the processor is another, the folder is not writable, there is no compiler, it fails, or the bits differ.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in FLAGS:
        raise BuildError(f"torch finds {capability} on this processor, not {' or '.join(FLAGS)}")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise BuildError(f"there is no C++ compiler ({os.environ.get('CXX', 'c++')}) on the PATH")
    try:
        work = tempfile.mkdtemp(prefix=".build-", dir=folder)
    except OSError as error:
        raise BuildError(f"{folder} is not writable ({error.strerror})") from error
    try:
        made = Path(work) / "cpu.so"
        _run(command(compiler, capability, made), "the compiler failed")
        # in a process of its own, which may crash; the package that is compared is this one, wherever that runs
        package = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
        check = [sys.executable, "-m", "surveybridge.kernels.pixel_norm.build", str(made)]
        _run(check, "its bits are not those of plain torch", {**os.environ, "PYTHONPATH": package})
        library = cpp.library(folder)
        for older in folder.glob(library.name.rpartition("-")[0] + "-*.so"):  # of another source
            older.unlink()
        return made.replace(library)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def command(compiler: str, capability: str, out: Path) -> list[str]:
    """Return the command line, with torch's own headers, libraries and ABI; nothing is fused beyond the source."""
    from torch.utils.cpp_extension import include_paths, library_paths  # late: it imports setuptools

    return [
        compiler, "-shared", "-fPIC", "-std=c++20", "-O3", "-DNDEBUG", "-fopenmp",
        "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}", *FLAGS[capability],
        *(f"-isystem{path}" for path in include_paths("cpu")), str(cpp.SOURCE), "-o", str(out),
        *(f"-L{path}" for path in library_paths("cpu")), "-ltorch_cpu", "-lc10",
    ]  # fmt: skip


def same_bits() -> bool:
    """Compare the loaded operator with the naive reference, for the widths, types and FiLM of networks."""
    generator, same = torch.Generator().manual_seed(1), True
    for dtype in cpp.LANES:
        for channels, rows in ((16, 0), (32, 1), (96, 3), (192, 0), (256, 1)):
            shape = (3, channels, 16, 9)
            x = torch.randn(shape, generator=generator) * 10 ** torch.randn((3, 1, 16, 9), generator=generator)
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = (torch.randn(channels, generator=generator).to(dtype) for _ in range(2))
            film = torch.randn((rows, 2 * channels), generator=generator).to(dtype) if rows else None
            with torch.inference_mode():
                found = cpp.pixel_norm_silu_cpp(x, weight, bias, film)
                same &= torch.equal(found, pixel_norm_silu_naive(x, weight, bias, film))
    return same


def _run(line: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{failure} ({type(error).__name__})") from error
    if done.returncode:
        said = next((text for text in done.stderr.splitlines() if "error" in text.lower()), "")
        raise BuildError(f"{failure} (exit code {done.returncode}{': ' if said else ''}{said.strip()})")


if __name__ == "__main__":
    sys.exit(main())
