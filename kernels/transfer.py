"""From the host to a device without waiting for what the device still has to do."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the host to a device, which takes it when its turn has come.

    From pinned memory a GPU copies in the order of its queue, and the host goes on. A plain ``values.to(device)``, and
    ``torch.tensor(..., device=device)``, return when the GPU has done all that it was given before; until it is given
    something new it does nothing.

    Parameters
    ----------
    values : Tensor
        On the host; what is on a device already is moved as ever.
    device : torch.device or str
        Where it is to be.

    Returns
    -------
    Tensor
        The same values there; `values` itself if that is where they are.
    """
    device = torch.device(device)
    if device.type in ("cpu", "meta") or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
