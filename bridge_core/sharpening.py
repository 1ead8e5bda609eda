"""A network that says what the sky was before seeing and noise: its input, its loss, and its samples of windows.

The state is linear in flux, because seeing is. For a Gaussian sky of known power the Wiener filter is E[x0 | x_t]; the
network adds what real skies have beyond that, x0 = W x_t + scale F. The scale is the error that the filter leaves, in
closed form: its posterior standard deviation, and in bright places the share of the light that it cannot bring back. It
depends on x_t alone, so the optimum of the loss, mean (F - target)^2, stays E[x0 | x_t], and a bright core counts no
more than the sky.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.bridge_core.bridge import Bridge
from surveybridge.bridge_core.context import Context
from surveybridge.bridge_core.correlate import blur
from surveybridge.bridge_core.errors import BridgeError
from surveybridge.bridge_core.model import Card, Model
from surveybridge.bridge_core.physics import filtered, frequencies
from surveybridge.bridge_core.prediction import autocast
from surveybridge.bridge_core.settings import Precision
from surveybridge.bridge_core.spectral import Physics, SpectralBridge, coloured_noise, mean_power, sample_spectral
from surveybridge.kernels.sky_noise import SkyNoise, sky_noise
from surveybridge.kernels.transfer import to_device

PAD = 16
"""Pixels by which a window is mirrored to each side before its modes are multiplied."""

KNOTS = torch.linspace(0, 0.72, 25, dtype=torch.float64)
"""Frequencies of `Objective.prior`, cycles per pixel; the power is log-linear in between."""

BRIGHTEST = 30.0
"""Network units at which images are cut off before their mean power is taken, so that few do not decide."""

FLOOR = 1e-2
"""White noise that is added to an image, as a share of the variance of its pixels: an image that was interpolated has
no noise at high frequencies, where the process would then be degenerate."""

FLOOR_STEP = 2**16 - 1
"""Noise step of that, which no update uses."""

NEAR = 1.5
"""Standard deviation, pixels, of the surroundings that say how bright a place is."""
SHARE = (0.05, 3.0)
"""Limits of the part of a bright place's light by which the network's input is scaled."""
MISSED, MISSED_LIMITS = 8.0, (5e-4, 0.6)
"""Part of a bright place's light that the filter misses, over that of an object with the mean spectrum, and its limits:
stars have more light at small scales. Where it was never below 0.05, the network made the last steps worse."""


def prior_power(images: Tensor) -> tuple[float, ...]:
    """Mean power of skies at `KNOTS`.

    Parameters
    ----------
    images
        float32 [N, C, H, W], in network units.
    """
    shape = (images.shape[-2], images.shape[-1])
    # without a taper the jump from one side to the other is most of the power of small scales
    taper = torch.hann_window(shape[0], periodic=False)[:, None] * torch.hann_window(shape[1], periodic=False)
    cut = images.clamp(-BRIGHTEST, BRIGHTEST) * taper
    power = torch.fft.rfft2(cut.double()).abs().square().mean((0, 1)) / taper.square().sum()
    radius = _radius(shape)
    step = float(KNOTS[1])
    found: list[float] = []
    for knot in KNOTS.tolist():
        near = (radius - knot).abs() < step / 2
        found.append(float(f"{float(power[near].mean()) if near.any() else found[-1]:.4g}"))
    return tuple(max(value, 1e-9) for value in found)


def prior_modes(prior: Sequence[float], shape: tuple[int, int]) -> Tensor:
    """Power of the modes of a shape, float64 [H, W // 2 + 1], from that at `KNOTS`."""
    at = (_radius(shape) / float(KNOTS[1])).clamp(max=len(KNOTS) - 1.001)
    below = at.long()
    log = torch.tensor(prior, dtype=torch.float64).log()
    return torch.lerp(log[below], log[below + 1], at - below).exp()


def _radius(shape: tuple[int, int]) -> Tensor:
    return torch.hypot(*torch.broadcast_tensors(*frequencies(shape)))


def mirrored(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply modes of windows [N, C, H, W], mirrored beyond, by a factor [..., H + 2 PAD, (W + 2 PAD) // 2 + 1]."""
    return filtered(F.pad(x, (PAD, PAD, PAD, PAD), mode="reflect"), factor)[..., PAD:-PAD, PAD:-PAD]


def spectral_bridge(bridge: Bridge, physics: Physics) -> SpectralBridge:
    """The table by mode of a `Bridge.seeing`, with the floor of white noise."""
    power = physics.power.double()
    variance = mean_power(power)
    return SpectralBridge(
        (bridge.s**2).to(power.device), physics.log_transfer, power + FLOOR * variance[..., None, None]
    )


@dataclass(frozen=True)
class Linear:
    """What the closed form says of states [N, C, H, W].

    Parameters
    ----------
    x0
        W x_t.
    scale
        Standard deviation of what it misses.
    inputs
        [N, 3C, H, W], what the network is shown: state, filtered state, and brightness of the surroundings.
    """

    x0: Tensor
    scale: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, bridge: SpectralBridge, prior: Tensor, x: Tensor, t: int | Tensor) -> Linear:
        """Look at states x at a step, or one each [N]; `prior` as `prior_modes`."""
        a, noise, filter_ = bridge.a(t), bridge.s(t) ** 2, bridge.wiener(t, prior)
        posterior = mean_power(prior * noise / (a.abs() ** 2 * prior + noise))
        # of the peak of an object with the mean spectrum, the part that the filter does not bring back
        lost = mean_power(prior.sqrt() * (1 - filter_ * a).abs()) / mean_power(prior.sqrt().expand(noise.shape))
        posterior, lost, variance = (v.float()[..., None, None] for v in (posterior, lost, mean_power(noise)))
        x0 = mirrored(x, filter_)
        reach = torch.arange(-6, 7, dtype=x.dtype, device=x.device)
        line = torch.exp(-0.5 * (reach / NEAR) ** 2)
        around = F.pad(x0.abs(), (6, 6, 6, 6), mode="reflect").flatten(0, 1)
        bright = blur(around, line / line.sum())[:, 6:-6, 6:-6].view_as(x0)
        missed = (MISSED * lost).clamp(*MISSED_LIMITS)
        share = (lost / (1 - lost)).clamp(*SHARE)  # inputs of bright places stay below 1 / SHARE[0]
        scale, shown = ((posterior + (part * bright) ** 2).sqrt() for part in (missed, share))
        level = 0.3 * torch.asinh(bright / posterior.sqrt())
        return cls(x0, scale, torch.cat([x / (shown**2 + variance).sqrt(), x0 / shown, level], 1))


@dataclass(frozen=True)
class SkyBatch:
    """Skies with all that is random about their observation already drawn, N of them.

    Parameters
    ----------
    sky
        float32 [N, C, G, G] network units: the sharp sky without noise, of windows with `PAD` pixels around.
    t
        int64 [N], index into the bridge's table.
    eps
        float32 [N, C, G, G], standard normal.
    context
        Of the windows, with their physics.
    """

    sky: Tensor
    t: Tensor
    eps: Tensor
    context: Context

    @classmethod
    def draw(cls, card: Card, sky: Tensor, context: Context, generator: torch.Generator) -> SkyBatch:
        """Draw t and eps from a CPU generator."""
        t = card.objective.draw_steps(card.bridge, len(sky), generator)
        return cls(sky, t, torch.randn(sky.shape, generator=generator), context)

    @classmethod
    def join(cls, batches: Sequence[SkyBatch]) -> SkyBatch:
        """One batch of all, in order."""
        contexts = [batch.context for batch in batches]
        physics = [one for context in contexts if (one := context.physics) is not None]
        joined = Context(
            torch.cat([context.maps for context in contexts]),
            torch.cat([context.vector for context in contexts]),
            Physics(torch.cat([one.log_transfer for one in physics]), torch.cat([one.power for one in physics])),
        )
        sky, t, eps = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("sky", "t", "eps"))
        return cls(sky, t, eps, joined)

    def to(self, device: torch.device) -> SkyBatch:
        """Return the same batch on a device."""
        return SkyBatch(self.sky.to(device), self.t.to(device), self.eps.to(device), self.context.to(device))

    def __len__(self) -> int:
        return len(self.t)

    def state(self, bridge: SpectralBridge, t: int | Tensor) -> Tensor:
        """The windows at a step, or at one each: [N, C, H, W], without the pixels around."""
        return bridge.q_sample(self.sky, t, self.eps)[..., PAD:-PAD, PAD:-PAD]


def observed_windows(card: Card, sky: Tensor, context: Context, generator: torch.Generator) -> Tensor:
    """Observe skies as their context says: the end of the process, without the floor, which sampling adds.

    Parameters
    ----------
    card
        Of a `Bridge.seeing`.
    sky
        float32 [N, C, G, G] network units, with `PAD` pixels around.
    context
        Of the windows, with their physics.
    generator
        Of the noise, on the CPU.

    Returns
    -------
    Tensor
        float32 [N, C, G - 2 PAD, G - 2 PAD] network units.
    """
    bridge, _ = tables(card, context)
    assert context.physics is not None
    bare = replace(bridge, power=context.physics.power.double())
    last = card.bridge.num_steps - 1
    batch = SkyBatch(sky, torch.full((len(sky),), last), torch.randn(sky.shape, generator=generator), context)
    return batch.state(bare, last)


def sky_loss(network: nn.Module, card: Card, batch: SkyBatch) -> Tensor:
    """Mean squared error of the network's part of x0 over its scale, a scalar; as `training.bridge_loss`."""
    bridge, prior = tables(card, batch.context)
    x = batch.state(bridge, batch.t)
    seen = Linear.of(bridge, prior, x, batch.t)
    target = (batch.sky[..., PAD:-PAD, PAD:-PAD] - seen.x0) / seen.scale
    head = card.problem.directions[0].index
    with torch.autocast(x.device.type, torch.bfloat16):
        inputs = torch.cat([seen.inputs, batch.context.maps], 1).contiguous(memory_format=torch.channels_last)
        heads = network(inputs, batch.t, torch.full_like(batch.t, head), batch.context.vector)
    return (heads[:, head * x.shape[1] :][:, : x.shape[1]].float() - target).square().mean()


def tables(card: Card, context: Context | None) -> tuple[SpectralBridge, Tensor]:
    """The bridge of windows by mode, and the power of the prior; refused where nothing is known of their seeing."""
    physics = None if context is None else context.physics
    if physics is None:
        raise BridgeError(
            f"checkpoint {card.name} goes through the seeing of an image, but no PSF is stated; state one at ingest"
        )
    shape = (physics.power.shape[-2], 2 * (physics.power.shape[-1] - 1))
    return spectral_bridge(card.bridge, physics), prior_modes(card.objective.prior, shape).to(physics.power.device)


def denoiser(
    model: Model,
    of: tuple[SpectralBridge, Tensor],
    context: Context,
    head: int,
    steps: Sequence[int],
    precision: Precision,
) -> Callable[[Tensor, int], Tensor]:
    """E[x0 | x_t] of windows as a function of x_t [N, C, H, W] and t, one of the steps; `of` as `tables` has it."""
    bridge, prior = of
    network, device = model.network, context.maps.device
    typed = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with torch.inference_mode(), autocast(device, precision):
        which = torch.full((1,), head, device=device)
        embedded = {
            t: network.embed(to_device(torch.tensor([t]), device), which, context.vector).to(typed) for t in set(steps)
        }

    def denoise(x: Tensor, t: int) -> Tensor:
        seen = Linear.of(bridge, prior, x, t)
        with torch.inference_mode(), autocast(device, precision):
            inputs = torch.cat([seen.inputs, context.maps], 1).to(typed)
            heads = network.given(inputs.contiguous(memory_format=torch.channels_last), embedded[t])
        channels = x.shape[1]
        return seen.x0 + seen.scale * heads[:, head * channels :][:, :channels].float()

    return denoise


def sharp_samples(
    model: Model,
    observed: Tensor,
    head: int,
    steps: Sequence[int],
    noise: SkyNoise,
    *,
    context: Context | None,
    precision: Precision = "float32",
) -> Tensor:
    """Draw the sharp sky of windows from its posterior.

    Parameters
    ----------
    observed
        float32 [N, C, H, W], network units.
    head
        Index of the wanted endpoint.
    steps
        Falling; one network evaluation each.
    noise
        The sky's own, of the windows.
    context
        Of the windows, with their physics.

    Returns
    -------
    Tensor
        float32 [N, C, H, W], network units.
    """
    bridge, prior = tables(model.card, context)
    assert context is not None
    shape = (observed.shape[1], observed.shape[2], observed.shape[3])
    variance = mean_power(bridge.power).float() * FLOOR / (1 + FLOOR)
    white = sky_noise(noise, FLOOR_STEP, shape, device=observed.device)
    return sample_spectral(
        bridge,
        denoiser(model, (bridge, prior), context, head, steps, precision),
        observed + variance.sqrt()[..., None, None] * white,
        list(steps),
        lambda step, factor: coloured_noise(noise, step, factor, shape),
        apply=mirrored,
    )


def about_both_means(samples: Tensor, answer: Tensor) -> Tensor:
    """Move samples so that their mean is half that of the samples, half the network's single answer.

    Both estimate E[x0 | observed]. Where they differ by more than the noise of a mean of K samples, the network errs,
    and mostly both are wrong: samples gather its errors at all levels of noise, the answer has those at the highest.
    The middle is nearer to the truth than either, and half of the samples stay to each side of it: their scatter says
    how far apart the two are.

    Parameters
    ----------
    samples
        float32 [P, K, B, H, W].
    answer
        float32 [P, B, H, W], samples of a single step.
    """
    count = samples.shape[1]
    shift = (answer - samples.mean(1)) / 2
    chance = samples.var(1) / (4 * count)
    apart = shift.sign() * (shift.square() - chance).clamp(min=0).sqrt()
    side = 1.0 - 2.0 * (torch.arange(count, device=samples.device) % 2)
    if count % 2:
        side[-1] = 0.0
    return samples + shift[:, None] + side[:, None, None, None] * apart[:, None]
