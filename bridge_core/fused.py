"""The U-Net as it is evaluated on a GPU: one kernel for each 3 x 3 convolution and what follows it, and one head.

The network is that of `UNet.given`, but nothing is concatenated, activated or added by itself: a convolution writes the
activation that the next one reads, and the two that a skip connection joins write side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.bridge_core.network import Downsample, PixelNorm, ResBlock, UNet, Upsample, check_window
from surveybridge.kernels.conv3x3 import WIDTHS, Norm, Rest, conv3x3, upsampling_weight
from surveybridge.kernels.dispatch import Impl, choose_impl
from surveybridge.kernels.pixel_norm import pixel_norm_silu


def takes(network: UNet, device: torch.device) -> bool:
    """Whether `FusedUNet` is how to evaluate a network: Triton runs, weights are in bfloat16, norm and widths fit."""
    config = network.config
    fits = config.norm == "pixel" and all(config.base * m in WIDTHS for m in config.multipliers)
    return fits and network.init_conv.weight.dtype == torch.bfloat16 and choose_impl("auto", device) == "triton"


class FusedUNet:
    """Evaluates one head of a network with pixel norm, whose weights are final.

    Parameters
    ----------
    network
        In evaluation mode.
    head
        Index of the wanted endpoint.
    impl
        Of the kernels; "auto" is Triton on CUDA, plain torch elsewhere.
    """

    def __init__(self, network: UNet, head: int, impl: Impl = "auto") -> None:
        self.network, self.impl = network, impl
        self._down, self._up = (
            [cast(list[ResBlock], list(cast(nn.ModuleList, stage))) for stage in stages]
            for stages in (network.down_blocks, network.up_blocks)
        )
        self._middle = [network.mid_block1, network.mid_block2]
        upsamples = (cast(Upsample, upsample).conv for upsample in network.upsamples)
        self._upsamples = [(upsampling_weight(conv.weight.detach()), _bias(conv)) for conv in upsamples]
        last, channels = network.final_conv, network.final_conv.out_channels // 2
        own = slice(head * channels, (head + 1) * channels)
        self._last = last.weight[own], _bias(last)[own]

    def films(self, emb: Tensor) -> tuple[Tensor, ...]:
        """Return scale and shift of every block, [N, 2C] each, of the embedding [N, time_dim], by one product."""
        linears = [block.time_mlp for stage in (*self._down, self._middle, *self._up) for block in stage]
        weight, bias = torch.cat([li.weight for li in linears]), torch.cat([li.bias for li in linears])
        return F.linear(emb, weight, bias).split([li.out_features for li in linears], dim=1)

    def __call__(self, x: Tensor, films: Sequence[Tensor]) -> Tensor:
        """Return the head, [N, C, H, W], of the network's input and `films`."""
        network, film, joined = self.network, iter(films), list[Tensor]()
        check_window(network.config, x)
        stem = network.config.stem
        h, a = self._conv(network.init_conv, x, unshuffle=stem, norm=_norm(self._down[0][0].norm1))
        for i, stage in enumerate(self._down):
            coarser = self._down[i + 1 :]
            shape = (len(h), self._up[-1 - i][0].conv1.in_channels, *h.shape[2:])
            joined.append(torch.empty(shape, dtype=h.dtype, device=h.device, memory_format=torch.channels_last))
            went_down = joined[-1][:, -stage[-1].conv2.out_channels :]
            after = None if coarser else _norm(network.mid_block1.norm1)
            h, a = self._stage(stage, (h, a), film, after, out=went_down)
            if coarser:
                down = cast(Downsample, network.downsamples[i]).conv
                h, a = self._conv(down, h, stride=2, norm=_norm(coarser[0][0].norm1))
        came_up = joined[-1][:, : network.mid_block2.conv2.out_channels]
        self._stage(self._middle, (h, a), film, None, out=came_up)
        for i, stage in enumerate(self._up):
            h = joined.pop()
            a = pixel_norm_silu(h, *_norm(stage[0].norm1), impl=self.impl)
            h, a = self._stage(stage, (h, a), film, None if joined else _norm(network.final_norm), keep=bool(joined))
            if joined:
                weight, bias = self._upsamples[i]
                conv3x3(h, weight, bias, out=joined[-1][:, : len(bias)], impl=self.impl)
        head, _ = conv3x3(a, *self._last, shuffle=stem, impl=self.impl)
        assert head is not None
        return head

    def _stage(
        self,
        stage: Sequence[ResBlock],
        given: tuple[Tensor, Tensor],
        film: Iterator[Tensor],
        after: Norm | None,
        *,
        out: Tensor | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Apply the blocks of one resolution to h and its activation; `after` them comes a norm, if any."""
        h, a = given
        norms = [*(_norm(block.norm1) for block in stage[1:]), after]
        for block, norm in zip(stage, norms, strict=True):
            _, a = self._conv(block.conv1, a, norm=_norm(block.norm2, next(film)), keep=False)
            last = block is stage[-1]
            skip = (block.skip.weight, block.skip.bias) if isinstance(block.skip, nn.Conv2d) else ()
            rest, to = Rest(h, *skip), out if last else None
            h, a = self._conv(block.conv2, a, rest=rest, norm=norm, out=to, keep=keep or not last)
        return h, a

    def _conv(self, conv: nn.Conv2d, x: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], conv3x3(x, conv.weight, _bias(conv), impl=self.impl, **how))


def _norm(norm: nn.Module, film: Tensor | None = None) -> Norm:
    assert isinstance(norm, PixelNorm)
    return Norm(norm.weight, norm.bias, film)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
