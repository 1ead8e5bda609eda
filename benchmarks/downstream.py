"""Whether a denoiser gets better if generated galaxies are mixed into its training.

    python -m benchmarks.downstream --real pairs/train_regular.zarr --made made.zarr --test pairs/test_regular.zarr
        [--alphas 0 0.25 0.5 0.8 1] [--networks 3] [--steps 600] [--real-count 300] [--base 32]
        [--out benchmarks/results/downstream.json]

The experiment of Holzschuh et al. 2022 (sec. 5) on VIS: each training image comes from the generated set with
probability alpha, else from the real one. An input is its image through a Gaussian PSF of sigma 2 pixels, with white
noise of four times that of VIS. Judged as trained, with pixels twice as large, with noise five times as large, with
both, and through a PSF such as LSST's (sigma 3.2 pixels). Two controls: `augmented`, real images alone with a random
flux and size beside the flips and turns that all have; `as few`, alpha 0.5 with as many generated images as real ones.
Mean squared errors over test images and networks are in squared units of VIS noise; gains are 1 - MSE / MSE at alpha 0,
with 95% intervals from drawing test images and networks anew. Each network takes the same number of steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surveybridge.storage.pairs import read_pairs

PSF_SIGMA = 2.0
"""Pixels."""
NOISE = 4.0
"""Of the sky of VIS."""
BATCH = 16
RATE = 5e-4
"""Peak learning rate; the published 1e-4 is for hundreds of thousands of steps."""
BOOTSTRAP = 1000


@dataclass(frozen=True)
class Shift:
    """How test images differ from those of the training.

    Parameters
    ----------
    coarse
        Factor by which pixels are larger.
    noise
        Factor by which the noise is larger.
    sigma
        Of the PSF, pixels.
    """

    coarse: int = 1
    noise: float = 1.0
    sigma: float = PSF_SIGMA


SHIFTS = {
    "as trained": Shift(),
    "pixels x 2": Shift(coarse=2),
    "noise x 5": Shift(noise=5.0),
    "both": Shift(coarse=2, noise=5.0),
    "LSST's PSF": Shift(sigma=3.2),
}


class Denoiser(nn.Module):
    """ResNetV1 of Holzschuh et al. 2022: five residual blocks on each side of two channels, all 5 x 5, no skip."""

    def __init__(self, base: int = 32, blocks: int = 5) -> None:
        super().__init__()
        self.first, self.narrow = _conv(1, base), _conv(base, 2)
        self.wide, self.last = _conv(2, base), _conv(base, 1)
        self.encoder, self.decoder = (nn.ModuleList(Block(base) for _ in range(blocks)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, H, W] to the same."""
        h = _active(self.first(x))
        for block in self.encoder:
            h = block(h)
        h = _active(self.wide(_active(self.narrow(h))))
        for block in self.decoder:
            h = block(h)
        out: Tensor = self.last(h)
        return out


class Block(nn.Module):
    """Two convolutions with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to the same."""
        return _active(x + self.two(_active(self.one(x))))


def _conv(width_in: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 5, padding=2)


def _active(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.3)


def main() -> None:
    """Train, judge, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True)
    parser.add_argument("--made", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.8, 1.0])
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--real-count", type=int, default=300)
    parser.add_argument("--test-count", type=int, default=200)
    parser.add_argument("--base", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if 0.0 not in arguments.alphas:
        parser.error("--alphas without 0 have nothing to be compared with; give 0 as well")
    real = images_of(arguments.real, arguments.real_count)
    made = images_of(arguments.made, None)
    test = images_of(arguments.test, arguments.test_count)
    errors = {}
    for name, (alpha, generated, augmented) in settings(arguments.alphas, made, len(real)).items():
        runs = []
        for seed in range(arguments.networks):
            torch.manual_seed(seed)
            network = Denoiser(arguments.base, arguments.blocks)
            network = fit(network, (real, generated), alpha, arguments.steps, seed, augmented=augmented)
            runs.append({shift: judge(network, test, how) for shift, how in SHIFTS.items()})
        errors[name] = {shift: np.stack([run[shift] for run in runs]) for shift in SHIFTS}
        print(name, {shift: round(float(of.mean()), 4) for shift, of in errors[name].items()}, flush=True)
    rows = table(errors)
    print("\n".join(lines_of(rows)))
    if arguments.out:
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"asked": asked, "made": len(made), "rows": rows}, indent=1) + "\n")


def settings(alphas: Sequence[float], made: Tensor, real_count: int) -> dict[str, tuple[float, Tensor, bool]]:
    """What is trained, by name: alpha, the generated images, and whether real ones are augmented further."""
    found = {f"alpha {alpha:g}": (alpha, made, False) for alpha in alphas}
    return found | {"augmented": (0.0, made, True), "as few": (0.5, made[:real_count], False)}


def images_of(url: str, count: int | None) -> Tensor:
    """Stamps of VIS, float32 [N, 1, H, W], in units of the noise of its sky."""
    pairs = read_pairs(url, stop=count)
    noise = next(iter(pairs.noise["euclid"].values()))
    return torch.from_numpy(pairs.ends["euclid"]) / noise


def observed(images: Tensor, how: Shift, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images as they are observed, and as they are wanted, [N, 1, H, W] each."""
    radius = int(4 * how.sigma)
    places = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-0.5 * (places / how.sigma) ** 2)
    kernel = kernel / kernel.sum()
    blurred = F.conv2d(
        F.conv2d(images, kernel.view(1, 1, -1, 1), padding="same"), kernel.view(1, 1, 1, -1), padding="same"
    )
    if how.coarse > 1:
        images, blurred = (F.avg_pool2d(each, how.coarse) for each in (images, blurred))
    return blurred + NOISE * how.noise * torch.randn(blurred.shape, generator=generator), images


def drawn(sets: tuple[Tensor, Tensor], alpha: float, generator: torch.Generator, *, augmented: bool) -> Tensor:
    """Draw a batch of training images, each generated with probability alpha, flipped and turned at random."""
    real, made = sets
    picked = torch.rand(BATCH, generator=generator) < alpha
    numbers = torch.rand(BATCH, generator=generator)
    moves = torch.randint(0, 8, (BATCH,), generator=generator).tolist()
    flux = 10 ** (0.6 * torch.rand(BATCH, generator=generator) - 0.3)
    size = 0.7 + 0.6 * torch.rand(BATCH, generator=generator)
    batch = []
    for generated, number, move, f, s in zip(picked, numbers, moves, flux, size, strict=True):
        some = made if generated else real
        image = torch.rot90(some[int(number * len(some))], move % 4, (1, 2))
        image = image.flip(2) if move >= 4 else image
        batch.append(_resized(f * image, float(s)) if augmented else image)
    return torch.stack(batch)


def _resized(image: Tensor, scale: float) -> Tensor:
    """An image [1, H, W] seen `scale` times as large, about its middle; beyond its edges there is nothing."""
    grid = F.affine_grid(
        torch.tensor([[[1 / scale, 0.0, 0.0], [0.0, 1 / scale, 0.0]]]), [1, 1, *image.shape[-2:]], False
    )
    return F.grid_sample(image[None], grid, align_corners=False)[0]


def fit(
    network: Denoiser, sets: tuple[Tensor, Tensor], alpha: float, steps: int, seed: int, *, augmented: bool
) -> Denoiser:
    """Train a denoiser by least squares; every setting takes as many steps."""
    generator = torch.Generator().manual_seed(seed)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        seen, wanted = observed(drawn(sets, alpha, generator, augmented=augmented), Shift(), generator)
        with torch.autocast("cpu", torch.bfloat16):
            answer = network(seen)
        loss = F.mse_loss(answer.float(), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 100.0)
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def judge(network: Denoiser, test: Tensor, how: Shift) -> np.ndarray:
    """Mean squared error of each test image, [N]; all networks see the same noise."""
    seen, wanted = observed(test, how, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        answers = torch.cat([network(part) for part in seen.split(32)])
    return ((answers.float() - wanted) ** 2).mean((1, 2, 3)).numpy()


def table(errors: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Rows: by setting and shift, the error and its gain over alpha 0, with its interval.

    Parameters
    ----------
    errors
        By setting and shift, [networks, N].
    """
    rng = np.random.default_rng(0)
    rows = []
    for name, shifts in errors.items():
        for shift, of in shifts.items():
            plain = errors["alpha 0"][shift]
            gains = []
            for _ in range(BOOTSTRAP):
                some = rng.integers(0, of.shape[1], of.shape[1])
                one, other = (rng.integers(0, len(runs), len(runs)) for runs in (of, plain))
                gains.append(1 - of[one][:, some].mean() / plain[other][:, some].mean())
            low, high = np.quantile(gains, (0.025, 0.975))
            gain = 1 - of.mean() / plain.mean()
            rows.append(
                {
                    "setting": name,
                    "shift": shift,
                    "error": float(of.mean()),
                    "gain": float(gain),
                    "interval": (float(low), float(high)),
                }
            )
    return rows


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """The table as Markdown: gains in percent, and errors at alpha 0."""
    lines = ["| gain | " + " | ".join(SHIFTS) + " |", "|---|" + "---|" * len(SHIFTS)]
    for name in dict.fromkeys(row["setting"] for row in rows):
        of = [row for row in rows if row["setting"] == name]
        if name == "alpha 0":
            cells = [f"(error {row['error']:.3f})" for row in of]
        else:
            cells = [
                f"{100 * row['gain']:+.0f}% [{100 * row['interval'][0]:+.0f}, {100 * row['interval'][1]:+.0f}]"
                for row in of
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
