"""What several processes of a run need is made by the first of them that asks; the others wait, and use it too."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

MADE_ONCE = "SURVEYBRIDGE_MADE_ONCE"
"""Variable with the folder of a run of several processes, as tests/lanes.py makes one."""


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder, which `make` has filled, here or in another process; nobody may change what is in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f"{folder.name}.made")
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that was interrupted
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
