"""Scores of a probabilistic translation: K samples of a posterior against what was observed.

Scores are proper and, where it says so, fair: their expectation does not depend on K when samples and truth are drawn
alike (Ferro 2014), so that few samples are not taken for a bad posterior. Truth is noisy and so are samples: what is
judged is the predictive distribution of the image, noise included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_range(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Network units clipped to `bounds` and scaled to [0, 1]; AS-Bridge's bounds are (-1, 1)."""
    low, high = bounds
    return (u.clamp(low, high) - low) / (high - low)


def energy_score(
    samples: Tensor, truth: Tensor, bounds: tuple[float, float] = (-1.0, 1.0), *, fair: bool = False
) -> Tensor:
    """Energy score as AS-Bridge defines it (it calls it CRPS): mean |X - y| - mean |X - X'| / 2 over all K^2 pairs.

    Parameters
    ----------
    samples
        [K, N, C, H, W] in network units.
    truth
        [N, C, H, W].
    bounds
        Network units that map to [0, 1].
    fair
        Take the mean over the K (K - 1) pairs of different samples. As published, the K pairs of a sample with itself
        count, and the score is too high by mean |X - X'| / (2 K).

    Returns
    -------
    Tensor
        [N]; the norm is over all pixels and channels. Gneiting & Raftery 2007, eq. (22).
    """
    return _energy(unit_range(samples, bounds).flatten(2), unit_range(truth, bounds).flatten(1), fair)


def patch_energy_score(
    samples: Tensor, truth: Tensor, scales: Sequence[int] | None = None, patch: int = 8
) -> list[Tensor]:
    """Fair energy score of patches at several scales: structure that a score of single pixels does not see.

    Parameters
    ----------
    samples
        [K, N, C, H, W] in any units, K at least 2.
    truth
        [N, C, H, W].
    scales
        The images are averaged over so many pixels first; what is less than ``scale * patch`` at their ends is left
        out. By default 1, 2, 4 and 8, as far as the images hold a patch.
    patch
        Side of a patch in averaged pixels.

    Returns
    -------
    list of Tensor
        [N] for each scale: mean over patches of the score per root of the patch's values, in the units given.
    """
    k, n = samples.shape[:2]
    if scales is None:
        scales = [scale for scale in (1, 2, 4, 8) if min(truth.shape[-2:]) // scale >= patch]
    images = torch.cat([samples.flatten(0, 1), truth])
    scores = []
    for scale in scales:
        patches = F.unfold(F.avg_pool2d(images, scale), patch, stride=patch).transpose(1, 2)
        drawn = patches[: k * n].unflatten(0, (k, n)).flatten(1, 2)
        found = _energy(drawn, patches[k * n :].flatten(0, 1), fair=True)
        scores.append(found.unflatten(0, (n, -1)).mean(1) / math.sqrt(patches.shape[-1]))
    return scores


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Fair CRPS of every pixel: mean |X - y| - mean |X - X'| / 2 over different samples.

    Parameters
    ----------
    samples
        [K, ...], K at least 2.
    truth
        [...].

    Returns
    -------
    Tensor
        [...] in the units of the samples. Gneiting & Raftery 2007, eq. (21), with the pairs of Ferro 2014, from the
        sorted samples.
    """
    k = len(samples)
    rank = torch.arange(1, k + 1, dtype=samples.dtype, device=samples.device) * 2 - k - 1
    ordered = samples.sort(0).values
    among = torch.einsum("k,k...->...", rank, ordered) / (k * (k - 1))
    return (samples - truth).abs().mean(0) - among


def ranks(samples: Tensor, truth: Tensor) -> Tensor:
    """Count the samples, of K, that lie below the truth, int64 [...]: uniform on 0..K if the posterior is right."""
    return (samples < truth).sum(0)


def interval_width(probability: float, samples: int) -> float:
    """Half width, in standard deviations over K samples, of the interval around their mean that holds a new draw.

    Student's t with K - 1 degrees of freedom times sqrt(1 + 1/K): for a Gaussian posterior the interval holds the
    truth with just this probability, whatever K is.
    """
    from scipy.stats import t as student_t  # slow to import, and no translation needs it

    return float(student_t.ppf(0.5 + probability / 2, samples - 1)) * math.sqrt(1 + 1 / samples)


def coverage_within(mean: Tensor, std: Tensor, truth: Tensor, where: Tensor, widths: tuple[float, ...]) -> list[float]:
    """Share of the pixels `where` whose truth lies within each of `widths` standard deviations of the mean."""
    pull = ((truth - mean) / std)[where].abs()
    return [float((pull <= width).double().mean()) for width in widths]


def _energy(samples: Tensor, truth: Tensor, fair: bool) -> Tensor:
    """Energy score of [K, N, D] against [N, D]."""
    k = len(samples)
    to_truth = torch.linalg.vector_norm(samples - truth, dim=-1).mean(0)
    pairs = [torch.linalg.vector_norm(samples[i + 1 :] - samples[i], dim=-1).sum(0) for i in range(k - 1)]
    among = 2 * torch.stack(pairs).sum(0) if pairs else torch.zeros_like(to_truth)
    return to_truth - 0.5 * among / (k * (k - 1) if fair else k * k)
