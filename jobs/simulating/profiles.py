"""Sersic profiles as mixtures of Gaussians (Hogg and Lang, PASP 125, 719, 2013).

Weights of Gaussians at fixed widths, fitted to profiles of Sersic (1963) that end at 8 half-light radii, as those of
`sky` do; between the indices of the table they are interpolated. `python -m benchmarks.sersic_mixtures` makes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTHS = 0.849322 * 1.5 ** np.arange(-11, 4)
"""Standard deviations of the Gaussians, in half-light radii [K]; 0.849 is that of a Gaussian profile."""

INDICES = np.array([0.5, 0.6, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0])
_WEIGHTS = 1e-4 * np.array(
    [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10000, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 448, 78, 8481, 993, 0, 0),
        (0, 0, 0, 0, 0, 0, 11, 28, 0, 663, 995, 5667, 2637, 0, 0),
        (0, 0, 0, 0, 2, 5, 23, 65, 231, 660, 1785, 3378, 3217, 633, 0),
        (0, 0, 0, 2, 4, 18, 42, 139, 334, 862, 1711, 2772, 2703, 1274, 140),
        (0, 0, 1, 5, 8, 36, 66, 214, 411, 981, 1590, 2443, 2306, 1501, 437),
        (2, 0, 6, 11, 27, 69, 136, 315, 544, 1038, 1425, 2001, 1940, 1368, 1115),
        (6, 0, 14, 22, 52, 104, 205, 375, 630, 1019, 1294, 1746, 1780, 1082, 1671),
        (14, 0, 23, 36, 77, 137, 260, 412, 680, 984, 1180, 1597, 1680, 829, 2090),
        (24, 0, 33, 55, 98, 169, 302, 435, 708, 950, 1083, 1504, 1606, 625, 2408),
        (38, 0, 40, 77, 113, 199, 332, 450, 722, 919, 1001, 1442, 1548, 461, 2658),
        (55, 0, 46, 101, 123, 227, 352, 461, 727, 892, 931, 1398, 1501, 328, 2858),
        (74, 0, 50, 127, 127, 254, 364, 469, 727, 869, 871, 1366, 1462, 218, 3022),
        (117, 0, 50, 184, 124, 304, 373, 481, 717, 833, 773, 1323, 1400, 46, 3276),
    ]
)  # fmt: skip


def mixture(index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the flux in Gaussians of standard deviations `WIDTHS`, [..., K], of profiles of Sersic index [...].

    Indices outside 0.5 to 6 count as the nearest of these.
    """
    index = np.clip(index, INDICES[0], INDICES[-1])
    after = np.clip(np.searchsorted(INDICES, index), 1, len(INDICES) - 1)
    share = ((index - INDICES[after - 1]) / (INDICES[after] - INDICES[after - 1]))[..., None]
    weights = (1 - share) * _WEIGHTS[after - 1] + share * _WEIGHTS[after]
    return np.asarray(weights / weights.sum(-1, keepdims=True))
