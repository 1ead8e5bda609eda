"""Checks of a machine before a run: installed versions, processor, memory, disk and GPU."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OPTIONAL = ("sim", "hips", "cosmic-rays")
"""Extras of the package, which only some commands need."""

NVIDIA_DRIVER = Path("/dev/nvidiactl")

SHARED_MEMORY_GIB = 2.0
"""With less shared memory, Ray keeps its objects on disk; containers have 64 MiB by default."""

Status = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """The result of a check: ``failed`` must be repaired; a ``note`` says that something is absent or may be slow."""

    check: str
    status: Status
    message: str
    remedy: str = ""


# -- what is installed --


def check_python(needs: str = ">=3.11,<3.14") -> Iterator[Finding]:
    """Check that Python's version is within the bounds of the package."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    if version in SpecifierSet(needs):
        yield Finding("python", "ok", f"{version} on {platform.platform(terse=True)}, {sys.executable}")
    else:
        yield Finding(
            "python", "failed", f"{version}, but surveybridge needs {needs}", "make a new environment with that Python"
        )


def check_packages(requirements: Sequence[str] | None = None) -> Iterator[Finding]:
    """Check that all requirements are installed, in versions that the package accepts.

    Parameters
    ----------
    requirements
        Lines as in a requirements file; by default those of the package, extras included.
    """
    from packaging.requirements import Requirement

    if requirements is None:
        try:
            requirements = importlib.metadata.requires("surveybridge") or ()
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "packages", "failed", "surveybridge itself is not installed", "pip install -c constraints.txt ."
            )
            return
    fine, absent = [], dict[str, list[str]]()
    for requirement in map(Requirement, requirements):
        extra = next((name for name in OPTIONAL if requirement.marker and f'"{name}"' in str(requirement.marker)), "")
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue  # another platform's, or of the dev extra
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if extra:
                absent.setdefault(extra, []).append(requirement.name)
            else:
                yield Finding("packages", "failed", f"{requirement.name} is not installed", _pip(str(requirement)))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fine.append(f"{requirement.name} {version}")
        else:
            message = f"{requirement.name} {version} is installed, but {requirement.specifier} is needed"
            yield Finding("packages", "failed", message, _pip(str(requirement)))
    for extra, names in absent.items():
        yield Finding(
            "packages", "note", f"{', '.join(names)} not installed (extra {extra})", _pip(f"surveybridge[{extra}]")
        )
    if fine:
        yield Finding("packages", "ok", ", ".join(fine))


def _pip(what: str) -> str:
    return f"pip install -c constraints.txt '{what.split(';')[0].strip()}'"


# -- the machine --


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    """Report the processor's cores, and its instructions for bfloat16, the arithmetic of the networks."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    fast = sorted(flags & {"amx_bf16", "avx512_bf16", "bf16"})
    name = facts.get("model name", platform.machine())
    instructions = f"bfloat16 by {', '.join(fast)}" if fast else "no instructions for bfloat16"
    what = f"{len(os.sched_getaffinity(0))} cores of {name}, {instructions}"
    if fast:
        yield Finding("processor", "ok", what)
    else:
        remedy = "expect networks to be slow: sums of bfloat16 are of float32, and --precision float32 takes as long"
        yield Finding("processor", "note", what, remedy)


def check_norm() -> Iterator[Finding]:
    """Report whether networks take the C++ norm on this processor, which has the bits of plain torch."""
    from surveybridge.bridge_core.network import fused_on_cpu

    if fused_on_cpu():
        yield Finding("norm", "ok", "norm, FiLM and SiLU are one pass of C++ on the processor, with the bits of torch")
    else:
        message = "norm, FiLM and SiLU are plain torch on the processor: the same bits, but about a fifth slower"
        yield Finding("norm", "note", message, "python -m surveybridge.kernels.pixel_norm.build, with a C++ compiler")


def described_machine() -> dict[str, str | float | None]:
    """Describe this machine and its software, to be kept next to numbers that were measured on it."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("surveybridge", "torch", "numpy")}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": next(check_processor()).message,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg()[0],  # if it is far above the measured load, others were at work, too
        "python": platform.python_version(),
        **versions,
    }


def check_gpu(driver: Path = NVIDIA_DRIVER) -> Iterator[Finding]:
    """Check that torch sees the GPU, if there is one, and that Triton's kernels give the right bits on it."""
    import torch

    if not torch.cuda.is_available():
        if driver.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            message = f"{driver} exists, but torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU"
            yield Finding("gpu", "failed", message, "install a torch whose CUDA the driver supports (see nvidia-smi)")
        else:
            yield Finding("gpu", "ok", "none here; networks run on the processor")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        size = f"{facts.total_memory / 2**30:.0f} GiB, compute {facts.major}.{facts.minor}"
        yield Finding("gpu", "ok", f"{facts.name}, {size}, torch {torch.__version__} with CUDA {torch.version.cuda}")
    yield _check_kernels()


def _check_kernels() -> Finding:
    """Check that Triton on the GPU draws the same noise as torch on the CPU, to the bit."""
    import torch

    from surveybridge.bridge_core.sampler import draw, window_noise

    try:
        drawn = [
            draw(
                window_noise(1, 0, [(0, 0), (0, 1)], [(64, 128)], torch.device(device)),
                3,
                torch.empty(2, 3, 64, 64, device=device),
            )
            for device in ("cuda", "cpu")
        ]
    except Exception as error:
        message = f"Triton's kernels do not run ({one_line(error)})"
        return Finding("triton", "failed", message, "pip install -c constraints.txt triton, and install a C compiler")
    if not torch.equal(drawn[0].cpu(), drawn[1]):
        remedy = "results would differ between machines: use the versions of constraints.txt"
        return Finding("triton", "failed", "the noise drawn on the GPU differs from that of the CPU", remedy)
    version = importlib.metadata.version("triton")
    return Finding("triton", "ok", f"{version}; noise on the GPU equals that of the CPU to the bit")


def check_memory(shared: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Check the memory, and the part of it in which Ray's processes share objects."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if not shared.is_dir():
        yield Finding("memory", "ok", f"{size:.0f} GiB")
        return
    room = shutil.disk_usage(shared).total / 2**30
    if room < SHARED_MEMORY_GIB:
        message = f"{size:.0f} GiB, but {shared} has {room:.2f} GiB, below {SHARED_MEMORY_GIB:g}"
        yield Finding("memory", "note", message, "docker run --shm-size=4g (without it, Ray is slow)")
    else:
        yield Finding("memory", "ok", f"{size:.0f} GiB, {room:.0f} GiB of it can be shared in {shared}")


def check_disk(places: Sequence[str], least_gib: float) -> Iterator[Finding]:
    """Check the free space on the disks that a run writes to, each disk once.

    Parameters
    ----------
    places
        Local folders, existing or not.
    least_gib
        Space that must be free, GiB.
    """
    seen = set()
    for place in places:
        folder = existing_folder(place)
        if (device := folder.stat().st_dev) in seen:
            continue
        seen.add(device)
        usage = shutil.disk_usage(folder)
        free, total = usage.free / 2**30, usage.total / 2**30
        if free < least_gib:
            remedy = "free some, or point TMPDIR and RAY_TMPDIR (scratch) and --store, --run (results) to another disk"
            message = f"{place}: {free:.3g} of {total:.3g} GiB are free, below --min-free-gib {least_gib:g}"
            yield Finding("disk", "failed", message, remedy)
        else:
            yield Finding("disk", "ok", f"{place}: {free:.3g} of {total:.3g} GiB are free")


def existing_folder(place: str) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    path = Path(place).absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split()) or type(error).__name__
