"""The network on one batch, step after step: all that does not change on the way is laid out once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.fused import FusedUNet, takes
from surveybridge.bridge_core.network import UNet, network_input
from surveybridge.bridge_core.settings import Precision
from surveybridge.kernels.transfer import to_device


class Predictor:
    """Predicts the objective of some windows at some steps.

    The observed endpoint and the direction enter the network's input here, and the embedding of every step is computed;
    between two calls only the first channels change, which the sampler's update writes itself.

    Parameters
    ----------
    network
        In evaluation mode.
    x1
        float32 [N, C, H, W], the observed endpoint.
    head
        Of the network's two: index of the wanted endpoint.
    times
        Table indices of the steps.
    precision
        Of the network's arithmetic.
    context
        What the network is told beside the pixels; if it is told anything, None is that nothing is known.

    Attributes
    ----------
    input
        [N, C, H, W] view of the network's input, for u x_t + v x1 (`Objective.input_table`), in the type that the first
        layer computes in.

    Raises
    ------
    BridgeError
        If float32 is asked of weights that are rounded to bfloat16.
    """

    def __init__(
        self,
        network: UNet,
        x1: Tensor,
        head: int,
        times: Sequence[int],
        precision: Precision,
        context: Context | None = None,
    ) -> None:
        weight = network.init_conv.weight
        if precision == "float32" and weight.dtype != torch.float32:
            raise BridgeError(f"precision is float32 but the weights are {weight.dtype}; load the checkpoint again")
        self.network = network
        # Weights that are rounded already compute in their own type; autocast would compute norms in float32 on CUDA,
        # but GroupNorm, whose weights stay in float32, needs it there.
        typed = weight.dtype == torch.bfloat16 and network.config.norm == "pixel"
        self._autocast: Precision = "float32" if typed else precision
        channels = x1.shape[1]
        direction = torch.full((1,), head, device=x1.device)
        # the memory format follows that of the weights
        layout = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        if not network.config.told:
            maps = told = None
        else:
            context = context or Context.blank(torch.ones_like(x1, dtype=torch.bool))
            maps, told = context.maps, context.vector
        stacked = network_input(torch.zeros_like(x1), x1, direction, maps)
        self._stacked = stacked.to(dtype).contiguous(memory_format=layout)
        self.input = self._stacked[:, :channels]
        self._head = slice(head * channels, (head + 1) * channels)
        with torch.inference_mode(), autocast(x1.device, precision):
            embedded = network.embed(to_device(torch.tensor(list(times)), x1.device), direction).split(1)
            rows = embedded if told is None else [row + network.condition_embed(told) for row in embedded]
            self._embedded = [row.to(dtype) for row in rows]
            self._fused = FusedUNet(network, head) if takes(network, x1.device) else None
            if self._fused is not None:
                self._films = [self._fused.films(row) for row in self._embedded]

    def __call__(self, step: int, x_t: Tensor) -> Tensor:
        """Output of the head at ``times[step]``, [N, C, H, W]; the state x_t is in the input already."""
        with torch.inference_mode(), autocast(x_t.device, self._autocast):
            if self._fused is not None:
                return self._fused(self._stacked, self._films[step])
            return self.network.given(self._stacked, self._embedded[step])[:, self._head]

    def with_features(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same as a call, and return beside the output what the heads read and the embedding of the step.

        Returns
        -------
        tuple of Tensor
            Output [N, C, H, W], `UNet.features`, and embeddings [N, time_dim] or [1, time_dim]; a head can learn from
            them.
        """
        with torch.no_grad(), autocast(self._stacked.device, self._autocast):
            features = self.network.features(self._stacked, self._embedded[step])
            return self.network.heads(features)[:, self._head], features, self._embedded[step]


@contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Network arithmetic in the asked precision."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield
