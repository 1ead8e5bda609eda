"""Objects that are one system on the sky, such as a lens and its arcs.

The system of an object is named by the brightest object within a radius of it, itself included. So it is decided by
what lies within that radius alone: two tiles that both see the surroundings of an object, one from its core and one
from its halo, decide alike; and a system is never wider than a circle of this radius, since neighbours of neighbours do
not join.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def brightest_within(
    x: NDArray[np.float64], y: NDArray[np.float64], brightness: NDArray[np.floating], radius: float
) -> NDArray[np.int64]:
    """Index of the brightest object within a radius of each object, itself included.

    Parameters
    ----------
    x, y
        float64 [N], pixels.
    brightness
        [N]; NaN is the faintest. Of equal ones the first in order of (y, x) counts as the brighter.
    radius
        Pixels.

    Returns
    -------
    array
        int64 [N].
    """
    if len(x) == 0:
        return np.zeros(0, np.int64)
    order = np.lexsort((x, y, -np.nan_to_num(np.asarray(brightness, np.float64), nan=-np.inf)))
    place = np.empty(len(x), np.int64)
    place[order] = np.arange(len(x))
    found = place.copy()
    pairs = cKDTree(np.stack([x, y], 1)).query_pairs(radius, output_type="ndarray")
    np.minimum.at(found, pairs[:, 0], place[pairs[:, 1]])
    np.minimum.at(found, pairs[:, 1], place[pairs[:, 0]])
    return np.asarray(order[found], np.int64)
