"""A GPU that is a CPU: tensors say that they are on a device, and what would make host and device wait is written down.

Arithmetic is done on the CPU, by the implementations for CPUs. So a test sees, without a GPU, whether code that is to
keep one busy ever reads a value back, or copies something to it in a way that waits for its queue.
"""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import surveybridge
from surveybridge.bridge_core import prediction
from surveybridge.bridge_core.network import UNet

GPU = torch.device("xla", 0)
"""A device that torch knows, and does not try to start as it does with CUDA."""
HOUSE = Path(surveybridge.__file__).parent


class OnGpu(Tensor):
    """A tensor that says it is on the GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device("meta"),  # a device that torch need not start
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return GPU

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of a `PretendedGpu`")


class PretendedGpu(TorchDispatchMode):
    """Does the arithmetic; `waits` has a line for whatever made host and device wait for each other, with its place."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def hold(self, values: Tensor) -> OnGpu:
        """Return values as if they were there, without writing that down."""
        return OnGpu(values.clone())

    def carry(self, network: UNet) -> UNet:
        """Return a copy of a network whose weights are there."""
        there = copy.deepcopy(network)
        for module in there.modules():
            for name, weight in module.named_parameters(recurse=False):
                module._parameters[name] = self.hold(weight.detach())  # type: ignore[assignment]
        return there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        asked = kwargs.get("device")
        there = torch.device(asked).type == GPU.type if asked is not None else any(isinstance(x, OnGpu) for x in given)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        self._look(func, args, kwargs, there)
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        places = {id(x.held): x for x in given if isinstance(x, OnGpu)}

        def back(value: Any) -> Any:
            if not isinstance(value, Tensor) or isinstance(value, OnGpu) or not there:
                return value
            # what is written in place is the tensor that was given
            return places[id(value)] if id(value) in places else OnGpu(value)

        return tree_map(back, found)

    def _look(self, func: Any, args: Any, kwargs: Any, there: bool) -> None:
        """Write down what waits."""
        name, first = func.overloadpacket.__name__, args[0] if args else None
        on_gpu = isinstance(first, OnGpu)
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal") and on_gpu:
            self._wait(f"{name}: a value is read")
        elif name in ("_to_copy", "to") and on_gpu and not there:
            self._wait("a tensor is copied to the host")
        elif name in ("_to_copy", "to") and isinstance(first, Tensor) and not on_gpu and there:
            if not (kwargs.get("non_blocking") and getattr(first, "is_staged", False)):
                self._wait("a tensor is copied to the device from memory that is not pinned")
        elif name == "copy_" and isinstance(args[1], OnGpu) is not on_gpu:
            self._wait("a tensor is copied over another that is elsewhere")
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if on_gpu and any(isinstance(i, Tensor) and not isinstance(i, OnGpu) for i in args[1]):
                self._wait("indices are on the host")
        elif there:
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.ndim:
                    raise AssertionError(f"{name}: a tensor of shape {list(x.shape)} is on the host")

    def _wait(self, what: str) -> None:
        frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_stack()]
        own = [f"{file.name}:{line}" for file, line in frames if file.is_relative_to(HOUSE)]
        self.waits.append(f"{what}: {' < '.join(own[:-4:-1])}")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


@contextlib.contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """What is done within may use the device `GPU`; kernels are those for CPUs, and nothing is cast by autocast."""

    def pinned(values: Tensor) -> Tensor:
        staged = values.clone()
        staged.is_staged = True  # type: ignore[attr-defined]
        return staged

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(prediction, "autocast", lambda *_: contextlib.nullcontext())
    with PretendedGpu() as gpu:
        yield gpu
