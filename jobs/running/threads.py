"""How many threads a process that holds a network has."""

from __future__ import annotations

import os


def threads(workers: int) -> int:
    """Return `OMP_NUM_THREADS`, else the share of one of `workers` such processes in the cores of a machine."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // workers))
