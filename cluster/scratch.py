"""The folder of Ray's sockets, logs and spilled objects on this machine: with a short plain path, and with room."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from surveybridge.cluster.errors import ClusterError

SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""
BELOW_BYTES = len("/session_2026-11-28_12-34-56_123456_1234567/sockets/plasma_store.1")
"""What Ray puts behind its folder in the longest of them."""
ROOM_BYTES = 64 << 20
"""Bytes that Ray's logs need at least; what it spills comes on top."""
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")

_PLAIN = re.compile(r"[A-Za-z0-9/_.+,@=-]+")

log = logging.getLogger(__name__)


def scratch_folder() -> Path:
    """Return the folder that Ray would use itself (`ray` in RAY_TMPDIR, else in TMPDIR), or the next that can be used.

    Raises
    ------
    ClusterError
        If there is none; the message says why of each.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    asked = os.environ[name] if name else tempfile.gettempdir()
    troubles: list[str] = []
    for place in dict.fromkeys((asked, *OTHERS)):
        folder = Path(place, "ray")
        if (trouble := _trouble(folder)) is None:
            if troubles:
                log.warning("Ray's files go to %s: %s", folder, troubles[0])
            return folder
        troubles.append(f"{name + ' ' if place == asked else ''}{place} {trouble}")
    raise ClusterError(
        f"Ray has no folder for its sockets and files: {'; '.join(troubles)}; set RAY_TMPDIR to a short path with room"
    )


def _trouble(folder: Path) -> str | None:
    """Return why Ray cannot use a folder, or None if it can."""
    length, longest = len(os.fsencode(folder)), SOCKET_BYTES - BELOW_BYTES
    if length > longest:
        return f"has {length} bytes with /ray, but its sockets leave {longest}"
    if not _PLAIN.fullmatch(str(folder)):
        return "has characters that Ray does not take in a path"  # it splits its workers' command at blanks, say
    exists = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not exists.is_dir() or not os.access(exists, os.W_OK | os.X_OK):
        return "is not a folder that can be written"
    free = shutil.disk_usage(exists).free
    if free < ROOM_BYTES:
        return f"has {free / 2**20:.0f} MiB free, but Ray's logs need {ROOM_BYTES / 2**20:.0f}"
    return None
