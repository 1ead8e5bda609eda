"""Memory between bands of NaN, so that a kernel that reads or writes beyond its tensors is found out; and rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

GUARD = 32768  # values of NaN on each side, at least twice what one program covers


def guarded(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A tensor within NaN guard bands, and the whole of its memory."""
    count = int(np.prod(shape))
    memory = torch.full((GUARD + count + GUARD,), torch.nan, dtype=dtype)
    return memory[GUARD : GUARD + count].view(shape), memory


@contextmanager
def guarded_results(shape: tuple[int, ...], count: int) -> Iterator[None]:
    """Guard what `torch.empty` gives of this shape, and hold that the bands of all `count` such tensors stay NaN."""
    plain_empty, outputs = torch.empty, []

    def empty(size: tuple[int, ...], *, memory_format: Any = torch.contiguous_format, **kwargs: Any) -> Tensor:
        if tuple(size) != shape:
            return plain_empty(size, memory_format=memory_format, **kwargs)
        last = memory_format == torch.channels_last
        order = (shape[0], *shape[2:], shape[1]) if last else shape
        tensor, memory = guarded(order, kwargs.get("dtype", torch.float32))
        outputs.append(memory)
        return tensor.movedim(-1, 1) if last else tensor

    with patch.object(torch, "empty", empty):
        yield
    assert len(outputs) == count
    for memory in outputs:
        assert memory[:GUARD].isnan().all() and memory[-GUARD:].isnan().all()


@contextmanager
def rounding_to_nearest() -> Iterator[None]:
    """Let Triton's interpreter round float32 to bfloat16 as GPUs do: by itself it cuts bits off, twice as far off."""
    import triton.language as tl  # late: Triton is absent where there is no GPU
    from triton.runtime import interpreter

    plain = interpreter._convert_float

    def convert(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return plain(values, source, target, mode)
        return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()

    with patch.object(interpreter, "_convert_float", convert):
        yield


@contextmanager
def sums_without_an_order() -> Iterator[None]:
    """Let Triton's interpreter multiply matrices in float64, and round the sums.

    In float32 the order in which NumPy adds may depend on where in the block a row lies, as on processors with AVX2
    alone; on a GPU it does not.
    """
    from triton.runtime import interpreter

    def create_dot(_builder: Any, a: Any, b: Any, d: Any, *_how: Any) -> Any:
        assert a.data.dtype == b.data.dtype == d.data.dtype == np.float32
        summed = np.matmul(a.data, b.data, dtype=np.float64) + d.data
        return interpreter.TensorHandle(summed.astype(np.float32), d.dtype.scalar)

    with patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot):
        yield
