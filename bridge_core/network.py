"""The U-Net of AS-Bridge: one network, two heads, both directions.

Three images go in: x_t, and a slot for each endpoint of the problem, of which the wanted one's is zero. Two come out, a
head for each endpoint that may be wanted. With LSST and Euclid, whose one band is repeated to three channels, these are
nine channels and six. Module names follow the published program, so its weights load as they are. Two options of ours
leave that layout: ``stem = 2`` works on 2 x 2 pixel blocks (space to depth), a quarter of the arithmetic, and
``norm = "pixel"`` normalises over channels at each pixel, so that the result does not depend on the window's size.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.bridge_core.context import MAPS, vector_size
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.kernels.pixel_norm import cpp, film_silu, pixel_norm_silu


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the U-Net; the defaults are AS-Bridge's (12.03 M parameters)."""

    base: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    time_dim: int = 256
    image_channels: int = 3
    stem: int = 1
    norm: str = "group"
    conditions: bool = False
    """Whether the network is told the observing conditions (`bridge_core.context`)."""
    properties: int = 0
    """Properties of the object in the middle that a generator may be told (`bridge_core.generation`)."""

    @property
    def card(self) -> dict[str, Any]:
        """JSON form; `from_card` reads it."""
        return {
            name: value for name, value in asdict(self).items() if name not in ("conditions", "properties") or value
        }

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> NetworkConfig:
        """Read what `card` wrote."""
        return cls(**{**card, "multipliers": tuple(card["multipliers"])})

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: three images, and the maps of a network that is told conditions."""
        return (3 + (MAPS if self.conditions else 0)) * self.image_channels

    @property
    def told(self) -> int:
        """Numbers that the network is told beside its images; 0 where it is told nothing."""
        return vector_size(self.image_channels) if self.conditions else 2 * self.properties

    @property
    def window_multiple(self) -> int:
        """Heights and widths must be multiples of this many pixels."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    @property
    def local(self) -> bool:
        """Whether an output depends on its surroundings alone, in windows of any size: no statistics of the window."""
        return self.norm == "pixel"

    @property
    def reach(self) -> int:
        """Pixels to each side that an output pixel can see at most (half the receptive field), with norm "pixel".

        Each 3 x 3 convolution sees one pixel of its own resolution further; beside those of the residual blocks there
        is one at each change of resolution and one at each end. Pixels of one coarsest cell share what the cell sees.
        """
        scales = [self.stem * 2**level for level in range(len(self.multipliers))]
        blocks = 2 * 2 * self.blocks * sum(scales) + 4 * scales[-1]  # down and up, and the two in the middle
        return blocks + 2 * sum(scales[:-1]) + 2 * scales[0] + scales[-1] - 1


class UNet(nn.Module):
    """Predicts the objective for one direction.

    Parameters
    ----------
    config
        Shape of the network.
    """

    def __init__(self, config: NetworkConfig = NetworkConfig()) -> None:
        super().__init__()
        if config.norm not in ("group", "pixel"):
            raise BridgeError(f"network norm {config.norm!r} is not 'group' or 'pixel'")
        self.config = config
        c = config.image_channels
        widths = [config.base * m for m in config.multipliers]
        self.time_embed = nn.Sequential(
            SinusoidalEmbedding(config.time_dim),
            nn.Linear(config.time_dim, 4 * config.time_dim),
            nn.SiLU(),
            nn.Linear(4 * config.time_dim, config.time_dim),
        )
        self.dir_embed = nn.Embedding(2, config.time_dim)
        self.init_conv = Conv2d(config.input_channels * config.stem**2, widths[0], 3, padding=1)

        def stage(width_in: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(
                ResBlock(width_in if i == 0 else width, width, config.time_dim, config.norm)
                for i in range(config.blocks)
            )

        self.down_blocks = nn.ModuleList(
            stage(w_in, w) for w_in, w in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.downsamples = nn.ModuleList(Downsample(w) for w in widths[:-1])
        self.mid_block1 = ResBlock(widths[-1], widths[-1], config.time_dim, config.norm)
        self.mid_block2 = ResBlock(widths[-1], widths[-1], config.time_dim, config.norm)
        upward = widths[::-1]
        self.up_blocks = nn.ModuleList(
            stage(w_in + w, w) for w_in, w in zip([upward[0], *upward[:-1]], upward, strict=True)
        )
        self.upsamples = nn.ModuleList(Upsample(w) for w in upward[:-1])
        self.final_norm = make_norm(config.norm, widths[0])
        self.final_conv = Conv2d(widths[0], 2 * c * config.stem**2, 3, padding=1)
        if config.told:
            last = nn.Linear(config.time_dim, config.time_dim)
            # at first the conditions change nothing, so that training may begin with the weights of a network without
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(config.told, config.time_dim)
            self.condition_embed = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, direction: Tensor, told: Tensor | None = None) -> Tensor:
        """Predict both heads.

        Parameters
        ----------
        x
            [N, 3C, H, W]: x_t, the slots of endpoints 0 and 1, the wanted endpoint's slot zero; and the maps of
            `Context`, [N, 2C, H, W], if the network is told conditions.
        t
            [N], index into the bridge's table.
        direction
            int64 [N], index of the wanted endpoint.
        told
            The vector of `Context`, [N, V], if the network is told anything.

        Returns
        -------
        Tensor
            [N, 2C, H, W]: head of endpoint 0, then of endpoint 1.

        Raises
        ------
        BridgeError
            Where H or W is no multiple of the configuration's `window_multiple`.
        """
        return self.given(x, self.embed(t, direction, told))

    def embed(self, t: Tensor, direction: Tensor, told: Tensor | None = None) -> Tensor:
        """Return the embedding of step, direction and conditions: [N], int64 [N], [N, V] -> [N, time_dim]."""
        emb: Tensor = self.time_embed(t) + self.dir_embed(direction)
        return emb if told is None else emb + self.condition_embed(told)

    def given(self, x: Tensor, emb: Tensor) -> Tensor:
        """Do the same as `forward` with the embedding [N, time_dim], or [1, time_dim] if all share one step."""
        return self.heads(self.features(x, emb))

    def features(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return what the heads read, [N, base, H / stem, W / stem]; arguments as of `given`."""
        check_window(self.config, x)
        h = self.init_conv(F.pixel_unshuffle(x, self.config.stem) if self.config.stem > 1 else x)
        skips = []
        for i, blocks in enumerate(self.down_blocks):
            h = through(blocks, h, emb)
            skips.append(h)
            if i < len(self.downsamples):
                h = self.downsamples[i](h)
        h = self.mid_block2(self.mid_block1(h, emb), emb)
        for i, blocks in enumerate(self.up_blocks):
            h = torch.cat([h, skips.pop()], dim=1)
            h = through(blocks, h, emb)
            if i < len(self.upsamples):
                h = self.upsamples[i](h)
        normed: Tensor = self.final_norm(h)
        return normed

    def heads(self, features: Tensor) -> Tensor:
        """Return both heads, [N, 2C, H, W], of the `features`."""
        h: Tensor = self.final_conv(features)
        return F.pixel_shuffle(h, self.config.stem) if self.config.stem > 1 else h


def check_window(config: NetworkConfig, x: Tensor) -> None:
    """Refuse windows that the network cannot halve as often as it has to."""
    height, width = x.shape[-2:]
    multiple = config.window_multiple
    if height % multiple or width % multiple:
        raise BridgeError(
            f"window of {height} x {width} pixels but this network halves them down from multiples of {multiple}; "
            "choose another window size"
        )


def network_input(scaled: Tensor, x1: Tensor, direction: Tensor, maps: Tensor | None = None) -> Tensor:
    """Return [N, 3C, H, W]: scaled x_t and both slots; x1 fills the slot of the observed endpoint. Then any maps."""
    second_wanted = direction.view(-1, 1, 1, 1).bool()
    zero = torch.zeros_like(x1)
    slots = [torch.where(second_wanted, x1, zero), torch.where(second_wanted, zero, x1)]
    return torch.cat([scaled, *slots, *([] if maps is None else [maps])], dim=1)


def through(blocks: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    """Apply the residual blocks of one stage."""
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        h = block(h, emb)
    return h


def channels_last(network: UNet) -> UNet:
    """Put the weights in NHWC memory, several times faster in bfloat16 on CPUs; returns the network."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def for_bfloat16(network: UNet) -> UNet:
    """Round the weights of all layers but the embedding to bfloat16, as every call would; returns it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | PixelNorm):
            module.to(torch.bfloat16)
    return channels_last(network)


class SinusoidalEmbedding(nn.Module):
    """sin and cos of t at dim / 2 frequencies from 1 down to 1e-4 (Vaswani et al. 2017)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Map [N] to [N, dim]."""
        half = self.dim // 2
        rate = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
        angle = t[:, None].float() * rate[None, :]
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


class Conv2d(nn.Conv2d):
    """A convolution; of bfloat16 it is summed in float32 on processors without instructions for that.

    There PyTorch's own takes ten times as long. The sum is rounded to bfloat16 once, and its bits depend neither on the
    batch nor on the window. Where there are such instructions nothing is done.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C, H, W] as `torch.nn.Conv2d`, which autocast may let compute in bfloat16."""
        if input.device.type != "cpu" or not _is_bfloat16(input) or bfloat16_is_fast():
            return super().forward(input)
        assert self.bias is not None and isinstance(self.padding, tuple)
        with torch.autocast("cpu", enabled=False):
            x, weight, bias = (values.bfloat16().float() for values in (input, self.weight, self.bias))
            # `F.conv2d` takes another kernel for small images, which adds in another order
            summed = torch.mkldnn_convolution(x, weight, bias, self.padding, self.stride, self.dilation, self.groups)
        return summed.bfloat16()


def _is_bfloat16(x: Tensor) -> bool:
    """Whether a layer computes in bfloat16: by what it is given, or by autocast."""
    return x.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


@functools.cache
def bfloat16_is_fast() -> bool:
    """Whether PyTorch has fast convolutions of bfloat16 here, or none in float32 that could take their place."""
    return not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with a residual, the second norm modulated by the embedding (FiLM)."""

    def __init__(self, width_in: int, width: int, time_dim: int, norm: str) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, width_in)
        self.conv1 = Conv2d(width_in, width, 3, padding=1)
        self.norm2 = make_norm(norm, width)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        self.time_mlp = nn.Linear(time_dim, 2 * width)
        self.skip = Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [N, width_in, H, W], [N, time_dim] to [N, width, H, W]."""
        h = self.conv1(self.norm1(x))
        return self.conv2(self.norm2(h, self.time_mlp(emb))) + self.skip(x)


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H/2, W/2]."""
        return self.conv(x)


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class PixelNorm(nn.Module):
    """Layer norm over the channels of each pixel, FiLM and SiLU: no statistics across the window."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """Map [N, C, H, W], and scale and shift [N, 2C] or [1, 2C], to the shape of x."""
        return pixel_norm_silu(x, self.weight, self.bias, film)


def fused_on_cpu() -> bool:
    """Whether `PixelNorm` takes its C++ kernel on this processor; plain torch gives the same bits."""
    return cpp.loaded()


class GroupNorm(nn.GroupNorm):
    """Group norm, FiLM and SiLU."""

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """Map [N, C, H, W], and scale and shift [N, 2C] or [1, 2C], to the shape of x."""
        return film_silu(super().forward(x), film)


def make_norm(kind: str, width: int) -> nn.Module:
    """GroupNorm with 8 groups as published (1 group below 8 channels), or PixelNorm."""
    return PixelNorm(width) if kind == "pixel" else GroupNorm(8 if width >= 8 else 1, width)
