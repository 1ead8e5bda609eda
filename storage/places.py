"""Whether something can be written at a place, found out without writing anything."""

from __future__ import annotations

import errno
import os

from surveybridge.storage.errors import StorageError
from surveybridge.storage.objectstore import Folder


def check_writable(url: str) -> None:
    """Refuse a local folder or file that cannot be written; of object storage, only a first request can tell.

    Parameters
    ----------
    url : str
        Local path or URL; it and the folders above it need not exist.

    Raises
    ------
    StorageError
        If it cannot be made or changed: where, why, and what to do.
    """
    folder = Folder.at(url)
    if not folder.is_local:
        return
    path = folder.path()
    if (trouble := _trouble(path)) is not None:
        raise StorageError(f"{path} cannot be written: {trouble}; give another place")


def _trouble(path: str) -> str | None:
    """Return why nothing can be written at a path, or None."""
    there = path
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    longest, limit = max(len(os.fsencode(name)) for name in path.split("/")), os.pathconf("/", "PC_NAME_MAX")
    if longest > limit:
        return f"a name in it has {longest} bytes, and may have {limit}"
    if os.path.islink(there) and not os.path.exists(there):
        return f"{there} is a link to {os.readlink(there)}, which does not exist"
    if there != path and not os.path.isdir(there):
        return f"{there} is a file, and no folder"
    if os.access(there, os.W_OK | (os.X_OK if os.path.isdir(there) else 0)):
        return None
    read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    return f"{there} is {os.strerror(errno.EROFS).lower() if read_only else 'not writable for this user'}"
