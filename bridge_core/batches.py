"""Batches of the network: as few as fit, and as equal in size as can be."""

from __future__ import annotations

import itertools


def balanced(number: int, most: int) -> list[slice]:
    """Return slices of 0 .. `number` - 1 of at most `most` each, whose sizes differ by one at most.

    With 520 rows and room for 512, two calls of 260 take less time than one of 512 and one of 8.
    """
    count = -(-number // most)
    ends = [number * part // count for part in range(count + 1)] if count else []
    return [slice(first, stop) for first, stop in itertools.pairwise(ends)]
