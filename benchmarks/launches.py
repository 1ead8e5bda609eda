"""What one evaluation of the default network launches on a GPU, and how many bytes that moves: counted without one.

    python -m benchmarks.launches [--windows 512] [--size 64] [--bandwidth 3.35] [--out benchmarks/results]

The network runs on tensors without memory, and every operator that would write some counts as one kernel, which reads
its arguments and writes its result once; a convolution counts as two, because cuDNN adds the bias in a pass of its own.
Weights count too, but are shared by all windows. Caches, and copies that cuDNN makes inside, are left out. The first
row is the network in autocast on CUDA: convolutions and linear layers in bfloat16, norms in float32, casts between. The
last is the path that a GPU takes, with all of its Python up to the launch of each kernel, which is counted instead.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from surveybridge.bridge_core.checkpoint import load_checkpoint
from surveybridge.bridge_core.network import for_bfloat16
from surveybridge.bridge_core.prediction import Predictor
from surveybridge.bridge_core.settings import Precision

WAYS = ("autocast", "typed", "fused", "convolved")
"""In autocast; without; with norm, FiLM and SiLU in a kernel; with convolutions and what follows in one (on CUDA)."""


class Launches(TorchDispatchMode):
    """Counts kernels by operator, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count it unless it is a view or only takes memory."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        # a view, or a conversion of what is right already, shares the memory of an argument
        held = {memory_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        in_place = any(returned.alias_info and returned.alias_info.is_write for returned in func._schema.returns)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and memory_of(leaf) not in held]
        if not name.startswith("empty") and (made or in_place):
            self.add(name, (args, kwargs), out)
            if name == "conv2d" and args[2] is not None:
                self.add("bias", (out, args[2]), out)
        return out

    def add(self, name: str, read: object, written: object) -> None:
        """Count one kernel."""
        self.kernels[name] += 1
        moved = [leaf for leaf in tree_leaves((read, written)) if isinstance(leaf, Tensor)]
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in moved)


def memory_of(tensor: Tensor) -> int:
    """Identify the memory of a tensor, which views share."""
    return tensor.untyped_storage()._cdata


class CudaAutocast(TorchFunctionMode):
    """What `torch.autocast("cuda", torch.bfloat16)` does to the network's functions, on tensors of any device."""

    TYPES = (
        dict.fromkeys((torch.conv2d, torch.nn.functional.linear), torch.bfloat16)
        | {torch.nn.functional.layer_norm: torch.float32}
    )  # fmt: skip

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Convert the tensors of a listed function."""
        if func in self.TYPES:
            args = tuple(arg.to(self.TYPES[func]) if isinstance(arg, Tensor) else arg for arg in args)
        return func(*args, **(kwargs or {}))


def cuda_autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Stand in for `prediction.autocast`, which torch has not for tensors without memory."""
    return CudaAutocast() if precision == "bfloat16" else nullcontext()


@contextmanager
def fused(launches: Launches) -> Iterator[None]:
    """Take the path of CUDA through the network's kernels, each of which counts as one launch."""

    def launch(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.channels_last)
        launches.add("pixel_norm_silu", (x, weight, bias, film), out)
        return out

    kernel = "surveybridge.kernels.pixel_norm"
    with (
        patch(f"{kernel}.choose_impl", return_value="triton"),
        patch(f"{kernel}.triton.pixel_norm_silu_triton", launch),
    ):
        yield


class Counted:
    """Stands in for a Triton kernel: a launch is counted, with every tensor that it is given once."""

    def __init__(self, launches: Launches, name: str) -> None:
        self.launches, self.name = launches, name

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what launches."""
        return lambda *arguments, **constants: self.launches.add(self.name, arguments, None)


@contextmanager
def convolved(launches: Launches) -> Iterator[None]:
    """Take the path of CUDA as it is, through the kernel of convolutions too."""
    kernel = "surveybridge.kernels.conv3x3"
    with (
        fused(launches),
        patch("surveybridge.bridge_core.fused.choose_impl", return_value="triton"),
        patch(f"{kernel}.choose_impl", return_value="triton"),
        patch(f"{kernel}.triton.conv3x3_kernel", Counted(launches, "conv3x3")),
    ):
        yield


def count(windows: int, size: int, way: str) -> Launches:
    """Count one evaluation in bfloat16 in one of `WAYS`."""
    network = for_bfloat16(load_checkpoint().network.to("meta"))
    x1 = torch.empty(windows, network.config.image_channels, size, size, device="meta")
    launches = Launches()
    if way == "autocast":
        stacked = torch.empty(windows, network.config.input_channels, size, size, device="meta", dtype=torch.bfloat16)
        stacked = stacked.contiguous(memory_format=torch.channels_last)
        embedding = torch.empty(1, network.config.time_dim, device="meta")
        with torch.inference_mode(), CudaAutocast(), launches:
            network.given(stacked, embedding)
        return launches
    context: dict[str, Callable[[Launches], AbstractContextManager[None]]] = {"fused": fused, "convolved": convolved}
    with (
        patch("surveybridge.bridge_core.prediction.autocast", cuda_autocast),
        context.get(way, nullcontext)(launches),
    ):
        predictor = Predictor(network, x1, 1, [100], "bfloat16")
        with launches:
            predictor(0, x1)
    return launches


def main() -> None:
    """Print a row for each way; write launches.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=512)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s of the memory, by default an H100's (SXM)")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    rows = []
    print(f"one evaluation of {arguments.windows} windows of {arguments.size} pixels")
    for way in WAYS:
        found = count(arguments.windows, arguments.size, way)
        row = {
            "way": way,
            "launches": found.kernels.total(),
            "megabytes_a_window": found.bytes / arguments.windows / 1e6,
            "least_microseconds_a_window": found.bytes / arguments.windows / arguments.bandwidth / 1e6,
            "kernels": dict(found.kernels.most_common()),
        }
        rows.append(row)
        print(
            f"{way:9s} {row['launches']:4d} launches, {row['megabytes_a_window']:5.1f} MB a window, hence at least "
            f"{row['least_microseconds_a_window']:4.1f} us: {row['kernels']}"
        )
    if arguments.out:
        (arguments.out / "launches.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
