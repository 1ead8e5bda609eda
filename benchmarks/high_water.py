"""The most memory that this process has held."""

from __future__ import annotations

from pathlib import Path


def high_water() -> int:
    """Largest resident set of this process so far, bytes (not ru_maxrss, which begins with the parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
